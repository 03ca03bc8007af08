//! Others' policy routing is named where it takes packets of ours, whatever it tells them by.

use std::time::{Duration, Instant};

use dataplane::{Dataplane, KernelEvent};
use model::{
    Plan,
    conflict::{Detour, Role, Share, Surroundings, Taken, Traffic},
};
use tokio::sync::mpsc::Receiver;

use crate::{
    namespace::{Namespace, alone_with_wireguard, attempt, ip, table, veth},
    pass::{at, dataplane, everything},
    wireguard::Service,
};

/// How long a look is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine with a plan in force, and what is told of its surroundings.
struct Machine {
    events: Receiver<KernelEvent>,
    told: Surroundings,
    _dataplane: Dataplane,
    _plan: Plan,
    _service: Service,
    _inside: Namespace,
}

impl Machine {
    /// 192.0.2.1 on eth0, a pod 10.0.0.5 on cali1, a peer 192.0.2.10 with 10.0.10.0/26; another way by
    /// table 77.
    fn start() -> Self {
        let (service, inside) = (Service::start(), Namespace::new());
        veth("eth0", "peer0");
        ip("address add 192.0.2.1/24 dev eth0");
        ip("route add default via 192.0.2.250 table 77");
        let mut dataplane = dataplane(Some(&service));
        let events = dataplane.events().unwrap();
        let mut plan = Plan {
            generation: 1,
            ..everything(&inside)
        };
        assert_eq!(dataplane.apply(&mut plan, at(0)).troubles(), [].into());

        Self {
            events,
            told: Surroundings::default(),
            _dataplane: dataplane,
            _plan: plan,
            _service: service,
            _inside: inside,
        }
    }

    /// Waits until what is told is so.
    fn await_told(&mut self, what: &str, holds: impl Fn(&Surroundings) -> bool) {
        let started = Instant::now();
        while !holds(&self.told) {
            assert!(started.elapsed() < PATIENCE, "{what}: {:#?}", self.told);
            if let Ok(KernelEvent::Surroundings(told)) = self.events.try_recv() {
                self.told = told;
            } else {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }

    fn detours(&self, priority: u32) -> Vec<&Detour> {
        let detours = self.told.detours.iter();

        detours.filter(|d| d.rule.priority == priority).collect()
    }
}

#[test]
fn a_rule_that_takes_only_some_of_our_packets_is_named_with_what_it_takes() {
    alone_with_wireguard(|| {
        let mut machine = Machine::start();
        let rules = [
            "from all ipproto tcp dport 443 lookup 77",
            "from all sport 1000-2000 lookup 77",
            "from all uidrange 1000-1999 lookup 77",
            "from all tos 0x10 lookup 77",
            "from all ipproto udp prohibit",
            // The kernel cannot be asked about a packet of SCTP.
            "from all ipproto sctp dport 9 lookup 77",
            "from all uidrange 0-10 lookup 77",
        ];
        for (priority, rule) in (50..).zip(rules) {
            let rule = rule.trim_start_matches("from all");
            ip(&format!("rule add priority {priority} {rule}"));
        }
        let pods = |told: &Surroundings, priority| {
            let mut detours = told.detours.iter().filter(|d| d.traffic == Traffic::ToPods);
            detours.find(|d| d.rule.priority == priority).cloned()
        };
        let mut priorities = 50..50 + u32::try_from(rules.len()).unwrap();
        machine.await_told("every rule", |told| {
            priorities
                .clone()
                .all(|priority| pods(told, priority).is_some())
        });

        for (priority, rule) in priorities.by_ref().zip(rules) {
            let found = pods(&machine.told, priority).unwrap();
            // `ip` knows it by name, we by number.
            let text = rule.replace("sctp", "132");
            assert_eq!(found.rule.text, format!("{priority}: {text}"));
            assert_eq!(found.share, Share::Some, "{rule}");
            let taken = if rule.contains("prohibit") {
                Taken::Refused
            } else {
                Taken::Device("eth0".parse().unwrap(), 77)
            };
            assert_eq!(found.taken, taken, "{rule}");
        }
    });
}

#[test]
fn a_rule_that_takes_the_tunnels_own_packets_is_named_by_their_ports_and_class() {
    alone_with_wireguard(|| {
        let mut machine = Machine::start();
        // The kernel's own asks for its way before class and source port are set.
        let is_kernels = ip("-d link show wg.cali").contains("wireguard");
        let of_meshwire = ["sport 51820", "tos 0x08"];
        let further = of_meshwire.into_iter().filter(|_| !is_kernels);
        for rule in ["ipproto udp dport 51820"].into_iter().chain(further) {
            ip(&format!("rule add priority 200 {rule} unreachable"));
            machine.await_told(rule, |told| {
                let mut detours = told.detours.iter();
                detours.any(|d| d.traffic == Traffic::Tunnel && d.taken == Taken::Refused)
            });
            ip("rule del priority 200");
            machine.await_told(rule, |told| told.detours.is_empty());
        }
    });
}

#[test]
fn rules_that_none_of_our_packets_fits_are_not_named() {
    alone_with_wireguard(|| {
        let mut machine = Machine::start();
        let harmless = [
            "tun_id 5 lookup 77",
            "l3mdev",
            "iif elsewhere dport 80 ipproto tcp lookup 77",
            "oif elsewhere lookup 77",
            "fwmark 0x200000/0x200000 ipproto tcp prohibit",
            "fwmark 0x200000/0x200000 uidrange 1-9 prohibit",
        ];
        for (number, rule) in harmless.iter().enumerate() {
            ip(&format!("rule add priority {} {rule}", 40 + number));
        }
        // One behind them that does take something, by everything but what it asks for.
        ip("rule add priority 60 not tun_id 5 lookup 77");
        machine.await_told("the last", |told| !told.detours.is_empty());

        let named: Vec<u32> = machine
            .told
            .detours
            .iter()
            .map(|d| d.rule.priority)
            .collect();
        assert!(named.iter().all(|priority| *priority == 60), "{named:?}");
        let mut told = machine.told.detours.iter();
        assert!(told.all(|detour| detour.share == Share::All));
    });
}

#[test]
fn no_route_of_ours_leads_over_a_strangers_link_with_our_name() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        ip("link add wg.cali type bridge");
        ip("link set wg.cali up");
        let mut dataplane = dataplane(Some(&service));

        let report = dataplane.apply(&mut everything(&inside), at(0));

        assert!(!report.conflicts.is_empty(), "{report:?}");
        let routes = table(1);
        assert!(routes.contains("unreachable 10.0.0.0/16"), "{routes}");
        assert!(!routes.contains("wg.cali"), "{routes}{report:?}");
        assert!(ip("-d link show wg.cali").contains("bridge"));
    });
}

#[test]
#[ignore = "needs a kernel with VRF: make test-kernel"]
fn devices_of_ours_in_a_vrf_are_named_for_as_long_as_they_are() {
    alone_with_wireguard(|| {
        let mut machine = Machine::start();
        ip("link add blue type vrf table 10");
        ip("link set blue up");
        assert!(attempt("ip", "rule").status.success());

        for (device, role) in [
            ("eth0", Role::Underlay),
            ("wg.cali", Role::Tunnel),
            ("cali1", Role::Pod),
        ] {
            ip(&format!("link set {device} master blue"));
            let is_named = |told: &Surroundings| {
                let mut memberships = told.memberships.iter();
                memberships.any(|found| {
                    (found.device.as_str(), found.role) == (device, role)
                        && (found.vrf.as_str(), found.table) == ("blue", 10)
                })
            };
            machine.await_told(device, is_named);
            ip(&format!("link set {device} nomaster"));
            machine.await_told(device, |told| !is_named(told));
        }
    });
}

#[test]
#[ignore = "needs a kernel with VRF: make test-kernel"]
fn the_rule_of_vrfs_is_named_where_it_stands_before_ours_and_takes_a_pods_packets() {
    alone_with_wireguard(|| {
        let mut machine = Machine::start();
        ip("link add blue type vrf table 10");
        ip("link set blue up");
        ip("route add unreachable default table 10 metric 4278198272");
        ip("rule add l3mdev priority 50");
        ip("link set cali1 master blue");

        machine.await_told("the rule", |told| {
            let mut detours = told.detours.iter();
            detours.any(|d| d.rule.text == "50: from all lookup [l3mdev-table]")
        });
        assert_eq!(machine.detours(50)[0].taken, Taken::Refused);
    });
}
