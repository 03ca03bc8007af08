//! Chains that are changed rule by rule: what `nft` lists, with the kernel's number of each rule.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use dataplane::{NftTarget, Ownership, Target};
use model::{
    Change,
    nft::{ChainKind, Hook, HookPoint, Match, NftFamily, Policy, Rule, Sense, Statement},
};

use crate::{
    namespace::{alone, nft, tell},
    ruleset::{Row, chain, rule},
};

/// Twenty rules, which count what passes.
const TWENTY: &str = "abcdefghijklmnopqrst";

#[test]
fn a_rule_that_comes_or_goes_leaves_the_counts_of_the_others_alone() {
    for ownership in [Ownership::Exclusive, Ownership::Shared] {
        alone(move || {
            let mut target = target(ownership);
            apply(&mut target, &[base(TWENTY)]);
            send();
            let before = listed();
            assert!(before.iter().all(|rule| rule.counted > 0), "{before:?}");

            for (now, changed) in [
                ("abcdefgxhijklmnopqrst", 1),
                ("yabcdefgxhijklmnopqrstz", 2),
                ("yacdefgxhijklmnopqrstz", 0),
                ("yacdeKLMgxhijnopqrstz", 3),
            ] {
                let former = listed();
                apply(&mut target, &[base(now)]);
                let rules = listed();
                assert_eq!(names(&rules), now);
                let known: BTreeSet<u64> = former.iter().map(|rule| rule.handle).collect();
                let new = rules.iter().filter(|rule| !known.contains(&rule.handle));
                assert_eq!(new.count(), changed, "{now}");
                let old = rules.iter().filter(|rule| before.contains(rule));
                assert!(old.count() >= 15, "{rules:?}");
            }
        });
    }
}

#[test]
fn after_a_restart_the_rules_that_are_there_stay() {
    for ownership in [Ownership::Exclusive, Ownership::Shared] {
        alone(move || {
            let mut first = target(ownership);
            apply(&mut first, &[base(TWENTY)]);
            apply(&mut first, &[base("abcdefghijklmnopqrstu")]);
            drop(first);
            send();
            let before = listed();

            let mut second = target(ownership);
            second.observe().unwrap();
            apply(&mut second, &[base("abcdefghijkXlmnopqrstu")]);

            let rules = listed();
            assert_eq!(names(&rules), "abcdefghijkXlmnopqrstu");
            let old = rules.iter().filter(|rule| before.contains(rule));
            assert_eq!(old.count(), 21, "{rules:?}");
        });
    }
}

/// Whatever became of a chain rule by rule, it is what a load of all at once makes.
#[test]
fn after_any_history_of_changes_the_chains_are_those_of_a_fresh_load() {
    alone(|| {
        let mut seed = 7_u64;
        let mut below = move |most: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % most
        };
        let mut target = target(Ownership::Shared);
        let mut texts = [TWENTY.to_owned(), TWENTY.repeat(3), String::new()];
        let mut kept = 0;
        for step in 0..300 {
            for text in &mut texts {
                for _ in 0..below(4) {
                    let at = below(text.len() as u64 + 1) as usize;
                    match below(3) {
                        0 if at < text.len() => drop(text.remove(at)),
                        1 if at < text.len() && below(40) == 0 => text.truncate(at),
                        // Some rules are there twice.
                        _ => text.insert(at, b"abcdefgh"[below(8) as usize].into()),
                    }
                }
            }
            let rows = [
                base(&texts[0]),
                words("second", &texts[1]),
                words("third", &texts[2]),
            ];
            let before: BTreeSet<u64> = listed().iter().map(|rule| rule.handle).collect();
            apply(&mut target, &rows);
            let rules = listed();
            kept += rules
                .iter()
                .filter(|rule| before.contains(&rule.handle))
                .count();
            assert_eq!(names(&rules), texts[0], "step {step}");
            assert_eq!(words_of("second"), texts[1], "step {step}");
            assert_eq!(words_of("third"), texts[2], "step {step}");
            match below(30) {
                0 => drop(target.observe().unwrap()),
                1 => nft("add table ip somebodys").clear(),
                _ => {}
            }
        }
        assert!(kept > 3_000, "{kept}");
    });
}

/// The kernel numbers the rules of each table anew: what we know of ours says nothing of another.
#[test]
fn a_table_that_somebody_put_in_the_place_of_ours_is_not_changed_by_number() {
    alone(|| {
        let mut target = target(Ownership::Shared);
        apply(&mut target, &[base("abcdef")]);
        apply(&mut target, &[base("abcdefg")]);
        nft("delete table inet meshd");
        let mut other = NftTarget::open(Ownership::Shared).unwrap();
        apply(&mut other, &[base("gfedcba")]);

        apply(&mut target, &[base("acdefg")]);

        assert_eq!(names(&listed()), "acdefg");
    });
}

/// What others commit between our look at the generation and our own transaction makes the kernel refuse ours.
#[test]
fn changes_that_others_disturb_arrive_all_the_same() {
    static DONE: AtomicBool = AtomicBool::new(false);
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    alone(|| {
        let mut target = target(Ownership::Shared);
        apply(&mut target, &[base(TWENTY)]);
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let disturber = std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&here),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            while !DONE.load(Ordering::Relaxed) {
                nft("add table ip somebodys; delete table ip somebodys");
                ROUNDS.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut text = TWENTY.to_owned();
        let mut round = 0;
        while ROUNDS.load(Ordering::Relaxed) < 200 && !disturber.is_finished() {
            round += 1;
            let place = round % text.len();
            let letter = text.remove(place);
            apply(&mut target, &[base(&text)]);
            text.insert((place * 7) % text.len(), letter);
            apply(&mut target, &[base(&text)]);
        }
        DONE.store(true, Ordering::Relaxed);
        disturber.join().unwrap();
        tell(&format!("{round} changes, 200 of others"));

        assert_eq!(names(&listed()), text);
    });
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: char,
    counted: u64,
    handle: u64,
}

/// The base chain's rules, as `nft` lists them.
fn listed() -> Vec<Listed> {
    rules_of("base")
}

fn rules_of(chain: &str) -> Vec<Listed> {
    let tables = nft("list tables");
    if !tables.contains("inet meshd") {
        return Vec::new();
    }
    let listed = nft(&format!("-a list chain inet meshd {chain}"));
    let rules = listed.lines().filter(|line| line.contains("counter"));

    rules
        .map(|line| {
            let behind = |word: &str| {
                let rest = line.split(word).nth(1).unwrap();
                rest.split_whitespace().next().unwrap().to_owned()
            };
            Listed {
                name: behind("comment \"").chars().next().unwrap(),
                counted: behind("packets").parse().unwrap(),
                handle: behind("# handle").parse().unwrap(),
            }
        })
        .collect()
}

fn names(rules: &[Listed]) -> String {
    rules.iter().map(|rule| rule.name).collect()
}

fn words_of(chain: &str) -> String {
    names(&rules_of(chain))
}

/// A chain of a rule for each letter, which whatever is sent passes.
fn base(text: &str) -> Row {
    let hook = Hook {
        point: HookPoint::Output,
        priority: 0,
        kind: ChainKind::Filter,
        policy: Policy::Accept,
    };

    chain(NftFamily::Inet, "base", Some(hook), rules(text))
}

fn words(name: &str, text: &str) -> Row {
    chain(NftFamily::Inet, name, None, rules(text))
}

fn rules(text: &str) -> Vec<Rule> {
    text.chars()
        .map(|letter| Rule {
            counter: true,
            ..rule(
                &letter.to_string(),
                [Match::Oif(Sense::Is, "lo".parse().unwrap())],
                Statement::Continue,
            )
        })
        .collect()
}

fn send() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", "127.0.0.1:9").unwrap();
}

fn target(ownership: Ownership) -> NftTarget {
    let mut target = NftTarget::open(ownership).unwrap();
    target.set_in_sync(true);

    target
}

fn apply(target: &mut NftTarget, rows: &[Row]) {
    let changes: Vec<_> = rows
        .iter()
        .map(|(key, row)| Change::Set(key.clone(), row.clone()))
        .collect();
    assert_eq!(target.apply(&changes).unwrap(), []);
}
