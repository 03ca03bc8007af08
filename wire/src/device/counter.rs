//! What a device dropped, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Packets dropped since the device was started, by reason.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters while they count.
        #[derive(Default)]
        pub(crate) struct Live {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Live {
            /// Their values now.
            pub(crate) fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Out: a frame from the device that is no IP packet.
    out_malformed,
    /// Out: no peer has the destination among its allowed IPs.
    out_no_peer,
    /// Out: the peer has no known endpoint, or we have no key.
    out_no_endpoint,
    /// Out: the queue for a peer without a session was full.
    out_queue_full,
    /// Out: the kernel refused the datagrams, or the interface is down.
    out_send_failed,
    /// In: a datagram that is no WireGuard message.
    in_malformed,
    /// In: a data message of a session that is not (or no longer) there.
    in_no_session,
    /// In: a data message that is not authentic.
    in_forged,
    /// In: a data message that was seen before.
    in_replayed,
    /// In: a packet whose source is not among the peer's allowed IPs.
    in_wrong_source,
    /// In: authentic, but no IP packet.
    in_bad_packet,
    /// In: a handshake message that was refused.
    in_handshake_refused,
    /// In: a handshake message that came while too many waited.
    in_handshake_dropped,
    /// In: a handshake message that was answered with a cookie, because we are under load.
    in_handshake_cookie,
    /// In: the device did not take the packet.
    in_write_failed,
    /// In: the socket failed.
    in_receive_failed,
}

/// Counts `count` more.
pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}
