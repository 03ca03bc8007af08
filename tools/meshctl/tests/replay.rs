//! `meshctl replay`: the brain that a recording rebuilds is the brain that was recorded.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use meshd_core::{Config, WATCHED, World};
use model::{
    Event, Moment, Object, ObjectKey, PublicKey, Resource,
    event::{EVENT_VERSION, Recorded},
    kind::Kind,
    status::Status,
};
use serde_json::json;

#[test]
fn a_replay_ends_where_the_recorded_brain_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    let events = story();
    fs::write(&file, recording(&events, EVENT_VERSION)).unwrap();

    let said = replay(&[file.to_str().unwrap(), "-o", "json"]);

    assert!(said.status.success(), "{said:?}");
    let replayed: Status = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(replayed, live(&events));
    assert_eq!(replayed.encryption.members, 2);
}

#[test]
fn a_replay_that_stops_earlier_has_seen_less() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    fs::write(&file, recording(&story(), EVENT_VERSION)).unwrap();

    let said = replay(&[file.to_str().unwrap(), "-o", "json", "--until", "0.5"]);

    let replayed: Status = serde_json::from_slice(&said.stdout).unwrap();
    assert!(!replayed.in_sync);
}

#[test]
fn a_recording_of_another_version_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    fs::write(&file, recording(&[], EVENT_VERSION + 1)).unwrap();

    let said = replay(&[file.to_str().unwrap()]);

    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("version 2"));
}

/// Two members, one pool, encryption wanted, everything in sync a second later.
fn story() -> Vec<Recorded> {
    let node = |name: &str, address: &str| {
        let key = ObjectKey::cluster(Kind::Node, name);
        Object::new(&key, json!({"bgp": {"ipv4Address": address}}))
    };
    let pool = ObjectKey::cluster(Kind::IPPool, "pods");
    let felix = ObjectKey::cluster(Kind::FelixConfiguration, "default");
    let objects = [
        node("n1", "192.0.2.1/24"),
        node("n2", "192.0.2.2/24"),
        Object::new(&pool, json!({"cidr": "10.65.0.0/16"})),
        Object::new(&felix, json!({"wireguardEnabled": true})),
    ];
    let keys = [1, 2].map(|byte| PublicKey::new([byte; 32]).unwrap());
    let first = [Event::StoreConnected(true), Event::Keys(keys.to_vec())];
    let applied = objects
        .iter()
        .map(|object| Event::Applied(Resource::try_from(object).unwrap()));
    let in_sync = WATCHED.iter().map(|kind| Event::InSync(*kind));

    let early = first.into_iter().chain(applied).map(|event| (0, event));
    let late = in_sync.map(|event| (1, event));
    early
        .chain(late)
        .map(|(second, event)| Recorded {
            at: Moment::after_start(Duration::from_secs(second)),
            event,
        })
        .collect()
}

/// The text that `meshd agent --record` writes.
fn recording(events: &[Recorded], version: u32) -> String {
    let header = json!({"recording": "meshd", "version": version, "config": {"node": "n1"}});
    let lines = events
        .iter()
        .map(|event| serde_json::to_string(event).unwrap());

    std::iter::once(header.to_string())
        .chain(lines)
        .map(|line| line + "\n")
        .collect()
}

fn live(events: &[Recorded]) -> Status {
    let mut world = World::new(Config::new("n1".parse().unwrap()));
    let mut now = Moment::START;
    for recorded in events {
        now = recorded.at;
        world.apply(recorded.event.clone(), now);
        while world.poll_action().is_some() {}
    }

    world.status(now)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program is what is tested here"
)]
fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .arg("replay")
        .args(arguments)
        .output()
        .unwrap()
}
