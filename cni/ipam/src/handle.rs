//! The names by which addresses are held, and what is noted about the holder.

use std::collections::BTreeMap;

use model::{Family, NodeName, PodName};

/// The name of Calico's default pod network.
const POD_NETWORK: &str = "k8s-pod-network";

/// The handle under which Calico's Windows nodes keep addresses of a block for themselves.
pub const WINDOWS_RESERVED: &str = "windows-reserved-ipam-handle";

/// Returns the handle of a pod's addresses: `k8s-pod-network.SANDBOX`.
pub fn pod(sandbox: &str) -> String {
    format!("{POD_NETWORK}.{sandbox}")
}

/// Returns what is noted about a pod that holds an address; `timestamp` is RFC 3339.
pub fn pod_attributes(pod: &PodName, node: &NodeName, timestamp: &str) -> BTreeMap<String, String> {
    [
        ("pod", pod.name.as_str()),
        ("namespace", &pod.namespace),
        ("node", node.as_str()),
        ("timestamp", timestamp),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Returns the handle of the tunnel device of a family: `wireguard-tunnel-addr-NODE`, `wireguard-v6-tunnel-addr-NODE`.
pub fn tunnel(family: Family, node: &NodeName) -> String {
    match family {
        Family::V4 => format!("wireguard-tunnel-addr-{node}"),
        Family::V6 => format!("wireguard-v6-tunnel-addr-{node}"),
    }
}

/// Beginnings of the handles of tunnel devices, Calico's and ours; a node's name follows.
const TUNNELS: [&str; 5] = [
    "wireguard-tunnel-addr-",
    "wireguard-v6-tunnel-addr-",
    "ipip-tunnel-addr-",
    "vxlan-tunnel-addr-",
    "vxlan-v6-tunnel-addr-",
];

/// Returns whether a handle is that of a tunnel device.
pub fn is_tunnels(handle: &str) -> bool {
    tunnels_node(handle).is_some()
}

/// Returns the name of the node whose tunnel device a handle is of, in lower case.
pub fn tunnels_node(handle: &str) -> Option<String> {
    let handle = handle.to_lowercase();
    let mut names = TUNNELS
        .iter()
        .filter_map(|start| handle.strip_prefix(start));

    names.next().map(str::to_owned)
}

/// Returns what is noted about a tunnel device that holds an address.
pub fn tunnel_attributes(family: Family, node: &NodeName) -> BTreeMap<String, String> {
    let kind = match family {
        Family::V4 => "wireguardTunnelAddress",
        Family::V6 => "wireguardV6TunnelAddress",
    };

    [("type", kind), ("node", node.as_str())]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_named_as_calico_names_them() {
        let node = "n1".parse().unwrap();

        assert_eq!(pod("c0ffee"), "k8s-pod-network.c0ffee");
        assert_eq!(tunnel(Family::V4, &node), "wireguard-tunnel-addr-n1");
        assert_eq!(tunnel(Family::V6, &node), "wireguard-v6-tunnel-addr-n1");
        assert_eq!(
            tunnel_attributes(Family::V6, &node)["type"],
            "wireguardV6TunnelAddress"
        );
    }
}
