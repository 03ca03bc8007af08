//! Which implementation carries a device, and how a device changes hands. Where the kernel has no
//! WireGuard there is no choice: most of these are ignored there, and say so.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use dataplane::{
    Absent, Backend as _, Component, Implementations, Kernel, Outcome, PeerTarget, Reconciler,
    Target, TunnelTarget, Userspace,
};
use model::{
    Change, InterfaceName, Moment, Plan, PublicKey, Table,
    pass::{Chosen, Implementation},
    plan::{Peer, Tunnel},
    resource::mesh_configuration::Backend,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    namespace::{Namespace, alone_with_wireguard, eventually, ip, run, table, tell},
    pass::{at, dataplane, everything},
    tunnel::{device, far_end, many, tunnel},
    wireguard::{Service, UAPI, Which, implementations, keyring},
};

#[test]
fn a_kernel_without_wireguard_is_named_where_it_is_asked_for() {
    if Kernel::open().unwrap().is_there().unwrap() {
        tell("this kernel has WireGuard: nothing to ask here");
        return;
    }
    alone_with_wireguard(|| {
        let service = Service::start();
        let there = implementations(Which::Meshwire, &service.socket());
        let mut tunnels = TunnelTarget::open(there, Box::new(keyring)).unwrap();

        let absent = tunnels
            .apply(&[Change::Set(device(), on(Backend::Kernel))])
            .unwrap();

        assert_eq!(
            absent[0].reason,
            "this kernel has no WireGuard, and MeshConfiguration asks for it"
        );
        assert_eq!(tunnels.backends(), BTreeMap::new());
        assert!(
            !ip("link").contains("wg.cali"),
            "and nothing else takes its place"
        );
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn the_kernels_is_taken_where_it_is_there_and_adopted_by_the_next_run() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let mut plan = everything(&inside);
        let report = dataplane(Some(&service)).apply(&mut plan, at(0));
        assert_eq!(report.troubles(), [].into());
        let carrier = report.backends[&device()];
        assert_eq!(
            (carrier.implementation, carrier.chosen),
            (Implementation::Kernel, Chosen::KernelHasIt)
        );
        assert!(ip("-d link show wg.cali").contains("wireguard"));

        let index = ip("-o link show wg.cali");
        let report = dataplane(Some(&service)).apply(&mut everything(&inside), at(0));
        assert_eq!(report.backends[&device()], carrier);
        assert_eq!(ip("-o link show wg.cali"), index);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn a_device_that_is_there_stays_where_it_is_for_as_long_as_the_settings_let_it() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let mut agent = dataplane(Some(&service));
        let mut plan = everything(&inside);
        let mut under = |backend| {
            plan.tunnels.set(device(), on(backend));
            let report = agent.apply(&mut plan, at(0));
            assert_eq!(report.troubles(), [].into());
            let carrier = report.backends[&device()];
            (carrier.implementation, carrier.chosen)
        };

        let forced = under(Backend::Userspace);
        assert_eq!(forced, (Implementation::Meshwire, Chosen::Forced));
        let left = under(Backend::Auto);
        assert_eq!(left, (Implementation::Meshwire, Chosen::Adopted));
        let forced = under(Backend::Kernel);
        assert_eq!(forced, (Implementation::Kernel, Chosen::Forced));
        let left = under(Backend::Auto);
        assert_eq!(left, (Implementation::Kernel, Chosen::KernelHasIt));
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn one_pass_hands_a_device_over_with_all_that_stands_on_it_and_connections_go_on() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let (other, _far) = far_end();
        let mut agent = dataplane(Some(&service));
        let mut plan = everything(&inside);
        // A guard of a test that lets nothing pass, tunnel or not.
        plan.nft_chains = Table::default();
        plan.nft_elements = Table::default();
        plan.tunnels.set(device(), on(Backend::Userspace));
        assert_eq!(agent.apply(&mut plan, at(0)).troubles(), [].into());
        let mut stream = connect(&other);
        stream.echo();

        for backend in [Backend::Kernel, Backend::Userspace] {
            let watch = Watch::begin();
            plan.tunnels.set(device(), on(backend));
            assert_eq!(agent.apply(&mut plan, at(1)).troubles(), [].into());
            let (took, deleted) = watch.end();

            assert!(!deleted.contains("unreachable"), "{deleted}");
            assert!(ip("addr show dev wg.cali").contains("10.0.1.1/32"));
            assert!(table(1).contains("10.0.10.0/26 dev wg.cali"));
            let filter = "/proc/sys/net/ipv4/conf/wg.cali/rp_filter";
            assert_eq!(std::fs::read_to_string(filter).unwrap(), "2\n");
            let answered = stream.echo();
            tell(&format!(
                "to {backend:?}: pass {took:?}, an answer {answered:?} later"
            ));
        }
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn a_device_is_kept_while_its_next_carrier_is_not_there() {
    alone_with_wireguard(|| {
        let (mut service, inside) = (Service::start(), Namespace::new());
        let mut agent = dataplane(Some(&service));
        let mut plan = everything(&inside);
        agent.apply(&mut plan, at(0));
        let before = ip("-o link show wg.cali");
        service.kill();

        plan.tunnels.set(device(), on(Backend::Userspace));
        let report = agent.apply(&mut plan, at(1));

        assert_eq!(report.failures, [].into());
        assert!(
            report.incomplete[0]
                .reason
                .contains("stays with kernel: meshwire is not there"),
            "{report:?}"
        );
        assert_eq!(ip("-o link show wg.cali"), before);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn other_peoples_devices_are_not_ours_to_end() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        ip("link add wg0 type wireguard");
        run("wg", "set wg0 listen-port 51999");
        let foreign = || (ip("-o link show wg0"), run("wg", "show wg0 listen-port"));
        let before = foreign();
        let mut agent = dataplane(Some(&service));
        let mut plan = everything(&inside);
        agent.apply(&mut plan, at(0));
        drop(agent);

        let mut gone = Plan {
            in_sync: true,
            ..Plan::default()
        };
        assert_eq!(
            dataplane(Some(&service)).apply(&mut gone, at(0)).troubles(),
            [].into()
        );

        assert!(!ip("link").contains("wg.cali"));
        assert_eq!(foreign(), before);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn a_device_of_another_kind_that_has_our_name_is_named_and_left() {
    alone_with_wireguard(|| {
        let service = Service::start();
        ip("link add wg.cali type bridge");
        let there = implementations(Which::Kernel, &service.socket());
        let mut tunnels = TunnelTarget::open(there, Box::new(keyring)).unwrap();

        let absent = tunnels
            .apply(&[Change::Set(device(), on(Backend::Auto))])
            .unwrap();

        assert_eq!(
            absent,
            [Absent {
                key: device(),
                reason: "a link of kind bridge, which is not ours, has its name".to_owned(),
            }]
        );
        assert!(ip("-d link show wg.cali").contains("bridge"));
    });
}

/// What goes to the kernel and back for one peer's change, among more and more others.
#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn one_peers_change_costs_the_same_bytes_however_many_peers_there_are() {
    alone_with_wireguard(|| {
        let cost = |count: u32| {
            let kernel = Kernel::open().unwrap();
            let traffic = kernel.traffic();
            let nobody = Userspace::new("/nonexistent".into(), UAPI.into());
            let there = Implementations::new(kernel, nobody, Backend::Kernel);
            let another = implementations(Which::Kernel, "/nonexistent".as_ref());
            let mut tunnels = TunnelTarget::open(another, Box::new(keyring)).unwrap();
            tunnels.apply(&[Change::Set(device(), tunnel(1))]).unwrap();
            let mut target = PeerTarget::new(there);
            target.own([device()]);
            let mut peers = Reconciler::new("peers", target);
            let mut wanted = Table::default();
            for (key, row) in (0..count).map(many) {
                wanted.set(key, row);
            }
            pass(&mut peers, &mut wanted);

            let mut changes = Vec::new();
            let (of_one, row) = many(3);
            let mut less = row.clone();
            less.allowed_ips.pop_first();
            for row in [less, row] {
                let before = traffic.count();
                wanted.set(of_one.clone(), row);
                pass(&mut peers, &mut wanted);
                let after = traffic.count();
                changes.push([after[0] - before[0], after[1] - before[1]]);
            }
            tunnels.apply(&[Change::Unset(device())]).unwrap();

            changes
        };

        let costs = [10, 100, 1000, 5000].map(cost);
        tell(&format!(
            "bytes [sent, received] to take and to give one allowed IP: {costs:?}"
        ));
        assert!(costs.iter().all(|each| *each == costs[0]), "{costs:?}");
        assert!(costs[0].iter().flatten().sum::<u64>() < 1024, "{costs:?}");
    });
}

/// Ours is greeted again when a device comes back up: the other end may wait for long.
#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn a_device_that_was_down_begins_its_sessions_anew_without_a_packet() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let (_other, _far) = far_end();
        let mut agent = dataplane(Some(&service));
        let mut plan = everything(&inside);
        agent.apply(&mut plan, at(0));
        // Nobody says anything but in handshakes.
        let heard = || {
            let transfer = run("wg", "show wg.cali transfer");
            transfer.split_whitespace().nth(1).map(str::to_owned)
        };
        eventually("the first handshake", || heard() != Some("0".into()));

        ip("link set wg.cali down");
        let first = heard();
        for component in [Component::Tunnels, Component::Routes] {
            agent.distrust(component);
        }
        agent.apply(&mut plan, at(1));

        eventually("another handshake", || heard() != first);
    });
}

fn pass(peers: &mut Reconciler<PeerTarget>, wanted: &mut Table<(InterfaceName, PublicKey), Peer>) {
    assert_eq!(peers.set(wanted, true, Moment::START), Outcome::Converged);
    assert_eq!(peers.unset(Moment::START), Outcome::Converged);
}

fn on(backend: Backend) -> Tunnel {
    Tunnel {
        backend,
        ..tunnel(1)
    }
}

/// A connection to the far end's 10.0.10.1, answered there.
struct Connection(TcpStream);

fn connect(other: &Namespace) -> Connection {
    let listener = other.run(|| TcpListener::bind("10.0.10.1:7000").unwrap());
    let stream =
        TcpStream::connect_timeout(&"10.0.10.1:7000".parse().unwrap(), Duration::from_secs(10));
    let stream = stream.expect("the far end is reached through the tunnel");
    let (mut answering, _) = listener.accept().unwrap();
    std::thread::spawn(move || {
        let mut byte = [0];
        while answering.read_exact(&mut byte).is_ok() && answering.write_all(&byte).is_ok() {}
    });

    Connection(stream)
}

impl Connection {
    /// Sends a byte and waits for the answer; returns how long that took.
    fn echo(&mut self) -> Duration {
        let started = Instant::now();
        self.0
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        self.0.write_all(&[7]).unwrap();
        self.0.read_exact(&mut [0]).unwrap();

        started.elapsed()
    }
}

/// Hears of every route that is deleted.
struct Watch {
    monitor: Child,
    said: BufReader<ChildStdout>,
    began: Instant,
}

/// A route that says that all before it was heard.
const MARKER: &str = "203.0.113.0/24";

impl Watch {
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel's own word, by another program"
    )]
    fn begin() -> Self {
        let mut monitor = Command::new("ip")
            .args(["monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(monitor.stdout.take().unwrap());
        let mut watch = Self {
            monitor,
            said,
            began: Instant::now(),
        };
        // It listens once it has heard of something.
        eventually("the monitor to listen", || {
            ip(&format!("route add {MARKER} dev lo table 99"));
            ip(&format!("route del {MARKER} dev lo table 99"));
            watch.has_heard()
        });
        watch.began = Instant::now();

        watch
    }

    /// Returns whether something waits to be read.
    fn has_heard(&self) -> bool {
        let mut said = [PollFd::new(self.said.get_ref(), PollFlags::IN)];
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };

        poll(&mut said, Some(&moment)).unwrap() > 0
    }

    /// Returns how long it was, and the routes that were deleted meanwhile.
    fn end(mut self) -> (Duration, String) {
        let took = self.began.elapsed();
        ip(&format!("route add {MARKER} dev lo table 98"));
        let mut deleted = String::new();
        for line in self.said.by_ref().lines() {
            let line = line.unwrap();
            if line.contains("table 98") {
                break;
            }
            if line.starts_with("Deleted") && !line.contains(MARKER) {
                deleted += &(line + "\n");
            }
        }
        ip(&format!("route del {MARKER} dev lo table 98"));
        self.monitor.kill().unwrap();
        self.monitor.wait().unwrap();

        (took, deleted)
    }
}
