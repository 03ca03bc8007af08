//! What this node has: addresses, blocks, devices with granted keys, tunnel addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{Family, NodeName, PublicKey, family::host_net};

use crate::{
    fact::Facts,
    pool,
    wish::{DeviceWish, Wish},
};

/// How many underlay addresses a node claims at most: what its record has room for.
const ADDRESSES_MAX: usize = 16;

/// What this node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// Underlay addresses that may be claimed, preferred first.
    pub(crate) candidates: Vec<IpAddr>,
    /// Those of them that were granted.
    pub(crate) granted: Vec<IpAddr>,
    /// Every address on an underlay link.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Proper blocks.
    pub(crate) blocks: BTreeSet<IpNet>,
    /// Addresses of others' blocks that were lent to it.
    pub(crate) loans: BTreeSet<IpAddr>,
    /// Devices whose key was granted.
    pub(crate) devices: Vec<Device>,
    /// Addresses of the tunnel devices.
    pub(crate) tunnel_addresses: BTreeMap<Family, IpAddr>,
}

/// A device that we may bring up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) wish: DeviceWish,
    pub(crate) key: PublicKey,
}

impl Own {
    /// Works out what this node has.
    pub(crate) fn new(facts: &Facts, wish: &Wish) -> Self {
        let addresses = facts.underlay_addresses().collect::<BTreeSet<_>>();
        let candidates = candidates(facts, wish, &addresses);
        let is_granted = |a: &IpAddr| facts.address_claims.get(a) == Some(&facts.own);
        let blocks = facts
            .blocks_of(&facts.own)
            .filter(|block| pool::of_block(facts, *block).is_ok() && !facts.is_lent_whole(*block))
            .collect::<BTreeSet<_>>();

        Self {
            granted: candidates.iter().copied().filter(is_granted).collect(),
            candidates,
            addresses,
            devices: wish
                .devices
                .iter()
                .filter_map(|wish| device(facts, wish))
                .collect(),
            tunnel_addresses: tunnel_addresses(facts, &blocks),
            blocks,
            loans: loans(facts, &facts.own),
        }
    }

    /// Returns the networks of its pods: blocks, and what was lent to it.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> {
        let loans = self.loans.iter().map(|address| host_net(*address));

        self.blocks.iter().copied().chain(loans)
    }

    /// Returns the address of this family that stands for the node.
    pub(crate) fn address(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let granted = self.granted.iter().find(of_family);

        granted
            .or_else(|| self.candidates.iter().find(of_family))
            .copied()
    }

    /// Returns the granted address of this family: one that peers accept packets from.
    pub(crate) fn granted_address(&self, family: Family) -> Option<IpAddr> {
        self.granted
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
    }

    /// Returns whether an underlay link has the address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// Returns the device that carries the family.
    pub(crate) fn device_for(&self, family: Family) -> Option<&Device> {
        self.devices
            .iter()
            .find(|device| device.wish.families.contains(&family))
    }
}

/// Returns the addresses of proper blocks that the record lends to a node.
pub(crate) fn loans(facts: &Facts, node: &NodeName) -> BTreeSet<IpAddr> {
    let loans = facts.loans_of(node);
    let proper = loans.filter(|(_, block)| pool::of_block(facts, *block).is_ok());

    proper.map(|(address, _)| address).collect()
}

/// Returns the handle of the tunnel address of a family, as Calico names it.
pub(crate) fn tunnel_handle(facts: &Facts, family: Family) -> String {
    match family {
        Family::V4 => format!("wireguard-tunnel-addr-{}", facts.own),
        Family::V6 => format!("wireguard-v6-tunnel-addr-{}", facts.own),
    }
}

/// Returns the addresses that a handle holds in these blocks of ours, in order.
pub(crate) fn held(facts: &Facts, blocks: &BTreeSet<IpNet>, handle: &str) -> Vec<IpAddr> {
    blocks
        .iter()
        .filter_map(|cidr| facts.blocks.get(cidr)?.own.as_deref())
        .flat_map(|block| block.addresses_of(handle))
        .collect()
}

/// Orders our underlay addresses: by the configured networks, then what was granted or seen already.
fn candidates(facts: &Facts, wish: &Wish, addresses: &BTreeSet<IpNet>) -> Vec<IpAddr> {
    let ours = || addresses.iter().map(IpNet::addr);
    let inside = wish
        .networks
        .iter()
        .flat_map(|net| ours().filter(|a| net.contains(a)));
    let seen = facts
        .server_saw
        .iter()
        .copied()
        .filter(|seen| ours().any(|a| a == *seen));
    let granted = ours().filter(|a| facts.address_claims.get(a) == Some(&facts.own));
    let mut candidates: Vec<IpAddr> = Vec::new();
    for address in inside.chain(seen).chain(granted) {
        if !candidates.contains(&address) && !pool::is_pods(facts, address) {
            candidates.push(address);
        }
    }
    candidates.truncate(ADDRESSES_MAX);

    candidates
}

fn device(facts: &Facts, wish: &DeviceWish) -> Option<Device> {
    let key = *facts.keys.get(wish.slot()).or(facts.keys.first())?;
    let granted = facts.key_claims.get(&key.claim_name()) == Some(&facts.own);

    granted.then(|| Device {
        wish: wish.clone(),
        key,
    })
}

fn tunnel_addresses(facts: &Facts, blocks: &BTreeSet<IpNet>) -> BTreeMap<Family, IpAddr> {
    Family::BOTH
        .into_iter()
        .filter_map(|family| {
            let held = held(facts, blocks, &tunnel_handle(facts, family));
            let address = held
                .into_iter()
                .find(|address| Family::of(*address) == family)?;
            Some((family, address))
        })
        .collect()
}
