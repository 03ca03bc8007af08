//! What applies to an endpoint, in the order in which it is asked.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    NodeName, PodName,
    policy::{Direction, HostInterface, Policy, StagedAction, Tier, TierAction, order},
    resource::FieldError,
};
use serde::{Deserialize, Serialize};

use super::impact::{self, StagedEffect};
use crate::{
    Cluster, Evaluator, cluster::Endpoint, decision::Point, evaluate::Chain, scenario::object_name,
};

/// Everything that applies to an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// The endpoint: `NAMESPACE/POD`, or `HostEndpoint NAME`.
    pub endpoint: String,
    /// Its machine.
    pub node: NodeName,
    /// Which interfaces it means, of a host endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The addresses that stand for it in selectors.
    pub addresses: Vec<IpAddr>,
    /// Its labels, inherited ones too.
    pub labels: BTreeMap<String, String>,
    /// What is asked, point by point in packet order.
    pub points: Vec<PointView>,
    /// What the staged policies for it would do.
    pub staged: Vec<StagedEffect>,
}

/// What is asked about an endpoint at one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PointView {
    /// The point.
    pub point: Point,
    /// To the endpoint or from it.
    pub direction: Direction,
    /// The tiers with a policy for it, in order.
    pub tiers: Vec<TierView>,
    /// What is asked where no tier decides; empty where that goes on to the next point.
    pub profiles: Vec<String>,
    /// What happens to what nobody decides.
    pub otherwise: Otherwise,
}

/// What happens to what nobody decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Otherwise {
    /// It is dropped.
    Deny,
    /// The next point is asked.
    Continue,
}

/// A tier with policies for an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierView {
    /// Its name.
    pub tier: String,
    /// Its place; none is behind all others.
    pub order: Option<f64>,
    /// What happens at its end; none where every policy for the endpoint is staged.
    pub default_action: Option<TierAction>,
    /// Its policies for the endpoint, in order, staged ones in their place.
    pub policies: Vec<PolicyView>,
}

/// A policy that selects an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `KIND [NAMESPACE/]NAME`.
    pub policy: String,
    /// Its place in the tier; none is behind all that have one.
    pub order: Option<f64>,
    /// The selector that selects the endpoint: namespace, service account and the object's own in one.
    pub selector: String,
    /// How many rules it has in this direction.
    pub rules: usize,
    /// It decides nothing; this is what enforcing it would mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<StagedAction>,
}

/// Says what applies to an endpoint: `NAMESPACE/POD`, `host/NODE` for every endpoint of a host, or
/// `host/NODE/INTERFACE`, `*` among them.
///
/// # Errors
/// There is no such endpoint.
pub fn show(cluster: &Cluster, endpoint: &str) -> Result<Vec<View>, FieldError> {
    let evaluator = Evaluator::new(cluster);
    let views = match endpoint.split('/').collect::<Vec<_>>()[..] {
        ["host" | "node", node] => hosts(cluster, &evaluator, node, None),
        ["host" | "node", node, interface] => hosts(cluster, &evaluator, node, Some(interface)),
        [_, _] => pod(cluster, &evaluator, endpoint),
        _ => Vec::new(),
    };
    if views.is_empty() {
        let cut: String = endpoint.chars().take(256).collect();
        let message = format!(
            "expected a pod that is there (NAMESPACE/POD) or a host with an endpoint (host/NODE or \
             host/NODE/INTERFACE), found {cut:?}"
        );
        return Err(FieldError::new("endpoint", message));
    }

    Ok(views)
}

fn pod(cluster: &Cluster, evaluator: &Evaluator<'_>, name: &str) -> Vec<View> {
    let Ok(name) = PodName::parse(name) else {
        return Vec::new();
    };
    let found = evaluator.workloads().find(|(pod, _)| pod.name == name);
    let view = found.map(|(pod, endpoint)| View {
        endpoint: name.to_string(),
        node: pod.node.clone(),
        interface: None,
        addresses: endpoint.addresses.clone(),
        labels: endpoint.labels.clone(),
        points: [Direction::Egress, Direction::Ingress]
            .map(|direction| point(cluster, evaluator, endpoint, Chain::Normal, direction))
            .into(),
        staged: staged(cluster, endpoint),
    });

    view.into_iter().collect()
}

fn hosts(
    cluster: &Cluster,
    evaluator: &Evaluator<'_>,
    node: &str,
    interface: Option<&str>,
) -> Vec<View> {
    let points = [
        (Chain::Untracked, Direction::Ingress),
        (Chain::PreDnat, Direction::Ingress),
        (Chain::Normal, Direction::Ingress),
        (Chain::Forward, Direction::Ingress),
        (Chain::Forward, Direction::Egress),
        (Chain::Normal, Direction::Egress),
        (Chain::Untracked, Direction::Egress),
    ];
    let of_node = evaluator
        .hosts()
        .filter(|(host, _)| host.node.as_str() == node);
    let meant = of_node.filter(|(host, _)| {
        interface.is_none_or(|wanted| interface_name(&host.interface) == wanted)
    });

    meant
        .map(|(host, endpoint)| View {
            endpoint: format!("HostEndpoint {}", host.name),
            node: host.node.clone(),
            interface: Some(interface_name(&host.interface)),
            addresses: endpoint.addresses.clone(),
            labels: endpoint.labels.clone(),
            points: points
                .iter()
                .map(|(chain, direction)| point(cluster, evaluator, endpoint, *chain, *direction))
                .collect(),
            staged: staged(cluster, endpoint),
        })
        .collect()
}

fn interface_name(interface: &HostInterface) -> String {
    match interface {
        HostInterface::Named(name) => name.to_string(),
        HostInterface::All => "*".to_owned(),
        HostInterface::ByAddress => "by address".to_owned(),
    }
}

fn point(
    cluster: &Cluster,
    evaluator: &Evaluator<'_>,
    endpoint: &Endpoint,
    chain: Chain,
    direction: Direction,
) -> PointView {
    let named = cluster.policies.iter().map(|policy| policy.tier.as_str());
    let tiers = order::tiers(&cluster.tiers, named);
    let tiers = tiers
        .iter()
        .map(|one| tier(cluster, endpoint, one, chain, direction));
    let has_profiles = chain == Chain::Normal;
    let profiles = endpoint.profiles.iter().filter(|_| has_profiles);

    PointView {
        point: match chain {
            Chain::Untracked => Point::Untracked,
            Chain::PreDnat => Point::PreDnat,
            Chain::Forward => Point::Forward,
            Chain::Normal => Point::from(direction),
        },
        direction,
        tiers: tiers.filter(|tier| !tier.policies.is_empty()).collect(),
        profiles: profiles
            .filter(|name| evaluator.profile(name).is_some())
            .cloned()
            .collect(),
        otherwise: if has_profiles {
            Otherwise::Deny
        } else {
            Otherwise::Continue
        },
    }
}

fn tier(
    cluster: &Cluster,
    endpoint: &Endpoint,
    tier: &Tier,
    chain: Chain,
    direction: Direction,
) -> TierView {
    let own = cluster
        .policies
        .iter()
        .filter(|policy| policy.tier == tier.name);
    let mut policies: Vec<&Policy> = own
        .filter(|policy| chain.asks(policy, endpoint, direction))
        .collect();
    policies.sort_by(|a, b| order::policies(a, b));
    let is_asked = policies.iter().any(|policy| policy.staged.is_none());
    let passes = !chain.ends_with_default();

    TierView {
        tier: tier.name.clone(),
        order: tier.order,
        default_action: is_asked.then_some(match tier.default_action {
            _ if passes => TierAction::Pass,
            TierAction::Deny => TierAction::Deny,
            TierAction::Pass => TierAction::Pass,
        }),
        policies: policies
            .into_iter()
            .map(|policy| PolicyView {
                policy: object_name(&policy.key),
                order: policy.order,
                selector: policy.selector.to_string(),
                rules: rules(policy, direction),
                staged: policy.staged,
            })
            .collect(),
    }
}

/// Counts the rules as the object has them: one entry of a Kubernetes policy may have become several.
fn rules(policy: &Policy, direction: Direction) -> usize {
    policy
        .rules(direction)
        .chunk_by(|a, b| a.index == b.index)
        .count()
}

/// Returns what the staged policies that select an endpoint, or would take another's place, would do.
fn staged(cluster: &Cluster, endpoint: &Endpoint) -> Vec<StagedEffect> {
    let staged = cluster
        .policies
        .iter()
        .filter(|policy| policy.staged.is_some());
    let concerning = staged.filter(|policy| policy.selector.matches(&endpoint.labels));

    concerning
        .filter_map(|policy| impact::of_staged(cluster, policy))
        .collect()
}
