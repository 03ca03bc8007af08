//! What an implementation of WireGuard must offer.

use model::InterfaceName;
use wire::uapi::{Configuration, Status};
use wire_core::PublicKey;

/// An implementation of WireGuard on this machine.
///
/// # Guarantees
///
/// - A device outlives whoever asked for it.
/// - [`create`](Backend::create) of a device that is there, and [`delete`](Backend::delete) of one that is
///   not, succeed and change nothing.
/// - [`write`](Backend::write) begins a handshake with a peer that gets its first endpoint and a
///   keepalive, without waiting for a packet.
/// - No session ends but those of a device that is deleted and of a peer that is removed.
///
/// # Assumptions
///
/// - An allowed IP that is taken from a peer is that peer's.
///
/// # Errors
///
/// [`BackendError::Away`] where the implementation itself, or the device, cannot be reached: it is tried
/// again. After any error a part may have been written; writing the whole again completes it.
pub trait Backend: Send {
    /// Returns whether devices can be made here.
    fn is_there(&mut self) -> Result<bool, BackendError>;

    /// Returns its devices, as far as they are ours.
    fn list(&mut self) -> Result<Vec<InterfaceName>, BackendError>;

    /// Returns whether a device of this name is there and of this implementation, whosever it is.
    fn holds(&mut self, device: &InterfaceName) -> Result<bool, BackendError>;

    /// Makes a device, down and without a key. The MTU is in bytes.
    fn create(&mut self, device: &InterfaceName, mtu: u32) -> Result<(), BackendError>;

    /// Ends a device.
    fn delete(&mut self, device: &InterfaceName) -> Result<(), BackendError>;

    /// Reads a device; `None` where it is not there.
    fn read(&mut self, device: &InterfaceName) -> Result<Option<Status>, BackendError>;

    /// Changes a device.
    fn write(
        &mut self,
        device: &InterfaceName,
        configuration: &Configuration,
    ) -> Result<(), BackendError>;

    /// Returns a device that listens on this UDP port, whosever it is, as far as the implementation can
    /// see those of others.
    fn device_on(&mut self, port: u16) -> Result<Option<InterfaceName>, BackendError> {
        let _unseen = port;

        Ok(None)
    }

    /// Begins handshakes with peers that it has, without waiting for a packet. Each comes with the
    /// keepalive that it has, in seconds.
    fn greet(
        &mut self,
        device: &InterfaceName,
        peers: &[(PublicKey, u16)],
    ) -> Result<(), BackendError>;
}

/// Why an implementation did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It cannot be reached.
    #[error("{0}")]
    Away(String),
    /// Somebody else has the UDP port. Nothing of the request was applied.
    #[error("the UDP port is in use")]
    PortTaken,
    /// It refused.
    #[error("refused: {0}")]
    Refused(String),
}
