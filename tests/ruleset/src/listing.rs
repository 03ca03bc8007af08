//! What `nft -n -j list table inet meshd` says, as rows.
//!
//! The words are `nft`'s reading of what is in the kernel: whatever we encoded wrongly is read as something else.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{
    Family,
    nft::{
        Chain, ChainKey, ChainKind, CtState, Detour, Element, End, Hook, HookPoint, Match, Nflog,
        NftFamily, Policy, Rule, Sense, SetKey, SetKind, Statement, Verdict,
    },
};
use policy::compile::Ruleset;
use serde_json::Value;

/// Reads the listing of a table.
pub fn read(listing: &str) -> Ruleset {
    let listing: Value = serde_json::from_str(listing).unwrap();
    let mut rows = Ruleset::default();
    let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    for entry in array(&listing["nftables"]) {
        if let Some(set) = entry.get("set").or_else(|| entry.get("map")) {
            read_set(set, &mut rows);
        } else if let Some(chain) = entry.get("chain") {
            let hook = chain.get("hook").map(|_| hook(chain));
            let key = chain_key(text(&chain["name"]));
            rows.chains.insert(
                key,
                Chain {
                    hook,
                    rules: Vec::new().into(),
                },
            );
        } else if let Some(rule) = entry.get("rule") {
            let chain = text(&rule["chain"]).to_owned();
            rules.entry(chain).or_default().push(read_rule(rule));
        }
    }
    for (chain, rules) in rules {
        rows.chains.get_mut(&chain_key(&chain)).unwrap().rules = rules.into();
    }

    rows
}

fn read_set(set: &Value, rows: &mut Ruleset) {
    let key = SetKey {
        table: NftFamily::Inet,
        name: text(&set["name"]).into(),
    };
    let is_interval = set.get("flags").is_some();
    let kind = match &set["type"] {
        Value::Array(parts) if parts[0] == "ipv4_addr" => SetKind::AddressPorts(Family::V4),
        Value::Array(parts) if parts[0] == "ipv6_addr" => SetKind::AddressPorts(Family::V6),
        other => match (text(other), is_interval) {
            ("ifname", false) => SetKind::InterfaceVerdicts,
            ("inet_service", true) => SetKind::Ports,
            ("ipv4_addr", true) => SetKind::Nets(Family::V4),
            ("ipv6_addr", true) => SetKind::Nets(Family::V6),
            ("ipv4_addr", false) => SetKind::Addresses(Family::V4),
            ("ipv6_addr", false) => SetKind::Addresses(Family::V6),
            other => panic!("a set of {other:?}"),
        },
    };
    rows.sets.insert(key.clone(), kind);
    for element in set.get("elem").map(array).unwrap_or_default() {
        rows.elements
            .insert((key.clone(), read_element(kind, element)));
    }
}

fn read_element(kind: SetKind, element: &Value) -> Element {
    match kind {
        SetKind::Nets(_) => Element::Net(net(element)),
        SetKind::Addresses(_) => Element::Address(text(element).parse().unwrap()),
        SetKind::Ports => {
            let (first, last) = ports(element);
            Element::Ports(first, last)
        }
        SetKind::AddressPorts(_) => {
            let parts = array(&element["concat"]);
            Element::AddressPort(
                text(&parts[0]).parse().unwrap(),
                byte(&parts[1]),
                port(&parts[2]),
            )
        }
        SetKind::InterfaceVerdicts => {
            let parts = array(element);
            Element::InterfaceVerdict(text(&parts[0]).parse().unwrap(), verdict(&parts[1]))
        }
        SetKind::Interfaces | SetKind::InterfaceAddresses(_) => {
            panic!("policy has no {kind:?}")
        }
    }
}

fn verdict(value: &Value) -> Verdict {
    let (word, what) = word(value);
    match word {
        "accept" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "jump" => Verdict::Jump(text(&what["target"]).into()),
        "goto" => Verdict::Goto(text(&what["target"]).into()),
        other => panic!("a verdict {other}"),
    }
}

fn hook(chain: &Value) -> Hook {
    Hook {
        point: match text(&chain["hook"]) {
            "prerouting" => HookPoint::Prerouting,
            "input" => HookPoint::Input,
            "forward" => HookPoint::Forward,
            "output" => HookPoint::Output,
            "postrouting" => HookPoint::Postrouting,
            other => panic!("a hook {other}"),
        },
        priority: i32::try_from(chain["prio"].as_i64().unwrap()).unwrap(),
        kind: match text(&chain["type"]) {
            "filter" => ChainKind::Filter,
            other => panic!("a chain of type {other}"),
        },
        policy: match text(&chain["policy"]) {
            "accept" => Policy::Accept,
            "drop" => Policy::Drop,
            other => panic!("a policy {other}"),
        },
    }
}

fn read_rule(rule: &Value) -> Rule {
    let mut read = Rule {
        matches: Vec::new(),
        counter: false,
        statement: Statement::Continue,
        comment: rule.get("comment").map(text).unwrap_or_default().into(),
    };
    for expression in array(&rule["expr"]) {
        let (word, what) = word(expression);
        match word {
            "match" => read.matches.extend(conditions(what)),
            "counter" => read.counter = true,
            _ => read.statement = statement(word, what, read.statement),
        }
    }
    read.matches = joined(read.matches);

    read
}

/// Puts together what a statement of ours is made of; `before` is what the rule has done so far.
fn statement(word: &str, what: &Value, before: Statement) -> Statement {
    let target = || text(&what["target"]).to_owned();
    match (word, before) {
        ("accept", Statement::AcceptUntracked) => Statement::AcceptUntracked,
        ("drop", Statement::Log(nflog)) => Statement::LogAndDrop(nflog),
        ("accept", Statement::Continue) => Statement::Accept,
        ("drop", Statement::Continue) => Statement::Drop,
        ("return", Statement::Continue) => Statement::Return,
        ("jump", Statement::Continue) => Statement::Jump(target().into()),
        ("goto", Statement::Continue) => Statement::Goto(target().into()),
        ("notrack", Statement::Continue) => Statement::AcceptUntracked,
        ("log", Statement::Continue) => Statement::Log(Nflog {
            group: port(&what["group"]),
            prefix: text(&what["prefix"]).into(),
        }),
        ("vmap", Statement::Continue) => {
            let map = text(&what["data"]).trim_start_matches('@').to_owned();
            match text(&what["key"]["meta"]["key"]) {
                "iifname" => Statement::InputVerdict(map.into()),
                "oifname" => Statement::OutputVerdict(map.into()),
                other => panic!("a map of {other}"),
            }
        }
        ("mangle", Statement::Continue) => {
            assert_eq!(what["key"]["meta"]["key"], "mark");
            let (operation, operands) = self::word(&what["value"]);
            let bits = u32::try_from(operands[1].as_u64().unwrap()).unwrap();
            match operation {
                "&" => Statement::SetMark {
                    mask: !bits,
                    value: 0,
                },
                "|" => Statement::SetMark {
                    mask: bits,
                    value: bits,
                },
                other => panic!("a mark by {other}"),
            }
        }
        (word, before) => panic!("{word} behind {before:?}"),
    }
}

/// Returns what a comparison says, with what `nft` leaves out because it is implied.
fn conditions(comparison: &Value) -> Vec<Match> {
    let sense = match text(&comparison["op"]) {
        "==" | "in" => Sense::Is,
        "!=" => Sense::Not,
        other => panic!("a comparison by {other}"),
    };
    let (left, right) = (&comparison["left"], &comparison["right"]);
    let (kind, what) = word(left);
    match kind {
        "meta" => vec![on_meta(text(&what["key"]), sense, right)],
        "payload" => on_payload(what, sense, right),
        "concat" => on_endpoint(what, sense, right),
        "&" => vec![on_bits(what, sense, right)],
        "ct" => vec![on_connection(text(&what["key"]), right)],
        "fib" => vec![on_route(text(&what["flags"][0]), sense, right)],
        "ip option" => vec![Match::Detour(match text(&what["name"]) {
            "lsrr" => Detour::Loose,
            "ssrr" => Detour::Strict,
            other => panic!("an option {other}"),
        })],
        "exthdr" => {
            assert_eq!(what["name"], "rt");
            vec![Match::Detour(Detour::Header)]
        }
        other => panic!("a comparison of {other}"),
    }
}

/// Numbers are those of routes (`RTN_UNICAST`, `RTN_LOCAL`).
fn on_route(side: &str, sense: Sense, right: &Value) -> Match {
    match (side, sense, right.as_u64()) {
        ("saddr", Sense::Is, Some(2)) => Match::SourceLocal,
        ("daddr", Sense::Is, Some(2)) => Match::DestinationLocal,
        ("daddr", sense, Some(1)) => Match::DestinationElsewhere(sense),
        other => panic!("a route {other:?}"),
    }
}

/// Where a rule names the protocol before, `nft` leaves that out and calls the port the protocol's own.
fn on_endpoint(parts: &Value, sense: Sense, right: &Value) -> Vec<Match> {
    let (address, port) = (&parts[0]["payload"], &parts[2]["payload"]);
    assert_eq!(parts[1]["meta"]["key"], "l4proto");
    let end = end(text(&address["field"]));
    assert_eq!(end, self::end(text(&port["field"])));
    let family = family(text(&address["protocol"]));
    let condition = Match::AddressPort(end, sense, family, set(right).unwrap().into());
    match text(&port["protocol"]) {
        "th" => vec![condition],
        named => vec![Match::Protocol(Sense::Is, number(named)), condition],
    }
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        other => panic!("ports of {other}"),
    }
}

fn on_meta(key: &str, sense: Sense, right: &Value) -> Match {
    let prefix = || text(right).trim_end_matches('*').to_owned();
    match key {
        "nfproto" => Match::Family(match right.as_u64() {
            Some(2) => Family::V4,
            Some(10) => Family::V6,
            other => panic!("a family {other:?}"),
        }),
        "l4proto" => Match::Protocol(sense, byte(right)),
        "iifname" => Match::IifPrefix(sense, prefix()),
        "oifname" => Match::OifPrefix(sense, prefix()),
        other => panic!("a comparison of {other}"),
    }
}

fn on_payload(what: &Value, sense: Sense, right: &Value) -> Vec<Match> {
    let (protocol, field) = (text(&what["protocol"]), text(&what["field"]));
    match protocol {
        "ip" | "ip6" => vec![on_address(end(field), sense, family(protocol), right)],
        "tcp" | "udp" | "sctp" => {
            let condition = match set(right) {
                Some(set) => Match::PortSet(end(field), sense, set.into()),
                None => {
                    let (first, last) = ports(right);
                    Match::Port(end(field), sense, first, last)
                }
            };
            vec![Match::Protocol(Sense::Is, number(protocol)), condition]
        }
        "icmp" | "icmpv6" => {
            let (number, family) = match protocol {
                "icmp" => (1, Family::V4),
                _ => (58, Family::V6),
            };
            let condition = match field {
                "type" => Match::Icmp(sense, byte(right), None),
                "code" => Match::Icmp(sense, CODE_ALONE, Some(byte(right))),
                other => panic!("a field {other}"),
            };
            vec![
                Match::Family(family),
                Match::Protocol(Sense::Is, number),
                condition,
            ]
        }
        other => panic!("a payload of {other}"),
    }
}

/// Stands for the type where `nft` speaks of a code alone, until [`joined`].
const CODE_ALONE: u8 = 255;

/// Puts type and code back together. `nft` 1.0.6 writes what must not be a certain type *with* a certain code as if
/// it must be neither.
fn joined(conditions: Vec<Match>) -> Vec<Match> {
    let mut joined: Vec<Match> = Vec::new();
    for condition in conditions {
        match (
            &condition,
            joined
                .iter()
                .rposition(|each| matches!(each, Match::Icmp(..))),
        ) {
            (Match::Icmp(sense, CODE_ALONE, code), Some(at)) => {
                let Match::Icmp(of_type, kind, None) = joined[at] else {
                    panic!("two codes");
                };
                assert_eq!(*sense, of_type);
                joined[at] = Match::Icmp(of_type, kind, *code);
            }
            (Match::Icmp(_, CODE_ALONE, _), None) => panic!("a code without a type"),
            _ => joined.push(condition),
        }
    }

    joined
}

fn on_address(end: End, sense: Sense, family: Family, right: &Value) -> Match {
    match (set(right), end) {
        (Some(set), End::Source) => Match::Source(sense, family, set.into()),
        (Some(set), End::Destination) => Match::Destination(sense, family, set.into()),
        (None, End::Source) => Match::SourceNet(sense, net(right)),
        (None, End::Destination) => Match::DestinationNet(sense, net(right)),
    }
}

fn on_bits(operands: &Value, sense: Sense, right: &Value) -> Match {
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let (mask, value) = (number(&operands[1]), number(right));
    match word(&operands[0]) {
        ("ct", _) => Match::CtMark { sense, mask, value },
        ("meta", _) => Match::Mark { sense, mask, value },
        (other, _) => panic!("bits of {other}"),
    }
}

fn on_connection(key: &str, right: &Value) -> Match {
    let bits = match right {
        Value::Array(bits) => bits.iter().map(|bit| bit.as_u64().unwrap()).sum(),
        bit => bit.as_u64().unwrap(),
    };
    match key {
        "state" => Match::CtState(CtState {
            invalid: bits & 1 != 0,
            established: bits & 2 != 0,
            related: bits & 4 != 0,
            new: bits & 8 != 0,
            untracked: bits & 64 != 0,
        }),
        "status" => {
            assert_eq!(bits, 32);
            Match::CtDnat
        }
        other => panic!("ct {other}"),
    }
}

fn end(field: &str) -> End {
    match field {
        "saddr" | "sport" => End::Source,
        "daddr" | "dport" => End::Destination,
        other => panic!("a field {other}"),
    }
}

fn family(protocol: &str) -> Family {
    match protocol {
        "ip" => Family::V4,
        "ip6" => Family::V6,
        other => panic!("a protocol {other}"),
    }
}

fn set(value: &Value) -> Option<String> {
    value.as_str()?.strip_prefix('@').map(str::to_owned)
}

fn net(value: &Value) -> IpNet {
    match value.get("prefix") {
        Some(prefix) => {
            let length = byte(&prefix["len"]);
            IpNet::new(text(&prefix["addr"]).parse().unwrap(), length).unwrap()
        }
        None => IpNet::from(text(value).parse::<std::net::IpAddr>().unwrap()),
    }
}

fn ports(value: &Value) -> (u16, u16) {
    match value.get("range") {
        Some(range) => (port(&range[0]), port(&range[1])),
        None => (port(value), port(value)),
    }
}

fn port(value: &Value) -> u16 {
    u16::try_from(value.as_u64().unwrap()).unwrap()
}

fn byte(value: &Value) -> u8 {
    u8::try_from(value.as_u64().unwrap()).unwrap()
}

/// Returns the one word of an object, and what it says.
fn word(value: &Value) -> (&str, &Value) {
    let (word, what) = value.as_object().unwrap().iter().next().unwrap();

    (word, what)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

fn chain_key(name: &str) -> ChainKey {
    ChainKey {
        table: NftFamily::Inet,
        name: name.into(),
    }
}
