//! Whole passes: what comes before what, and what a failure stops.

use std::{fs, time::Duration};

use dataplane::{Component, Config, Dataplane, Ownership};
use model::{
    Family, Moment, Plan,
    nft::{
        Chain, ChainKey, ChainKind, Element, Hook, HookPoint, Match, NftFamily, Policy, Rule,
        Sense, SetKey, SetKind, Statement,
    },
    plan::{Route, RouteVia, RuleKey},
    resource::mesh_configuration::Backend,
};

use crate::{
    namespace::{Namespace, alone, alone_with_wireguard, ip, nft, run, table},
    pod,
    route::{key, route},
    tunnel,
    wireguard::{Service, Stubborn, UAPI, keyring},
};

#[test]
fn one_pass_brings_everything_in_and_another_has_nothing_to_do() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let mut dataplane = dataplane(Some(&service));
        let mut plan = everything(&inside);

        let report = dataplane.apply(&mut plan, at(0));
        assert_eq!(report.troubles(), [].into());
        assert_eq!(report.retry_at, None);

        let before = state();
        for component in dataplane::Component::ALL {
            dataplane.distrust(component);
        }
        assert_eq!(dataplane.apply(&mut plan, at(1)).troubles(), [].into());
        assert_eq!(state(), before);
        assert!(
            before.contains("default dev wg.cali") || before.contains("10.0.10.0/26 dev wg.cali")
        );
        assert!(before.contains("lookup 1 proto 80") && before.contains("chain barrier"));
    });
}

#[test]
fn a_restarted_agent_adopts_and_removes_nothing_before_it_is_in_sync() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        dataplane(Some(&service)).apply(&mut everything(&inside), at(0));
        let before = state();

        let mut second = dataplane(Some(&service));
        let mut empty = Plan::default();
        assert_eq!(second.apply(&mut empty, at(0)).troubles(), [].into());
        assert_eq!(state(), before, "nothing is known yet, nothing is touched");

        let mut plan = Plan {
            in_sync: false,
            ..everything(&inside)
        };
        assert_eq!(second.apply(&mut plan, at(1)).troubles(), [].into());
        assert_eq!(state(), before, "the same devices, rules and routes");

        let mut gone = Plan {
            in_sync: true,
            ..Plan::default()
        };
        assert_eq!(second.apply(&mut gone, at(2)).troubles(), [].into());
        let after = state();
        for ours in ["wg.cali", "cali1", "proto 80", "chain", "set "] {
            assert!(!after.contains(ours), "{ours} is still in {after}");
        }
    });
}

#[test]
fn no_route_and_no_rule_is_made_while_the_guard_is_refused() {
    alone(|| {
        let mut dataplane = dataplane(None);
        let mut plan = guarded_route(Statement::Jump("nowhere".into()));

        let report = dataplane.apply(&mut plan, at(0));

        assert_eq!(report.failures.keys().collect::<Vec<_>>(), ["nftables"]);
        assert!(
            report.failures["nftables"].contains("rule 1 of inet barrier"),
            "{report:?}"
        );
        assert_eq!(report.retry_at, Some(at(100)));
        assert_eq!(table(1) + &ip("rule show prio 99"), "");

        let report = dataplane.apply(&mut plan, at(50));
        assert_eq!(report.failures.len(), 1, "it is told of until it is mended");

        let mended = guarded_route(Statement::Drop);
        for (key, chain) in mended.nft_chains.rows() {
            plan.nft_chains.set(key.clone(), chain.clone());
        }
        assert_eq!(dataplane.apply(&mut plan, at(60)).troubles(), [].into());
        assert!(table(1).contains("unreachable 10.0.0.0/16"));
        assert!(ip("rule show prio 99").contains("lookup 1"));
    });
}

#[test]
fn the_guard_stays_while_a_route_is_refused() {
    alone(|| {
        let mut dataplane = dataplane(None);
        let mut plan = guarded_route(Statement::Drop);
        dataplane.apply(&mut plan, at(0));

        let guard = plan.nft_chains.rows().keys().next().unwrap().clone();
        plan.nft_chains.unset(&guard);
        plan.routes.unset(&key(1, "10.0.0.0/16", 0));
        let stranger = Some("2001:db8::99".parse().unwrap());
        let wrong = Route {
            source: stranger,
            ..route(RouteVia::Unreachable)
        };
        plan.routes.set(key(1, "fd09::/64", 1024), wrong);
        let rule = plan.rules.rows().keys().next().unwrap().clone();
        plan.rules.unset(&rule);
        let report = dataplane.apply(&mut plan, at(10));

        assert_eq!(report.failures.keys().collect::<Vec<_>>(), ["routes"]);
        assert!(
            nft("list ruleset").contains("chain barrier"),
            "no half of an unset is applied"
        );
        assert!(table(1).contains("unreachable 10.0.0.0/16"));

        plan.routes.unset(&key(1, "fd09::/64", 1024));
        assert_eq!(dataplane.apply(&mut plan, at(20)).troubles(), [].into());
        assert!(!nft("list ruleset").contains("chain barrier"));
        assert_eq!(table(1) + &ip("rule show prio 99"), "");
    });
}

#[test]
fn policy_goes_at_once_whatever_is_refused_behind_it() {
    alone(|| {
        let mut dataplane = dataplane(None);
        let mut plan = guarded_route(Statement::Drop);
        let chain = ChainKey {
            table: NftFamily::Inet,
            name: "policy_in_x".into(),
        };
        let set = SetKey {
            table: NftFamily::Inet,
            name: "allowed".into(),
        };
        let allowed = (set.clone(), Element::Net("10.65.0.0/24".parse().unwrap()));
        plan.nft_sets.set(set, SetKind::Nets(Family::V4));
        plan.nft_elements.set(allowed.clone(), ());
        let empty = Chain {
            hook: None,
            rules: Vec::new().into(),
        };
        plan.nft_chains.set(chain.clone(), empty);
        dataplane.apply(&mut plan, at(0));
        assert!(nft("list ruleset").contains("10.65.0.0/24"));

        plan.nft_elements.unset(&allowed);
        plan.nft_chains.unset(&chain);
        let wrong = Route {
            source: Some("2001:db8::99".parse().unwrap()),
            ..route(RouteVia::Unreachable)
        };
        plan.routes.set(key(1, "fd09::/64", 1024), wrong);
        let report = dataplane.apply(&mut plan, at(10));

        assert_eq!(report.failures.keys().collect::<Vec<_>>(), ["routes"]);
        let ruleset = nft("list ruleset");
        assert!(!ruleset.contains("10.65.0.0/24"), "{ruleset}");
        assert!(!ruleset.contains("policy_in_x"), "{ruleset}");
        assert!(ruleset.contains("chain barrier"));
    });
}

#[test]
fn the_guard_stays_while_anything_before_it_cannot_be_removed() {
    alone(|| {
        let stubborn = Stubborn::start();
        let config = Config {
            supervisor: stubborn.socket(),
            ..Config::default()
        };
        let mut dataplane = Dataplane::new(config, keyring).unwrap();
        let mut plan = guarded_route(Statement::Drop);
        dataplane.apply(&mut plan, at(0));

        let guard = plan.nft_chains.rows().keys().next().unwrap().clone();
        plan.nft_chains.unset(&guard);
        plan.tunnels.set(tunnel::device(), tunnel::tunnel(1));
        plan.tunnels.unset(&tunnel::device());
        plan.routes.unset(&key(1, "10.0.0.0/16", 0));
        let report = dataplane.apply(&mut plan, at(10));

        assert_eq!(report.failures.keys().collect::<Vec<_>>(), ["tunnels"]);
        assert!(
            report.failures["tunnels"].contains("I will not"),
            "{report:?}"
        );
        assert!(
            !table(1).contains("10.0.0.0/16"),
            "routes go before devices"
        );
        assert!(
            nft("list ruleset").contains("chain barrier"),
            "and the guard goes last"
        );
    });
}

#[test]
fn what_is_missing_holds_up_nothing_else_and_is_tried_again_later_and_later() {
    alone(|| {
        let mut dataplane = dataplane(None);
        let mut plan = guarded_route(Statement::Drop);
        let lost = Namespace::new();
        plan.pods
            .set(pod::pod("lost"), pod::row(&lost, "cali1", 1380));
        drop(lost);
        plan.tunnels.set(tunnel::device(), tunnel::tunnel(1));

        let first = dataplane.apply(&mut plan, at(0));
        assert_eq!(first.failures, [].into());
        let waits: Vec<_> = first.troubles().into_keys().collect();
        assert_eq!(waits, ["device wg.cali", "pod default/lost"]);
        let reason = &first.troubles()["device wg.cali"];
        assert!(reason.contains("tunnel service"), "{first:?}");
        assert!(table(1).contains("unreachable 10.0.0.0/16"));
        assert_eq!(first.retry_at, Some(at(100)));

        let second = dataplane.apply(&mut plan, at(100));
        assert_eq!(second.retry_at, Some(at(300)));
        plan.pods.unset(&pod::pod("lost"));
        plan.tunnels.unset(&tunnel::device());
        assert_eq!(dataplane.apply(&mut plan, at(110)).troubles(), [].into());
    });
}

#[test]
fn a_new_mtu_reaches_a_pod_that_is_running() {
    alone(|| {
        let inside = Namespace::new();
        let mut dataplane = dataplane(None);
        let mut plan = Plan {
            in_sync: true,
            ..Plan::default()
        };
        plan.pods
            .set(pod::pod("a"), pod::row(&inside, "cali1", 1440));
        dataplane.apply(&mut plan, at(0));
        let link = || {
            ip("-o link show cali1")
                .split(" mtu")
                .next()
                .unwrap()
                .to_owned()
        };
        let index = link();

        plan.pods
            .set(pod::pod("a"), pod::row(&inside, "cali1", 1380));
        assert_eq!(dataplane.apply(&mut plan, at(1)).troubles(), [].into());

        assert!(ip("link show cali1").contains("mtu 1380"));
        assert!(inside.run(|| ip("link show eth0")).contains("mtu 1380"));
        assert_eq!(link(), index);
    });
}

#[test]
fn whatever_stood_on_a_lost_device_is_back_in_the_pass_that_makes_it_again() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let mut dataplane = dataplane(Some(&service));
        let mut plan = everything(&inside);
        dataplane.apply(&mut plan, at(0));

        let _service = service.restart();
        dataplane.distrust(Component::Tunnels);
        assert_eq!(dataplane.apply(&mut plan, at(1)).troubles(), [].into());

        assert!(run("wg", "show wg.cali allowed-ips").contains("10.0.10.0/26"));
        assert!(ip("addr show dev wg.cali").contains("10.0.1.1/32"));
        assert!(table(1).contains("10.0.10.0/26 dev wg.cali"));
        let filter = fs::read_to_string("/proc/sys/net/ipv4/conf/wg.cali/rp_filter").unwrap();
        assert_eq!(filter, "2\n");
    });
}

#[test]
fn what_a_killed_pass_left_half_done_is_finished_by_the_next_run() {
    alone_with_wireguard(|| {
        let (service, inside) = (Service::start(), Namespace::new());
        let half = Plan {
            routes: model::Table::default(),
            rules: model::Table::default(),
            peers: model::Table::default(),
            ..everything(&inside)
        };
        dataplane(Some(&service)).apply(&mut { half }, at(0));
        ip("addr del 10.0.1.1/32 dev wg.cali");
        let link = ip("-o link show wg.cali");

        let mut plan = everything(&inside);
        assert_eq!(
            dataplane(Some(&service)).apply(&mut plan, at(0)).troubles(),
            [].into()
        );

        assert!(state().contains("10.0.10.0/26 dev wg.cali table 1"));
        assert!(ip("addr show dev wg.cali").contains("10.0.1.1/32"));
        assert_eq!(ip("-o link show wg.cali"), link);
    });
}

/// Guard, route and rule, as little of each as can be.
pub(crate) fn guarded_route(statement: Statement) -> Plan {
    let mut plan = Plan {
        in_sync: true,
        ..Plan::default()
    };
    let set = SetKey {
        table: NftFamily::Inet,
        name: "space4".into(),
    };
    plan.nft_sets.set(set.clone(), SetKind::Nets(Family::V4));
    plan.nft_elements
        .set((set, Element::Net("10.0.0.0/16".parse().unwrap())), ());
    let hook = Hook {
        point: HookPoint::Postrouting,
        priority: 98,
        kind: ChainKind::Filter,
        policy: Policy::Accept,
    };
    let rule = Rule {
        matches: vec![Match::Destination(Sense::Is, Family::V4, "space4".into())],
        counter: true,
        statement,
        comment: "nothing leaves in plain text".into(),
    };
    let key_of_guard = ChainKey {
        table: NftFamily::Inet,
        name: "barrier".into(),
    };
    plan.nft_chains.set(
        key_of_guard,
        Chain {
            hook: Some(hook),
            rules: [rule].into(),
        },
    );
    plan.routes
        .set(key(1, "10.0.0.0/16", 0), route(RouteVia::Unreachable));
    plan.rules.set(
        RuleKey {
            family: Family::V4,
            priority: 99,
            source: None,
            without_mark: Some(0x0020_0000),
            table: 1,
        },
        (),
    );

    plan
}

/// A row in every table.
pub(crate) fn everything(inside: &Namespace) -> Plan {
    let mut plan = guarded_route(Statement::Drop);
    plan.sysctls.set("net/ipv4/ip_forward".into(), "1".into());
    plan.sysctls
        .set("net/ipv4/conf/wg.cali/rp_filter".into(), "2".into());
    plan.pods
        .set(pod::pod("a"), pod::row(inside, "cali1", 1380));
    plan.tunnels.set(tunnel::device(), tunnel::tunnel(1));
    plan.addresses
        .set((tunnel::device(), "10.0.1.1/32".parse().unwrap()), ());
    plan.peers.set(tunnel::key(10), tunnel::peer(10, 0));
    let device = RouteVia::Device(tunnel::device());
    plan.routes.set(key(1, "10.0.10.0/26", 0), route(device));
    let workload = RouteVia::Device("cali1".parse().unwrap());
    let workload = Route {
        protocol: 3,
        ..route(workload)
    };
    plan.routes.set(key(254, "10.0.0.5/32", 0), workload);

    plan
}

pub(crate) fn dataplane(service: Option<&Service>) -> Dataplane {
    dataplane_owning(service, Ownership::Exclusive)
}

pub(crate) fn dataplane_owning(service: Option<&Service>, ownership: Ownership) -> Dataplane {
    let nowhere = || "/nonexistent/wire.sock".into();
    let config = Config {
        supervisor: service.map_or_else(nowhere, Service::socket),
        uapi: UAPI.into(),
        ownership,
        // Without a service the kernel's is no way out either.
        wireguard: match service {
            Some(_) => Backend::Auto,
            None => Backend::Userspace,
        },
        ..Config::default()
    };

    Dataplane::new(config, keyring).unwrap()
}

pub(crate) fn at(milliseconds: u64) -> Moment {
    Moment::START + Duration::from_millis(milliseconds)
}

/// Everything that a plan may change, as the programs show it.
fn state() -> String {
    let about = [
        "private-key",
        "listen-port",
        "fwmark",
        "endpoints",
        "allowed-ips",
    ];
    let wireguard = about
        .map(|what| run("wg", &format!("show all {what}")))
        .concat();
    let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();

    // Whose socket owns a table is no part of what it does.
    let rules = nft("-a list ruleset");
    let rules = rules
        .lines()
        .filter(|line| !line.contains("flags owner") && *line != "\tflags ");
    let rules = rules.map(|line| line.split(" progname").next().unwrap_or_default());

    [
        rules.collect::<Vec<_>>().join("\n"),
        ip("-o link"),
        ip("-o addr").replace(" tentative", ""),
        ip("route show table all"),
        ip("rule"),
        wireguard,
        forward,
    ]
    .concat()
}
