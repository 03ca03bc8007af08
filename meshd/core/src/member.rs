//! What another node says about itself, judged: the part of it that may be used, and why not the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, NodeName, Phase, PublicKey, Record, family::host_net,
    record::TunnelClaim, resource::Node,
};

use crate::{
    fact::Facts,
    mtu,
    own::{self, Device, Own},
    pool,
    reason::Reason,
    wish::Wish,
};

/// Another node, as far as it may be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Whether it runs meshd: it has a record, readable or not.
    pub(crate) is_stock: bool,
    /// Its phase, as its record says; a stock node's is not known here.
    pub(crate) phase: Phase,
    /// How packets of a family travel to it.
    pub(crate) carriers: BTreeMap<Family, Carrier>,
    /// It shows no tunnels any more.
    pub(crate) is_withdrawn: bool,
    /// How it came to us before it withdrew: taken for as long as our own devices are there.
    pub(crate) retained: BTreeMap<Family, Carrier>,
    /// Its blocks.
    pub(crate) blocks: BTreeSet<IpNet>,
    /// Addresses of others' blocks that were lent to it.
    pub(crate) loans: BTreeSet<IpAddr>,
    /// Exactly its pods' networks: its blocks without what was lent to others, and its loans.
    pub(crate) pods: BTreeSet<IpNet>,
    /// What it may send from: the longest prefix decides between members, but what was lent to us is never its.
    pub(crate) allowed: BTreeSet<IpNet>,
    /// Its own addresses.
    pub(crate) hosts: BTreeSet<IpAddr>,
    /// What of it is not used, and why.
    pub(crate) reasons: BTreeSet<Reason>,
    /// The key it publishes first, usable or not.
    pub(crate) key: Option<PublicKey>,
}

/// A tunnel of ours and one of a peer's that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Carrier {
    /// Our device.
    pub(crate) device: InterfaceName,
    /// The peer's key.
    pub(crate) key: PublicKey,
    /// Where the peer listens.
    pub(crate) endpoint: SocketAddr,
    /// Largest packet inside.
    pub(crate) mtu: u32,
}

/// Judges nodes by the facts.
pub(crate) struct Judge<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) wish: &'a Wish,
    pub(crate) own: &'a Own,
}

impl Member {
    /// Returns how it comes to us: now, or until it withdrew.
    pub(crate) fn known_carriers(&self) -> &BTreeMap<Family, Carrier> {
        if self.carriers.is_empty() {
            &self.retained
        } else {
            &self.carriers
        }
    }

    /// Returns where its pods are: its blocks and its loans. The longest prefix decides.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> {
        let loans = self.loans.iter().map(|address| host_net(*address));

        self.blocks.iter().copied().chain(loans)
    }

    /// Returns the address through which its pods of a family are reached without a tunnel.
    pub(crate) fn gateway(&self, family: Family) -> Option<IpAddr> {
        self.hosts
            .iter()
            .copied()
            .find(|host| Family::of(*host) == family)
    }
}

impl Judge<'_> {
    /// Judges a node; `None` for ourselves and for nodes that are not there.
    pub(crate) fn judge(&self, name: &NodeName) -> Option<Member> {
        if *name == self.facts.own {
            return None;
        }
        let node = self.facts.nodes.get(name)?;
        let mut reasons = BTreeSet::new();
        let record = match &node.record {
            Some(Ok(record)) => Some(record),
            Some(Err(why)) => {
                reasons.insert(Reason::RecordUnusable(why.clone()));
                None
            }
            None => None,
        };
        let blocks = self.blocks(name, &mut reasons);
        let loans = own::loans(self.facts, name);
        let borrowed = || loans.iter().map(|address| host_net(*address));
        let ours = self
            .lent(&blocks)
            .filter(|(_, node)| **node == self.facts.own);
        let mut allowed = pool::without_addresses(blocks.iter().copied(), ours.map(|it| it.0));
        allowed.extend(borrowed());
        let lent = self.lent(&blocks).map(|(address, _)| address);
        let mut pods = pool::without_addresses(blocks.iter().copied(), lent);
        pods.extend(borrowed());
        self.check_tunnel_addresses(node, &blocks, &mut reasons);
        let hosts = self.hosts(node, record, &mut reasons);
        let tunnels = self.tunnels(node, record, &mut reasons);

        Some(Member {
            is_stock: node.record.is_none(),
            phase: record.map_or(Phase::Off, |record| record.phase),
            is_withdrawn: record.is_some_and(|record| record.tunnels.is_empty()),
            retained: BTreeMap::new(),
            carriers: self.carriers(node, record, &tunnels, &mut reasons),
            blocks,
            loans,
            pods,
            allowed,
            hosts,
            reasons,
            key: crate::fact::published_keys(node).first().copied(),
        })
    }

    /// Returns whether the node may use this key.
    pub(crate) fn may_use(&self, name: &NodeName, key: &PublicKey) -> bool {
        let node = self.facts.nodes.get(name);

        node.is_some_and(|node| self.check_key(node, key).is_ok())
    }

    fn blocks(&self, name: &NodeName, reasons: &mut BTreeSet<Reason>) -> BTreeSet<IpNet> {
        let mut blocks = BTreeSet::new();
        for block in self.facts.blocks_of(name) {
            match pool::of_block(self.facts, block) {
                Ok(_) if self.facts.is_lent_whole(block) => {}
                Ok(_) => drop(blocks.insert(block)),
                Err(reason) => drop(reasons.insert(reason)),
            }
        }

        blocks
    }

    /// Returns what others use of a node's blocks.
    fn lent<'b>(
        &'b self,
        blocks: &'b BTreeSet<IpNet>,
    ) -> impl Iterator<Item = (IpAddr, &'b NodeName)> {
        blocks.iter().flat_map(|block| self.facts.lent(*block))
    }

    /// A tunnel address travels with the block that holds it; one that no block holds is not used.
    fn check_tunnel_addresses(
        &self,
        node: &Node,
        blocks: &BTreeSet<IpNet>,
        reasons: &mut BTreeSet<Reason>,
    ) {
        let foreign = |a: &&IpAddr| !blocks.iter().any(|block| block.contains(*a));
        let foreign = node.tunnel_addresses.iter().filter(foreign);
        reasons.extend(foreign.map(|address| Reason::TunnelAddressForeign(*address)));
    }

    /// Returns the node's own addresses: what it publishes and was granted.
    ///
    /// Of a node whose record cannot be read, every grant counts, so that the guard knows it.
    fn hosts(
        &self,
        node: &Node,
        record: Option<&Record>,
        reasons: &mut BTreeSet<Reason>,
    ) -> BTreeSet<IpAddr> {
        let published: BTreeSet<IpAddr> = match record {
            Some(record) => record.addresses.iter().copied().collect(),
            None => {
                let own = node.addresses.iter().map(IpNet::addr);
                own.chain(self.facts.claims_of(&node.name)).collect()
            }
        };
        let mut hosts = BTreeSet::new();
        for address in published {
            match self.check_address(node, address) {
                Ok(()) => drop(hosts.insert(address)),
                Err(reason) => drop(reasons.insert(reason)),
            }
        }

        hosts
    }

    /// Says whether the node may speak for this underlay address.
    fn check_address(&self, node: &Node, address: IpAddr) -> Result<(), Reason> {
        if !can_be_a_nodes(address) {
            return Err(Reason::AddressUnusable(address));
        }
        if self.own.has(address) {
            return Err(Reason::AddressIsOurs(address));
        }
        if pool::is_pods(self.facts, address) {
            return Err(Reason::AddressInsideBlock(address));
        }

        match self.facts.address_claims.get(&address) {
            Some(holder) if *holder == node.name => Ok(()),
            Some(holder) => Err(Reason::AddressGrantedToOther(address, holder.clone())),
            None if node.record.is_some() => Err(Reason::AddressNotGranted(address)),
            None if self.facts.only_user_of_address(address, &node.name) => Ok(()),
            None => Err(Reason::AddressContested(address)),
        }
    }

    /// Returns the tunnels whose key the node may use.
    fn tunnels(
        &self,
        node: &Node,
        record: Option<&Record>,
        reasons: &mut BTreeSet<Reason>,
    ) -> Vec<TunnelClaim> {
        let claimed = match record {
            Some(record) => record.tunnels.clone(),
            None if node.record.is_some() => Vec::new(),
            None => self.stock_tunnels(node, reasons),
        };

        claimed
            .into_iter()
            .filter(|tunnel| match self.check_key(node, &tunnel.key) {
                Ok(()) => true,
                Err(reason) => {
                    reasons.insert(reason);
                    false
                }
            })
            .collect()
    }

    /// Reads Calico's two keys: each is a device of its own, on the port that the cluster has for it.
    fn stock_tunnels(&self, node: &Node, reasons: &mut BTreeSet<Reason>) -> Vec<TunnelClaim> {
        let keys = [(Family::V4, &node.key_v4), (Family::V6, &node.key_v6)];
        let mut tunnels = Vec::new();
        for (family, key) in keys {
            match key {
                Some(Ok(key)) => tunnels.push(TunnelClaim {
                    key: *key,
                    port: self
                        .wish
                        .stock_ports
                        .get(&family)
                        .copied()
                        .unwrap_or_default(),
                    families: vec![family],
                }),
                Some(Err(why)) => drop(reasons.insert(Reason::KeyUnusable(why.clone()))),
                None => {}
            }
        }

        tunnels
    }

    /// Says whether the node may use this key.
    fn check_key(&self, node: &Node, key: &PublicKey) -> Result<(), Reason> {
        if self.facts.keys.contains(key) {
            return Err(Reason::KeyIsOurs(*key));
        }

        match self.facts.key_claims.get(&key.claim_name()) {
            Some(holder) if *holder == node.name => Ok(()),
            Some(holder) => Err(Reason::KeyGrantedToOther(*key, holder.clone())),
            None if node.record.is_some() => Err(Reason::KeyNotGranted(*key)),
            None if self.facts.only_user_of_key(key, &node.name) => Ok(()),
            None => Err(Reason::KeyContested(*key)),
        }
    }

    /// Finds, for each family that we guard, a device of ours and a tunnel of the node's that fit.
    fn carriers(
        &self,
        node: &Node,
        record: Option<&Record>,
        tunnels: &[TunnelClaim],
        reasons: &mut BTreeSet<Reason>,
    ) -> BTreeMap<Family, Carrier> {
        let mut carriers = BTreeMap::new();
        for family in Family::BOTH {
            if !self.wish.covers(family) {
                continue;
            }
            match self.carrier(node, record, tunnels, family) {
                Ok(carrier) => drop(carriers.insert(family, carrier)),
                Err(reason) => drop(reasons.insert(reason)),
            }
        }

        carriers
    }

    fn carrier(
        &self,
        node: &Node,
        record: Option<&Record>,
        tunnels: &[TunnelClaim],
        family: Family,
    ) -> Result<Carrier, Reason> {
        let device = self
            .own
            .device_for(family)
            .ok_or(Reason::NoDevice(family))?;
        let carries = |tunnel: &&TunnelClaim| tunnel.families.contains(&family);
        let tunnel = tunnels.iter().find(carries).ok_or(Reason::NoKey(family))?;
        // A stock node's second device knows only our second key.
        if record.is_none() && device.wish.native != family {
            return Err(Reason::NoKey(family));
        }
        let address = match record {
            Some(record) => self.endpoint(node, record, device),
            None => self.stock_endpoint(node, family),
        };
        let address = address.ok_or(Reason::NoEndpoint)?;

        Ok(Carrier {
            device: device.wish.name.clone(),
            key: tunnel.key,
            endpoint: SocketAddr::new(address, tunnel.port),
            mtu: mtu::of_way(&self.facts.links, address, device.wish.mtu, family),
        })
    }

    /// Picks the endpoint: of a family that we have, the device's own family first where it has one.
    fn endpoint(&self, node: &Node, record: &Record, device: &Device) -> Option<IpAddr> {
        let usable = || {
            record.endpoints.iter().copied().filter(|address| {
                self.reaches(*address)
                    && can_be_a_nodes(*address)
                    && !self.own.has(*address)
                    && self.facts.address_claims.get(address) == Some(&node.name)
            })
        };
        let is_only = device.wish.families.len() > 1;
        let native = usable().find(|a| !is_only && Family::of(*a) == device.wish.native);

        native.or_else(|| usable().next())
    }

    fn stock_endpoint(&self, node: &Node, family: Family) -> Option<IpAddr> {
        node.addresses
            .iter()
            .map(IpNet::addr)
            .filter(|address| Family::of(*address) == family && self.reaches(*address))
            .find(|address| self.check_address(node, *address).is_ok())
    }

    fn reaches(&self, address: IpAddr) -> bool {
        let family = Family::of(address);

        self.own
            .addresses
            .iter()
            .any(|net| Family::of_net(net) == family)
    }
}

/// Returns whether an address is one that a node can have on an underlay.
fn can_be_a_nodes(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };

    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !is_link_local
}
