//! Inner packets: what is read from and written to the TUN device.
//!
//! ```text
//!   TUN ─▶ virtio header + (super-)frame ─▶ segment ─▶ packets ≤ MTU ─▶ sealed one by one
//!   TUN ◀─ virtio header + (super-)frame ◀─ merge   ◀─ packets ≤ MTU ◀─ opened one by one
//! ```
//!
//! Pure computation over the caller's buffers: nothing here allocates per packet, reads a clock or does I/O.

pub(crate) mod checksum;
pub(crate) mod ip;
pub(crate) mod merge;
pub(crate) mod segment;
pub(crate) mod unreachable;
pub(crate) mod virtio;
