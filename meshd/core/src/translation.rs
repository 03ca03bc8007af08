//! Address translation: source NAT of what leaves, and the host's ports and floating addresses that lead to pods.
//!
//! ```text
//! inet meshd  hostport_in    prerouting  -101  from elsewhere, and from pods
//!             hostport_out   output      -101  from the host itself
//!             hostport_back  postrouting   99  what comes back to the pod that asked, or from 127.0.0.1
//!             translate      postrouting   99  services' and pools' packets
//! ```
//!
//! The chains of ports have a rule for each port: only the first packet of a connection walks them. Policy sees what
//! comes out of them, the pod's own address and port.
//!
//! **Invariant:** no port and no address that the mesh itself needs leads to a pod.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family, InterfaceName, PodName,
    constant::{KUBE_MASQUERADE_MARK, WORKLOAD_PREFIX},
    nft::{
        Chain, ChainKey, ChainKind, End, Hook, HookPoint, Match, NftFamily, Policy, Rule,
        Sense::{Is, Not},
        Statement,
    },
    pod::HostPort,
    policy::Protocol,
    settings::Settings,
};

use crate::{guard, ledger::Row, own::Own};

/// Just before kube-proxy's and everybody's destination NAT (`NF_IP_PRI_NAT_DST` is -100).
const LEAD_PRIORITY: i32 = -101;

/// Just before kube-proxy's and everybody's source NAT (`NF_IP_PRI_NAT_SRC` is 100).
const TRANSLATE_PRIORITY: i32 = 99;

/// Protocols whose ports a translation may choose (Calico's `natPortRange` is about these).
const PORTED: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// What the settings say of the source NAT of pods' packets that leave the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outgoing {
    /// The address that they get (`natOutgoingAddress`); none: that of the device they leave by.
    address: Option<IpAddr>,
    /// The ports that they get, first and last (`natPortRange`).
    ports: Option<(u16, u16)>,
    /// The devices that it is about (`iptablesNATOutgoingInterfaceFilter`).
    devices: Option<Devices>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Devices {
    Named(InterfaceName),
    Beginning(String),
}

/// A pod that is reached under an address or a port that is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Led<'a> {
    pub(crate) pod: &'a PodName,
    pub(crate) address: IpAddr,
    pub(crate) ports: &'a [HostPort],
    pub(crate) floating: &'a [IpAddr],
}

impl Outgoing {
    /// Reads it; the second half says what cannot be read, and is then left out.
    pub(crate) fn of(settings: &Settings) -> (Self, Option<String>) {
        let text = |name: &str| settings.text(name);
        let mut wrong = None;
        let mut read = |name: &str, is_read: bool| {
            if !is_read {
                wrong = Some(format!("{name} cannot be used and is left out"));
            }
        };
        let address = text("natOutgoingAddress").and_then(|text| {
            let address = text.parse().ok();
            read("natOutgoingAddress", address.is_some());
            address
        });
        let ports = text("natPortRange").and_then(|text| {
            let ports = range(&text);
            read("natPortRange", ports.is_some());
            ports
        });
        let devices = text("iptablesNATOutgoingInterfaceFilter").and_then(|text| {
            let devices = Devices::read(&text);
            read("iptablesNATOutgoingInterfaceFilter", devices.is_some());
            devices
        });

        (
            Self {
                address,
                ports,
                devices,
            },
            wrong,
        )
    }

    /// Returns the rules for what `beyond` matches.
    fn rules(&self, family: Family, mut beyond: Vec<Match>) -> Vec<Rule> {
        beyond.extend(self.devices.as_ref().map(|devices| match devices {
            Devices::Named(name) => Match::Oif(Is, name.clone()),
            Devices::Beginning(prefix) => Match::OifPrefix(Is, prefix.clone()),
        }));
        let address = self.address.filter(|it| Family::of(*it) == family);
        let statement = |ports| match (address, ports) {
            (Some(address), Some(ports)) => Statement::SnatPorts(address, ports),
            (Some(address), None) => Statement::Snat(address),
            (None, Some(ports)) => Statement::MasqueradePorts(ports),
            (None, None) => Statement::Masquerade,
        };
        let mut rules = Vec::new();
        for protocol in PORTED.iter().filter(|_| self.ports.is_some()) {
            let mut matches = beyond.clone();
            matches.push(Match::Protocol(Is, protocol.0));
            rules.push(rule("natOutgoing", matches, statement(self.ports)));
        }
        rules.push(rule("natOutgoing", beyond, statement(None)));

        rules
    }
}

impl Devices {
    /// Reads a name, or the beginning of names before a `+` (as iptables has it) or a `*`.
    fn read(text: &str) -> Option<Self> {
        match text.strip_suffix(['+', '*']) {
            Some("") => None,
            Some(start) => start
                .parse::<InterfaceName>()
                .ok()
                .map(|_| start.into())
                .map(Self::Beginning),
            None => text.parse().ok().map(Self::Named),
        }
    }
}

/// Reads `FIRST:LAST`, or one port.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);

    (first != 0 && first <= last).then_some((first, last))
}

/// Source NAT: services' packets towards remote pods get the node's address, because the kernel
/// resets a masqueraded connection whose way changes, and not one translated to an address;
/// pods' packets beyond pools and members are translated where the pool asks for it.
pub(crate) fn outgoing(own: &Own, outgoing: &Outgoing) -> Row {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let set = |base: &str| guard::name(base, family).into();
        let outward = vec![
            Match::Oif(Not, guard::interface("lo")),
            Match::OifPrefix(Not, WORKLOAD_PREFIX.into()),
        ];
        if let Some(address) = own.address(family) {
            let mark = KUBE_MASQUERADE_MARK;
            let marked = vec![
                Match::Mark {
                    sense: Is,
                    mask: mark,
                    value: mark,
                },
                Match::Destination(Is, family, set("space")),
            ];
            let matches = [outward.clone(), marked].concat();
            let statement = Statement::Snat(address);
            rules.push(rule("service to a remote pod", matches, statement));
        }
        let beyond = vec![
            Match::OifSet(Not, guard::tunnel_set().name),
            Match::Source(Is, family, set("natpool")),
            Match::Destination(Not, family, set("anypool")),
            Match::Destination(Not, family, set("member")),
        ];
        rules.extend(outgoing.rules(family, [outward, beyond].concat()));
    }

    chain(
        "translate",
        HookPoint::Postrouting,
        TRANSLATE_PRIORITY,
        rules,
    )
}

/// Returns the chains that lead to pods; none where no pod asks for it.
pub(crate) fn leading(led: &[Led<'_>]) -> Vec<Row> {
    if led
        .iter()
        .all(|it| it.ports.is_empty() && it.floating.is_empty())
    {
        return Vec::new();
    }
    let ways: Vec<Rule> = led.iter().flat_map(Led::ways).collect();
    let mut back: Vec<Rule> = led.iter().flat_map(Led::back).collect();
    back.push(from_loopback());

    vec![
        chain(
            "hostport_in",
            HookPoint::Prerouting,
            LEAD_PRIORITY,
            ways.clone(),
        ),
        chain("hostport_out", HookPoint::Output, LEAD_PRIORITY, ways),
        chain(
            "hostport_back",
            HookPoint::Postrouting,
            TRANSLATE_PRIORITY,
            back,
        ),
    ]
}

impl Led<'_> {
    fn family(&self) -> Family {
        Family::of(self.address)
    }

    fn ways(&self) -> Vec<Rule> {
        let comment = self.pod.to_string();
        let of_family = |address: &&IpAddr| Family::of(**address) == self.family();
        let ports = self.ports.iter().filter(|port| {
            port.address
                .is_none_or(|address| Family::of(address) == self.family())
        });
        let ports = ports.map(|port| {
            let to = match port.address.filter(|address| !address.is_unspecified()) {
                Some(address) => Match::DestinationNet(Is, model::family::host_net(address)),
                None => Match::DestinationLocal,
            };
            let matches = vec![
                Match::Family(self.family()),
                Match::Protocol(Is, port.protocol.0),
                Match::Port(End::Destination, Is, port.port, port.port),
                to,
            ];
            rule(
                &comment,
                matches,
                Statement::Dnat(self.address, Some(port.target)),
            )
        });
        let floating = self.floating.iter().filter(of_family).map(|address| {
            let matches = vec![Match::DestinationNet(Is, model::family::host_net(*address))];
            rule(&comment, matches, Statement::Dnat(self.address, None))
        });

        ports.chain(floating).collect()
    }

    /// A pod that asks for itself must not be answered by itself: it would see its own address.
    fn back(&self) -> Vec<Rule> {
        let own = model::family::host_net(self.address);
        let matches = vec![
            Match::CtDnat,
            Match::SourceNet(Is, own),
            Match::DestinationNet(Is, own),
        ];
        let of_family = |address: &&IpAddr| Family::of(**address) == self.family();
        let floating = self.floating.iter().find(of_family);
        let statement = match floating.filter(|_| self.ports.is_empty()) {
            Some(address) => Statement::Snat(*address),
            None => Statement::Masquerade,
        };

        vec![rule(&self.pod.to_string(), matches, statement)]
    }
}

/// What the host asked of itself at 127.0.0.1 leaves the host: a pod cannot answer there.
fn from_loopback() -> Rule {
    let loopback: IpNet = "127.0.0.0/8".parse().expect("a network");
    let matches = vec![
        Match::CtDnat,
        Match::OifPrefix(Is, WORKLOAD_PREFIX.into()),
        Match::SourceNet(Is, loopback),
    ];

    rule("from the loopback", matches, Statement::Masquerade)
}

fn chain(name: &str, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Row {
    let hook = Hook {
        point,
        priority,
        kind: ChainKind::Nat,
        policy: Policy::Accept,
    };

    Row::Chain(
        ChainKey {
            table: NftFamily::Inet,
            name: name.into(),
        },
        Chain {
            hook: Some(hook),
            rules: rules.into(),
        },
    )
}

fn rule(comment: &str, matches: Vec<Match>, statement: Statement) -> Rule {
    Rule {
        matches,
        counter: false,
        statement,
        comment: comment.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_and_a_filter_are_read_or_left_out() {
        assert_eq!(range("30000:40000"), Some((30000, 40000)));
        assert_eq!(range("8080"), Some((8080, 8080)));
        for bad in ["", ":", "0:10", "10:9", "1:65536", "a"] {
            assert_eq!(range(bad), None, "{bad}");
        }
        let named = Devices::Named("eth0".parse().unwrap());
        assert_eq!(Devices::read("eth0"), Some(named));
        assert_eq!(
            Devices::read("eth+"),
            Some(Devices::Beginning("eth".into()))
        );
        for bad in ["", "+", "a/b", "sixteen-letters-x"] {
            assert_eq!(Devices::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_port_of_one_family_leads_to_an_address_of_that_family_alone() {
        let pod = PodName::parse("shop/web").unwrap();
        let port = |address: Option<&str>| HostPort {
            address: address.map(|text| text.parse().unwrap()),
            protocol: Protocol::TCP,
            port: 80,
            target: 8080,
        };
        let ways = |to: &str, ports: &[HostPort]| {
            let led = Led {
                pod: &pod,
                address: to.parse().unwrap(),
                ports,
                floating: &[],
            };
            led.ways().len()
        };

        assert_eq!(ways("10.65.0.2", &[port(None)]), 1);
        assert_eq!(ways("fd00:65::2", &[port(None), port(Some("::"))]), 2);
        assert_eq!(ways("10.65.0.2", &[port(Some("2001:db8::1"))]), 0);
        assert!(leading(&[]).is_empty());
    }
}
