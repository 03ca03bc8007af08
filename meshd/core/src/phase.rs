//! How a node comes to encrypt, and back, pair by pair and without a leader.
//!
//! ```text
//!  wanted       Off ─▶ Accepting ─▶ Sending ─▶ Enforced
//!  not wanted   Off ◀─ Leaving   ◀─ Accepting ◀─ …
//! ```
//!
//! A phase is *stated* by writing the record and *confirmed* when the store shows that very record
//! to us. Records form one log that everybody reads in order; so whoever sees its own record has
//! seen every record before it. That is what makes these three rules safe for each pair:
//!
//! - We **refuse** plaintext from B only while both we (confirmed, nothing else under way) and B are
//!   at least `Sending`. Had B gone back to plaintext before, its record would stand before ours.
//! - We **send** plaintext to B, after having sent encrypted, only once neither we nor B are beyond
//!   `Accepting`.
//! - We **send encrypted** to B once B has shown by a handshake that it has us as a peer, while our
//!   `Accepting` is confirmed and B is at least `Leaving`; or once B is `Sending`, which it says only
//!   after it has reached us or given us up; and B takes its device down only when its
//!   own `Off` is confirmed and nobody is beyond `Leaving`. Until then its record shows its tunnels,
//!   so that nobody takes it out and has to prove itself again.
//!
//! **Invariant:** what was closed is opened only by a wish to disable.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::{Moment, NodeName, Phase, Record, constant::LAGGARD_SECONDS};

/// How packets pass between us and one member, whatever the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passage {
    /// Its prefixes go into the tunnel, or nowhere.
    pub(crate) switched: bool,
    /// Its packets are taken in plaintext too.
    pub(crate) takes_plain: bool,
}

/// What the phases say about every member at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Posture {
    /// Guard, devices and peers are planned.
    pub(crate) up: bool,
    /// Nothing leaves in plaintext.
    pub(crate) egress_closed: bool,
    /// Whose plaintext is taken.
    pub(crate) ingress: Ingress,
    /// Encryption is asked for.
    wanted: bool,
    /// The least far and the furthest that anybody may believe us to be.
    levels: (Phase, Phase),
}

/// Whose plaintext is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// Everybody's.
    #[default]
    Open,
    /// That of members which do not send encrypted yet.
    Laggards,
    /// Nobody's.
    Closed,
}

/// What one member's standing is, as the phases need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its phase; a stock node's is `Sending` once a handshake was made.
    pub(crate) phase: Phase,
    /// It has at least one tunnel that fits one of ours.
    pub(crate) has_carrier: bool,
    /// A handshake was made on every such tunnel.
    pub(crate) reached: bool,
    /// It knows no phases: plaintext is always taken by it.
    pub(crate) is_stock: bool,
    /// It may stay in plaintext (Permissive).
    pub(crate) may_stay_plain: bool,
}

/// The memory of this node's way, and the counts that decide its next step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phases {
    wanted: bool,
    /// The last phase that the store is known to show of us.
    confirmed: Phase,
    /// Phases that were written and not seen yet, with their epochs.
    under_way: Vec<(u64, Phase)>,
    /// We have no record and others are ahead: closed from the start.
    joins: bool,
    /// Devices stay until nobody needs them, after encryption was switched off.
    lingers: bool,
    switched: BTreeSet<NodeName>,
    census: Census,
    laggards: BTreeSet<NodeName>,
    best: BTreeMap<NodeName, (u8, Moment)>,
    since: Moment,
    check_at: Option<Moment>,
}

/// Who stands where.
#[derive(Clone, Debug, Default)]
struct Census {
    unswitched: BTreeSet<NodeName>,
    tunnelled: BTreeSet<NodeName>,
    below_sending: BTreeSet<NodeName>,
    above_leaving: BTreeSet<NodeName>,
    /// At least `Sending`.
    sending: BTreeSet<NodeName>,
}

impl Phases {
    /// Takes over where the record of this node, as the store has it, stands.
    pub(crate) fn resume(&mut self, record: Option<&Record>, now: Moment) {
        self.confirmed = record.map(|record| record.phase).unwrap_or_default();
        self.lingers = record.is_some_and(|record| !record.tunnels.is_empty());
        self.since = now;
    }

    /// Returns whether peers must be able to find our tunnels: as long as the devices are there.
    pub(crate) fn shows_tunnels(&self, phase: Phase) -> bool {
        phase >= Phase::Leaving || self.lingers
    }

    /// Takes in what the configuration asks for, and whether the store has a record of ours at all.
    ///
    /// Whoever joins while others already send encrypted starts closed.
    pub(crate) fn wish(&mut self, wanted: bool, has_record: bool, now: Moment) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.laggards.clear();
            self.best.clear();
            self.restart_clock(now);
        }
        if has_record || !wanted {
            self.joins = false;
        } else if self.under_way.is_empty() && self.confirmed == Phase::Off {
            self.joins = !self.census.sending.is_empty();
        }
        self.lingers |= self.highest() >= Phase::Leaving;
    }

    /// Counts a member as one that has not moved yet, before anybody is met for the first time.
    ///
    /// An agent that starts in the middle does not know to whom it sent encrypted; to nobody who
    /// may count on that does it send plaintext. Nor does it know who still needs its devices.
    pub(crate) fn expect(&mut self, name: &NodeName) {
        if self.confirmed >= Phase::Leaving {
            self.switched.insert(name.clone());
        }
        self.census.unswitched.insert(name.clone());
        self.census.below_sending.insert(name.clone());
        self.census.above_leaving.insert(name.clone());
    }

    /// Remembers that a record of this phase is being written.
    pub(crate) fn state(&mut self, epoch: u64, phase: Phase) {
        self.under_way.retain(|(_, earlier)| *earlier != phase);
        self.under_way.push((epoch, phase));
    }

    /// Takes in that the store shows our record of this epoch.
    pub(crate) fn confirm(&mut self, epoch: u64, now: Moment) {
        let Some((last, phase)) = self.under_way.last().copied() else {
            return;
        };
        if epoch < last {
            return;
        }
        self.under_way.clear();
        if self.confirmed != phase {
            self.confirmed = phase;
            self.restart_clock(now);
        }
    }

    /// Returns what holds for every member.
    pub(crate) fn posture(&self) -> Posture {
        let all_switched = self.wanted
            && self.lowest() >= Phase::Accepting
            && self.waits_for(&self.census.unswitched).is_none();
        let all_sending = self.waits_for(&self.census.below_sending).is_none();

        Posture {
            up: self.wanted || self.highest() >= Phase::Leaving || self.lingers,
            egress_closed: self.joins || self.highest() >= Phase::Sending || all_switched,
            ingress: match self.lowest() {
                _ if self.joins => Ingress::Closed,
                _ if !self.wanted => Ingress::Open,
                Phase::Off | Phase::Leaving | Phase::Accepting => Ingress::Open,
                Phase::Sending if all_sending => Ingress::Closed,
                Phase::Sending => Ingress::Laggards,
                Phase::Enforced => Ingress::Closed,
            },
            wanted: self.wanted,
            levels: (self.lowest(), self.highest()),
        }
    }

    /// Returns the phase to state next, once what it promises is in the kernel.
    pub(crate) fn goal(&self) -> Option<Phase> {
        let posture = self.posture();
        if self.wanted {
            return match self.lowest() {
                _ if self.joins => Some(Phase::Enforced),
                Phase::Off | Phase::Leaving => Some(Phase::Accepting),
                Phase::Accepting if posture.egress_closed => Some(Phase::Sending),
                Phase::Sending if posture.ingress == Ingress::Closed => Some(Phase::Enforced),
                Phase::Accepting | Phase::Sending | Phase::Enforced => None,
            };
        }

        match self.highest() {
            Phase::Enforced | Phase::Sending => Some(Phase::Accepting),
            Phase::Accepting if self.waits_for(&self.census.tunnelled).is_none() => {
                Some(Phase::Leaving)
            }
            Phase::Leaving if self.waits_for(&self.census.above_leaving).is_none() => {
                Some(Phase::Off)
            }
            Phase::Accepting | Phase::Leaving | Phase::Off => None,
        }
    }

    /// Ends the lingering of the devices when nobody needs them any more; returns whether it did.
    pub(crate) fn ends(&mut self) -> bool {
        let ends = self.lingers
            && !self.wanted
            && self.highest() == Phase::Off
            && self.waits_for(&self.census.above_leaving).is_none();
        if ends {
            self.lingers = false;
            self.switched.clear();
        }

        ends
    }

    /// Takes in a member's standing and returns how packets pass.
    pub(crate) fn meet(
        &mut self,
        name: &NodeName,
        standing: Standing,
        posture: Posture,
        now: Moment,
    ) -> Passage {
        self.note_progress(name, standing, now);
        let switched = self.is_switched(name, standing, posture);
        set(&mut self.switched, name, switched);
        self.count(name, standing, switched);

        Passage {
            switched,
            takes_plain: self.takes_plain(standing, posture),
        }
    }

    /// Forgets a member.
    pub(crate) fn part(&mut self, name: &NodeName) {
        self.switched.remove(name);
        self.laggards.remove(name);
        self.best.remove(name);
        let census = &mut self.census;
        for names in [
            &mut census.unswitched,
            &mut census.tunnelled,
            &mut census.below_sending,
            &mut census.above_leaving,
            &mut census.sending,
        ] {
            names.remove(name);
        }
    }

    /// Looks for members that do not move; returns those that are not waited for from now on.
    pub(crate) fn check_laggards(&mut self, now: Moment) -> BTreeSet<NodeName> {
        let Some(waited_for) = self.waited_for() else {
            self.check_at = None;
            return BTreeSet::new();
        };
        if self.waits_for(waited_for).is_none() {
            self.check_at = None;
            return BTreeSet::new();
        }
        match self.check_at {
            None => {
                self.check_at = Some(now + patience());
                BTreeSet::new()
            }
            Some(at) if now < at => BTreeSet::new(),
            Some(_) => self.find_laggards(now),
        }
    }

    /// Returns when the next look for laggards is due.
    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        self.check_at
    }

    /// Returns whether the member is not waited for.
    pub(crate) fn is_laggard(&self, name: &NodeName) -> bool {
        self.laggards.contains(name)
    }

    /// Returns how far this node has come, as far as others may know.
    pub(crate) fn confirmed(&self) -> Phase {
        self.confirmed
    }

    /// Returns the phase that was stated last.
    pub(crate) fn stated(&self) -> Phase {
        self.under_way
            .last()
            .map_or(self.confirmed, |(_, phase)| *phase)
    }

    /// Returns the newest epoch that was written and is not confirmed.
    pub(crate) fn epoch_under_way(&self) -> Option<u64> {
        self.under_way.last().map(|(epoch, _)| *epoch)
    }

    /// Returns how many other members are at least `Sending`.
    pub(crate) fn members_sending(&self) -> usize {
        self.census.sending.len()
    }

    /// Returns how many other members are beyond `Leaving`.
    pub(crate) fn members_encrypting(&self) -> usize {
        self.census.above_leaving.len()
    }

    fn is_switched(&self, name: &NodeName, standing: Standing, posture: Posture) -> bool {
        if !posture.up {
            return false;
        }
        let proven = self.wanted
            && self.lowest() >= Phase::Accepting
            && standing.has_carrier
            && (standing.phase >= Phase::Sending
                || (standing.reached && standing.phase >= Phase::Leaving));
        let demanded = self.wanted && standing.phase == Phase::Enforced;
        if posture.egress_closed || proven || demanded {
            return true;
        }
        let both_accept = self.highest() <= Phase::Accepting
            && (standing.is_stock || standing.phase <= Phase::Accepting);

        self.switched.contains(name) && !both_accept
    }

    fn takes_plain(&self, standing: Standing, posture: Posture) -> bool {
        if standing.may_stay_plain {
            return true;
        }

        match posture.ingress {
            Ingress::Open => true,
            Ingress::Laggards => standing.phase < Phase::Sending,
            Ingress::Closed => false,
        }
    }

    fn count(&mut self, name: &NodeName, standing: Standing, switched: bool) {
        let is_waited_for = !standing.may_stay_plain;
        let census = &mut self.census;
        set(&mut census.unswitched, name, !switched && is_waited_for);
        set(&mut census.tunnelled, name, switched && !standing.is_stock);
        set(
            &mut census.below_sending,
            name,
            standing.phase < Phase::Sending && is_waited_for,
        );
        set(
            &mut census.above_leaving,
            name,
            standing.phase > Phase::Leaving && !standing.is_stock,
        );
        set(&mut census.sending, name, standing.phase >= Phase::Sending);
    }

    /// A member moves when it comes further than it ever was since the wish changed; so nobody can
    /// hold up the others for long by going to and fro.
    fn note_progress(&mut self, name: &NodeName, standing: Standing, now: Moment) {
        let phase = if self.wanted {
            standing.phase as u8
        } else {
            4 - standing.phase as u8
        };
        let score = phase * 4 + u8::from(standing.has_carrier) * 2 + u8::from(standing.reached);
        match self.best.get(name) {
            Some((best, _)) if *best >= score => {}
            Some(_) | None => {
                self.best.insert(name.clone(), (score, now));
                self.laggards.remove(name);
            }
        }
    }

    /// Returns the members for which the present step waits.
    fn waited_for(&self) -> Option<&BTreeSet<NodeName>> {
        if self.wanted {
            return match self.lowest() {
                Phase::Accepting => Some(&self.census.unswitched),
                Phase::Sending => Some(&self.census.below_sending),
                Phase::Off | Phase::Leaving | Phase::Enforced => None,
            };
        }

        match self.highest() {
            Phase::Accepting => Some(&self.census.tunnelled),
            Phase::Leaving | Phase::Off if self.lingers => Some(&self.census.above_leaving),
            Phase::Off | Phase::Leaving | Phase::Sending | Phase::Enforced => None,
        }
    }

    fn waits_for<'a>(&self, names: &'a BTreeSet<NodeName>) -> Option<&'a NodeName> {
        names.iter().find(|name| !self.laggards.contains(name))
    }

    fn find_laggards(&mut self, now: Moment) -> BTreeSet<NodeName> {
        let deadline = |name: &NodeName| {
            let moved = self.best.get(name).map_or(self.since, |(_, at)| *at);
            moved.max(self.since) + patience()
        };
        let waiting = self.waited_for().into_iter().flatten();
        let waiting = waiting.filter(|name| !self.laggards.contains(name));
        let (late, rest): (Vec<_>, Vec<_>) = waiting
            .map(|name| (deadline(name), name.clone()))
            .partition(|(at, _)| *at <= now);
        self.check_at = rest.iter().map(|(at, _)| *at).min();
        let late = late
            .into_iter()
            .map(|(_, name)| name)
            .collect::<BTreeSet<_>>();
        self.laggards.extend(late.iter().cloned());

        late
    }

    fn restart_clock(&mut self, now: Moment) {
        self.since = now;
        self.check_at = None;
    }

    /// The furthest that anybody may believe us to be.
    fn highest(&self) -> Phase {
        self.under_way
            .iter()
            .map(|(_, phase)| *phase)
            .fold(self.confirmed, Phase::max)
    }

    /// The least far that anybody may believe us to be.
    fn lowest(&self) -> Phase {
        self.under_way
            .iter()
            .map(|(_, phase)| *phase)
            .fold(self.confirmed, Phase::min)
    }
}

fn patience() -> Duration {
    Duration::from_secs(LAGGARD_SECONDS)
}

fn set(names: &mut BTreeSet<NodeName>, name: &NodeName, is_in: bool) {
    if is_in {
        names.insert(name.clone());
    } else {
        names.remove(name);
    }
}
