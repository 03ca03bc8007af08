//! Streams between all nodes, and what became of them.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use lab::{Family, Lab, Node, Report, Stream, spec::Protocol};

/// Time between two records of a stream.
const PACE: Duration = Duration::from_millis(60);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A pod to a pod.
    Pods,
    /// A pod to the other node's own address.
    ToHost,
}

/// A stream that should be there, and is unless one of its ends was taken away.
#[derive(Debug)]
struct Flow {
    from: usize,
    to: usize,
    way: Way,
    protocol: Protocol,
    family: Family,
    stream: Option<Stream>,
}

impl Flow {
    fn has_end(&self, node: usize) -> bool {
        self.from == node || self.to == node
    }

    fn name(&self) -> String {
        let (from, to) = (self.from + 1, self.to + 1);
        format!(
            "n{from} to n{to} ({:?}, {}, {:?})",
            self.way, self.protocol, self.family
        )
    }

    fn start(&self, nodes: &[Node]) -> Stream {
        let pod = nodes[self.from].pod();
        let far: &dyn lab::End = match self.way {
            Way::Pods => &nodes[self.to].pod(),
            Way::ToHost => &nodes[self.to],
        };
        pod.stream_at(far, self.protocol, far.address(self.family))
    }
}

/// Streams between all nodes: every pair of pods, TCP the one way and UDP the other, both families; and
/// from each pod to the next node's own address.
#[derive(Debug)]
pub struct Traffic {
    flows: Vec<Flow>,
}

impl Traffic {
    /// The streams of so many nodes; none runs before [`Traffic::restore`].
    pub fn between(lab: &Lab, nodes: usize) -> Self {
        lab.pace(PACE);
        let mut flows = Vec::new();
        let mut add = |from, to, way, protocol| {
            for family in [Family::V4, Family::V6] {
                flows.push(Flow {
                    from,
                    to,
                    way,
                    protocol,
                    family,
                    stream: None,
                });
            }
        };
        for one in 0..nodes {
            for other in 0..one {
                add(one, other, Way::Pods, Protocol::Tcp);
                add(other, one, Way::Pods, Protocol::Udp);
            }
            add(one, (one + 1) % nodes, Way::ToHost, Protocol::Udp);
        }
        Self { flows }
    }

    /// Starts the streams that do not run; panics where one does not come up within ten seconds.
    pub fn restore(&mut self, nodes: &[Node]) {
        let started = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let missing = self.flows.iter().enumerate();
            for (number, flow) in missing.filter(|(_, flow)| flow.stream.is_none()) {
                let started = &started;
                scope.spawn(move || {
                    let stream = flow.start(nodes);
                    let mut started = started.lock().expect("no thread panics with it");
                    started.push((number, stream));
                });
            }
        });
        for (number, stream) in started.into_inner().expect("no thread panics with it") {
            self.flows[number].stream = Some(stream);
        }
    }

    /// How many streams run.
    pub fn running(&self) -> usize {
        self.streams().count()
    }

    /// Ends the streams of a node whose pods go.
    pub fn end_all_of(&mut self, node: usize) {
        self.end(|flow| flow.has_end(node));
    }

    /// Ends the streams to a node's own addresses, which change.
    pub fn end_to_host(&mut self, node: usize) {
        self.end(|flow| flow.way == Way::ToHost && flow.to == node);
    }

    fn end(&mut self, is_meant: impl Fn(&Flow) -> bool) {
        for flow in self.flows.iter_mut().filter(|flow| is_meant(flow)) {
            flow.stream = None;
        }
    }

    /// Forgets what became of the streams so far.
    pub fn forget(&self) {
        for (_, stream) in self.streams() {
            stream.forget();
        }
    }

    fn streams(&self) -> impl Iterator<Item = (&Flow, &Stream)> {
        let flows = self.flows.iter();
        flows.filter_map(|flow| Some((flow, flow.stream.as_ref()?)))
    }

    /// The streams that broke: those between nodes that nothing has touched (the first list), and those
    /// that something has (the second).
    pub fn broken(&self, touched: &BTreeSet<usize>) -> [Vec<String>; 2] {
        let mut lists = [Vec::new(), Vec::new()];
        for (flow, stream) in self.streams() {
            let report = stream.report();
            if is_broken(&report) {
                let is_touched = touched.iter().any(|node| flow.has_end(*node));
                lists[usize::from(is_touched)].push(format!("{}: {report:?}", flow.name()));
            }
        }
        lists
    }

    /// The longest time without a byte on the streams between nodes that nothing has touched.
    pub fn longest_untouched_gap(&self, touched: &BTreeSet<usize>) -> Duration {
        let untouched =
            |flow: &&(&Flow, &Stream)| !touched.iter().any(|node| flow.0.has_end(*node));
        let gaps = self.streams().filter(|flow| untouched(&flow));
        let gaps = gaps.map(|(_, stream)| stream.report().longest_gap);
        gaps.max().unwrap_or_default()
    }

    /// Waits until every stream carries records again.
    ///
    /// # Errors
    /// The streams that do not.
    pub fn await_alive(&self, patience: Duration) -> Result<(), Vec<String>> {
        let deadline = Instant::now() + patience;
        let echoed = |stream: &Stream| stream.report().echoed;
        let mut silent: Vec<_> = self
            .streams()
            .map(|(flow, stream)| (flow, stream, echoed(stream)))
            .collect();
        loop {
            // A record that was sent long ago may come late; three more are no such ones alone.
            silent.retain(|(_, stream, before)| echoed(stream) < before + 3);
            if silent.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let line = |(flow, stream, _): &(&Flow, &Stream, u64)| {
                    format!("{}: {:?}", flow.name(), stream.report())
                };
                return Err(silent.iter().map(line).collect());
            }
            thread::park_timeout(LOOK);
        }
    }
}

fn is_broken(report: &Report) -> bool {
    (report.resets, report.reconnects, report.wrong) != (0, 0, 0)
}
