//! What a container runtime asks through the CNI plugin, and what the agent answers.
//!
//! The plugin has read the runtime's words (the `CNI_*` variables and the network configuration of the CNI
//! specification 1.1.0) and checked their form. What they mean on this machine is the agent's to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, InterfaceName, PodName, name::NameError};

/// Longest name of a network or container; the specification has none, and file names end at 255 bytes.
const NAME_MAX: usize = 200;

/// A container's or a network's name: a letter or digit, then letters, digits, `_`, `.` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CniName(String);

/// One attachment: the interface that a container has in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The container's id (`CNI_CONTAINERID`).
    pub container: CniName,
    /// The interface's name in the container (`CNI_IFNAME`).
    pub interface: InterfaceName,
}

/// What a runtime said about an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which one.
    pub key: AttachmentKey,
    /// The network's name: the first half of the handle that holds the addresses.
    pub network: CniName,
    /// Path of the container's network namespace; a removal may come without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The pod, from `K8S_POD_NAMESPACE` and `K8S_POD_NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The pod's UID, from `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// What the network configuration wants.
    #[serde(default)]
    pub wishes: Wishes,
}

/// What a network configuration wants of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// The interface's MTU in bytes; absent: the mesh's.
    pub mtu: Option<u32>,
    /// Families that must get an address; empty: each that has a pool.
    pub families: BTreeSet<Family>,
    /// Pools (names or CIDRs) to take addresses from, in order.
    pub pools: BTreeMap<Family, Vec<String>>,
    /// Addresses that the runtime asks for (`ips`).
    pub addresses: Vec<IpAddr>,
    /// The interface's MAC (`mac`), as six octets.
    pub mac: Option<[u8; 6]>,
    /// The container may forward packets (`container_settings.allow_ip_forwarding`).
    pub allow_ip_forwarding: bool,
    /// The annotation `ipAddrsNoIpam` counts (`feature_control.ip_addrs_no_ipam`).
    pub addresses_without_ipam: bool,
    /// The annotation `floatingIPs` counts (`feature_control.floating_ips`).
    pub floating_addresses: bool,
    /// Ports of the host that lead to the container (`portMappings`).
    pub ports: Vec<PortMapping>,
    /// Limits on traffic (`bandwidth`).
    pub bandwidth: Option<Bandwidth>,
    /// How long policy may take to be live, in seconds (`policy_setup_timeout_seconds`).
    pub policy_seconds: Option<u32>,
}

/// A port of the host that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host's address; absent: each.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
}

/// Limits on a container's traffic, as the bandwidth plugin's capability has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Towards the container, in bits a second; 0: no limit.
    pub ingress_rate: u64,
    /// In bits.
    pub ingress_burst: u64,
    /// From the container, in bits a second; 0: no limit.
    pub egress_rate: u64,
    /// In bits.
    pub egress_burst: u64,
}

/// What an attachment came to: the specification's result, without what depends on its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attached {
    /// The host's end, then the container's.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<Address>,
    /// The container's routes.
    pub routes: Vec<Route>,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC, as `aa:bb:cc:dd:ee:ff`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of its network namespace; empty: the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address with its prefix length.
    pub address: IpNet,
    /// The way out of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the result's interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Through whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// `GC`: everything of a network that is not among these goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivors {
    /// The network.
    pub network: CniName,
    /// What the runtime still has.
    pub valid: BTreeSet<AttachmentKey>,
}

/// `CHECK`: an attachment, and what its `ADD` answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// The attachment.
    pub attachment: Attachment,
    /// What was answered then.
    pub result: Attached,
}

/// Why something was not done, in the specification's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    /// The kind of failure.
    pub code: Code,
    /// What happened, and what to do.
    pub msg: String,
    /// More about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

macro_rules! codes {
    ($($variant:ident: $number:literal, $doc:literal;)+) => {
        /// The kinds of failure of the CNI specification 1.1.0, section 5 ("Error"); from 100 on they are the plugin's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "u32", into = "u32")]
        pub enum Code {
            $(#[doc = $doc] $variant,)+
        }

        impl Code {
            /// Returns the number that runtimes know it by.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)+
                }
            }
        }

        impl TryFrom<u32> for Code {
            type Error = String;

            fn try_from(number: u32) -> Result<Self, String> {
                match number {
                    $($number => Ok(Self::$variant),)+
                    _ => Err(format!("no CNI error has the code {number}")),
                }
            }
        }
    };
}

codes! {
    Version: 1, "The CNI version is not supported.";
    UnsupportedField: 2, "A field of the network configuration is not supported.";
    UnknownContainer: 3, "The container is unknown or gone; the runtime need not clean up.";
    Environment: 4, "A `CNI_*` variable is missing or wrong.";
    Io: 5, "Something could not be read or written.";
    Decoding: 6, "The network configuration is not JSON of the right form.";
    Configuration: 7, "The network configuration is wrong.";
    TryLater: 11, "A transient condition: the runtime should try again.";
    Unavailable: 50, "The plugin cannot serve `ADD`.";
    Limited: 51, "The plugin cannot serve `ADD`, and containers that exist may have limited connectivity.";
    Refused: 100, "The agent refused.";
    Broken: 101, "An attachment is not what its `ADD` made it.";
}

impl From<Code> for u32 {
    fn from(code: Code) -> Self {
        code.number()
    }
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }
}

impl CniName {
    /// The network's name in Calico's CNI configuration: `k8s-pod-network`.
    pub(crate) fn usual() -> Self {
        Self("k8s-pod-network".to_owned())
    }

    /// Reads a name.
    ///
    /// # Errors
    /// When it is empty, longer than 200 bytes, or of other characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let first = text.bytes().next();
        let is_name = first.is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.len() <= NAME_MAX
            && text.bytes().all(inner);
        if is_name {
            return Ok(Self(text.to_owned()));
        }

        Err(NameError {
            text: text.chars().take(64).collect(),
            expected: "a letter or digit, then at most 199 letters, digits, '_', '.' and '-'",
        })
    }

    /// Returns its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CniName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for CniName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<CniName> for String {
    fn from(name: CniName) -> Self {
        name.0
    }
}

impl fmt::Display for CniName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.interface, self.container)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_a_file_and_nothing_else() {
        for good in [
            "a",
            "0",
            "c0ffee",
            "k8s-pod-network",
            "a.b_c-d",
            &"x".repeat(200),
        ] {
            assert_eq!(CniName::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "é",
            &"x".repeat(201),
        ] {
            assert!(CniName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_code_is_its_number() {
        let failure = Failure::new(Code::TryLater, "soon");
        let text = serde_json::to_string(&failure).unwrap();

        assert_eq!(text, r#"{"code":11,"msg":"soon"}"#);
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
        assert!(serde_json::from_str::<Failure>(r#"{"code":12,"msg":""}"#).is_err());
    }
}
