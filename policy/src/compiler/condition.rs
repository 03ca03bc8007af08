//! Selectors, read for many questions: on words, and with what they need.

use model::{
    Selector,
    selector::{Expression, ORCHESTRATOR_LABEL, Relation},
};

use super::slab::{Word, Words};
use crate::cluster::NAMESPACE_LABEL;

/// Labels as words, sorted by key.
pub(super) type Labels = [(Word, Word)];

/// A selector's expression on words.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Always,
    Has(Word),
    Equal(Word, Word),
    /// The values are sorted.
    In(Word, Box<[Word]>),
    /// A label whose value's text is looked into.
    Text(Word, Relation, Box<str>),
    Not(Box<Self>),
    And(Box<[Self]>),
    Or(Box<[Self]>),
}

/// A label without which a condition does not hold: with this value, or with any.
pub(super) type Label = (Word, Option<Word>);

/// Where a condition stands in the index: the namespace that it is about, if it is about one, and a label that it
/// needs.
pub(super) type Need = (Option<Word>, Option<Label>);

impl Condition {
    /// Reads a selector; its words are held until [`release`](Self::release).
    pub(super) fn new(selector: &Selector, words: &mut Words) -> Self {
        Self::read(selector.expression(), words)
    }

    fn read(expression: &Expression, words: &mut Words) -> Self {
        match expression {
            Expression::All | Expression::Global => Self::Always,
            Expression::Has(label) => Self::Has(words.take(label)),
            Expression::Compare {
                label,
                relation,
                value,
            } => {
                let label = words.take(label);
                match relation {
                    Relation::Equal => Self::Equal(label, words.take(value)),
                    Relation::NotEqual => {
                        Self::Not(Box::new(Self::Equal(label, words.take(value))))
                    }
                    Relation::Contains | Relation::StartsWith | Relation::EndsWith => {
                        Self::Text(label, *relation, value.as_str().into())
                    }
                }
            }
            Expression::In(label, values) => {
                let label = words.take(label);
                let mut values: Vec<Word> = values.iter().map(|value| words.take(value)).collect();
                values.sort_unstable();
                Self::In(label, values.into())
            }
            Expression::NotIn(label, values) => {
                let inner = Expression::In(label.clone(), values.clone());
                Self::Not(Box::new(Self::read(&inner, words)))
            }
            Expression::Not(inner) => Self::Not(Box::new(Self::read(inner, words))),
            Expression::And(parts) => {
                Self::And(parts.iter().map(|part| Self::read(part, words)).collect())
            }
            Expression::Or(parts) => {
                Self::Or(parts.iter().map(|part| Self::read(part, words)).collect())
            }
        }
    }

    /// Gives its words back.
    pub(super) fn release(&self, words: &mut Words) {
        match self {
            Self::Always => {}
            Self::Has(label) | Self::Text(label, ..) => words.give_back(*label),
            Self::Equal(label, value) => {
                words.give_back(*label);
                words.give_back(*value);
            }
            Self::In(label, values) => {
                words.give_back(*label);
                for value in values {
                    words.give_back(*value);
                }
            }
            Self::Not(inner) => inner.release(words),
            Self::And(parts) | Self::Or(parts) => {
                for part in parts {
                    part.release(words);
                }
            }
        }
    }

    /// Returns whether it holds of labels.
    pub(super) fn holds(&self, labels: &Labels, words: &Words) -> bool {
        match self {
            Self::Always => true,
            Self::Has(label) => value(labels, *label).is_some(),
            Self::Equal(label, wanted) => value(labels, *label) == Some(*wanted),
            Self::In(label, values) => {
                value(labels, *label).is_some_and(|value| values.binary_search(&value).is_ok())
            }
            Self::Text(label, relation, text) => value(labels, *label)
                .is_some_and(|value| is_related(words.text(value), *relation, text)),
            Self::Not(inner) => !inner.holds(labels, words),
            Self::And(parts) => parts.iter().all(|part| part.holds(labels, words)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(labels, words)),
        }
    }

    /// Returns lists of labels, of each of which it needs one. Without a list it may hold of anything.
    pub(super) fn requirements(&self) -> Vec<Vec<Label>> {
        match self {
            Self::Always | Self::Not(_) => Vec::new(),
            Self::Has(label) | Self::Text(label, ..) => vec![vec![(*label, None)]],
            Self::Equal(label, value) => vec![vec![(*label, Some(*value))]],
            Self::In(label, values) => {
                vec![values.iter().map(|value| (*label, Some(*value))).collect()]
            }
            Self::And(parts) => parts.iter().flat_map(Self::requirements).collect(),
            Self::Or(parts) => {
                let mut joined = Vec::new();
                for part in parts {
                    let Some(one) = part.requirements().into_iter().min_by_key(Vec::len) else {
                        return Vec::new();
                    };
                    joined.extend(one);
                }
                vec![joined]
            }
        }
    }

    /// Returns where it stands in the index: under each of these.
    pub(super) fn needs(&self, words: &Words) -> Vec<Need> {
        let namespace_label = words.find(NAMESPACE_LABEL);
        let everywhere = words.find(ORCHESTRATOR_LABEL);
        let requirements = self.requirements();
        let namespace = requirements.iter().find_map(|one| match one[..] {
            [(label, value)] if Some(label) == namespace_label => value,
            _ => None,
        });
        let worth = |one: &&Vec<Label>| {
            let is_common = |label: &Label| Some(label.0) == everywhere;
            let is_place = |label: &Label| Some(label.0) == namespace_label;
            let is_vague = one.iter().any(|label| label.1.is_none());

            (
                one.iter().any(is_common),
                is_vague,
                one.iter().any(is_place),
                one.len(),
            )
        };
        match requirements.iter().min_by_key(worth) {
            None => vec![(None, None)],
            Some(one) => one.iter().map(|label| (namespace, Some(*label))).collect(),
        }
    }
}

/// Returns a label's value.
fn value(labels: &Labels, label: Word) -> Option<Word> {
    let place = labels.binary_search_by_key(&label, |(key, _)| *key).ok()?;

    Some(labels[place].1)
}

fn is_related(value: &str, relation: Relation, text: &str) -> bool {
    match relation {
        Relation::Equal => value == text,
        Relation::NotEqual => value != text,
        Relation::Contains => value.contains(text),
        Relation::StartsWith => value.starts_with(text),
        Relation::EndsWith => value.ends_with(text),
    }
}

/// Returns under which needs labels answer.
pub(super) fn answered(labels: &Labels, words: &Words) -> Vec<Need> {
    let namespace = words
        .find(NAMESPACE_LABEL)
        .and_then(|label| value(labels, label));
    let mut needs = Vec::with_capacity(labels.len() * 4 + 2);
    for place in [None].into_iter().chain(namespace.map(Some)) {
        needs.push((place, None));
        for (label, value) in labels {
            needs.push((place, Some((*label, None))));
            needs.push((place, Some((*label, Some(*value)))));
        }
    }

    needs
}
