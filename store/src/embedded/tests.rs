use futures::FutureExt;
use serde_json::json;

use super::*;
use crate::{
    StoreError,
    contract::{Factory, Log, Subject},
};

mod crash;
mod namespace;

mod contract {
    use super::*;

    crate::contract_tests!(InProcess);
}

/// The store in this process, on behalf of an administrator.
struct InProcess;

impl Factory for InProcess {
    fn subject(&self, log: Log) -> BoxFuture<'_, Subject> {
        async move {
            let directory = tempfile::tempdir().unwrap();
            let store = Embedded::open(&directory.path().join("store.db"), options(log)).unwrap();

            Subject {
                store: Arc::new(store.session(Caller::local_admin())),
                guard: Box::new(directory),
            }
        }
        .boxed()
    }
}

pub(crate) fn options(log: Log) -> Options {
    match log {
        Log::Long => Options::default(),
        Log::Short => Options {
            log_changes: 16,
            ..Options::default()
        },
    }
}

fn service(name: &str) -> Object {
    Object::new(
        &ObjectKey::namespaced(Kind::Service, "default", name),
        json!({"n": 1}),
    )
}

#[tokio::test]
async fn a_store_is_as_it_was_after_it_was_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = Embedded::open(&path, Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    let start = session.list(Kind::Service).await.unwrap().revision;
    let object = session.create(service("web")).await.unwrap();
    drop((session, store));

    let store = Embedded::open(&path, Options::default()).unwrap();
    let session = store.session(Caller::local_admin());

    assert_eq!(session.get(object.key()).await.unwrap(), object);
    let mut watch = session.watch(Kind::Service, start).await.unwrap();
    let event = watch.next().await.unwrap().unwrap();
    assert_eq!(event, crate::WatchEvent::Applied(object));
    let next = session.create(service("next")).await.unwrap();
    assert_ne!(next.revision(), event.revision());
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    drop(Embedded::open(&path, Options::default()).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);

    let opened = Embedded::open(&path, Options::default());

    assert!(matches!(
        opened.err(),
        Some(OpenError::Version {
            found: 99,
            known: 1
        })
    ));
}

#[tokio::test]
async fn the_log_stays_within_its_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let options = Options {
        log_changes: 1000,
        log_bytes: 64 * 1024,
    };
    let store = Embedded::open(&path, options).unwrap();
    let session = store.session(Caller::local_admin());
    let mut object = service("web");
    object
        .body
        .insert("spec".into(), json!({"blob": "x".repeat(10_000)}));
    let mut object = session.create(object).await.unwrap();
    for number in 0..50 {
        object.body.insert("status".into(), json!(number));
        object = session.update(object).await.unwrap();
    }

    let connection = rusqlite::Connection::open(&path).unwrap();
    let (rows, bytes): (i64, i64) = connection
        .query_row("SELECT count(*), sum(length(json)) FROM log", (), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert!(
        (1..=6).contains(&rows) && bytes <= 64 * 1024,
        "{rows} rows, {bytes} bytes"
    );
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_nobody_up_and_misses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("store.db"), Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    let start = session.list(Kind::Service).await.unwrap().revision;
    let mut slow = session.watch(Kind::Service, start).await.unwrap();
    let first = session.create(service("first")).await.unwrap();
    let mut expected = vec![first];
    // Live, then far more than the ring in memory holds.
    assert_eq!(
        slow.next().await.unwrap().unwrap(),
        crate::WatchEvent::Applied(expected[0].clone())
    );
    // Nothing is left in the log: from here on it listens to the ring.
    let silence = std::time::Duration::from_millis(500);
    let nothing = tokio::time::timeout(silence, slow.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    for number in 0..1000 {
        expected.push(
            session
                .create(service(&format!("s{number}")))
                .await
                .unwrap(),
        );
    }

    for object in &expected[1..] {
        let event = slow.next().await.unwrap().unwrap();
        assert_eq!(event, crate::WatchEvent::Applied(object.clone()));
    }
}

#[tokio::test]
async fn a_refused_write_leaves_the_others_of_its_transaction_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("store.db"), Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    let mut start = session
        .watch(Kind::Service, Revision("1".into()))
        .await
        .unwrap();
    let writes = (0..200).map(|number| {
        // Every third name is taken by the one before it.
        let name = format!("s{}", number - i32::from(number % 3 == 2));
        session.create(service(&name))
    });

    let results = futures::future::join_all(writes).await;

    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (134, 66));
    assert!(
        bad.iter()
            .all(|result| matches!(result, Err(StoreError::AlreadyExists(_))))
    );
    let mut seen = Vec::new();
    for _ in 0..134 {
        seen.push(start.next().await.unwrap().unwrap().revision());
    }
    let stored = session.list(Kind::Service).await.unwrap();
    assert_eq!(stored.objects.len(), 134);
    assert_eq!(
        stored.revision,
        *seen.last().unwrap(),
        "no revision was given to a refused write"
    );
}

#[tokio::test]
async fn an_admission_that_fails_at_its_last_step_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("store.db"), Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    let text = crate::Token::generate([7; 32]).unwrap().reveal();
    let request = crate::TokenRequest {
        node: Some("n1".parse().unwrap()),
        ttl: std::time::Duration::from_secs(60),
        replace: false,
    };
    store
        .add_token(&text.parse().unwrap(), &request)
        .await
        .unwrap();
    let before = session.list(Kind::Node).await.unwrap();
    let tokens = store.tokens().await.unwrap();

    let admission = Admission {
        token: text.parse().unwrap(),
        name: None,
        key_hash: "00".to_owned(),
    };
    let unsigned = store
        .admit(admission, |_| {
            Err(StoreError::Internal("no signature".to_owned()))
        })
        .await;

    assert!(matches!(unsigned, Err(StoreError::Internal(_))));
    assert_eq!(session.list(Kind::Node).await.unwrap(), before);
    assert_eq!(store.tokens().await.unwrap(), tokens);
}
