//! Which nodes a packet crosses, and by which interfaces.

use model::{Family, InterfaceName, resource::WorkloadEndpoint, settings::Settings};

use super::{
    Evaluator,
    crossing::{Crossing, Device},
};
use crate::{
    cluster::{Node, Pod},
    packet::{Packet, Place, Translator},
};

/// The interface of packets that never leave their host.
const LOOPBACK: &str = "lo";

/// One end of a packet's way, at a node.
#[derive(Clone, Copy)]
enum End<'a> {
    /// A pod of the node.
    Pod(&'a Node, &'a Pod),
    /// The node itself.
    Host(&'a Node),
    /// Beyond every node.
    Beyond,
}

impl<'a> End<'a> {
    fn node(self) -> Option<&'a Node> {
        match self {
            Self::Pod(node, _) | Self::Host(node) => Some(node),
            Self::Beyond => None,
        }
    }
}

impl Evaluator<'_> {
    /// Returns the nodes that a packet crosses, in order. What stays in one pod, or concerns no node, crosses none.
    pub(super) fn path(&self, packet: &Packet) -> Vec<Crossing<'_>> {
        if packet.from == packet.to && packet.translation.is_none() && is_pod(&packet.from) {
            return Vec::new();
        }
        let (from, to) = (self.end(&packet.from), self.end(&packet.to));
        let mut crossings = match (from.node(), to.node()) {
            (None, None) => Vec::new(),
            (Some(node), Some(other)) if node.name == other.name => {
                self.within(node, from, to, packet)
            }
            (Some(first), Some(last)) => {
                let (out, into) = self.between(first, last, from, to, packet);
                vec![
                    crossing(first, inner(from), Some(out), packet),
                    crossing(last, Some(into), inner(to), packet),
                ]
            }
            (Some(node), None) => {
                let out = uplink(node, packet.header.family());
                vec![crossing(node, inner(from), Some(out), packet)]
            }
            (None, Some(node)) => {
                let into = self.entrance(node, packet);
                vec![crossing(node, Some(into), inner(to), packet)]
            }
        };
        let translator = match packet.translation.map(|translation| translation.at) {
            Some(Translator::First) => crossings.first_mut(),
            Some(Translator::Last) => crossings.last_mut(),
            None => None,
        };
        if let (Some(crossing), Some(translation)) = (translator, &packet.translation) {
            crossing.before = packet.header.before(translation);
        }
        // Nodes behind the one that translates see nothing of it; those before it see nothing else.
        if packet
            .translation
            .is_some_and(|translation| translation.at == Translator::Last)
            && let [first, last] = &mut crossings[..]
        {
            first.before = last.before;
            first.header = last.before;
        }

        crossings
    }

    fn end(&self, place: &Place) -> End<'_> {
        match place {
            Place::Pod(name) => self
                .cluster
                .pod(name)
                .and_then(|pod| Some(End::Pod(self.cluster.node(&pod.node)?, pod)))
                .unwrap_or(End::Beyond),
            Place::Node(name) => self.cluster.node(name).map_or(End::Beyond, End::Host),
            Place::Outside => End::Beyond,
        }
    }

    /// Returns the crossings of a packet between two ends of one node. What a host says to itself leaves by `lo` and
    /// comes back by it.
    fn within<'a>(
        &self,
        node: &'a Node,
        from: End<'a>,
        to: End<'a>,
        packet: &Packet,
    ) -> Vec<Crossing<'a>> {
        match (from, to) {
            (End::Host(_), End::Host(_)) => vec![
                crossing(node, None, Some(loopback()), packet),
                crossing(node, Some(loopback()), None, packet),
            ],
            (
                End::Pod(..) | End::Host(_) | End::Beyond,
                End::Pod(..) | End::Host(_) | End::Beyond,
            ) => {
                vec![crossing(node, inner(from), inner(to), packet)]
            }
        }
    }

    /// Returns the device by which a packet leaves one node, and that by which it comes to another: both tunnels where
    /// encryption is on and a pod is an end of the way, else the underlay's.
    fn between(
        &self,
        first: &Node,
        last: &Node,
        from: End<'_>,
        to: End<'_>,
        packet: &Packet,
    ) -> (Device, Device) {
        let has_pod = matches!(from, End::Pod(..)) || matches!(to, End::Pod(..));
        let family = packet.header.family();
        let tunnel = |node: &Node| tunnel(&self.settings(node), family, has_pod);
        match (tunnel(first), tunnel(last)) {
            (Some(out), Some(into)) => (Device::host(out), Device::host(into)),
            (Some(_) | None, Some(_) | None) => {
                let out = match from {
                    End::Host(_) => holder(first, packet.header.source),
                    End::Pod(..) | End::Beyond => None,
                };
                (
                    out.unwrap_or_else(|| uplink(first, family)),
                    self.entrance(last, packet),
                )
            }
        }
    }

    /// Returns the device by which a packet from beyond the mesh, or from another node, comes to a node: the one that
    /// has the address that it was sent to, else the underlay's.
    fn entrance(&self, node: &Node, packet: &Packet) -> Device {
        let sent_to = match &packet.translation {
            Some(translation) if translation.at == Translator::Last => translation.address,
            Some(_) | None => packet.header.destination,
        };

        holder(node, sent_to).unwrap_or_else(|| uplink(node, packet.header.family()))
    }
}

fn is_pod(place: &Place) -> bool {
    match place {
        Place::Pod(_) => true,
        Place::Node(_) | Place::Outside => false,
    }
}

fn crossing<'a>(
    node: &'a Node,
    input: Option<Device>,
    output: Option<Device>,
    packet: &Packet,
) -> Crossing<'a> {
    Crossing {
        node,
        input,
        output,
        before: packet.header,
        header: packet.header,
    }
}

/// Returns the device between a node and the end of a way that it holds; its own processes need none.
fn inner(end: End<'_>) -> Option<Device> {
    match end {
        End::Pod(_, pod) => Some(Device::workload(
            WorkloadEndpoint::host_interface(&pod.name),
            pod.name.clone(),
        )),
        End::Host(_) | End::Beyond => None,
    }
}

fn loopback() -> Device {
    Device::host(name(LOOPBACK))
}

/// Returns the device that has an address.
fn holder(node: &Node, address: std::net::IpAddr) -> Option<Device> {
    node.interfaces
        .iter()
        .find(|interface| interface.addresses.contains(&address))
        .map(|interface| Device::host(interface.name.clone()))
}

/// Returns a node's way to the underlay: the first device that has an address of the family, else the first, else one
/// that nobody named.
fn uplink(node: &Node, family: Family) -> Device {
    let has_family = |interface: &&crate::cluster::Interface| {
        interface
            .addresses
            .iter()
            .any(|address| Family::of(*address) == family)
    };
    let interface = node
        .interfaces
        .iter()
        .find(has_family)
        .or_else(|| node.interfaces.first());

    Device::host(interface.map_or_else(|| name("eth0"), |interface| interface.name.clone()))
}

/// Returns the tunnel device by which a node sends a family, if encryption is on for it. An IPv6 that nobody mentions
/// goes with IPv4, and the other way round.
fn tunnel(settings: &Settings, family: Family, has_pod: bool) -> Option<InterfaceName> {
    if !has_pod && !settings.wireguard_host_encryption_enabled.value {
        return None;
    }
    let (own, other) = match family {
        Family::V4 => (&settings.wireguard_enabled, &settings.wireguard_enabled_v6),
        Family::V6 => (&settings.wireguard_enabled_v6, &settings.wireguard_enabled),
    };
    let device = |family| match family {
        Family::V4 => settings.wireguard_interface_name.value.clone(),
        Family::V6 => settings.wireguard_interface_name_v6.value.clone(),
    };
    let opposite = match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    };
    match (own.value, other.value) {
        (Some(true), _) => Some(device(family)),
        (None, Some(true)) => Some(device(opposite)),
        (Some(false), _) | (None, Some(false) | None) => None,
    }
}

fn name(text: &str) -> InterfaceName {
    text.parse().expect("the constants name interfaces")
}
