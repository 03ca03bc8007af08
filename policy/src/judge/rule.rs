//! Rules with numbers for names.

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    nft::{self, CtState, End, Match, Sense},
};

use super::Judge;
use crate::packet::Header;

/// A rule of the plan, without what only people read.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What is soonest known, beside the rule itself: most rules end here.
    pub(super) gate: Gate,
    /// All others must hold, too.
    pub(super) conditions: Box<[Condition]>,
    /// What happens.
    pub(super) statement: Statement,
}

/// What most rules say first. What is not said here, holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    family: Option<Family>,
    protocol: Option<u8>,
    /// First and last port of the receiver.
    ports: Option<(u16, u16)>,
}

impl Gate {
    /// Returns whether a packet may match the rule.
    pub(super) fn admits(&self, header: &Header) -> bool {
        let has_port = |(first, last): (u16, u16)| {
            header
                .ports
                .is_some_and(|ports| (first..=last).contains(&ports.destination))
        };

        self.ports.is_none_or(has_port)
            && self
                .protocol
                .is_none_or(|number| header.protocol.0 == number)
            && self.family.is_none_or(|family| header.family() == family)
    }

    /// Takes over a condition, if it is one that belongs here.
    fn takes(&mut self, condition: &Condition) -> bool {
        if let Condition::Family(family) = condition
            && self.family.is_none()
        {
            self.family = Some(*family);
        } else if let Condition::Protocol(Sense::Is, number) = condition
            && self.protocol.is_none()
        {
            self.protocol = Some(*number);
        } else if let Condition::Port(End::Destination, Sense::Is, first, last) = condition
            && self.ports.is_none()
        {
            self.ports = Some((*first, *last));
        } else {
            return false;
        }

        true
    }
}

/// A condition on a packet; sets by their numbers.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Iif(Sense, InterfaceName),
    IifPrefix(Sense, Box<str>),
    IifSet(Sense, u32),
    Oif(Sense, InterfaceName),
    OifPrefix(Sense, Box<str>),
    OifSet(Sense, u32),
    Family(Family),
    Address(End, Sense, Family, u32),
    Net(End, Sense, IpNet),
    SourceOnInterface(Sense, Family, u32),
    Protocol(Sense, u8),
    Icmp(Sense, u8, Option<u8>),
    Port(End, Sense, u16, u16),
    PortSet(End, Sense, u32),
    AddressPort(End, Sense, Family, u32),
    Mark(Sense, u32, u32),
    /// The connection's mark, of which no bit is set when it opens, is (not) this.
    CtMark(Sense, u32),
    CtState(CtState),
    CtDnat,
    CtOriginalDestination(Sense, Family, u32),
    SourceLocal,
    DestinationLocal,
    DestinationElsewhere(Sense),
    /// Holds of no packet that opens a connection.
    Never,
}

/// What a rule does; chains and maps by their numbers.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    /// The base chain is done with the packet.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The chain ends.
    Return,
    /// Into a chain, and back.
    Jump(u32),
    /// Into a chain for good.
    Goto(u32),
    /// What a map says of the input interface.
    InputVerdict(u32),
    /// What a map says of the output interface.
    OutputVerdict(u32),
    /// The packet's mark changes: bits written, and their value.
    SetMark(u32, u32),
    /// The packet is accepted without a connection: what is said of this one does not matter any more.
    Untrack,
    /// Nothing that matters here.
    Continue,
}

impl Judge {
    /// Takes in a rule, and holds what it speaks of.
    pub(super) fn compile(&mut self, rule: &nft::Rule) -> Rule {
        let mut gate = Gate::default();
        let matches = rule.matches.iter();
        let mut conditions: Vec<_> = matches
            .map(|condition| self.condition(condition))
            .filter(|condition| !gate.takes(condition))
            .collect();
        conditions.sort_by_key(Condition::searches);

        Rule {
            gate,
            conditions: conditions.into(),
            statement: self.statement(&rule.statement),
        }
    }

    /// Lets go of what a rule spoke of.
    pub(super) fn release(&mut self, rule: &Rule) {
        for set in rule.conditions.iter().filter_map(Condition::set) {
            self.sets.release(set);
        }
        match rule.statement {
            Statement::Jump(chain) | Statement::Goto(chain) => self.chains.release(chain),
            Statement::InputVerdict(map) | Statement::OutputVerdict(map) => self.sets.release(map),
            Statement::Accept
            | Statement::Drop
            | Statement::Return
            | Statement::SetMark(..)
            | Statement::Untrack
            | Statement::Continue => {}
        }
    }

    fn condition(&mut self, condition: &Match) -> Condition {
        match condition {
            Match::Iif(sense, name) => Condition::Iif(*sense, name.clone()),
            Match::IifPrefix(sense, prefix) => Condition::IifPrefix(*sense, prefix.as_str().into()),
            Match::IifSet(sense, set) => Condition::IifSet(*sense, self.sets.hold(set)),
            Match::Oif(sense, name) => Condition::Oif(*sense, name.clone()),
            Match::OifPrefix(sense, prefix) => Condition::OifPrefix(*sense, prefix.as_str().into()),
            Match::OifSet(sense, set) => Condition::OifSet(*sense, self.sets.hold(set)),
            Match::Family(family) => Condition::Family(*family),
            Match::Source(sense, family, set) => {
                Condition::Address(End::Source, *sense, *family, self.sets.hold(set))
            }
            Match::Destination(sense, family, set) => {
                Condition::Address(End::Destination, *sense, *family, self.sets.hold(set))
            }
            Match::SourceOnInterface(sense, family, set) => {
                Condition::SourceOnInterface(*sense, *family, self.sets.hold(set))
            }
            Match::SourceNet(sense, net) => Condition::Net(End::Source, *sense, *net),
            Match::DestinationNet(sense, net) => Condition::Net(End::Destination, *sense, *net),
            Match::Protocol(sense, number) => Condition::Protocol(*sense, *number),
            Match::DestinationPort(port) => {
                Condition::Port(End::Destination, Sense::Is, *port, *port)
            }
            Match::Icmpv6Type(kind) => Condition::Icmp(Sense::Is, *kind, None),
            Match::Icmp(sense, kind, code) => Condition::Icmp(*sense, *kind, *code),
            Match::Port(end, sense, first, last) => Condition::Port(*end, *sense, *first, *last),
            Match::PortSet(end, sense, set) => {
                Condition::PortSet(*end, *sense, self.sets.hold(set))
            }
            Match::AddressPort(end, sense, family, set) => {
                Condition::AddressPort(*end, *sense, *family, self.sets.hold(set))
            }
            Match::Mark { sense, mask, value } => Condition::Mark(*sense, *mask, *value),
            Match::CtMark { sense, value, .. } => Condition::CtMark(*sense, *value),
            Match::CtState(state) => Condition::CtState(*state),
            Match::CtReply => Condition::Never,
            Match::CtDnat => Condition::CtDnat,
            Match::CtOriginalDestination(sense, family, set) => {
                Condition::CtOriginalDestination(*sense, *family, self.sets.hold(set))
            }
            Match::DestinationLocal => Condition::DestinationLocal,
            Match::DestinationElsewhere(sense) => Condition::DestinationElsewhere(*sense),
            // Nobody knows what options a connection's first packet had; those that ask are let through by none.
            Match::Detour(_) => Condition::Never,
            Match::SourceLocal => Condition::SourceLocal,
        }
    }

    fn statement(&mut self, statement: &nft::Statement) -> Statement {
        match statement {
            // Where others translate, policy has been asked.
            nft::Statement::Accept
            | nft::Statement::Snat(_)
            | nft::Statement::SnatPorts(..)
            | nft::Statement::Masquerade
            | nft::Statement::MasqueradePorts(_)
            | nft::Statement::Dnat(..) => Statement::Accept,
            nft::Statement::Drop | nft::Statement::LogAndDrop(_) => Statement::Drop,
            nft::Statement::Return => Statement::Return,
            nft::Statement::Jump(chain) => Statement::Jump(self.chains.hold(chain)),
            nft::Statement::Goto(chain) => Statement::Goto(self.chains.hold(chain)),
            nft::Statement::InputVerdict(map) => Statement::InputVerdict(self.sets.hold(map)),
            nft::Statement::OutputVerdict(map) => Statement::OutputVerdict(self.sets.hold(map)),
            nft::Statement::AcceptUntracked => Statement::Untrack,
            nft::Statement::SetMark { mask, value } => Statement::SetMark(*mask, *value),
            nft::Statement::Log(_) | nft::Statement::Continue => Statement::Continue,
        }
    }
}

impl Condition {
    /// Returns whether it searches a set, which may be large.
    const fn searches(&self) -> bool {
        self.set().is_some()
    }

    /// Returns the set that it looks into.
    const fn set(&self) -> Option<u32> {
        match self {
            Self::IifSet(_, set)
            | Self::OifSet(_, set)
            | Self::Address(_, _, _, set)
            | Self::SourceOnInterface(_, _, set)
            | Self::PortSet(_, _, set)
            | Self::AddressPort(_, _, _, set)
            | Self::CtOriginalDestination(_, _, set) => Some(*set),
            Self::Iif(..)
            | Self::IifPrefix(..)
            | Self::Oif(..)
            | Self::OifPrefix(..)
            | Self::Family(_)
            | Self::Net(..)
            | Self::Protocol(..)
            | Self::Icmp(..)
            | Self::Port(..)
            | Self::Mark(..)
            | Self::CtMark(..)
            | Self::CtState(_)
            | Self::CtDnat
            | Self::SourceLocal
            | Self::DestinationLocal
            | Self::DestinationElsewhere(_)
            | Self::Never => None,
        }
    }
}
