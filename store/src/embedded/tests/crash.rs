//! A process that writes and acknowledges is killed, over and over: what it acknowledged is there.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::{Precondition, WatchEvent};

/// How often the writer is killed.
const ROUNDS: usize = 25;

/// Tells the child process where to write.
const PATH: &str = "MESHD_STORE_CRASH_TEST";

#[test]
fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let mut acknowledged = Vec::new();
    let mut random = 42_u32;
    for round in 0..ROUNDS {
        // Numerical Recipes' linear congruence: when to kill is to differ, no more.
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let lines = kill_after(&mut spawn(&path, round), random as usize % 97);
        acknowledged.extend(lines);
        check(&path, &acknowledged);
    }

    assert!(
        acknowledged.len() > ROUNDS,
        "{} writes in all",
        acknowledged.len()
    );
}

/// Not a test: the process that is killed.
#[test]
#[ignore = "started by nothing_acknowledged_is_lost_when_the_writer_is_killed"]
fn writer() {
    let Ok(path) = env::var(PATH) else { return };
    let (path, round) = path.split_once('#').unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(&PathBuf::from(path), Options::default()).unwrap();
        let mut tasks = Vec::new();
        for task in 0..4 {
            let session = store.session(Caller::local_admin());
            tasks.push(tokio::spawn(write_until_killed(
                session,
                format!("r{round}-t{task}"),
            )));
        }
        futures::future::join_all(tasks).await;
    });
}

/// Creates, changes and deletes, and says so after each acknowledgement.
async fn write_until_killed(session: Session, prefix: String) {
    for number in 0.. {
        let created = session
            .create(service(&format!("{prefix}-{number}")))
            .await
            .unwrap();
        say("created", &created);
        if number % 3 == 1 {
            let mut changed = created;
            changed.body.insert("status".into(), json!("changed"));
            let changed = session.update(changed).await.unwrap();
            say("changed", &changed);
            if number % 2 == 1 {
                session
                    .delete(changed.key(), Precondition::Any)
                    .await
                    .unwrap();
                say("deleted", &changed);
            }
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the acknowledgement that the parent reads"
)]
fn say(what: &str, object: &Object) {
    println!("\n{what} {} {}", object.metadata.name, object.revision().0);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test needs a process that it can kill"
)]
fn spawn(path: &Path, round: usize) -> Child {
    Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "embedded::tests::crash::writer",
            "--ignored",
            "--nocapture",
        ])
        .env(PATH, format!("{}#{round}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads so many acknowledgements, kills the process, and returns all that it still said.
fn kill_after(child: &mut Child, count: usize) -> Vec<[String; 3]> {
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let parse = |line: String| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let known = matches!(words[0].as_str(), "created" | "changed" | "deleted");
        <[String; 3]>::try_from(words).ok().filter(|_| known)
    };
    let mut said: Vec<_> = lines.by_ref().filter_map(parse).take(count + 1).collect();
    child.kill().unwrap();
    // A line that was cut by the kill has no third word, or a short number that only looks older.
    let mut rest: Vec<_> = lines.collect();
    rest.pop();
    said.extend(rest.into_iter().filter_map(parse));
    child.wait().unwrap();

    said
}

/// Opens the store and looks for everything that was acknowledged.
fn check(path: &Path, acknowledged: &[[String; 3]]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(path, Options::default()).unwrap();
        let session = store.session(Caller::local_admin());
        let list = session.list(Kind::Service).await.unwrap();
        let newest: i64 = list.revision.0.parse().unwrap();
        let mut stored: std::collections::BTreeMap<_, _> = list
            .objects
            .iter()
            .map(|object| (object.metadata.name.as_str(), object.revision().0))
            .collect();
        // The log leads to the same objects, one revision after the other.
        let mut watch = session
            .watch(Kind::Service, Revision("1".into()))
            .await
            .unwrap();
        let mut last = 1;
        while last < newest {
            let event = watch.next().await.unwrap().unwrap();
            let revision: i64 = event.revision().0.parse().unwrap();
            assert_eq!(revision, last + 1);
            last = revision;
            if let WatchEvent::Applied(object) = event {
                assert_eq!(object.revision().0, revision.to_string());
            }
        }
        for [what, name, revision] in acknowledged {
            let revision: i64 = revision.parse().unwrap();
            assert!(
                revision <= newest,
                "{name} of revision {revision} is newer than {newest}"
            );
            let found = stored
                .get(name.as_str())
                .map(|found| found.parse::<i64>().unwrap());
            match what.as_str() {
                // It may have been changed or deleted since, acknowledged or not.
                "created" | "changed" => {
                    let later = found.is_none_or(|found| found >= revision);
                    assert!(later, "{what} {name} {revision}, found {found:?}");
                    let number: u32 = name.rsplit('-').next().unwrap().parse().unwrap();
                    let stays = number % 3 != 1 || number % 2 != 1;
                    assert!(found.is_some() || !stays, "{name} was {what} and is gone");
                }
                _ => assert_eq!(stored.remove(name.as_str()), None, "{name} was deleted"),
            }
        }
    });
    let connection = rusqlite::Connection::open(path).unwrap();
    let verdict: String = connection
        .query_row("PRAGMA integrity_check", (), |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}
