//! The scalars of a lab file: each is parsed once, from text, into a type that cannot be wrong.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Declares a scalar that is written as text in a lab file and parsed by its `FromStr`.
macro_rules! textual {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

/// A DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9` and `-`, not beginning or ending with `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

textual!(Label);

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edge = text.starts_with('-') || text.ends_with('-');
        if text.is_empty() || text.len() > 63 || edge || !text.chars().all(legal) {
            return Err(format!(
                "{text:?} is no DNS label: expected 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A pod: its namespace and its name, written `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodName {
    /// The Kubernetes namespace.
    pub namespace: Label,
    /// The name inside the namespace.
    pub name: Label,
}

textual!(PodName);

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| format!("{text:?}: expected NAMESPACE/NAME"))?;
        Ok(Self {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

/// A transport protocol an echo server can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one-to-one style sockets; only where the kernel has it.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port an echo server listens on, written `TCP/80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port, never 0 in a lab file.
    pub port: u16,
}

textual!(Listen);

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.port)
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected TCP/PORT, UDP/PORT or SCTP/PORT");
        let (protocol, port) = text.split_once('/').ok_or_else(wrong)?;
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return Err(wrong()),
        };
        match port.parse() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(port) => Ok(Self { protocol, port }),
        }
    }
}

/// A span of time, written with its unit: `250us`, `5ms`, `1.5s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

textual!(Span);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0.as_micros())
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a time with its unit, such as 5ms, up to 1h");
        let at = text
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(wrong)?;
        let (number, unit) = text.split_at(at);
        let scale = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
        if !(0.0..=3600.0).contains(&seconds) {
            return Err(wrong());
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

/// A share, written in percent: `0.1%`. Between 0 and 1 inside.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(f64);

textual!(Share);

impl Share {
    /// The share as a probability in 0..=1.
    pub fn probability(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a share from 0% to 100%, such as 0.1%");
        let percent = text.strip_suffix('%').ok_or_else(wrong)?;
        let percent = percent.parse::<f64>().map_err(|_| wrong())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self(percent / 100.0))
    }
}

/// A rate in bits per second, written with its unit: `64kbit`, `10mbit`, `1gbit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

textual!(Rate);

impl Rate {
    /// Bits per second, never 0.
    pub fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit", self.0)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a rate such as 64kbit, 10mbit or 1gbit");
        let number = text.strip_suffix("bit").ok_or_else(wrong)?;
        let (number, scale) = match number.chars().last() {
            Some('k') => (&number[..number.len() - 1], 1_000),
            Some('m') => (&number[..number.len() - 1], 1_000_000),
            Some('g') => (&number[..number.len() - 1], 1_000_000_000),
            Some(_) => (number, 1),
            None => return Err(wrong()),
        };
        let number = number.parse::<u64>().map_err(|_| wrong())?;
        match number.checked_mul(scale) {
            None | Some(0) => Err(wrong()),
            Some(rate) => Ok(Self(rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scalar_prints_it_also_reads() {
        for text in ["5ms", "250us", "1.5s", "2m"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
        for text in ["64kbit", "10mbit", "1gbit", "9bit"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
        }
        let listen: Listen = "SCTP/9".parse().unwrap();
        assert_eq!(listen.to_string(), "SCTP/9");
    }

    #[test]
    fn nonsense_is_refused_with_what_was_expected() {
        assert!("5".parse::<Span>().unwrap_err().contains("unit"));
        assert!("-5ms".parse::<Span>().is_err());
        assert!("NaNs".parse::<Span>().is_err());
        assert!("101%".parse::<Share>().is_err());
        assert!("0bit".parse::<Rate>().is_err());
        assert!("99999999999999gbit".parse::<Rate>().is_err());
        assert!("TCP/0".parse::<Listen>().is_err());
        assert!("tcp/80".parse::<Listen>().is_err());
        assert!("A".parse::<Label>().is_err());
        assert!("a-".parse::<Label>().is_err());
        assert!("a/b/c".parse::<PodName>().is_err());
    }
}
