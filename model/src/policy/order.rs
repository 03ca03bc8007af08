//! Which tier and which policy is asked first: Calico's order, ties included.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use super::{Policy, Tier};
use crate::{Kind, ObjectKey};

/// Compares two policies of one tier: the smaller order first and no order last; ties go by `NAME/NAMESPACE/KIND`,
/// byte by byte.
pub fn policies(a: &Policy, b: &Policy) -> Ordering {
    numbers(a.order, b.order).then_with(|| tie(&a.key).cmp(tie(&b.key)))
}

/// Returns the tiers in order: those that exist, by order and name, then those that policies merely name, by name.
///
/// The tiers that every cluster has are among them.
pub fn tiers<'a>(
    known: impl IntoIterator<Item = &'a Tier>,
    named: impl IntoIterator<Item = &'a str>,
) -> Vec<Tier> {
    let mut exist: BTreeMap<String, Tier> = Tier::built_in()
        .into_iter()
        .map(|tier| (tier.name.clone(), tier))
        .collect();
    exist.extend(
        known
            .into_iter()
            .map(|tier| (tier.name.clone(), tier.clone())),
    );
    let missing: BTreeSet<&str> = named
        .into_iter()
        .filter(|name| !exist.contains_key(*name))
        .collect();
    let mut tiers: Vec<Tier> = exist.into_values().collect();
    tiers.sort_by(|a, b| numbers(a.order, b.order).then_with(|| a.name.cmp(&b.name)));
    tiers.extend(missing.into_iter().map(Tier::missing));

    tiers
}

/// Compares orders; none is behind all others.
fn numbers(a: Option<f64>, b: Option<f64>) -> Ordering {
    let place = |order: Option<f64>| order.unwrap_or(f64::INFINITY);

    place(a).partial_cmp(&place(b)).unwrap_or(Ordering::Equal)
}

/// Returns the text that decides between policies of equal order. It is compared as a whole: `a-b` is before `a`.
fn tie(key: &ObjectKey) -> impl Iterator<Item = u8> {
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let kind = if key.kind == Kind::ClusterNetworkPolicy {
        "KubernetesClusterNetworkPolicy"
    } else {
        key.kind.as_str()
    };

    [&key.name, "/", namespace, "/", kind]
        .into_iter()
        .flat_map(str::bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Object, policy::TierAction};

    #[test]
    fn policies_are_asked_by_order_then_by_name_namespace_and_kind() {
        let global =
            |name, order| policy(ObjectKey::cluster(Kind::GlobalNetworkPolicy, name), order);
        let local = |kind, namespace, name, order| {
            policy(ObjectKey::namespaced(kind, namespace, name), order)
        };
        let right = [
            global("z", Some(-1.5)),
            global("y", Some(2.0)),
            global("x", Some(10.0)),
            global("a-b", None),
            global("a.b", None),
            global("a", None),
            local(Kind::KubernetesNetworkPolicy, "a", "b", None),
            local(Kind::NetworkPolicy, "a", "b", None),
            local(Kind::NetworkPolicy, "b", "b", None),
            local(Kind::NetworkPolicy, "a", "c", None),
        ];
        for seed in 0..right.len() {
            let mut shuffled = right.to_vec();
            shuffled.rotate_left(seed);
            shuffled.reverse();
            shuffled.sort_by(policies);
            assert_eq!(shuffled, right);
        }
    }

    #[test]
    fn tiers_that_exist_come_before_those_that_are_merely_named() {
        let tier = |name: &str, order| Tier {
            name: name.to_owned(),
            order,
            default_action: TierAction::Deny,
        };
        let known = [
            tier("unordered-b", None),
            tier("unordered-a", None),
            tier("second", Some(9.0)),
            tier("first", Some(-9.0)),
            tier("also-second", Some(9.0)),
        ];

        let tiers = tiers(&known, ["gone", "default", "first", "a-gone"]);

        let names: Vec<_> = tiers.iter().map(|tier| tier.name.as_str()).collect();
        let right = [
            "first",
            "also-second",
            "second",
            "kube-admin",
            "default",
            "kube-baseline",
            "unordered-a",
            "unordered-b",
            "a-gone",
            "gone",
        ];
        assert_eq!(names, right);
        assert_eq!(tiers.last(), Some(&Tier::missing("gone")));
    }

    #[test]
    fn a_tier_object_stands_for_the_built_in_one_of_its_name() {
        let default = Tier {
            name: "default".into(),
            order: None,
            default_action: TierAction::Deny,
        };

        let tiers = tiers([&default], []);

        assert_eq!(tiers.last(), Some(&default));
        assert_eq!(tiers.len(), 3);
    }

    fn policy(key: ObjectKey, order: Option<f64>) -> Policy {
        let object = Object::new(&key, json!({"order": order}));
        let mut policy = Policy::try_from(&object).unwrap();
        policy.order = order;

        policy
    }
}
