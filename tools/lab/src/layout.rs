//! Who has which address and which route: the lab's plan, computed from its file alone.
//!
//! ```text
//! Spec ──▶ hosts with devices and addresses ──▶ next hops over the graph of LANs and routers
//! ```
//!
//! Nodes take the first addresses of a network in the file's order, then the server, then outside
//! hosts; routers take them from the top (`.254` of an IPv4 /24). Pods of a plain lab take theirs from
//! [`PLAIN_POOLS`]. Pure: nothing here touches the machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::spec::{Label, Pod, PodName, Router, Spec};
use address::{Addresses, End, plain_pods};

pub(crate) use address::plain_addresses;

mod address;

/// Where the pods of a plain lab take addresses from: the n-th node has the n-th block of 256.
pub(crate) const PLAIN_POOLS: [&str; 2] = ["10.65.0.0/16", "fd00:65::/112"];

/// What part a host plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// A member of the mesh.
    Node,
    /// The embedded server's host.
    Server,
    /// Forwards between networks.
    Router,
    /// No member.
    Outside,
}

/// A host and everything it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What part it plays.
    pub role: Role,
    /// Its name.
    pub name: Label,
    /// Its devices: `eth0`, `eth1`, … in order.
    pub devices: Vec<Device>,
    /// Addresses of its own that are in none of its networks.
    pub own: Vec<IpAddr>,
}

/// A host's device on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Name of the device.
    pub name: String,
    /// Position of its network in the file.
    pub network: usize,
    /// Addresses, with the network's prefix length.
    pub addresses: Vec<IpNet>,
}

/// A route of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub to: IpNet,
    /// Next hop.
    pub via: IpAddr,
    /// Device of the next hop.
    pub device: String,
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Every host: nodes, server, outside hosts, routers.
    pub hosts: Vec<Host>,
    /// Subnets of every network, in the file's order.
    networks: Vec<Vec<IpNet>>,
    /// Per router, in order: position in `hosts`, the outer network of its NAT, written routes.
    routers: Vec<Forwarder>,
    /// Addresses of the pods of a plain lab, node by node in the file's order.
    plain_pods: Vec<PlainPod>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Forwarder {
    host: usize,
    outer: Option<usize>,
    routes: Vec<(IpNet, IpAddr)>,
}

/// A pod whose addresses the lab chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlainPod {
    /// The node it runs on.
    pub node: Label,
    /// The pod.
    pub pod: PodName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a lab cannot be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A subnet has no free address left.
    #[error("no free address left in {0}")]
    Exhausted(IpNet),
    /// Two hosts ask for the same address.
    #[error("{0} is given to two hosts")]
    Duplicate(IpAddr),
}

impl Layout {
    /// Lays a lab out.
    ///
    /// # Errors
    /// [`LayoutError`] where a subnet is too small, or an address is asked for twice.
    pub fn plan(spec: &Spec) -> Result<Self, LayoutError> {
        let networks: Vec<Vec<IpNet>> = spec.networks.iter().map(|n| n.cidrs.clone()).collect();
        let mut addresses = Addresses::reserve(spec)?;
        let mut hosts = Vec::new();
        for node in &spec.nodes {
            let devices = addresses.devices(spec, &node.networks, End::Bottom)?;
            hosts.push(Host::new(Role::Node, &node.name, devices));
        }
        if let Some(server) = &spec.server {
            let name: Label = "server".parse().expect("`server` is a DNS label");
            let devices = addresses.devices(spec, &server.networks, End::Bottom)?;
            hosts.push(Host::new(Role::Server, &name, devices));
        }
        for outside in &spec.outside {
            let devices = addresses.devices(spec, &outside.networks, End::Bottom)?;
            let mut host = Host::new(Role::Outside, &outside.name, devices);
            host.own = outside.addresses.clone();
            hosts.push(host);
        }
        let mut routers = Vec::new();
        for router in &spec.routers {
            let devices = addresses.devices(spec, &router.networks, End::Top)?;
            routers.push(Forwarder::new(hosts.len(), spec, router));
            hosts.push(Host::new(Role::Router, &router.name, devices));
        }
        let plain_pods = plain_pods(spec, &hosts);
        Ok(Self {
            hosts,
            networks,
            routers,
            plain_pods,
        })
    }

    /// The host of that name.
    pub fn host(&self, name: &Label) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == *name)
    }

    /// The addresses that a plain lab gives a pod; empty for a pod the file does not hold.
    pub fn plain_pod(&self, pod: &PodName) -> &[IpAddr] {
        self.plain_pods
            .iter()
            .find(|p| p.pod == *pod)
            .map_or(&[], |p| &p.addresses)
    }

    /// Gives a host one more device, on a network where it has none yet. Its addresses are the host's own
    /// on that network, however often it comes and goes; none where the host is there already.
    pub(crate) fn attach(&mut self, host: usize, network: usize) -> Option<Device> {
        let cidrs = self.networks.get(network)?;
        let owner = self.hosts.get(host)?;
        let numbers = 0..=owner.devices.len();
        let mut names = numbers.map(|number| format!("eth{number}"));
        let name = names.find(|name| owner.devices.iter().all(|device| device.name != *name))?;
        if owner.device_on(network).is_some() {
            return None;
        }
        let late = |cidr: &IpNet| address::late(*cidr, host);
        let device = Device {
            name,
            network,
            addresses: cidrs.iter().map(late).collect(),
        };
        self.hosts.get_mut(host)?.devices.push(device.clone());
        Some(device)
    }

    /// The routes that a host is born with, so that every network and outside host is in reach.
    pub fn routes(&self, host: &Host) -> Vec<Route> {
        let mut routes = self.default_routes(host);
        for (network, cidrs) in self.networks.iter().enumerate() {
            for cidr in cidrs {
                if host.device_on(network).is_none() {
                    routes.extend(self.next_hop(host, &[network], *cidr));
                }
            }
        }
        for owner in self.hosts.iter().filter(|owner| owner.name != host.name) {
            for address in &owner.own {
                routes.extend(self.route_to_host(host, owner, IpNet::from(*address)));
            }
        }
        routes.extend(self.written_routes(host));
        let default: Vec<IpAddr> = routes
            .iter()
            .filter(|r| r.to.prefix_len() == 0)
            .map(|r| r.via)
            .collect();
        routes.retain(|route| route.to.prefix_len() == 0 || !default.contains(&route.via));
        routes.sort();
        routes.dedup();
        routes
    }

    /// How `host` reaches something that `owner` has: on a shared network directly, else by routers.
    pub fn route_to_host(&self, host: &Host, owner: &Host, to: IpNet) -> Option<Route> {
        for device in &host.devices {
            let shared = owner.device_on(device.network);
            let via = shared.and_then(|theirs| theirs.address(to.addr().is_ipv4()));
            if let Some(via) = via {
                return Some(Route {
                    to,
                    via,
                    device: device.name.clone(),
                });
            }
        }
        let networks: Vec<usize> = owner.devices.iter().map(|device| device.network).collect();
        self.next_hop(host, &networks, to)
    }

    /// A non-router's way to everywhere: the first router on its networks, per family.
    fn default_routes(&self, host: &Host) -> Vec<Route> {
        if host.role == Role::Router {
            return Vec::new();
        }
        let everywhere = [
            IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            v6_unspecified(),
        ];
        let mut routes = Vec::new();
        for any in everywhere {
            let to = IpNet::new(any.addr(), 0).expect("0 is a prefix length of both families");
            let first = host.devices.iter().find_map(|device| {
                let router = self.routers_on(device.network).next()?;
                let via = router
                    .device_on(device.network)?
                    .address(to.addr().is_ipv4())?;
                Some(Route {
                    to,
                    via,
                    device: device.name.clone(),
                })
            });
            routes.extend(first);
        }
        routes
    }

    fn written_routes(&self, host: &Host) -> Vec<Route> {
        let forwarder = self
            .routers
            .iter()
            .find(|r| self.hosts[r.host].name == host.name);
        let written = forwarder.into_iter().flat_map(|r| &r.routes);
        written
            .filter_map(|(to, via)| {
                let device = host.devices.iter().find(|device| device.reaches(via))?;
                Some(Route {
                    to: *to,
                    via: *via,
                    device: device.name.clone(),
                })
            })
            .collect()
    }

    /// The first router on the shortest way from `host` to one of `targets`.
    fn next_hop(&self, host: &Host, targets: &[usize], to: IpNet) -> Option<Route> {
        let v4 = to.addr().is_ipv4();
        let mut best: Option<(usize, Route)> = None;
        for device in &host.devices {
            for router in self.routers_on(device.network) {
                let Some(via) = router.device_on(device.network).and_then(|d| d.address(v4)) else {
                    continue;
                };
                if router.name == host.name || self.hides(router, device.network) {
                    continue;
                }
                let Some(distance) = self.distance(router, targets, v4) else {
                    continue;
                };
                if best.as_ref().is_none_or(|(least, _)| distance < *least) {
                    best = Some((
                        distance,
                        Route {
                            to,
                            via,
                            device: device.name.clone(),
                        },
                    ));
                }
            }
        }
        best.map(|(_, route)| route)
    }

    /// How many routers a packet that has reached `router` still passes; none where there is no way.
    fn distance(&self, router: &Host, targets: &[usize], v4: bool) -> Option<usize> {
        let carries = |network: usize| {
            self.networks[network]
                .iter()
                .any(|c| c.addr().is_ipv4() == v4)
        };
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut edge: Vec<usize> = router.devices.iter().map(|d| d.network).collect();
        for hops in 0..=self.routers.len() {
            edge.retain(|network| carries(*network) && seen.insert(*network));
            if edge.iter().any(|network| targets.contains(network)) {
                return Some(hops);
            }
            let next = edge.iter().flat_map(|network| {
                let open = self
                    .routers_on(*network)
                    .filter(|r| !self.hides(r, *network));
                open.flat_map(|r| r.devices.iter().map(|d| d.network))
            });
            edge = next.collect();
        }
        None
    }

    /// Whether `router` translates towards `network`, so that nobody there sees what is behind it.
    fn hides(&self, router: &Host, network: usize) -> bool {
        let forwarder = self
            .routers
            .iter()
            .find(|r| self.hosts[r.host].name == router.name);
        forwarder.is_some_and(|r| r.outer == Some(network))
    }

    fn routers_on(&self, network: usize) -> impl Iterator<Item = &Host> {
        let hosts = self.routers.iter().map(|r| &self.hosts[r.host]);
        hosts.filter(move |host| host.device_on(network).is_some())
    }
}

fn v6_unspecified() -> IpNet {
    IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
}

impl Host {
    fn new(role: Role, name: &Label, devices: Vec<Device>) -> Self {
        Self {
            role,
            name: name.clone(),
            devices,
            own: Vec::new(),
        }
    }

    /// Its device on that network.
    pub fn device_on(&self, network: usize) -> Option<&Device> {
        self.devices.iter().find(|device| device.network == network)
    }

    /// Every address it has, own ones last.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let devices = self.devices.iter().flat_map(|device| &device.addresses);
        devices
            .map(IpNet::addr)
            .chain(self.own.iter().copied())
            .collect()
    }
}

impl Device {
    /// Its first address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(IpNet::addr)
            .find(|address| address.is_ipv4() == v4)
    }

    /// Whether an address is on this device's link.
    pub fn reaches(&self, address: &IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(address))
    }
}

impl Forwarder {
    fn new(host: usize, spec: &Spec, router: &Router) -> Self {
        let outer = router.nat.as_ref().and_then(|nat| {
            spec.networks
                .iter()
                .position(|network| network.name == nat.network)
        });
        let routes = router
            .routes
            .iter()
            .map(|route| (route.to, route.via))
            .collect();
        Self {
            host,
            outer,
            routes,
        }
    }
}

/// The name of a pod's device on its node, as Calico forms it: `cali` and eleven hex digits.
pub(crate) fn workload_device(pod: &Pod) -> String {
    let name = pod.full_name().to_string();
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("cali{:011x}", hash & 0xfff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Document;

    fn layout(spec: &str) -> Layout {
        let head = "apiVersion: meshd.dev/v1\nkind: Lab\nmetadata: {name: t}\nspec:\n";
        Layout::plan(&Document::parse("t", &format!("{head}{spec}")).unwrap().spec).unwrap()
    }

    fn routes(layout: &Layout, host: &str) -> Vec<String> {
        let host = layout.host(&host.parse().unwrap()).unwrap();
        let text = |r: &Route| format!("{} via {} dev {}", r.to, r.via, r.device);
        layout.routes(host).iter().map(text).collect()
    }

    #[test]
    fn nodes_count_from_the_bottom_and_routers_from_the_top() {
        let layout = layout(
            "
  networks:
    - {name: lan, cidrs: [192.0.2.0/24, '2001:db8::/64']}
    - {name: tiny, cidrs: [198.51.100.8/29]}
  routers: [{name: r1, networks: [lan, tiny]}]
  nodes:
    - {name: a, networks: [lan]}
    - {name: b, networks: [{name: lan, addresses: [192.0.2.2]}]}
    - {name: c, networks: [lan]}
    - {name: d, networks: [tiny]}
",
        );
        let addresses: Vec<String> = (layout.hosts.iter())
            .map(|host| {
                host.devices
                    .iter()
                    .flat_map(|d| &d.addresses)
                    .map(|a| format!("{a} "))
                    .collect()
            })
            .collect();
        assert_eq!(
            addresses,
            [
                "192.0.2.1/24 2001:db8::1/64 ",
                "192.0.2.2/24 ",
                "192.0.2.3/24 2001:db8::2/64 ",
                "198.51.100.9/29 ",
                "192.0.2.254/24 2001:db8::fe/64 198.51.100.14/29 ",
            ]
        );
    }

    #[test]
    fn packets_take_the_shortest_way_over_routers() {
        let layout = layout(
            "
  networks:
    - {name: a, cidrs: [10.0.1.0/24]}
    - {name: b, cidrs: [10.0.2.0/24]}
    - {name: c, cidrs: [10.0.3.0/24]}
  routers:
    - {name: r1, networks: [a, b]}
    - {name: r2, networks: [b, c]}
  nodes:
    - {name: n1, networks: [a]}
    - {name: n2, networks: [b]}
  outside: [{name: o, networks: [c], addresses: [203.0.113.9]}]
",
        );
        assert_eq!(routes(&layout, "n1"), ["0.0.0.0/0 via 10.0.1.254 dev eth0"]);
        assert_eq!(
            routes(&layout, "n2"),
            [
                "0.0.0.0/0 via 10.0.2.254 dev eth0",
                "10.0.3.0/24 via 10.0.2.253 dev eth0",
                "203.0.113.9/32 via 10.0.2.253 dev eth0",
            ]
        );
        assert_eq!(
            routes(&layout, "r1"),
            [
                "10.0.3.0/24 via 10.0.2.253 dev eth1",
                "203.0.113.9/32 via 10.0.2.253 dev eth1"
            ]
        );
        assert_eq!(
            routes(&layout, "r2"),
            [
                "10.0.1.0/24 via 10.0.2.254 dev eth0",
                "203.0.113.9/32 via 10.0.3.1 dev eth1"
            ]
        );
    }

    #[test]
    fn nobody_outside_a_translator_knows_the_way_in() {
        let layout = layout(
            "
  networks:
    - {name: home, cidrs: [10.0.1.0/24]}
    - {name: wan, cidrs: [10.0.2.0/24]}
    - {name: other, cidrs: [10.0.3.0/24]}
  routers:
    - {name: r1, networks: [home, wan], nat: {network: wan}}
    - {name: r2, networks: [other, wan]}
  nodes:
    - {name: n1, networks: [home]}
    - {name: n2, networks: [other]}
",
        );
        assert_eq!(
            routes(&layout, "r1"),
            ["10.0.3.0/24 via 10.0.2.253 dev eth1"]
        );
        assert_eq!(routes(&layout, "r2"), Vec::<String>::new());
    }

    #[test]
    fn a_full_subnet_is_an_error() {
        let nodes: String = (0..7)
            .map(|i| format!("    - {{name: n{i}, networks: [lan]}}\n"))
            .collect();
        let text = format!(
            "apiVersion: meshd.dev/v1\nkind: Lab\nmetadata: {{name: t}}\nspec:\n  networks: [{{name: lan, cidrs: [192.0.2.0/29]}}]\n  nodes:\n{nodes}"
        );
        let spec = Document::parse("t", &text).unwrap().spec;
        let full = LayoutError::Exhausted("192.0.2.0/29".parse().unwrap());
        assert_eq!(Layout::plan(&spec), Err(full));
    }

    #[test]
    fn a_pod_s_device_fits_an_interface_name() {
        let name: PodName = format!("{}/{}", "n".repeat(63), "p".repeat(63))
            .parse()
            .unwrap();
        assert_eq!(workload_device(&Pod::bare(name)).len(), 15);
    }
}
