//! What happens to devices and peers, as told to whoever subscribes.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use wire_core::PublicKey;

/// One fact, in the form in which the service sends it: a JSON object with the key `event`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A device was created by the service.
    DeviceCreated {
        /// Its name.
        interface: String,
    },
    /// A device is no more.
    DeviceEnded {
        /// Its name.
        interface: String,
        /// Why.
        reason: End,
    },
    /// A session with a peer is in use; it was reached just now.
    HandshakeCompleted {
        /// The device's name.
        interface: String,
        /// The peer.
        peer: Key,
    },
    /// A peer did not answer for 90 seconds.
    HandshakeAbandoned {
        /// The device's name.
        interface: String,
        /// The peer.
        peer: Key,
    },
    /// A peer has a new address, from which an authenticated packet came.
    EndpointChanged {
        /// The device's name.
        interface: String,
        /// The peer.
        peer: Key,
        /// Where it is now.
        endpoint: SocketAddr,
    },
    /// The session keys of a peer were erased for want of a handshake.
    SessionExpired {
        /// The device's name.
        interface: String,
        /// The peer.
        peer: Key,
    },
    /// Somebody set something through the device's UAPI socket: its key, port, mark or peers.
    ///
    /// Only for who asked to [`watch`](crate::supervise::Request::Watch).
    Configured {
        /// The device's name.
        interface: String,
    },
    /// The subscriber was too slow and missed this many events: look at the state again.
    Lost {
        /// How many.
        count: u64,
    },
}

/// Why a device is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Somebody asked for it.
    Requested,
    /// Somebody deleted the interface.
    InterfaceDeleted,
    /// Somebody removed its UAPI socket.
    SocketRemoved,
    /// The kernel failed it; the log says how.
    Failed,
}

/// A peer's public key, written in base64 as `wg` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(pub PublicKey);

/// A text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the base64 of 32 bytes")]
pub struct BadKey;

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bytes = STANDARD.decode(text).map_err(|_| BadKey)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| BadKey)?;
        Ok(Self(PublicKey(bytes)))
    }
}

impl TryFrom<String> for Key {
    type Error = BadKey;

    fn try_from(text: String) -> Result<Self, BadKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl Event {
    /// What the protocol core says about `interface`, in our words.
    pub(crate) fn from_core(interface: &str, event: wire_core::Event) -> Self {
        let interface = interface.to_owned();
        match event {
            wire_core::Event::HandshakeCompleted { public_key, .. } => Self::HandshakeCompleted {
                interface,
                peer: Key(public_key),
            },
            wire_core::Event::HandshakeAbandoned { public_key, .. } => Self::HandshakeAbandoned {
                interface,
                peer: Key(public_key),
            },
            wire_core::Event::EndpointChanged {
                public_key,
                endpoint,
                ..
            } => Self::EndpointChanged {
                interface,
                peer: Key(public_key),
                endpoint,
            },
            wire_core::Event::SessionExpired { public_key, .. } => Self::SessionExpired {
                interface,
                peer: Key(public_key),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_json_object() {
        let event = Event::EndpointChanged {
            interface: "wg0".into(),
            peer: Key(PublicKey([1; 32])),
            endpoint: "[2001:db8::1]:51820".parse().unwrap(),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"event":"endpoint-changed","interface":"wg0","peer":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","endpoint":"[2001:db8::1]:51820"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        assert_eq!("AQEB".parse::<Key>(), Err(BadKey));
        assert_eq!("=".parse::<Key>(), Err(BadKey));
    }
}
