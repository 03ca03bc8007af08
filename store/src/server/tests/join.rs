//! How a host becomes a member, and stays one.

use futures::StreamExt;
use jiff::ToSpan;
use model::{Kind, Object, ObjectKey, PublicKey, constant::RECORD_ANNOTATION, resource::KeyClaim};
use serde_json::json;
use zeroize::Zeroizing;

use super::*;
use crate::{EnrolError, Precondition, Store, StoreEvent};

#[tokio::test]
async fn a_host_joins_with_a_token_and_is_who_the_token_says() {
    let served = Served::start(Log::Long).await;

    let client = served.join("n1").await;

    let hello = client.hello().await.unwrap();
    assert_eq!(hello.identity, Identity::Node("n1".parse().unwrap()));
    assert_eq!(hello.source, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(hello.mesh, client.credential().await.mesh().unwrap());
    let node = client
        .get(ObjectKey::cluster(Kind::Node, "n1"))
        .await
        .unwrap();
    assert!(node.metadata.labels.is_empty());
    let (from, until) = client.credential().await.validity();
    assert_eq!(until.as_second() - from.as_second(), 24 * 3600 + 300);
}

#[tokio::test]
async fn a_token_is_good_for_one_host_and_for_its_repetition() {
    let served = Served::start(Log::Long).await;
    let token = served.token(Some("n1"), false).await;
    let key = Enrolment::generate_key().unwrap();
    served.enrol(&token, None, &key).await.unwrap();

    // The answer was lost: the same host asks again.
    served.enrol(&token, None, &key).await.unwrap();

    let other = Enrolment::generate_key().unwrap();
    let refused = served.enrol(&token, None, &other).await;
    assert_refused(refused, "the token has been used");
}

#[tokio::test]
async fn a_host_that_was_thrown_out_does_not_come_back_with_its_token() {
    let served = Served::start(Log::Long).await;
    let token = served.token(Some("n1"), false).await;
    let key = Enrolment::generate_key().unwrap();
    served.enrol(&token, None, &key).await.unwrap();

    let node = ObjectKey::cluster(Kind::Node, "n1");
    served
        .admin()
        .delete(node, Precondition::Any)
        .await
        .unwrap();

    assert_refused(
        served.enrol(&token, None, &key).await,
        "does not know this token",
    );
}

#[tokio::test]
async fn an_expired_an_unknown_and_a_deleted_token_are_refused() {
    let served = Served::start(Log::Long).await;
    let key = Enrolment::generate_key().unwrap();
    let expired = served.token(Some("n1"), false).await;
    let database = rusqlite::Connection::open(served.directory.path().join("store.db")).unwrap();
    let past = (Timestamp::now() - 1.hours()).as_second();
    database
        .execute("UPDATE token SET expires = ?", [past])
        .unwrap();
    assert_refused(
        served.enrol(&expired, None, &key).await,
        "the token has expired",
    );

    let forged = Token::generate(served.authority().fingerprint()).unwrap();
    assert_refused(
        served.enrol(&forged, None, &key).await,
        "does not know this token",
    );

    let deleted = served.token(Some("n1"), false).await;
    served.admin().delete_token(deleted.id()).await.unwrap();
    assert_refused(
        served.enrol(&deleted, None, &key).await,
        "does not know this token",
    );

    let real = served.token(Some("n1"), false).await;
    let text = real.reveal();
    let (head, tail) = text.split_at(7 + 16 + 1);
    let flipped = if tail.starts_with('A') { "B" } else { "A" };
    let guess: Token = format!("{head}{flipped}{}", &tail[1..]).parse().unwrap();
    assert_refused(
        served.enrol(&guess, None, &key).await,
        "does not know this token",
    );
    served.enrol(&real, None, &key).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_days_wrong_is_named() {
    let served = Served::start(Log::Long).await;
    let token = served.token(Some("n1"), false).await;
    let key = Enrolment::generate_key().unwrap();
    let server = served.url();
    for wrong in [48.hours(), (-48).hours()] {
        let enrolment = Enrolment {
            server: &server,
            token: &token,
            name: None,
            key: &key,
        };

        let refused = crate::enrol(enrolment, Timestamp::now() + wrong).await;

        assert!(
            matches!(refused, Err(EnrolError::ClockSkew(_))),
            "{:?}",
            refused.err()
        );
    }
}

#[tokio::test]
async fn a_token_of_another_mesh_never_reaches_the_server() {
    let [served, other] = [
        Served::start(Log::Long).await,
        Served::start(Log::Long).await,
    ];
    let token = other.token(Some("n1"), false).await;
    let key = Enrolment::generate_key().unwrap();

    let refused = served.enrol(&token, None, &key).await;

    assert!(
        matches!(refused, Err(EnrolError::WrongServer(_))),
        "{:?}",
        refused.err()
    );
    assert_eq!(
        eventually_one(|| served.counters.failed_handshakes()).await,
        1
    );
}

#[tokio::test]
async fn a_token_admits_the_name_it_names_and_an_open_one_any_new_name() {
    let served = Served::start(Log::Long).await;
    let key = Enrolment::generate_key().unwrap();
    let bound = served.token(Some("n1"), false).await;
    let refused = served.enrol(&bound, Some("n2"), &key).await;
    assert_refused(refused, "the token is for n1, not for n2");

    let open = served.token(None, false).await;
    let nameless = served.enrol(&open, None, &key).await;
    assert!(nameless.is_err_and(|error| error.needs_name()));
    let joined = served.enrol(&open, Some("n2"), &key).await.unwrap();
    assert_eq!(joined.identity().name(), "n2");

    let taken = served.token(None, false).await;
    assert_refused(served.enrol(&taken, Some("n2"), &key).await, "n2 is in use");
    // A refusal uses no token up.
    served.enrol(&taken, Some("n3"), &key).await.unwrap();
}

#[tokio::test]
async fn a_name_that_is_replaced_belongs_to_the_new_host_alone() {
    let served = Served::start(Log::Long).await;
    let old = served.join("n1").await;
    let admin = served.admin();
    let node = ObjectKey::cluster(Kind::Node, "n1");
    let words =
        json!({"metadata": {"labels": {"zone": "a"}, "annotations": {"example.com/keep": "1"}}});
    admin
        .patch(node.clone(), words, Precondition::Any)
        .await
        .unwrap();
    let claim = KeyClaim::new(PublicKey::new([1; 32]).unwrap(), "n1".parse().unwrap()).to_object();
    old.create(claim.clone()).await.unwrap();
    let words = json!({
        "metadata": {"annotations": {"meshd.dev/other": "x"}},
        "status": {"wireguardPublicKey": PublicKey::new([1; 32]).unwrap()},
    });
    old.patch(node.clone(), words, Precondition::Any)
        .await
        .unwrap();

    let token = served.token(Some("n1"), true).await;
    let key = Enrolment::generate_key().unwrap();
    let new = Client::new(served.enrol(&token, None, &key).await.unwrap()).unwrap();

    let stored = new.get(node).await.unwrap();
    assert_eq!(stored.metadata.labels["zone"], "a");
    assert_eq!(stored.metadata.annotations["example.com/keep"], "1");
    assert!(!stored.metadata.annotations.contains_key(RECORD_ANNOTATION));
    assert!(!stored.body.contains_key("status"));
    let gone = new.get(claim.key()).await;
    assert_eq!(gone, Err(StoreError::NotFound(claim.key())));
    let shut_out = old.hello().await;
    assert!(
        matches!(
            shut_out,
            Err(StoreError::Unauthenticated(_) | StoreError::Unavailable(_))
        ),
        "{shut_out:?}"
    );
}

#[tokio::test]
async fn a_renewed_certificate_has_a_new_key_and_the_same_name() {
    let served = Served::start(Log::Long).await;
    let client = served.join("n1").await;
    let first = client.credential().await;
    let path = served.directory.path().join("node.yaml");

    let second = client.renew().await.unwrap();
    second.save(&path).unwrap();

    assert_eq!(second.identity(), first.identity());
    assert_ne!(second.serial(), first.serial());
    let loaded = Credential::load(&path).unwrap();
    let from_file = Client::new(loaded).unwrap();
    assert_eq!(from_file.hello().await.unwrap().identity, *first.identity());
    client.hello().await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_written() {
    let served = Served::start(Log::Long).await;
    served.join("n1").await;
    let path = served.directory.path().join("node.yaml");
    for (age, due) in [(15.hours(), false), (17.hours(), true)] {
        let signed = Timestamp::now() - age;
        let old = served
            .credential_signed("n1", signed, Noted::Yes)
            .await
            .unwrap();
        old.save(&path).unwrap();
        let client = Client::new(old.clone()).unwrap();
        let wait = if due {
            Duration::from_secs(20)
        } else {
            Duration::from_millis(300)
        };

        let renewed = tokio::select! {
            () = client.keep_renewed(&path) => unreachable!("it never returns"),
            renewed = tokio::time::timeout(wait, other_than(&path, &old)) => renewed.is_ok(),
        };

        assert_eq!(renewed, due, "{age:#}");
    }
    let written = Credential::load(&path).unwrap();
    let (_, until) = written.validity();
    assert!(until > Timestamp::now() + 23.hours());
    Client::new(written).unwrap().hello().await.unwrap();
}

#[tokio::test]
async fn a_refused_renewal_leaves_the_credential_in_use() {
    let served = Served::start(Log::Long).await;
    served.join("n1").await;
    let path = served.directory.path().join("node.yaml");
    let signed = Timestamp::now() - 17.hours();
    let old = served
        .credential_signed("n1", signed, Noted::Yes)
        .await
        .unwrap();
    old.save(&path).unwrap();
    let client = Client::new(old.clone()).unwrap();
    let directory = served.stop().await;

    let gone = tokio::time::timeout(Duration::from_millis(300), client.keep_renewed(&path)).await;

    assert!(gone.is_err(), "it goes on trying");
    assert_eq!(client.credential().await.serial(), old.serial());
    assert_eq!(Credential::load(&path).unwrap().serial(), old.serial());
    drop(directory);
}

#[tokio::test]
async fn the_server_keeps_nothing_that_a_token_could_be_made_from() {
    let served = Served::start(Log::Long).await;
    let token = served.token(None, false).await;
    let text = token.reveal();
    let secret = text.split('.').nth(2).unwrap().to_owned();
    let directory = served.stop_and_close().await;

    let mut read = 0;
    for entry in fs::read_dir(directory.path()).unwrap() {
        let content = fs::read(entry.unwrap().path()).unwrap();
        read += content.len();
        let found = content
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "the secret is on disk");
    }
    assert!(read > 1000, "the database was read");
}

#[tokio::test]
async fn tokens_are_listed_without_their_secrets() {
    let served = Served::start(Log::Long).await;
    let open = served.token(None, false).await;
    let bound = served.token(Some("n1"), true).await;
    let key = Enrolment::generate_key().unwrap();
    served.enrol(&bound, None, &key).await.unwrap();

    let mut listed = served.admin().tokens().await.unwrap();
    listed.sort_by_key(|entry| entry.node.is_some());

    let [first, second] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (first.id.as_str(), &first.used_by, first.replace),
        (open.id(), &None, false)
    );
    let n1 = Some("n1".parse().unwrap());
    assert_eq!(
        (second.id.as_str(), &second.used_by, second.replace),
        (bound.id(), &n1, true)
    );
    let too_long = TokenRequest {
        node: None,
        ttl: TTL_TOO_LONG,
        replace: false,
    };
    let refused = served.admin().create_token(too_long).await.map(drop);
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_server_that_starts_again_is_the_same_mesh() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let mesh = node.hello().await.unwrap().mesh;
    let admin = fs::read(served.directory.path().join("admin.yaml")).unwrap();
    let address = served.address;
    let directory = served.stop().await;

    let served = Served::start_in(directory, address, Log::Long).await;

    assert_eq!(
        fs::read(served.directory.path().join("admin.yaml")).unwrap(),
        admin
    );
    let mut hello = node.hello().await;
    for _ in 0..100 {
        if hello.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        hello = node.hello().await;
    }
    assert_eq!(hello.unwrap().mesh, mesh);
}

#[tokio::test]
async fn an_administrators_credential_ends_when_its_file_is_removed_and_the_server_restarts() {
    let served = Served::start(Log::Long).await;
    let leaked = Credential::load(&served.directory.path().join("admin.yaml")).unwrap();
    let address = served.address;
    let directory = served.stop().await;
    fs::remove_file(directory.path().join("admin.yaml")).unwrap();

    let served = Served::start_in(directory, address, Log::Long).await;

    served.admin().tokens().await.unwrap();
    let refused = Client::new(leaked).unwrap().tokens().await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Unauthenticated(_) | StoreError::Unavailable(_))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn followers_go_on_where_they_were_when_the_server_comes_back() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let mut follower = node.watch_all(&[Kind::Service]);
    let service = |name: &str| {
        Object::new(
            &ObjectKey::namespaced(Kind::Service, "default", name),
            json!({}),
        )
    };
    assert_eq!(next(&mut follower).await, StoreEvent::Connected(true));
    assert_eq!(next(&mut follower).await, StoreEvent::InSync(Kind::Service));
    let first = served.admin().create(service("first")).await.unwrap();
    assert_eq!(next(&mut follower).await, StoreEvent::Applied(first));
    let address = served.address;

    let stopped = std::time::Instant::now();
    let directory = served.stop().await;
    assert!(
        stopped.elapsed() < Duration::from_secs(5),
        "an open watch does not hold it up"
    );
    assert_eq!(next(&mut follower).await, StoreEvent::Connected(false));
    let served = Served::start_in(directory, address, Log::Long).await;
    let second = served.admin().create(service("second")).await.unwrap();

    // The first object is not told again.
    assert_eq!(next(&mut follower).await, StoreEvent::Connected(true));
    assert_eq!(next(&mut follower).await, StoreEvent::Applied(second));
}

#[test]
fn a_credential_is_copied_unless_another_meshs_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/config.yaml");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let [first, second] = runtime.block_on(async {
        [
            Served::start(Log::Long).await,
            Served::start(Log::Long).await,
        ]
        .map(|served| Credential::load(&served.directory.path().join("admin.yaml")).unwrap())
    });

    assert_eq!(first.install(&path).unwrap(), crate::Installed::Written);
    assert_eq!(first.install(&path).unwrap(), crate::Installed::Written);
    assert_eq!(second.install(&path).unwrap(), crate::Installed::OtherMesh);
    assert_eq!(
        Credential::load(&path).unwrap().mesh().unwrap(),
        first.mesh().unwrap()
    );
}

const TTL_TOO_LONG: Duration = Duration::from_secs(31 * 24 * 3600);

impl Served {
    async fn enrol(
        &self,
        token: &Token,
        name: Option<&str>,
        key: &Zeroizing<String>,
    ) -> Result<Credential, EnrolError> {
        let server = self.url();
        let name = name.map(|name| name.parse().unwrap());

        crate::enrol(
            Enrolment {
                server: &server,
                token,
                name,
                key,
            },
            Timestamp::now(),
        )
        .await
    }
}

/// Waits until a file holds another certificate.
async fn other_than(path: &Path, old: &Credential) {
    while Credential::load(path).unwrap().serial() == old.serial() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn next(follower: &mut (impl futures::Stream<Item = StoreEvent> + Unpin)) -> StoreEvent {
    let event = tokio::time::timeout(Duration::from_secs(20), follower.next()).await;

    event.expect("an event in time").expect("never ends")
}

async fn eventually_one(count: impl Fn() -> u64) -> u64 {
    for _ in 0..500 {
        if count() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    count()
}

fn assert_refused(result: Result<Credential, EnrolError>, words: &str) {
    match result {
        Err(EnrolError::Refused(error)) if error.to_string().contains(words) => {}
        Err(error) => panic!("expected {words:?}, found {error}"),
        Ok(_) => panic!("expected {words:?}, found a certificate"),
    }
}

#[tokio::test]
async fn a_server_whose_store_is_gone_does_not_begin_a_new_mesh_under_the_old_ca() {
    let served = Served::start(Log::Long).await;
    let address = served.address;
    let directory = served.stop_and_close().await;
    let (store, log) = (
        directory.path().join("store.db"),
        directory.path().join("store.db-wal"),
    );
    for spoil in [Spoil::Empty, Spoil::Remove] {
        for file in [&store, &log].into_iter().filter(|file| file.exists()) {
            match spoil {
                Spoil::Empty => fs::write(file, "").unwrap(),
                Spoil::Remove => fs::remove_file(file).unwrap(),
            }
        }
        let refused = start_server(directory.path(), address).await;
        assert!(
            refused.contains("store.db is missing or empty"),
            "{refused}"
        );
    }
    assert!(!store.exists(), "nothing was made in its place");
}

#[tokio::test]
async fn a_server_whose_ca_is_gone_does_not_make_another() {
    let served = Served::start(Log::Long).await;
    let address = served.address;
    let directory = served.stop().await;
    for name in ["ca.key", "ca.crt"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }

    let refused = start_server(directory.path(), address).await;

    assert!(refused.contains("ca.key is gone"), "{refused}");
    assert!(!directory.path().join("ca.key").exists());
}

#[tokio::test]
async fn a_damaged_store_is_named_and_left_as_it_is() {
    let served = Served::start(Log::Long).await;
    let address = served.address;
    let directory = served.stop_and_close().await;
    let path = directory.path().join("store.db");
    // What is still in the log would make up for it.
    for log in ["store.db-wal", "store.db-shm"].map(|name| directory.path().join(name)) {
        if log.exists() {
            fs::remove_file(log).unwrap();
        }
    }
    fs::write(&path, b"not a database at all, but long enough".repeat(200)).unwrap();
    let before = fs::read(&path).unwrap();

    let refused = start_server(directory.path(), address).await;

    assert!(refused.contains("store.db"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

enum Spoil {
    Empty,
    Remove,
}

/// Starts a server that must not start; returns all that it says.
async fn start_server(data: &std::path::Path, listen: SocketAddr) -> String {
    let options = ServerOptions {
        data: data.to_owned(),
        listen,
        advertise: Vec::new(),
        store: Options::default(),
    };
    let error = match Server::start(options, Timestamp::now()).await {
        Ok(_) => panic!("the server started"),
        Err(error) => error,
    };
    let mut said = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        said.push_str(&format!(": {error}"));
        source = error.source();
    }

    said
}
