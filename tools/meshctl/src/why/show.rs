//! The answer as people read it.

use std::fmt::Write;

use meshd_core::why::{Device, Leg, Way};
use model::plan::RouteVia;
use policy::{
    Verdict,
    explain::{End, Explanation, PolicyTrace, RuleTrace, Step, TierEnd},
};

use super::Answer;

/// How many rules of one policy are shown that did not match.
const MISSES_SHOWN: usize = 10;

/// Renders an answer.
pub(super) fn render(answer: &Answer) -> String {
    let told = &answer.explanation;
    let mut text = String::new();
    line(&mut text, 0, &heading(told));
    for step in &told.steps {
        one_step(&mut text, step);
    }
    if told.steps.is_empty() {
        line(
            &mut text,
            1,
            "nobody is asked: no endpoint of policy is on its way",
        );
    }
    if let Some(why) = &answer.why {
        way(&mut text, &why.way, why.node.as_str());
    }
    flips(&mut text, told);
    for policy in &told.staged {
        let turned = match told.verdict {
            Verdict::Allow => "would deny it",
            Verdict::Deny => "would allow it",
        };
        line(&mut text, 0, &format!("staged: {policy} {turned}"));
    }

    text
}

fn heading(told: &Explanation) -> String {
    let traffic = match told.port {
        Some(port) => format!("{} {port}", told.protocol),
        None => told.protocol.clone(),
    };
    let sent_to = told
        .sent_to
        .map(|address| format!(" (sent to {address})"))
        .unwrap_or_default();

    format!(
        "{} -> {}{sent_to}, {traffic}: {}",
        end(&told.from, &told.source),
        end(&told.to, &told.destination),
        told.verdict.as_str()
    )
}

fn end(asked: &str, end: &End) -> String {
    let who = match (&end.pod, &end.node) {
        (Some(pod), Some(node)) => format!("{pod} on {node}"),
        (Some(pod), None) => pod.to_string(),
        (None, Some(node)) => format!("node/{node}"),
        (None, None) => asked.to_owned(),
    };
    if who == end.address.to_string() {
        return who;
    }

    format!("{who} ({})", end.address)
}

fn one_step(text: &mut String, step: &Step) {
    let verdict = step.verdict.map_or("-", Verdict::as_str);
    let point = step.point.as_str();
    line(
        text,
        1,
        &format!("{point} of {}: {verdict}, by {}", step.endpoint, step.by),
    );
    for tier in &step.tiers {
        let end = match tier.end {
            TierEnd::Rule => "",
            TierEnd::Pass => ": passes on",
            TierEnd::DefaultDeny => ": no rule matches, and its default action is Deny",
        };
        line(text, 2, &format!("tier {}{end}", tier.tier));
        for policy in &tier.policies {
            one_policy(text, policy);
        }
    }
    for profile in &step.profiles {
        one_policy(text, profile);
    }
}

fn one_policy(text: &mut String, policy: &PolicyTrace) {
    line(text, 3, &policy.policy);
    let misses = policy.rules.iter().filter(|rule| !rule.matches).count();
    let hidden = misses.saturating_sub(MISSES_SHOWN);
    let mut passed = 0;
    for rule in &policy.rules {
        if !rule.matches {
            passed += 1;
            if passed <= hidden {
                continue;
            }
        }
        line(text, 4, &one_rule(rule));
    }
    if hidden + policy.more > 0 {
        let count = hidden + policy.more;
        line(
            text,
            4,
            &format!("and {count} more that do not match (-o json has them)"),
        );
    }
    if policy.rules.is_empty() {
        line(text, 4, "no rule in this direction");
    }
}

fn one_rule(rule: &RuleTrace) -> String {
    let name = rule
        .name
        .as_ref()
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    let result = if rule.matches {
        "matches".to_owned()
    } else {
        format!("no: {}", rule.because.join("; "))
    };

    format!("rule {}{name} {:?}: {result}", rule.rule, rule.action)
}

fn way(text: &mut String, way: &Way, node: &str) {
    let whose = match way.of {
        Leg::Packet => "way",
        Leg::Answer => "way of the answer",
        Leg::Nothing => {
            let told = format!("way: neither end is on {node}; ask there");
            return line(text, 1, &told);
        }
    };
    let Some(route) = &way.route else {
        return line(
            text,
            1,
            &format!("{whose} from {node}: the machine's own routes"),
        );
    };
    let leads = match (&route.via, route.device) {
        (RouteVia::Device(name), Device::Tunnel) => format!("through tunnel {name}"),
        (RouteVia::Device(name), Device::Pod) => format!("to the pod on {name}"),
        (RouteVia::Device(name), Device::Underlay | Device::None) => format!("out of {name}"),
        (RouteVia::Gateway(gateway), _) => format!("by way of {gateway}, not encrypted"),
        (RouteVia::Unreachable, _) => "nowhere: unreachable".to_owned(),
        (RouteVia::Blackhole, _) => "nowhere: dropped".to_owned(),
        (RouteVia::Throw, _) => "to the next table".to_owned(),
    };
    let mtu = way
        .mtu
        .map(|mtu| format!(", MTU {mtu}"))
        .unwrap_or_default();
    line(
        text,
        1,
        &format!(
            "{whose} from {node}: {leads}{mtu} (route {} in table {}, rule {})",
            route.destination, route.table, route.rule
        ),
    );
    if let Some(peer) = &way.peer {
        let endpoint = peer
            .endpoint
            .map(|endpoint| format!(" at {endpoint}"))
            .unwrap_or_default();
        let handshake = match peer.handshake_age_seconds {
            Some(age) => format!("last handshake {age} s ago"),
            None => "no handshake known".to_owned(),
        };
        let reason = peer
            .reason
            .as_ref()
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        line(
            text,
            2,
            &format!(
                "peer {}{endpoint}: {:?}{reason}, {handshake}",
                peer.node, peer.state
            ),
        );
    }
}

fn flips(text: &mut String, told: &Explanation) {
    let wish = match told.verdict {
        Verdict::Allow => "denied",
        Verdict::Deny => "allowed",
    };
    if told.flips.is_empty() {
        return line(
            text,
            0,
            &format!("no small change was found by which it would be {wish}"),
        );
    }
    line(
        text,
        0,
        &format!("it would be {wish} by any of these (each was tried):"),
    );
    for (number, flip) in told.flips.iter().enumerate() {
        let changes = flip.changes.join(", and ");
        let hint = if flip.manifests.is_empty() {
            ""
        } else {
            " (-o yaml)"
        };
        line(text, 1, &format!("{}. {changes}{hint}", number + 1));
    }
}

fn line(text: &mut String, depth: usize, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{:width$}{line}", "", width = 2 * depth);
}

#[cfg(test)]
mod tests {
    use policy::scenario::{PolicyTest, Probe};
    use serde_json::json;

    use super::*;

    fn told(port: u16) -> String {
        let test = PolicyTest::parse(&json!({
            "apiVersion": "meshd.dev/v1", "kind": "PolicyTest",
            "topology": {
                "namespaces": [{"name": "shop"}],
                "nodes": [{"name": "n1", "interfaces": {"eth0": ["192.0.2.1"]}}],
                "pods": [
                    {"namespace": "shop", "name": "api", "labels": {"app": "api"}, "addresses": ["10.65.0.2"]},
                    {"namespace": "shop", "name": "web", "labels": {"app": "web"}, "addresses": ["10.65.0.3"]},
                ],
            },
            "resources": [{
                "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
                "metadata": {"namespace": "shop", "name": "api"},
                "spec": {"selector": "app == 'api'", "types": ["Ingress"], "ingress": [
                    {"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}},
                ]},
            }],
        }));
        let probe = json!({"from": "shop/web", "to": "shop/api", "port": port});
        let probe = Probe::parse(&probe).unwrap();
        let explanation = test.unwrap().why(&[], &probe).unwrap().remove(0);

        render(&Answer {
            explanation,
            why: None,
        })
    }

    #[test]
    fn an_answer_reads_from_the_verdict_to_what_would_turn_it_round() {
        assert_eq!(
            told(9090),
            "\
shop/web on n1 (10.65.0.3) -> shop/api on n1 (10.65.0.2), TCP 9090: Deny
  egress of shop/web: Allow, by profile kns.shop
      profile kns.shop
        rule 0 Allow: matches
  ingress of shop/api: Deny, by end of tier default
    tier default: no rule matches, and its default action is Deny
      NetworkPolicy shop/api
        rule 0 Allow: no: the destination port 9090 is not 8080
it would be allowed by any of these (each was tried):
  1. a NetworkPolicy in shop that selects app == 'api' allows ingress from pods of shop where app == 'web' on TCP 9090 \
(-o yaml)
"
        );
        let allowed = told(8080);
        assert!(allowed.starts_with(
            "shop/web on n1 (10.65.0.3) -> shop/api on n1 (10.65.0.2), TCP 8080: Allow\n"
        ));
        assert!(allowed.contains("it would be denied by any of these"));
    }
}
