//! Policy as a ruleset of nftables: what a node's kernel must hold so that it does what [`evaluate`](crate::evaluate)
//! says.
//!
//! ```text
//! base chain ──established──▶ accept
//!     │ one lookup: interface ──▶ group chain
//!     ▼                             │ jump        jump
//! drop, or on                       ├──▶ policy chain ──▶ accept, drop, log, Pass
//!                                   │      rules speak of sets: selectors, networks, services, ports
//!                                   ├──▶ … tier by tier, each with its end
//!                                   ├──▶ profile chain
//!                                   ▼
//!                                 drop
//! ```
//!
//! `accept` ends one base chain, and each question has one of its own: sender, receiver, host before and behind them.
//! So no mark says "allowed"; a mark says only what must outlive its chain (`Pass`, and what a host let in early).
//!
//! Endpoints of which the same is asked share a group chain, named after the least of their interfaces. A policy has
//! one chain for all groups, and a set has the name of what it stands for: a pod that comes or goes is elements, a
//! policy that changes is its chain, and one that comes or goes is a rule in each group that asks it.
//!
//! This is the batch: obvious, and a pure function of its [`Scene`]. Whatever computes the same from one change to
//! the next is compared with it.
//!
//! **Invariants:** no I/O, no clock; order of the scene's lists does not matter. What cannot be compiled, or is too
//! large, denies what it selects and is named in [`Compiled::refused`]; everything else stays in force.

pub(crate) mod base;
pub(crate) mod family;
pub(crate) mod group;
pub(crate) mod host;
pub(crate) mod name;
mod option;
mod rule;
mod scene;
pub(crate) mod set;
pub(crate) mod verdict;
pub(crate) mod workload;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    ObjectKey,
    nft::{Chain, ChainKey, Element, Match, Name, Rule, SetKey, SetKind, Statement, Verdict},
    policy::{Direction, Profile, Stage},
};

pub(crate) use self::scene::{chosen, is_stranger};
use self::{
    base::Entries,
    group::{Asked, Question, Tiers},
    verdict::{Author, Verdicts},
};
pub use self::{
    option::{EndpointToHost, Limits, Options, Overlay},
    scene::{Host, Member, Scene, Workload},
};

/// A node's policy as rows of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets and maps.
    pub sets: BTreeMap<SetKey, SetKind>,
    /// What is in them.
    pub elements: BTreeSet<(SetKey, Element)>,
    /// Chains.
    pub chains: BTreeMap<ChainKey, Chain>,
}

/// A node's policy, and what of it could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The rows.
    pub rows: Ruleset,
    /// Policies and profiles that deny what they select, because they cannot be compiled.
    pub refused: BTreeMap<ObjectKey, Refusal>,
}

/// Why a policy cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// A rule names ICMP types without a protocol that has them.
    #[error("a rule speaks of ICMP types without the protocol ICMP or ICMPv6")]
    IcmpWithoutProtocol,
    /// A rule names numbers of ports without a protocol that has them.
    #[error("a rule speaks of port numbers without the protocol TCP, UDP or SCTP")]
    PortWithoutProtocol,
    /// It becomes more rules of the kernel than it may.
    #[error("it would become more than {most} rules of the kernel")]
    TooManyRules {
        /// How many it may be.
        most: usize,
    },
    /// One of its selectors selects more than a set may hold.
    #[error("one of its sets would have {found} elements; {most} are allowed")]
    TooManyElements {
        /// How many there would be.
        found: usize,
        /// How many there may be.
        most: usize,
    },
}

/// Compiles a node's policy.
pub fn compile(scene: &Scene) -> Compiled {
    let tiers = Tiers::new(scene);
    let mut verdicts = Verdicts::new(scene);
    let mut rows = Ruleset::default();
    workloads(scene, &tiers, &mut verdicts, &mut rows);
    hosts(scene, &tiers, &mut verdicts, &mut rows);

    let (chains, sets, refused) = verdicts.into_rows();
    rows.chains.extend(chains);
    sets.write(&mut rows);

    Compiled { rows, refused }
}

fn workloads(scene: &Scene, tiers: &Tiers<'_>, verdicts: &mut Verdicts<'_>, rows: &mut Ruleset) {
    let mut entries = |direction| -> Entries {
        let question = workload::question(direction);
        let asked = scene.workloads.iter().map(|workload| {
            let asked = Asked {
                question,
                tiers: tiers.applying(question, &workload.labels),
                profiles: scene.existing(&workload.profiles),
                options: &scene.options,
            };

            (Some(workload.interface.clone()), asked)
        });
        let mut hold = |author: Author<'_>, direction| verdicts.add(author, direction);
        let leads = group::write(workload::GROUP, &[], asked, &mut hold, rows).into_iter();

        leads
            .filter_map(|(seat, chain)| Some((seat?, Verdict::Goto(chain))))
            .collect()
    };
    let egress = entries(Direction::Egress);
    let ingress = entries(Direction::Ingress);

    workload::write(&scene.options, egress, ingress, rows);
}

fn hosts(scene: &Scene, tiers: &Tiers<'_>, verdicts: &mut Verdicts<'_>, rows: &mut Ruleset) {
    let interfaces: Vec<_> = scene
        .hosts
        .iter()
        .map(|host| host.interface.clone())
        .collect();
    let admits = scene
        .policies
        .iter()
        .any(|policy| policy.stage != Stage::Normal);
    let ask = |place: usize, question: Question| {
        let host = &scene.hosts[place];

        Some(Asked {
            question,
            tiers: tiers.applying(question, &host.labels),
            profiles: scene.existing(&host.profiles),
            options: &scene.options,
        })
    };
    let mut hold = |author: Author<'_>, direction| verdicts.add(author, direction);
    let asking = host::Asking {
        interfaces: &interfaces,
        options: &scene.options,
        ask: &ask,
        hold: &mut hold,
    };
    host::write(asking, admits, rows);
}

impl Scene {
    /// Returns the profiles that exist, of some names.
    fn existing(&self, names: &[String]) -> Vec<&Profile> {
        names
            .iter()
            .filter_map(|name| self.profiles.get(name))
            .collect()
    }
}

impl Ruleset {
    /// Returns the names of the sets that rules speak of.
    fn spoken_of(&self) -> BTreeSet<Name> {
        let rules = self.chains.values().flat_map(|chain| chain.rules.iter());

        rules.flat_map(spoken_of).cloned().collect()
    }
}

/// Returns the names of the sets that a rule speaks of.
pub(crate) fn spoken_of(rule: &Rule) -> impl Iterator<Item = &Name> {
    let in_matches = rule
        .matches
        .iter()
        .filter_map(Match::set)
        .map(|(_, set)| set);
    let in_statement = match &rule.statement {
        Statement::InputVerdict(map) | Statement::OutputVerdict(map) => Some(map),
        Statement::Accept
        | Statement::Drop
        | Statement::Return
        | Statement::Jump(_)
        | Statement::Goto(_)
        | Statement::AcceptUntracked
        | Statement::Log(_)
        | Statement::LogAndDrop(_)
        | Statement::Snat(_)
        | Statement::SnatPorts(..)
        | Statement::Masquerade
        | Statement::MasqueradePorts(_)
        | Statement::Dnat(..)
        | Statement::SetMark { .. }
        | Statement::Continue => None,
    };

    in_matches.chain(in_statement)
}

#[cfg(test)]
mod tests;
