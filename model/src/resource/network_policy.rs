//! Calico's policies: NetworkPolicy, GlobalNetworkPolicy and their staged forms.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    FieldError, field,
    rule::{self, Entries},
};
use crate::{
    Kind, Object, Selector,
    policy::{DEFAULT_TIER, Directions, Policy, Rule, Stage, StagedAction},
};

/// The form in which a store keeps a policy's `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    tier: Option<String>,
    order: Option<f64>,
    selector: Option<String>,
    namespace_selector: Option<String>,
    service_account_selector: Option<String>,
    types: Option<Vec<String>>,
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
    do_not_track: Option<bool>,
    #[serde(rename = "preDNAT")]
    pre_dnat: Option<bool>,
    apply_on_forward: Option<bool>,
    staged_action: Option<String>,
}

/// Reads one of Calico's policies.
///
/// # Errors
///
/// A field that decides whom the policy is for cannot be read; rules that cannot be read are in
/// [`Policy::invalid`].
pub(super) fn read(object: &Object) -> Result<Policy, FieldError> {
    let stored: Stored = field::part(object, "spec")?;
    let namespace = object.metadata.namespace.as_deref();
    let mut invalid = BTreeMap::new();
    let mut rules = |values: Option<&Vec<Value>>, path: &str| -> Vec<Rule> {
        let read = |value: &Value, path: &str, index| {
            rule::rule(value, path, index, namespace).map(|rule| vec![rule])
        };
        rule::list(values, path, Entries::WithAction, &mut invalid, read)
    };
    let ingress = rules(stored.ingress.as_ref(), "spec.ingress");
    let egress = rules(stored.egress.as_ref(), "spec.egress");

    Ok(Policy {
        key: object.key(),
        tier: tier(stored.tier.as_deref()),
        order: stored.order,
        selector: selector(&stored, namespace)?,
        types: types(stored.types.as_deref())?,
        ingress,
        egress,
        stage: stage(&stored)?,
        apply_on_forward: namespace.is_some() || stored.apply_on_forward.unwrap_or(false),
        staged: staged(object.kind, stored.staged_action.as_deref())?,
        invalid,
    })
}

/// Returns the tier that a policy names, or the default one.
fn tier(name: Option<&str>) -> String {
    name.filter(|name| !name.is_empty())
        .unwrap_or(DEFAULT_TIER)
        .to_owned()
}

/// Joins what a policy says about whom it is for.
fn selector(stored: &Stored, namespace: Option<&str>) -> Result<Selector, FieldError> {
    let own = rule::selector(stored.selector.as_deref(), "spec.selector")?;
    let accounts = rule::selector(
        stored.service_account_selector.as_deref(),
        "spec.serviceAccountSelector",
    )?;
    let Some(namespace) = namespace else {
        let namespaces = rule::selector(
            stored.namespace_selector.as_deref(),
            "spec.namespaceSelector",
        )?;
        return Ok(Selector::intersection(
            own.into_iter()
                .chain(namespaces.map(|selector| selector.of_namespaces()))
                .chain(accounts.map(|selector| selector.of_any_service_account())),
        ));
    };

    Ok(Selector::intersection(
        [Selector::in_namespace(namespace)]
            .into_iter()
            .chain(own)
            .chain(accounts.map(|selector| selector.of_service_accounts())),
    ))
}

/// Reads the directions; a stored policy that names none applies in both, whatever rules it has.
fn types(names: Option<&[String]>) -> Result<Directions, FieldError> {
    let mut types = Directions::default();
    for (index, name) in names.unwrap_or_default().iter().enumerate() {
        match name.as_str() {
            "Ingress" => types.ingress = true,
            "Egress" => types.egress = true,
            other => {
                let path = format!("spec.types[{index}]");
                return Err(field::expected(&path, "Ingress or Egress", other));
            }
        }
    }
    if types == Directions::default() {
        return Ok(Directions {
            ingress: true,
            egress: true,
        });
    }

    Ok(types)
}

fn stage(stored: &Stored) -> Result<Stage, FieldError> {
    match (
        stored.do_not_track.unwrap_or(false),
        stored.pre_dnat.unwrap_or(false),
    ) {
        (false, false) => Ok(Stage::Normal),
        (true, false) => Ok(Stage::Untracked),
        (false, true) => Ok(Stage::PreDnat),
        (true, true) => Err(FieldError::new(
            "spec.preDNAT",
            "expected false, as spec.doNotTrack is true",
        )),
    }
}

/// Reads what a staged policy stands for; `None` for a kind that is not staged.
pub(super) fn staged(kind: Kind, action: Option<&str>) -> Result<Option<StagedAction>, FieldError> {
    if !matches!(
        kind,
        Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
    ) {
        return Ok(None);
    }
    match action {
        None | Some("" | "Set") => Ok(Some(StagedAction::Set)),
        Some("Delete") => Ok(Some(StagedAction::Delete)),
        Some("Learn") => Ok(Some(StagedAction::Learn)),
        Some("Ignore") => Ok(Some(StagedAction::Ignore)),
        Some(other) => Err(field::expected(
            "spec.stagedAction",
            "Set, Delete, Learn or Ignore",
            other,
        )),
    }
}

#[cfg(test)]
mod tests;
