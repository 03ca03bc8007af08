//! Kubernetes services, as kube-proxy writes them in its nftables mode.
//!
//! The shape of the rules (chains and their priorities, the mark, where packets are marked and where the
//! mark is taken off) is that of Kubernetes 1.33; the text is ours.
//!
//! ```text
//! prerouting, output  dstnat     service? ─▶ mark 0x4000 where the answer must come back here ─▶ DNAT to the pod
//! postrouting         srcnat     mark 0x4000? ─▶ take it off, masquerade
//! ```

use std::net::{IpAddr, SocketAddr};

use lab::{End as _, Family, Node};

/// Whether what comes from outside the node is sent on to pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// `externalTrafficPolicy: Cluster`: it is, and masqueraded.
    Cluster,
    /// `externalTrafficPolicy: Local`: only to the node's own pods, and the source stays.
    Local,
}

/// A service with one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its ClusterIP and port.
    pub cluster: SocketAddr,
    /// Its port on every node.
    pub node_port: u16,
    /// Its endpoint.
    pub endpoint: SocketAddr,
    /// Its policy for what comes from outside.
    pub traffic: Traffic,
}

/// Loads the rules for these services on a node, in place of those for earlier ones. All are of one
/// family and carry TCP and UDP.
pub fn load(node: &Node, services: &[Service]) {
    for family in [Family::V4, Family::V6] {
        let of_family = |s: &&Service| Family::of(&s.endpoint.ip()) == family;
        let services: Vec<&Service> = services.iter().filter(of_family).collect();
        if !services.is_empty() {
            let rules = rules(family, node.address(family), &services);
            node.run("sh", &["-e", "-c", "printf '%s' \"$0\" | nft -f -", &rules]);
        }
    }
}

fn rules(family: Family, node: IpAddr, services: &[&Service]) -> String {
    let (table, ip, address) = match family {
        Family::V4 => ("ip", "ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ip6", "ipv6_addr"),
    };
    let mut elements = (Vec::new(), Vec::new());
    let mut chains = String::new();
    for (number, service) in services.iter().enumerate() {
        for protocol in ["tcp", "udp"] {
            let name = format!("svc-{number}-{protocol}");
            let (cluster, port) = (service.cluster.ip(), service.cluster.port());
            elements
                .0
                .push(format!("{cluster} . {protocol} . {port} : goto {name}"));
            let (node_port, external) = (service.node_port, format!("external-{name}"));
            elements
                .1
                .push(format!("{protocol} . {node_port} : goto {external}"));
            let mark = match service.traffic {
                Traffic::Cluster => "jump mark-for-masquerade",
                Traffic::Local => "",
            };
            let (to, pod) = (service.endpoint, service.endpoint.ip());
            chains += &format!(
                "chain endpoint-{name} {{
                   {ip} saddr {pod} jump mark-for-masquerade
                   meta l4proto {protocol} dnat to {to}
                 }}
                 chain {name} {{ goto endpoint-{name}; }}
                 chain {external} {{
                   {mark}
                   goto {name}
                 }}\n"
            );
        }
    }
    format!(
        "table {table} kube-proxy
         delete table {table} kube-proxy
         table {table} kube-proxy {{
           set nodeport-ips {{ type {address}; elements = {{ {node} }} }}
           chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
           {chains}
           map service-ips {{
             type {address} . inet_proto . inet_service : verdict
             elements = {{ {} }}
           }}
           map service-nodeports {{
             type inet_proto . inet_service : verdict
             elements = {{ {} }}
           }}
           chain services {{
             {ip} daddr . meta l4proto . th dport vmap @service-ips
             {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
           }}
           chain masquerading {{
             meta mark and 0x4000 == 0 return
             meta mark set meta mark xor 0x4000
             masquerade fully-random
           }}
           chain nat-prerouting {{
             type nat hook prerouting priority dstnat; jump services;
           }}
           chain nat-output {{
             type nat hook output priority -100; jump services;
           }}
           chain nat-postrouting {{
             type nat hook postrouting priority srcnat; jump masquerading;
           }}
         }}\n",
        elements.0.join(", "),
        elements.1.join(", "),
    )
}
