//! A ruleset that became what it is change by change, against one that was loaded at once.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::{NftKey, NftRow, NftTarget, Ownership, Target};
use model::{Change, policy::Rule};
use policy::{
    Cluster,
    compile::{Ruleset, Scene, compile},
};
use ruleset::{Chance, listing};
use serde_json::Value;

use crate::{alone, keyed, namespace::Namespace, program};

/// Histories, and the changes of each.
const HISTORIES: u64 = 12;
const STEPS: u64 = 25;

/// Policies, pods and labels come and go. The agent is started anew now and then.
#[test]
fn whatever_changed_the_kernel_has_what_a_fresh_load_makes() {
    alone(|| {
        let fresh = Namespace::new();
        let mut kept = 0;
        for seed in 0..HISTORIES {
            program("nft", "flush ruleset");
            kept += history(seed, &fresh);
        }
        assert!(kept > 500, "{kept} rules stayed in chains that changed");
    });
}

/// Returns how many rules stayed in chains that changed.
fn history(seed: u64, fresh: &Namespace) -> usize {
    let mut chance = Chance::new(seed);
    let (mut cluster, reserve) = (chance.cluster(), chance.cluster());
    let node = cluster.nodes[0].name.clone();
    let (mut target, mut rows, mut kept) = (agent(), Ruleset::default(), 0);
    let mut numbers = Numbers::default();
    for step in 0..STEPS {
        for _ in 0..=chance.below(3) {
            change(&mut cluster, &reserve, &mut chance);
        }
        if chance.once_in(5) {
            chance.narrow(&mut cluster);
        }
        let wanted = compile(&Scene::of_node(&cluster, &node)).rows;
        if chance.below(6) == 0 {
            target = agent();
            target.observe().unwrap();
        }
        assert_eq!(target.apply(&changes(&wanted, &rows)).unwrap(), []);
        rows = wanted;

        let listed = program("nft", LIST);
        let whole = rows.clone();
        let right = fresh.run(move || loaded(&whole));
        assert_eq!(
            differences(&listing::read(&right), &listed),
            "",
            "seed {seed}, step {step}"
        );
        let now = Numbers::of(&listed);
        kept += now.kept_since(&numbers);
        numbers = now;
    }

    kept
}

const LIST: &str = "-n -j list table inet meshd";

fn agent() -> NftTarget {
    let mut target = NftTarget::open(Ownership::Shared).unwrap();
    target.set_in_sync(true);

    target
}

/// Loads rows into this namespace in the place of what was there, and lists them.
fn loaded(rows: &Ruleset) -> String {
    program("nft", "flush ruleset");
    assert_eq!(
        agent().apply(&changes(rows, &Ruleset::default())).unwrap(),
        []
    );

    program("nft", LIST)
}

fn differences(right: &Ruleset, listed: &str) -> String {
    let found = listing::read(listed);
    let lines = found.since(right).into_iter().take(12);

    lines.map(|change| format!("{change:?}\n")).collect()
}

/// What makes rows of others, in the order in which the reconciler has it done.
fn changes(wanted: &Ruleset, before: &Ruleset) -> Vec<Change<NftKey, NftRow>> {
    let (now, before) = (keyed(wanted), keyed(before));
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    let mut changes: BTreeMap<NftKey, Option<NftRow>> =
        gone.map(|key| (key.clone(), None)).collect();
    let news = now.into_iter();
    let news = news.filter(|(key, row)| before.get(key) != Some(row));
    changes.extend(news.map(|(key, row)| (key, Some(row))));

    changes
        .into_iter()
        .map(|(key, row)| match row {
            Some(row) => Change::Set(key, row),
            None => Change::Unset(key),
        })
        .collect()
}

/// Changes one thing; what comes is taken from the reserve.
fn change(cluster: &mut Cluster, reserve: &Cluster, chance: &mut Chance) {
    let mut place = |count: usize| usize::try_from(chance.below(count.max(1) as u64)).unwrap();
    let sort = place(6);
    let (policies, more) = (&mut cluster.policies, &reserve.policies);
    match sort {
        0 if !policies.is_empty() => drop(policies.swap_remove(place(policies.len()))),
        1 if !policies.is_empty() => {
            let policy = place(policies.len());
            let rules: &mut Vec<Rule> = &mut policies[policy].ingress;
            if rules.len() > 1 {
                rules.remove(place(rules.len()));
            }
        }
        0..=2 if !more.is_empty() => {
            let policy = more[place(more.len())].clone();
            policies.retain(|known| known.key != policy.key);
            policies.push(policy);
        }
        3 if !cluster.pods.is_empty() => drop(cluster.pods.swap_remove(place(cluster.pods.len()))),
        3 | 4 if !reserve.pods.is_empty() => {
            let pod = reserve.pods[place(reserve.pods.len())].clone();
            cluster.pods.retain(|known| known.name != pod.name);
            cluster.pods.push(pod);
        }
        _ if !cluster.pods.is_empty() => {
            let (pod, app) = (place(cluster.pods.len()), ["a", "b", "c"][place(3)]);
            let labels = &mut cluster.pods[pod].labels;
            labels.insert("app".to_owned(), app.to_owned());
        }
        _ => {}
    }
}

/// The kernel's numbers of rules, by chain, in order.
#[derive(Default)]
struct Numbers(BTreeMap<String, Vec<u64>>);

impl Numbers {
    fn of(listed: &str) -> Self {
        let listed: Value = serde_json::from_str(listed).unwrap();
        let mut numbers = Self::default();
        for rule in listed["nftables"].as_array().unwrap() {
            if let Some(rule) = rule.get("rule") {
                let chain = rule["chain"].as_str().unwrap().to_owned();
                let number = rule["handle"].as_u64().unwrap();
                numbers.0.entry(chain).or_default().push(number);
            }
        }

        numbers
    }

    fn kept_since(&self, before: &Self) -> usize {
        let changed = self.0.iter().filter_map(|(chain, now)| {
            let before = before.0.get(chain)?;
            let known: BTreeSet<u64> = before.iter().copied().collect();
            let kept = now.iter().filter(|number| known.contains(number)).count();

            (now != before).then_some(kept)
        });

        changed.sum()
    }
}
