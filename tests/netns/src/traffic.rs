//! Streams between all that may speak, and what became of them.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use lab::{End, Family, Lab, Node, Pod, Report, Service, Stream, poll_until, spec::Protocol};

use crate::waiting::Waiting;

/// The longest that a stream may be without a byte.
pub const MOST_GAP: Duration = Duration::from_millis(200);

/// Time between two records of a stream where there are many of them.
const PACE: Duration = Duration::from_millis(60);

/// How late a datagram may be before it counts as lost.
const LATE: Duration = Duration::from_secs(2);

/// Many streams, and some that no tunnel has to do with: one inside a pod, one from a host to the server, and
/// those between pods of one node. What those miss, the machine withheld; and what it did not let the
/// tunnels' programs run.
#[derive(Debug)]
pub struct Traffic {
    streams: Vec<(String, Stream)>,
    controls: [Stream; 2],
    waiting: Waiting,
    /// Which of the streams stay on their node.
    local: Vec<usize>,
}

impl Traffic {
    /// No streams yet.
    pub fn none(lab: &Lab) -> Self {
        Self::none_every(lab, PACE)
    }

    /// No streams yet; those that come carry a record in every such time.
    fn none_every(lab: &Lab, pace: Duration) -> Self {
        lab.pace(pace);
        let pods = lab.pods();
        let pod = pods.first().expect("a lab of stories has pods");
        let inside = pod.stream_at(pod, Protocol::Tcp, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let [host, server] = [pod.node().name(), "server"].map(|name| lab.outside(name));
        let address = common(&host, &server).first().map(Family::of);
        let family = address.expect("a node reaches its server");
        let beside = host.stream(&server, Protocol::Tcp, family);
        Self {
            streams: Vec::new(),
            controls: [inside, beside],
            waiting: Waiting::of(tunnels(lab)),
            local: Vec::new(),
        }
    }

    /// Every address: each pair of pods, TCP the one way and UDP the other; each pod to each remote node
    /// and each node to each remote pod, the protocols changing from pod to pod.
    pub fn everywhere(lab: &Lab) -> Self {
        let mut traffic = Self::none(lab);
        let pods = lab.pods();
        let [tcp, udp] = [Protocol::Tcp, Protocol::Udp];
        for (number, pod) in pods.iter().enumerate() {
            for other in &pods[..number] {
                traffic.add_one_way(pod, other, tcp);
                traffic.add_one_way(other, pod, udp);
            }
            let [out, back] = if number % 2 == 0 {
                [tcp, udp]
            } else {
                [udp, tcp]
            };
            for node in lab.nodes() {
                if node.name() != pod.node().name() {
                    traffic.add_to_node(pod, &node, out);
                    traffic.add_from_node(&node, pod, back);
                }
            }
        }
        traffic
    }

    /// The first pods of the first two nodes, both protocols and families; and each of the two nodes with
    /// the other's pod.
    pub fn between_two(lab: &Lab) -> Self {
        Self::between_two_every(lab, PACE)
    }

    /// As [`Traffic::between_two`], with a record in every such time.
    pub fn between_two_every(lab: &Lab, pace: Duration) -> Self {
        let mut traffic = Self::none_every(lab, pace);
        let nodes = lab.nodes();
        let [one, two, ..] = nodes.as_slice() else {
            panic!("the lab has no two nodes")
        };
        traffic.add_pod_to_pod(&one.pod(), &two.pod());
        traffic.add_pod_and_node(&one.pod(), two);
        traffic.add_pod_and_node(&two.pod(), one);
        traffic
    }

    /// Streams of both protocols from a pod to each address of another whose family it has.
    pub fn add_pod_to_pod(&mut self, from: &Pod, to: &Pod) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.add_one_way(from, to, protocol);
        }
    }

    /// Streams of both protocols from a pod to each address of a node, and from the node to the pod.
    pub fn add_pod_and_node(&mut self, pod: &Pod, node: &Node) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.add_to_node(pod, node, protocol);
            self.add_from_node(node, pod, protocol);
        }
    }

    fn add_one_way(&mut self, from: &Pod, to: &Pod, protocol: Protocol) {
        let stays = from.node().name() == to.node().name();
        for address in common(from, to) {
            let stream = from.stream_at(to, protocol, address);
            self.local.extend(stays.then_some(self.streams.len()));
            self.add(&from.label(), &to.label(), protocol, stream);
        }
    }

    fn add_to_node(&mut self, pod: &Pod, node: &Node, protocol: Protocol) {
        for address in common(pod, node) {
            let stream = pod.stream_at(node, protocol, address);
            self.add(&pod.label(), &node.label(), protocol, stream);
        }
    }

    fn add_from_node(&mut self, node: &Node, pod: &Pod, protocol: Protocol) {
        for address in common(node, pod) {
            let stream = node.stream(pod, protocol, Family::of(&address));
            self.add(&node.label(), &pod.label(), protocol, stream);
        }
    }

    /// Adds a stream that was started elsewhere.
    pub fn add(&mut self, from: &str, to: &str, protocol: Protocol, stream: Stream) {
        let name = format!("{from} to {to} ({}, {protocol})", stream.to_address());
        self.streams.push((name, stream));
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Forgets what became of them so far.
    pub fn forget(&self) {
        for control in &self.controls {
            control.forget();
        }
        self.waiting.forget();
        for (_, stream) in &self.streams {
            stream.forget();
        }
    }

    /// Asserts that each carries records now, that no connection broke, and that none was longer than
    /// [`MOST_GAP`] without a byte, beyond what the machine itself withheld.
    pub fn assert_unbroken(&self) {
        self.assert_alive();
        let withheld = self.withheld();
        self.assert_each(|report| {
            (report.longest_gap > lab::patience(MOST_GAP) + withheld)
                .then(|| format!("a gap (the machine withheld {withheld:?})"))
        });
    }

    /// The longest time that the machine kept back what had no tunnel to cross, or kept a tunnel from
    /// carrying.
    fn withheld(&self) -> Duration {
        let local = self.local.iter().map(|number| &self.streams[*number].1);
        let gaps = self.controls.iter().chain(local);
        let longest = gaps.map(|stream| stream.report().longest_gap).max();
        let longest = longest.unwrap_or_default().saturating_sub(PACE);
        longest.max(self.waiting.worst())
    }

    /// Asserts that each carries records now, and that no connection broke.
    pub fn assert_alive(&self) {
        for (name, stream) in &self.streams {
            assert!(
                stream.is_alive(Duration::from_secs(5)),
                "{name} is silent: {:?}",
                stream.report()
            );
        }
        self.assert_each(|report| {
            let broken = (report.resets, report.reconnects, report.wrong) != (0, 0, 0);
            broken.then(|| "broken".to_owned())
        });
    }

    /// Asserts that nothing comes back any more.
    pub fn assert_silent(&self) {
        let before: Vec<u64> = self.streams.iter().map(|(_, s)| s.report().sent).collect();
        let spell = Duration::from_millis(150);
        for ((name, stream), sent) in self.streams.iter().zip(before) {
            let came = stream.is_alive(spell);
            assert!(!came, "{name} carries records that were sent after {sent}");
        }
    }

    /// How many datagrams never came back, of those sent since the past was forgotten. Late ones are
    /// waited for.
    pub fn lost(&self) -> u64 {
        self.assert_alive();
        let lost = || {
            let reports = self.streams.iter().map(|(_, stream)| stream.report());
            reports.map(|report| report.lost + report.missing).sum()
        };
        poll_until(Instant::now() + LATE, || lost() == 0);
        lost()
    }

    /// Asserts that no more datagrams were lost than a hole of one record's time would cost: one of each
    /// stream.
    pub fn assert_nothing_lost(&self) {
        let udp = self
            .streams
            .iter()
            .filter(|(name, _)| name.ends_with("UDP)"));
        let (lost, most) = (self.lost(), udp.count() as u64);
        let losers = self.streams.iter().map(|(name, s)| (name, s.report()));
        let losers: Vec<_> = losers.filter(|(_, r)| r.lost + r.missing > 0).collect();
        assert!(lost <= most, "{lost} datagrams are lost: {losers:#?}");
    }

    fn assert_each(&self, complaint: impl Fn(&Report) -> Option<String>) {
        let said: Vec<String> = self
            .streams
            .iter()
            .filter_map(|(name, stream)| {
                let report = stream.report();
                complaint(&report).map(|why| format!("{name}: {why}: {report:?}"))
            })
            .collect();
        assert!(
            said.is_empty(),
            "{} of {} streams:\n{}",
            said.len(),
            self.streams.len(),
            said.join("\n")
        );
    }

    /// The longest gap of any of them.
    pub fn longest_gap(&self) -> Duration {
        let gaps = self.streams.iter().map(|(_, s)| s.report().longest_gap);
        gaps.max().unwrap_or_default()
    }
}

/// The processes that carry packets on the lab's nodes.
fn tunnels(lab: &Lab) -> Vec<u32> {
    let nodes = lab.nodes();
    let services = nodes.iter().map(|node| {
        // A node that is no member has none.
        lab.site(|site| site.service(node.name(), Service::Wire).ok())
    });
    services.flatten().map(|process| process.pid).collect()
}

/// The addresses of `to` whose family `from` has.
fn common(from: &dyn End, to: &dyn End) -> Vec<IpAddr> {
    let own = from.addresses();
    let shared = |a: &IpAddr| own.iter().any(|o| Family::of(o) == Family::of(a));
    to.addresses().into_iter().filter(shared).collect()
}
