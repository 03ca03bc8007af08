//! Ends that move, and translators on the way.

use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::packet::counted;
use crate::pair::{End, Outside, ours, strangers};
use crate::traffic::{bulk, echo, reaches};
use crate::tunnel::Make;
use crate::wait::{PATIENCE, until};

/// Where `one` thinks that `other` is.
fn endpoint(one: &End, other: &End) -> String {
    one.tunnel
        .show_peer("endpoints", &other.tunnel.public_key)
        .expect("a peer")
}

fn sessions(a: &End, b: &End) -> (u64, u64) {
    (
        a.tunnel.last_handshake(&b.tunnel.public_key),
        b.tunnel.last_handshake(&a.tunnel.public_key),
    )
}

/// Replaces the outer addresses of the host that was `from` by those that end in `to`.
fn renumber(end: &End, from: u8, to: u8) {
    let namespace = &end.namespace;
    namespace.ip(&format!("addr del 192.0.2.{from}/24 dev eth0"));
    namespace.ip(&format!("addr del 2001:db8::{from}/64 dev eth0"));
    namespace.ip(&format!("addr add 192.0.2.{to}/24 dev eth0"));
    namespace.ip(&format!("addr add 2001:db8::{to}/64 dev eth0 nodad"));
}

#[test]
fn whichever_end_moves_the_other_follows_without_a_handshake() {
    for outside in [Outside::V4, Outside::V6] {
        let (a, b) = ours(outside);
        echo(&a.namespace, &b.namespace, b.v4(), [100]);
        let begun = sessions(&a, &b);

        // A datagram that leaves in the moment of the change may be lost; the tunnel is not.
        renumber(&a, 1, 11);
        assert!(reaches(&a.namespace, &b.namespace, b.v4(), PATIENCE));
        echo(&a.namespace, &b.namespace, b.v4(), [100, 1392]);
        assert_eq!(endpoint(&b, &a), outside.endpoint(11));

        renumber(&b, 2, 12);
        assert!(reaches(&b.namespace, &a.namespace, a.v4(), PATIENCE));
        echo(&b.namespace, &a.namespace, a.v4(), [100, 1392]);
        assert_eq!(endpoint(&a, &b), outside.endpoint(12));

        bulk(&a.namespace, &b.namespace, b.v6(), 1 << 20);
        assert_eq!(sessions(&a, &b), begun);
    }
}

/// a ── 10.77.0.0/24 ── router, which translates ── 192.0.2.0/24 ── b
struct Translated {
    a: End,
    b: End,
    router: Namespace,
}

impl Translated {
    fn new() -> Self {
        let (left, router, right) = (Namespace::new(), Namespace::new(), Namespace::new());
        router.ip(&format!(
            "link add in type veth peer name eth0 netns {}",
            left.name
        ));
        router.ip(&format!(
            "link add out type veth peer name eth0 netns {}",
            right.name
        ));
        for (namespace, device, address) in [
            (&left, "eth0", "10.77.0.2/24"),
            (&router, "in", "10.77.0.1/24"),
            (&router, "out", "192.0.2.1/24"),
            (&right, "eth0", "192.0.2.2/24"),
        ] {
            namespace.ip(&format!("addr add {address} dev {device}"));
            namespace.ip(&format!("link set {device} up"));
        }
        left.ip("route add default via 10.77.0.1");
        router.exec("sysctl -qw net.ipv4.ip_forward=1");
        router.nft(
            "table ip translator { chain post { type nat hook postrouting priority 100;
               oifname out meta l4proto udp masquerade to :2000-60000 random
             }
             }",
        );
        let (a, b) = (
            End::on(left, Make::Meshwire, 1),
            End::on(right, Make::Meshwire, 2),
        );
        // A link that has just come up may lose its first packets, and a lost handshake is repeated after 5 s only.
        assert!(
            reaches(&a.namespace, &b.namespace, [192, 0, 2, 2].into(), PATIENCE),
            "no way through the translator"
        );
        b.add_peer(&a, None);
        b.up(1420);
        a.add_peer(&b, Some(Outside::V4));
        a.up(1420);
        echo(&a.namespace, &b.namespace, b.v4(), [100]);
        Self { a, b, router }
    }

    /// The translator forgets all its mappings, as at a restart; the next packet from inside gets another port.
    fn forget(&self) {
        self.router.ip("link set out down");
        self.router.ip("link set out up");
    }
}

#[test]
fn a_translator_that_forgets_its_mapping_costs_no_session() {
    let it = Translated::new();
    let begun = sessions(&it.a, &it.b);
    for _ in 0..3 {
        let before = endpoint(&it.b, &it.a);
        it.forget();
        echo(&it.a.namespace, &it.b.namespace, it.b.v4(), [100, 1392]);
        let after = endpoint(&it.b, &it.a);
        assert!(
            after.starts_with("192.0.2.1:") && after != before,
            "{before}, {after}"
        );
        echo(&it.b.namespace, &it.a.namespace, it.a.v6(), [100, 1392]);
    }
    assert_eq!(sessions(&it.a, &it.b), begun);
}

#[test]
fn without_keepalives_a_mapping_is_lost_and_with_them_it_is_found_again() {
    let it = Translated::new();
    let a = &it.a.namespace;
    it.forget();
    let patience = Duration::from_millis(500);
    assert!(
        !reaches(&it.b.namespace, a, it.a.v4(), patience),
        "nobody told b the new port"
    );

    let before = endpoint(&it.b, &it.a);
    it.a.tunnel.wg(&format!(
        "peer {} persistent-keepalive 1",
        it.b.tunnel.public_key
    ));
    until("a keepalive shows the new port", || {
        endpoint(&it.b, &it.a) != before
    });
    echo(&it.b.namespace, a, it.a.v4(), [100, 1392]);
}

#[test]
fn persistent_keepalives_keep_their_time() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    b.namespace.nft(
        "table inet tally { chain in { type filter hook input priority 0;
           iifname eth0 udp length 40 counter
         }
         }",
    );
    a.tunnel.wg(&format!(
        "peer {} persistent-keepalive 1",
        b.tunnel.public_key
    ));
    let seen = |count: u64| {
        until("a keepalive", || counted(&b.namespace) >= count);
        Instant::now()
    };
    // The first is sent at once.
    let (first, last) = (seen(1), seen(6));
    let seconds = (last - first).as_secs_f64();
    assert!(
        (4.8..6.5).contains(&seconds),
        "5 intervals of 1 s took {seconds}"
    );
}

#[test]
fn a_preshared_key_changed_under_traffic_interrupts_nothing() {
    let (a, b) = ours(Outside::V4);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    let begun = sessions(&a, &b);
    let psk = crate::command::run("wg genpsk");
    let set = |one: &End, other: &End, psk: &str| {
        let arguments = format!("peer {} preshared-key /dev/stdin", other.tunnel.public_key);
        one.tunnel.wg_with(&arguments, psk);
    };
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            for _ in 0..20 {
                echo(&a.namespace, &b.namespace, b.v4(), [0, 100, 1392]);
            }
            bulk(&a.namespace, &b.namespace, b.v4(), 4 << 20);
        });
        for _ in 0..20 {
            set(&a, &b, &crate::command::run("wg genpsk"));
            set(&b, &a, &psk);
        }
        set(&a, &b, &psk);
        traffic
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(
        sessions(&a, &b),
        begun,
        "the session goes on with the keys it has"
    );

    // The next handshake needs the key, and has it.
    let begin_anew = |psk: &str| {
        a.tunnel.wg(&format!("peer {} remove", b.tunnel.public_key));
        a.add_peer(&b, None);
        set(&a, &b, psk);
        let endpoint = Outside::V4.endpoint(2);
        a.tunnel
            .wg(&format!("peer {} endpoint {endpoint}", b.tunnel.public_key));
    };
    begin_anew(&psk);
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    begin_anew(&crate::command::run("wg genpsk"));
    let patience = Duration::from_secs(1);
    assert!(
        !reaches(&a.namespace, &b.namespace, b.v4(), patience),
        "another key"
    );
    assert_eq!(a.tunnel.last_handshake(&b.tunnel.public_key), 0);
}

/// Connects from inside `a` to `to`; the error, and how long it took.
fn refused(a: &Namespace, to: &str) -> (std::io::Error, Duration) {
    let to = to.parse().expect("an address");
    let begin = Instant::now();
    let error = a.inside(|| {
        std::net::TcpStream::connect_timeout(&to, Duration::from_secs(20))
            .expect_err("nobody is there")
    });
    (error, begin.elapsed())
}

#[test]
fn who_sends_to_nobody_is_told_at_once() {
    let (a, b) = strangers(Make::Meshwire, Make::Meshwire);
    a.add_peer(&b, None);
    a.up(1420);
    let name = &a.tunnel.name;
    a.namespace
        .ip(&format!("route add 10.99.0.0/16 dev {name}"));
    a.namespace.ip(&format!("route add fd99::/64 dev {name}"));
    for (to, why) in [
        ("10.99.0.1:9", "no peer"),
        ("[fd99::1]:9", "no peer"),
        ("10.5.0.2:9", "no endpoint"),
        ("[fd05::2]:9", "no endpoint"),
    ] {
        let (error, elapsed) = refused(&a.namespace, to);
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::HostUnreachable,
            "{to}, {why}: {error}"
        );
        assert!(elapsed < Duration::from_secs(10), "{to}: {elapsed:?}");
    }
}

#[test]
fn who_sends_too_much_to_nobody_is_not_told_of_each() {
    const SENT: u64 = 20_000;
    let (a, _b) = strangers(Make::Meshwire, Make::Meshwire);
    a.up(1420);
    let name = &a.tunnel.name;
    a.namespace
        .ip(&format!("route add 10.99.0.0/16 dev {name}"));
    a.namespace.nft(&format!(
        "table inet tally {{ chain in {{ type filter hook prerouting priority 0;
           iifname {name} icmp type destination-unreachable icmp code host-unreachable counter
         }}
         }}"
    ));
    let begin = Instant::now();
    a.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..SENT {
            socket.send_to(b"nobody", "10.99.0.1:9").unwrap();
        }
    });
    until("a complaint", || counted(&a.namespace) > 0);
    let allowed = 50 + u64::try_from(begin.elapsed().as_millis()).unwrap();
    let told = counted(&a.namespace);
    assert!(
        told <= allowed && told < SENT,
        "{told} of {SENT}, {allowed} allowed"
    );
}
