//! Packets to send, who answers them, and what came back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use lab::{Netns, Probe, Program, Receiver, Site};
use model::{Kind, NodeName, ObjectKey, policy::Protocol};
use policy::{
    Packet, Place, Translator, Verdict,
    scenario::{ProbeVerdict, Stage, Trial},
};

use super::topology::Plan;

/// How long an answer may take, where there is one.
const USUAL: Duration = Duration::from_millis(1500);

/// How long one may take that the evaluator says must come, before it counts as lost.
const SURELY: Duration = Duration::from_secs(6);

/// Ports that packets come from in the first state; in a later one others, so that no connection is known already.
const PORTS: (u16, u16) = (40_000, 1_000);

/// Ports that packets come from whose destination is translated: each has its own, which tells where it is sent on.
const TRANSLATED_PORTS: u16 = 20_000;

/// ICMP's and ICMPv6's numbers (IANA): each echo has a number of its own.
const ICMP: [u8; 2] = [1, 58];

/// ICMP's and ICMPv6's echo requests: the questions that machines answer.
const ECHOES: [u8; 2] = [8, 128];

/// The packets of one state, and who answers them.
pub(super) struct Post {
    /// For each trial the places of its packets among the probes; or why it cannot be sent.
    trials: Vec<Result<Vec<usize>, String>>,
    /// What the evaluator says of each probe's trial.
    expected: Vec<Verdict>,
    probes: Vec<Probe>,
    receivers: Vec<Receiver>,
}

/// Where a packet is sent to, and where it is sent on to.
struct Redirection {
    node: NodeName,
    protocol: Protocol,
    from_port: u16,
    sent_to: SocketAddr,
    to: SocketAddr,
    /// The node sends it itself.
    needs_route: bool,
}

/// What a stage's packets are prepared with.
struct Preparation<'a> {
    site: &'a mut Site,
    plan: &'a Plan,
    stage: &'a Stage,
    step: usize,
    post: Post,
    redirections: Vec<Redirection>,
    /// Why nobody can answer at a place where somebody should.
    listening: BTreeMap<(String, SocketAddr, u8), Option<String>>,
}

impl Preparation<'_> {
    /// Prepares a trial; returns the places of its packets, or why it cannot be sent.
    fn trial(&mut self, trial: &Trial) -> anyhow::Result<Result<Vec<usize>, String>> {
        if let Some(why) = unsendable(self.stage, trial) {
            return Ok(Err(why));
        }
        let mut places = Vec::new();
        for packet in &trial.packets {
            if let Some(address) = self.nobodys(packet) {
                return Ok(Err(format!("nobody has {address} then")));
            }
            if let Some(why) = self.listen(packet)? {
                return Ok(Err(why));
            }
            let probe = self.probe(trial, packet)?;
            if self.post.probes.iter().any(|other| answers(other, &probe)) {
                return Ok(Err("it would be the answer to another probe".to_owned()));
            }
            places.push(self.post.place_of(probe, trial.entry.verdict));
        }

        Ok(Ok(places))
    }

    /// Returns the address of a packet's that nobody has.
    fn nobodys(&self, packet: &Packet) -> Option<IpAddr> {
        let ends = [
            (&packet.from, packet.header.source),
            (&packet.to, packet.header.destination),
        ];
        let mut outside = ends
            .into_iter()
            .filter(|(place, _)| **place == Place::Outside);

        outside
            .find(|(_, address)| !self.plan.outside.contains_key(address))
            .map(|(_, address)| address)
    }

    /// Has somebody answer a packet; returns why nobody can.
    fn listen(&mut self, packet: &Packet) -> anyhow::Result<Option<String>> {
        let protocol = packet.header.protocol.0;
        let to = netns(self.site, self.plan, &packet.to, packet.header.destination)?;
        let end = receiver_address(packet);
        let key = (to.name().to_owned(), end, protocol);
        if let Some(known) = self.listening.get(&key) {
            return Ok(known.clone());
        }
        let why = match Receiver::start(&to, end, protocol) {
            Ok(receiver) => {
                self.post.receivers.push(receiver);
                None
            }
            Err(error) => Some(format!("{:#}", anyhow::Error::new(error))),
        };
        self.listening.insert(key, why.clone());

        Ok(why)
    }

    fn probe(&mut self, trial: &Trial, packet: &Packet) -> anyhow::Result<Probe> {
        let header = packet.header;
        let from_port = self.source_port(trial, packet)?;
        let mut to = receiver_address(packet);
        if let Some(translation) = packet.translation {
            let sent_to = SocketAddr::new(translation.address, translation.port);
            let node = match translation.at {
                Translator::First => node_of(self.stage, &packet.from),
                Translator::Last => node_of(self.stage, &packet.to),
            };
            self.redirections.push(Redirection {
                node: node.context("no node translates")?,
                protocol: header.protocol,
                from_port,
                sent_to,
                to,
                needs_route: matches!(packet.from, Place::Node(_))
                    && matches!(translation.at, Translator::First),
            });
            to = sent_to;
        }

        Ok(Probe {
            netns: netns(self.site, self.plan, &packet.from, header.source)?,
            from: SocketAddr::new(header.source, from_port),
            to,
            protocol: header.protocol.0,
        })
    }

    fn source_port(&self, trial: &Trial, packet: &Packet) -> anyhow::Result<u16> {
        let Some(ports) = packet.header.ports else {
            return Ok(0);
        };
        if trial.has_source_port {
            return Ok(ports.source);
        }
        let later = u16::try_from(self.step)
            .unwrap_or(u16::MAX)
            .saturating_mul(PORTS.1);
        let first = match packet.translation {
            None => return Ok(PORTS.0.saturating_add(later)),
            Some(_) => TRANSLATED_PORTS.saturating_add(later),
        };
        let number = u16::try_from(self.post.probes.len()).context("too many packets")?;

        Ok(first.saturating_add(number))
    }
}

impl Post {
    /// Prepares everything that a stage sends: receivers listen, and nodes translate what they are to.
    pub(super) fn of(
        site: &mut Site,
        plan: &Plan,
        stage: &Stage,
        step: usize,
    ) -> anyhow::Result<Self> {
        let mut preparation = Preparation {
            site,
            plan,
            stage,
            step,
            post: Self {
                trials: Vec::new(),
                expected: Vec::new(),
                probes: Vec::new(),
                receivers: Vec::new(),
            },
            redirections: Vec::new(),
            listening: BTreeMap::new(),
        };
        for trial in &stage.trials {
            let found = preparation.trial(trial)?;
            preparation.post.trials.push(found);
        }
        redirect(preparation.site, &preparation.redirections)?;

        Ok(preparation.post)
    }

    /// Returns the place of a probe; one that is sent already is not sent twice.
    fn place_of(&mut self, probe: Probe, verdict: ProbeVerdict) -> usize {
        let is_same = |other: &Probe| {
            (other.from, other.to, other.protocol) == (probe.from, probe.to, probe.protocol)
                && other.netns.name() == probe.netns.name()
        };
        if let Some(place) = self.probes.iter().position(is_same) {
            return place;
        }
        self.probes.push(probe);
        self.expected.push(match verdict {
            ProbeVerdict::Allow => Verdict::Allow,
            ProbeVerdict::Deny | ProbeVerdict::Mixed => Verdict::Deny,
        });

        self.probes.len() - 1
    }

    /// Sends everything and returns a verdict for each trial, or why there is none.
    pub(super) fn send(&self) -> Vec<Result<ProbeVerdict, String>> {
        let mut answered = sent(&self.probes, USUAL);
        // A busy machine may be late; what must come is waited for once more.
        let expected = self.expected.iter().enumerate();
        let late: Vec<usize> = expected
            .filter(|(place, verdict)| **verdict == Verdict::Allow && answered[*place] == Ok(false))
            .map(|(place, _)| place)
            .collect();
        let again: Vec<Probe> = late
            .iter()
            .map(|place| self.probes[*place].clone())
            .collect();
        for (place, found) in late.into_iter().zip(sent(&again, SURELY)) {
            answered[place] = found;
        }

        let trials = self.trials.iter();
        trials
            .map(|trial| verdict(trial.as_ref().map_err(Clone::clone)?, &answered))
            .collect()
    }
}

/// Sends packets; returns which were answered, or why one could not be sent.
fn sent(probes: &[Probe], usual: Duration) -> Vec<Result<bool, String>> {
    let found = Probe::send_all(probes, usual).into_iter();

    found
        .map(|found| found.map_err(|error| format!("{:#}", anyhow::Error::new(error))))
        .collect()
}

fn verdict(places: &[usize], answered: &[Result<bool, String>]) -> Result<ProbeVerdict, String> {
    let mut passed = 0;
    for place in places {
        passed += usize::from(answered[*place].clone()?);
    }

    Ok(match passed {
        0 => ProbeVerdict::Deny,
        some if some == places.len() => ProbeVerdict::Allow,
        _ => ProbeVerdict::Mixed,
    })
}

/// Returns whether connection tracking takes a packet for the answer to another: of protocols without ports both
/// directions between two machines are one connection.
fn answers(other: &Probe, probe: &Probe) -> bool {
    let is_reverse = other.from == probe.to && other.to == probe.from;
    let is_echo = ICMP.contains(&probe.protocol);

    is_reverse && other.protocol == probe.protocol && !is_echo
}

/// Returns why a trial cannot be sent, or its answer not be told.
fn unsendable(stage: &Stage, trial: &Trial) -> Option<String> {
    let Some(packet) = trial.packets.first() else {
        return Some("nobody answers there".to_owned());
    };
    let ends = [&packet.from, &packet.to];
    if let Some(namespace) = ends
        .into_iter()
        .find_map(|place| unknown_namespace(stage, place))
    {
        return Some(format!(
            "a lab's store makes namespace {namespace}, which is not to be there"
        ));
    }
    let icmp = packet.header.icmp?;
    if ECHOES.contains(&icmp.kind) && icmp.code == 0 && packet.translation.is_none() {
        return None;
    }

    Some(format!("nobody answers ICMP {}/{}", icmp.kind, icmp.code))
}

fn unknown_namespace(stage: &Stage, place: &Place) -> Option<String> {
    let namespace = match place {
        Place::Pod(name) => name.namespace.clone(),
        Place::Node(_) | Place::Outside => return None,
    };
    let key = ObjectKey::cluster(Kind::Namespace, &namespace);
    let is_known = stage.objects.iter().any(|object| object.key() == key);

    (!is_known).then_some(namespace)
}

fn receiver_address(packet: &Packet) -> SocketAddr {
    let port = packet.header.ports.map_or(0, |ports| ports.destination);

    SocketAddr::new(packet.header.destination, port)
}

fn node_of(stage: &Stage, place: &Place) -> Option<NodeName> {
    match place {
        Place::Pod(name) => {
            let mut pods = stage.pods.iter();
            pods.find(|pod| pod.name == *name)
                .map(|pod| pod.node.clone())
        }
        Place::Node(name) => Some(name.clone()),
        Place::Outside => None,
    }
}

/// Returns the namespace of one end.
fn netns(
    site: &mut Site,
    plan: &Plan,
    place: &Place,
    address: IpAddr,
) -> anyhow::Result<Arc<Netns>> {
    let host = match place {
        Place::Pod(name) => {
            let name = name.to_string();
            let name = name
                .parse()
                .map_err(|error| anyhow!("pod {name}: {error}"))?;
            let netns = site.pod(&name)?.netns.clone();
            return Ok(site.space(&netns)?);
        }
        Place::Node(name) => name.to_string(),
        Place::Outside => {
            let host = plan.outside.get(&address);
            host.with_context(|| format!("nobody has {address}"))?
                .clone()
        }
    };
    let host = host
        .parse()
        .map_err(|error| anyhow!("host {host}: {error}"))?;

    Ok(site.host_space(&host)?)
}

/// Has nodes send packets on, as kube-proxy does for services: each by the port that it comes from.
fn redirect(site: &Site, redirections: &[Redirection]) -> anyhow::Result<()> {
    let mut rules: BTreeMap<&NodeName, String> = BTreeMap::new();
    for one in redirections {
        let family = if one.to.is_ipv4() { "ip" } else { "ip6" };
        let protocol = one.protocol.to_string().to_ascii_lowercase();
        let (address, port) = (one.sent_to.ip(), one.sent_to.port());
        let rule = format!(
            "{family} daddr {address} {protocol} dport {port} {protocol} sport {} dnat {family} to {}\n",
            one.from_port, one.to
        );
        rules.entry(&one.node).or_default().push_str(&rule);
    }
    for one in redirections.iter().filter(|one| one.needs_route) {
        // No lab has a route to a service's address, as every host has by its default route.
        let address = one.sent_to.ip().to_string();
        let arguments = ["route", "replace", &address, "dev", "eth0"];
        run(site, &one.node, "ip", &arguments, b"")?;
    }
    for (node, rules) in rules {
        let text = format!(
            "table inet policy-test\ndelete table inet policy-test\ntable inet policy-test {{
  chain incoming {{ type nat hook prerouting priority dstnat; {rules} }}
  chain own {{ type nat hook output priority -100; {rules} }}
}}\n"
        );
        run(site, node, "nft", &["-f", "-"], text.as_bytes())?;
    }

    Ok(())
}

/// Runs a program on a node.
fn run(
    site: &Site,
    node: &NodeName,
    name: &str,
    arguments: &[&str],
    input: &[u8],
) -> anyhow::Result<()> {
    let host = node.as_str().parse();
    let host = host.map_err(|error| anyhow!("host {node}: {error}"))?;
    let program = Program::new(Path::new(name), arguments.iter().copied());
    program
        .output(&site.state().place(&host), input)
        .with_context(|| format!("node {node} cannot translate"))?;

    Ok(())
}
