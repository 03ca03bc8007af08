//! The store, the workers, what they were promised, and the promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    time::Duration,
};

use cni_ipam::{
    Answer, Collector, Condition, Facts, Failure, Finding, GivenUp, Holder, Operation, Preference,
    Released, Repair, Repaired, Request, Rules, Snapshot, Step, Turn, Writer, assign::Assigned,
    assign_addresses, audit, audit::PodFact, borrow_addresses, give_up_block, memory::Memory,
    reclaim_block, release_handle, repair, step::LIFETIME,
};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use model::{
    Family, Kind, NodeName, Object, PodName,
    resource::{
        AffinityState, BlockAffinity, IpPool, IpamBlock, IpamConfiguration, IpamHandle,
        ip_pool::AllowedUse,
    },
};

/// What kind of world it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: u8,
    pub(crate) cooldown: u64,
    pub(crate) strict: bool,
    /// Whether garbage is collected while everybody is at work.
    pub(crate) collects: bool,
}

/// Everybody and everything.
pub(crate) struct World {
    shape: Shape,
    store: Memory,
    now: Timestamp,
    workers: Vec<Worker>,
    /// Handles that somebody may still hold addresses by, and what they were told that they hold.
    pods: BTreeMap<String, Pod>,
    /// When an address was last given back.
    released: BTreeMap<IpAddr, Timestamp>,
    pods_made: u32,
    collector: Collector,
    nodes: BTreeSet<NodeName>,
    /// What each worker has heard so far, condensed; kept only where somebody asks for a digest.
    heard: Option<Vec<u64>>,
    /// Nothing is checked while a known way is walked again.
    pub(crate) is_known: bool,
    pub(crate) tally: Tally,
    log: Vec<String>,
}

/// What happened, to know that it did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) assigned: u32,
    pub(crate) borrowed: u32,
    pub(crate) lacking: u32,
    pub(crate) released: u32,
    pub(crate) crashes: u32,
    pub(crate) conflicts: u32,
    pub(crate) repairs: u32,
    pub(crate) outdated: u32,
}

/// Two for each node, as an agent serves pods beside each other, and two for the authority.
struct Worker {
    node: Option<NodeName>,
    job: Option<Job>,
    began: Timestamp,
}

struct Pod {
    node: NodeName,
    addresses: BTreeSet<IpNet>,
    /// Somebody is at work for it.
    is_busy: bool,
}

enum Job {
    Assign(Operation<Result<Assigned, Failure>>, String),
    /// With the time at which it began: an operation knows no other.
    Release(Operation<Result<Released, Failure>>, String, Timestamp),
    GiveUp(Operation<Result<GivenUp, Failure>>),
    Reclaim(Operation<Result<Option<IpNet>, Failure>>),
    /// The kinds still to be listed, and what was listed.
    Collect(Vec<Kind>, Vec<Object>),
    Repair(Operation<Result<Repaired, Failure>>, Vec<Repair>),
}

impl World {
    pub(crate) fn new(shape: Shape) -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let worker = |node| Worker {
            node,
            job: None,
            began: now,
        };
        let nodes = (0..shape.nodes * 2).map(|n| Some(node(n / 2)));
        let workers = nodes.chain([None, None]).map(worker).collect();

        Self {
            shape,
            store: Memory::default(),
            now,
            workers,
            pods: BTreeMap::new(),
            released: BTreeMap::new(),
            pods_made: 0,
            collector: Collector::new(Duration::from_secs(120), 3),
            nodes: (0..shape.nodes).map(node).collect(),
            heard: None,
            is_known: false,
            tally: Tally::default(),
            log: Vec::new(),
        }
    }

    /// Lets something happen to a worker.
    pub(crate) fn take_turn(&mut self, worker: u8, fate: u8) {
        let place = usize::from(worker) % self.workers.len();
        let unit = if self.shape.collects { 100 } else { 1000 };
        self.now += SignedDuration::from_millis(i64::from(fate % 7) * unit);
        if self.shape.collects && fate >= 253 {
            self.wait();
        }
        if self.workers[place].job.is_none() {
            self.begin(place, fate);
            return;
        }
        match fate {
            0..=7 => self.crash(place),
            8..=15 => {
                self.step(place, |_| None);
                self.crash(place);
            }
            16..=23 => self.step(place, |_| Some(Answer::Failed("lost".into()))),
            24..=255 => self.step(place, Some),
        }
    }

    /// Begins something and walks it to its end.
    pub(crate) fn complete(&mut self, place: usize, fate: u8) {
        self.begin(place, fate);
        while self.workers[place].job.is_some() {
            self.step(place, Some);
        }
    }

    /// Begins several things beside each other; from now on the world has a digest.
    pub(crate) fn race(&mut self, tasks: &[(usize, u8)]) {
        self.now += SignedDuration::from_secs(120);
        self.heard = Some(vec![0; self.workers.len()]);
        for (place, fate) in tasks {
            self.begin(*place, *fate);
        }
    }

    /// Lets a worker take a step, or die; `false` when it has nothing to do.
    pub(crate) fn go(&mut self, place: usize, dies: bool) -> bool {
        if self.workers[place].job.is_none() {
            return false;
        }
        if dies {
            self.crash(place);
            if let Some(heard) = &mut self.heard {
                heard[place] = 1;
            }
        } else {
            self.step(place, Some);
        }

        true
    }

    pub(crate) fn is_idle(&self, place: usize) -> bool {
        self.workers[place].job.is_none()
    }

    /// Two worlds with one digest go on alike.
    pub(crate) fn digest(&self) -> u64 {
        let objects: Vec<String> = self.store.objects().map(|it| format!("{it:?}")).collect();
        let at_work: Vec<bool> = self.workers.iter().map(|it| it.job.is_some()).collect();

        condensed(&(objects, at_work, &self.heard))
    }

    /// Time goes by; whoever has been at work for too long is given up.
    fn wait(&mut self) {
        self.now += SignedDuration::from_secs(70);
        for place in 0..self.workers.len() {
            let age = self.now.duration_since(self.workers[place].began);
            if age >= SignedDuration::try_from(LIFETIME).unwrap() {
                self.crash(place);
            }
        }
    }

    /// Lets everybody finish; then a node and some pods vanish, the garbage is collected, and what is left goes the
    /// usual way. Nothing may stay behind.
    pub(crate) fn finish(&mut self) {
        for _ in 0..20_000 {
            let Some(place) = self.workers.iter().position(|it| it.job.is_some()) else {
                break;
            };
            self.step(place, Some);
        }
        assert!(
            self.workers.iter().all(|it| it.job.is_none()),
            "{:#?}",
            self.log
        );
        self.nodes.remove(&node(0));
        let nodes = self.nodes.clone();
        for (handle, pod) in std::mem::take(&mut self.pods) {
            // A pod that was never told its addresses is gone as well.
            if nodes.contains(&pod.node) && handle.len() % 2 == 0 && !pod.addresses.is_empty() {
                self.pods.insert(handle, pod);
            }
        }
        self.collect_all();
        self.check();
        assert_eq!(self.held_by_strangers(), BTreeSet::new(), "{:#?}", self.log);
        for handle in self.pods.keys().cloned().collect::<Vec<_>>() {
            let job = release_handle(handle.clone(), self.rules(None), self.now);
            let released = self.run(job).unwrap();
            assert_eq!(released.kept, BTreeMap::new(), "{:#?}", self.log);
            self.pods.remove(&handle);
        }
        self.now += SignedDuration::from_secs(3600);
        assert_eq!(self.held_by_strangers(), BTreeSet::new(), "{:#?}", self.log);
        assert_eq!(
            self.every::<IpamHandle>(Kind::IPAMHandle),
            [],
            "{:#?}",
            self.log
        );
    }

    /// Collects until nothing is found any more. What was repaired once may be repaired again without harm.
    fn collect_all(&mut self) {
        let mut all = Vec::new();
        for _ in 0..200 {
            self.now += SignedDuration::from_secs(3600);
            let findings = self.audit(self.store.objects().cloned().collect());
            if findings.is_empty() {
                break;
            }
            let due = self.collector.collect(&findings, self.now);
            assert!(due.len() <= 3, "{due:?}");
            for (finding, repair) in due {
                self.log.push(finding.to_string());
                all.push(repair.clone());
                self.repair_now(repair);
            }
        }
        let findings = self.audit(self.store.objects().cloned().collect());
        assert_eq!(findings, [], "{:#?}", self.log);
        let before: Vec<Object> = self.store.objects().cloned().collect();
        for repair in all {
            self.repair_now(repair);
        }
        let after: Vec<Object> = self.store.objects().cloned().collect();
        assert_eq!(before, after, "{:#?}", self.log);
    }

    fn repair_now(&mut self, it: Repair) {
        let rules = self.rules(None);
        let now = self.now;
        self.run(repair(it, rules, now)).unwrap();
        self.check();
    }

    fn audit(&self, objects: Vec<Object>) -> Vec<Finding> {
        let pods = self.pods.iter().map(|(handle, pod)| {
            let name = PodName {
                namespace: "shop".into(),
                name: handle.clone(),
            };
            let addresses = pod.addresses.iter().map(|it| it.addr()).collect();
            let is_told = !pod.addresses.is_empty();
            let fact = PodFact {
                node: pod.node.clone(),
                addresses: is_told.then_some(addresses),
            };
            (name, fact)
        });
        let facts = Facts {
            pools: pools(),
            nodes: self
                .nodes
                .iter()
                .map(|it| (it.clone(), BTreeMap::new()))
                .collect(),
            tunnels: BTreeMap::new(),
            pods: pods.collect(),
        };

        audit(&Snapshot::of(objects), &facts, self.now)
    }

    /// Returns who holds addresses, or keeps them from others, and is no pod.
    fn held_by_strangers(&self) -> BTreeSet<Option<String>> {
        let cooldown = Duration::from_secs(self.shape.cooldown);
        let blocks = self.every::<IpamBlock>(Kind::IPAMBlock).into_iter();
        let holders = blocks.flat_map(|mut block| {
            cni_ipam::allocation::thaw(&mut block, cooldown, self.now);
            let attributes = block.attributes.into_iter();
            attributes.map(|it| it.handle_id).collect::<Vec<_>>()
        });
        let is_pod = |it: &Option<String>| it.as_ref().is_some_and(|it| self.pods.contains_key(it));

        holders.filter(|it| !is_pod(it)).collect()
    }

    /// Begins something: what, follows from the fate.
    fn begin(&mut self, place: usize, fate: u8) {
        let job = match (&self.workers[place].node.clone(), fate % 8) {
            (Some(node), 0..=3) => Some(self.assign(node, fate)),
            (Some(node), 4..=5) => self.release(Some(node), fate),
            (Some(node), 6..=255) => self.give_up(node, fate),
            (None, 0..=3) => self.lend(fate),
            (None, _) if self.shape.collects && place + 1 == self.workers.len() => {
                let kinds = vec![Kind::IPAMBlock, Kind::BlockAffinity, Kind::IPAMHandle];
                Some(Job::Collect(kinds, Vec::new()))
            }
            (None, 4..=5) if self.shape.collects => self.vanish(fate),
            (None, 4..=5) => self.release(None, fate),
            (None, 6..=255) => {
                let rules = self.rules(None);
                Some(Job::Reclaim(reclaim_block(pools(), rules, self.now)))
            }
        };
        self.workers[place].job = job;
        self.workers[place].began = self.now;
    }

    /// A pod is gone, and nobody says so.
    fn vanish(&mut self, fate: u8) -> Option<Job> {
        let mut idle = self.pods.iter().filter(|(_, pod)| !pod.is_busy);
        let (handle, _) = idle.nth(usize::from(fate >> 6))?;
        let handle = handle.clone();
        self.log.push(format!("{handle} vanishes"));
        self.pods.remove(&handle);

        None
    }

    /// A new pod, or one again whose first attempt died.
    fn assign(&mut self, node: &NodeName, fate: u8) -> Job {
        let again = self.pods.iter().find(|(_, pod)| {
            pod.node == *node && !pod.is_busy && pod.addresses.is_empty() && fate & 8 != 0
        });
        let handle = match again {
            Some((handle, _)) => handle.clone(),
            None => {
                self.pods_made += 1;
                format!("net.{}", self.pods_made)
            }
        };
        self.remember_held(&handle);
        let pod = Pod {
            node: node.clone(),
            addresses: BTreeSet::new(),
            is_busy: true,
        };
        self.pods.insert(handle.clone(), pod);
        let request = request(node, &handle, fate);
        let rules = self.rules(Some(node));

        Job::Assign(assign_addresses(request, pools(), rules, self.now), handle)
    }

    /// The authority lends to a pod that has nothing.
    fn lend(&mut self, fate: u8) -> Option<Job> {
        let lacking = self
            .pods
            .iter_mut()
            .find(|(_, pod)| !pod.is_busy && pod.addresses.is_empty());
        let (handle, pod) = lacking?;
        pod.is_busy = true;
        let request = request(&pod.node, handle, fate);
        let handle = handle.clone();
        self.remember_held(&handle);
        let rules = self.rules(None);

        Some(Job::Assign(
            borrow_addresses(request, pools(), rules, self.now),
            handle,
        ))
    }

    /// What a release that died had not reached yet was never given back.
    fn remember_held(&mut self, handle: &str) {
        for block in self.every::<IpamBlock>(Kind::IPAMBlock) {
            for address in block.addresses_of(handle) {
                self.released.remove(&address);
            }
        }
    }

    /// A pod goes: of the node, or any.
    fn release(&mut self, node: Option<&NodeName>, fate: u8) -> Option<Job> {
        let mut free = self
            .pods
            .iter_mut()
            .filter(|(_, pod)| !pod.is_busy && node.is_none_or(|node| *node == pod.node));
        let (handle, pod) = free.nth(usize::from(fate >> 6))?;
        pod.is_busy = true;
        // From the first step on nothing is promised any more.
        let addresses = std::mem::take(&mut pod.addresses);
        for address in addresses {
            self.released.insert(address.addr(), self.now);
        }
        let handle = handle.clone();
        let rules = self.rules(node);

        Some(Job::Release(
            release_handle(handle.clone(), rules, self.now),
            handle,
            self.now,
        ))
    }

    fn give_up(&mut self, node: &NodeName, fate: u8) -> Option<Job> {
        let affinities = self.every::<BlockAffinity>(Kind::BlockAffinity);
        let mut own = affinities.iter().filter(|it| it.node == *node);
        let affinity = own.nth(usize::from(fate >> 7))?;
        let condition = match fate & 64 {
            0 => Condition::Empty,
            _ => Condition::Any,
        };
        let rules = self.rules(Some(node));

        Some(Job::GiveUp(give_up_block(
            node.clone(),
            affinity.cidr,
            condition,
            rules,
            self.now,
        )))
    }

    /// Takes a step of a worker; `hear` is what it hears of the answer, `None` nothing at all.
    fn step(&mut self, place: usize, hear: impl Fn(Answer) -> Option<Answer>) {
        let Some(mut job) = self.workers[place].job.take() else {
            return;
        };
        if let Job::Collect(kinds, objects) = job {
            self.workers[place].job = self.collect(kinds, objects);
            return;
        }
        let Some(step) = job.step() else {
            self.workers[place].job = self.end(job);
            return;
        };
        self.log.push(format!("{place} {}", shown(&step)));
        self.check_writer(place, &step);
        let is_write = step.is_write();
        let answer = self.store.perform(step);
        if let Some(heard) = &mut self.heard {
            heard[place] = condensed(&(heard[place], format!("{answer:?}")));
        }
        let lost = [Answer::Conflict, Answer::AlreadyExists, Answer::NotFound];
        if is_write {
            self.tally.conflicts += u32::from(lost.contains(&answer));
            self.check();
        }
        if let Some(answer) = hear(answer) {
            job.answer(answer);
        }
        if job.step().is_none() {
            self.workers[place].job = self.end(job);
            self.workers[place].began = self.now;
        } else {
            self.workers[place].job = Some(job);
        }
    }

    /// Lists one kind; behind the last one, says what is to be repaired.
    fn collect(&mut self, mut kinds: Vec<Kind>, mut objects: Vec<Object>) -> Option<Job> {
        if let Some(kind) = kinds.pop() {
            objects.extend(self.store.objects().filter(|it| it.kind == kind).cloned());
            return Some(Job::Collect(kinds, objects));
        }
        let findings = self.audit(objects);
        let due = self.collector.collect(&findings, self.now);
        let repairs: Vec<Repair> = due.into_iter().map(|(_, repair)| repair).collect();

        self.next_repair(repairs)
    }

    fn next_repair(&mut self, mut repairs: Vec<Repair>) -> Option<Job> {
        let next = repairs.pop()?;
        self.log.push(format!("repair {next:?}"));
        let rules = self.rules(None);

        Some(Job::Repair(repair(next, rules, self.now), repairs))
    }

    /// A worker dies; what it worked for may be taken up again.
    fn crash(&mut self, place: usize) {
        let Some(job) = self.workers[place].job.take() else {
            return;
        };
        self.tally.crashes += 1;
        self.log.push(format!("{place} dies"));
        if let Job::Assign(_, handle) | Job::Release(_, handle, _) = job {
            self.pods.get_mut(&handle).unwrap().is_busy = false;
        }
    }

    /// An operation came to its end: from now on what it said must be true.
    fn end(&mut self, job: Job) -> Option<Job> {
        match job {
            Job::Assign(operation, handle) => {
                let outcome = done(operation);
                self.log.push(format!("{handle}: {outcome:?}"));
                let pod = self.pods.get_mut(&handle).unwrap();
                pod.is_busy = false;
                if let Ok(assigned) = outcome {
                    self.tally.assigned += u32::from(!assigned.addresses.is_empty());
                    self.tally.lacking += u32::from(!assigned.missing.is_empty());
                    pod.addresses = assigned.addresses;
                }
                self.count_borrowed(&handle);
                self.check_rest(&handle);
                self.check();
            }
            Job::Release(operation, handle, began) => {
                let outcome = done(operation);
                self.log.push(format!("{handle} released: {outcome:?}"));
                match outcome {
                    Ok(released) if released.kept.is_empty() => {
                        for address in released.freed {
                            self.released.insert(address, began);
                        }
                        self.tally.released += 1;
                        self.pods.remove(&handle);
                    }
                    Ok(_) | Err(_) => self.pods.get_mut(&handle).unwrap().is_busy = false,
                }
            }
            Job::GiveUp(operation) => drop(done(operation)),
            Job::Reclaim(operation) => drop(done(operation)),
            Job::Repair(operation, rest) => {
                match done(operation) {
                    Ok(Repaired::Done) => self.tally.repairs += 1,
                    Ok(Repaired::Outdated) => self.tally.outdated += 1,
                    Err(_) => {}
                }
                return self.next_repair(rest);
            }
            Job::Collect(..) => {}
        }

        None
    }

    fn count_borrowed(&mut self, handle: &str) {
        let pod = &self.pods[handle];
        let blocks = self.every::<IpamBlock>(Kind::IPAMBlock);
        let is_foreign = |address: &&IpNet| {
            let block = blocks.iter().find(|it| it.cidr.contains(&address.addr()));
            block.is_some_and(|it| it.affinity.as_ref() != Some(&pod.node))
        };
        self.tally.borrowed +=
            u32::try_from(pod.addresses.iter().filter(is_foreign).count()).unwrap();
    }

    /// A node writes only blocks that are its own.
    fn check_writer(&self, place: usize, step: &Step) {
        let Some(node) = &self.workers[place].node else {
            return;
        };
        let (key, new) = match step {
            Step::Create(object) | Step::Update(object) => (object.key(), Some(&**object)),
            Step::Delete(key, _) => (key.clone(), None),
            Step::Get(_) | Step::List(..) => return,
        };
        if key.kind != Kind::IPAMBlock {
            return;
        }
        let stored = self.store.objects().find(|it| it.key() == key);
        let owner = |object: &Object| IpamBlock::try_from(object).unwrap().affinity;
        // A write that the store will refuse harms nobody.
        let refused = match step {
            Step::Create(_) => stored.is_some(),
            Step::Update(object) => stored.is_none_or(|it| it.revision() != object.revision()),
            Step::Delete(_, at) => stored.is_none_or(|it| it.revision() != *at),
            Step::Get(_) | Step::List(..) => true,
        };
        if refused {
            return;
        }
        let before = stored.or(new).map(owner).unwrap();
        assert_eq!(before.as_ref(), Some(node), "{step:?} {:#?}", self.log);
    }

    /// What must be true after every write.
    fn check(&self) {
        if self.is_known {
            return;
        }
        let blocks = self.every::<IpamBlock>(Kind::IPAMBlock);
        let handles = self.every::<IpamHandle>(Kind::IPAMHandle);
        for (place, block) in blocks.iter().enumerate() {
            let lost = cni_ipam::allocation::lost(block);
            assert!(lost.is_empty(), "{block:?} lost {lost:?} {:#?}", self.log);
            for other in &blocks[place + 1..] {
                assert!(
                    !block.cidr.contains(&other.cidr) && !other.cidr.contains(&block.cidr),
                    "{block:?} overlaps {other:?} {:#?}",
                    self.log
                );
            }
            for holder in block
                .attributes
                .iter()
                .filter_map(|it| it.handle_id.as_ref())
            {
                let held = block.addresses_of(holder).count() as u32;
                let handle = handles.iter().find(|it| it.id == *holder);
                let counted = handle.and_then(|it| it.blocks.get(&block.cidr).copied());
                assert!(
                    counted.unwrap_or(0) >= held,
                    "{holder} holds {held} of {}, counted are {counted:?} {:#?}",
                    block.cidr,
                    self.log
                );
            }
        }
        for affinity in self.every::<BlockAffinity>(Kind::BlockAffinity) {
            if affinity.state == AffinityState::Confirmed {
                let block = blocks.iter().find(|it| it.cidr == affinity.cidr);
                let owner = block.and_then(|it| it.affinity.as_ref());
                assert_eq!(owner, Some(&affinity.node), "{affinity:?} {:#?}", self.log);
            }
        }
        let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (handle, pod) in &self.pods {
            for address in &pod.addresses {
                let other = holders.insert(address.addr(), handle);
                assert_eq!(other, None, "{address} of {handle} {:#?}", self.log);
                let block = blocks.iter().find(|it| it.cidr.contains(&address.addr()));
                let holds = block
                    .is_some_and(|it| it.addresses_of(handle).any(|held| held == address.addr()));
                assert!(holds, "{handle} lost {address}: {block:?} {:#?}", self.log);
                if self.shape.strict {
                    // A block that was given up while in use has no owner; it has no other one.
                    let owner = block.and_then(|it| it.affinity.as_ref());
                    assert!(owner.is_none_or(|it| *it == pod.node), "{:#?}", self.log);
                }
            }
        }
    }

    /// Nothing that was just assigned was released within the cool-down.
    fn check_rest(&self, handle: &str) {
        for address in &self.pods[handle].addresses {
            let Some(released) = self.released.get(&address.addr()) else {
                continue;
            };
            let rested = self.now.duration_since(*released).as_secs();
            assert!(
                rested >= i64::try_from(self.shape.cooldown).unwrap(),
                "{address} rested {rested} s {:#?}",
                self.log
            );
        }
    }

    fn run<T: Clone>(&mut self, operation: Operation<T>) -> T {
        operation.run(|step| self.store.perform(step))
    }

    fn rules(&self, node: Option<&NodeName>) -> Rules {
        Rules {
            writer: node.map_or(Writer::Authority, |node| Writer::Node(node.clone())),
            configuration: IpamConfiguration {
                strict_affinity: self.shape.strict,
                cooldown: Duration::from_secs(self.shape.cooldown),
                ..IpamConfiguration::default()
            },
            reservations: Vec::new(),
        }
    }

    fn every<T>(&self, kind: Kind) -> Vec<T>
    where
        T: for<'a> TryFrom<&'a Object, Error = model::resource::FieldError>,
    {
        let objects = self.store.objects().filter(|it| it.kind == kind);
        objects.map(|it| T::try_from(it).unwrap()).collect()
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.assigned += other.assigned;
        self.borrowed += other.borrowed;
        self.lacking += other.lacking;
        self.released += other.released;
        self.crashes += other.crashes;
        self.conflicts += other.conflicts;
        self.repairs += other.repairs;
        self.outdated += other.outdated;
    }
}

impl Job {
    /// Returns the next step; `None` when there is none any more.
    fn step(&mut self) -> Option<Step> {
        match self {
            Self::Assign(operation, _) => step_of(operation),
            Self::Release(operation, ..) => step_of(operation),
            Self::GiveUp(operation) => step_of(operation),
            Self::Reclaim(operation) => step_of(operation),
            Self::Repair(operation, _) => step_of(operation),
            Self::Collect(..) => None,
        }
    }

    fn answer(&mut self, answer: Answer) {
        match self {
            Self::Assign(operation, _) => operation.handle_answer(answer),
            Self::Release(operation, ..) => operation.handle_answer(answer),
            Self::GiveUp(operation) => operation.handle_answer(answer),
            Self::Reclaim(operation) => operation.handle_answer(answer),
            Self::Repair(operation, _) => operation.handle_answer(answer),
            Self::Collect(..) => {}
        }
    }
}

fn condensed(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);

    hasher.finish()
}

fn step_of<T: Clone>(operation: &mut Operation<T>) -> Option<Step> {
    match operation.poll_step() {
        Turn::Step(step) => Some(step),
        Turn::Done(_) => None,
    }
}

fn done<T: Clone>(mut operation: Operation<T>) -> T {
    match operation.poll_step() {
        Turn::Done(outcome) => outcome,
        Turn::Step(step) => panic!("still has to {step:?}"),
    }
}

fn shown(step: &Step) -> String {
    let written = |verb: &str, object: &Object| {
        let spec = &object.body["spec"];
        let short = ["state", "affinity", "allocations", "block"].map(|it| spec[it].to_string());
        format!("{verb} {} {}", object.key(), short.join(" "))
    };
    match step {
        Step::Get(key) => format!("get {key}"),
        Step::List(kind, node) => format!("list {kind} {node:?}"),
        Step::Create(object) => written("create", object),
        Step::Update(object) => written("update", object),
        Step::Delete(key, at) => format!("delete {key} at {}", at.0),
    }
}

fn request(node: &NodeName, handle: &str, fate: u8) -> Request {
    let families = match fate >> 4 & 3 {
        0 => vec![(Family::V4, 1)],
        1 => vec![(Family::V6, 1)],
        2 => vec![(Family::V4, 1), (Family::V6, 1)],
        _ => vec![(Family::V4, 3)],
    };

    Request {
        node: node.clone(),
        holder: Holder {
            handle: handle.to_owned(),
            attributes: [
                ("node", node.as_str()),
                ("namespace", "shop"),
                ("pod", handle),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        },
        counts: families.into_iter().collect(),
        preference: Preference {
            purpose: AllowedUse::Workload,
            named: Vec::new(),
            node_labels: BTreeMap::new(),
            namespace_labels: BTreeMap::new(),
        },
        blocks_max: None,
    }
}

/// Four blocks of four addresses in each family.
fn pools() -> Vec<IpPool> {
    let pool = |name: &str, cidr: &str, block_size| IpPool {
        name: name.into(),
        cidr: cidr.parse().unwrap(),
        block_size,
        nat_outgoing: false,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    };

    vec![
        pool("four", "10.65.0.0/28", 30),
        pool("six", "fd00:65::/124", 126),
    ]
}

fn node(number: u8) -> NodeName {
    format!("n{number}").parse().unwrap()
}
