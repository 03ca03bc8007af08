//! The records beside each other: blocks, affinities, handles.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Kind, NodeName, Selector,
    resource::{AffinityState, BlockAffinity, IpPool, IpamBlock, IpamConfiguration, IpamHandle},
};

use super::{Facts, Fault, Finding, Repair, Snapshot};
use crate::{
    affinity::Condition,
    allocation::{is_empty, lost, thaw},
    stored::Stored,
};

/// Checks everything that the records say about each other.
pub(super) fn check(
    snapshot: &Snapshot,
    facts: &Facts,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) {
    for (key, error) in &snapshot.unreadable {
        findings.push(Finding::new(
            Fault::Unreadable,
            format!("{key}: {error}"),
            None,
        ));
    }
    for object in &snapshot.marked {
        let repair = Repair::Remove {
            kind: object.kind,
            name: object.metadata.name.clone(),
            at: object.revision().0,
        };
        let subject = object.key().to_string();
        findings.push(Finding::new(Fault::HalfDeleted, subject, Some(repair)));
    }
    overlaps(snapshot, findings);
    for block in snapshot.blocks.values() {
        contents(block, findings);
        owner(snapshot, facts, block, now, findings);
    }
    for affinity in snapshot.affinities.values() {
        stale(snapshot, affinity, findings);
    }
    handles(snapshot, findings);
}

/// Finds blocks inside others. The ranges are in order, each before what lies inside it.
fn overlaps(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let mut around: Option<IpNet> = None;
    for cidr in snapshot.blocks.keys() {
        match around.filter(|larger| larger.contains(cidr)) {
            Some(larger) => {
                let subject = format!("{cidr} is inside {larger}");
                findings.push(Finding::new(Fault::OverlappingBlock, subject, None));
            }
            None => around = Some(*cidr),
        }
    }
}

/// Finds what a block forgot, and what it should have forgotten.
fn contents(block: &Stored<IpamBlock>, findings: &mut Vec<Finding>) {
    let value = &block.value;
    let tidy = Some(Repair::Tidy {
        block: value.cidr,
        at: block.revision().0,
    });
    for ordinal in lost(value) {
        let address = value.address(ordinal).map(|it| it.to_string());
        let subject = address.unwrap_or_else(|| value.cidr.to_string());
        findings.push(Finding::new(Fault::LostAddress, subject, tidy.clone()));
    }
    let used: BTreeSet<usize> = value.allocations.values().copied().collect();
    let numbered = value.sequence_number_for_allocation.keys();
    let is_untidy = used.len() < value.attributes.len()
        || numbered
            .clone()
            .any(|it| !value.allocations.contains_key(it));
    if is_untidy {
        let subject = value.cidr.to_string();
        findings.push(Finding::new(Fault::UntidyBlock, subject, tidy));
    }
}

/// Finds blocks whose owner is gone, unsure, or not allowed to have them.
fn owner(
    snapshot: &Snapshot,
    facts: &Facts,
    block: &Stored<IpamBlock>,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) {
    let cidr = block.value.cidr;
    let pool = facts.pools.iter().find(|pool| has_block(pool, cidr));
    if pool.is_none() {
        let subject = cidr.to_string();
        findings.push(Finding::new(Fault::StrayBlock, subject, None));
    }
    let is_free = {
        let mut value = block.value.clone();
        // What is still cooling down under the longest cool-down counts as used.
        let cooldown = IpamConfiguration::COOLDOWN_MAX;
        thaw(
            &mut value,
            std::time::Duration::from_secs(cooldown.into()),
            now,
        );
        is_empty(&value)
    };
    let Some(node) = &block.value.affinity else {
        if is_free && !block.is_virtual() {
            let repair = Repair::Remove {
                kind: Kind::IPAMBlock,
                name: IpamBlock::object_name(cidr),
                at: block.revision().0,
            };
            let subject = cidr.to_string();
            findings.push(Finding::new(Fault::OrphanBlock, subject, Some(repair)));
        }
        return;
    };
    let Some(labels) = facts.nodes.get(node) else {
        let repair = give_up(node, cidr, Condition::Empty);
        let subject = format!("{cidr} of {node}");
        // Its addresses go first, the affinities last.
        if is_free {
            findings.push(Finding::new(Fault::AbandonedBlock, subject, Some(repair)));
        }
        return;
    };
    let is_selected = pool.is_none_or(|pool| {
        let selector = pool.node_selector.parse::<Selector>();
        selector.is_ok_and(|it| it.matches(labels))
    });
    if !is_selected && is_free {
        let repair = give_up(node, cidr, Condition::Empty);
        let subject = format!("{cidr} of {node}");
        findings.push(Finding::new(Fault::DeselectedBlock, subject, Some(repair)));
        return;
    }
    let is_confirmed = snapshot
        .affinity(node, cidr)
        .is_some_and(|it| it.value.state == AffinityState::Confirmed);
    if !is_confirmed {
        let repair = Repair::Claim {
            node: node.clone(),
            block: cidr,
        };
        let subject = format!("{cidr} of {node}");
        findings.push(Finding::new(Fault::UnconfirmedBlock, subject, Some(repair)));
    }
}

/// Finds affinities to blocks that are not there, or are another's.
fn stale(snapshot: &Snapshot, affinity: &Stored<BlockAffinity>, findings: &mut Vec<Finding>) {
    let BlockAffinity { node, cidr, .. } = &affinity.value;
    let block = snapshot.blocks.get(cidr);
    let is_owner = block.is_some_and(|it| it.value.affinity.as_ref() == Some(node));
    let is_named = affinity.value.name == BlockAffinity::object_name(node, *cidr);
    if is_owner && is_named {
        return;
    }
    let repair = Repair::Remove {
        kind: Kind::BlockAffinity,
        name: affinity.value.name.clone(),
        at: affinity.revision().0,
    };
    let subject = format!("{} of {node}", affinity.value.cidr);
    findings.push(Finding::new(Fault::StaleAffinity, subject, Some(repair)));
}

/// Finds handles that count other addresses than the blocks have.
fn handles(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let mut held: BTreeMap<&str, BTreeMap<IpNet, u32>> = BTreeMap::new();
    for block in snapshot.blocks.values() {
        for index in block.value.allocations.values() {
            let attribute = block.value.attributes.get(*index);
            if let Some(handle) = attribute.and_then(|it| it.handle_id.as_deref()) {
                *held
                    .entry(handle)
                    .or_default()
                    .entry(block.value.cidr)
                    .or_default() += 1;
            }
        }
    }
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    let mut colliding = BTreeSet::new();
    for handle in held
        .keys()
        .copied()
        .chain(snapshot.handles.keys().map(String::as_str))
    {
        let name = IpamHandle::object_name(handle);
        let other = names.insert(name, handle).filter(|other| *other != handle);
        if let Some(other) = other {
            colliding.extend([handle, other]);
            let subject = format!("{handle} and {other}");
            findings.push(Finding::new(Fault::CollidingHandle, subject, None));
        }
    }
    let ids: BTreeSet<&str> = held.keys().copied().collect();
    let recorded = snapshot.handles.keys().map(String::as_str);
    for id in ids.into_iter().chain(recorded).collect::<BTreeSet<_>>() {
        let stored = snapshot.handles.get(id);
        let blocks = held.get(id).cloned().unwrap_or_default();
        let counted = stored.map(|it| it.value.blocks.clone());
        if id == crate::handle::WINDOWS_RESERVED
            || colliding.contains(id)
            || (counted.as_ref() == Some(&blocks) && !blocks.is_empty())
        {
            continue;
        }
        let repair = Repair::CountHandle {
            id: id.to_owned(),
            at: stored.map(|it| it.revision().0),
            blocks,
        };
        findings.push(Finding::new(Fault::WrongHandle, id, Some(repair)));
    }
}

fn give_up(node: &NodeName, block: IpNet, condition: Condition) -> Repair {
    Repair::GiveUp {
        node: node.clone(),
        block,
        condition,
    }
}

fn has_block(pool: &IpPool, cidr: IpNet) -> bool {
    pool.cidr.contains(&cidr) && pool.block_size == cidr.prefix_len()
}
