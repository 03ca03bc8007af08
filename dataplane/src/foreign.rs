//! Other programs' packet filters: what they drop of ours, and the places where they let others add rules.
//!
//! An *accept* in a chain of ours overrides nobody's *drop*: each base chain of a hook has its say. So the
//! rulesets of others are read, packets as ours are followed through them (see [`verdict`]), and what is
//! dropped on every way through is reported by table and chain. Only a ruleset's rules are read, never the
//! packets; a drop that depends on marks or limits is not *sure* and not reported, and one that depends on
//! addresses where it takes one of a few examples.
//!
//! Not seen: rules of the legacy iptables program, which the kernel keeps apart; `netdev`, `bridge` and
//! BPF programs.

mod firewalld;
mod opening;
mod packet;
mod rule;
mod ruleset;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Family, InterfaceName,
    firewall::{Course, ExtensionPoint, Firewalls, ForeignDrop},
};

use self::{
    packet::Packet,
    ruleset::{Base, Table, TableKey},
    verdict::Walk,
};
use crate::netlink::{NetlinkError, Socket};

pub use self::opening::{OpeningError, OpeningTarget};
pub(crate) use self::{firewalld::Firewalld, packet::Example};

/// `NFPROTO_INET`, `NFPROTO_IPV4` and `NFPROTO_IPV6` of linux/netfilter.h.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Where our packets go on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Tunnel devices and their UDP ports.
    pub(crate) tunnels: BTreeMap<InterfaceName, u16>,
    /// Devices to the other machines.
    pub(crate) underlay: BTreeSet<InterfaceName>,
    /// Those of them that have an address, to which a peer may send.
    pub(crate) addressed: BTreeSet<InterfaceName>,
    /// Addresses that are tried, a few of each kind.
    pub(crate) examples: BTreeSet<Example>,
}

/// Reads the rulesets and follows our packets through them.
pub(crate) fn examine(socket: &mut Socket, ways: &Ways) -> Result<Firewalls, NetlinkError> {
    let tables = ruleset::read(socket)?;
    let packets = ways.packets();
    let mut drops = BTreeSet::new();
    for (key, table) in &tables {
        for packet in &packets {
            // Some of them are dropped where not all are.
            let examples = ways.examples.iter();
            let examples = examples.filter_map(|example| packet.between(*example));
            let mut known = std::iter::once(packet.clone()).chain(examples);
            drops.extend(known.find_map(|packet| dropped(key, table, &packet)));
        }
    }
    let docker = |family: Family| {
        let table = tables.get(&(family_code(family), opening::DOCKER_TABLE.to_owned()))?;
        let is_there = table.chains.contains_key(opening::DOCKER_CHAIN);

        is_there.then_some(ExtensionPoint::DockerUser(family))
    };

    Ok(Firewalls {
        extension_points: Family::BOTH.into_iter().filter_map(docker).collect(),
        drops,
    })
}

impl Ways {
    fn packets(&self) -> Vec<Packet> {
        let mut packets = Vec::new();
        for (tunnel, port) in &self.tunnels {
            for family in Family::BOTH {
                for course in Course::ALL {
                    // What is forwarded between tunnel and pod meets no underlay device.
                    let devices = self.underlay.iter();
                    let devices = devices.take(if course.is_outer() { usize::MAX } else { 1 });
                    packets.extend(
                        devices.map(|device| Packet::new(course, family, tunnel, device, *port)),
                    );
                }
            }
        }

        packets
    }
}

/// Returns where a table drops the packet whatever else it carries.
fn dropped((code, name): &TableKey, table: &Table, packet: &Packet) -> Option<ForeignDrop> {
    let word = match *code {
        INET => "inet",
        IPV4 if packet.family == Family::V4 => "ip",
        IPV6 if packet.family == Family::V6 => "ip6",
        _ => return None,
    };
    let walk = Walk::new(table, packet);
    let bases = table
        .chains
        .iter()
        .filter_map(|(chain, content)| Some((chain, content.base?)));
    let (chain, base, culprit) = bases
        .filter(|(_, base)| packet.hooks().contains(&base.hook))
        .find_map(|(chain, base)| Some((chain, base, culprit(&walk, chain, base)?)))?;

    Some(ForeignDrop {
        course: packet.course,
        family: packet.family,
        table: format!("{word} {name}"),
        chain: culprit,
        base: format!(
            "chain {chain}, hook {}, priority {}",
            hook_name(base.hook),
            base.priority
        ),
    })
}

/// Returns the chain that drops what enters a base chain, where nothing gets through.
fn culprit<'a>(walk: &Walk<'a>, chain: &'a str, base: Base) -> Option<String> {
    let fate = walk.chain(chain, 0);
    let gets_through = fate.accepted || fate.passed && !base.drops;

    (!gets_through).then(|| fate.dropped.unwrap_or_else(|| chain.to_owned()))
}

fn family_code(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// Returns the name of a hook (`enum nf_inet_hooks`).
fn hook_name(hook: u32) -> &'static str {
    match hook {
        0 => "prerouting",
        1 => "input",
        2 => "forward",
        3 => "output",
        _ => "postrouting",
    }
}
