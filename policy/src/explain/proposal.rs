//! A policy that decides about one packet at one point, and about nothing else that it need not.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family,
    policy::{Action, Direction, Policy, Protocol},
};
use serde_json::{Map, Value, json};

use super::change::Change;
use crate::{
    Evaluator,
    cluster::{Cluster, Endpoint, Pod},
    evaluate::{AskedTier, Chain, Question},
    packet::Header,
};

/// Tiers of ClusterNetworkPolicies: no other policy may stand in them.
const CLUSTER_TIERS: [&str; 2] = [model::policy::ADMIN_TIER, model::policy::BASELINE_TIER];

/// Labels that people name a workload by; the first one that is there is used.
const NAMING_LABELS: [&str; 5] = ["app", "app.kubernetes.io/name", "k8s-app", "name", "run"];

/// What a proposal is to do, and where.
pub(super) struct Proposal<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) evaluator: &'a Evaluator<'a>,
    pub(super) question: &'a Question,
    pub(super) action: Action,
    /// It must come before a policy of the tier; otherwise no rule of the tier matches.
    pub(super) is_contested: bool,
}

impl Proposal<'_> {
    /// Returns the policy in a tier, before everything that the tier says now; `None` where none can be written.
    pub(super) fn in_tier(&self, tier: &str) -> Option<Change> {
        if CLUSTER_TIERS.contains(&tier) {
            return None;
        }
        let asked = self.asked();
        let here = asked.iter().find(|asked| asked.name == tier);
        let subject = self.subject()?;
        let mut rules = vec![self.rule()];
        // Who was not asked in this tier is not to meet its end now.
        if here.is_none() && self.question.chain.ends_with_default() {
            rules.push(json!({"action": "Pass"}));
        }
        let direction = self.question.direction;
        let (types, list) = match direction {
            Direction::Ingress => ("Ingress", "ingress"),
            Direction::Egress => ("Egress", "egress"),
        };
        let mut spec = Map::new();
        if tier != model::policy::DEFAULT_TIER {
            spec.insert("tier".into(), json!(tier));
        }
        let order = here.filter(|_| self.is_contested);
        if let Some(order) = order.and_then(|here| self.order_before(here)) {
            spec.insert("order".into(), number(order));
        }
        spec.insert("selector".into(), json!(subject.selector));
        spec.insert("types".into(), json!([types]));
        spec.extend(self.stage());
        spec.insert(list.into(), Value::Array(rules));
        let manifest = json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": subject.kind(),
            "metadata": self.metadata(&subject),
            "spec": spec,
        });

        Some(Change::AddPolicy(manifest, self.words(tier, &subject)))
    }

    /// Returns the tiers that are asked here.
    fn asked(&self) -> Vec<AskedTier<'_>> {
        let question = self.question;
        let asked =
            self.evaluator
                .asked_tiers(&question.endpoint, question.chain, question.direction);

        asked.collect()
    }

    /// Returns an order before all of a tier's policies that have rules; those without say nothing.
    fn order_before(&self, tier: &AskedTier<'_>) -> Option<f64> {
        let direction = self.question.direction;
        let speaks = |policy: &&&Policy| !policy.rules(direction).is_empty();
        let orders = tier.policies.iter().filter(speaks);
        let first = orders.map(|policy| policy.order.unwrap_or(f64::INFINITY));
        let first = first.min_by(f64::total_cmp)?;

        Some(if first.is_finite() { first - 1.0 } else { 0.0 })
    }

    fn stage(&self) -> Vec<(String, Value)> {
        let fields: &[&str] = match self.question.chain {
            Chain::Normal => &[],
            Chain::Forward => &["applyOnForward"],
            Chain::PreDnat => &["preDNAT", "applyOnForward"],
            Chain::Untracked => &["doNotTrack", "applyOnForward"],
        };

        fields
            .iter()
            .map(|field| ((*field).to_owned(), json!(true)))
            .collect()
    }

    /// Whom the policy selects.
    fn subject(&self) -> Option<Subject> {
        let name = &self.question.name;
        let pod = self
            .cluster
            .pods
            .iter()
            .find(|pod| pod.name.to_string() == *name);
        if let Some(pod) = pod {
            return Some(Subject {
                namespace: Some(pod.name.namespace.clone()),
                selector: pod_selector(pod),
            });
        }
        let host = self.host()?;

        Some(Subject {
            namespace: None,
            selector: naming(&host.labels)?,
        })
    }

    /// Returns the host endpoint that was asked.
    fn host(&self) -> Option<&model::policy::HostEndpoint> {
        let mut hosts = self.evaluator.hosts();
        let endpoint: &Endpoint = &self.question.endpoint;

        hosts
            .find(|(_, own)| *own == endpoint)
            .map(|(host, _)| host)
    }

    /// The one rule: this packet's protocol and port, and who is at the far end.
    fn rule(&self) -> Value {
        let header = &self.question.header;
        let (far, address) = match self.question.direction {
            Direction::Ingress => ("source", header.source),
            Direction::Egress => ("destination", header.destination),
        };
        let mut sides: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        sides.entry(far).or_default().extend(self.peer(address));
        if let Some(ports) = header.ports {
            let side = sides.entry("destination").or_default();
            side.insert("ports".into(), json!([ports.destination]));
        }
        let mut rule = Map::new();
        let action = match self.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
            Action::Log => "Log",
            Action::Pass => "Pass",
        };
        rule.insert("action".into(), json!(action));
        rule.insert("protocol".into(), protocol(header.protocol));
        if let Some(icmp) = header.icmp {
            let icmp = json!({"type": icmp.kind, "code": icmp.code});
            rule.insert("icmp".into(), icmp);
        }
        rule.extend(
            sides
                .into_iter()
                .map(|(side, fields)| (side.to_owned(), Value::Object(fields))),
        );

        Value::Object(rule)
    }

    /// Who is at the far end: a pod by its labels, anybody else by address.
    fn peer(&self, address: IpAddr) -> Map<String, Value> {
        let mut fields = Map::new();
        match self.pod_at(address) {
            Some(pod) => {
                fields.insert("selector".into(), json!(pod_selector(pod)));
                let namespace = &pod.name.namespace;
                let selector = format!("projectcalico.org/name == '{namespace}'");
                fields.insert("namespaceSelector".into(), json!(selector));
            }
            None => {
                let length = Family::of(address).bits();
                fields.insert("nets".into(), json!([format!("{address}/{length}")]));
            }
        }

        fields
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.evaluator.pod_at(address)
    }

    fn metadata(&self, subject: &Subject) -> Value {
        let word = match self.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Log | Action::Pass => "pass",
        };
        let what = label(&self.question.header);
        let taken = |name: &str| {
            self.cluster
                .policies
                .iter()
                .any(|policy| policy.key.name == name)
        };
        let base = format!("{word}-{what}");
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let name = std::iter::once(base.clone())
            .chain(numbered)
            .find(|name| !taken(name));
        match (&subject.namespace, name) {
            (Some(namespace), name) => json!({"namespace": namespace, "name": name}),
            (None, name) => json!({"name": name}),
        }
    }

    fn words(&self, tier: &str, subject: &Subject) -> String {
        let header = &self.question.header;
        let verb = match self.action {
            Action::Allow => "allows",
            Action::Deny => "denies",
            Action::Log | Action::Pass => "passes",
        };
        let (direction, far, address) = match self.question.direction {
            Direction::Ingress => ("ingress", "from", header.source),
            Direction::Egress => ("egress", "to", header.destination),
        };
        let peer = match self.pod_at(address) {
            Some(pod) => format!("pods of {} where {}", pod.name.namespace, pod_selector(pod)),
            None => address.to_string(),
        };
        let whom = match &subject.namespace {
            Some(namespace) => format!("a NetworkPolicy in {namespace}"),
            None => "a GlobalNetworkPolicy".to_owned(),
        };
        let place = if tier == model::policy::DEFAULT_TIER {
            String::new()
        } else {
            format!(" in tier {tier}")
        };

        format!(
            "{whom}{place} that selects {} {verb} {direction} {far} {peer} on {}",
            subject.selector,
            traffic(header)
        )
    }
}

/// Whom a policy selects.
struct Subject {
    namespace: Option<String>,
    selector: String,
}

impl Subject {
    fn kind(&self) -> &'static str {
        match self.namespace {
            Some(_) => "NetworkPolicy",
            None => "GlobalNetworkPolicy",
        }
    }
}

/// Returns the selector of a pod inside its namespace: by the label that names it, else by all of its labels, else by
/// its service account.
fn pod_selector(pod: &Pod) -> String {
    naming(&pod.labels).unwrap_or_else(|| {
        let label = crate::cluster::SERVICE_ACCOUNT_LABEL;
        format!("{label} == '{}'", pod.service_account)
    })
}

/// Returns a selector of whoever has these labels; `None` where there are none that a selector can hold.
fn naming(labels: &BTreeMap<String, String>) -> Option<String> {
    let named = NAMING_LABELS
        .into_iter()
        .find_map(|key| Some((key.to_owned(), labels.get(key)?.clone())));
    let used = match named {
        Some(one) => vec![one],
        None => labels.clone().into_iter().collect(),
    };
    let parts: Vec<String> = used
        .into_iter()
        .filter(|(_, value)| !value.contains('\''))
        .map(|(key, value)| format!("{key} == '{value}'"))
        .collect();

    (!parts.is_empty()).then(|| parts.join(" && "))
}

/// Writes a number without a fraction where it has none.
fn number(number: f64) -> Value {
    serde_json::from_str(&number.to_string()).unwrap_or_else(|_| json!(number))
}

fn protocol(protocol: Protocol) -> Value {
    let text = protocol.to_string();

    text.parse::<u8>()
        .map_or_else(|_| json!(text), |number| json!(number))
}

fn traffic(header: &Header) -> String {
    match header.ports {
        Some(ports) => format!("{} {}", header.protocol, ports.destination),
        None => header.protocol.to_string(),
    }
}

/// Returns the traffic as part of an object's name.
fn label(header: &Header) -> String {
    traffic(header).to_ascii_lowercase().replace(' ', "-")
}
