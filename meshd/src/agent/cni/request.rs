//! What a runtime, the pod and its namespace want, together: one request.
//!
//! ```text
//! network configuration ─┐
//! runtimeConfig ─────────┼─▶ PodRequest; annotations outrank what stands left of them
//! namespace, then pod ───┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Object, PodName,
    cni::{Attachment, AttachmentKey, Bandwidth, Code, Failure, PortMapping, Wishes},
    event::PodRequest,
    pod::{BURST_DEFAULT, HostPort, Limit, Limits, PodWish},
    policy::{NamedPort, Protocol},
};
use serde::Deserialize;

use super::{Known, annotation::Annotations};

/// Longest name of a pod that has only its container's id.
const LABEL_MAX: usize = 63;

/// Most ports of the host that one pod may have, and most named ports.
const PORTS_MAX: usize = 256;

/// A pod's own part of what is asked, as Kubernetes writes it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<Port>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    container_port: u16,
    protocol: Option<String>,
}

/// Returns the request for an attachment of a pod that the store knows, or need not know.
pub(super) fn request(
    attachment: &Attachment,
    pod: PodName,
    known: &Known,
) -> Result<PodRequest, Failure> {
    let netns = attachment
        .netns
        .clone()
        .ok_or_else(|| Failure::new(Code::Environment, "CNI_NETNS is missing"))?;
    let none = BTreeMap::new();
    let annotations = |object: &Option<Object>| {
        let object = object.as_ref();
        object.map_or(none.clone(), |object| object.metadata.annotations.clone())
    };
    let said = Annotations::read(&annotations(&known.pod), &annotations(&known.namespace))
        .map_err(|error| Failure::new(Code::UnsupportedField, error.to_string()))?;
    let wishes = &attachment.wishes;
    refuse_what_is_off(wishes, &said)?;
    let spec = spec(known)?;
    let named_ports = named_ports(&spec)?;
    let addresses = if said.addresses.is_empty() {
        wishes.addresses.clone()
    } else {
        said.addresses.clone()
    };
    let mut wish = wish(wishes, said, named_ports)?;
    wish.mac = wish.mac.or_else(|| Some(own_mac(&attachment.key)));

    Ok(PodRequest {
        pod,
        network: attachment.network.clone(),
        sandbox: attachment.key.container.as_str().to_owned(),
        netns,
        interface: attachment.key.interface.clone(),
        labels: known
            .pod
            .as_ref()
            .map(|pod| pod.metadata.labels.clone())
            .unwrap_or_default(),
        service_account: spec.service_account_name.filter(|name| !name.is_empty()),
        addresses,
        wish: Box::new(wish),
    })
}

fn wish(
    wishes: &Wishes,
    said: Annotations,
    named_ports: Vec<NamedPort>,
) -> Result<PodWish, Failure> {
    let mut pools = wishes.pools.clone();
    pools.extend(said.pools);
    let limits = Limits {
        ingress: said.ingress.or(bucket(wishes.bandwidth, Way::Ingress)),
        egress: said.egress.or(bucket(wishes.bandwidth, Way::Egress)),
    };

    Ok(PodWish {
        families: said.families.map_or(wishes.families.clone(), |families| {
            families.into_iter().collect::<BTreeSet<_>>()
        }),
        pools,
        unmanaged: said.unmanaged,
        mtu: wishes.mtu,
        mac: said.mac.or(wishes.mac),
        forwards: wishes.allow_ip_forwarding,
        floating: said.floating,
        host_ports: host_ports(&wishes.ports)?,
        named_ports,
        limits,
    })
}

/// An address of this host alone (IEEE 802, locally administered), the same whenever the attachment is asked for.
///
/// Runtimes want to be told it: podman takes no result without.
fn own_mac(key: &AttachmentKey) -> [u8; 6] {
    // FNV-1a (draft-eastlake-fnv), 64 bits; two containers with the same address would still be on links of their own.
    let hash = key
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let [_, _, _, b, c, d, e, f] = hash.to_be_bytes();

    [0x02, b, c, d, e, f]
}

/// Calico's plugin follows these two annotations only where its configuration says so.
fn refuse_what_is_off(wishes: &Wishes, said: &Annotations) -> Result<(), Failure> {
    let asked = [
        (
            "ipAddrsNoIpam",
            "ip_addrs_no_ipam",
            !said.unmanaged.is_empty() && !wishes.addresses_without_ipam,
        ),
        (
            "floatingIPs",
            "floating_ips",
            !said.floating.is_empty() && !wishes.floating_addresses,
        ),
    ];
    let Some((key, feature, _)) = asked.into_iter().find(|(_, _, is_off)| *is_off) else {
        return Ok(());
    };

    Err(Failure::new(
        Code::Refused,
        format!(
            "the annotation cni.projectcalico.org/{key} asks for a feature that is not enabled: set \
             feature_control.{feature} of the network configuration"
        ),
    ))
}

fn spec(known: &Known) -> Result<Spec, Failure> {
    let Some(spec) = known.pod.as_ref().and_then(|pod| pod.body.get("spec")) else {
        return Ok(Spec::default());
    };

    Spec::deserialize(spec).map_err(|error| {
        let msg = format!("the pod's spec cannot be read: {error}");
        Failure::new(Code::Refused, msg)
    })
}

fn named_ports(spec: &Spec) -> Result<Vec<NamedPort>, Failure> {
    let containers = spec.containers.iter().chain(&spec.init_containers);
    let mut found = Vec::new();
    for port in containers.flat_map(|container| &container.ports) {
        let Some(name) = port.name.clone().filter(|name| !name.is_empty()) else {
            continue;
        };
        let protocol = protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
        found.push(NamedPort {
            name,
            protocol,
            port: port.container_port,
        });
    }
    if found.len() > PORTS_MAX {
        let msg = format!("the pod has more than {PORTS_MAX} named ports");
        return Err(Failure::new(Code::Refused, msg));
    }

    Ok(found)
}

fn host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, Failure> {
    if mappings.len() > PORTS_MAX {
        let msg = format!("runtimeConfig.portMappings: more than {PORTS_MAX}");
        return Err(Failure::new(Code::Configuration, msg));
    }
    let mapped = mappings.iter().map(|mapping| {
        Ok(HostPort {
            address: mapping.host_address,
            protocol: protocol(&mapping.protocol)?,
            port: mapping.host_port,
            target: mapping.container_port,
        })
    });

    mapped.collect()
}

fn protocol(text: &str) -> Result<Protocol, Failure> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "sctp" => Ok(Protocol::SCTP),
        _ => Err(Failure::new(
            Code::Configuration,
            format!("{text:.20?} is no protocol with ports"),
        )),
    }
}

/// A direction of traffic, as the pod sees it.
#[derive(Clone, Copy)]
enum Way {
    Ingress,
    Egress,
}

/// The bandwidth plugin's words: a rate of 0 is none, a burst of 0 is the usual one.
fn bucket(bandwidth: Option<Bandwidth>, way: Way) -> Option<Limit> {
    let bandwidth = bandwidth?;
    let (rate, burst) = match way {
        Way::Ingress => (bandwidth.ingress_rate, bandwidth.ingress_burst),
        Way::Egress => (bandwidth.egress_rate, bandwidth.egress_burst),
    };

    (rate > 0).then_some(Limit {
        rate,
        burst: if burst == 0 { BURST_DEFAULT } else { burst },
        peak: None,
        peak_burst: None,
    })
}

/// Returns the pod of an attachment. A container of a runtime without pods is one of the namespace `default`, as with
/// Calico.
pub(super) fn pod_name(attachment: &Attachment) -> Result<PodName, Failure> {
    if let Some(pod) = &attachment.pod {
        return Ok(pod.clone());
    }
    let id = attachment.key.container.as_str().to_lowercase();
    let name = id.get(..LABEL_MAX).unwrap_or(&id);

    PodName::parse(&format!("default/{name}")).map_err(|error| {
        let msg = format!(
            "the container's id names no pod ({error}); pass K8S_POD_NAMESPACE and K8S_POD_NAME"
        );
        Failure::new(Code::Environment, msg)
    })
}

#[cfg(test)]
mod tests {
    use model::{
        Kind, ObjectKey,
        cni::{AttachmentKey, CniName},
    };
    use serde_json::json;

    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment {
            key: AttachmentKey {
                container: CniName::parse(container).unwrap(),
                interface: "eth0".parse().unwrap(),
            },
            network: CniName::parse("mesh").unwrap(),
            netns: Some("/run/netns/x".to_owned()),
            pod: None,
            pod_uid: None,
            wishes: Wishes::default(),
        }
    }

    fn known(annotations: &[(&str, &str)]) -> Known {
        let key = ObjectKey::namespaced(Kind::Pod, "shop", "web");
        let ports = json!([{"name": "http", "containerPort": 8080}, {"containerPort": 9}]);
        let spec = json!({"serviceAccountName": "web", "containers": [{"ports": ports}]});
        let mut pod = Object::new(&key, spec);
        pod.metadata.labels = BTreeMap::from([("app".into(), "web".into())]);
        for (name, text) in annotations {
            let key = format!("cni.projectcalico.org/{name}");
            pod.metadata.annotations.insert(key, (*text).to_owned());
        }
        Known {
            pod: Some(pod),
            namespace: None,
        }
    }

    fn asked(attachment: &Attachment, known: &Known) -> Result<PodRequest, Failure> {
        request(attachment, PodName::parse("shop/web").unwrap(), known)
    }

    #[test]
    fn a_container_without_a_pod_is_one_of_the_default_namespace() {
        let id = "C0FFEE".repeat(11);
        let name = pod_name(&attachment(&id)).unwrap();

        assert_eq!(name.namespace, "default");
        assert_eq!(name.name, id.to_lowercase()[..63]);
        let named = pod_name(&attachment("under_score"));
        assert_eq!(named.unwrap_err().code, Code::Environment);
    }

    #[test]
    fn a_pod_brings_labels_account_and_named_ports() {
        let said = asked(&attachment("c"), &known(&[])).unwrap();

        assert_eq!(said.labels["app"], "web");
        assert_eq!(said.service_account.as_deref(), Some("web"));
        let http = NamedPort {
            name: "http".into(),
            protocol: Protocol::TCP,
            port: 8080,
        };
        assert_eq!(said.wish.named_ports, [http]);
    }

    #[test]
    fn an_annotation_outranks_the_configuration() {
        let mut attachment = attachment("c");
        attachment.wishes.mac = Some([2, 0, 0, 0, 0, 9]);
        attachment.wishes.addresses = vec!["10.65.0.9".parse().unwrap()];
        let known = known(&[
            ("hwAddr", "02-00-00-00-00-01"),
            ("ipAddrs", r#"["10.65.0.1"]"#),
        ]);

        let said = asked(&attachment, &known).unwrap();

        assert_eq!(said.wish.mac, Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(
            said.addresses,
            ["10.65.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
    }

    #[test]
    fn a_feature_that_is_off_is_refused_by_its_name() {
        let known = known(&[("ipAddrsNoIpam", r#"["203.0.113.9"]"#)]);
        let mut attachment = attachment("c");
        let said = asked(&attachment, &known).unwrap_err();
        assert!(
            said.msg.contains("feature_control.ip_addrs_no_ipam"),
            "{said}"
        );

        attachment.wishes.addresses_without_ipam = true;
        assert_eq!(asked(&attachment, &known).unwrap().wish.unmanaged.len(), 1);
    }
}
