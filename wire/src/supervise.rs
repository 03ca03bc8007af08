//! The tunnel as a service: `meshwire --supervise SOCKET`, and what to say to it.
//!
//! Devices belong to the service's process, so that the agent that asked for them may die, restart or be upgraded
//! without any effect on them. The service makes nothing on its own and remembers nothing across its own restart.
//!
//! ```text
//!  agent ──▶ {"request":"create","name":"wireguard.cali","mtu":1420}⏎
//!        ◀── {"response":"created","existing":false,"device":{…}}⏎
//!        ──▶ {"request":"events"}⏎
//!        ◀── {"response":"subscribed"}⏎ {"event":"handshake-completed",…}⏎ …
//! ```
//!
//! One JSON object a line, each request answered in order; after `events` the connection carries events alone. Keys,
//! peers and counters go over each device's own UAPI socket ([`crate::uapi`]), so `wg` works there too. The socket is
//! for root and the service's own user.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::DeviceStatus;

mod client;
mod hub;
mod server;

pub use client::{Client, ClientError, Events};
pub use server::{Service, ServiceError, Settings};

/// Where the service listens unless told otherwise.
pub const SOCKET: &str = "/run/meshd/wire.sock";

/// Version of this protocol. Requests of a version are understood by every later service.
pub const VERSION: u32 = 1;

/// Longest line either side takes, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Make a device, down and without a key; one that is there already stays as it is.
    Create {
        /// Its name.
        name: String,
        /// Its MTU in bytes; [`crate::tun::DEFAULT_MTU`] unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mtu: Option<u32>,
    },
    /// End a device.
    Delete {
        /// Its name.
        name: String,
    },
    /// All devices.
    List,
    /// From now on, what happens.
    Events,
    /// From now on, what happens, and each time that a device is configured: whoever watches need not
    /// look at devices to find out. Unknown to services before 0.2, which refuse it.
    Watch,
}

/// What the service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To `hello`.
    Hello(Hello),
    /// To `create`.
    Created(Created),
    /// To `delete`.
    Deleted,
    /// To `list`, by name.
    Devices {
        /// All of them.
        devices: Vec<DeviceStatus>,
    },
    /// To `events`.
    Subscribed,
    /// The request was not carried out.
    Error(Refusal),
}

/// The service about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its [`VERSION`].
    pub version: u32,
    /// Its process: another one means that all devices are new.
    pub pid: u32,
    /// Where its devices' UAPI sockets are.
    pub uapi_directory: PathBuf,
}

/// A device that is there now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// It was there before.
    pub existing: bool,
    /// What it is.
    pub device: DeviceStatus,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is no request, or a value in it cannot be.
    BadRequest,
    /// There is no such device.
    NotFound,
    /// The kernel refused; the message says what.
    Failed,
    /// Too many connections or devices.
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_flat_json_objects() {
        let text = r#"{"request":"create","name":"wireguard.cali","mtu":1420}"#;
        let request = Request::Create {
            name: "wireguard.cali".into(),
            mtu: Some(1420),
        };
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(
            serde_json::to_string(&Request::List).unwrap(),
            r#"{"request":"list"}"#
        );
    }

    #[test]
    fn a_field_that_we_do_not_know_is_refused() {
        let text = r#"{"request":"delete","name":"wg0","force":true}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
    }
}
