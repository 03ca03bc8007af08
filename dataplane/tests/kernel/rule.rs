//! Policy routing rules against `ip rule`.

use dataplane::{RuleTarget, Target};
use model::{Change, Family, plan::RuleKey};

use crate::{
    contract::{Case, check},
    namespace::{alone, ip},
};

#[test]
fn rules_keep_the_contract() {
    alone(|| {
        check(Case::<RuleTarget> {
            make: Box::new(|| RuleTarget::open().unwrap()),
            rows: rules().map(|key| (key, ())).into(),
            changed: None,
            spoil: Box::new(|| {
                ip("rule del priority 98");
            }),
            recognises: true,
            removes: true,
            print: Box::new(|| ip("rule") + &ip("-6 rule")),
        });
    });
}

#[test]
fn the_kernel_shows_rules_as_they_were_meant() {
    alone(|| {
        let mut target = RuleTarget::open().unwrap();

        target
            .apply(&rules().map(|key| Change::Set(key, ())))
            .unwrap();

        for (rules, source) in [(ip("rule"), "10.0.0.0/26"), (ip("-6 rule"), "fd00::/122")] {
            let inverted = "99:\tnot from all fwmark 0x200000/0x200000 lookup 1 proto 80";
            let from = format!("98:\tfrom {source} lookup 2 proto 80");
            assert!(rules.contains(inverted), "{rules}");
            assert!(rules.contains(&from), "{rules}");
        }
    });
}

#[test]
fn foreign_rules_are_not_ours() {
    alone(|| {
        ip("rule add priority 99 not from all fwmark 0x200000/0x200000 lookup 5");
        let mut target = RuleTarget::open().unwrap();

        assert!(target.observe().unwrap().is_empty());
    });
}

fn rules() -> [RuleKey; 4] {
    [(Family::V4, "10.0.0.0/26"), (Family::V6, "fd00::/122")]
        .map(|(family, source)| {
            [
                RuleKey {
                    family,
                    priority: 98,
                    source: Some(source.parse().unwrap()),
                    without_mark: None,
                    table: 2,
                },
                RuleKey {
                    family,
                    priority: 99,
                    source: None,
                    without_mark: Some(0x0020_0000),
                    table: 1,
                },
            ]
        })
        .concat()
        .try_into()
        .unwrap()
}
