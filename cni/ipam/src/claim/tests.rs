//! Claimers beside each other, crashing at any step, against a store that compares and swaps.

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn a_first_claim_announces_creates_and_confirms() {
    let mut store = Store::default();
    let mut claim = claim("n1", "10.65.0.0/24");
    let mut steps = Vec::new();
    let done = loop {
        let step = claim.next();
        steps.push(name(&step));
        if let ClaimStep::Done(cidr) = step {
            break cidr;
        }
        claim.told(store.perform(step));
    };

    assert_eq!(
        steps,
        [
            "list",
            "create affinity",
            "create block",
            "update affinity",
            "done"
        ]
    );
    assert_eq!(store.owner(done), Some("n1".into()));
    let affinity = store.affinity("n1", done).unwrap();
    assert_eq!(affinity.state, AffinityState::Confirmed);
    assert_eq!(
        affinity.name,
        BlockAffinity::object_name(&"n1".parse().unwrap(), done)
    );
}

#[test]
fn a_second_claim_of_the_same_node_finds_its_block() {
    let mut store = Store::default();
    let first = run(&mut store, "n1", "10.65.0.0/24");

    assert_eq!(run(&mut store, "n1", "10.65.0.0/24"), first);
    assert_eq!(store.blocks().len(), 1);
}

#[test]
fn a_full_block_is_followed_by_another() {
    let mut store = Store::default();
    let first = run(&mut store, "n1", "10.65.0.0/24").unwrap();
    store.change(Kind::IPAMBlock, first, |spec| {
        spec["unallocated"] = json!([]);
    });

    let second = run(&mut store, "n1", "10.65.0.0/24").unwrap();

    assert_ne!(first, second);
    assert_eq!(store.owner(second), Some("n1".into()));
}

#[test]
fn a_pool_whose_blocks_all_have_owners_is_exhausted() {
    let mut store = Store::default();
    for node in ["n1", "n2", "n3", "n4"] {
        assert!(run(&mut store, node, "10.65.0.0/24").is_some());
    }

    assert_eq!(run(&mut store, "n5", "10.65.0.0/24"), None);
    assert!(store.affinities_of("n5").is_empty());
}

#[test]
fn an_affinity_beside_anothers_block_is_given_up() {
    let mut store = Store::default();
    let taken = run(&mut store, "n2", "10.65.0.0/26").unwrap();
    store.put(BlockAffinity::pending("n1".parse().unwrap(), taken).to_object());

    assert_eq!(run(&mut store, "n1", "10.65.0.0/26"), None);
    assert!(store.affinities_of("n1").is_empty());
    assert_eq!(store.owner(taken), Some("n2".into()));
}

#[test]
fn a_block_without_owner_or_of_calicos_balancer_is_left_alone() {
    for affinity in [json!(null), json!("virtual:load-balancer")] {
        let mut store = Store::default();
        let cidr = run(&mut store, "n2", "10.65.0.0/26").unwrap();
        store.change(Kind::IPAMBlock, cidr, |spec| {
            spec["affinity"] = affinity.clone()
        });

        assert_eq!(run(&mut store, "n1", "10.65.0.0/26"), None);
    }
}

#[test]
fn a_confirmed_affinity_whose_block_is_gone_is_opened_again() {
    let mut store = Store::default();
    let cidr = run(&mut store, "n1", "10.65.0.0/26").unwrap();
    store.objects.retain(|key, _| key.kind != Kind::IPAMBlock);

    assert_eq!(run(&mut store, "n1", "10.65.0.0/26"), Some(cidr));
    assert_eq!(store.owner(cidr), Some("n1".into()));
}

#[test]
fn blocks_of_another_size_and_unreadable_ones_are_in_the_way() {
    for spec in [
        foreign("10.65.0.0/25", 128),
        json!({"cidr": "10.65.0.0/25", "affinity": 7}),
        foreign("10.65.0.32/27", 32),
    ] {
        let mut store = Store::default();
        let name = spec["cidr"].as_str().unwrap().replace(['.', '/'], "-");
        store.put(Object::new(
            &ObjectKey::cluster(Kind::IPAMBlock, name),
            spec.clone(),
        ));
        let range: IpNet = spec["cidr"].as_str().unwrap().parse().unwrap();

        for node in ["n1", "n3", "n4"] {
            if let Some(cidr) = run(&mut store, node, "10.65.0.0/24") {
                assert!(
                    !range.contains(&cidr) && !cidr.contains(&range),
                    "{cidr} beside {range}"
                );
            }
        }
    }
}

#[test]
fn a_lost_answer_is_found_out_from_the_list() {
    for lost in 0..4 {
        let mut store = Store::default();
        let mut claim = claim("n1", "10.65.0.0/24");
        for step in 0.. {
            let step_now = claim.next();
            if let ClaimStep::Done(cidr) = step_now {
                assert_eq!(store.owner(cidr), Some("n1".into()));
                break;
            }
            let result = store.perform(step_now);
            claim.told(if step == lost {
                StepResult::Unknown
            } else {
                result
            });
        }
        assert_eq!(store.blocks().len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// 2 to 8 nodes claim at once in a pool of four blocks. A choice is a node,
    /// whether it crashes, and if so whether its step reached the store before.
    #[test]
    fn no_block_gets_two_owners_and_everybody_comes_to_an_end(
        nodes in 2usize..=8,
        choices in prop::collection::vec((0usize..8, 0u8..12), 0..120),
    ) {
        let mut store = Store::default();
        let fresh = |node: usize| claim(&format!("n{node}"), "10.65.0.0/24");
        let mut claims: Vec<Claim> = (0..nodes).map(fresh).collect();
        for (node, fate) in choices {
            let node = node % nodes;
            match fate {
                0 => claims[node] = fresh(node),
                1 => {
                    store.perform(claims[node].next());
                    claims[node] = fresh(node);
                }
                _ => advance(&mut claims[node], &mut store),
            }
            store.check()?;
        }
        for turn in 0..nodes * 100 {
            if claims.iter().all(|claim| ended(&claim.next())) {
                break;
            }
            advance(&mut claims[turn % nodes], &mut store);
            store.check()?;
        }

        let mut winners = 0;
        for (node, claim) in claims.iter().enumerate() {
            let name = format!("n{node}");
            let end = claim.next();
            prop_assert!(ended(&end), "{} still has to {:?}", name, end);
            if let ClaimStep::Done(cidr) = end {
                winners += 1;
                prop_assert_eq!(store.owner(cidr), Some(name.clone()));
                let affinity = store.affinity(&name, cidr);
                prop_assert_eq!(affinity.map(|a| a.state), Some(AffinityState::Confirmed));
            } else {
                prop_assert_eq!(store.affinities_of(&name), []);
            }
        }
        prop_assert_eq!(winners, nodes.min(4));
    }
}

/// A store in memory: names are unique, writes carry the revision they were read at.
#[derive(Default)]
struct Store {
    objects: BTreeMap<ObjectKey, Object>,
    revision: u64,
    /// Who was first seen to own each block.
    owners: BTreeMap<IpNet, Option<NodeName>>,
}

impl Store {
    fn perform(&mut self, step: ClaimStep) -> StepResult {
        match step {
            ClaimStep::List => StepResult::Listed(self.objects.values().cloned().collect()),
            ClaimStep::CreateAffinity(object) | ClaimStep::CreateBlock(object) => {
                if self.objects.contains_key(&object.key()) {
                    return StepResult::AlreadyExists;
                }
                StepResult::Stored(Box::new(self.put(object)))
            }
            ClaimStep::UpdateAffinity(object) | ClaimStep::UpdateBlock(object) => {
                match self.objects.get(&object.key()) {
                    None => StepResult::NotFound,
                    Some(old) if old.revision() != object.revision() => StepResult::Conflict,
                    Some(_) => StepResult::Stored(Box::new(self.put(object))),
                }
            }
            ClaimStep::DeleteAffinity(key, revision) => match self.objects.get(&key) {
                None => StepResult::NotFound,
                Some(old) if old.revision() != revision => StepResult::Conflict,
                Some(_) => {
                    self.objects.remove(&key);
                    StepResult::Deleted
                }
            },
            ClaimStep::Done(_) | ClaimStep::Exhausted => StepResult::Unknown,
        }
    }

    fn put(&mut self, mut object: Object) -> Object {
        self.revision += 1;
        object.metadata.resource_version = Some(self.revision.to_string());
        self.objects.insert(object.key(), object.clone());
        object
    }

    fn change(&mut self, kind: Kind, cidr: IpNet, change: impl FnOnce(&mut serde_json::Value)) {
        let key = ObjectKey::cluster(kind, IpamBlock::object_name(cidr));
        let mut object = self.objects[&key].clone();
        change(object.body.get_mut("spec").unwrap());
        self.put(object);
    }

    fn blocks(&self) -> Vec<IpamBlock> {
        let blocks = self
            .objects
            .values()
            .filter(|object| object.kind == Kind::IPAMBlock);
        blocks.map(|object| object.try_into().unwrap()).collect()
    }

    fn affinities_of(&self, node: &str) -> Vec<BlockAffinity> {
        let objects = self
            .objects
            .values()
            .filter(|object| object.kind == Kind::BlockAffinity);
        let mut affinities: Vec<BlockAffinity> =
            objects.map(|object| object.try_into().unwrap()).collect();
        affinities.retain(|affinity| affinity.node.as_str() == node);
        affinities
    }

    fn affinity(&self, node: &str, cidr: IpNet) -> Option<BlockAffinity> {
        self.affinities_of(node)
            .into_iter()
            .find(|affinity| affinity.cidr == cidr)
    }

    fn owner(&self, cidr: IpNet) -> Option<String> {
        let block = self.blocks().into_iter().find(|block| block.cidr == cidr)?;
        block.affinity.map(|node| node.to_string())
    }

    /// No block changes hands, and every confirmed affinity has its block.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for block in self.blocks() {
            let first = self
                .owners
                .entry(block.cidr)
                .or_insert_with(|| block.affinity.clone());
            prop_assert_eq!(&block.affinity, first);
        }
        for object in self
            .objects
            .values()
            .filter(|object| object.kind == Kind::BlockAffinity)
        {
            let affinity = BlockAffinity::try_from(object).unwrap();
            if affinity.state == AffinityState::Confirmed {
                let owner = self.owner(affinity.cidr);
                prop_assert_eq!(owner, Some(affinity.node.to_string()));
            }
        }

        Ok(())
    }
}

/// A block of another node's, with nothing free.
fn foreign(cidr: &str, size: usize) -> serde_json::Value {
    json!({
        "cidr": cidr, "affinity": "host:n2",
        "allocations": vec![json!(null); size], "unallocated": [],
    })
}

fn advance(claim: &mut Claim, store: &mut Store) {
    let step = claim.next();
    if !ended(&step) {
        claim.told(store.perform(step));
    }
}

fn ended(step: &ClaimStep) -> bool {
    matches!(step, ClaimStep::Done(_) | ClaimStep::Exhausted)
}

fn run(store: &mut Store, node: &str, pool: &str) -> Option<IpNet> {
    let mut claim = claim(node, pool);
    for _ in 0..100 {
        let step = claim.next();
        if ended(&step) {
            return if let ClaimStep::Done(cidr) = step {
                Some(cidr)
            } else {
                None
            };
        }
        advance(&mut claim, store);
    }
    panic!("{node} does not come to an end: {:?}", claim.next());
}

fn claim(node: &str, pool: &str) -> Claim {
    Claim::new(node.parse().unwrap(), pool.parse().unwrap(), 26, 1000, None)
}

fn name(step: &ClaimStep) -> &'static str {
    match step {
        ClaimStep::List => "list",
        ClaimStep::CreateAffinity(_) => "create affinity",
        ClaimStep::CreateBlock(_) => "create block",
        ClaimStep::UpdateBlock(_) => "update block",
        ClaimStep::UpdateAffinity(_) => "update affinity",
        ClaimStep::DeleteAffinity(..) => "delete affinity",
        ClaimStep::Done(_) => "done",
        ClaimStep::Exhausted => "exhausted",
    }
}
