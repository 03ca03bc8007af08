//! Strangers at the door. Facts only: what a flood costs in throughput is measured by `bench/flood.py`.
//!
//! ```text
//!  ┌─ a ─────────┐      ┌─ b ──────────────────────┐      ┌─ mallory ─────┐
//!  │ 192.0.2.1   │──────│ 192.0.2.2   198.51.100.2 │──────│ 198.51.100.9  │
//!  │ 2001:db8::1 │      │             2001:db8:9::2│      │ 2001:db8:9::9 │
//!  └─────────────┘      └──────────────────────────┘      └───────────────┘
//!    the peer             under attack                      knows b's public key, and nothing else
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flood::{Forger, Kind, Plan, Sent, Sources};

use crate::capture::Capture;
use crate::namespace::Namespace;
use crate::packet::counted;
use crate::pair::{End, Outside, pair};
use crate::traffic::{bulk, echo, reaches};
use crate::tunnel::Make;
use crate::wait::{PATIENCE, until};

const MIB: usize = 1 << 20;
/// Datagrams a second: many times what makes a load, and what a loaded machine still makes.
const RATE: u32 = 20_000;
/// How often a peer begins anew until its initiation met a load: a machine without time to spare
/// floods in gusts.
const ATTEMPTS: usize = 10;
/// How many thousandths of a second of the flood wait for a WireGuard that was stopped.
const BACKLOG: u32 = 50;
/// How much a flood may make a meshwire grow, in KiB: buffers that were never touched before.
const GROWTH: u64 = 6 << 10;

struct Siege {
    a: End,
    b: End,
    mallory: Namespace,
    outside: Outside,
}

impl Siege {
    /// A tunnel that `a` has initiated, and a stranger beside `b`.
    fn new(a: Make, b: Make) -> Self {
        Self::over(Outside::V4, a, b)
    }

    /// The same with a tunnel over this family.
    fn over(outside: Outside, a: Make, b: Make) -> Self {
        let (a, b) = pair(a, b, outside);
        let mallory = Namespace::new();
        b.namespace.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}",
            mallory.name
        ));
        for (namespace, device, number) in [(&b.namespace, "eth1", 2), (&mallory, "eth0", 9)] {
            namespace.ip(&format!("addr add 198.51.100.{number}/24 dev {device}"));
            namespace.ip(&format!(
                "addr add 2001:db8:9::{number}/64 dev {device} nodad"
            ));
            namespace.ip(&format!("link set {device} up"));
        }
        b.namespace
            .exec("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0");
        b.namespace.ip("route add 198.18.0.0/15 via 198.51.100.9");
        b.namespace
            .ip("route add 2001:db8:100::/40 via 2001:db8:9::9");
        echo(&a.namespace, &b.namespace, b.v4(), [100, 1000]);
        Self {
            a,
            b,
            mallory,
            outside,
        }
    }

    /// Lets mallory send before and while `work` is done.
    fn under(&self, target: &str, kind: Kind, sources: Sources, work: impl FnOnce(&Beats)) -> Sent {
        let key = STANDARD.decode(&self.b.tunnel.public_key).expect("base64");
        let plan = Plan {
            target: target.parse().expect("an address"),
            key: key.try_into().expect("32 bytes"),
            kind,
            sources,
            rate: self.rate(kind),
        };
        let (done, beats) = (AtomicBool::new(false), Beats::default());
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                self.mallory.inside(|| {
                    flood::run(&plan, || {
                        beats.0.fetch_add(1, Ordering::SeqCst);
                        !done.load(Ordering::SeqCst)
                    })
                })
            });
            // A panic in here must not leave the flood running, or the scope would wait for ever.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                beats.pass(100);
                work(&beats);
            }));
            done.store(true, Ordering::SeqCst);
            let sent = flood.join().expect("no panic").expect("sent");
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent
        })
    }

    /// A kernel that has WireGuard may be a slow guest, where programs pay dearly for each datagram; and an
    /// oversize one is dozens of fragments.
    fn rate(&self, kind: Kind) -> u32 {
        if self.a.make == Make::Kernel || kind == Kind::Oversize {
            RATE / 8
        } else {
            RATE
        }
    }

    /// When each side last completed a handshake with the other.
    fn sessions(&self) -> (u64, u64) {
        let of = |one: &End, other: &End| one.tunnel.last_handshake(&other.tunnel.public_key);
        (of(&self.a, &self.b), of(&self.b, &self.a))
    }

    /// Where b thinks that a is.
    fn endpoint_of_a(&self) -> Option<String> {
        self.b
            .tunnel
            .show_peer("endpoints", &self.a.tunnel.public_key)
    }

    /// Counts cookie replies that leave b for `a`: 64 bytes and the UDP header.
    fn count_cookies_to_a(&self) {
        self.b.namespace.nft(
            "table inet tally { chain out { type filter hook output priority 0;
               oifname eth0 udp length 72 counter
             }
             }",
        );
    }

    /// Makes `a` forget the session, and with it everything but its configuration.
    fn begin_anew(&self) {
        let (a, b) = (&self.a, &self.b);
        a.tunnel.wg(&format!("peer {} remove", b.tunnel.public_key));
        a.add_peer(b, Some(self.outside));
    }
}

/// The flood's own clock: what it was given the time to send, a thousand times a second.
#[derive(Default)]
struct Beats(AtomicU32);

impl Beats {
    /// Waits for that many.
    fn pass(&self, count: u32) {
        let begin = self.0.load(Ordering::SeqCst);
        until("the flood runs", || {
            self.0.load(Ordering::SeqCst) - begin > count
        });
    }
}

/// The tunnel works, its session is the same, nobody moved, and memory did not grow.
fn stands(kind: Kind, sources: Sources, target: &str) {
    let siege = Siege::new(Make::Meshwire, Make::Meshwire);
    bulk(&siege.a.namespace, &siege.b.namespace, siege.b.v4(), MIB);
    let (sessions, before) = (siege.sessions(), siege.b.tunnel.resident());
    let (a, b) = (&siege.a, &siege.b);
    let sent = siege.under(target, kind, sources, |_| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            bulk(&a.namespace, &b.namespace, b.v4(), 2 * MIB);
            bulk(&b.namespace, &a.namespace, a.v6(), 2 * MIB);
        }
    });
    assert!(sent.datagrams > 300, "{sent:?}");
    echo(
        &siege.a.namespace,
        &siege.b.namespace,
        siege.b.v4(),
        [0, 100, 1392, 4000],
    );
    assert_eq!(siege.sessions(), sessions, "no session was begun or ended");
    assert_eq!(siege.endpoint_of_a().as_deref(), Some("192.0.2.1:51820"));
    let after = siege.b.tunnel.resident();
    assert!(after <= before + GROWTH, "{before} KiB grew to {after} KiB");
}

const V4: &str = "198.51.100.2:51820";
const V6: &str = "[2001:db8:9::2]:51820";

fn forged() -> Sources {
    Sources::Forged("198.18.0.0/15".parse().expect("a network"))
}

/// Sixteen million networks of 64 bits.
fn forged_v6() -> Sources {
    Sources::Forged("2001:db8:100::/40".parse().expect("a network"))
}

#[test]
fn a_flood_of_handshakes_from_one_address_harms_no_tunnel() {
    stands(Kind::Initiations, Sources::Own, V4);
    stands(Kind::Initiations, Sources::Own, V6);
}

#[test]
fn a_flood_of_handshakes_from_a_hundred_thousand_addresses_harms_no_tunnel() {
    stands(Kind::Initiations, forged(), V4);
    stands(Kind::Initiations, forged_v6(), V6);
}

#[test]
fn a_flood_of_responses_and_cookies_harms_no_tunnel() {
    stands(Kind::Responses, forged(), V4);
    stands(Kind::Responses, forged_v6(), V6);
    stands(Kind::Cookies, forged_v6(), V6);
}

#[test]
fn packets_for_sessions_that_do_not_exist_harm_no_tunnel() {
    stands(Kind::Data, forged(), V4);
    stands(Kind::Data, forged_v6(), V6);
}

#[test]
fn garbage_harms_no_tunnel() {
    stands(Kind::Garbage, Sources::Own, V4);
    stands(Kind::Truncated, Sources::Own, V6);
}

#[test]
fn datagrams_of_up_to_65507_bytes_harm_no_tunnel() {
    stands(Kind::Oversize, Sources::Own, V4);
}

/// `a` begins while `b` is flooded, and comes through; whether it needed a cookie in one of so many attempts.
fn comes_through(a: Make, b: Make, sources: Sources, attempts: usize) -> bool {
    comes_through_over(Outside::V4, a, b, sources, attempts)
}

/// The same where the tunnel and the flood run over this family.
fn comes_through_over(
    outside: Outside,
    a: Make,
    b: Make,
    sources: Sources,
    attempts: usize,
) -> bool {
    let siege = Siege::over(outside, a, b);
    siege.count_cookies_to_a();
    let target = match outside {
        Outside::V4 => V4,
        Outside::V6 => V6,
    };
    siege.under(target, Kind::Initiations, sources, |beats| {
        let (a, b) = (&siege.a.namespace, &siege.b.namespace);
        for _ in 0..attempts {
            if siege.b.make == Make::WireguardGo {
                // It takes itself to be under load for a second once its queue was long, which a
                // fast machine never sees.
                siege.b.tunnel.stopped(|| beats.pass(BACKLOG));
            }
            siege.begin_anew();
            // An attempt every five seconds; a flood may drown more than one.
            assert!(reaches(a, b, siege.b.v4(), 3 * PATIENCE));
            echo(a, b, siege.b.v4(), [100, 1000]);
            if counted(b) > 0 {
                break;
            }
        }
    });
    counted(&siege.b.namespace) > 0
}

#[test]
fn under_load_a_peer_comes_through_with_a_cookie() {
    assert!(comes_through(
        Make::Meshwire,
        Make::Meshwire,
        Sources::Own,
        ATTEMPTS
    ));
}

#[test]
fn forged_sources_do_not_keep_a_peer_out() {
    assert!(comes_through(
        Make::Meshwire,
        Make::Meshwire,
        forged(),
        ATTEMPTS
    ));
}

#[test]
fn forged_networks_of_ipv6_do_not_keep_a_peer_out() {
    let v6 = Outside::V6;
    assert!(comes_through_over(
        v6,
        Make::Meshwire,
        Make::Meshwire,
        forged_v6(),
        ATTEMPTS
    ));
}

#[test]
fn wireguard_go_comes_through_when_we_are_under_load() {
    assert!(comes_through(
        Make::WireguardGo,
        Make::Meshwire,
        Sources::Own,
        ATTEMPTS
    ));
}

#[test]
fn boringtun_comes_through_when_we_are_under_load() {
    assert!(comes_through(
        Make::Boringtun,
        Make::Meshwire,
        Sources::Own,
        ATTEMPTS
    ));
}

#[test]
fn we_come_through_when_wireguard_go_is_under_load() {
    assert!(comes_through(
        Make::Meshwire,
        Make::WireguardGo,
        Sources::Own,
        ATTEMPTS
    ));
}

/// The kernel's WireGuard, as a user of User-Mode Linux or a machine with the module runs it: `--ignored kernel`.
#[test]
#[ignore = "needs a kernel with WireGuard"]
fn the_kernel_comes_through_when_we_are_under_load() {
    assert!(comes_through(
        Make::Kernel,
        Make::Meshwire,
        Sources::Own,
        ATTEMPTS
    ));
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn we_come_through_when_the_kernel_is_under_load() {
    assert!(comes_through(
        Make::Meshwire,
        Make::Kernel,
        Sources::Own,
        ATTEMPTS
    ));
}

/// Whether it then demands a cookie is its own affair; that we answer its cookies is shown beside its library.
#[test]
fn we_come_through_when_boringtun_is_flooded() {
    comes_through(Make::Meshwire, Make::Boringtun, Sources::Own, 1);
}

#[test]
fn what_was_recorded_and_is_sent_again_changes_nothing() {
    let siege = Siege::new(Make::Meshwire, Make::Meshwire);
    let capture = Capture::start(&siege.b.namespace);
    siege.begin_anew();
    echo(
        &siege.a.namespace,
        &siege.b.namespace,
        siege.b.v4(),
        (0..100).map(|n| n * 10),
    );
    let recorded = capture.finish("192.0.2.2:51820");
    let kinds = |kind: u8| recorded.iter().filter(|d| d[0] == kind).count();
    assert!(
        kinds(1) >= 1 && kinds(4) >= 100,
        "{} and {}",
        kinds(1),
        kinds(4)
    );
    siege.b.namespace.nft(
        "table inet tally { chain out { type filter hook output priority 0;
           oifname eth1 udp sport 51820 counter
         }
         }",
    );
    let (sessions, transfer) = (
        siege.sessions(),
        siege.b.tunnel.transfer(&siege.a.tunnel.public_key),
    );

    siege.mallory.inside(|| {
        let socket = std::net::UdpSocket::bind("198.51.100.9:51820").unwrap();
        for datagram in recorded.iter().cycle().take(5 * recorded.len()) {
            socket.send_to(datagram, V4).unwrap();
        }
    });
    echo(&siege.a.namespace, &siege.b.namespace, siege.b.v4(), [100]);

    assert_eq!(counted(&siege.b.namespace), 0, "mallory was answered");
    assert_eq!(siege.sessions(), sessions);
    assert_eq!(siege.endpoint_of_a().as_deref(), Some("192.0.2.1:51820"));
    let after = siege.b.tunnel.transfer(&siege.a.tunnel.public_key);
    let one = 100_u64 + 28 + 32;
    assert_eq!(
        after.0 - transfer.0,
        one.next_multiple_of(16),
        "only the echo counts"
    );
}

/// Real indexes, seen on the wire, under bodies of mallory's own.
#[test]
fn forgeries_under_real_indexes_change_nothing() {
    let siege = Siege::new(Make::Meshwire, Make::Meshwire);
    let capture = Capture::start(&siege.b.namespace);
    siege.begin_anew();
    echo(
        &siege.a.namespace,
        &siege.b.namespace,
        siege.b.v4(),
        (0..20).map(|n| n * 10),
    );
    let recorded = capture.finish("192.0.2.2:51820");
    let sessions = siege.sessions();
    let key = STANDARD.decode(&siege.b.tunnel.public_key).unwrap();
    let forger = Forger::new(&key.try_into().unwrap(), 3);

    siege.mallory.inside(|| {
        let socket = std::net::UdpSocket::bind("198.51.100.9:51820").unwrap();
        for round in 0..50_u8 {
            for datagram in &recorded {
                let mut forged = datagram.clone();
                // Counters far ahead would close the window for the true ones, if they were believed.
                let last = forged.len() - 1;
                forged[last] ^= 1 + round;
                if datagram[0] == 4 {
                    forged[8..16].copy_from_slice(&(u64::from(round) << 32).to_le_bytes());
                } else if datagram.len() > 64 {
                    forger.sign(&mut forged);
                }
                socket.send_to(&forged, V4).unwrap();
            }
        }
    });

    echo(
        &siege.a.namespace,
        &siege.b.namespace,
        siege.b.v4(),
        [100, 1000],
    );
    echo(
        &siege.b.namespace,
        &siege.a.namespace,
        siege.a.v4(),
        [100, 1000],
    );
    assert_eq!(siege.sessions(), sessions);
    assert_eq!(siege.endpoint_of_a().as_deref(), Some("192.0.2.1:51820"));
}
