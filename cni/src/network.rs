//! The network configuration: meshd's, with the fields of Calico's.
//!
//! What other fields of Calico's configuration say (where the API server is, who the node is, where to log) the agent
//! knows by itself; they are read over. What asks for something that there is not is refused.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Family,
    cni::{Attached, AttachmentKey, Bandwidth, CniName, Code, Failure, PortMapping, Wishes},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::Version;

/// Largest configuration that is read, in bytes.
pub const SIZE_MAX: usize = 4 * 1024 * 1024;

/// Longest MTU of a link, in bytes (`ETH_MAX_MTU` of linux/if_ether.h).
const MTU_MAX: u32 = 65_535;

/// Shortest MTU of IPv4, in bytes (RFC 791, section 3.2).
const MTU_MIN: u32 = 68;

/// What a network configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its version.
    pub version: Version,
    /// Its name.
    pub name: CniName,
    /// What it wants of each attachment.
    pub wishes: Wishes,
    /// What `ADD` answered, in a `CHECK`.
    pub previous: Option<Attached>,
    /// What the runtime still has, in a `GC`.
    pub valid: Option<BTreeSet<AttachmentKey>>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    device_type: String,
    #[serde(default)]
    dataplane_options: BTreeMap<String, Value>,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    container_settings: ContainerSettings,
    #[serde(default)]
    feature_control: FeatureControl,
    #[serde(default)]
    policy_setup_timeout_seconds: i64,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Runtime,
    #[serde(default, rename = "prevResult")]
    previous: Option<Attached>,
    #[serde(
        default,
        rename = "cni.dev/valid-attachments",
        deserialize_with = "list_or_null"
    )]
    valid: Option<Vec<Valid>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ipam {
    r#type: String,
    #[serde(deserialize_with = "truth")]
    assign_ipv4: Option<bool>,
    #[serde(deserialize_with = "truth")]
    assign_ipv6: Option<bool>,
    ipv4_pools: Vec<String>,
    ipv6_pools: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerSettings {
    allow_ip_forwarding: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FeatureControl {
    ip_addrs_no_ipam: bool,
    floating_ips: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Runtime {
    #[serde(rename = "portMappings")]
    ports: Vec<PortMapping>,
    bandwidth: Option<Bandwidth>,
    ips: Vec<String>,
    mac: String,
}

#[derive(Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: CniName,
    ifname: model::InterfaceName,
}

/// Returns the version that a text claims to be of, if it is a configuration at all.
///
/// # Errors
/// [`Code::Decoding`]: it is no JSON object, or its version is no text.
pub fn claimed_version(text: &[u8]) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Claim {
        cni_version: Option<String>,
    }
    let claim: Claim = serde_json::from_slice(text).map_err(|error| undecoded(&error))?;

    Ok(claim.cni_version)
}

impl Network {
    /// Reads a configuration of `version`.
    ///
    /// # Errors
    /// [`Code::Decoding`]: it is not JSON of the right form; [`Code::UnsupportedField`]: it asks for what there is not;
    /// [`Code::Configuration`]: a value is wrong.
    pub fn read(version: Version, text: &[u8]) -> Result<Self, Failure> {
        let written: Written = serde_json::from_slice(text).map_err(|error| undecoded(&error))?;
        let name = CniName::parse(&written.name)
            .map_err(|error| Failure::new(Code::Configuration, format!("name: {error}")))?;
        refuse_what_there_is_not(&written)?;

        Ok(Self {
            version,
            name,
            wishes: wishes(&written)?,
            previous: written.previous,
            valid: written.valid.map(|valid| {
                let keys = valid.into_iter().map(|valid| AttachmentKey {
                    container: valid.container,
                    interface: valid.ifname,
                });
                keys.collect()
            }),
        })
    }
}

fn refuse_what_there_is_not(written: &Written) -> Result<(), Failure> {
    let refusal = |msg: String| Err(Failure::new(Code::UnsupportedField, msg));
    if !["", "meshd", "meshd-ipam", "calico-ipam"].contains(&&*written.ipam.r#type) {
        return refusal(format!(
            "ipam.type: {:.60?} hands out addresses that the mesh does not know; leave it out, or say \"meshd\"",
            written.ipam.r#type
        ));
    }
    if !["", "veth"].contains(&&*written.device_type) {
        return refusal(format!(
            "device_type: {:.60?}: only veth",
            written.device_type
        ));
    }
    if !written.mode.is_empty() {
        return refusal(format!("mode: {:.60?} is of Windows", written.mode));
    }
    match written.dataplane_options.get("type") {
        None => Ok(()),
        Some(other) => refusal(format!("dataplane_options.type: {other:.60} is not there")),
    }
}

fn wishes(written: &Written) -> Result<Wishes, Failure> {
    let wrong = |msg: String| Failure::new(Code::Configuration, msg);
    let mtu = match written.mtu {
        0 => None,
        mtu @ MTU_MIN..=MTU_MAX => Some(mtu),
        mtu => {
            return Err(wrong(format!(
                "mtu: {mtu} is not between {MTU_MIN} and {MTU_MAX}"
            )));
        }
    };
    let policy_seconds = u32::try_from(written.policy_setup_timeout_seconds).map_err(|_| {
        let given = written.policy_setup_timeout_seconds;
        wrong(format!(
            "policy_setup_timeout_seconds: {given} is no number of seconds"
        ))
    })?;
    let runtime = &written.runtime;
    let addresses = runtime.ips.iter().map(|text| {
        // An address, or an address with its prefix length.
        let bare = text.split_once('/').map_or(&**text, |(address, _)| address);
        bare.parse()
            .map_err(|_| wrong(format!("runtimeConfig.ips: {text:.60?} is no address")))
    });
    let mac = match &*runtime.mac {
        "" => None,
        text => Some(mac(text).ok_or_else(|| {
            wrong(format!(
                "runtimeConfig.mac: {text:.60?} is no MAC of one host"
            ))
        })?),
    };

    Ok(Wishes {
        mtu,
        families: families(&written.ipam)?,
        pools: pools(&written.ipam),
        addresses: addresses.collect::<Result<_, _>>()?,
        mac,
        allow_ip_forwarding: written.container_settings.allow_ip_forwarding,
        addresses_without_ipam: written.feature_control.ip_addrs_no_ipam,
        floating_addresses: written.feature_control.floating_ips,
        ports: ports(&runtime.ports)?,
        bandwidth: runtime.bandwidth,
        policy_seconds: (policy_seconds > 0).then_some(policy_seconds),
    })
}

/// Calico's defaults count once one of the two is said: IPv4 yes, IPv6 no.
fn families(ipam: &Ipam) -> Result<BTreeSet<Family>, Failure> {
    let (v4, v6) = match (ipam.assign_ipv4, ipam.assign_ipv6) {
        (None, None) => return Ok(BTreeSet::new()),
        (v4, v6) => (v4.unwrap_or(true), v6.unwrap_or(false)),
    };
    let wanted: BTreeSet<Family> = [(Family::V4, v4), (Family::V6, v6)]
        .into_iter()
        .filter_map(|(family, is_wanted)| is_wanted.then_some(family))
        .collect();
    if wanted.is_empty() {
        return Err(Failure::new(
            Code::Configuration,
            "ipam: assign_ipv4 and assign_ipv6 are both false: no address is left to assign",
        ));
    }

    Ok(wanted)
}

fn pools(ipam: &Ipam) -> BTreeMap<Family, Vec<String>> {
    [
        (Family::V4, &ipam.ipv4_pools),
        (Family::V6, &ipam.ipv6_pools),
    ]
    .into_iter()
    .filter(|(_, pools)| !pools.is_empty())
    .map(|(family, pools)| (family, pools.clone()))
    .collect()
}

/// A mapping without a host port asks for nothing, as the portmap plugin has it.
fn ports(asked: &[PortMapping]) -> Result<Vec<PortMapping>, Failure> {
    let mapped = asked.iter().filter(|mapping| mapping.host_port != 0);

    mapped
        .map(|mapping| {
            let protocol = mapping.protocol.to_lowercase();
            if mapping.container_port == 0 || !["tcp", "udp", "sctp"].contains(&&*protocol) {
                return Err(Failure::new(
                    Code::Configuration,
                    format!(
                        "runtimeConfig.portMappings: {} to {} by {:.20?} is no mapping",
                        mapping.host_port, mapping.container_port, mapping.protocol
                    ),
                ));
            }
            Ok(PortMapping {
                protocol,
                ..mapping.clone()
            })
        })
        .collect()
}

/// Reads `aa:bb:cc:dd:ee:ff`, or with dashes; `None` where that is a group's address, nobody's, or none.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let octets: Vec<u8> = text
        .split([':', '-'])
        .map(|octet| (octet.len() == 2).then(|| u8::from_str_radix(octet, 16).ok()))
        .collect::<Option<Option<_>>>()??;
    let mac: [u8; 6] = octets.try_into().ok()?;

    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// Runtimes written in Go say `null` for a list of nothing.
fn list_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Valid>>, D::Error> {
    Option::<Vec<Valid>>::deserialize(deserializer).map(|list| Some(list.unwrap_or_default()))
}

/// Calico writes `"true"`.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(value)),
        Value::String(text) => match text.to_lowercase().as_str() {
            "" => Ok(None),
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(D::Error::custom(format!(
                "{text:.20?} is neither true nor false"
            ))),
        },
        Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(D::Error::custom("neither true nor false"))
        }
    }
}

fn undecoded(error: &serde_json::Error) -> Failure {
    Failure::new(
        Code::Decoding,
        format!("the network configuration cannot be read: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(fields: Value) -> Result<Network, Failure> {
        let mut written = json!({"cniVersion": "1.1.0", "name": "mesh", "type": "meshd"});
        for (name, value) in fields.as_object().unwrap() {
            written[name] = value.clone();
        }
        Network::read(Version::V1_1_0, written.to_string().as_bytes())
    }

    #[test]
    fn a_configuration_of_calicos_is_read() {
        let network = read(json!({
            "type": "calico", "datastore_type": "kubernetes", "nodename": "n1", "mtu": 1440,
            "log_level": "info", "log_file_max_size": 100, "nodename_file_optional": false,
            "policy_setup_timeout_seconds": 10,
            "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "TRUE", "ipv4_pools": ["default"]},
            "container_settings": {"allow_ip_forwarding": true},
            "feature_control": {"ip_addrs_no_ipam": false, "floating_ips": true},
            "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/x"},
        }))
        .unwrap();

        let wishes = network.wishes;
        assert_eq!(wishes.mtu, Some(1440));
        assert_eq!(wishes.families, BTreeSet::from([Family::V4, Family::V6]));
        assert_eq!(wishes.pools[&Family::V4], ["default"]);
        assert!(wishes.allow_ip_forwarding && wishes.floating_addresses);
        assert!(!wishes.addresses_without_ipam);
        assert_eq!(wishes.policy_seconds, Some(10));
    }

    #[test]
    fn a_bare_configuration_leaves_all_to_the_mesh() {
        assert_eq!(read(json!({})).unwrap().wishes, Wishes::default());
        let only_v6 = read(json!({"ipam": {"assign_ipv4": "false", "assign_ipv6": true}})).unwrap();
        assert_eq!(only_v6.wishes.families, BTreeSet::from([Family::V6]));
        let default = read(json!({"ipam": {"assign_ipv6": "false"}})).unwrap();
        assert_eq!(default.wishes.families, BTreeSet::from([Family::V4]));
    }

    #[test]
    fn what_the_runtime_asks_for_is_taken_over() {
        let network = read(json!({"runtimeConfig": {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "127.0.0.1"},
                {"hostPort": 0, "containerPort": 81, "protocol": "tcp"},
            ],
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
            "ips": ["10.65.0.9/26", "fd00::9"],
            "mac": "02:00:00:00:00:01",
        }}))
        .unwrap();

        let wishes = network.wishes;
        assert_eq!(wishes.ports.len(), 1);
        assert_eq!(
            (wishes.ports[0].host_port, &*wishes.ports[0].protocol),
            (8080, "tcp")
        );
        assert_eq!(wishes.bandwidth.unwrap().ingress_burst, 2000);
        assert_eq!(wishes.addresses[0].to_string(), "10.65.0.9");
        assert_eq!(wishes.mac, Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_there_is_not_is_refused_by_its_field() {
        for (fields, field, code) in [
            (
                json!({"ipam": {"type": "host-local"}}),
                "ipam.type",
                Code::UnsupportedField,
            ),
            (
                json!({"device_type": "netkit"}),
                "device_type",
                Code::UnsupportedField,
            ),
            (json!({"mode": "vxlan"}), "mode", Code::UnsupportedField),
            (
                json!({"dataplane_options": {"type": "grpc"}}),
                "dataplane_options",
                Code::UnsupportedField,
            ),
            (json!({"name": "a/b"}), "name", Code::Configuration),
            (json!({"mtu": 67}), "mtu", Code::Configuration),
            (json!({"mtu": 65_536}), "mtu", Code::Configuration),
            (
                json!({"policy_setup_timeout_seconds": -1}),
                "policy_setup_timeout_seconds",
                Code::Configuration,
            ),
            (
                json!({"ipam": {"assign_ipv4": "false"}}),
                "ipam",
                Code::Configuration,
            ),
            (
                json!({"ipam": {"assign_ipv4": "maybe"}}),
                "neither",
                Code::Decoding,
            ),
            (
                json!({"runtimeConfig": {"ips": ["x"]}}),
                "ips",
                Code::Configuration,
            ),
            (
                json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
                "mac",
                Code::Configuration,
            ),
            (
                json!({"runtimeConfig": {"mac": "02:00:00:00:00"}}),
                "mac",
                Code::Configuration,
            ),
            (
                json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 0, "protocol": "tcp"}]}}),
                "portMappings",
                Code::Configuration,
            ),
            (json!({"mtu": "1440"}), "invalid type", Code::Decoding),
            (
                json!({"cni.dev/valid-attachments": [{"containerID": "../x", "ifname": "eth0"}]}),
                "",
                Code::Decoding,
            ),
        ] {
            let failure = read(fields.clone()).unwrap_err();
            assert_eq!(failure.code, code, "{fields}: {failure}");
            assert!(failure.msg.contains(field), "{fields}: {failure}");
        }
    }

    #[test]
    fn results_of_every_version_are_read() {
        let old = json!({"prevResult": {
            "cniVersion": "0.3.1",
            "interfaces": [{"name": "cali0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"version": "4", "address": "10.65.0.1/32", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}], "dns": {},
        }});
        let previous = read(old).unwrap().previous.unwrap();

        assert_eq!(previous.interfaces[1].sandbox, "/x");
        assert_eq!(previous.ips[0].interface, Some(1));
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,200}", bytes: Vec<u8>) {
            for input in [text.as_bytes(), &bytes] {
                drop(claimed_version(input));
                drop(Network::read(Version::V1_1_0, input));
            }
            prop_assert!(mac(&text).is_none_or(|mac| mac[0] & 1 == 0));
        }
    }
}
