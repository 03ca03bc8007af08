//! Who is kept out, and what nobody may take of the server.

use futures::StreamExt;
use jiff::ToSpan;
use model::{Kind, Object, ObjectKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{Denial, Precondition, Store, WatchEvent, certificate::SERVER_NAME};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn tls_1_2_is_refused_and_1_3_is_not() {
    let served = Served::start(Log::Long).await;
    for (version, accepted) in [
        (&rustls::version::TLS12, false),
        (&rustls::version::TLS13, true),
    ] {
        let mut roots = RootCertStore::empty();
        let ca = served.authority().pem().to_owned();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let config = ClientConfig::builder_with_provider(crate::certificate::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();

        let shaken = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;

        assert_eq!(shaken.is_ok(), accepted, "{version:?}: {:?}", shaken.err());
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let [served, other] = [
        Served::start(Log::Long).await,
        Served::start(Log::Long).await,
    ];
    let foreign = Credential::load(&other.directory.path().join("admin.yaml")).unwrap();
    let ours = Credential::load(&served.directory.path().join("admin.yaml")).unwrap();

    // It trusts our server, and shows what another CA signed.
    let mixed = foreign.with_ca_of(&ours).with_servers(vec![served.url()]);
    let refused = Client::new(mixed).unwrap().list(Kind::Node).await;

    assert!(is_shut_out(&refused), "{refused:?}");
    assert_eq!(
        eventually(|| served.counters.failed_handshakes(), 1).await,
        1
    );
}

#[tokio::test]
async fn a_client_does_not_speak_to_a_server_of_another_ca() {
    let [served, other] = [
        Served::start(Log::Long).await,
        Served::start(Log::Long).await,
    ];
    let ours = Credential::load(&served.directory.path().join("admin.yaml")).unwrap();

    let refused = Client::new(ours.with_servers(vec![other.url()]))
        .unwrap()
        .hello()
        .await;

    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_nodes_certificate_does_not_make_it_a_server() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await.credential().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(node.as_server());
    let fake = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream).await.map(drop)
    });

    let admin = Credential::load(&served.directory.path().join("admin.yaml")).unwrap();
    let fooled = Client::new(admin.with_servers(vec![format!("https://{address}")])).unwrap();

    assert!(fooled.hello().await.is_err());
    assert!(fake.await.unwrap().is_err());
}

#[tokio::test]
async fn an_expired_an_unknown_and_a_future_certificate_are_refused() {
    let served = Served::start(Log::Long).await;
    served.join("n1").await;
    let now = Timestamp::now();
    for (at, noted) in [
        (now - 25.hours(), Noted::Yes),
        (now + 1.hours(), Noted::Yes),
        (now, Noted::No),
    ] {
        let credential = served.credential_signed("n1", at, noted).await.unwrap();

        let refused = Client::new(credential).unwrap().list(Kind::Node).await;

        assert!(is_shut_out(&refused), "signed at {at}: {refused:?}");
    }
    let good = served
        .credential_signed("n1", now, Noted::Yes)
        .await
        .unwrap();
    Client::new(good).unwrap().list(Kind::Node).await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let served = Served::start(Log::Long).await;
    served.join("n1").await;
    let nearly_a_day = Timestamp::now() - 24.hours() + 3.seconds();
    let credential = served
        .credential_signed("n1", nearly_a_day, Noted::Yes)
        .await
        .unwrap();
    let client = Client::new(credential).unwrap();
    let list = client.list(Kind::Node).await.unwrap();
    let mut watch = client.watch(Kind::Node, list.revision).await.unwrap();

    let ended = timeout(DEADLINE, watch.next())
        .await
        .expect("the watch is cut");

    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    assert!(is_shut_out(&client.list(Kind::Node).await));
}

#[tokio::test]
async fn a_revoked_certificate_is_cut_and_never_comes_back() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let list = node.list(Kind::Service).await.unwrap();
    let mut watch = node.watch(Kind::Service, list.revision).await.unwrap();
    let key = ObjectKey::cluster(Kind::Node, "n1");

    served.admin().delete(key, Precondition::Any).await.unwrap();

    let ended = timeout(DEADLINE, watch.next())
        .await
        .expect("the watch is cut");
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    assert!(is_shut_out(&node.list(Kind::Service).await));
    assert!(is_shut_out(&node.renew().await.map(drop)));
}

#[tokio::test]
async fn a_stranger_gets_nothing_but_the_door() {
    let served = Served::start(Log::Long).await;
    let token = Token::generate(served.authority().fingerprint()).unwrap();
    let mut store = served.stranger(&token);

    let hello = store.hello(proto::HelloRequest {}).await;
    let list = store
        .list(proto::ListRequest {
            kind: "Node".into(),
        })
        .await
        .map(drop);
    let watch = proto::WatchRequest {
        kind: "Node".into(),
        revision: "1".into(),
    };
    let watch = store.watch(watch).await.map(drop);
    let object = proto::Object { json: "{}".into() };
    let create = store.create(object).await.map(drop);
    let renew = store.renew(proto::RenewRequest::default()).await.map(drop);
    let tokens = store
        .list_tokens(proto::ListTokensRequest {})
        .await
        .map(drop);

    for result in [hello.map(drop), list, watch, create, renew, tokens] {
        assert_eq!(result.unwrap_err().code(), tonic::Code::Unauthenticated);
    }
    assert_eq!(served.counters.unauthenticated(), 6);
}

#[tokio::test]
async fn a_node_neither_sees_nor_makes_tokens() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let request = TokenRequest {
        node: None,
        ttl: Duration::from_secs(60),
        replace: false,
    };

    let results = [
        node.create_token(request).await.map(drop),
        node.tokens().await.map(drop),
        node.delete_token("0").await,
    ];

    for result in results {
        assert!(
            matches!(
                result,
                Err(StoreError::Forbidden {
                    reason: Denial::AdministratorOnly,
                    ..
                })
            ),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_write_comes_with_its_reason_and_is_counted() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let key = ObjectKey::cluster(Kind::Node, "n1");
    let labels = json!({"metadata": {"labels": {"zone": "b"}}});

    let refused = node.patch(key, labels, Precondition::Any).await;
    let pool = ObjectKey::cluster(Kind::IPPool, "mine");
    let pool = node
        .create(Object::new(&pool, json!({"cidr": "10.9.0.0/16"})))
        .await;

    let Err(StoreError::Forbidden { reason, message }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((reason, message.is_empty()), (Denial::Labels, false));
    assert!(matches!(pool, Err(StoreError::Forbidden { .. })));
    let counted: Vec<_> = served
        .counters
        .denied()
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(
        counted,
        [(Denial::AdministratorOnly, 1), (Denial::Labels, 1)]
    );
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let served = Served::start(Log::Long).await;
    let admin = served.admin();
    let mut state = 1_u32;
    for length in [0, 1, 5, 100, 5000, 70_000] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let garbage: Vec<u8> = (0..length)
            .map(|_| {
                // Numerical Recipes' linear congruence: any bytes will do.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        // The server may hang up while we still talk.
        drop(stream.write_all(&garbage).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(
            timeout(DEADLINE, stream.read_to_end(&mut answer))
                .await
                .expect("it hangs up"),
        );
    }

    admin.list(Kind::Node).await.unwrap();
    assert_eq!(
        eventually(|| served.counters.failed_handshakes(), 6).await,
        6
    );
}

#[tokio::test]
async fn garbage_inside_tls_harms_nobody() {
    let served = Served::start(Log::Long).await;
    let credential = served.join("n1").await.credential().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0",
    ] {
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let connector = TlsConnector::from(credential.tls().unwrap());
        let mut stream = connector.connect(name, stream).await.unwrap();
        // The server may hang up while we still talk.
        drop(stream.write_all(garbage).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(
            timeout(DEADLINE, stream.read_to_end(&mut answer))
                .await
                .expect("it hangs up"),
        );
    }

    served.admin().list(Kind::Node).await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_cut_after_five_seconds() {
    let served = Served::start(Log::Long).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let start = std::time::Instant::now();

    let mut byte = [0];
    let read = timeout(DEADLINE, silent.read(&mut byte))
        .await
        .expect("it hangs up");

    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn an_oversize_request_is_refused_and_the_next_one_served() {
    let served = Served::start(Log::Long).await;
    let admin = served.admin();
    for size in [257 * 1024, 1024 * 1024, 3 * 1024 * 1024] {
        let key = ObjectKey::namespaced(Kind::Service, "default", "huge");
        let huge = Object::new(&key, json!({"blob": "x".repeat(size)}));
        assert!(admin.create(huge).await.is_err(), "{size}");
    }
    let key = ObjectKey::namespaced(Kind::Service, "default", "large");
    let large = Object::new(&key, json!({"blob": "x".repeat(250 * 1024)}));

    admin.create(large.clone()).await.unwrap();

    assert_eq!(admin.get(key).await.unwrap().body, large.body);
}

#[tokio::test]
async fn a_name_has_eight_connections_at_most() {
    let served = Served::start(Log::Long).await;
    let credential = served.join("n1").await.credential().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = Client::new(credential.clone()).unwrap();
        let served = client.hello().await.is_ok();
        clients.push((client, served));
    }

    let many = clients.iter().filter(|(_, served)| *served).count();
    // The client that joined may still hold one.
    assert!(
        (limit::CONNECTIONS_PER_NAME - 1..=limit::CONNECTIONS_PER_NAME).contains(&many),
        "{many}"
    );
    served.join("n2").await.hello().await.unwrap();
    clients.clear();
    let again = Client::new(credential).unwrap();
    let mut answered = false;
    for _ in 0..200 {
        answered = again.hello().await.is_ok();
        if answered {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answered, "the places are given back");
}

#[tokio::test]
async fn a_connection_has_sixty_four_watches_at_most() {
    let served = Served::start(Log::Long).await;
    let node = served.join("n1").await;
    let revision = node.list(Kind::Node).await.unwrap().revision;
    let mut watches = Vec::new();
    for _ in 0..limit::WATCHES {
        watches.push(node.watch(Kind::Node, revision.clone()).await.unwrap());
    }

    let more = node.watch(Kind::Node, revision.clone()).await.map(drop);

    assert!(
        matches!(
            more,
            Err(StoreError::TooMany {
                limit: limit::WATCHES,
                ..
            })
        ),
        "{more:?}"
    );
    // All of them are served.
    let pool = ObjectKey::cluster(Kind::Node, "n2");
    let created = served
        .admin()
        .create(Object::new(&pool, json!({})))
        .await
        .unwrap();
    for watch in &mut watches {
        let event = timeout(DEADLINE, watch.next())
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(event, Ok(WatchEvent::Applied(created.clone())));
    }
}

#[tokio::test]
async fn a_watcher_that_reads_nothing_holds_nobody_up() {
    let served = Served::start(Log::Short).await;
    let node = served.join("n1").await;
    let list = node.list(Kind::Service).await.unwrap();
    let mut stuck = node.watch(Kind::Service, list.revision).await.unwrap();
    let admin = served.store.session(crate::Caller::local_admin());
    // More than the ring in memory and the log hold, and than the connection buffers.
    let blob = "x".repeat(20_000);
    for number in 0..600 {
        let key = ObjectKey::namespaced(Kind::Service, "default", format!("s{number}"));
        let object = Object::new(&key, json!({"blob": blob}));
        timeout(DEADLINE, admin.create(object))
            .await
            .expect("the writer goes on")
            .unwrap();
    }

    let mut last = None;
    while let Some(event) = timeout(DEADLINE, stuck.next())
        .await
        .expect("an answer in time")
    {
        last = Some(event);
    }

    assert_eq!(last, Some(Err(StoreError::Compacted(Kind::Service))));
}

#[tokio::test]
async fn a_node_that_floods_the_store_is_held_back_and_no_other() {
    let served = Served::start(Log::Long).await;
    let [flood, quiet] = [served.join("n1").await, served.join("n2").await];
    let mut written = 0;
    let held = loop {
        let key = ObjectKey::cluster(Kind::Node, "n1");
        let words = json!({"metadata": {"annotations": {"meshd.dev/n": written.to_string()}}});
        match flood.patch(key, words, Precondition::Any).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };

    assert!(matches!(held, StoreError::TooMany { .. }), "{held:?}");
    assert!(written >= limit::WRITES_AT_ONCE, "{written}");
    let key = ObjectKey::cluster(Kind::Node, "n2");
    let words = json!({"metadata": {"annotations": {"meshd.dev/n": "1"}}});
    quiet.patch(key, words, Precondition::Any).await.unwrap();
}

#[test]
fn a_credential_file_that_is_malformed_does_not_print_its_key() {
    let spoilt = "apiVersion: meshd.dev/v1\nkind: Credential\nservers: [https://a]\nca: x\n\
                  certificate: y\nkey: {SECRET: [}\n";

    let error = Credential::parse(spoilt).map(drop).unwrap_err();

    assert!(
        !format!("{error} {error:?}").contains("SECRET"),
        "{error:?}"
    );
}

fn is_shut_out<T>(result: &Result<T, StoreError>) -> bool {
    matches!(
        result,
        Err(StoreError::Unauthenticated(_) | StoreError::Unavailable(_))
    )
}

/// Waits until a count has come so far.
async fn eventually(count: impl Fn() -> u64, wanted: u64) -> u64 {
    let reached = async {
        while count() < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    drop(timeout(DEADLINE, reached).await);

    count()
}
