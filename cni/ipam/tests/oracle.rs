//! The allocator beside a slow one that shares no code with it: plain numbers in plain lists.
//!
//! Whatever is asked of both, one after the other, they answer alike, for blocks of every size that a pool may have.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on dies")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use cni_ipam::{
    Condition, Denied, ExactRequest, GivenUp, Holder, Preference, Request, Rules, Writer,
    assign_addresses, assign_exact, borrow_addresses, give_up_block, memory::Memory,
    release_handle,
};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use model::{
    Family, NodeName,
    resource::{IpPool, IpReservation, IpamConfiguration, ip_pool::AllowedUse},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Ask {
    Assign { node: u8, handle: u8, count: u8 },
    Borrow { node: u8, handle: u8, count: u8 },
    Exact { node: u8, handle: u8, place: u8 },
    Release { handle: u8 },
    GiveUp { node: u8, which: u8, always: bool },
    Wait { seconds: u16 },
}

#[derive(Clone, Debug)]
struct Shape {
    is_v6: bool,
    /// Addresses of a block and blocks of the pool, as powers of two.
    block_bits: u8,
    pool_bits: u8,
    cooldown: u64,
    strict: bool,
    blocks_max: u32,
    reserved: BTreeSet<u8>,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let one =
        (0u8..12, 0u8..3, 0u8..12, any::<u8>()).prop_map(
            |(what, node, handle, detail)| match what {
                0..=3 => Ask::Assign {
                    node,
                    handle,
                    count: detail % 5,
                },
                4 => Ask::Borrow {
                    node,
                    handle,
                    count: detail % 5,
                },
                5 => Ask::Exact {
                    node,
                    handle,
                    place: detail,
                },
                6..=8 => Ask::Release { handle },
                9 => Ask::GiveUp {
                    node,
                    which: detail % 4,
                    always: detail > 127,
                },
                _ => Ask::Wait {
                    seconds: u16::from(detail),
                },
            },
        );

    prop::collection::vec(one, 0..80)
}

fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (any::<bool>(), 0u8..7, 0u8..4);
    let rules = (
        0u64..3,
        any::<bool>(),
        1u32..5,
        prop::collection::btree_set(any::<u8>(), 0..6),
    );

    (sizes, rules).prop_map(
        |((is_v6, block_bits, pool_bits), (cooldown, strict, blocks_max, reserved))| Shape {
            is_v6,
            block_bits,
            pool_bits,
            cooldown: cooldown * 100,
            strict,
            blocks_max,
            reserved,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_allocator_answers_as_the_slow_one(shape in shapes(), asks in asks()) {
        let mut real = Real::new(&shape);
        let mut slow = Slow::new(&shape);
        for (place, ask) in asks.iter().enumerate() {
            let (answer, expected) = (real.answer(ask), slow.answer(ask));
            prop_assert_eq!(answer, expected, "{}: {:?}", place, ask);
        }
    }
}

/// What both answer: the addresses, as distances from the pool's first, and whether that is all that was wanted.
type Said = (BTreeSet<u32>, bool);

struct Slow {
    shape: Shape,
    blocks: BTreeMap<u32, SlowBlock>,
    now: u64,
}

#[derive(Clone)]
struct SlowBlock {
    owner: Option<u8>,
    queue: Vec<u32>,
    holders: BTreeMap<u32, u8>,
    cooling: BTreeMap<u32, u64>,
}

impl Slow {
    fn new(shape: &Shape) -> Self {
        Self {
            shape: shape.clone(),
            blocks: BTreeMap::new(),
            now: 0,
        }
    }

    fn answer(&mut self, ask: &Ask) -> Said {
        match *ask {
            Ask::Assign {
                node,
                handle,
                count,
            } => self.assign(node, handle, u32::from(count)),
            Ask::Borrow {
                node,
                handle,
                count,
            } => self.borrow(node, handle, u32::from(count)),
            Ask::Exact {
                node,
                handle,
                place,
            } => self.exact(node, handle, u32::from(place)),
            Ask::Release { handle } => self.release(handle),
            Ask::GiveUp {
                node,
                which,
                always,
            } => self.give_up(node, which, always),
            Ask::Wait { seconds } => {
                self.now += u64::from(seconds);
                (BTreeSet::new(), true)
            }
        }
    }

    fn size(&self) -> u32 {
        1 << self.shape.block_bits
    }

    fn held(&self, handle: u8) -> BTreeSet<u32> {
        let mut held = BTreeSet::new();
        for (number, block) in &self.blocks {
            for (ordinal, holder) in &block.holders {
                if *holder == handle {
                    held.insert(number * self.size() + ordinal);
                }
            }
        }
        held
    }

    fn is_reserved(&self, place: u32) -> bool {
        self.shape.reserved.iter().any(|it| u32::from(*it) == place)
    }

    /// Frees what is cool, lowest ordinal first.
    fn thawed(&self, number: u32) -> SlowBlock {
        let mut block = self.blocks[&number].clone();
        for ordinal in 0..self.size() {
            let is_over = block
                .cooling
                .get(&ordinal)
                .is_some_and(|at| self.now - at >= self.shape.cooldown);
            if is_over {
                block.cooling.remove(&ordinal);
                block.queue.push(ordinal);
            }
        }
        block
    }

    fn take(&mut self, number: u32, handle: u8, want: u32) -> BTreeSet<u32> {
        let mut block = self.thawed(number);
        let mut taken = BTreeSet::new();
        let mut place = 0;
        while place < block.queue.len() && (taken.len() as u32) < want {
            let ordinal = block.queue[place];
            let address = number * self.size() + ordinal;
            if self.is_reserved(address) {
                place += 1;
            } else {
                block.queue.remove(place);
                block.holders.insert(ordinal, handle);
                taken.insert(address);
            }
        }
        if !taken.is_empty() {
            self.blocks.insert(number, block);
        }
        taken
    }

    fn assign(&mut self, node: u8, handle: u8, count: u32) -> Said {
        let mut got = self.held(handle);
        let want = |got: &BTreeSet<u32>| count.saturating_sub(got.len() as u32);
        let own: Vec<u32> = self.own(node);
        for number in &own {
            let taken = self.take(*number, handle, want(&got));
            got.extend(taken);
        }
        let mut blocks = own.len() as u32;
        while want(&got) > 0 && blocks < self.shape.blocks_max {
            let Some(number) = self.claim(node) else {
                break;
            };
            blocks += 1;
            let taken = self.take(number, handle, want(&got));
            got.extend(taken);
        }
        let is_enough = want(&got) == 0;
        (got, is_enough)
    }

    fn own(&self, node: u8) -> Vec<u32> {
        let own = self.blocks.iter().filter(|(_, it)| it.owner == Some(node));
        own.map(|(number, _)| *number).collect()
    }

    fn order(&self, node: u8) -> Vec<u32> {
        let blocks = 1u32 << self.shape.pool_bits;
        let mut hash: u64 = 2_166_136_261;
        for byte in format!("n{node}").bytes() {
            hash = (hash * 16_777_619 % (1 << 32)) ^ u64::from(byte);
        }
        let start = (hash % u64::from(blocks)) as u32;
        (0..blocks).map(|it| (start + it) % blocks).collect()
    }

    fn claim(&mut self, node: u8) -> Option<u32> {
        let order = self.order(node);
        let number = order.into_iter().find(|number| {
            let mut all = (0..self.size()).map(|it| number * self.size() + it);
            !self.blocks.contains_key(number) && all.any(|it| !self.is_reserved(it))
        })?;
        self.make(number, node);
        Some(number)
    }

    fn make(&mut self, number: u32, node: u8) {
        let block = SlowBlock {
            owner: Some(node),
            queue: (0..self.size()).collect(),
            holders: BTreeMap::new(),
            cooling: BTreeMap::new(),
        };
        self.blocks.insert(number, block);
    }

    fn borrow(&mut self, node: u8, handle: u8, count: u32) -> Said {
        let mut got = self.held(handle);
        if got.len() as u32 >= count {
            return (got, true);
        }
        if self.shape.strict {
            return (got, false);
        }
        for number in self.order(node) {
            if self.blocks.contains_key(&number) {
                let want = count.saturating_sub(got.len() as u32);
                let taken = self.take(number, handle, want);
                got.extend(taken);
            }
        }
        let is_enough = got.len() as u32 >= count;
        (got, is_enough)
    }

    fn exact(&mut self, node: u8, handle: u8, place: u32) -> Said {
        let place = place % (self.size() << self.shape.pool_bits);
        let number = place / self.size();
        let ordinal = place % self.size();
        if !self.blocks.contains_key(&number) {
            self.make(number, node);
        }
        let mut block = self.thawed(number);
        if self.shape.strict && block.owner != Some(node) {
            return (BTreeSet::new(), false);
        }
        if block.holders.get(&ordinal) == Some(&handle) {
            return ([place].into(), true);
        }
        if !block.queue.contains(&ordinal) {
            return (BTreeSet::new(), false);
        }
        block.queue.retain(|it| *it != ordinal);
        block.holders.insert(ordinal, handle);
        self.blocks.insert(number, block);
        ([place].into(), true)
    }

    fn release(&mut self, handle: u8) -> Said {
        let mut freed = BTreeSet::new();
        for number in self.blocks.keys().copied().collect::<Vec<_>>() {
            let mut block = self.thawed(number);
            let held: Vec<u32> = block
                .holders
                .iter()
                .filter(|(_, it)| **it == handle)
                .map(|(it, _)| *it)
                .collect();
            if held.is_empty() {
                continue;
            }
            for ordinal in held {
                block.holders.remove(&ordinal);
                freed.insert(number * self.size() + ordinal);
                if self.shape.cooldown == 0 {
                    block.queue.push(ordinal);
                } else {
                    block.cooling.insert(ordinal, self.now);
                }
            }
            if block.owner.is_none() && block.holders.is_empty() && block.cooling.is_empty() {
                self.blocks.remove(&number);
            } else {
                self.blocks.insert(number, block);
            }
        }
        (freed, true)
    }

    fn give_up(&mut self, node: u8, which: u8, always: bool) -> Said {
        let Some(number) = self.own(node).get(usize::from(which)).copied() else {
            return (BTreeSet::new(), true);
        };
        let mut block = self.thawed(number);
        let is_empty = block.holders.is_empty() && block.cooling.is_empty();
        if is_empty {
            self.blocks.remove(&number);
        } else if always {
            block.owner = None;
            self.blocks.insert(number, block);
        }
        (BTreeSet::new(), is_empty || always)
    }
}

struct Real {
    shape: Shape,
    store: Memory,
    now: Timestamp,
    pool: IpPool,
}

impl Real {
    fn new(shape: &Shape) -> Self {
        let length = |bits: u8| if shape.is_v6 { 128 - bits } else { 32 - bits };
        let first: IpAddr = if shape.is_v6 {
            "fd00:65::"
        } else {
            "10.65.0.0"
        }
        .parse()
        .unwrap();
        let block_size = length(shape.block_bits);
        let pool = IpPool {
            name: "pods".into(),
            cidr: IpNet::new(first, length(shape.block_bits + shape.pool_bits)).unwrap(),
            block_size,
            nat_outgoing: false,
            disabled: false,
            allowed_uses: vec![AllowedUse::Workload],
            node_selector: "all()".into(),
            namespace_selector: String::new(),
            automatic: true,
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();

        Self {
            shape: shape.clone(),
            store: Memory::default(),
            now,
            pool,
        }
    }

    fn answer(&mut self, ask: &Ask) -> Said {
        let (now, pools) = (self.now, vec![self.pool.clone()]);
        match *ask {
            Ask::Assign {
                node,
                handle,
                count,
            } => {
                let operation = assign_addresses(
                    self.request(node, handle, count),
                    pools,
                    self.rules(Some(node)),
                    now,
                );
                let assigned = operation.run(|step| self.store.perform(step)).unwrap();
                (self.places(assigned.addresses), assigned.missing.is_empty())
            }
            Ask::Borrow {
                node,
                handle,
                count,
            } => {
                let operation = borrow_addresses(
                    self.request(node, handle, count),
                    pools,
                    self.rules(None),
                    now,
                );
                let assigned = operation.run(|step| self.store.perform(step)).unwrap();
                (self.places(assigned.addresses), assigned.missing.is_empty())
            }
            Ask::Exact {
                node,
                handle,
                place,
            } => self.exact(node, handle, place),
            Ask::Release { handle } => {
                let operation = release_handle(format!("h{handle}"), self.rules(None), now);
                let released = operation.run(|step| self.store.perform(step)).unwrap();
                assert_eq!(released.kept, BTreeMap::new());
                (
                    self.places(released.freed.into_iter().map(IpNet::from)),
                    true,
                )
            }
            Ask::GiveUp {
                node,
                which,
                always,
            } => self.give_up(node, which, always),
            Ask::Wait { seconds } => {
                self.now += SignedDuration::from_secs(seconds.into());
                (BTreeSet::new(), true)
            }
        }
    }

    fn exact(&mut self, node: u8, handle: u8, place: u8) -> Said {
        let places = 1u32 << (self.shape.block_bits + self.shape.pool_bits);
        let request = ExactRequest {
            node: name(node),
            holder: holder(handle),
            address: self.address(u32::from(place) % places),
        };
        let operation = assign_exact(request, vec![self.pool.clone()], self.rules(None), self.now);
        match operation.run(|step| self.store.perform(step)).unwrap() {
            Ok(address) => (self.places([address]), true),
            Err(Denied::NoPool(_) | Denied::Foreign { .. }) => panic!("the pool has it"),
            Err(Denied::Held { .. } | Denied::Cooling(_) | Denied::StrictAffinity(_)) => {
                (BTreeSet::new(), false)
            }
        }
    }

    fn give_up(&mut self, node: u8, which: u8, always: bool) -> Said {
        let objects = self.store.objects();
        let mut own: Vec<IpNet> = objects
            .filter_map(|it| model::resource::BlockAffinity::try_from(it).ok())
            .filter(|it| it.node == name(node))
            .map(|it| it.cidr)
            .collect();
        own.sort();
        let Some(cidr) = own.get(usize::from(which)) else {
            return (BTreeSet::new(), true);
        };
        let condition = if always {
            Condition::Any
        } else {
            Condition::Empty
        };
        let operation = give_up_block(
            name(node),
            *cidr,
            condition,
            self.rules(Some(node)),
            self.now,
        );
        let outcome = operation.run(|step| self.store.perform(step)).unwrap();

        (BTreeSet::new(), outcome == GivenUp::Done)
    }

    fn request(&self, node: u8, handle: u8, count: u8) -> Request {
        let family = Family::of_net(&self.pool.cidr);

        Request {
            node: name(node),
            holder: holder(handle),
            counts: BTreeMap::from([(family, count.into())]),
            preference: Preference {
                purpose: AllowedUse::Workload,
                named: Vec::new(),
                node_labels: BTreeMap::new(),
                namespace_labels: BTreeMap::new(),
            },
            blocks_max: Some(self.shape.blocks_max),
        }
    }

    fn rules(&self, node: Option<u8>) -> Rules {
        let ranges = self
            .shape
            .reserved
            .iter()
            .map(|it| IpNet::from(self.address((*it).into())));

        Rules {
            writer: node.map_or(Writer::Authority, |node| Writer::Node(name(node))),
            configuration: IpamConfiguration {
                strict_affinity: self.shape.strict,
                cooldown: Duration::from_secs(self.shape.cooldown),
                ..IpamConfiguration::default()
            },
            reservations: vec![IpReservation {
                name: "r".into(),
                ranges: ranges.collect(),
            }],
        }
    }

    fn address(&self, place: u32) -> IpAddr {
        match self.pool.cidr.addr() {
            IpAddr::V4(first) => IpAddr::V4((u32::from(first) + place).into()),
            IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(place)).into()),
        }
    }

    fn places(&self, addresses: impl IntoIterator<Item = IpNet>) -> BTreeSet<u32> {
        let place = |address: IpNet| match (address.addr(), self.pool.cidr.addr()) {
            (IpAddr::V4(it), IpAddr::V4(first)) => u32::from(it) - u32::from(first),
            (IpAddr::V6(it), IpAddr::V6(first)) => (u128::from(it) - u128::from(first)) as u32,
            (IpAddr::V4(_) | IpAddr::V6(_), _) => panic!("{address} is of another family"),
        };

        addresses.into_iter().map(place).collect()
    }
}

fn holder(handle: u8) -> Holder {
    Holder {
        handle: format!("h{handle}"),
        attributes: BTreeMap::new(),
    }
}

fn name(node: u8) -> NodeName {
    format!("n{node}").parse().unwrap()
}
