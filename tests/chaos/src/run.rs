//! One run: waves of faults, and after each the questions.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::Node;
use netns::{Mesh, await_settled, await_summary};

use crate::{
    Fault, Schedule, Traffic, Wave, await_whole, rogue, schedule::Kind, strike::Hand,
    whole::topology,
};

/// How soon after its last fault a mesh is whole.
const WHOLE: Duration = Duration::from_secs(8);

/// How soon it is where no handshake packet was lost.
const WHOLE_AT_ONCE: Duration = Duration::from_secs(2);

/// How long a connection may take to notice that it can go on: TCP waits longer each time.
const REVIVAL: Duration = Duration::from_secs(40);

/// How long an agent may take until its machine matches its plan.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many faults are shown where a run fails.
const LAST: usize = 12;

/// A mesh, its traffic, and what was done to it so far.
#[derive(Debug)]
pub struct Run {
    mesh: Mesh,
    nodes: Vec<Node>,
    traffic: Traffic,
    addresses: u8,
    log: Log,
    times: Vec<(bool, Duration)>,
    faults: Vec<Fault>,
}

impl Run {
    /// Builds an encrypted mesh of so many nodes, under traffic. `log` takes what happens.
    pub fn new(schedule: &Schedule, nodes: usize, log: PathBuf) -> Self {
        let mesh = Mesh::of(topology(nodes));
        mesh.enable();
        let members = mesh.members();
        let mut traffic = Traffic::between(&mesh, nodes);
        traffic.restore(&members);
        let mut log = Log::new(log);
        log.say(&format!(
            "seed {}: {} faults in {} waves; {} streams",
            schedule.seed,
            schedule.faults().count(),
            schedule.waves.len(),
            traffic.running()
        ));
        Self {
            mesh,
            nodes: members,
            traffic,
            addresses: 0,
            log,
            times: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Carries a wave out and asks what became of the mesh; panics where a promise is broken.
    pub fn carry_out(&mut self, wave: &Wave) {
        let number = self.times.len() + 1;
        self.log.say(&format!("wave {number}"));
        self.faults.extend(wave.faults.iter().cloned());
        self.traffic.forget();
        let ended = self.hurt(wave);
        let limit = if wave.loses_packets() {
            WHOLE
        } else {
            WHOLE_AT_ONCE
        };
        let taken = match self.await_whole(wave, ended) {
            Ok(taken) => taken,
            Err(why) => self.fail(&why),
        };
        self.log.say(&format!("  whole after {taken:?}"));
        self.times.push((wave.loses_packets(), taken));
        if taken > limit {
            self.fail(&format!("whole only after {taken:?}, expected {limit:?}"));
        }
        self.ask_after(wave);
    }

    /// Waits until the store says what is true, where somebody made it lie, and the mesh is whole.
    fn await_whole(&self, wave: &Wave, ended: Instant) -> Result<Duration, String> {
        let patience = WHOLE + PATIENCE;
        if wave.faults.iter().any(Fault::lies) {
            rogue::await_truth(&self.mesh, &self.nodes, ended + patience)?;
            self.mesh.wait();
        }
        await_whole(&self.mesh, &self.nodes, ended, patience)
    }

    /// Strikes and heals, each at its time; returns when the last fault was over.
    fn hurt(&mut self, wave: &Wave) -> Instant {
        let mut steps: Vec<(Duration, bool, &Fault)> = Vec::new();
        for fault in &wave.faults {
            steps.push((fault.at, true, fault));
            steps.push((fault.at + fault.lasts, false, fault));
        }
        steps.sort_by_key(|(at, is_strike, _)| (*at, !is_strike));
        let mut hand = Hand {
            lab: &self.mesh,
            nodes: &self.nodes,
            traffic: &mut self.traffic,
            addresses: &mut self.addresses,
            empty: Vec::new(),
            devices: Vec::new(),
            senders: Vec::new(),
        };
        let start = Instant::now();
        for (at, is_strike, fault) in steps {
            wait_until(start + at);
            let word = if is_strike { "+" } else { "-" };
            self.log
                .say(&format!("  {:?} {word} {fault}", start.elapsed()));
            if is_strike {
                hand.strike(fault);
            } else {
                hand.heal(fault);
            }
        }
        let ended = Instant::now();
        hand.refill();
        let tried: Vec<u64> = hand.senders.iter().map(crate::Sender::tried).collect();
        self.log.say(&format!(
            "  over after {:?}, pods after {:?}; host processes tried {tried:?} times",
            ended - start,
            start.elapsed()
        ));
        assert!(
            tried.iter().all(|tried| *tried > 0),
            "a host process was silent"
        );
        ended
    }

    /// Connections, leaks, and what each agent says.
    fn ask_after(&mut self, wave: &Wave) {
        let touched = wave.touched();
        if let Err(silent) = self.traffic.await_alive(REVIVAL) {
            self.fail(&format!("silent streams: {}", silent.join("\n")));
        }
        let [untouched, others] = self.traffic.broken(&touched);
        if !untouched.is_empty() {
            self.fail(&format!(
                "broken, though untouched: {}",
                untouched.join("\n")
            ));
        }
        if !others.is_empty() {
            self.fail(&format!("broken: {}", others.join("\n")));
        }
        let gap = self.traffic.longest_untouched_gap(&touched);
        self.log
            .say(&format!("  longest gap of the untouched: {gap:?}"));
        self.mesh.assert_no_plaintext();
        for node in &self.nodes {
            await_summary(node, "Enforced", PATIENCE);
            await_settled(node, PATIENCE);
        }
        // An address is a member's once it is granted and everybody knows; until then it is anybody's.
        let deadline = Instant::now() + PATIENCE;
        if let Err(why) = rogue::await_truth(&self.mesh, &self.nodes, deadline) {
            self.fail(&why);
        }
        self.mesh.wait();
        self.traffic.restore(&self.nodes);
    }

    /// What is to be read at the end of a run.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (is_lossy, words) in [(true, "where packets may be lost"), (false, "elsewhere")] {
            let times = self.times.iter().filter(|(lossy, _)| *lossy == is_lossy);
            let mut times: Vec<Duration> = times.map(|(_, time)| *time).collect();
            times.sort();
            let middle = times.get(times.len() / 2).copied().unwrap_or_default();
            let longest = times.last().copied().unwrap_or_default();
            let line = writeln!(
                text,
                "{} waves {words}: whole after {middle:?} (median), {longest:?} (longest)",
                times.len()
            );
            line.expect("writing to a string does not fail");
        }
        for kind in Kind::ALL {
            let times = self
                .faults
                .iter()
                .filter(|fault| fault.kind == kind)
                .count();
            writeln!(text, "{times} × {kind:?}").expect("writing to a string does not fail");
        }
        text
    }

    /// Says how the mesh stands, and panics with the seed's own words.
    fn fail(&mut self, why: &str) -> ! {
        let last = self.faults.iter().rev().take(LAST).rev();
        let last: Vec<String> = last.map(Fault::to_string).collect();
        let mut state = String::new();
        for node in &self.nodes {
            let status = node
                .try_ask("/v1/status")
                .map_err(|error| error.to_string());
            let peers = node.try_ask("/v1/peers").map_err(|error| error.to_string());
            let line = writeln!(state, "{}: {status:?}\n  {peers:?}", node.name());
            line.expect("writing to a string does not fail");
        }
        self.log.say(&format!("failed: {why}\n{state}"));
        let (first, log) = (self.log.first.clone(), self.log.file.display());
        panic!(
            "{why}\n{first}\nlast faults:\n{}\nlog: {log}\n{state}",
            last.join("\n")
        );
    }
}

/// Waits until a moment.
fn wait_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// What happened, on the screen and in a file.
#[derive(Debug)]
struct Log {
    file: PathBuf,
    first: String,
    text: String,
}

impl Log {
    fn new(file: PathBuf) -> Self {
        Self {
            file,
            first: String::new(),
            text: String::new(),
        }
    }

    #[expect(
        clippy::print_stdout,
        reason = "the test harness shows it with a failure"
    )]
    fn say(&mut self, line: &str) {
        println!("{line}");
        if self.first.is_empty() {
            line.clone_into(&mut self.first);
        }
        self.text.push_str(line);
        self.text.push('\n');
        if let Err(error) = std::fs::write(&self.file, &self.text) {
            panic!("{} cannot be written: {error}", self.file.display());
        }
    }
}
