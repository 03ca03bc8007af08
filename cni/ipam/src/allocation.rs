//! The addresses of one block: taken, given back, cooling down.
//!
//! These change a block in memory; whoever writes it raises its sequence
//! number. `unallocated` is a queue: what has been free longest goes first.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use model::{
    NodeName,
    resource::{IpamBlock, IpamConfiguration, ipam_block::Attribute},
};

use crate::{
    block::{attribute, prune},
    handle::WINDOWS_RESERVED,
};

/// Who is to hold addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// By what they are given back.
    pub handle: String,
    /// What is noted about the holder.
    pub attributes: BTreeMap<String, String>,
}

/// What became of an address that was asked for by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exact {
    /// It is the holder's now; the block is to be written.
    Taken,
    /// It was the holder's before.
    Held,
    /// Somebody else has it.
    HeldBy(Option<String>),
    /// It was given back a short while ago.
    Cooling,
}

/// Takes up to `count` addresses, those that have been free longest first.
///
/// Those that `is_reserved` are passed over and keep their place.
pub fn take(
    block: &mut IpamBlock,
    count: usize,
    holder: &Holder,
    is_reserved: impl Fn(IpAddr) -> bool,
) -> Vec<IpAddr> {
    let mut taken = Vec::new();
    let mut kept = Vec::with_capacity(block.unallocated.len());
    for ordinal in std::mem::take(&mut block.unallocated) {
        let address = block.address(ordinal);
        match address.filter(|it| taken.len() < count && !is_reserved(*it)) {
            Some(address) => taken.push((ordinal, address)),
            None => kept.push(ordinal),
        }
    }
    block.unallocated = kept;
    for (ordinal, _) in &taken {
        note(block, *ordinal, holder.attribute());
    }

    taken.into_iter().map(|(_, address)| address).collect()
}

/// Takes one address, reserved or not; `None` when it lies outside the block.
pub fn take_exact(block: &mut IpamBlock, address: IpAddr, holder: &Holder) -> Option<Exact> {
    let ordinal = block.ordinal(address)?;
    if let Some(owner) = owner(block, ordinal) {
        return Some(match &owner.handle_id {
            None if owner.released_at.is_some() => Exact::Cooling,
            Some(handle) if *handle == holder.handle => Exact::Held,
            held => Exact::HeldBy(held.clone()),
        });
    }
    block.unallocated.retain(|free| *free != ordinal);
    note(block, ordinal, holder.attribute());

    Some(Exact::Taken)
}

/// Gives an address back: at once, or after it has cooled down.
pub fn give_back(block: &mut IpamBlock, ordinal: u32, cooldown: Duration, now: Timestamp) {
    if cooldown.is_zero() {
        free(block, ordinal);
    } else {
        let released = Attribute {
            released_at: Some(in_seconds(now)),
            ..Attribute::default()
        };
        note(block, ordinal, released);
    }
    prune(block);
}

/// Frees what has cooled down; returns how many addresses that are.
///
/// A time that cannot be read, or lies further ahead than any cool-down, holds nothing back.
pub fn thaw(block: &mut IpamBlock, cooldown: Duration, now: Timestamp) -> usize {
    let longest = SignedDuration::from_secs(IpamConfiguration::COOLDOWN_MAX.into());
    let cooldown = SignedDuration::try_from(cooldown)
        .unwrap_or(longest)
        .min(longest);
    let is_over = |attribute: &Attribute| {
        let Some(text) = attribute.released_at.as_deref() else {
            return false;
        };
        let Ok(released) = text.parse::<Timestamp>() else {
            return true;
        };
        let age = now.duration_since(released);

        age >= cooldown || age < -longest
    };
    let cool: Vec<u32> = block
        .allocations
        .keys()
        .copied()
        .filter(|ordinal| {
            owner(block, *ordinal).is_some_and(|it| it.handle_id.is_none() && is_over(it))
        })
        .collect();
    for ordinal in &cool {
        free(block, *ordinal);
    }
    if !cool.is_empty() {
        prune(block);
    }

    cool.len()
}

/// Returns who holds an address, or since when it cools down; `None` when it is free.
pub fn owner(block: &IpamBlock, ordinal: u32) -> Option<&Attribute> {
    block.attributes.get(*block.allocations.get(&ordinal)?)
}

/// Returns whether nobody holds an address; what Windows keeps for itself does not count.
///
/// An address that cools down counts: without the block it would be handed out again at once.
pub fn is_empty(block: &IpamBlock) -> bool {
    block.allocations.keys().all(|ordinal| {
        owner(block, *ordinal).is_some_and(|it| it.handle_id.as_deref() == Some(WINDOWS_RESERVED))
    })
}

/// Returns the ordinals that are neither allocated nor free: nobody would ever get them.
pub fn lost(block: &IpamBlock) -> Vec<u32> {
    (0..block.size())
        .filter(|it| !block.allocations.contains_key(it) && !block.unallocated.contains(it))
        .collect()
}

impl Holder {
    /// Returns the node that the addresses are used on.
    pub fn node(&self) -> Option<NodeName> {
        self.attributes.get("node")?.parse().ok()
    }

    fn attribute(&self) -> Attribute {
        Attribute {
            handle_id: Some(self.handle.clone()),
            secondary: self.attributes.clone(),
            ..Attribute::default()
        }
    }
}

/// Notes who holds an address, and at which sequence number that was.
fn note(block: &mut IpamBlock, ordinal: u32, holder: Attribute) {
    let index = attribute(block, holder);
    block.allocations.insert(ordinal, index);
    block
        .sequence_number_for_allocation
        .insert(ordinal, block.sequence_number);
}

/// Puts an address at the end of the queue.
fn free(block: &mut IpamBlock, ordinal: u32) {
    block.allocations.remove(&ordinal);
    block.sequence_number_for_allocation.remove(&ordinal);
    block.unallocated.push(ordinal);
}

/// Returns a time as Calico writes it: whole seconds, rounded up so that nothing thaws early.
pub(crate) fn in_seconds(now: Timestamp) -> String {
    let up = i64::from(now.subsec_nanosecond() > 0);
    let whole = Timestamp::from_second(now.as_second().saturating_add(up));

    whole.unwrap_or(now).to_string()
}
