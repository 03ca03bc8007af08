//! Routes against `ip route`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::UdpSocket,
    time::Instant,
};

use dataplane::{RouteTarget, Target};
use model::{
    Change,
    plan::{Route, RouteKey, RouteVia},
};

use crate::{
    contract::{Case, check},
    namespace::{alone, ip, ip_json, tell, veth},
};

#[test]
fn routes_keep_the_contract() {
    alone(|| {
        veth("eth0", "peer0");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
        check(Case::<RouteTarget> {
            make: Box::new(|| RouteTarget::open().unwrap()),
            rows: every_shape(),
            changed: Some((key(1, "10.0.0.0/16", 0), route(RouteVia::Throw))),
            spoil: Box::new(|| {
                ip("route del unreachable 10.0.0.0/16 table 1");
            }),
            recognises: true,
            removes: true,
            print: Box::new(|| {
                ip("route show table all proto 80") + &ip("-6 route show table all proto 80")
            }),
        });
    });
}

#[test]
fn the_kernel_shows_each_kind_as_it_was_meant() {
    alone(|| {
        veth("eth0", "peer0");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
        let mut target = RouteTarget::open().unwrap();

        set(&mut target, &every_shape());

        let table = ip("route show table 1");
        assert!(
            table.contains("unreachable 10.0.0.0/16 proto 80"),
            "{table}"
        );
        assert!(table.contains("throw 10.0.1.0/26 proto 80"), "{table}");
        assert!(
            table.contains("10.0.2.0/26 dev eth0 proto 80 scope link src 192.0.2.1 mtu 1380"),
            "{table}"
        );
        let main = ip("route show");
        assert!(
            main.contains("10.9.0.0/26 via 192.0.2.254 dev eth0 proto 80"),
            "{main}"
        );
        assert!(main.contains("blackhole 10.0.1.0/26 proto 80"), "{main}");
        let v6 = ip("-6 route show table 1");
        assert!(
            v6.contains("fd00:2::/122 dev eth0 proto 80 metric 1024"),
            "{v6}"
        );
        assert!(
            v6.contains("unreachable fd00::/48 dev lo proto 80 metric 1024"),
            "{v6}"
        );
        assert!(
            v6.contains("throw fd00:1::/122 dev lo proto 80 metric 1024"),
            "{v6}"
        );
    });
}

#[test]
fn foreign_routes_are_neither_seen_nor_touched() {
    alone(|| {
        veth("eth0", "peer0");
        ip("route add 10.1.0.0/16 dev eth0");
        ip("route add 10.2.0.0/16 dev eth0 table 1");
        ip("route add 10.3.0.0/16 dev eth0 proto bird");
        ip("route add 10.4.0.0/16 dev eth0 table 77 proto 80");
        let before = ip("route show table all");
        let mut target = RouteTarget::open().unwrap();

        let seen = target.observe().unwrap();
        let unset = ["10.1.0.0/16", "10.3.0.0/16"].map(|net| Change::Unset(key(254, net, 0)));
        target.apply(&unset).unwrap();

        assert_eq!(seen, BTreeMap::new());
        assert_eq!(ip("route show table all"), before);
    });
}

#[test]
fn workload_routes_are_ours_only_towards_workloads() {
    alone(|| {
        veth("cali1", "pod1");
        ip("route add 10.0.0.5/32 dev cali1 proto boot scope link");
        ip("route add 10.0.0.6/32 dev pod1 proto boot scope link");
        let mut target = RouteTarget::open().unwrap();

        let seen = target.observe().unwrap();

        assert_eq!(
            seen.into_keys().collect::<Vec<_>>(),
            [key(254, "10.0.0.5/32", 0)]
        );
    });
}

/// Whoever watches the table while a route changes its kind never sees it without one.
#[test]
fn a_route_that_changes_its_kind_is_never_away() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = RouteTarget::open().unwrap();
        for net in ["10.0.0.0/24", "fd00::/64"] {
            let key = key(1, net, 1024);
            set(&mut target, &[(key.clone(), route(RouteVia::Unreachable))]);
            let monitor = Monitor::start();

            for via in [
                RouteVia::Device("eth0".parse().unwrap()),
                RouteVia::Throw,
                RouteVia::Unreachable,
            ] {
                set(&mut target, &[(key.clone(), route(via))]);
            }

            let heard = monitor.stop();
            let is_gone = |line: &str| line.starts_with("Deleted") && line.contains("table 1");
            assert!(
                heard.contains(net) && !heard.lines().any(is_gone),
                "{heard}"
            );
            assert_eq!(
                target.observe().unwrap().get(&key),
                Some(&route(RouteVia::Unreachable))
            );
        }
    });
}

#[test]
fn a_connected_socket_of_the_host_follows_into_the_tunnel() {
    alone(|| {
        for (name, net) in [("eth0", "2001:db8::1/64"), ("wg0", "fd00:1::1/128")] {
            veth(name, &format!("{name}p"));
            ip(&format!("-6 addr add {net} dev {name} nodad"));
        }
        ip("-6 route add fd00:2::/122 dev eth0");
        for device in ["eth0", "wg0"] {
            ip(&format!(
                "-6 neigh add fd00:2::9 lladdr 02:00:00:00:00:09 dev {device}"
            ));
        }
        ip("-6 rule add priority 99 lookup 1");
        let socket = UdpSocket::bind("[2001:db8::1]:0").unwrap();
        socket.connect("[fd00:2::9]:9").unwrap();
        let sent_by = |device: &str| {
            let before = tx_bytes(device);
            socket.send(&[0; 1000]).unwrap();
            tx_bytes(device) - before >= 1000
        };
        assert!(sent_by("eth0"));
        let mut target = RouteTarget::open().unwrap();

        let way = route(RouteVia::Device("wg0".parse().unwrap()));
        set(&mut target, &[(key(1, "fd00:2::/122", 1024), way)]);

        assert!(sent_by("wg0"));
        assert!(
            !ip("-6 route show").contains("unreachable"),
            "nothing is left of it"
        );
    });
}

/// WireGuard's own packets go to members' addresses by the main table, at every moment.
#[test]
fn members_own_addresses_are_never_touched_in_the_main_table() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = RouteTarget::open().unwrap();
        let monitor = Monitor::start();

        let way = route(RouteVia::Device("eth0".parse().unwrap()));
        set(&mut target, &[(key(2, "2001:db8::7/128", 1024), way)]);

        let heard = monitor.stop();
        assert!(
            heard.contains("2001:db8::7") && !heard.contains("unreachable"),
            "{heard}"
        );
    });
}

#[test]
fn a_route_whose_device_is_missing_waits_and_holds_up_no_other() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = RouteTarget::open().unwrap();
        let lost = (
            key(1, "10.0.0.0/26", 0),
            route(RouteVia::Device("wg0".parse().unwrap())),
        );
        let good = (
            key(1, "10.0.1.0/26", 0),
            route(RouteVia::Device("eth0".parse().unwrap())),
        );
        let changes = [lost.clone(), good.clone()].map(|(key, row)| Change::Set(key, row));

        let absent = target.apply(&changes).unwrap();

        assert_eq!(
            absent.iter().map(|each| &each.key).collect::<Vec<_>>(),
            [&lost.0]
        );
        assert_eq!(target.observe().unwrap(), BTreeMap::from([good]));
    });
}

#[test]
fn ten_thousand_routes_take_well_under_a_second() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = RouteTarget::open().unwrap();
        let rows: Vec<_> = (0..10_000u32)
            .map(|index| {
                let net = format!(
                    "10.{}.{}.{}/26",
                    64 + index / 1024,
                    index / 4 % 256,
                    index % 4 * 64
                );
                (
                    key(1, &net, 0),
                    route(RouteVia::Device("eth0".parse().unwrap())),
                )
            })
            .collect();

        let started = Instant::now();
        set(&mut target, &rows);
        let (set_in, started) = (started.elapsed(), Instant::now());
        let observed = target.observe().unwrap();
        let observed_in = started.elapsed();

        assert_eq!(observed.len(), 10_000);
        assert_eq!(ip_json("route show table 1").len(), 10_000);
        tell(&format!(
            "10,000 routes: set in {set_in:?}, observed in {observed_in:?}"
        ));
        assert!(set_in.as_millis() < 800, "{set_in:?}");
    });
}

/// Bytes that left by a device, by its own count.
fn tx_bytes(device: &str) -> u64 {
    let listed = ip_json(&format!("-s link show dev {device}"));

    listed[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

/// `ip monitor route`, whose output says "Deleted" where a route goes.
struct Monitor(std::process::Child);

impl Monitor {
    #[expect(
        clippy::disallowed_methods,
        reason = "the oracle of these tests are other programs"
    )]
    fn start() -> Self {
        let child = std::process::Command::new("ip")
            .args(["monitor", "route"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let monitor = Self(child);
        // It listens once a change of ours is heard.
        monitor.until_heard();

        monitor
    }

    fn until_heard(&self) {
        crate::namespace::eventually("ip monitor to listen", || {
            let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            let id = self.0.id().to_string();
            sockets
                .lines()
                .any(|line| line.split_whitespace().nth(2) == Some(&id))
        });
    }

    /// Ends it, and returns what it has said up to now: up to a route that is added for this.
    fn stop(mut self) -> String {
        const LAST: &str = "198.51.100.99";

        ip(&format!("route add blackhole {LAST}"));
        let lines = BufReader::new(self.0.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let heard: Vec<_> = lines.take_while(|line| !line.contains(LAST)).collect();
        ip(&format!("route del blackhole {LAST}"));
        self.0.kill().unwrap();
        self.0.wait().unwrap();

        heard.join("\n")
    }
}

fn every_shape() -> Vec<(RouteKey, Route)> {
    let device = || RouteVia::Device("eth0".parse().unwrap());

    vec![
        (key(1, "10.0.0.0/16", 0), route(RouteVia::Unreachable)),
        (key(1, "10.0.1.0/26", 0), route(RouteVia::Throw)),
        (
            key(1, "10.0.2.0/26", 0),
            Route {
                source: Some("192.0.2.1".parse().unwrap()),
                mtu: Some(1380),
                ..route(device())
            },
        ),
        (key(2, "192.0.2.7/32", 0), route(device())),
        (key(2, "192.0.2.7/32", 9), route(RouteVia::Unreachable)),
        (key(254, "10.0.1.0/26", 0), route(RouteVia::Blackhole)),
        (
            key(254, "10.9.0.0/26", 0),
            route(RouteVia::Gateway("192.0.2.254".parse().unwrap())),
        ),
        (key(1, "fd00::/48", 1024), route(RouteVia::Unreachable)),
        (key(1, "fd00:1::/122", 1024), route(RouteVia::Throw)),
        (
            key(1, "fd00:2::/122", 1024),
            Route {
                mtu: Some(1380),
                ..route(device())
            },
        ),
        (key(2, "2001:db8::7/128", 1024), route(device())),
        (
            key(2, "2001:db8::7/128", 2048),
            route(RouteVia::Unreachable),
        ),
        (key(254, "fd00:1::/122", 1024), route(RouteVia::Blackhole)),
        (
            key(254, "fd00:9::/122", 1024),
            route(RouteVia::Gateway("2001:db8::fe".parse().unwrap())),
        ),
    ]
}

pub(crate) fn key(table: u32, destination: &str, metric: u32) -> RouteKey {
    RouteKey {
        table,
        destination: destination.parse().unwrap(),
        metric,
    }
}

pub(crate) fn route(via: RouteVia) -> Route {
    Route {
        via,
        source: None,
        mtu: None,
        protocol: 80,
    }
}

fn set(target: &mut RouteTarget, rows: &[(RouteKey, Route)]) {
    let changes: Vec<_> = rows
        .iter()
        .map(|(key, row)| Change::Set(key.clone(), row.clone()))
        .collect();

    assert_eq!(target.apply(&changes).unwrap(), []);
}
