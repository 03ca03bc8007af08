//! What was heard, as it was heard, and the indexes that find who is touched by a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    InterfaceName, Kind, NodeName, ObjectKey, PublicKey, Resource,
    conflict::Surroundings,
    event::{Link, LinkKind},
    firewall::Firewalls,
    resource::{
        AddressClaim, FelixConfiguration, IpPool, IpamBlock, KeyClaim, MeshConfiguration, Node,
    },
};

/// Everything that was heard.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// This node.
    pub(crate) own: NodeName,
    pub(crate) nodes: BTreeMap<NodeName, Box<Node>>,
    /// Nodes by claim name.
    pub(crate) key_claims: BTreeMap<String, NodeName>,
    pub(crate) address_claims: BTreeMap<IpAddr, NodeName>,
    pub(crate) pools: BTreeMap<String, IpPool>,
    pub(crate) blocks: BTreeMap<IpNet, Block>,
    pub(crate) felix: BTreeMap<String, FelixConfiguration>,
    pub(crate) mesh: MeshConfiguration,
    /// Every link but the pods'.
    pub(crate) links: BTreeMap<InterfaceName, Link>,
    /// The links were told at least once: no link means that there is none.
    pub(crate) knows_links: bool,
    /// Of the first and the second device.
    pub(crate) keys: Vec<PublicKey>,
    pub(crate) server_saw: Vec<IpAddr>,
    /// Other programs' packet filters.
    pub(crate) firewalls: Firewalls,
    /// Other programs' rules, routes and network managers.
    pub(crate) surroundings: Surroundings,
    pub(crate) handshakes: BTreeSet<(InterfaceName, PublicKey)>,
    /// Objects that cannot be read, and why.
    pub(crate) invalid: BTreeMap<ObjectKey, String>,
    blocks_of: BTreeMap<NodeName, BTreeSet<IpNet>>,
    /// Borrowed addresses with the blocks that they are of, by borrower.
    loans_of: BTreeMap<NodeName, BTreeSet<(IpAddr, IpNet)>>,
    claims_of: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    pub(crate) key_users: BTreeMap<PublicKey, BTreeSet<NodeName>>,
    claim_users: BTreeMap<String, BTreeSet<NodeName>>,
    address_users: BTreeMap<IpAddr, BTreeSet<NodeName>>,
}

/// A block: whose it is, and what is in it when it is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) affinity: Option<NodeName>,
    pub(crate) own: Option<Box<IpamBlock>>,
    /// Addresses that others than its owner use, by its record.
    pub(crate) loans: BTreeMap<IpAddr, NodeName>,
}

/// What a change of the facts touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Nodes whose claims must be judged again.
    pub(crate) nodes: BTreeSet<NodeName>,
    /// Blocks that came, went or changed hands.
    pub(crate) blocks: BTreeSet<IpNet>,
    /// Everything: pools, settings, links or own keys changed.
    pub(crate) all: bool,
    /// What this node says and owns.
    pub(crate) own: bool,
    /// Policy, or what it speaks of.
    pub(crate) policy: bool,
}

impl Touched {
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    pub(crate) fn everything() -> Self {
        Self {
            all: true,
            own: true,
            ..Self::default()
        }
    }

    pub(crate) fn policy() -> Self {
        Self {
            policy: true,
            ..Self::default()
        }
    }

    pub(crate) fn ourselves() -> Self {
        Self {
            own: true,
            ..Self::default()
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.nodes.extend(other.nodes);
        self.blocks.extend(other.blocks);
        self.all |= other.all;
        self.own |= other.own;
        self.policy |= other.policy;
    }

    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Facts {
    /// Creates the facts of a node that has heard nothing yet.
    pub(crate) fn new(own: NodeName) -> Self {
        Self {
            own,
            nodes: BTreeMap::new(),
            key_claims: BTreeMap::new(),
            address_claims: BTreeMap::new(),
            pools: BTreeMap::new(),
            blocks: BTreeMap::new(),
            felix: BTreeMap::new(),
            mesh: MeshConfiguration::default(),
            links: BTreeMap::new(),
            keys: Vec::new(),
            knows_links: false,
            server_saw: Vec::new(),
            firewalls: Firewalls::default(),
            surroundings: Surroundings::default(),
            handshakes: BTreeSet::new(),
            invalid: BTreeMap::new(),
            blocks_of: BTreeMap::new(),
            loans_of: BTreeMap::new(),
            claims_of: BTreeMap::new(),
            key_users: BTreeMap::new(),
            claim_users: BTreeMap::new(),
            address_users: BTreeMap::new(),
        }
    }

    /// Returns the blocks that name this node.
    pub(crate) fn blocks_of(&self, node: &NodeName) -> impl Iterator<Item = IpNet> {
        self.blocks_of.get(node).into_iter().flatten().copied()
    }

    /// Returns the addresses that this node has borrowed, and of which blocks.
    pub(crate) fn loans_of(&self, node: &NodeName) -> impl Iterator<Item = (IpAddr, IpNet)> {
        self.loans_of.get(node).into_iter().flatten().copied()
    }

    /// Returns the addresses of a block that others than its owner use.
    pub(crate) fn lent(&self, block: IpNet) -> impl Iterator<Item = (IpAddr, &NodeName)> {
        let loans = self.blocks.get(&block).map(|block| &block.loans);

        loans
            .into_iter()
            .flatten()
            .map(|(address, node)| (*address, node))
    }

    /// Returns whether nothing of a block is its owner's: it is a single address, and lent.
    pub(crate) fn is_lent_whole(&self, block: IpNet) -> bool {
        block.prefix_len() == block.max_prefix_len() && self.lent(block).next().is_some()
    }

    /// Returns the addresses granted to this node.
    pub(crate) fn claims_of(&self, node: &NodeName) -> impl Iterator<Item = IpAddr> {
        self.claims_of.get(node).into_iter().flatten().copied()
    }

    /// Returns whether this node, and no other, publishes the key.
    pub(crate) fn only_user_of_key(&self, key: &PublicKey, node: &NodeName) -> bool {
        self.key_users
            .get(key)
            .is_some_and(|users| users.iter().eq([node]))
    }

    /// Returns whether this node, and no other, publishes the address.
    pub(crate) fn only_user_of_address(&self, address: IpAddr, node: &NodeName) -> bool {
        self.address_users
            .get(&address)
            .is_some_and(|users| users.iter().eq([node]))
    }

    /// Returns the addresses of our underlay links.
    pub(crate) fn underlay_addresses(&self) -> impl Iterator<Item = IpNet> {
        self.links
            .values()
            .filter(|link| link.kind == LinkKind::Underlay)
            .flat_map(|link| link.addresses.iter().copied())
    }

    /// Takes in an object.
    pub(crate) fn insert(&mut self, resource: Resource) -> Touched {
        match resource {
            Resource::Node(node) => self.insert_node(node),
            Resource::IpPool(pool) => {
                let former = self.pools.insert(pool.name.clone(), pool.clone());
                all_if(former.as_ref() != Some(&pool))
            }
            Resource::IpamBlock(block) if block.deleted => self.remove_block(block.cidr),
            Resource::IpamBlock(block) => self.insert_block(block),
            Resource::FelixConfiguration(felix) => {
                let former = self.felix.insert(felix.name.clone(), (*felix).clone());
                all_if(former.as_ref() != Some(&*felix))
            }
            Resource::MeshConfiguration(mesh) => {
                let changed = self.mesh != *mesh;
                self.mesh = *mesh;
                all_if(changed)
            }
            Resource::KeyClaim(KeyClaim { name, node, .. }) => self.set_key_claim(name, Some(node)),
            Resource::AddressClaim(AddressClaim { address, node, .. }) => {
                self.set_address_claim(address, Some(node))
            }
            Resource::BlockAffinity(_)
            | Resource::WorkloadEndpoint(_)
            | Resource::Namespace(_)
            | Resource::ServiceAccount(_)
            | Resource::Service(_)
            | Resource::EndpointSlice(_)
            | Resource::Tier(_)
            | Resource::Policy(_)
            | Resource::NetworkSet(_)
            | Resource::HostEndpoint(_)
            | Resource::Profile(_)
            | Resource::Opaque(_) => Touched::nothing(),
        }
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Touched {
        let name = key.name.as_str();
        match key.kind {
            Kind::Node | Kind::MeshNode => self.remove_node(name),
            Kind::IPPool => all_if(self.pools.remove(name).is_some()),
            Kind::IPAMBlock => match self.block_named(name) {
                Some(cidr) => self.remove_block(cidr),
                None => Touched::nothing(),
            },
            Kind::FelixConfiguration => all_if(self.felix.remove(name).is_some()),
            Kind::MeshConfiguration => {
                let changed = self.mesh != MeshConfiguration::default();
                self.mesh = MeshConfiguration::default();
                all_if(changed)
            }
            Kind::KeyClaim => self.set_key_claim(name.to_owned(), None),
            Kind::AddressClaim => match AddressClaim::parse_name(name) {
                Some(address) => self.set_address_claim(address, None),
                None => Touched::nothing(),
            },
            Kind::BlockAffinity
            | Kind::IPAMHandle
            | Kind::IPAMConfiguration
            | Kind::IPReservation
            | Kind::WorkloadEndpoint
            | Kind::ClusterInformation
            | Kind::Namespace
            | Kind::ServiceAccount
            | Kind::Service
            | Kind::Pod
            | Kind::EndpointSlice
            | Kind::Tier
            | Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::KubernetesNetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
            | Kind::NetworkSet
            | Kind::GlobalNetworkSet
            | Kind::HostEndpoint
            | Kind::Profile => Touched::nothing(),
        }
    }

    /// Takes in the machine's links; pods' come and go without touching anything.
    pub(crate) fn set_links(&mut self, links: BTreeMap<InterfaceName, Link>) -> Touched {
        let links = links
            .into_iter()
            .filter(|(_, link)| link.kind != LinkKind::Workload)
            .collect();
        let changed = self.links != links || !self.knows_links;
        self.links = links;
        self.knows_links = true;

        all_if(changed)
    }

    /// Takes in what other programs' packet filters mean for us.
    pub(crate) fn set_firewalls(&mut self, firewalls: Firewalls) -> Touched {
        let changed = self.firewalls != firewalls;
        self.firewalls = firewalls;

        if changed {
            Touched::ourselves()
        } else {
            Touched::nothing()
        }
    }

    /// Remembers a handshake with whoever publishes the key.
    pub(crate) fn add_handshake(&mut self, device: InterfaceName, key: PublicKey) -> Touched {
        if !self.handshakes.insert((device, key)) {
            return Touched::nothing();
        }

        Touched {
            nodes: self.key_users.get(&key).cloned().unwrap_or_default(),
            ..Touched::default()
        }
    }

    fn insert_node(&mut self, node: Box<Node>) -> Touched {
        let name = node.name.clone();
        if self.nodes.get(&name) == Some(&node) {
            return Touched::nothing();
        }
        let mut touched = self.unindex_node(&name);
        self.index_node(&node);
        self.nodes.insert(name.clone(), node);
        touched.nodes.extend(self.sharers(&name));
        touched.nodes.insert(name.clone());
        touched.own = name == self.own;

        touched
    }

    fn remove_node(&mut self, name: &str) -> Touched {
        let Ok(name) = name.parse::<NodeName>() else {
            return Touched::nothing();
        };
        let mut touched = self.unindex_node(&name);
        if self.nodes.remove(&name).is_some() {
            touched.nodes.insert(name.clone());
            touched.own = name == self.own;
        }

        touched
    }

    fn index_node(&mut self, node: &Node) {
        for key in published_keys(node) {
            self.key_users
                .entry(key)
                .or_default()
                .insert(node.name.clone());
            self.claim_users
                .entry(key.claim_name())
                .or_default()
                .insert(node.name.clone());
        }
        for address in published_addresses(node) {
            self.address_users
                .entry(address)
                .or_default()
                .insert(node.name.clone());
        }
    }

    /// Takes a node out of the indexes; touches whoever shares a key or an address with it.
    fn unindex_node(&mut self, name: &NodeName) -> Touched {
        let mut touched = Touched::nothing();
        let Some(node) = self.nodes.get(name) else {
            return touched;
        };
        let (keys, addresses) = (published_keys(node), published_addresses(node));
        touched.nodes.extend(self.sharers(name));
        for key in keys {
            withdraw(&mut self.key_users, &key, name);
            withdraw(&mut self.claim_users, &key.claim_name(), name);
        }
        for address in addresses {
            withdraw(&mut self.address_users, &address, name);
        }

        touched
    }

    /// Returns who publishes a key or an address that this node publishes too.
    fn sharers(&self, name: &NodeName) -> BTreeSet<NodeName> {
        let Some(node) = self.nodes.get(name) else {
            return BTreeSet::new();
        };
        let by_key = published_keys(node)
            .into_iter()
            .filter_map(|key| self.key_users.get(&key));
        let by_address = published_addresses(node)
            .into_iter()
            .filter_map(|address| self.address_users.get(&address));

        by_key
            .chain(by_address)
            .flatten()
            .filter(|user| *user != name)
            .cloned()
            .collect()
    }

    fn insert_block(&mut self, block: Box<IpamBlock>) -> Touched {
        let cidr = block.cidr;
        let affinity = block.affinity.clone();
        let loans: BTreeMap<IpAddr, NodeName> = block.loans().collect();
        let own = (affinity.as_ref() == Some(&self.own)).then_some(block);
        let fact = Block {
            affinity: affinity.clone(),
            own,
            loans: loans.clone(),
        };
        let former = self.blocks.insert(cidr, fact.clone());
        if former.as_ref() == Some(&fact) {
            return Touched::nothing();
        }
        let concerns_us = fact.own.is_some() || former.as_ref().is_some_and(|b| b.own.is_some());
        let (former, former_loans) = match former {
            Some(block) => (Some(block.affinity), block.loans),
            None => (None, BTreeMap::new()),
        };
        let mut touched = self.move_loans(cidr, &former_loans, &loans);
        if !touched.is_nothing() {
            touched.nodes.extend(affinity.clone());
        }
        touched.own |= concerns_us;
        if former.as_ref() == Some(&affinity) {
            return touched;
        }
        if let Some(Some(node)) = &former {
            withdraw(&mut self.blocks_of, node, &cidr);
        }
        if let Some(node) = &affinity {
            self.blocks_of.entry(node.clone()).or_default().insert(cidr);
        }
        touched.merge(self.touched_by_block(cidr, [former.flatten(), affinity]));

        touched
    }

    fn remove_block(&mut self, cidr: IpNet) -> Touched {
        let Some(block) = self.blocks.remove(&cidr) else {
            return Touched::nothing();
        };
        let mut touched = self.move_loans(cidr, &block.loans, &BTreeMap::new());
        if let Some(node) = &block.affinity {
            withdraw(&mut self.blocks_of, node, &cidr);
        }
        touched.merge(self.touched_by_block(cidr, [block.affinity, None]));
        touched.own |= block.own.is_some();

        touched
    }

    /// Indexes who has borrowed what of a block; touches those for whom that changed.
    fn move_loans(
        &mut self,
        cidr: IpNet,
        former: &BTreeMap<IpAddr, NodeName>,
        loans: &BTreeMap<IpAddr, NodeName>,
    ) -> Touched {
        let mut touched = Touched::nothing();
        for (address, node) in former.iter().filter(|it| loans.get(it.0) != Some(it.1)) {
            withdraw(&mut self.loans_of, node, &(*address, cidr));
            touched.nodes.insert(node.clone());
        }
        for (address, node) in loans.iter().filter(|it| former.get(it.0) != Some(it.1)) {
            let known = self.loans_of.entry(node.clone()).or_default();
            known.insert((*address, cidr));
            touched.nodes.insert(node.clone());
        }
        touched.own = touched.nodes.contains(&self.own);

        touched
    }

    fn touched_by_block(&self, cidr: IpNet, owners: [Option<NodeName>; 2]) -> Touched {
        let range = cidr.network()..=cidr.broadcast();
        let users = self
            .address_users
            .range(range.clone())
            .flat_map(|(_, users)| users);
        let holders = self.address_claims.range(range).map(|(_, holder)| holder);
        let nodes = users
            .chain(holders)
            .cloned()
            .chain(owners.into_iter().flatten())
            .collect();

        Touched {
            nodes,
            blocks: BTreeSet::from([cidr]),
            ..Touched::default()
        }
    }

    /// Finds the block that an object of this name holds.
    fn block_named(&self, name: &str) -> Option<IpNet> {
        let (address, length) = name.rsplit_once('-')?;
        let text = |separator: &str| format!("{}/{length}", address.replace('-', separator));
        let cidr = text(".").parse().or_else(|_| text(":").parse()).ok()?;

        (IpamBlock::object_name(cidr) == name).then_some(cidr)
    }

    fn set_key_claim(&mut self, name: String, node: Option<NodeName>) -> Touched {
        let former = match &node {
            Some(node) => self.key_claims.insert(name.clone(), node.clone()),
            None => self.key_claims.remove(&name),
        };
        if former == node {
            return Touched::nothing();
        }
        let own = self.keys.iter().any(|key| key.claim_name() == name);

        Touched {
            nodes: self.claim_users.get(&name).cloned().unwrap_or_default(),
            // Our own key decides whether we have a device at all.
            all: own,
            own,
            ..Touched::default()
        }
    }

    fn set_address_claim(&mut self, address: IpAddr, node: Option<NodeName>) -> Touched {
        let former = match &node {
            Some(node) => self.address_claims.insert(address, node.clone()),
            None => self.address_claims.remove(&address),
        };
        if former == node {
            return Touched::nothing();
        }
        if let Some(former) = &former {
            withdraw(&mut self.claims_of, former, &address);
        }
        if let Some(node) = &node {
            self.claims_of
                .entry(node.clone())
                .or_default()
                .insert(address);
        }
        let own = self.underlay_addresses().any(|ours| ours.addr() == address);
        let mut nodes = self
            .address_users
            .get(&address)
            .cloned()
            .unwrap_or_default();
        nodes.extend(former);
        nodes.extend(node);

        // Our own address is the source of routes to every peer.
        Touched {
            nodes,
            all: own,
            own,
            ..Touched::default()
        }
    }
}

/// Returns every key that a node publishes, in its record or beside it.
pub(crate) fn published_keys(node: &Node) -> BTreeSet<PublicKey> {
    let fields = [&node.key_v4, &node.key_v6]
        .into_iter()
        .flatten()
        .flatten()
        .copied();
    let record = node
        .record
        .iter()
        .flatten()
        .flat_map(|record| &record.tunnels);

    fields.chain(record.map(|tunnel| tunnel.key)).collect()
}

/// Returns every underlay address that a node publishes, in its record or beside it.
pub(crate) fn published_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let record = node.record.iter().flatten();
    let record = record.flat_map(|record| record.addresses.iter().chain(&record.endpoints));

    node.addresses
        .iter()
        .map(IpNet::addr)
        .chain(record.copied())
        .collect()
}

fn all_if(changed: bool) -> Touched {
    if changed {
        Touched::everything()
    } else {
        Touched::nothing()
    }
}

fn withdraw<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    let Some(values) = index.get_mut(key) else {
        return;
    };
    values.remove(value);
    if values.is_empty() {
        index.remove(key);
    }
}
