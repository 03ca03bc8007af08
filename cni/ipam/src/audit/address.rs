//! Addresses beside those who hold them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    NodeName, PodName,
    resource::{IpamBlock, ip_pool::AllowedUse, ipam_block::Attribute},
};

use super::{Facts, Fault, Finding, Repair, Snapshot};
use crate::{allocation::owner, handle::WINDOWS_RESERVED, stored::Stored};

/// Who holds an address, as far as the block says.
enum HolderKind {
    /// A pod.
    Pod(PodName),
    /// A tunnel device of a node.
    Tunnel,
    /// Something that the block does not describe: taken for valid as long as its node is there.
    Other,
}

/// One allocation.
struct Allocation<'a> {
    block: &'a IpamBlock,
    address: IpAddr,
    ordinal: u32,
    attribute: &'a Attribute,
}

/// Whether an allocation is in use.
#[derive(PartialEq)]
enum State {
    Used,
    Leaked,
    /// Its node is gone.
    Vanished,
    /// Its node is gone; a tunnel's address goes last.
    VanishedTunnel,
}

/// Checks every allocation, and every address that a pod says it has.
pub(super) fn check(snapshot: &Snapshot, facts: &Facts, findings: &mut Vec<Finding>) {
    let mut by_handle: BTreeMap<&str, Vec<(Allocation<'_>, State)>> = BTreeMap::new();
    for allocation in snapshot.blocks.values().flat_map(allocations) {
        let Some(handle) = allocation.attribute.handle_id.as_deref() else {
            continue;
        };
        if handle != WINDOWS_RESERVED {
            let state = allocation.state(facts);
            by_handle
                .entry(handle)
                .or_default()
                .push((allocation, state));
        }
    }
    let used_by_node = busy_nodes(&by_handle);
    for allocations in by_handle.values() {
        // The addresses of one handle are one holder's: it is gone with all of them, or not at all.
        if allocations.iter().any(|(_, state)| *state == State::Used) {
            continue;
        }
        for (allocation, state) in allocations {
            let fault = match state {
                State::Used | State::Leaked => Fault::LeakedAddress,
                State::Vanished => Fault::VanishedNode,
                State::VanishedTunnel if allocation.is_last_of(&used_by_node) => {
                    Fault::VanishedNode
                }
                State::VanishedTunnel => continue,
            };
            findings.push(allocation.finding(fault));
        }
    }
    pods(snapshot, facts, findings);
}

/// Returns the nodes on which somebody else than a tunnel device holds an address.
fn busy_nodes(by_handle: &BTreeMap<&str, Vec<(Allocation<'_>, State)>>) -> BTreeSet<String> {
    by_handle
        .values()
        .flatten()
        .filter(|(_, state)| *state != State::VanishedTunnel)
        .filter_map(|(allocation, _)| allocation.attribute.secondary.get("node").cloned())
        .collect()
}

/// Checks the addresses that pods say they have.
fn pods(snapshot: &Snapshot, facts: &Facts, findings: &mut Vec<Finding>) {
    let mut holders: BTreeMap<IpAddr, &PodName> = BTreeMap::new();
    for (pod, fact) in &facts.pods {
        for address in fact.addresses.iter().flatten() {
            if let Some(other) = holders.insert(*address, pod) {
                let subject = format!("{address} of {other} and {pod}");
                findings.push(Finding::new(Fault::SharedAddress, subject, None));
            }
            findings.extend(unassigned(snapshot, facts, pod, *address));
        }
    }
}

/// Says whether a pod's address is assigned to it.
fn unassigned(
    snapshot: &Snapshot,
    facts: &Facts,
    pod: &PodName,
    address: IpAddr,
) -> Option<Finding> {
    let is_ours = |pool: &&model::resource::IpPool| {
        pool.cidr.contains(&address) && pool.allowed_uses.contains(&AllowedUse::Workload)
    };
    let pool = facts.pools.iter().find(is_ours)?;
    let cidr = ipnet::IpNet::new(address, pool.block_size).ok()?.trunc();
    let block = snapshot.blocks.get(&cidr);
    let holder = block.and_then(|it| owner(&it.value, it.value.ordinal(address)?));
    let fault = match holder.filter(|it| it.handle_id.is_some()) {
        None => Fault::UnassignedAddress,
        Some(holder) => match kind(holder) {
            HolderKind::Pod(other) if other == *pod => return None,
            HolderKind::Pod(_) | HolderKind::Tunnel => Fault::StolenAddress,
            HolderKind::Other => return None,
        },
    };

    Some(Finding::new(fault, format!("{address} of {pod}"), None))
}

/// Returns the allocations of a block.
fn allocations(block: &Stored<IpamBlock>) -> impl Iterator<Item = Allocation<'_>> {
    let block = &block.value;

    block.allocations.keys().filter_map(move |ordinal| {
        Some(Allocation {
            block,
            address: block.address(*ordinal)?,
            ordinal: *ordinal,
            attribute: owner(block, *ordinal)?,
        })
    })
}

/// Returns who holds an address, as far as its attributes say.
fn kind(attribute: &Attribute) -> HolderKind {
    let read = |name: &str| attribute.secondary.get(name).map(String::as_str);
    if read("type").is_some_and(|it| it.ends_with("TunnelAddress")) {
        return HolderKind::Tunnel;
    }
    match (read("namespace"), read("pod")) {
        (Some(namespace), Some(name)) => HolderKind::Pod(PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        (Some(_) | None, _) => HolderKind::Other,
    }
}

impl Allocation<'_> {
    /// Returns whether the allocation is in use.
    fn state(&self, facts: &Facts) -> State {
        let node = self.attribute.secondary.get("node");
        let kind = kind(self.attribute);
        let node = node.and_then(|it| it.parse::<NodeName>().ok());
        if let Some(node) = &node
            && !facts.nodes.contains_key(node)
        {
            return match kind {
                HolderKind::Tunnel => State::VanishedTunnel,
                HolderKind::Pod(_) | HolderKind::Other => State::Vanished,
            };
        }
        let is_used = match kind {
            HolderKind::Other => true,
            HolderKind::Tunnel => node.is_none_or(|node| {
                let addresses = facts.tunnels.get(&node);
                addresses.is_some_and(|it| it.contains(&self.address))
            }),
            HolderKind::Pod(pod) => facts.pods.get(&pod).is_some_and(|fact| {
                let has_it = fact
                    .addresses
                    .as_ref()
                    .is_none_or(|it| it.contains(&self.address));
                has_it && node.is_none_or(|node| node == fact.node)
            }),
        };
        if is_used { State::Used } else { State::Leaked }
    }

    fn is_last_of(&self, busy: &BTreeSet<String>) -> bool {
        let node = self.attribute.secondary.get("node");

        node.is_none_or(|node| !busy.contains(node))
    }

    fn finding(&self, fault: Fault) -> Finding {
        let handle = self.attribute.handle_id.clone();
        let numbers = &self.block.sequence_number_for_allocation;
        let subject = format!(
            "{} of {}",
            self.address,
            handle.as_deref().unwrap_or("nobody")
        );
        let repair = Repair::Release {
            block: self.block.cidr,
            address: self.address,
            handle,
            sequence_number: numbers.get(&self.ordinal).copied(),
        };

        Finding::new(fault, subject, Some(repair))
    }
}
