//! The service: devices for an agent that comes and goes.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use wire::event::{End, Event};
use wire::supervise::{Client, ClientError, Code};
use wire::uapi;
use wire_core::{PeerChange, PeerUpdate, PrivateKey, PublicKey};

use crate::command::{command, run, run_with};
use crate::namespace::{Namespace, unique};
use crate::traffic::echo;
use crate::wait::{PATIENCE, until};

/// Inner addresses of the first and the second of [`two`].
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 0, 2));

/// A running service. Dropped before its namespace.
struct Service {
    child: Child,
    directory: TempDir,
    namespace: Namespace,
}

impl Service {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let namespace = Namespace::new();
        let child = command("ip")
            .args(["netns", "exec", &namespace.name])
            .args([env!("CARGO_BIN_EXE_meshwire"), "--supervise"])
            .arg(directory.path().join("wire.sock"))
            .arg("--uapi-directory")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self {
            child,
            directory,
            namespace,
        };
        until("the service listens", || {
            Client::connect(&service.socket()).is_ok()
        });
        service
    }

    fn socket(&self) -> PathBuf {
        self.path().join("wire.sock")
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// Configures `wg0`.
    fn set(&self, configuration: &uapi::Configuration) {
        self.uapi("wg0").set(configuration).unwrap();
    }

    fn set_peer(&self, key: PublicKey, change: PeerChange) {
        self.set(&uapi::Configuration {
            peers: vec![(key, change)],
            ..uapi::Configuration::default()
        });
    }

    fn uapi(&self, name: &str) -> uapi::Client {
        uapi::Client::connect(self.path(), name).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok() {
            let _: std::io::Result<_> = self.child.wait();
        }
    }
}

/// A peer that may be anywhere.
fn peer(endpoint: Option<&str>, allowed_ip: &str) -> PeerChange {
    PeerChange::Upsert(PeerUpdate {
        endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
        allowed_ips: vec![wire_core::AllowedIpChange::Add(allowed_ip.parse().unwrap())],
        ..PeerUpdate::default()
    })
}

#[test]
fn a_device_is_made_listed_and_ended() {
    let service = Service::start();
    let mut client = service.client();
    assert_eq!(client.hello().uapi_directory, service.path());
    assert_eq!(client.list().unwrap(), []);

    let created = client.create("wireguard.cali", Some(1380)).unwrap();
    assert!(!created.existing);
    assert_eq!((created.device.mtu, created.device.port), (1380, None));
    let link = service.namespace.ip("link show wireguard.cali");
    assert!(link.contains("mtu 1380"), "{link}");
    assert!(
        link.starts_with(&format!("{}:", created.device.index)),
        "{link}"
    );

    let again = client.create("wireguard.cali", Some(1400)).unwrap();
    assert!(again.existing && again.device == created.device);
    assert_eq!(client.list().unwrap(), [created.device]);

    client.delete("wireguard.cali").unwrap();
    assert!(!service.namespace.has_link("wireguard.cali"));
    assert!(!service.path().join("wireguard.cali.sock").exists());
    assert_eq!(client.list().unwrap(), []);
    let Err(ClientError::Refused(refusal)) = client.delete("wireguard.cali") else {
        panic!("it is gone");
    };
    assert_eq!(refusal.code, Code::NotFound);
}

#[test]
fn what_cannot_be_is_refused_and_the_service_goes_on() {
    let service = Service::start();
    let mut client = service.client();
    for (name, mtu, code) in [
        ("a/b", None, Code::BadRequest),
        ("wg0", Some(67), Code::BadRequest),
        ("lo", None, Code::Failed),
    ] {
        let Err(ClientError::Refused(refusal)) = client.create(name, mtu) else {
            panic!("{name}");
        };
        assert_eq!(refusal.code, code, "{refusal}");
    }
    let mut raw = UnixStream::connect(service.socket()).unwrap();
    raw.write_all(b"nonsense\n{\"request\":\"list\"}\n")
        .unwrap();
    let answers: Vec<String> = BufReader::new(raw)
        .lines()
        .take(2)
        .map(Result::unwrap)
        .collect();
    assert!(
        answers[0].contains(r#""code":"bad-request""#),
        "{answers:?}"
    );
    assert_eq!(answers[1], r#"{"response":"devices","devices":[]}"#);
}

#[test]
fn devices_live_on_when_their_client_dies() {
    let service = Service::start();
    let index = service.client().create("wg0", None).unwrap().device.index;
    let mut raw = UnixStream::connect(service.socket()).unwrap();
    raw.write_all(b"{\"request\":\"create\",").unwrap();
    drop(raw);

    let created = service.client().create("wg0", None).unwrap();
    assert!(created.existing);
    assert_eq!(created.device.index, index);
}

#[test]
fn the_service_tells_when_somebody_deletes_a_device() {
    let service = Service::start();
    let mut events = service.client().events().unwrap();
    service.client().create("wg0", None).unwrap();
    let created = Event::DeviceCreated {
        interface: "wg0".into(),
    };
    assert_eq!(events.next(Some(PATIENCE)).unwrap(), Some(created));

    service.namespace.ip("link del wg0");
    let ended = Event::DeviceEnded {
        interface: "wg0".into(),
        reason: End::InterfaceDeleted,
    };
    assert_eq!(events.next(Some(PATIENCE)).unwrap(), Some(ended));
    until("it is no longer listed", || {
        service.client().list().unwrap().is_empty()
    });
    assert!(!service.client().create("wg0", None).unwrap().existing);
    assert_eq!(
        events.next(Some(PATIENCE)).unwrap(),
        Some(Event::DeviceCreated {
            interface: "wg0".into()
        })
    );
    assert_eq!(events.next(Some(Duration::from_millis(50))).unwrap(), None);
}

#[test]
fn a_uapi_socket_that_somebody_removes_is_made_again() {
    let service = Service::start();
    service.client().create("wg0", None).unwrap();
    let socket = service.path().join("wg0.sock");
    std::fs::remove_file(&socket).unwrap();
    until("the socket is back", || {
        uapi::Client::connect(service.path(), "wg0").is_ok_and(|mut uapi| uapi.get().is_ok())
    });
}

#[test]
fn told_to_end_the_service_leaves_nothing_behind() {
    let service = Service::start();
    let name = unique("mw");
    service.client().create(&name, None).unwrap();
    let mut service = service;
    let pid = rustix::process::Pid::from_child(&service.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(service.child.wait().unwrap().success());
    assert!(!service.namespace.has_link(&name));
    assert_eq!(std::fs::read_dir(service.path()).unwrap().count(), 0);
}

/// Two services with a device `wg0` each, joined by a cable, who are not yet peers; and their keys.
fn two() -> ([Service; 2], [PublicKey; 2]) {
    let services = [Service::start(), Service::start()];
    services[0].namespace.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        services[1].namespace.name
    ));
    let keys = [PrivateKey::new([1; 32]), PrivateKey::new([2; 32])];
    let public_keys = [keys[0].public_key(), keys[1].public_key()];
    for ((service, number), key) in services.iter().zip(1..).zip(keys) {
        let namespace = &service.namespace;
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        service.client().create("wg0", None).unwrap();
        namespace.ip(&format!("addr add 10.5.0.{number}/24 dev wg0"));
        namespace.ip("link set wg0 up");
        service.set(&uapi::Configuration {
            private_key: Some(Some(key)),
            listen_port: Some(51820),
            ..uapi::Configuration::default()
        });
    }
    (services, public_keys)
}

#[test]
fn the_agent_configures_sees_and_hears_its_peers() {
    let ([a, b], [a_key, b_key]) = two();
    let mut events = a.client().events().unwrap();
    b.set_peer(a_key, peer(None, "10.5.0.1/32"));
    a.set_peer(b_key, peer(Some("192.0.2.2:51820"), "10.5.0.2/32"));
    let key = wire::event::Key(b_key);
    assert_eq!(
        events.next(Some(PATIENCE)).unwrap(),
        Some(Event::HandshakeCompleted {
            interface: "wg0".into(),
            peer: key
        })
    );
    echo(&a.namespace, &b.namespace, B, [100]);

    let status = a.uapi("wg0").get().unwrap();
    assert_eq!(status.public_key, Some(a_key));
    assert!(status.peers[0].last_handshake.is_some() && status.peers[0].received_bytes > 0);

    b.set(&uapi::Configuration {
        listen_port: Some(4000),
        ..uapi::Configuration::default()
    });
    echo(&b.namespace, &a.namespace, A, [100]);
    assert_eq!(
        events.next(Some(PATIENCE)).unwrap(),
        Some(Event::EndpointChanged {
            interface: "wg0".into(),
            peer: key,
            endpoint: "192.0.2.2:4000".parse().unwrap()
        })
    );
    assert_eq!(a.client().list().unwrap()[0].peers, 1);
}

#[test]
fn what_is_dropped_is_counted_by_its_reason() {
    let ([a, b], [a_key, b_key]) = two();
    b.set_peer(a_key, peer(None, "10.5.0.1/32"));
    a.set_peer(b_key, peer(Some("192.0.2.2:51820"), "10.5.0.2/32"));
    echo(&a.namespace, &b.namespace, B, [100]);

    // 5 datagrams of noise, 6 data messages of no session, 7 initiations of a stranger.
    a.namespace.inside(|| {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.connect("192.0.2.2:51820").unwrap();
        for (count, kind, length) in [(5, 9, 100), (6, 4, 96), (7, 1, 148)] {
            for _ in 0..count {
                let mut datagram = vec![0x55; length];
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                socket.send(&datagram).unwrap();
            }
        }
    });
    // A source that is not a's, ten times.
    a.namespace.ip("addr add 10.5.0.77/32 dev wg0");
    a.namespace.inside(|| {
        let socket = UdpSocket::bind("10.5.0.77:0").unwrap();
        for _ in 0..10 {
            socket.send_to(b"forged", "10.5.0.2:9").unwrap();
        }
    });
    let counters = || b.client().list().unwrap()[0].counters;
    until("all are counted", || counters().in_wrong_source >= 10);
    let counters = counters();
    assert_eq!(
        (
            counters.in_malformed,
            counters.in_no_session,
            counters.in_handshake_refused,
            counters.in_wrong_source
        ),
        (5, 6, 7, 10)
    );
    echo(&a.namespace, &b.namespace, B, [100]);
}

#[test]
fn another_user_is_turned_away() {
    let service = Service::start();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(service.socket()).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // Even where the file would let them in.
    run(&format!("chmod 777 {}", service.socket().display()));
    run(&format!("chmod 755 {}", service.path().display()));
    let script = format!(
        "import os,socket\nos.setgid(65534)\nos.setuid(65534)\n\
         s=socket.socket(socket.AF_UNIX)\ns.connect('{}')\n\
         s.settimeout(10)\n\
         try:\n s.sendall(b'{{\"request\":\"list\"}}\\n')\n print(len(s.recv(100)))\n\
         except OSError: print(0)\n",
        service.socket().display()
    );
    assert_eq!(run_with("python3 -", &script).trim(), "0");
    assert_eq!(service.client().list().unwrap(), []);
}
