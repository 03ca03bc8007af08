//! What a table shows of each kind: the name, what matters, and more with `-o wide`.

use std::{collections::BTreeMap, fmt::Display};

use jiff::Timestamp;
use model::{
    Kind, Object, Resource,
    policy::{HostEndpoint, HostInterface, Policy},
    resource::{FelixConfiguration, IpPool, IpamBlock, Node},
};
use serde_json::Value;

/// What stands where there is nothing.
const NOTHING: &str = "–";

/// Returns the heads of a kind's table.
pub(crate) fn heads(kind: Kind, wide: bool) -> Vec<&'static str> {
    columns(kind).filter_map(|head| shown(head, wide)).collect()
}

/// Returns an object's row, as many cells as [`heads`] has; what cannot be read says why.
pub(crate) fn row(object: &Object, wide: bool, now: Timestamp) -> Vec<String> {
    let mut cells = vec![object.metadata.name.clone()];
    match Resource::try_from(object) {
        Ok(resource) => cells.extend(facts(&resource, object)),
        Err(error) => cells.push(format!("unusable: {error}")),
    }
    cells.resize(columns(object.kind).count() - 1, String::new());
    cells.push(age(object, now));

    let shown = columns(object.kind)
        .zip(cells)
        .filter(|(head, _)| shown(head, wide).is_some());
    shown.map(|(_, cell)| plain(&cell)).collect()
}

/// Returns a text without the characters that steer a terminal; nodes write some of what is shown.
pub(crate) fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

/// Returns a column's head, unless only wide tables have it, which a `+` says.
fn shown(head: &'static str, wide: bool) -> Option<&'static str> {
    match head.strip_prefix('+') {
        Some(head) => wide.then_some(head),
        None => Some(head),
    }
}

/// Returns the columns of a kind: name first, age last.
fn columns(kind: Kind) -> impl Iterator<Item = &'static str> {
    let columns = match kind {
        Kind::Node | Kind::MeshNode => {
            "NAME|PHASE|ADDRESSES|KEY|+TUNNEL ADDRESSES|+ENDPOINTS|+EPOCH|+LABELS|AGE"
        }
        Kind::IPPool => "NAME|CIDR|BLOCKS|NAT|STATE|+USES|+ENCAPSULATION|+NODES|+AGE",
        Kind::IPAMBlock => "+NAME|CIDR|NODE|USED|+SEQUENCE|AGE",
        Kind::BlockAffinity => "NAME|CIDR|NODE|STATE|AGE",
        Kind::IPAMHandle => "NAME|HANDLE|ADDRESSES|AGE",
        Kind::IPAMConfiguration => "NAME|STRICT|MAX BLOCKS|AUTO BLOCKS|COOLDOWN|AGE",
        Kind::IPReservation => "NAME|RESERVED|AGE",
        Kind::WorkloadEndpoint => "+NAME|POD|NODE|ADDRESSES|INTERFACE|+PROFILES|+LABELS|AGE",
        Kind::FelixConfiguration => "NAME|WIREGUARD|WIREGUARD V6|FIELDS|+NODES|+UNUSABLE|AGE",
        Kind::ClusterInformation => "NAME|TYPE|VERSION|READY|+GUID|AGE",
        Kind::MeshConfiguration => "NAME|ENCRYPTION|BACKEND|UNDERLAY|AGE",
        Kind::KeyClaim => "NAME|NODE|AGE",
        Kind::AddressClaim => "+NAME|ADDRESS|NODE|AGE",
        Kind::Namespace | Kind::ServiceAccount => "NAME|+LABELS|AGE",
        Kind::Service => "NAME|TYPE|CLUSTER IP|PORTS|+SELECTOR|AGE",
        Kind::Pod => "NAME|STATUS|NODE|ADDRESSES|+LABELS|AGE",
        Kind::EndpointSlice => "NAME|ADDRESS TYPE|PORTS|ENDPOINTS|AGE",
        Kind::Tier => "NAME|ORDER|DEFAULT ACTION|AGE",
        Kind::NetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::KubernetesNetworkPolicy
        | Kind::ClusterNetworkPolicy => "NAME|TIER|ORDER|SELECTOR|TYPES|+INGRESS|+EGRESS|AGE",
        Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy => {
            "NAME|TIER|ORDER|SELECTOR|TYPES|+INGRESS|+EGRESS|ACTION|AGE"
        }
        Kind::NetworkSet | Kind::GlobalNetworkSet => "NAME|NETS|+LABELS|AGE",
        Kind::HostEndpoint => "NAME|NODE|INTERFACE|ADDRESSES|+PROFILES|+LABELS|AGE",
        Kind::Profile => "NAME|INGRESS|EGRESS|+LABELS TO APPLY|AGE",
    };

    columns.split('|')
}

/// Returns the cells between name and age, in the order of the columns.
fn facts(resource: &Resource, object: &Object) -> Vec<String> {
    match resource {
        Resource::Node(node) => node_facts(node),
        Resource::IpPool(pool) => pool_facts(pool, object),
        Resource::IpamBlock(block) => block_facts(block, object),
        Resource::BlockAffinity(affinity) => {
            vec![
                affinity.cidr.to_string(),
                affinity.node.to_string(),
                affinity.state.as_str().into(),
            ]
        }
        Resource::FelixConfiguration(settings) => settings_facts(settings),
        Resource::MeshConfiguration(settings) => vec![
            format!("{:?}", settings.mode),
            format!("{:?}", settings.backend),
            list(&settings.underlay_networks),
        ],
        Resource::KeyClaim(claim) => vec![claim.node.to_string()],
        Resource::AddressClaim(claim) => vec![claim.address.to_string(), claim.node.to_string()],
        Resource::WorkloadEndpoint(endpoint) => vec![
            endpoint.pod.name.clone(),
            endpoint.node.to_string(),
            list(endpoint.addresses.iter().map(ipnet::IpNet::addr)),
            endpoint.interface.to_string(),
            list(&endpoint.profiles),
            pairs(&endpoint.labels),
        ],
        Resource::Tier(tier) => vec![order(tier.order), format!("{:?}", tier.default_action)],
        Resource::Policy(policy) => policy_facts(policy),
        Resource::NetworkSet(set) => vec![list(&set.nets), pairs(&set.labels)],
        Resource::HostEndpoint(endpoint) => host_facts(endpoint),
        Resource::Profile(profile) => vec![
            profile.ingress.len().to_string(),
            profile.egress.len().to_string(),
            pairs(&profile.labels),
        ],
        Resource::Namespace(_)
        | Resource::ServiceAccount(_)
        | Resource::Service(_)
        | Resource::EndpointSlice(_)
        | Resource::Opaque(_) => opaque_facts(object),
    }
}

fn node_facts(node: &Node) -> Vec<String> {
    let record = node.record.as_ref();
    let key = match (record, node.key_v4.as_ref().or(node.key_v6.as_ref())) {
        (Some(Ok(record)), _) if !record.tunnels.is_empty() => list(
            record
                .tunnels
                .iter()
                .map(|tunnel| short(&tunnel.key.to_string())),
        ),
        (_, Some(Ok(key))) => short(&key.to_string()),
        (_, Some(Err(reason))) => format!("unusable: {reason}"),
        (_, None) => NOTHING.into(),
    };
    let phase = match record {
        Some(Ok(record)) => format!("{:?}", record.phase),
        Some(Err(reason)) => format!("unusable: {reason}"),
        None => NOTHING.into(),
    };
    let known = record.and_then(|record| record.as_ref().ok());

    vec![
        phase,
        list(&node.addresses),
        key,
        list(&node.tunnel_addresses),
        list(known.iter().flat_map(|record| &record.endpoints)),
        known.map_or_else(|| NOTHING.into(), |record| record.epoch.to_string()),
        pairs(&node.labels),
    ]
}

fn pool_facts(pool: &IpPool, object: &Object) -> Vec<String> {
    let mode = |field| text(object, &["spec", field]).filter(|mode| mode != "Never");
    let encapsulation = match (mode("ipipMode"), mode("vxlanMode")) {
        (Some(mode), _) => format!("IPIP {mode}"),
        (None, Some(mode)) => format!("VXLAN {mode}"),
        (None, None) => "None".into(),
    };
    let state = match (pool.disabled, pool.automatic) {
        (true, _) => "disabled",
        (false, true) => "enabled",
        (false, false) => "manual",
    };
    let selector = if pool.node_selector.is_empty() {
        "all()"
    } else {
        &pool.node_selector
    };

    vec![
        pool.cidr.to_string(),
        format!("/{}", pool.block_size),
        yes(pool.nat_outgoing),
        state.into(),
        list(
            pool.allowed_uses
                .iter()
                .map(|allowed| format!("{allowed:?}")),
        ),
        encapsulation,
        selector.into(),
    ]
}

fn block_facts(block: &IpamBlock, object: &Object) -> Vec<String> {
    let owner = match &block.affinity {
        Some(node) => node.to_string(),
        None => text(object, &["spec", "affinity"]).unwrap_or_else(|| NOTHING.into()),
    };
    let used = format!("{}/{}", block.allocations.len(), block.size());
    let used = if block.deleted {
        format!("{used}, deleted")
    } else {
        used
    };

    vec![
        block.cidr.to_string(),
        owner,
        used,
        block.sequence_number.to_string(),
    ]
}

fn settings_facts(settings: &FelixConfiguration) -> Vec<String> {
    let switch = |value: Option<bool>| value.map_or_else(|| NOTHING.into(), yes);

    vec![
        switch(settings.wireguard_enabled),
        switch(settings.wireguard_enabled_v6),
        fields(settings).to_string(),
        settings
            .node_selector
            .clone()
            .unwrap_or_else(|| NOTHING.into()),
        list(settings.invalid.keys()),
    ]
}

fn policy_facts(policy: &Policy) -> Vec<String> {
    let types = [
        ("Ingress", policy.types.ingress),
        ("Egress", policy.types.egress),
    ];
    let mut cells = vec![
        policy.tier.clone(),
        order(policy.order),
        policy.selector.to_string(),
        list(
            types
                .iter()
                .filter(|(_, applies)| *applies)
                .map(|(name, _)| name),
        ),
        policy.ingress.len().to_string(),
        policy.egress.len().to_string(),
    ];
    cells.extend(policy.staged.map(|action| format!("{action:?}")));

    cells
}

fn host_facts(endpoint: &HostEndpoint) -> Vec<String> {
    let interface = match &endpoint.interface {
        HostInterface::Named(name) => name.to_string(),
        HostInterface::All => "*".into(),
        HostInterface::ByAddress => NOTHING.into(),
    };

    vec![
        endpoint.node.to_string(),
        interface,
        list(&endpoint.expected_addresses),
        list(&endpoint.profiles),
        pairs(&endpoint.labels),
    ]
}

/// Returns an order as Calico's tools write it: without one, a tier or a policy stands last.
fn order(order: Option<f64>) -> String {
    order.map_or_else(|| NOTHING.into(), |order| order.to_string())
}

/// Counts the fields that somebody set.
fn fields(settings: &FelixConfiguration) -> usize {
    let typed = serde_json::to_value(settings).unwrap_or_default();
    let set = typed.as_object().into_iter().flatten();
    let known = set.filter(|(name, value)| {
        !value.is_null()
            && !["name", "created", "node_selector", "other", "invalid"].contains(&name.as_str())
    });

    known.count() + settings.other.len()
}

fn opaque_facts(object: &Object) -> Vec<String> {
    let read = |path: &[&str]| text(object, path).unwrap_or_else(|| NOTHING.into());
    let labels = pairs(&object.metadata.labels);
    match object.kind {
        Kind::IPAMHandle => {
            let blocks = at(object, &["spec", "block"]).and_then(Value::as_object);
            let count: u64 = blocks
                .into_iter()
                .flatten()
                .filter_map(|(_, n)| n.as_u64())
                .sum();
            vec![read(&["spec", "handleID"]), count.to_string()]
        }
        Kind::IPAMConfiguration => vec![
            read(&["spec", "strictAffinity"]),
            read(&["spec", "maxBlocksPerHost"]),
            read(&["spec", "autoAllocateBlocks"]),
            read(&["spec", "ipCooldownSeconds"]),
        ],
        Kind::IPReservation => vec![each(object, &["spec", "reservedCIDRs"], |cidr| {
            Some(cidr.as_str()?.to_owned())
        })],
        Kind::ClusterInformation => vec![
            read(&["spec", "clusterType"]),
            read(&["spec", "calicoVersion"]),
            read(&["spec", "datastoreReady"]),
            read(&["spec", "clusterGUID"]),
        ],
        Kind::Service => vec![
            text(object, &["spec", "type"]).unwrap_or_else(|| "ClusterIP".into()),
            read(&["spec", "clusterIP"]),
            each(object, &["spec", "ports"], port),
            each_pair(object, &["spec", "selector"]),
        ],
        Kind::Pod => vec![
            read(&["status", "phase"]),
            read(&["spec", "nodeName"]),
            each(object, &["status", "podIPs"], |ip| {
                Some(ip.get("ip")?.as_str()?.to_owned())
            }),
            labels,
        ],
        Kind::EndpointSlice => vec![
            text_of(object.body.get("addressType")).unwrap_or_else(|| NOTHING.into()),
            each(object, &["ports"], port),
            each(object, &["endpoints"], |endpoint| {
                text_of(endpoint.get("addresses")?.get(0))
            }),
        ],
        Kind::BlockAffinity => vec![
            read(&["spec", "cidr"]),
            read(&["spec", "node"]),
            read(&["spec", "state"]),
        ],
        Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Node
        | Kind::MeshNode
        | Kind::IPPool
        | Kind::IPAMBlock
        | Kind::WorkloadEndpoint
        | Kind::FelixConfiguration
        | Kind::MeshConfiguration
        | Kind::KeyClaim
        | Kind::AddressClaim
        | Kind::Tier
        | Kind::NetworkPolicy
        | Kind::GlobalNetworkPolicy
        | Kind::KubernetesNetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::StagedNetworkPolicy
        | Kind::StagedGlobalNetworkPolicy
        | Kind::StagedKubernetesNetworkPolicy
        | Kind::NetworkSet
        | Kind::GlobalNetworkSet
        | Kind::HostEndpoint
        | Kind::Profile => vec![labels],
    }
}

/// Returns how long ago an object was created: `45s`, `12m`, `5h`, `3d`.
pub(crate) fn age(object: &Object, now: Timestamp) -> String {
    let created = object.metadata.creation_timestamp.as_deref();
    let Some(created) = created.and_then(|text| text.parse::<Timestamp>().ok()) else {
        return NOTHING.into();
    };
    let seconds = now.duration_since(created).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn port(port: &Value) -> Option<String> {
    let protocol = port
        .get("protocol")
        .and_then(Value::as_str)
        .unwrap_or("TCP");

    Some(format!("{}/{protocol}", port.get("port")?))
}

fn each(object: &Object, path: &[&str], show: impl Fn(&Value) -> Option<String>) -> String {
    let items = at(object, path).and_then(Value::as_array);

    list(items.into_iter().flatten().filter_map(show))
}

fn each_pair(object: &Object, path: &[&str]) -> String {
    let members = at(object, path).and_then(Value::as_object);

    list(
        members
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", text_of(Some(value)).unwrap_or_default())),
    )
}

fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;

    rest.iter()
        .try_fold(object.body.get(*first)?, |value, name| value.get(name))
}

fn text(object: &Object, path: &[&str]) -> Option<String> {
    text_of(at(object, path))
}

fn text_of(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Some(other.to_string())
        }
    }
}

/// Returns labels as `key=value`, separated by commas.
pub(crate) fn pairs(labels: &BTreeMap<String, String>) -> String {
    list(labels.iter().map(|(key, value)| format!("{key}={value}")))
}

/// Returns values separated by commas, or a dash for none.
pub(crate) fn list<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();

    if values.is_empty() {
        NOTHING.into()
    } else {
        values.join(",")
    }
}

fn short(key: &str) -> String {
    key.chars().take(8).chain(['…']).collect()
}

fn yes(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

#[cfg(test)]
mod tests {
    use model::{ObjectKey, PublicKey, kind::Scope};
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_has_a_row_as_wide_as_its_heads() {
        for kind in Kind::ALL {
            let key = match kind.scope() {
                Scope::Cluster => ObjectKey::cluster(*kind, "x"),
                Scope::Namespaced => ObjectKey::namespaced(*kind, "default", "x"),
            };
            for wide in [false, true] {
                let cells = row(&Object::new(&key, json!({})), wide, now());
                assert_eq!(cells.len(), heads(*kind, wide).len(), "{kind}");
            }
        }
    }

    #[test]
    fn a_pool_a_block_and_a_node_show_what_matters() {
        let pool = object(
            Kind::IPPool,
            "pods",
            json!({"cidr": "10.65.0.0/16", "natOutgoing": true}),
        );
        assert_eq!(
            row(&pool, false, now()),
            ["pods", "10.65.0.0/16", "/26", "yes", "enabled"]
        );

        let spec = json!({
            "cidr": "10.65.0.0/31", "affinity": "host:n1",
            "allocations": [0, null], "unallocated": [1], "attributes": [{}],
        });
        let block = object(Kind::IPAMBlock, "10-65-0-0-31", spec);
        assert_eq!(
            row(&block, false, now()),
            ["10.65.0.0/31", "n1", "1/2", NOTHING]
        );

        let mut node = object(
            Kind::Node,
            "n1",
            json!({"bgp": {"ipv4Address": "192.0.2.1/24"}}),
        );
        let key = PublicKey::new([7; 32]).unwrap().to_string();
        node.body
            .insert("status".into(), json!({"wireguardPublicKey": key}));
        node.metadata.creation_timestamp = Some("2026-01-01T00:00:00Z".into());
        assert_eq!(
            row(&node, false, now()),
            ["n1", NOTHING, "192.0.2.1/24", "BwcHBwcH…", "3h"]
        );
    }

    #[test]
    fn a_policy_shows_whom_it_is_for_and_when_it_is_asked() {
        let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]});
        let mut policy = object(Kind::KubernetesNetworkPolicy, "p", spec);
        policy.metadata.namespace = Some("shop".into());
        assert_eq!(
            row(&policy, false, now())[1..5],
            [
                "default",
                "1000",
                "(projectcalico.org/namespace == \"shop\" && projectcalico.org/orchestrator == \"k8s\" \
                 && app == \"web\")",
                "Ingress",
            ]
        );

        let spec = json!({"stagedAction": "Delete"});
        let staged = object(Kind::StagedGlobalNetworkPolicy, "p", spec);
        assert_eq!(
            row(&staged, false, now()),
            [
                "p",
                "default",
                NOTHING,
                "all()",
                "Ingress,Egress",
                "Delete",
                NOTHING
            ]
        );

        let tier = object(Kind::Tier, "net", json!({"order": 2.5}));
        assert_eq!(row(&tier, false, now()), ["net", "2.5", "Deny", NOTHING]);
    }

    #[test]
    fn an_object_that_cannot_be_read_says_why() {
        let pool = object(Kind::IPPool, "pods", json!({"cidr": "x"}));

        let cells = row(&pool, false, now());

        assert!(
            cells[1].starts_with("unusable: spec.cidr: expected a network"),
            "{}",
            cells[1]
        );
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let foreign = "a\u{1b}[31mb";
        let cluster = object(
            Kind::ClusterInformation,
            "default",
            json!({"clusterType": foreign}),
        );
        assert_eq!(row(&cluster, false, now())[1], "a\u{fffd}[31mb");

        // Nor can what is quoted of an object that is refused.
        let handle = object(
            Kind::IPAMHandle,
            "h",
            json!({"handleID": foreign, "block": {}}),
        );
        let said = &row(&handle, false, now())[1];
        assert!(
            said.contains("a\u{fffd}[31mb") && !said.contains('\u{1b}'),
            "{said}"
        );
    }

    fn object(kind: Kind, name: &str, spec: Value) -> Object {
        Object::new(&ObjectKey::cluster(kind, name), spec)
    }

    fn now() -> Timestamp {
        "2026-01-01T03:00:00Z".parse().unwrap()
    }
}
