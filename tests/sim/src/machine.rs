//! A machine: what of a plan is in its kernel, and what that kernel does with a packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, Plan, PublicKey,
    nft::{
        Chain, ChainKey, ChainKind, Element, HookPoint, Match, NftFamily, Policy, Sense, SetKey,
        Statement,
    },
    plan::{Peer, Route, RouteKey, RouteVia, RuleKey, Tunnel},
};

use crate::packet::Packet;

/// The underlay device of every machine.
pub const UNDERLAY: &str = "eth0";

/// How many stages a pass over the plan has.
pub const STAGES: usize = 8;

/// The rows that decide about packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// nftables elements.
    pub elements: BTreeSet<(SetKey, Element)>,
    /// nftables chains.
    pub chains: BTreeMap<ChainKey, Chain>,
    /// WireGuard devices.
    pub tunnels: BTreeMap<InterfaceName, Tunnel>,
    /// WireGuard peers.
    pub peers: BTreeMap<(InterfaceName, PublicKey), Peer>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Rules.
    pub rules: BTreeSet<RuleKey>,
}

/// A kernel, and the pass that changes it.
#[derive(Debug, Default)]
pub struct Machine {
    /// What is in the kernel.
    pub rows: Rows,
    pass: Option<Pass>,
}

#[derive(Debug)]
struct Pass {
    target: Rows,
    generation: u64,
    stage: usize,
}

/// Where the routes send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of a device of ours.
    Device(InterfaceName),
    /// Onto the underlay.
    Underlay,
    /// Nowhere.
    Nowhere,
}

impl Rows {
    /// Copies the rows of a plan.
    pub fn of(plan: &Plan) -> Self {
        Self {
            elements: plan.nft_elements.rows().keys().cloned().collect(),
            chains: plan.nft_chains.rows().clone(),
            tunnels: plan.tunnels.rows().clone(),
            peers: plan.peers.rows().clone(),
            routes: plan.routes.rows().clone(),
            rules: plan.rules.rows().keys().cloned().collect(),
        }
    }
}

impl Machine {
    /// Returns whether a pass is under way.
    pub fn is_busy(&self) -> bool {
        self.pass.is_some()
    }

    /// Begins a pass towards the plan as it is now.
    pub fn begin(&mut self, plan: &mut Plan) {
        let target = Rows::of(plan);
        self.pass = Some(Pass {
            target,
            generation: plan.generation,
            stage: 0,
        });
    }

    /// Takes the pass one stage further; returns the generation when it is through.
    ///
    /// Every set in the order nftables, devices, peers, routes, rules; then every unset in the
    /// opposite order.
    pub fn advance(&mut self) -> Option<u64> {
        let pass = self.pass.as_mut()?;
        let (rows, target) = (&mut self.rows, &pass.target);
        match pass.stage {
            0 => {
                rows.elements.extend(target.elements.iter().cloned());
                add(&mut rows.chains, &target.chains);
            }
            1 => add(&mut rows.tunnels, &target.tunnels),
            2 => add(&mut rows.peers, &target.peers),
            3 => add(&mut rows.routes, &target.routes),
            4 => rows.rules.extend(target.rules.iter().cloned()),
            5 => {
                rows.rules.clone_from(&target.rules);
                rows.routes.clone_from(&target.routes);
            }
            6 => {
                rows.peers.clone_from(&target.peers);
                rows.tunnels.clone_from(&target.tunnels);
            }
            _ => {
                rows.elements.clone_from(&target.elements);
                rows.chains.clone_from(&target.chains);
                let generation = pass.generation;
                self.pass = None;
                return Some(generation);
            }
        }
        pass.stage += 1;

        None
    }

    /// Forgets the pass under way: the agent died.
    pub fn interrupt(&mut self) {
        self.pass = None;
    }

    /// Returns which way a packet takes.
    pub fn route(&self, packet: &Packet) -> Way {
        let mut rules: Vec<_> = self
            .rows
            .rules
            .iter()
            .filter(|rule| rule.family == packet.family())
            .collect();
        rules.sort_by_key(|rule| rule.priority);
        let tables = rules
            .into_iter()
            .filter(|rule| rule.source.is_none_or(|net| net.contains(&packet.source)))
            .map(|rule| rule.table)
            .chain([254]);
        for table in tables {
            match self.lookup(table, packet.destination) {
                None | Some(RouteVia::Throw) => {}
                Some(RouteVia::Device(device)) => return Way::Device(device.clone()),
                Some(RouteVia::Gateway(_)) => return Way::Underlay,
                Some(RouteVia::Unreachable | RouteVia::Blackhole) => return Way::Nowhere,
            }
        }

        Way::Underlay
    }

    fn lookup(&self, table: u32, destination: IpAddr) -> Option<&RouteVia> {
        let routes = self.rows.routes.iter();

        routes
            .filter(|(key, _)| key.table == table && key.destination.contains(&destination))
            .max_by_key(|(key, _)| (key.destination.prefix_len(), u32::MAX - key.metric))
            .map(|(_, route)| &route.via)
    }

    /// Returns the peer that gets packets to this address on a device.
    pub fn peer_for(&self, device: &InterfaceName, address: IpAddr) -> Option<(&PublicKey, &Peer)> {
        let peers = self.rows.peers.iter().filter(|((on, _), _)| on == device);

        peers
            .filter_map(|((_, key), peer)| {
                let nets = peer.allowed_ips.iter().filter(|net| net.contains(&address));
                nets.map(IpNet::prefix_len)
                    .max()
                    .map(|length| (length, key, peer))
            })
            .max_by_key(|(length, ..)| *length)
            .map(|(_, key, peer)| (key, peer))
    }

    /// Returns why nftables drops a packet that leaves by a device; `None` when it passes.
    pub fn drops_out(&self, packet: &Packet, device: &str) -> Option<String> {
        let seen = Seen {
            packet,
            iif: None,
            oif: Some(device),
        };
        let barrier = |hook: &HookPoint| matches!(hook, HookPoint::Postrouting);
        let is_there = |devices: &[InterfaceName]| devices.iter().any(|d| d.as_str() == device);
        let egress =
            |hook: &HookPoint| matches!(hook, HookPoint::Egress(devices) if is_there(devices));

        self.verdict(NftFamily::Inet, barrier, &seen)
            .or_else(|| self.verdict(NftFamily::Netdev, egress, &seen))
    }

    /// Returns why nftables drops a packet that comes in by a device; `None` when it passes.
    pub fn drops_in(&self, packet: &Packet, device: &str) -> Option<String> {
        let seen = Seen {
            packet,
            iif: Some(device),
            oif: None,
        };
        let is_there = |devices: &[InterfaceName]| devices.iter().any(|d| d.as_str() == device);
        let ingress =
            |hook: &HookPoint| matches!(hook, HookPoint::Ingress(devices) if is_there(devices));

        self.verdict(NftFamily::Netdev, ingress, &seen)
    }

    fn verdict(
        &self,
        table: NftFamily,
        at: impl Fn(&HookPoint) -> bool,
        seen: &Seen,
    ) -> Option<String> {
        let chains = self
            .rows
            .chains
            .iter()
            .filter(|(key, _)| key.table == table);
        for (key, chain) in chains {
            let Some(hook) = chain.hook.as_ref().filter(|hook| at(&hook.point)) else {
                continue;
            };
            if hook.kind == ChainKind::Nat {
                continue;
            }
            let rule = chain.rules.iter().find(|rule| {
                rule.statement != Statement::Continue
                    && rule.matches.iter().all(|m| self.holds(table, m, seen))
            });
            match rule.map(|rule| (&rule.statement, &rule.comment)) {
                Some((Statement::Accept | Statement::Return, _)) => {}
                Some((Statement::Drop, comment)) => return Some(comment.to_string()),
                Some((statement, _)) => panic!("{statement:?} in {key:?}"),
                None if hook.policy == Policy::Drop => return Some("policy".into()),
                None => {}
            }
        }

        None
    }

    fn holds(&self, table: NftFamily, condition: &Match, seen: &Seen) -> bool {
        let is = |sense: &Sense, fact: bool| (*sense == Sense::Is) == fact;
        let packet = seen.packet;
        let in_set = |name: &str, element: &dyn Fn(&Element) -> bool| {
            let key = SetKey {
                table,
                name: name.into(),
            };
            let rows = self.rows.elements.range((key.clone(), LOWEST)..);
            rows.take_while(|(set, _)| *set == key)
                .any(|(_, e)| element(e))
        };
        let holds_address = |name: &str, family: Family, address: IpAddr| {
            Family::of(address) == family
                && in_set(name, &|element| match element {
                    Element::Net(net) => net.contains(&address),
                    Element::Address(one) => *one == address,
                    Element::Interface(_)
                    | Element::InterfaceAddress(..)
                    | Element::Ports(..)
                    | Element::AddressPort(..)
                    | Element::InterfaceVerdict(..) => false,
                })
        };
        let family = packet.family();
        match condition {
            Match::Iif(sense, name) => is(sense, seen.iif == Some(name.as_str())),
            Match::IifPrefix(sense, prefix) => is(
                sense,
                seen.iif.is_some_and(|iif| iif.starts_with(prefix.as_str())),
            ),
            Match::Oif(sense, name) => is(sense, seen.oif == Some(name.as_str())),
            Match::OifPrefix(sense, prefix) => is(
                sense,
                seen.oif.is_some_and(|oif| oif.starts_with(prefix.as_str())),
            ),
            Match::OifSet(sense, name) => is(
                sense,
                in_set(name, &|element| match element {
                    Element::Interface(name) => Some(name.as_str()) == seen.oif,
                    Element::Net(_)
                    | Element::Address(_)
                    | Element::InterfaceAddress(..)
                    | Element::Ports(..)
                    | Element::AddressPort(..)
                    | Element::InterfaceVerdict(..) => false,
                }),
            ),
            Match::Family(of) => family == *of,
            // A condition on one family's header never holds for a packet of the other.
            Match::Source(sense, of, name) => {
                family == *of && is(sense, holds_address(name, *of, packet.source))
            }
            Match::Destination(sense, of, name) => {
                family == *of && is(sense, holds_address(name, *of, packet.destination))
            }
            Match::SourceNet(sense, net) => is(sense, net.contains(&packet.source)),
            Match::DestinationNet(sense, net) => is(sense, net.contains(&packet.destination)),
            // The packets here are TCP, without mark, and no answers.
            Match::Protocol(sense, number) => is(sense, *number == 6),
            Match::CtReply | Match::CtDnat | Match::Icmpv6Type(_) | Match::DestinationPort(_) => {
                false
            }
            Match::IifSet(..)
            | Match::SourceOnInterface(..)
            | Match::Mark { .. }
            | Match::Icmp(..)
            | Match::Port(..)
            | Match::PortSet(..)
            | Match::AddressPort(..)
            | Match::CtMark { .. }
            | Match::CtState(_)
            | Match::CtOriginalDestination(..)
            | Match::DestinationLocal
            | Match::DestinationElsewhere(_)
            | Match::Detour(_)
            | Match::SourceLocal => {
                panic!("no packet of the simulation asks for {condition:?}")
            }
        }
    }
}

/// The least element that a set can have.
const LOWEST: Element = Element::Net(IpNet::V4(ipnet::Ipv4Net::new_assert(
    std::net::Ipv4Addr::UNSPECIFIED,
    0,
)));

struct Seen<'a> {
    packet: &'a Packet,
    iif: Option<&'a str>,
    oif: Option<&'a str>,
}

fn add<K: Ord + Clone, V: Clone>(rows: &mut BTreeMap<K, V>, target: &BTreeMap<K, V>) {
    rows.extend(target.iter().map(|(key, row)| (key.clone(), row.clone())));
}
