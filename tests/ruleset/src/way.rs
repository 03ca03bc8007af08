//! A packet's way through nodes of one interface each, and back: the simulator's answer to what the evaluator is
//! asked.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    NodeName,
    constant::{PASS_MARK, TUNNEL_DEVICE},
    nft::HookPoint,
    policy::Protocol,
    resource::WorkloadEndpoint,
};

use super::simulator::{Seen, Tracked, pass};
use policy::{
    cluster::Cluster,
    compile::{Ruleset, Scene, compile},
    packet::{Header, Packet, Place, Translator},
};

/// The one interface of every node.
pub(super) const UPLINK: &str = "eth0";

/// The rulesets of all nodes.
#[derive(Debug)]
pub struct Machines<'a> {
    cluster: &'a Cluster,
    rows: BTreeMap<NodeName, Ruleset>,
}

/// One node on a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The node.
    pub node: NodeName,
    /// The device by which it comes; `None` if a process of the node sends it.
    pub iif: Option<String>,
    /// The device by which it leaves; `None` if a process of the node is to get it.
    pub oif: Option<String>,
    /// What it says before the node translates its destination.
    pub before: Header,
    /// What it says afterwards.
    pub header: Header,
}

impl<'a> Machines<'a> {
    /// Compiles every node's ruleset.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self::with(cluster, |rows| rows)
    }

    /// Returns every node's ruleset.
    pub const fn rulesets(&self) -> &BTreeMap<NodeName, Ruleset> {
        &self.rows
    }

    /// Compiles every node's ruleset, and takes what becomes of it on the way to the kernel and back.
    pub fn with(cluster: &'a Cluster, mut through: impl FnMut(Ruleset) -> Ruleset) -> Self {
        let rows = cluster.nodes.iter().map(|node| {
            let compiled = compile(&Scene::of_node(cluster, &node.name));
            assert_eq!(compiled.refused, BTreeMap::new());

            (node.name.clone(), through(compiled.rows))
        });

        Self {
            cluster,
            rows: rows.collect(),
        }
    }

    /// Returns whether a packet gets to where it goes and an answer back, and what it met.
    pub fn pass(&self, packet: &Packet) -> (bool, Vec<String>) {
        let hops = self.hops(packet);
        let (mut trace, mut untracked) = (Vec::new(), Vec::new());
        for hop in &hops {
            match self.cross(hop, Tracked::New, 0, &mut trace) {
                Some(is_untracked) => untracked.push(is_untracked),
                None => return (false, trace),
            }
        }
        for (hop, is_untracked) in hops.iter().zip(untracked).rev() {
            let hop = hop.back();
            let state = match (is_untracked, knows_answers(packet.header.protocol)) {
                (false, _) => Tracked::Established,
                (true, true) => Tracked::Invalid,
                (true, false) => Tracked::New,
            };
            trace.push("and back".to_owned());
            if self.cross(&hop, state, 0, &mut trace).is_none() {
                return (false, trace);
            }
        }

        (true, trace)
    }

    /// Returns whether a packet of a connection that is there gets to where it goes, with this mark on the
    /// connection.
    pub fn pass_established(&self, packet: &Packet, ct_mark: u32) -> bool {
        self.hops(packet).iter().all(|hop| {
            self.cross(hop, Tracked::Established, ct_mark, &mut Vec::new())
                .is_some()
        })
    }

    /// Returns whether an answer on a connection that is there gets back, with this mark on the connection.
    pub fn answer_established(&self, packet: &Packet, ct_mark: u32) -> bool {
        self.hops(packet).iter().rev().all(|hop| {
            self.cross(&hop.back(), Tracked::Established, ct_mark, &mut Vec::new())
                .is_some()
        })
    }

    /// Returns whether a packet that belongs to no connection, and opens none, gets to where it goes.
    pub fn pass_stray(&self, packet: &Packet) -> bool {
        self.hops(packet).iter().all(|hop| {
            self.cross(hop, Tracked::Invalid, 0, &mut Vec::new())
                .is_some()
        })
    }

    /// Returns whether a packet that opens a connection gets to where it goes.
    pub fn pass_new(&self, packet: &Packet) -> bool {
        self.hops(packet)
            .iter()
            .all(|hop| self.cross(hop, Tracked::New, 0, &mut Vec::new()).is_some())
    }

    /// Walks a packet through the hooks of one node; returns whether it is untracked behind them, if it passes.
    fn cross(
        &self,
        hop: &Hop,
        state: Tracked,
        ct_mark: u32,
        trace: &mut Vec<String>,
    ) -> Option<bool> {
        let rows = &self.rows[&hop.node];
        let mut seen = Seen {
            iif: hop.iif.clone(),
            oif: None,
            header: hop.before,
            state: None,
            ct_mark,
            dnat: hop.before != hop.header,
            from_host: hop.iif.is_none(),
            to_host: hop.oif.is_none(),
            // Whatever others have left there, or nothing.
            mark: match hop.header.ports {
                Some(ports) if ports.source % 2 == 1 => 0,
                Some(_) | None => u32::MAX,
            },
            trace: vec![format!("{hop:?}")],
        };
        let passes = self.hooks(hop, state, rows, &mut seen);
        trace.append(&mut seen.trace);

        passes.then_some(seen.state == Some(Tracked::Untracked))
    }

    fn hooks(&self, hop: &Hop, state: Tracked, rows: &Ruleset, seen: &mut Seen) -> bool {
        const TRACKING: i32 = -200;
        const TRANSLATION: i32 = -100;
        let early = i32::MIN..TRACKING;
        let tracked = |seen: &mut Seen| {
            seen.state = seen.state.or(Some(state));
        };
        match &hop.iif {
            Some(_) => {
                if !pass(rows, &HookPoint::Prerouting, early, seen) {
                    return false;
                }
                tracked(seen);
                if !pass(rows, &HookPoint::Prerouting, TRACKING..TRANSLATION, seen) {
                    return false;
                }
                seen.header = hop.header;
                let before = seen.mark;
                if !pass(rows, &HookPoint::Prerouting, TRANSLATION..i32::MAX, seen) {
                    return false;
                }
                let trace = &seen.trace;
                assert_eq!(seen.mark & !before, 0, "routing sees a mark: {trace:?}");
                assert_eq!((seen.mark ^ before) & !PASS_MARK, 0, "not ours: {trace:?}");
                seen.oif.clone_from(&hop.oif);
                let point = match hop.oif {
                    Some(_) => HookPoint::Forward,
                    None => HookPoint::Input,
                };
                if !pass(rows, &point, i32::MIN..i32::MAX, seen) {
                    return false;
                }
            }
            None => {
                seen.oif.clone_from(&hop.oif);
                if !pass(rows, &HookPoint::Output, early, seen) {
                    return false;
                }
                tracked(seen);
                seen.header = hop.header;
                if !pass(rows, &HookPoint::Output, TRANSLATION..i32::MAX, seen) {
                    return false;
                }
            }
        }
        if hop.oif.is_none() {
            return true;
        }
        if hop.iif.is_some() {
            // `meta iifname` is still there; nothing of ours asks for it behind the forward hook.
            seen.iif = None;
        }

        pass(rows, &HookPoint::Postrouting, i32::MIN..i32::MAX, seen)
    }

    /// Returns the nodes that a packet crosses, in order.
    pub fn hops(&self, packet: &Packet) -> Vec<Hop> {
        let hop = |node: &NodeName, iif: Option<String>, oif: Option<String>| Hop {
            node: node.clone(),
            iif,
            oif,
            before: packet.header,
            header: packet.header,
        };
        let (from, to) = (&packet.from, &packet.to);
        let uplink = || Some(UPLINK.to_owned());
        let mut hops = match (self.node(from), self.node(to)) {
            (Some(a), Some(b)) if a == b => match (from, to) {
                (Place::Node(_), Place::Node(_)) => {
                    let lo = || Some("lo".to_owned());
                    vec![hop(&a, None, lo()), hop(&a, lo(), None)]
                }
                _ if from == to && packet.translation.is_none() => Vec::new(),
                _ => vec![hop(&a, device(from), device(to))],
            },
            (Some(a), Some(b)) => {
                let has_pod = [from, to].iter().any(|end| matches!(end, Place::Pod(_)));
                let between = if has_pod && self.is_encrypted() {
                    Some(TUNNEL_DEVICE.to_owned())
                } else {
                    uplink()
                };
                vec![
                    hop(&a, device(from), between.clone()),
                    hop(&b, between, device(to)),
                ]
            }
            (Some(a), None) => vec![hop(&a, device(from), uplink())],
            (None, Some(b)) => vec![hop(&b, uplink(), device(to))],
            (None, None) => Vec::new(),
        };
        if let Some(translation) = &packet.translation {
            let before = packet.header.before(translation);
            match translation.at {
                Translator::First => hops[0].before = before,
                Translator::Last => {
                    let last = hops.len() - 1;
                    for earlier in &mut hops[..last] {
                        (earlier.before, earlier.header) = (before, before);
                    }
                    hops[last].before = before;
                }
            }
        }

        hops
    }

    fn is_encrypted(&self) -> bool {
        let mut settings = self.cluster.configurations.iter();

        settings.any(|settings| settings.wireguard_enabled == Some(true))
    }

    fn node(&self, place: &Place) -> Option<NodeName> {
        match place {
            Place::Pod(name) => self.cluster.pod(name).map(|pod| pod.node.clone()),
            Place::Node(name) => Some(name.clone()),
            Place::Outside => None,
        }
    }
}

impl Hop {
    /// Returns the same node on an answer's way.
    pub fn back(&self) -> Self {
        let back = self.header.reversed();

        Self {
            node: self.node.clone(),
            iif: self.oif.clone(),
            oif: self.iif.clone(),
            before: back,
            header: back,
        }
    }
}

/// The device between a node and one of its pods.
fn device(place: &Place) -> Option<String> {
    match place {
        Place::Pod(name) => Some(WorkloadEndpoint::host_interface(name).as_str().to_owned()),
        Place::Node(_) | Place::Outside => None,
    }
}

/// Whether the kernel knows an answer of this protocol from a question.
fn knows_answers(protocol: Protocol) -> bool {
    [1, 6, 58, 132].contains(&protocol.0)
}

/// Reads an address.
pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
