//! Kubernetes' label selectors, as its policies have them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{FieldError, field};
use crate::{
    Selector,
    name::{is_label_value, is_qualified_name},
    selector::{Expression, Relation},
};

/// A selector by labels: everything that it lists must hold; one that lists nothing selects everything.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LabelSelector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Requirement>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Requirement {
    key: Option<String>,
    operator: Option<String>,
    values: Option<Vec<String>>,
}

impl LabelSelector {
    /// Returns the same selector in Calico's language: first the labels in order, then the expressions.
    pub(super) fn selector(&self, path: &str) -> Result<Selector, FieldError> {
        let mut parts = Vec::new();
        for (key, wanted) in self.match_labels.iter().flatten() {
            let path = format!("{path}.matchLabels.{key}");
            parts.push(Expression::Compare {
                label: label(key, &path)?,
                relation: Relation::Equal,
                value: value(wanted, &path)?,
            });
        }
        for (index, requirement) in self.match_expressions.iter().flatten().enumerate() {
            parts.push(requirement.expression(&format!("{path}.matchExpressions[{index}]"))?);
        }

        Ok(Selector::intersection(
            parts.into_iter().map(Selector::composed),
        ))
    }
}

impl Requirement {
    fn expression(&self, path: &str) -> Result<Expression, FieldError> {
        let at = |name: &str| format!("{path}.{name}");
        let key = self.key.as_deref().unwrap_or_default();
        let key = label(key, &at("key"))?;
        let values = self.values.as_deref().unwrap_or_default();
        let values = values
            .iter()
            .enumerate()
            .map(|(index, text)| value(text, &format!("{path}.values[{index}]")))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let (expression, needs_values) = match self.operator.as_deref() {
            Some("In") => (Expression::In(key, values.clone()), true),
            Some("NotIn") => (Expression::NotIn(key, values.clone()), true),
            Some("Exists") => (Expression::Has(key), false),
            Some("DoesNotExist") => (Expression::Not(Box::new(Expression::Has(key))), false),
            other => {
                let rule = "In, NotIn, Exists or DoesNotExist";
                return Err(field::expected(
                    &at("operator"),
                    rule,
                    other.unwrap_or_default(),
                ));
            }
        };
        match (needs_values, values.is_empty()) {
            (true, true) => Err(FieldError::new(at("values"), "expected at least one value")),
            (false, false) => Err(FieldError::new(
                at("values"),
                "expected no values with this operator",
            )),
            (true, false) | (false, true) => Ok(expression),
        }
    }
}

fn label(key: &str, path: &str) -> Result<String, FieldError> {
    if is_qualified_name(key) {
        Ok(key.to_owned())
    } else {
        Err(field::expected(
            path,
            "a key such as app or example.org/app",
            key,
        ))
    }
}

fn value(text: &str, path: &str) -> Result<String, FieldError> {
    if is_label_value(text) {
        Ok(text.to_owned())
    } else {
        let rule = "a label's value (at most 63 letters, digits, `-`, `_` or `.`)";
        Err(field::expected(path, rule, text))
    }
}
