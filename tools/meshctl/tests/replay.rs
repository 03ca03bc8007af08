//! `meshctl replay`: the brain that a recording rebuilds is the brain that was recorded.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
    time::Duration,
};

use meshd_core::{Config, WATCHED, World};
use model::{
    Event, Moment, Object, ObjectKey, PublicKey, Resource,
    kind::Kind,
    recording::{PlanDigest, RECORDING_VERSION, Recorded},
    status::Status,
};
use serde_json::json;

#[test]
fn a_replay_ends_where_the_recorded_brain_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    let events = story();
    fs::write(&file, recording(&events, RECORDING_VERSION)).unwrap();

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
    fs::write(&file, recording(&story(), RECORDING_VERSION)).unwrap();

    let said = replay(&[file.to_str().unwrap(), "-o", "json", "--until", "0.5"]);

    let replayed: Status = serde_json::from_slice(&said.stdout).unwrap();
    assert!(!replayed.in_sync);
}

#[test]
fn what_was_decided_is_compared_and_what_was_tampered_with_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    let lines = decided(&story());
    fs::write(&file, recording(&lines, RECORDING_VERSION)).unwrap();
    let said = replay(&[file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.status.success() && text.contains("1 plans: as recorded"),
        "{text}"
    );

    let told: Vec<_> = (0..lines.len())
        .filter(|line| lines[*line].event.is_some())
        .collect();
    let mut found = 0;
    for line in &told {
        let mut tampered = lines.clone();
        tampered.remove(*line);
        fs::write(&file, recording(&tampered, RECORDING_VERSION)).unwrap();
        let said = replay(&[file.to_str().unwrap()]);
        found += usize::from(said.status.code() == Some(3));
    }
    // That the store is connected decides nothing.
    assert_eq!(found, told.len() - 1);
}

#[test]
fn a_line_that_a_killed_agent_left_torn_is_passed_over_and_no_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    let whole = recording(&decided(&story()), RECORDING_VERSION);
    let torn = format!("{whole}{}\n{whole}{}", r#"{"at":1,"ev"#, r#"{"at":2"#);
    fs::write(&file, torn).unwrap();
    let said = replay(&[file.to_str().unwrap()]);
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("Replayed 2 runs"));

    fs::write(&file, whole.replacen("\n", "\nnonsense\n", 1)).unwrap();
    assert_eq!(replay(&[file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn a_recording_of_another_version_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.jsonl");
    fs::write(&file, recording(&[], RECORDING_VERSION + 1)).unwrap();

    let said = replay(&[file.to_str().unwrap()]);

    assert_eq!(said.status.code(), Some(1));
    let named = format!("version {}", RECORDING_VERSION + 1);
    assert!(String::from_utf8_lossy(&said.stderr).contains(&named));
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
    let first = [
        Event::StoreConnected(true),
        Event::Keys(keys.to_vec()),
        Event::Underlay(BTreeMap::new()),
    ];
    let applied = objects
        .iter()
        .map(|object| Event::Applied(Resource::try_from(object).unwrap()));
    let in_sync = WATCHED.iter().map(|kind| Event::InSync(*kind));

    let early = first.into_iter().chain(applied).map(|event| (0, event));
    let late = in_sync.map(|event| (1, event));
    early
        .chain(late)
        .map(|(second, event)| {
            Recorded::event(Moment::after_start(Duration::from_secs(second)), event)
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

/// The events, and behind them what the brain decides.
fn decided(events: &[Recorded]) -> Vec<Recorded> {
    let mut world = World::new(Config::new("n1".parse().unwrap()));
    for recorded in events {
        world.apply(recorded.event.clone().unwrap(), recorded.at);
    }
    let at = events.last().unwrap().at;
    let mut lines = events.to_vec();
    lines.extend(std::iter::from_fn(|| world.poll_action()).map(|a| Recorded::action(at, a)));
    lines.push(Recorded::plan(at, PlanDigest::of(world.plan())));

    lines
}

fn live(events: &[Recorded]) -> Status {
    let mut world = World::new(Config::new("n1".parse().unwrap()));
    let mut now = Moment::START;
    for recorded in events {
        now = recorded.at;
        world.apply(recorded.event.clone().unwrap(), now);
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
