//! Ports as rules name them, and ports that endpoints give names to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Protocol;

/// One entry of a rule's list of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// First and last; a single port is both.
    Range(u16, u16),
    /// Whatever number the endpoint gives the name, with the protocol that it names.
    Named(String),
}

/// Longest name of a port, in bytes.
const NAME_MAX: usize = 128;

/// The text is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a port, a range such as 8080:8090, or a name of letters, digits, `_`, `.` and `-`"
)]
pub struct NotAPort;

impl PortMatch {
    /// Returns the entry that means one port.
    pub const fn single(port: u16) -> Self {
        Self::Range(port, port)
    }
}

/// Reads a number, a range `FIRST:LAST`, or a name. What has digits alone is a number.
impl FromStr for PortMatch {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| match text.parse::<u16>() {
            Ok(port) if digits(text) => Ok(port),
            Ok(_) | Err(_) => Err(NotAPort),
        };
        if let Some((first, last)) = text.split_once(':') {
            let (first, last) = (number(first)?, number(last)?);
            return if first <= last {
                Ok(Self::Range(first, last))
            } else {
                Err(NotAPort)
            };
        }
        if digits(text) {
            return number(text).map(Self::single);
        }
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if text.len() > NAME_MAX || !text.bytes().all(letters) {
            return Err(NotAPort);
        }

        Ok(Self::Named(text.to_owned()))
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(first, last) if first == last => first.fmt(f),
            Self::Range(first, last) => write!(f, "{first}:{last}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// A port to which an endpoint gives a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}
