//! Which labels would make a selector true.

use std::collections::BTreeMap;

use model::selector::{
    Expression, NAMESPACE_PREFIX, ORCHESTRATOR_LABEL, Relation, SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
};

use model::PodName;

use super::change::Change;
use crate::cluster::NAMESPACE_LABEL;

/// The value of a label of which a selector only asks whether it is there.
const ANY_VALUE: &str = "true";

/// Returns the fewest labels that make an expression true of somebody who has these; `None` where adding labels does
/// not do it. A label that is there already stays as it is.
pub(super) fn missing(
    expression: &Expression,
    labels: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    if expression.matches(labels) {
        return Some(BTreeMap::new());
    }
    match expression {
        Expression::Has(label) => one(label, ANY_VALUE, labels),
        Expression::Compare {
            label,
            relation,
            value,
        } => match relation {
            Relation::Equal | Relation::Contains | Relation::StartsWith | Relation::EndsWith => {
                one(label, value, labels)
            }
            Relation::NotEqual => None,
        },
        Expression::In(label, values) => one(label, values.first()?, labels),
        Expression::And(parts) => all(parts, labels),
        Expression::Or(parts) => {
            let ways = parts.iter().filter_map(|part| missing(part, labels));
            ways.min_by_key(BTreeMap::len)
        }
        Expression::All | Expression::Global | Expression::NotIn(..) | Expression::Not(_) => None,
    }
}

/// Returns the change that gives a pod, or its namespace, labels; and how many. `None` where both would be needed.
pub(super) fn change(pod: &PodName, labels: BTreeMap<String, String>) -> Option<(usize, Change)> {
    let count = labels.len();
    let inherited = labels
        .keys()
        .filter(|key| key.starts_with(NAMESPACE_PREFIX));
    let change = match inherited.count() {
        0 => Change::LabelPod(pod.clone(), labels),
        some if some == count => {
            let labels = labels.into_iter();
            let own = labels.map(|(key, value)| (key.replacen(NAMESPACE_PREFIX, "", 1), value));
            Change::LabelNamespace(pod.namespace.clone(), own.collect())
        }
        _ => return None,
    };

    (count > 0).then_some((count, change))
}

fn all(
    parts: &[Expression],
    labels: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    let mut added = BTreeMap::new();
    let mut labels = labels.clone();
    for part in parts {
        let more = missing(part, &labels)?;
        labels.extend(more.clone());
        added.extend(more);
    }

    // What one part wants, another may not.
    parts
        .iter()
        .all(|part| part.matches(&labels))
        .then_some(added)
}

fn one(
    label: &str,
    value: &str,
    labels: &BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    let is_given = [NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL].contains(&label)
        || label.starts_with(SERVICE_ACCOUNT_PREFIX)
        || label == format!("{NAMESPACE_PREFIX}projectcalico.org/name")
        || label == format!("{NAMESPACE_PREFIX}kubernetes.io/metadata.name");
    if is_given || labels.contains_key(label) {
        return None;
    }

    Some(BTreeMap::from([(label.to_owned(), value.to_owned())]))
}

#[cfg(test)]
mod tests {
    use model::Selector;

    use super::*;

    #[test]
    fn the_labels_that_are_proposed_make_the_selector_true() {
        let own = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let cases = [
            ("role == 'front'", Some(vec![("role", "front")])),
            ("app == 'web' && has(blue)", Some(vec![("blue", "true")])),
            ("zone in {'b', 'a'}", Some(vec![("zone", "a")])),
            (
                "(has(x) && has(y)) || z starts with 'q'",
                Some(vec![("z", "q")]),
            ),
            ("app == 'api'", None),
            ("has(x) && !has(x)", None),
            ("projectcalico.org/namespace == 'shop'", None),
            ("app != 'web'", None),
        ];
        for (text, expected) in cases {
            let selector: Selector = text.parse().unwrap();
            let expected = expected.map(|labels| {
                let labels = labels.into_iter();
                let owned = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
                owned.collect::<BTreeMap<_, _>>()
            });

            let found = missing(selector.expression(), &own);

            assert_eq!(found, expected, "{text}");
            if let Some(found) = found {
                let mut all = own.clone();
                all.extend(found);
                assert!(selector.matches(&all), "{text}");
            }
        }
    }
}
