//! Every inconsistency, planted into records that were sound: it is found, nothing else is, and its repair leaves them
//! sound again.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on dies")]

use std::collections::{BTreeMap, BTreeSet};

use cni_ipam::{
    Collector, Facts, Fault, Finding, Holder, Preference, Repair, Request, Rules, Snapshot,
    assign_addresses, audit, audit::PodFact, memory::Memory, repair,
};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use model::{
    Family, Kind, NodeName, Object, ObjectKey, PodName,
    resource::{BlockAffinity, IpPool, IpamBlock, IpamHandle, ip_pool::AllowedUse},
};
use serde_json::{Value, json};

/// What is done to the records or the facts, and what is found.
type Plant = (&'static str, fn(&mut Sound), &'static [Fault]);

const PLANTS: &[Plant] = &[
    (
        "a pod is gone",
        |it| it.remove_pod("a1"),
        &[Fault::LeakedAddress],
    ),
    (
        "a pod moved to another node",
        |it| it.pod("a1").node = node("n2"),
        &[Fault::LeakedAddress],
    ),
    (
        "a tunnel device has no address",
        |it| it.facts.tunnels.clear(),
        &[Fault::LeakedAddress],
    ),
    (
        "a node is gone with its pods",
        |it| it.remove_node("n2"),
        &[Fault::VanishedNode],
    ),
    (
        "two pods say one address",
        |it| {
            let addresses = it.pod("a1").addresses.clone();
            it.pod("a2").addresses = addresses;
        },
        &[
            Fault::LeakedAddress,
            Fault::SharedAddress,
            Fault::StolenAddress,
        ],
    ),
    (
        "a pod has what nobody assigned",
        |it| {
            let extra = it.block().address(12).unwrap();
            it.pod("a1").addresses.as_mut().unwrap().insert(extra);
        },
        &[Fault::UnassignedAddress],
    ),
    (
        "an ordinal is lost",
        |it| it.change_block(|spec| drop(spec["unallocated"].as_array_mut().unwrap().pop())),
        &[Fault::LostAddress],
    ),
    (
        "an attribute belongs to nobody",
        |it| {
            it.change_block(|spec| {
                spec["attributes"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"handle_id": "x"}))
            })
        },
        &[Fault::UntidyBlock],
    ),
    (
        "a sequence number belongs to nobody",
        |it| it.change_block(|spec| spec["sequenceNumberForAllocation"]["9"] = json!(7)),
        &[Fault::UntidyBlock],
    ),
    (
        "a block lies inside another",
        |it| {
            let cidr = it.first;
            it.plant_block(IpNet::new(cidr.addr(), 29).unwrap(), Some("n1"));
        },
        &[
            Fault::OverlappingBlock,
            Fault::StrayBlock,
            Fault::UnconfirmedBlock,
        ],
    ),
    (
        "a block belongs to no pool",
        |it| {
            it.plant_block("10.99.0.0/28".parse().unwrap(), Some("n1"));
            it.plant_affinity("n1", "10.99.0.0/28", "confirmed");
        },
        &[Fault::StrayBlock],
    ),
    (
        "an empty block is nobody's",
        |it| it.plant_block("10.65.9.0/28".parse().unwrap(), None),
        &[Fault::OrphanBlock],
    ),
    (
        "an empty block's pool does not select its node any more",
        |it| {
            it.plant_block("10.65.9.0/28".parse().unwrap(), Some("n3"));
            it.plant_affinity("n3", "10.65.9.0/28", "confirmed");
            it.facts.pools[0].node_selector = "!has(is-small)".into();
        },
        &[Fault::DeselectedBlock],
    ),
    (
        "a block's affinity is gone",
        |it| it.memory.remove_all(Kind::BlockAffinity),
        &[Fault::UnconfirmedBlock],
    ),
    (
        "an affinity was never confirmed",
        |it| it.change_affinity(|spec| spec["state"] = json!("pending")),
        &[Fault::UnconfirmedBlock],
    ),
    (
        "an affinity was about to be given up",
        |it| it.change_affinity(|spec| spec["state"] = json!("pendingDeletion")),
        &[Fault::UnconfirmedBlock],
    ),
    (
        "an affinity has no block",
        |it| it.plant_affinity("n2", "10.65.9.0/28", "pending"),
        &[Fault::StaleAffinity],
    ),
    (
        "an affinity is to another's block",
        |it| {
            let cidr = it.first.to_string();
            it.plant_affinity("n3", &cidr, "confirmed");
        },
        &[Fault::StaleAffinity],
    ),
    (
        "an empty block's node is gone",
        |it| {
            it.plant_block("10.65.9.0/28".parse().unwrap(), Some("n9"));
            it.plant_affinity("n9", "10.65.9.0/28", "confirmed");
        },
        &[Fault::AbandonedBlock],
    ),
    (
        "a handle counts too much",
        |it| it.change_handle(|spec| spec["block"]["10.65.9.0/28"] = json!(2)),
        &[Fault::WrongHandle],
    ),
    (
        "a handle is missing",
        |it| it.memory.remove_all(Kind::IPAMHandle),
        &[Fault::WrongHandle],
    ),
    (
        "a handle holds nothing",
        |it| {
            let handle = IpamHandle::new("net.nothing");
            it.memory.0.put(handle.to_object());
        },
        &[Fault::WrongHandle],
    ),
    (
        "two handles have one name",
        |it| {
            it.change_block(|spec| {
                let other = json!({"handle_id": "NET.A1", "secondary": {"node": "n1"}});
                let attributes = spec["attributes"].as_array_mut().unwrap();
                attributes.push(other);
                let index = attributes.len() - 1;
                spec["allocations"][15] = json!(index);
                spec["unallocated"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|it| *it != json!(15));
            });
        },
        &[Fault::CollidingHandle],
    ),
    (
        "a deletion was never finished",
        |it| {
            let mut handle = IpamHandle::new("net.marked");
            handle.deleted = true;
            it.memory.0.put(handle.to_object());
        },
        &[Fault::HalfDeleted],
    ),
    (
        "a record cannot be read",
        |it| {
            let key = ObjectKey::cluster(Kind::IPAMHandle, "net.rubbish");
            it.memory.0.put(Object::new(&key, json!({"handleID": 7})));
        },
        &[Fault::Unreadable],
    ),
];

/// Faults that only a person can put right.
const FOR_A_PERSON: &[Fault] = &[
    Fault::SharedAddress,
    Fault::StolenAddress,
    Fault::UnassignedAddress,
    Fault::OverlappingBlock,
    Fault::StrayBlock,
    Fault::CollidingHandle,
    Fault::Unreadable,
];

#[test]
fn sound_records_have_no_findings() {
    assert_eq!(Sound::new().audit(), []);
}

#[test]
fn every_planted_inconsistency_is_found_and_nothing_else() {
    let mut found = BTreeSet::new();
    for (what, plant, expected) in PLANTS {
        let mut records = Sound::new();
        plant(&mut records);
        let faults: BTreeSet<Fault> = records.audit().iter().map(|it| it.fault).collect();

        assert_eq!(
            faults,
            expected.iter().copied().collect(),
            "{what}: {:#?}",
            records.audit()
        );
        found.extend(faults);
    }

    assert_eq!(found.into_iter().collect::<Vec<_>>(), Fault::ALL);
}

#[test]
fn what_was_repaired_is_sound_and_what_only_a_person_can_repair_is_left() {
    for (what, plant, _) in PLANTS {
        let mut records = Sound::new();
        plant(&mut records);
        for _ in 0..4 {
            for finding in records.audit() {
                assert_eq!(
                    finding.repair.is_none(),
                    FOR_A_PERSON.contains(&finding.fault),
                    "{what}: {finding}"
                );
                records.repair(finding.repair);
            }
        }
        let mut left = records.audit();
        left.retain(|it| !FOR_A_PERSON.contains(&it.fault));

        assert_eq!(left, [], "{what}");
    }
}

#[test]
fn a_repair_of_what_has_changed_since_does_nothing() {
    for (what, plant, _) in PLANTS {
        let mut records = Sound::new();
        plant(&mut records);
        let repairs: Vec<Repair> = records
            .audit()
            .into_iter()
            .filter_map(|it| it.repair)
            .collect();
        let mut later = Sound::new();
        for _ in 0..3 {
            later.touch();
        }
        let before = later.objects();
        for it in repairs {
            later.repair(Some(it));
        }

        assert_eq!(later.objects(), before, "{what}");
    }
}

#[test]
fn what_may_be_in_progress_is_collected_only_when_it_was_seen_for_long_enough() {
    let mut records = Sound::new();
    records.plant_affinity("n2", "10.65.9.0/28", "pending");
    let mut collector = Collector::new(std::time::Duration::from_secs(900), 8);
    let findings = records.audit();
    let at = |seconds| time() + SignedDuration::from_secs(seconds);

    assert_eq!(collector.collect(&findings, at(0)), []);
    assert_eq!(collector.collect(&findings, at(900)), []);
    assert_eq!(collector.collect(&findings, at(901)).len(), 1);
    // A dry run collects nothing: the same is due again.
    assert_eq!(collector.collect(&findings, at(902)).len(), 1);
    // Written since: somebody is at work.
    records.plant_affinity("n2", "10.65.9.0/28", "pending");
    assert_eq!(collector.collect(&records.audit(), at(903)), []);
    assert_eq!(collector.waiting(), 1);
}

#[test]
fn a_vanished_node_is_collected_at_once_and_its_tunnel_address_last() {
    let mut records = Sound::new();
    records.remove_node("n1");
    let mut collector = Collector::new(std::time::Duration::from_secs(900), 1);
    let mut order = Vec::new();
    for round in 0..20 {
        let now = time() + SignedDuration::from_secs(round * 1000);
        let due = collector.collect(&records.audit(), now);
        assert!(due.len() <= 1, "one at a time");
        let Some((finding, it)) = due.into_iter().next() else {
            break;
        };
        order.push(finding.subject);
        records.repair(Some(it));
    }

    let holders: Vec<&str> = order
        .iter()
        .filter_map(|it| it.split(" of ").nth(1))
        .collect();
    assert_eq!(
        holders,
        ["net.a1", "net.a2", "wireguard-tunnel-addr-n1", "n1"]
    );
    let blocks = records
        .objects()
        .into_iter()
        .filter(|it| it.kind == Kind::IPAMBlock);
    assert_eq!(blocks.count(), 1, "the other node's");
}

/// Two nodes with a block each, three pods, a tunnel device: everything as it should be.
struct Sound {
    memory: Shelf,
    facts: Facts,
    first: IpNet,
}

struct Shelf(Memory);

impl Shelf {
    fn remove_all(&mut self, kind: Kind) {
        let keys: Vec<ObjectKey> = self.0.objects().map(Object::key).collect();
        for key in keys.iter().filter(|key| key.kind == kind) {
            self.0.remove(key);
        }
    }
}

impl Sound {
    fn new() -> Self {
        let mut facts = Facts {
            pools: vec![pool()],
            ..Facts::default()
        };
        let small = BTreeMap::from([("is-small".to_owned(), "yes".to_owned())]);
        for (name, labels) in [
            ("n1", BTreeMap::new()),
            ("n2", BTreeMap::new()),
            ("n3", small),
        ] {
            facts.nodes.insert(node(name), labels);
        }
        let mut records = Self {
            memory: Shelf(Memory::default()),
            facts,
            first: pool().cidr,
        };
        records.add_pod("n1", "a1");
        records.add_pod("n1", "a2");
        let handle = cni_ipam::handle::tunnel(Family::V4, &node("n1"));
        let attributes = cni_ipam::handle::tunnel_attributes(Family::V4, &node("n1"));
        let address = records.assign("n1", &handle, attributes);
        records
            .facts
            .tunnels
            .insert(node("n1"), [address.addr()].into());
        records.first = address.trunc();
        records.add_pod("n2", "b1");

        records
    }

    fn add_pod(&mut self, on: &str, name: &str) {
        let pod = pod_name(name);
        let attributes = cni_ipam::handle::pod_attributes(&pod, &node(on), "2026-01-01T00:00:00Z");
        let address = self.assign(on, &format!("net.{name}"), attributes);
        let fact = PodFact {
            node: node(on),
            addresses: Some([address.addr()].into()),
        };
        self.facts.pods.insert(pod, fact);
    }

    fn assign(&mut self, on: &str, handle: &str, attributes: BTreeMap<String, String>) -> IpNet {
        let request = Request {
            node: node(on),
            holder: Holder {
                handle: handle.into(),
                attributes,
            },
            counts: BTreeMap::from([(Family::V4, 1)]),
            preference: Preference {
                purpose: AllowedUse::Workload,
                named: Vec::new(),
                node_labels: BTreeMap::new(),
                namespace_labels: BTreeMap::new(),
            },
            blocks_max: None,
        };
        let rules = Rules::of_node(node(on));
        let operation = assign_addresses(request, vec![pool()], rules, time());
        let assigned = operation.run(|step| self.memory.0.perform(step)).unwrap();

        *assigned.addresses.first().unwrap()
    }

    fn audit(&self) -> Vec<Finding> {
        audit(&Snapshot::of(self.objects()), &self.facts, time())
    }

    fn repair(&mut self, it: Option<Repair>) {
        let rules = Rules::of_node(node("n1")).for_authority();
        if let Some(it) = it {
            repair(it, rules, time())
                .run(|step| self.memory.0.perform(step))
                .unwrap();
        }
    }

    fn objects(&self) -> Vec<Object> {
        self.memory.0.objects().cloned().collect()
    }

    /// Writes every record again; every address is somebody's anew.
    fn touch(&mut self) {
        for mut object in self.objects() {
            let spec = object.body.get_mut("spec").unwrap();
            let numbers = spec.get_mut("sequenceNumberForAllocation");
            for (_, number) in numbers.and_then(Value::as_object_mut).into_iter().flatten() {
                *number = json!(number.as_u64().unwrap() + 100);
            }
            self.memory.0.put(object);
        }
    }

    /// The block of n1.
    fn block(&self) -> IpamBlock {
        let key = ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(self.first));
        let objects = self.objects();

        objects
            .iter()
            .find(|it| it.key() == key)
            .unwrap()
            .try_into()
            .unwrap()
    }

    fn change(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        let mut object = self
            .objects()
            .into_iter()
            .find(|it| it.key() == *key)
            .unwrap();
        change(object.body.get_mut("spec").unwrap());
        self.memory.0.put(object);
    }

    fn change_block(&mut self, change: impl FnOnce(&mut Value)) {
        let name = IpamBlock::object_name(self.first);
        self.change(&ObjectKey::cluster(Kind::IPAMBlock, name), change);
    }

    fn change_affinity(&mut self, change: impl FnOnce(&mut Value)) {
        let name = BlockAffinity::object_name(&node("n1"), self.first);
        self.change(&ObjectKey::cluster(Kind::BlockAffinity, name), change);
    }

    fn change_handle(&mut self, change: impl FnOnce(&mut Value)) {
        self.change(&ObjectKey::cluster(Kind::IPAMHandle, "net.a1"), change);
    }

    fn plant_block(&mut self, cidr: IpNet, owner: Option<&str>) {
        let mut block = cni_ipam::new_block(cidr, node("n1"), 1, None);
        block.affinity = owner.map(node);
        self.memory.0.put(block.to_object());
    }

    fn plant_affinity(&mut self, on: &str, cidr: &str, state: &str) {
        let mut object = BlockAffinity::pending(node(on), cidr.parse().unwrap()).to_object();
        object.body.get_mut("spec").unwrap()["state"] = json!(state);
        self.memory.0.put(object);
    }

    fn pod(&mut self, name: &str) -> &mut PodFact {
        self.facts.pods.get_mut(&pod_name(name)).unwrap()
    }

    fn remove_pod(&mut self, name: &str) {
        self.facts.pods.remove(&pod_name(name));
    }

    fn remove_node(&mut self, name: &str) {
        self.facts.nodes.remove(&node(name));
        self.facts.pods.retain(|_, it| it.node != node(name));
    }
}

fn pod_name(name: &str) -> PodName {
    PodName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn pool() -> IpPool {
    IpPool {
        name: "pods".into(),
        cidr: "10.65.0.0/20".parse().unwrap(),
        block_size: 28,
        nat_outgoing: false,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload, AllowedUse::Tunnel],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn time() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}
