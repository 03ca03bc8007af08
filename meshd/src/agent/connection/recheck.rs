//! One look at every connection: what each is, as policy asks about it, and what becomes of its mark.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use anyhow::Context;
use dataplane::{Among, Conntrack, Entry, Mark, Tally, Tuple, WayError, Ways};
use model::{InterfaceName, PodName, constant::REVOKED_MARK, plan::PodInterface, policy::Protocol};
use policy::{
    Effect, Effects, Header, Judge, Verdict,
    judge::{Connection, Station},
    packet::{IcmpHeader, Ports},
};

use super::Delta;

/// Elements that come in together, from which on what there is is made compact.
const LARGE: usize = 1000;

/// What a recheck needs.
pub(super) struct Recheck {
    judge: Judge,
    effects: Effects,
    pods: Pods,
    conntrack: Conntrack,
    ways: Ways,
}

/// The node's own pods: whose address is whose, and by which interface it is reached.
#[derive(Debug, Default)]
struct Pods {
    addresses: BTreeMap<IpAddr, InterfaceName>,
    known: BTreeMap<PodName, PodInterface>,
}

/// Where on the machine a connection begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spot {
    Host,
    Pod(InterfaceName),
    Interface(InterfaceName),
    /// An interface that is no pod's; nobody asks which.
    Elsewhere,
    /// An interface that cannot be told.
    Unknown,
}

impl Recheck {
    /// Opens sockets in the calling thread's network namespace.
    pub(super) fn open() -> anyhow::Result<Self> {
        Ok(Self {
            judge: Judge::new(),
            effects: Effects::new(),
            pods: Pods::default(),
            conntrack: Conntrack::open()?,
            ways: Ways::open()?,
        })
    }

    /// Takes in rows that are in the kernel now, and tells what that can do to connections.
    pub(super) fn take_in(&mut self, delta: Delta) -> Effect {
        let effect = self.effects.take_in(
            delta
                .chains
                .iter()
                .map(|(key, chain)| (key, chain.as_ref())),
            delta
                .elements
                .iter()
                .map(|((set, element), is_there)| (set, element, *is_there)),
        );
        let effect = match delta.is_piecemeal {
            true => Effect::MayCut,
            false => effect,
        };
        let is_large = delta.elements.len() >= LARGE;
        for ((set, element), is_there) in delta.elements {
            self.judge.set_element(&set, &element, is_there);
        }
        for (key, chain) in delta.chains {
            self.judge.set_chain(&key, chain.as_ref());
        }
        for (name, pod) in delta.pods {
            self.pods.set(name, pod);
        }
        if is_large {
            self.judge.compact();
        }

        effect
    }

    /// Judges connections: every one, or those that were cut.
    pub(super) fn run(&mut self, among: Among) -> anyhow::Result<Tally> {
        let started = Instant::now();
        self.ways
            .refresh()
            .context("could not look at the machine")?;
        let looked = started.elapsed();
        self.conntrack.settle();
        let settled = started.elapsed();
        tracing::debug!(?looked, ?settled, "Packets under way have passed");

        let asks_about_hosts = self.judge.asks_about_hosts();
        let (judge, pods, ways) = (&self.judge, &self.pods, &mut self.ways);
        let mut failure = None;
        let tally = self.conntrack.mark(REVOKED_MARK, among, |entry| {
            match ends(entry, asks_about_hosts, pods, ways) {
                Ok((from, to)) => mark(judge, entry, &from, &to, asks_about_hosts),
                Err(error) => {
                    failure = Some(error);
                    Mark::Leave
                }
            }
        })?;

        match failure {
            Some(error) => Err(error.into()),
            None => Ok(tally),
        }
    }

    /// Takes back what earlier rechecks have said.
    pub(super) fn forget(&mut self) -> anyhow::Result<Tally> {
        let tally = self
            .conntrack
            .mark(REVOKED_MARK, Among::Marked, |_| Mark::Clear)?;

        Ok(tally)
    }
}

/// Returns what becomes of a connection's mark. Connections that none of our chains would decide are left alone.
fn mark(judge: &Judge, entry: &Entry, from: &Spot, to: &Spot, asks_about_hosts: bool) -> Mark {
    let is_a_pods = [from, to].iter().any(|end| matches!(end, Spot::Pod(_)));
    if !is_a_pods && !asks_about_hosts {
        return Mark::Leave;
    }
    let (Some(from), Some(to)) = (from.station(), to.station()) else {
        return Mark::Leave;
    };
    let connection = Connection {
        from,
        to,
        before: header(&entry.original),
        header: translated(entry),
        translated: entry.is_translated(),
    };

    match judge.judge(&connection) {
        Verdict::Allow => Mark::Clear,
        Verdict::Deny => Mark::Set,
    }
}

/// Returns where a connection's first packet came from and where it went.
fn ends(
    entry: &Entry,
    asks_about_hosts: bool,
    pods: &Pods,
    ways: &mut Ways,
) -> Result<(Spot, Spot), WayError> {
    let (source, destination) = (entry.original.source, entry.reply.source);
    let pod = |address| Some((address, pods.addresses.get(&address)?));
    let mut spot = |address: IpAddr, other| {
        if let Some((_, interface)) = pod(address) {
            return Ok(Spot::Pod(interface.clone()));
        }
        if ways.is_own(address) {
            return Ok(Spot::Host);
        }
        if !asks_about_hosts {
            return Ok(Spot::Elsewhere);
        }
        let interface = ways.toward(address, pod(other))?;

        Ok(interface.map_or(Spot::Unknown, Spot::Interface))
    };
    let from = spot(source, destination)?;
    let to = match from {
        // What comes in for a group ends here, what leaves for one does not.
        Spot::Pod(_) | Spot::Interface(_) | Spot::Elsewhere | Spot::Unknown
            if destination.is_multicast() =>
        {
            Spot::Host
        }
        Spot::Host | Spot::Pod(_) | Spot::Interface(_) | Spot::Elsewhere | Spot::Unknown => {
            spot(destination, source)?
        }
    };

    Ok((from, to))
}

impl Spot {
    fn station(&self) -> Option<Station<'_>> {
        match self {
            Self::Host => Some(Station::Host),
            Self::Pod(name) | Self::Interface(name) => Some(Station::Interface(name)),
            Self::Elsewhere => Some(Station::Elsewhere),
            Self::Unknown => None,
        }
    }
}

impl Pods {
    fn set(&mut self, name: PodName, pod: Option<PodInterface>) {
        if let Some(former) = self.known.remove(&name) {
            for net in former.addresses {
                // Somebody else may have the address by now.
                if self.addresses.get(&net.addr()) == Some(&former.host) {
                    self.addresses.remove(&net.addr());
                }
            }
        }
        if let Some(pod) = pod {
            let addresses = pod.addresses.iter();
            self.addresses
                .extend(addresses.map(|net| (net.addr(), pod.host.clone())));
            self.known.insert(name, pod);
        }
    }
}

/// Returns what a connection's first packet said when it came in.
fn header(tuple: &Tuple) -> Header {
    Header {
        source: tuple.source,
        destination: tuple.destination,
        protocol: Protocol(tuple.protocol),
        ports: tuple.ports.map(|(source, destination)| Ports {
            source,
            destination,
        }),
        icmp: tuple.icmp.map(|(kind, code)| IcmpHeader { kind, code }),
    }
}

/// Returns what it said behind the translation of its destination, before that of its source: where answers come from
/// is where it went, and from where it came is what it said itself.
fn translated(entry: &Entry) -> Header {
    let original = header(&entry.original);
    let answered_by = entry.reply.ports.map(|(source, _)| source);

    Header {
        destination: entry.reply.source,
        ports: original.ports.map(|ports| Ports {
            destination: answered_by.unwrap_or(ports.destination),
            ..ports
        }),
        ..original
    }
}
