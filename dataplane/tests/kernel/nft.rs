//! Our tables against `nft list`, and against packets.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use dataplane::{ChainRow, NftKey, NftRow, NftTarget, Ownership, Target};
use model::{
    Change, Family,
    nft::{
        ChainKind, Element, Hook, HookPoint, Match, NftFamily, Policy, Rule, Sense, SetKind,
        Statement, Verdict,
    },
};

use crate::{
    contract::{Case, check},
    namespace::{alone, attempt, ip, nft, run, tell, veth},
    ruleset::{
        EXPECTED, Row, chain, element, entry, net, plain, rule, ruleset, ruleset_without_devices,
        set,
    },
};

#[test]
fn nftables_keep_the_contract() {
    alone(|| {
        veth("eth0", "peer0");
        veth("eth1", "peer1");
        check(Case::<NftTarget> {
            make: Box::new(|| target(Ownership::Shared)),
            rows: ruleset(),
            changed: Some(chain(
                NftFamily::Inet,
                "words",
                None,
                vec![plain(Statement::Return)],
            )),
            spoil: Box::new(|| {
                nft("delete element inet meshd nets_v4 { 10.0.0.0/25 }");
            }),
            recognises: true,
            removes: true,
            print: Box::new(listing),
        });
    });
}

#[test]
fn nft_shows_every_word_as_it_was_meant() {
    alone(|| {
        veth("eth0", "peer0");
        veth("eth1", "peer1");
        let mut target = target(Ownership::Exclusive);

        apply(&mut target, &ruleset());

        let listed = listing();
        for line in EXPECTED
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            assert!(listed.contains(line), "{line}\n--- is not in\n{listed}");
        }
    });
}

#[test]
fn nothing_of_a_transaction_with_an_error_takes_effect_and_the_step_is_named() {
    alone(|| {
        let mut target = target(Ownership::Shared);
        let good = chain(
            NftFamily::Inet,
            "good",
            None,
            vec![plain(Statement::Accept)],
        );
        let bad = chain(
            NftFamily::Inet,
            "zbad",
            None,
            vec![plain(Statement::Jump("nowhere".into()))],
        );

        let error = target.apply(&sets(&[good, bad])).unwrap_err().to_string();

        assert!(
            error.starts_with("add rule 1 of inet zbad (why): No such file"),
            "{error}"
        );
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn an_element_that_does_not_fit_its_set_is_refused_by_name() {
    alone(|| {
        let mut target = target(Ownership::Shared);
        let rows = [
            set("nets_v4", SetKind::Nets(Family::V4)),
            element("nets_v4", net("fd00::/64")),
        ];

        let error = target.apply(&sets(&rows)).unwrap_err().to_string();

        assert_eq!(error, "element Net(fd00::/64) does not fit set nets_v4");
    });
}

#[test]
fn a_network_inside_another_grows_at_once_and_shrinks_only_when_the_other_goes() {
    alone(|| {
        let mut target = target(Ownership::Shared);
        let wide = element("guard", net("10.0.0.0/16"));
        let narrow = [
            element("guard", net("10.0.0.0/26")),
            element("guard", net("10.0.9.0/26")),
        ];
        apply(
            &mut target,
            &[set("guard", SetKind::Nets(Family::V4)), wide.clone()],
        );

        apply(&mut target, &narrow);
        assert_eq!(elements("guard"), ["10.0.0.0/16"]);

        target.apply(&[Change::Unset(wide.0.clone())]).unwrap();
        assert_eq!(elements("guard"), ["10.0.0.0/26", "10.0.9.0/26"]);

        apply(&mut target, std::slice::from_ref(&wide));
        assert_eq!(elements("guard"), ["10.0.0.0/16"]);
        target
            .apply(&narrow.map(|(key, _)| Change::Unset(key)))
            .unwrap();
        assert_eq!(elements("guard"), ["10.0.0.0/16"]);
    });
}

/// A group's chain takes the place of another in one step, and the old one can go.
#[test]
fn an_interface_moves_from_one_chain_to_another_in_one_transaction() {
    alone(|| {
        let mut target = target(Ownership::Shared);
        let group = |name: &str| chain(NftFamily::Inet, name, None, vec![plain(Statement::Accept)]);
        let to = |name: &str| entry("cali1", Verdict::Goto(name.into()));
        let map = set("verdicts", SetKind::InterfaceVerdicts);
        apply(&mut target, &[map, group("old"), to("old")]);

        apply(&mut target, &[group("new"), to("new")]);
        let unsets = [group("old"), to("old")].map(|(key, _)| Change::Unset(key));
        target.apply(&unsets).unwrap();

        let listed = nft("list ruleset");
        assert!(
            listed.contains(r#"elements = { "cali1" : goto new }"#),
            "{listed}"
        );
        assert!(!listed.contains("chain old"), "{listed}");
        assert_eq!(target.observe().unwrap().len(), 3);
    });
}

#[test]
fn tens_of_thousands_of_elements_fit_in_one_transaction() {
    alone(|| {
        let mut target = target(Ownership::Exclusive);
        let mut rows = vec![
            set("nets_v6", SetKind::Nets(Family::V6)),
            set("nodes", SetKind::Addresses(Family::V4)),
        ];
        for index in 0..20_000u32 {
            let block = format!("fd00:{:x}:{:x}::/64", index / 200, index % 200);
            rows.push(element("nets_v6", net(&block)));
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + index);
            rows.push(element("nodes", Element::Address(address.into())));
        }

        let started = std::time::Instant::now();
        apply(&mut target, &rows);
        tell(&format!("40,000 elements: {:?}", started.elapsed()));

        assert_eq!(target.observe().unwrap().len(), rows.len());
    });
}

#[test]
fn devices_come_and_go_in_place() {
    alone(|| {
        for name in ["eth0", "eth1"] {
            veth(name, &format!("{name}p"));
        }
        let mut target = target(Ownership::Exclusive);
        apply(&mut target, &[egress(&["eth0"])]);
        let handle = handle_of("guard");

        for devices in [
            &["eth0", "eth1"][..],
            &["eth1"],
            &["eth0"],
            &[],
            &["eth0", "eth1"],
        ] {
            apply(&mut target, &[egress(devices)]);

            assert_eq!(
                hooked(),
                devices.iter().map(|name| (*name).to_owned()).collect()
            );
            let row = target.observe().unwrap().remove(&egress(devices).0);
            assert_eq!(row, Some(egress(devices).1));
        }
        assert_eq!(handle_of("guard"), handle, "the chain is the same");
    });
}

#[test]
fn a_device_that_is_not_there_yet_is_guarded_as_soon_as_it_is() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = target(Ownership::Exclusive);
        let wanted = egress(&["eth0", "eth9"]);
        apply(&mut target, std::slice::from_ref(&wanted));
        assert_eq!(
            target.observe().unwrap().get(&wanted.0),
            Some(&wanted.1),
            "nothing to do"
        );

        veth("eth9", "peer9");
        assert_ne!(
            target.observe().unwrap().get(&wanted.0),
            Some(&wanted.1),
            "now there is"
        );
        apply(&mut target, &[wanted]);

        assert_eq!(
            hooked(),
            BTreeSet::from(["eth0".to_owned(), "eth9".to_owned()])
        );
    });
}

/// One thread sends as fast as it can what the guard drops, while another changes the guard: none gets out.
#[test]
fn changing_devices_or_rules_opens_no_gap() {
    alone(|| {
        // Only what the test sends is to be counted.
        run("sysctl", "-w net.ipv6.conf.default.disable_ipv6=1");
        veth("eth0", "peer0");
        veth("eth1", "peer1");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0");
        let mut target = target(Ownership::Exclusive);
        apply(&mut target, &[egress(&["eth0"])]);
        let before = tx_packets();

        let sent = while_sending("192.0.2.1", "192.0.2.9:9", || {
            for round in 0..200 {
                let devices = if round % 2 == 0 {
                    &["eth0", "eth1"][..]
                } else {
                    &["eth0"]
                };
                apply(&mut target, &[egress(devices)]);
                apply(&mut target, &[with_rule(egress(devices), round)]);
            }
        });

        assert_eq!(tx_packets(), before, "one of {sent} packets left");
        assert!(sent > 1000, "{sent}");
    });
}

#[test]
fn a_new_device_is_added_to_both_chains_at_once() {
    alone(|| {
        veth("eth0", "peer0");
        let mut target = target(Ownership::Exclusive);
        let on = |devices: &[&str]| [egress(devices), ingress(devices)];
        apply(&mut target, &on(&["eth0"]));
        let before = nft("-a list table netdev meshd");
        veth("eth1", "peer1");

        apply(&mut target, &on(&["eth0", "eth1"]));

        let listed = nft("-a list table netdev meshd");
        assert_eq!(
            listed.matches("devices = { eth0, eth1 }").count(),
            2,
            "{listed}"
        );
        let handles = |text: &str| text.matches("# handle").count();
        assert_eq!(handles(&before), handles(&listed), "nothing is made anew");
    });
}

/// Sends datagrams for as long as `work` takes; returns how many.
fn while_sending(from: &str, to: &str, work: impl FnOnce()) -> u64 {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Whether the drop is told to the sender is the hook's affair.
                drop(socket.send_to(b"secret", to));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });

    sent.into_inner()
}

#[test]
fn owned_tables_survive_their_owner_and_are_taken_over() {
    alone(|| {
        let mut first = target(Ownership::Exclusive);
        apply(&mut first, &ruleset_without_devices());
        assert!(
            !attempt("nft", "flush table inet meshd").status.success(),
            "nobody else may"
        );
        nft("flush ruleset");
        let before = nft("list table inet meshd");

        drop(first);
        let ownerless = nft("list table inet meshd");
        let mut second = target(Ownership::Exclusive);
        let seen = second.observe().unwrap();

        assert!(
            ownerless.contains("oifname \"cali*\" accept"),
            "the table is still there"
        );
        assert_eq!(seen, ruleset_without_devices().into_iter().collect());
        assert!(
            !attempt("nft", "flush table inet meshd").status.success(),
            "it is owned again"
        );
        assert_eq!(
            nft("list table inet meshd"),
            before,
            "and nothing was written"
        );
    });
}

#[test]
fn what_others_do_to_shared_tables_is_noticed() {
    let edits = [
        "flush ruleset",
        "delete table netdev meshd",
        "flush chain inet meshd words",
        "insert rule inet meshd words accept",
        "add rule inet meshd words counter",
        "add chain inet meshd stranger",
        "add set inet meshd stranger { type mark; }",
        "add element inet meshd nets_v4 { 172.16.0.0/12 }",
        "add element inet meshd nets_v4 { 172.16.0.1-172.16.0.9 }",
        "flush set inet meshd nodes",
        "delete element inet meshd verdicts { cali3 : drop }",
        "add element inet meshd verdicts { cali9 : accept }",
        "add map inet meshd stranger { type ifname : mark; }",
    ];
    for edit in edits {
        alone(move || {
            veth("eth0", "peer0");
            veth("eth1", "peer1");
            let mut target = target(Ownership::Shared);
            apply(&mut target, &ruleset());
            let before = listing();

            nft(edit);
            let found = target.observe().unwrap();
            let wanted: std::collections::BTreeMap<_, _> = ruleset().into_iter().collect();
            assert_ne!(found, wanted, "{edit}");

            let unwanted = found.keys().filter(|key| !wanted.contains_key(key));
            let unsets: Vec<_> = unwanted.map(|key| Change::Unset(key.clone())).collect();
            let missing = wanted
                .iter()
                .filter(|(key, row)| found.get(key) != Some(row));
            let missing: Vec<_> = missing
                .map(|(key, row)| Change::Set(key.clone(), row.clone()))
                .collect();
            target.apply(&missing).unwrap();
            target.apply(&unsets).unwrap();

            assert_eq!(target.observe().unwrap(), wanted, "{edit}");
            assert_eq!(listing(), before, "{edit}");
        });
    }
}

#[test]
fn other_tables_are_not_touched() {
    alone(|| {
        nft("add table inet meshdx");
        nft("add chain inet meshdx words");
        nft("add table ip meshd");
        let mut target = target(Ownership::Exclusive);

        apply(&mut target, &ruleset_without_devices());
        let unsets: Vec<_> = target
            .observe()
            .unwrap()
            .into_keys()
            .map(Change::Unset)
            .collect();
        target.apply(&unsets).unwrap();

        let listed = nft("list ruleset");
        assert!(listed.contains("table inet meshdx") && listed.contains("table ip meshd"));
    });
}

fn egress(devices: &[&str]) -> Row {
    let devices = devices.iter().map(|name| name.parse().unwrap()).collect();
    let hook = Hook {
        point: HookPoint::Egress(devices),
        priority: 0,
        kind: ChainKind::Filter,
        policy: Policy::Accept,
    };

    chain(
        NftFamily::Netdev,
        "guard",
        Some(hook),
        vec![Rule {
            counter: true,
            ..rule(
                "guard",
                [Match::DestinationNet(
                    Sense::Is,
                    "192.0.2.9/32".parse().unwrap(),
                )],
                Statement::Drop,
            )
        }],
    )
}

fn ingress(devices: &[&str]) -> Row {
    let devices = devices.iter().map(|name| name.parse().unwrap()).collect();
    let hook = Hook {
        point: HookPoint::Ingress(devices),
        priority: 0,
        kind: ChainKind::Filter,
        policy: Policy::Accept,
    };

    chain(
        NftFamily::Netdev,
        "guard_in",
        Some(hook),
        vec![plain(Statement::Accept)],
    )
}

/// The same chain with one rule more behind the first.
fn with_rule(row: Row, round: u32) -> Row {
    let (NftKey::Chain(key), NftRow::Chain(row)) = row else {
        panic!("a chain");
    };
    let mut chain = row.chain.expect("of the plan");
    let more = rule(
        &format!("round {round}"),
        [Match::Protocol(Sense::Is, 6)],
        Statement::Return,
    );
    chain.rules = chain.rules.iter().cloned().chain([more]).collect();
    let row = ChainRow::new(key.table, chain);

    (NftKey::Chain(key), NftRow::Chain(Box::new(row)))
}

fn target(ownership: Ownership) -> NftTarget {
    let mut target = NftTarget::open(ownership).unwrap();
    target.set_in_sync(true);

    target
}

fn apply(target: &mut NftTarget, rows: &[Row]) {
    assert_eq!(target.apply(&sets(rows)).unwrap(), []);
}

fn sets(rows: &[Row]) -> Vec<Change<NftKey, NftRow>> {
    rows.iter()
        .map(|(key, row)| Change::Set(key.clone(), row.clone()))
        .collect()
}

/// `nft list ruleset`, whatever has been counted so far.
fn listing() -> String {
    let listed = nft("list ruleset");
    let mut words: Vec<&str> = listed.split(' ').collect();
    for at in 1..words.len() {
        if ["packets", "bytes"].contains(&words[at - 1]) {
            words[at] = "N";
        }
    }

    words.join(" ")
}

/// The elements of a set of networks, as `nft` lists them.
fn elements(set: &str) -> Vec<String> {
    let listed = nft(&format!("list set inet meshd {set}"));
    let list = listed
        .split("elements = {")
        .nth(1)
        .and_then(|rest| rest.split('}').next());

    list.unwrap_or_default()
        .split(',')
        .map(|element| element.trim().to_owned())
        .filter(|element| !element.is_empty())
        .collect()
}

/// The devices on which the netdev guard hangs, as `nft` lists them.
fn hooked() -> BTreeSet<String> {
    let listed = nft("list chain netdev meshd guard");
    let hook = listed
        .lines()
        .find(|line| line.contains("type filter hook"))
        .unwrap();
    let devices = hook.split("priority").next().unwrap();

    devices
        .split_once("device")
        .map(|(_, devices)| devices.trim_start_matches("s = "))
        .unwrap_or_default()
        .split([',', '{', '}', ' ', '"'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn handle_of(chain: &str) -> String {
    let listed = nft("-a list table netdev meshd");
    let line = listed
        .lines()
        .find(|line| line.contains(&format!("chain {chain} ")))
        .unwrap();

    line.rsplit("handle ").next().unwrap().to_owned()
}

/// Packets that left by eth0, by the device's own count.
fn tx_packets() -> u64 {
    let listed = crate::namespace::ip_json("-s link show dev eth0");

    listed[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}
