//! Calico's stored form: what it writes is read and written back alike, and what we do to it is what it would find.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on dies")]

use std::{collections::BTreeMap, time::Duration};

use cni_ipam::{
    Holder, Preference, Release, Request, Rules, Stored, assign_addresses, memory::Memory,
    release_addresses, release_handle,
};
use jiff::Timestamp;
use model::{
    Family, Kind, Object,
    resource::{
        BlockAffinity, IpPool, IpamBlock, IpamConfiguration, IpamHandle, ip_pool::AllowedUse,
    },
};
use serde_json::{Value, json};

const BLOCK: &str = include_str!("golden/block.json");
const AFFINITY: &str = include_str!("golden/affinity.json");
const HANDLE: &str = include_str!("golden/handle.json");

#[test]
fn each_record_is_read_and_written_back_alike() {
    let block = Stored::<IpamBlock>::read(object(BLOCK)).unwrap();
    let affinity = Stored::<BlockAffinity>::read(object(AFFINITY)).unwrap();
    let handle = Stored::<IpamHandle>::read(object(HANDLE)).unwrap();

    assert_eq!(block.value.to_object(), block.object);
    assert_eq!(affinity.value.to_object(), affinity.object);
    assert_eq!(handle.value.to_object(), handle.object);
}

/// A pod comes: the address that has been free longest, a new attribute, the numbers one further.
#[test]
fn an_assignment_changes_a_block_as_calico_would() {
    let mut store = store();
    assign(&mut store, "k8s-pod-network.beef", Duration::from_secs(900));

    let mut expected = spec(BLOCK);
    expected["allocations"] = json!([0, 2, 1, null]);
    expected["unallocated"] = json!([3]);
    let holder = json!({"handle_id": "k8s-pod-network.beef", "secondary": {"node": "node-a"}});
    expected["attributes"].as_array_mut().unwrap().push(holder);
    expected["sequenceNumber"] = json!(1767225600000000004_u64);
    expected["sequenceNumberForAllocation"]["1"] = json!(1767225600000000003_u64);
    assert_eq!(stored(&store, Kind::IPAMBlock), [expected]);
    let mut handles = stored(&store, Kind::IPAMHandle);
    let new =
        json!({"handleID": "k8s-pod-network.beef", "block": {"10.65.4.0/30": 1}, "deleted": false});
    assert_eq!(handles.remove(0), new);
    assert_eq!(handles, [spec(HANDLE)]);
}

/// Cooled down, it goes to the end of the queue, and its attribute goes.
#[test]
fn what_has_cooled_down_is_freed_with_the_next_write() {
    let mut store = store();
    assign(&mut store, "k8s-pod-network.beef", Duration::from_secs(60));

    let mut expected = spec(BLOCK);
    expected["allocations"] = json!([0, 1, null, null]);
    expected["unallocated"] = json!([3, 2]);
    let holder = json!({"handle_id": "k8s-pod-network.beef", "secondary": {"node": "node-a"}});
    expected["attributes"][1] = holder;
    expected["sequenceNumber"] = json!(1767225600000000004_u64);
    expected["sequenceNumberForAllocation"] =
        json!({"0": 1767225600000000001_u64, "1": 1767225600000000003_u64});
    assert_eq!(stored(&store, Kind::IPAMBlock), [expected]);
}

/// A pod goes: the ordinal points at the time of its release, at a refreshed number; the handle is gone.
#[test]
fn a_release_begins_a_cool_down() {
    let mut store = store();
    let rules = rules(Duration::from_secs(900));
    let operation = release_handle("k8s-pod-network.C0FFEE".into(), rules, now());
    operation.run(|step| store.perform(step)).unwrap();

    let mut expected = spec(BLOCK);
    expected["attributes"] = json!([
        {"releasedAt": "2026-01-01T00:12:00Z"},
        {"releasedAt": "2026-01-01T00:10:00Z"},
    ]);
    expected["sequenceNumber"] = json!(1767225600000000004_u64);
    expected["sequenceNumberForAllocation"]["0"] = json!(1767225600000000003_u64);
    assert_eq!(stored(&store, Kind::IPAMBlock), [expected]);
    assert_eq!(stored(&store, Kind::IPAMHandle), [] as [Value; 0]);
}

#[test]
fn an_address_that_was_assigned_anew_is_not_released_for_its_former_holder() {
    let mut store = store();
    let before = stored(&store, Kind::IPAMBlock);
    let release = Release {
        address: "10.65.4.0".parse().unwrap(),
        handle: Some("k8s-pod-network.C0FFEE".into()),
        sequence_number: Some(1_767_225_600_000_000_000),
    };
    let operation = release_addresses(vec![release], vec![pool()], rules(Duration::ZERO), now());
    let released = operation.run(|step| store.perform(step)).unwrap();

    assert_eq!(released.kept.len(), 1, "{released:?}");
    assert_eq!(stored(&store, Kind::IPAMBlock), before);
}

/// Fields that a newer Calico has and we do not know survive our writes.
#[test]
fn unknown_fields_survive() {
    let mut block = object(BLOCK);
    let spec = block.body.get_mut("spec").unwrap();
    spec["strictAffinity"] = json!(true);
    spec["somethingNew"] = json!({"a": [1]});
    block
        .metadata
        .annotations
        .insert("who".into(), "them".into());
    let mut store = Memory::with([block, confirmed(), object(HANDLE)]);
    assign(&mut store, "h", Duration::ZERO);

    let written = &stored(&store, Kind::IPAMBlock)[0];
    assert_eq!(written["somethingNew"], json!({"a": [1]}));
    assert_eq!(written["strictAffinity"], json!(true));
    let block = store
        .objects()
        .find(|it| it.kind == Kind::IPAMBlock)
        .unwrap();
    assert_eq!(block.metadata.annotations["who"], "them");
}

fn assign(store: &mut Memory, handle: &str, cooldown: Duration) {
    let request = Request {
        node: "node-a".parse().unwrap(),
        holder: Holder {
            handle: handle.into(),
            attributes: BTreeMap::from([("node".into(), "node-a".into())]),
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
    let operation = assign_addresses(request, vec![pool()], rules(cooldown), now());
    let assigned = operation.run(|step| store.perform(step)).unwrap();
    assert_eq!(assigned.addresses.len(), 1, "{assigned:?}");
}

fn store() -> Memory {
    Memory::with([object(BLOCK), confirmed(), object(HANDLE)])
}

fn confirmed() -> Object {
    let node = "node-a".parse().unwrap();
    let affinity = BlockAffinity::pending(node, "10.65.4.0/30".parse().unwrap());

    affinity
        .with(model::resource::AffinityState::Confirmed)
        .to_object()
}

fn rules(cooldown: Duration) -> Rules {
    Rules {
        configuration: IpamConfiguration {
            cooldown,
            ..IpamConfiguration::default()
        },
        ..Rules::of_node("node-a".parse().unwrap())
    }
}

fn pool() -> IpPool {
    IpPool {
        name: "pods".into(),
        cidr: "10.65.4.0/28".parse().unwrap(),
        block_size: 30,
        nat_outgoing: false,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    }
}

/// Two minutes after the golden block's release.
fn now() -> Timestamp {
    "2026-01-01T00:12:00Z".parse().unwrap()
}

fn object(text: &str) -> Object {
    serde_json::from_str(text).unwrap()
}

fn spec(text: &str) -> Value {
    object(text).body["spec"].clone()
}

fn stored(store: &Memory, kind: Kind) -> Vec<Value> {
    let objects = store.objects().filter(|it| it.kind == kind);

    objects.map(|it| it.body["spec"].clone()).collect()
}
