//! A store: for each kind one log, which every reader follows in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    ActionKind, ActionResult, Event, Family, Kind, NodeName, Object, ObjectKey, Resource,
    action::{AddressRequest, NodePublication},
    resource::{AddressClaim, IpamBlock, KeyClaim, Node, ipam_block::Attribute},
};

/// Every object, and how it came to be.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<ObjectKey, Resource>,
    nodes: BTreeMap<NodeName, Object>,
    logs: BTreeMap<Kind, Vec<(ObjectKey, Option<Resource>)>>,
    /// The first block of each node and family.
    blocks: BTreeMap<(NodeName, Family), IpNet>,
}

/// How far a reader has read each log.
#[derive(Clone, Debug, Default)]
pub struct Cursor(BTreeMap<Kind, usize>);

impl Store {
    /// Writes an object.
    pub fn put(&mut self, key: ObjectKey, resource: Resource) {
        self.objects.insert(key.clone(), resource.clone());
        self.logs
            .entry(key.kind)
            .or_default()
            .push((key, Some(resource)));
    }

    /// Deletes an object.
    pub fn delete(&mut self, key: &ObjectKey) {
        if self.objects.remove(key).is_some() {
            self.logs
                .entry(key.kind)
                .or_default()
                .push((key.clone(), None));
        }
    }

    /// Returns the first block that a node claimed in a family.
    pub fn block_of(&self, node: &NodeName, family: Family) -> Option<IpNet> {
        self.blocks.get(&(node.clone(), family)).copied()
    }

    /// Returns an object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Resource> {
        self.objects.get(key)
    }

    /// Creates a member's Node, as an authority does when it joins.
    pub fn create_node(&mut self, name: &NodeName) {
        let key = ObjectKey::cluster(Kind::Node, name.as_str());
        let object = Object::new(&key, Default::default());
        self.write_node(name, object);
    }

    /// Returns the kinds of which the reader has not seen everything.
    pub fn unread(&self, cursor: &Cursor) -> Vec<Kind> {
        let read = |kind| cursor.0.get(kind).copied().unwrap_or(0);
        let logs = self.logs.iter();

        logs.filter(|(kind, log)| read(*kind) < log.len())
            .map(|(kind, _)| *kind)
            .collect()
    }

    /// Returns the next event of a kind.
    pub fn next(&self, kind: Kind, cursor: &mut Cursor) -> Option<Event> {
        let at = cursor.0.entry(kind).or_default();
        let (key, resource) = self.logs.get(&kind)?.get(*at)?.clone();
        *at += 1;

        Some(match resource {
            Some(resource) => Event::Applied(resource),
            None => Event::Deleted(key),
        })
    }

    /// Returns what a reader hears that lists a kind again: the newest of each object that it missed.
    pub fn relist(&self, kind: Kind, cursor: &mut Cursor) -> Vec<Event> {
        let log = self.logs.get(&kind).map(Vec::as_slice).unwrap_or_default();
        let at = cursor.0.entry(kind).or_default();
        let missed: BTreeSet<&ObjectKey> = log[*at..].iter().map(|(key, _)| key).collect();
        *at = log.len();

        let told = missed.into_iter().map(|key| match self.objects.get(key) {
            Some(resource) => Event::Applied(resource.clone()),
            None => Event::Deleted(key.clone()),
        });

        [Event::OutOfSync(kind)]
            .into_iter()
            .chain(told)
            .chain([Event::InSync(kind)])
            .collect()
    }

    /// Carries out an action of a node.
    pub fn execute(&mut self, node: &NodeName, action: &ActionKind) -> ActionResult {
        match action {
            ActionKind::ClaimKey(key) => {
                let claim = KeyClaim::new(*key, node.clone());
                let key = ObjectKey::cluster(Kind::KeyClaim, claim.name.clone());
                self.create(key, Resource::KeyClaim(claim))
            }
            ActionKind::ClaimAddress(address) => {
                let name = AddressClaim::object_name(*address);
                let claim = AddressClaim {
                    address: *address,
                    node: node.clone(),
                };
                let key = ObjectKey::cluster(Kind::AddressClaim, name);
                self.create(key, Resource::AddressClaim(claim))
            }
            ActionKind::PublishNode(publication) => self.publish(node, publication),
            ActionKind::ClaimBlock { pool, block_size } => {
                self.claim_block(node, *pool, *block_size)
            }
            ActionKind::AssignAddress(request) => self.assign(node, request),
            ActionKind::ReleaseHandle(handle) => self.release(node, handle),
            ActionKind::PublishEndpoint(_)
            | ActionKind::RemoveEndpoint { .. }
            | ActionKind::AnswerPod(..) => ActionResult::Done,
        }
    }

    fn create(&mut self, key: ObjectKey, resource: Resource) -> ActionResult {
        match self.objects.get(&key) {
            Some(there) if *there == resource => ActionResult::Done,
            Some(_) => ActionResult::Refused("granted to another".into()),
            None => {
                self.put(key, resource);
                ActionResult::Done
            }
        }
    }

    /// A record's epoch only rises, as the server demands.
    fn publish(&mut self, node: &NodeName, publication: &NodePublication) -> ActionResult {
        let Some(mut object) = self.nodes.get(node).cloned() else {
            return ActionResult::Retry("no such node".into());
        };
        let former = Node::try_from(&object).ok().and_then(|node| node.record);
        let former = former.and_then(Result::ok).map_or(0, |record| record.epoch);
        if publication.record.epoch <= former {
            return ActionResult::Refused("the epoch does not rise".into());
        }
        if let Err(error) = publication.apply_to(&mut object) {
            return ActionResult::Refused(error.to_string());
        }
        self.write_node(node, object);

        ActionResult::Done
    }

    fn write_node(&mut self, name: &NodeName, object: Object) {
        let node = Node::try_from(&object).expect("what we wrote can be read");
        self.nodes.insert(name.clone(), object);
        self.put(
            ObjectKey::cluster(Kind::Node, name.as_str()),
            Resource::Node(Box::new(node)),
        );
    }

    fn claim_block(&mut self, node: &NodeName, pool: IpNet, size: u8) -> ActionResult {
        let subnets = pool
            .subnets(size)
            .map(Iterator::collect::<Vec<_>>)
            .unwrap_or_default();
        let key = |cidr| ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));
        let Some(cidr) = subnets
            .into_iter()
            .find(|cidr| !self.objects.contains_key(&key(*cidr)))
        else {
            return ActionResult::Refused("pool exhausted".into());
        };
        let block = IpamBlock {
            cidr,
            affinity: Some(node.clone()),
            deleted: false,
            allocations: BTreeMap::new(),
            unallocated: (0..IpamBlock::size_of(cidr)).collect(),
            attributes: Vec::new(),
            sequence_number: 0,
            sequence_number_for_allocation: BTreeMap::new(),
            affinity_claim_time: None,
        };
        self.put(key(cidr), Resource::IpamBlock(Box::new(block)));
        self.blocks
            .entry((node.clone(), Family::of_net(&cidr)))
            .or_insert(cidr);

        ActionResult::Done
    }

    fn assign(&mut self, node: &NodeName, request: &AddressRequest) -> ActionResult {
        let any = request.families.iter().map(|family| (*family, None));
        let named = request
            .addresses
            .iter()
            .map(|it| (Family::of(*it), Some(*it)));
        let mut addresses = Vec::new();
        for (family, address) in any.chain(named) {
            match self.assign_one(node, request, family, address) {
                Ok(address) => addresses.push(address),
                Err(result) => return result,
            }
        }

        ActionResult::Addresses(addresses)
    }

    fn assign_one(
        &mut self,
        node: &NodeName,
        request: &AddressRequest,
        family: Family,
        address: Option<IpAddr>,
    ) -> Result<IpAddr, ActionResult> {
        let block = self.blocks.get(&(node.clone(), family));
        let key = |cidr| ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));
        let Some(key) = block.map(|cidr| key(*cidr)) else {
            return Err(ActionResult::Retry("no such block".into()));
        };
        let Some(Resource::IpamBlock(block)) = self.objects.get(&key) else {
            return Err(ActionResult::Retry("no such block".into()));
        };
        let mut block = block.clone();
        if let Some(held) = block.addresses_of(&request.handle).next() {
            return Ok(held);
        }
        let wanted = address.and_then(|address| block.ordinal(address));
        let free = |ordinal: &u32| wanted.is_none_or(|wanted| wanted == *ordinal);
        let Some(at) = block.unallocated.iter().position(free) else {
            return Err(ActionResult::Refused("no free address".into()));
        };
        let ordinal = block.unallocated.remove(at);
        block.allocations.insert(ordinal, block.attributes.len());
        block.attributes.push(Attribute {
            handle_id: Some(request.handle.clone()),
            secondary: request.attributes.clone(),
            ..Attribute::default()
        });
        let address = block.address(ordinal).expect("a free ordinal is inside");
        self.put(key, Resource::IpamBlock(block));

        Ok(address)
    }

    fn release(&mut self, node: &NodeName, handle: &str) -> ActionResult {
        let of_node = |family| self.blocks.get(&(node.clone(), family)).copied();
        let blocks: Vec<IpNet> = Family::BOTH.into_iter().filter_map(of_node).collect();
        for cidr in blocks {
            let key = ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));
            let Some(Resource::IpamBlock(block)) = self.objects.get(&key) else {
                continue;
            };
            let mut block = block.clone();
            let held: Vec<IpAddr> = block.addresses_of(handle).collect();
            let ordinals = held.iter().filter_map(|address| block.ordinal(*address));
            let ordinals = ordinals.collect::<Vec<_>>();
            for ordinal in &ordinals {
                block.allocations.remove(ordinal);
                block.unallocated.push(*ordinal);
            }
            if !ordinals.is_empty() {
                self.put(key, Resource::IpamBlock(block));
            }
        }

        ActionResult::Done
    }
}
