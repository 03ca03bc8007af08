//! Which faults happen, on which nodes, and when: all of it follows from the seed.

use std::{collections::BTreeSet, fmt, time::Duration};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::rogue;

/// How many faults a wave holds, and one in which the server is away for long.
const WAVE: usize = 5;
const LONG_WAVE: usize = 9;

/// How many nodes the faults of a wave may touch: the connections between the others must not notice.
const TOUCHED: usize = 3;

/// The faults of a wave begin within this time.
const BEGIN_MS: u64 = 1500;

/// Every such wave is one in which no handshake packet is lost.
const CALM: usize = 3;

/// How long the server is away in a long wave.
const LONG: Duration = Duration::from_secs(30);

/// How many waves are long.
const LONG_WAVES: usize = 2;

/// What happens to a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An agent is killed; the service manager starts it again.
    AgentKill,
    /// A tunnel service is killed; the service manager starts it again.
    WireKill,
    /// Somebody takes a node's key out of the store.
    KeyCleared,
    /// Somebody writes another node's key into a node's record.
    KeyDuplicated,
    /// An administrator removes a node, and it joins again.
    NodeRemoved,
    /// A node gets another underlay address.
    AddressChange,
    /// The server is away.
    ServerDown,
    /// Another program flushes a node's whole ruleset.
    Flush,
    /// A node's cable is pulled and put back.
    LinkFlap,
    /// Some nodes do not hear the others.
    Partition,
    /// A second underlay device appears, with routes, and goes again.
    NewDevice,
    /// A node loses its power and boots.
    Reboot,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::AgentKill,
        Self::WireKill,
        Self::KeyCleared,
        Self::KeyDuplicated,
        Self::NodeRemoved,
        Self::AddressChange,
        Self::ServerDown,
        Self::Flush,
        Self::LinkFlap,
        Self::Partition,
        Self::NewDevice,
        Self::Reboot,
    ];

    /// Whether connections of the fault's own node may notice it.
    pub fn touches(self) -> bool {
        match self {
            Self::AgentKill | Self::Flush | Self::ServerDown | Self::NewDevice => false,
            Self::WireKill
            | Self::KeyCleared
            | Self::KeyDuplicated
            | Self::NodeRemoved
            | Self::AddressChange
            | Self::LinkFlap
            | Self::Partition
            | Self::Reboot => true,
        }
    }

    /// Whether handshake packets may be lost by it, which are sent again only after five seconds
    /// (§6.1 of the WireGuard paper: `REKEY_TIMEOUT`).
    fn loses_packets(self) -> bool {
        match self {
            Self::LinkFlap
            | Self::Partition
            | Self::Reboot
            | Self::AddressChange
            | Self::NodeRemoved
            | Self::WireKill => true,
            Self::AgentKill
            | Self::KeyCleared
            | Self::KeyDuplicated
            | Self::ServerDown
            | Self::Flush
            | Self::NewDevice => false,
        }
    }

    /// Whether nothing else can happen to its node meanwhile: it is not there.
    fn is_exclusive(self) -> bool {
        matches!(self, Self::NodeRemoved | Self::Reboot)
    }

    /// Whether it happens in the store.
    fn needs_server(self) -> bool {
        matches!(
            self,
            Self::KeyCleared | Self::KeyDuplicated | Self::NodeRemoved
        )
    }

    /// How long it lasts at least, and how much longer at most, in milliseconds.
    fn span(self) -> (u64, u64) {
        match self {
            // The service manager waits a second (`RestartSec=1`).
            Self::AgentKill | Self::WireKill => (1000, 1),
            Self::KeyCleared | Self::KeyDuplicated | Self::AddressChange | Self::Flush => (0, 1),
            Self::NodeRemoved => (500, 1500),
            Self::ServerDown => (1500, 3500),
            Self::LinkFlap => (200, 2500),
            Self::Partition => (1000, 4000),
            Self::NewDevice => (1500, 2500),
            Self::Reboot => (500, 1500),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// To whom: position of the node.
    pub node: usize,
    /// Another node that has a part in it.
    pub other: usize,
    /// When, from the beginning of the wave.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// Which of several ways.
    pub variant: u32,
}

impl Fault {
    /// The nodes whose connections may notice it.
    pub fn touched(&self) -> BTreeSet<usize> {
        let mut touched = BTreeSet::new();
        if self.kind.touches() {
            touched.insert(self.node);
        }
        // Who has the database in his hands writes into it while the server is away.
        if self.kind == Kind::ServerDown && self.writes_database() {
            touched.insert(self.node);
        }
        touched
    }

    /// Whether handshake packets may be lost by it: also where a node must make its device anew, because
    /// its grant was taken away.
    pub fn loses_packets(&self) -> bool {
        let loses_grant = self.kind == Kind::KeyCleared && rogue::deletes_claim(self.variant);

        self.kind.loses_packets() || loses_grant
    }

    /// Whether the store says for a while what is not true.
    pub fn lies(&self) -> bool {
        match self.kind {
            Kind::KeyCleared | Kind::KeyDuplicated => true,
            Kind::ServerDown => self.writes_database(),
            Kind::AgentKill
            | Kind::WireKill
            | Kind::NodeRemoved
            | Kind::AddressChange
            | Kind::Flush
            | Kind::LinkFlap
            | Kind::Partition
            | Kind::NewDevice
            | Kind::Reboot => false,
        }
    }

    /// Whether somebody writes into the database while the server is away.
    pub fn writes_database(&self) -> bool {
        self.kind == Kind::ServerDown && self.variant.is_multiple_of(2)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node, other) = (self.node + 1, self.other + 1);
        write!(
            f,
            "{:?} n{node} (other n{other}, way {}) at {:?} for {:?}",
            self.kind, self.variant, self.at, self.lasts
        )
    }
}

/// Faults that overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wave {
    /// In the order in which they begin.
    pub faults: Vec<Fault>,
}

impl Wave {
    /// The nodes whose connections may notice it.
    pub fn touched(&self) -> BTreeSet<usize> {
        self.faults.iter().flat_map(Fault::touched).collect()
    }

    /// Whether handshake packets may be lost by it.
    pub fn loses_packets(&self) -> bool {
        self.faults.iter().any(Fault::loses_packets)
    }

    fn has(&self, kind: Kind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind)
    }

    fn is_long(&self) -> bool {
        self.faults.iter().any(|fault| fault.lasts >= LONG)
    }

    fn takes(&self, fault: &Fault) -> bool {
        let room = if self.is_long() { LONG_WAVE } else { WAVE };
        let single = matches!(fault.kind, Kind::ServerDown | Kind::Partition);
        let store = |kind: Kind| kind.needs_server();
        let server_is_away = self.has(Kind::ServerDown);
        let store_is_used = self.faults.iter().any(|other| store(other.kind));
        let mut touched = self.touched();
        touched.extend(fault.touched());
        self.faults.len() < room
            && touched.len() <= TOUCHED
            && !(single && self.has(fault.kind))
            && !(server_is_away && store(fault.kind))
            && !(fault.kind == Kind::ServerDown && store_is_used)
            && self.faults.iter().all(|other| fit(other, fault))
    }
}

/// Whether two faults may happen at the same time.
fn fit(one: &Fault, other: &Fault) -> bool {
    // Who is removed holds no key that somebody could take.
    let robs = |thief: &Fault, removed: &Fault| {
        let is_removal = removed.kind == Kind::NodeRemoved;
        thief.kind == Kind::KeyDuplicated && is_removal && thief.other == removed.node
    };
    if robs(one, other) || robs(other, one) {
        return false;
    }
    if one.node != other.node {
        return true;
    }
    let is_alone = |fault: &Fault| fault.kind.is_exclusive();
    let both_touch = !one.touched().is_empty() && !other.touched().is_empty();
    !is_alone(one) && !is_alone(other) && !both_touch && one.kind != other.kind
}

/// What happens in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What all of it follows from.
    pub seed: u64,
    /// One after the other.
    pub waves: Vec<Wave>,
}

impl Schedule {
    /// Makes a schedule of so many faults, each kind as often as the others or once more, for a mesh of
    /// `nodes` nodes (at least four).
    pub fn new(seed: u64, faults: usize, nodes: usize) -> Self {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        let mut kinds: Vec<Kind> = Kind::ALL.into_iter().cycle().take(faults).collect();
        dice.shuffle(&mut kinds);
        let mut waves: Vec<Wave> = Vec::new();
        let mut outages = 0;
        for kind in kinds {
            let is_long = kind == Kind::ServerDown && outages < LONG_WAVES;
            outages += usize::from(kind == Kind::ServerDown);
            let fault = dice.fault(kind, nodes, is_long);
            place(&mut waves, fault, nodes);
        }
        waves.retain(|wave| !wave.faults.is_empty());
        for wave in &mut waves {
            spread(wave, &mut dice);
        }
        Self { seed, waves }
    }

    /// Every fault, in order.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.waves.iter().flat_map(|wave| &wave.faults)
    }
}

/// Puts a fault into the first wave that takes it, on its node or on another one.
fn place(waves: &mut Vec<Wave>, fault: Fault, nodes: usize) {
    for (number, wave) in waves.iter_mut().enumerate() {
        if number % CALM == CALM - 1 && fault.loses_packets() {
            continue;
        }
        for shift in 0..nodes {
            let moved = Fault {
                node: (fault.node + shift) % nodes,
                other: (fault.other + shift) % nodes,
                ..fault.clone()
            };
            if wave.takes(&moved) {
                wave.faults.push(moved);
                return;
            }
        }
    }
    // A wave that must stay calm may begin with nothing.
    if waves.len() % CALM == CALM - 1 && fault.loses_packets() {
        waves.push(Wave::default());
    }
    waves.push(Wave {
        faults: vec![fault],
    });
}

/// Says when each fault of a wave begins; in a long one they are spread over the server's absence.
fn spread(wave: &mut Wave, dice: &mut Dice) {
    let span = if wave.is_long() {
        LONG.as_millis() as u64 - 5000
    } else {
        BEGIN_MS
    };
    for fault in &mut wave.faults {
        let is_frame = fault.lasts >= LONG;
        let at = if is_frame { 0 } else { dice.below(span) };
        fault.at = Duration::from_millis(at);
    }
    wave.faults.sort_by_key(|fault| fault.at);
}

struct Dice(ChaCha8Rng);

impl Dice {
    /// A number below `limit`; the bias of the remainder does not matter here.
    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for index in (1..list.len()).rev() {
            let other = self.below(index as u64 + 1) as usize;
            list.swap(index, other);
        }
    }

    fn fault(&mut self, kind: Kind, nodes: usize, is_long: bool) -> Fault {
        let node = self.below(nodes as u64) as usize;
        let other = (node + 1 + self.below(nodes as u64 - 1) as usize) % nodes;
        let (least, more) = kind.span();
        let lasts = Duration::from_millis(least + self.below(more));
        Fault {
            kind,
            node,
            other,
            at: Duration::ZERO,
            lasts: if is_long { LONG } else { lasts },
            variant: self.below(12) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_a_run_and_another_seed_another_one() {
        assert_eq!(Schedule::new(7, 100, 5), Schedule::new(7, 100, 5));
        assert_ne!(Schedule::new(7, 100, 5), Schedule::new(8, 100, 5));
    }

    #[test]
    fn every_kind_happens_at_least_eight_times_in_a_hundred_faults() {
        for seed in 0..50 {
            let schedule = Schedule::new(seed, 100, 5);
            assert_eq!(schedule.faults().count(), 100);
            for kind in Kind::ALL {
                let times = schedule.faults().filter(|fault| fault.kind == kind).count();
                assert!(times >= 8, "{kind:?}: {times} with seed {seed}");
            }
            let long = schedule.faults().filter(|fault| fault.lasts >= LONG);
            assert_eq!(long.count(), LONG_WAVES, "seed {seed}");
        }
    }

    #[test]
    fn a_fifth_of_the_waves_at_least_loses_no_handshake_packet() {
        for seed in 0..50 {
            let waves = Schedule::new(seed, 100, 5).waves;
            let calm = waves.iter().filter(|wave| !wave.loses_packets()).count();
            assert!(
                calm * 5 >= waves.len(),
                "{calm} of {} with seed {seed}",
                waves.len()
            );
        }
    }

    #[test]
    fn faults_that_exclude_each_other_are_in_different_waves() {
        for seed in 0..50 {
            for wave in Schedule::new(seed, 100, 5).waves {
                assert!(wave.touched().len() <= TOUCHED, "seed {seed}: {wave:?}");
                let stored = wave.faults.iter().any(|fault| fault.kind.needs_server());
                assert!(
                    !(stored && wave.has(Kind::ServerDown)),
                    "seed {seed}: {wave:?}"
                );
                for (index, one) in wave.faults.iter().enumerate() {
                    let others = &wave.faults[index + 1..];
                    assert!(
                        others.iter().all(|other| fit(one, other)),
                        "seed {seed}: {wave:?}"
                    );
                }
            }
        }
    }
}
