//! How each fault is made, and how it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab::{Boot, Device, End as _, Lab, Node, Service};

use crate::{Fault, Kind, Sender, Traffic, rogue};

/// The first addresses that nodes change to, in the lab's network.
const FRESH_V4: [u8; 4] = [192, 0, 2, 100];
const FRESH_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);

/// What a run does to its mesh, and what it must remember of it.
#[derive(Debug)]
pub(crate) struct Hand<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) nodes: &'a [Node],
    pub(crate) traffic: &'a mut Traffic,
    /// How many addresses nodes have changed to.
    pub(crate) addresses: &'a mut u8,
    /// Nodes whose pods are to be added again.
    pub(crate) empty: Vec<usize>,
    /// Devices that came late, with their nodes.
    pub(crate) devices: Vec<(usize, Device)>,
    /// Host processes that send while their node boots.
    pub(crate) senders: Vec<Sender>,
}

impl Hand<'_> {
    /// Makes a fault.
    pub(crate) fn strike(&mut self, fault: &Fault) {
        let node = &self.nodes[fault.node];
        match fault.kind {
            Kind::AgentKill => node.kill(Service::Agent),
            Kind::WireKill => node.kill(Service::Wire),
            Kind::KeyCleared => rogue::clear_key(self.lab, node, fault.variant),
            Kind::KeyDuplicated => rogue::duplicate_key(self.lab, node, &self.nodes[fault.other]),
            Kind::NodeRemoved => self.remove(fault.node),
            Kind::AddressChange => self.change_address(fault),
            Kind::ServerDown => {
                node.kill(Service::Server);
                if fault.writes_database() {
                    rogue::clear_in_database(self.lab, node);
                }
            }
            Kind::Flush => drop(node.run("nft", &["flush", "ruleset"])),
            Kind::LinkFlap => node.unplug(),
            Kind::Partition => self.part(fault),
            Kind::NewDevice => self.add_device(fault.node),
            Kind::Reboot => self.reboot(fault.node),
        }
    }

    /// Ends a fault.
    pub(crate) fn heal(&mut self, fault: &Fault) {
        let node = &self.nodes[fault.node];
        match fault.kind {
            Kind::AgentKill => node.restart(Service::Agent),
            Kind::WireKill => node.restart(Service::Wire),
            Kind::NodeRemoved => {
                self.lab.site(|site| {
                    let joined = site.rejoin(node.name());
                    joined.unwrap_or_else(|error| panic!("{} rejoins: {error:?}", node.name()));
                });
                node.restart(Service::Agent);
            }
            Kind::ServerDown => node.restart(Service::Server),
            Kind::LinkFlap => node.plug(),
            Kind::Partition => self.lab.part("lan", &[], &[]),
            Kind::NewDevice => self.remove_device(fault.node),
            Kind::Reboot => {
                node.restart(Service::Wire);
                node.restart(Service::Agent);
            }
            Kind::KeyCleared | Kind::KeyDuplicated | Kind::AddressChange | Kind::Flush => {}
        }
    }

    /// Starts the pods again that went with their nodes, as a kubelet would.
    pub(crate) fn refill(&mut self) {
        for number in std::mem::take(&mut self.empty) {
            let name = format!("default/p{}", number + 1);
            self.lab.add_pod(self.nodes[number].name(), &name);
        }
    }

    /// An administrator drains a node and removes it; the host itself goes on.
    fn remove(&mut self, number: usize) {
        let node = &self.nodes[number];
        self.traffic.end_all_of(number);
        for pod in node.pods() {
            self.lab.delete_pod(&pod);
        }
        self.empty.push(number);
        node.kill(Service::Agent);
        self.lab.meshctl(&["delete", "node", node.name()]);
    }

    fn change_address(&mut self, fault: &Fault) {
        self.traffic.end_to_host(fault.node);
        *self.addresses += 1;
        let mut v4 = FRESH_V4;
        v4[3] += *self.addresses;
        let v6 = u128::from(FRESH_V6) + u128::from(*self.addresses);
        let fresh = if fault.variant.is_multiple_of(2) {
            IpAddr::V4(Ipv4Addr::from(v4))
        } else {
            IpAddr::V6(Ipv6Addr::from(v6))
        };
        self.nodes[fault.node].change_address(&fresh.to_string());
    }

    /// Parts a node from the others, and in every second way from the server too.
    fn part(&mut self, fault: &Fault) {
        let alone = self.nodes[fault.node].name();
        let names = self.nodes.iter().map(Node::name);
        let mut others: Vec<&str> = names.filter(|name| *name != alone).collect();
        if fault.variant.is_multiple_of(2) {
            others.push("server");
        }
        self.lab.part("lan", &[alone], &others);
    }

    /// A second device appears, and with it routes that would take the pods' packets away from the tunnel.
    fn add_device(&mut self, number: usize) {
        let node = &self.nodes[number];
        let device = self.lab.add_device(node, "data");
        let script = "ip route replace 10.65.0.0/16 via 198.51.100.254 dev $0
                      ip -6 route replace fd00:65::/112 via 2001:db8:2::ff dev $0 metric 1";
        node.run("sh", &["-e", "-c", script, &device.name]);
        self.devices.push((number, device));
    }

    fn remove_device(&mut self, number: usize) {
        let of_node = |(owner, _): &mut (usize, Device)| *owner == number;
        let gone: Vec<_> = self.devices.extract_if(.., of_node).collect();
        for (_, device) in gone {
            self.lab.remove_device(&self.nodes[number], &device);
        }
    }

    /// A node boots; a process of the host sends to every remote pod before there is even a guard.
    fn reboot(&mut self, number: usize) {
        self.traffic.end_all_of(number);
        let targets = self.nodes.iter().flat_map(Node::pods);
        let own = self.nodes[number].name();
        let remote = targets.filter(|pod| pod.node().name() != own);
        let remote: Vec<IpAddr> = remote.flat_map(|pod| pod.addresses()).collect();
        let senders = &mut self.senders;
        self.lab.reboot(&self.nodes[number], Boot::Guarded, |node| {
            senders.push(Sender::start(&node.netns(), remote));
        });
        self.empty.push(number);
    }
}
