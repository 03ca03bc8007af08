//! Selectors made from selectors: how policies join what their fields say, on the expression and never on its text.

use std::sync::Arc;

use super::{Expression, Relation, Selector};

/// The label that everything in a namespace carries.
pub const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";

/// The label that names a pod's service account, where the name has fewer than 63 bytes.
pub const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";

/// The label that names who runs a pod; host endpoints and network sets have none.
pub const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";

/// What stands before the labels of a namespace where its endpoints inherit them.
pub const NAMESPACE_PREFIX: &str = "pcns.";

/// What stands before the labels of a service account where its endpoints inherit them.
pub const SERVICE_ACCOUNT_PREFIX: &str = "pcsa.";

impl Selector {
    /// Returns the selector of an expression whose labels and values a text can hold.
    pub(crate) fn composed(expression: Expression) -> Self {
        Self(Arc::new(expression))
    }

    /// Returns the selector that selects what each of `parts` selects; no parts select everything.
    pub fn intersection(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: Vec<_> = parts
            .into_iter()
            .filter(|part| *part.0 != Expression::All)
            .collect();

        match parts.len() {
            0 => Self::all(),
            1 => parts.remove(0),
            _ => {
                let parts = parts.into_iter().map(|part| Arc::unwrap_or_clone(part.0));
                Self::composed(Expression::And(parts.collect()))
            }
        }
    }

    /// Returns the selector that selects all that this one does not.
    #[must_use]
    pub fn complement(self) -> Self {
        Self::composed(negation(Arc::unwrap_or_clone(self.0)))
    }

    /// Returns the selector of whatever is in the namespace.
    pub fn in_namespace(namespace: &str) -> Self {
        Self::labelled(NAMESPACE_LABEL, namespace)
    }

    /// Returns the selector of the pods of Kubernetes, and nothing else.
    pub fn pods() -> Self {
        Self::labelled(ORCHESTRATOR_LABEL, "k8s")
    }

    /// Returns the selector of pods that run as one of these service accounts.
    pub fn service_accounts(names: &[String]) -> Self {
        let names = names.iter().cloned().collect();

        Self::composed(Expression::In(SERVICE_ACCOUNT_LABEL.to_owned(), names))
    }

    /// Returns the selector of what is in the namespaces that this one selects by their labels.
    ///
    /// `all()` means every namespace, so that host endpoints and global network sets are left out; `global()` means
    /// precisely those.
    #[must_use]
    pub fn of_namespaces(&self) -> Self {
        Self::composed(inherited(&self.0, NAMESPACE_PREFIX, Some(NAMESPACE_LABEL)))
    }

    /// Returns the selector of pods that run as the service accounts that this one selects by their labels.
    #[must_use]
    pub fn of_service_accounts(&self) -> Self {
        Self::composed(inherited(&self.0, SERVICE_ACCOUNT_PREFIX, None))
    }

    /// As [`of_service_accounts`](Self::of_service_accounts), where `all()` means whoever has a service account.
    #[must_use]
    pub fn of_any_service_account(&self) -> Self {
        Self::composed(inherited(
            &self.0,
            SERVICE_ACCOUNT_PREFIX,
            Some(SERVICE_ACCOUNT_LABEL),
        ))
    }

    fn labelled(label: &str, value: &str) -> Self {
        Self::composed(Expression::Compare {
            label: label.to_owned(),
            relation: Relation::Equal,
            value: value.to_owned(),
        })
    }
}

/// Puts a prefix before every label; `all()` and `global()` mean with and without the label `every`, if one is given.
fn inherited(expression: &Expression, prefix: &str, every: Option<&str>) -> Expression {
    let prefixed = |label: &str| format!("{prefix}{label}");
    let each = |parts: &[Expression]| {
        parts
            .iter()
            .map(|part| inherited(part, prefix, every))
            .collect()
    };
    match expression {
        Expression::All => every.map_or(Expression::All, |label| Expression::Has(label.to_owned())),
        Expression::Global => every.map_or(Expression::Global, |label| {
            negation(Expression::Has(label.to_owned()))
        }),
        Expression::Has(label) => Expression::Has(prefixed(label)),
        Expression::Compare {
            label,
            relation,
            value,
        } => Expression::Compare {
            label: prefixed(label),
            relation: *relation,
            value: value.clone(),
        },
        Expression::In(label, values) => Expression::In(prefixed(label), values.clone()),
        Expression::NotIn(label, values) => Expression::NotIn(prefixed(label), values.clone()),
        Expression::Not(inner) => negation(inherited(inner, prefix, every)),
        Expression::And(parts) => Expression::And(each(parts)),
        Expression::Or(parts) => Expression::Or(each(parts)),
    }
}

/// Negates; twice is not at all.
pub(super) fn negation(expression: Expression) -> Expression {
    match expression {
        Expression::Not(inner) => *inner,
        other @ (Expression::All
        | Expression::Global
        | Expression::Has(_)
        | Expression::Compare { .. }
        | Expression::In(..)
        | Expression::NotIn(..)
        | Expression::And(_)
        | Expression::Or(_)) => Expression::Not(Box::new(other)),
    }
}

#[cfg(test)]
mod tests;
