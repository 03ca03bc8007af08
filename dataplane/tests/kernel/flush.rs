//! What a foreign `nft flush ruleset` lets out: nothing where the kernel knows owners of tables, and
//! else as much as leaves between the flush and the repair. Both are measured here.
//!
//! ```text
//! probes ─▶ postrouting (inet) ─▶ egress (netdev) ─▶ eth0, counted
//!                └──── both flushed a hundred times ────┘
//! ```

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use dataplane::{Dataplane, KernelEvent, Ownership};
use model::{
    Moment, Plan,
    nft::{
        Chain, ChainKey, ChainKind, Hook, HookPoint, Match, NftFamily, Policy, Sense, Statement,
    },
};

use crate::{
    namespace::{alone, eventually, ip, ip_json, nft, run, tell, veth},
    pass::dataplane_owning,
    ruleset::rule,
};

/// How often the ruleset is flushed.
const FLUSHES: u32 = 100;

/// Time between two probes, as far as the machine keeps it.
const PAUSE: Duration = Duration::from_micros(200);

/// How soon what was flushed is back on a machine that does other things too.
const SOON: Duration = Duration::from_secs(1);

#[test]
fn a_hundred_foreign_flushes_let_nothing_out_of_owned_tables() {
    alone(|| {
        let measured = flush(Ownership::Exclusive);
        if !measured.is_owned {
            tell(
                "this kernel has no persistent owned tables: the other measurement is the one that counts here",
            );
            return;
        }
        assert_eq!(measured.passed, 0, "{measured:?}");
    });
}

#[test]
fn what_a_hundred_foreign_flushes_let_out_of_shared_tables_is_counted() {
    alone(|| {
        let measured = flush(Ownership::Shared);
        assert!(
            measured.passed > 0,
            "the probes prove nothing: {measured:?}"
        );
        let open = measured
            .lasted
            .mul_f64(measured.passed as f64 / measured.sent as f64);
        tell(&format!(
            "{FLUSHES} flushes: {} of {} probes passed in {:?}: open for {:?} at a time",
            measured.passed,
            measured.sent,
            measured.lasted,
            open / FLUSHES
        ));
        assert!(open / FLUSHES < SOON, "{measured:?}");
    });
}

/// What became of the probes.
#[derive(Debug)]
struct Measured {
    passed: u64,
    sent: u64,
    lasted: Duration,
    is_owned: bool,
}

/// Flushes the ruleset again and again, each time once it is whole, while probes are sent.
fn flush(ownership: Ownership) -> Measured {
    run("sysctl", "-w net.ipv6.conf.default.disable_ipv6=1");
    veth("eth0", "peer0");
    ip("addr add 192.0.2.1/24 dev eth0");
    ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0");
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut agent = Agent::new(dataplane_owning(None, ownership));
    let is_owned = nft("list table inet meshd").contains("flags owner");
    let before = left();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| agent.follow_until(&stop));
        scope.spawn(|| probe_until(&stop, &sent));
        for _ in 0..FLUSHES {
            nft("flush ruleset");
            eventually("the guard to be back", is_whole);
        }
        stop.store(true, Ordering::Relaxed);
        // A new link is always news: it ends the agent's wait for some.
        ip("link add farewell type veth peer name other-end");
    });

    Measured {
        passed: left() - before,
        sent: sent.into_inner(),
        lasted: start.elapsed(),
        is_owned,
    }
}

fn is_whole() -> bool {
    let listed = nft("list ruleset");

    listed.contains("hook postrouting") && listed.contains("hook egress")
}

fn probe_until(stop: &AtomicBool, sent: &AtomicU64) {
    let socket = UdpSocket::bind(("192.0.2.1", 0)).unwrap();
    while !stop.load(Ordering::Relaxed) {
        // A drop is told to the sender, which is no error here.
        drop(socket.send_to(b"secret", "192.0.2.9:9"));
        sent.fetch_add(1, Ordering::Relaxed);
        std::thread::park_timeout(PAUSE);
    }
}

/// Frames that have left by the device.
fn left() -> u64 {
    let listed = ip_json("-s link show dev eth0");

    listed[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// As much of an agent as it takes to undo what others do to its tables.
struct Agent {
    dataplane: Dataplane,
    plan: Plan,
    events: tokio::sync::mpsc::Receiver<KernelEvent>,
    started: Instant,
}

impl Agent {
    fn new(mut dataplane: Dataplane) -> Self {
        let events = dataplane.events().unwrap();
        let mut agent = Self {
            dataplane,
            plan: plan(),
            events,
            started: Instant::now(),
        };
        // A kernel without owners refuses once, and is asked for less.
        eventually("the guard", || {
            agent.pass();
            is_whole()
        });

        agent
    }

    fn pass(&mut self) {
        let now = Moment::after_start(self.started.elapsed());
        let report = self.dataplane.apply(&mut self.plan, now);
        for (target, reason) in &report.failures {
            tell(&format!("{target}: {reason}"));
        }
    }

    fn follow_until(&mut self, stop: &AtomicBool) {
        while let Some(event) = self.events.blocking_recv() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match event {
                KernelEvent::Drift(component) => {
                    self.dataplane.distrust(component);
                    self.pass();
                }
                KernelEvent::Underlay(_)
                | KernelEvent::Handshake { .. }
                | KernelEvent::Firewalls(_)
                | KernelEvent::Surroundings(_) => {}
            }
        }
    }
}

/// A guard of two barriers, as far as these probes are concerned.
fn plan() -> Plan {
    let mut plan = Plan {
        generation: 1,
        in_sync: true,
        ..Plan::default()
    };
    let to = Match::DestinationNet(Sense::Is, "192.0.2.9/32".parse().unwrap());
    let eth0 = vec!["eth0".parse().unwrap()];
    let barriers = [
        (NftFamily::Inet, HookPoint::Postrouting, 98),
        (NftFamily::Netdev, HookPoint::Egress(eth0), 0),
    ];
    for (table, point, priority) in barriers {
        let hook = Hook {
            point,
            priority,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
        };
        let key = ChainKey {
            table,
            name: "barrier".into(),
        };
        let chain = Chain {
            hook: Some(hook),
            rules: vec![rule("guard", [to.clone()], Statement::Drop)].into(),
        };
        plan.nft_chains.set(key, chain);
    }

    plan
}
