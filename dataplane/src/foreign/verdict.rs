//! What a ruleset makes of a packet of which we know only a part.
//!
//! Three-valued: a condition holds, does not, or is undecided. A rule whose conditions are undecided may
//! or may not match, and both are followed. So *surely dropped* means: on every way through.

use std::{cell::RefCell, collections::BTreeMap};

use super::{
    packet::Packet,
    rule::{REGISTERS, Source, Step, Verdict},
    ruleset::{Members, Table},
};

/// Deepest nesting of chains that the kernel allows (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// What may become of a packet in a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// It may be accepted.
    pub(super) accepted: bool,
    /// It may come out at the chain's end.
    pub(super) passed: bool,
    /// It may be dropped, first by this chain.
    pub(super) dropped: Option<String>,
}

/// Follows packets of one kind through one table.
pub(super) struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    known: RefCell<BTreeMap<&'a str, Fate>>,
}

/// Whether something holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Undecided,
}

/// What registers hold, byte by byte; `None` is not known.
type Registers = [Option<u8>; REGISTERS];

impl Fate {
    /// Anything may happen.
    fn any() -> Self {
        Self {
            accepted: true,
            passed: true,
            dropped: None,
        }
    }

    fn join(&mut self, other: Self) {
        self.accepted |= other.accepted;
        self.passed |= other.passed;
        self.dropped = self.dropped.take().or(other.dropped);
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(table: &'a Table, packet: &'a Packet) -> Self {
        Self {
            table,
            packet,
            known: RefCell::default(),
        }
    }

    /// Returns what may become of the packet in this chain.
    pub(super) fn chain(&self, name: &'a str, depth: usize) -> Fate {
        if let Some(fate) = self.known.borrow().get(name) {
            return fate.clone();
        }
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < DEPTH) else {
            return Fate::any();
        };

        let mut fate = Fate::default();
        let mut goes_on = true;
        for rule in &chain.rules {
            if !goes_on {
                break;
            }
            goes_on = self.rule(name, rule, depth, &mut fate);
        }
        fate.passed |= goes_on;
        self.known.borrow_mut().insert(name, fate.clone());

        fate
    }

    /// Follows one rule; returns whether the packet may get to the next one.
    fn rule(&self, chain: &'a str, steps: &'a [Step], depth: usize, fate: &mut Fate) -> bool {
        let mut registers: Registers = [None; REGISTERS];
        let mut matches = Truth::Yes;
        for step in steps {
            let (truth, verdict) = self.step(step, &mut registers);
            match truth {
                Truth::No => return true,
                Truth::Undecided => matches = Truth::Undecided,
                Truth::Yes => {}
            }
            let Some(verdict) = verdict else { continue };
            let goes_on = self.verdict(chain, verdict, depth, fate);

            return goes_on || matches == Truth::Undecided;
        }

        true
    }

    /// Follows a verdict; returns whether the packet may come back to the chain.
    fn verdict(&self, chain: &'a str, verdict: &'a Verdict, depth: usize, fate: &mut Fate) -> bool {
        match verdict {
            Verdict::Accept => fate.accepted = true,
            Verdict::Drop => {
                fate.dropped.get_or_insert_with(|| chain.to_owned());
            }
            Verdict::Return => fate.passed = true,
            Verdict::Any => fate.join(Fate::any()),
            Verdict::Goto(next) => fate.join(self.chain(next, depth + 1)),
            Verdict::Jump(next) => {
                let mut there = self.chain(next, depth + 1);
                let comes_back = std::mem::take(&mut there.passed);
                fate.join(there);

                return comes_back;
            }
        }

        false
    }

    /// Returns whether a step holds, and its verdict if it has one.
    fn step(&self, step: &'a Step, registers: &mut Registers) -> (Truth, Option<&'a Verdict>) {
        let truth = match step {
            Step::Load { register, source } => {
                self.load(*register, source, registers);
                Truth::Yes
            }
            Step::Mask {
                source,
                target,
                mask,
                xor,
            } => {
                for (at, (mask, xor)) in mask.iter().zip(xor).enumerate() {
                    let byte = registers.get(source + at).copied().flatten();
                    // What is masked away is known whatever it was.
                    let byte = if *mask == 0 { Some(0) } else { byte };
                    if let Some(place) = registers.get_mut(target + at) {
                        *place = byte.map(|byte| byte & mask ^ xor);
                    }
                }
                Truth::Yes
            }
            Step::Equal {
                register,
                bytes,
                sense,
            } => equal(&registers[*register..], bytes).is(*sense),
            Step::Lookup {
                register,
                set,
                sense,
                is_map,
            } => return self.lookup(&registers[*register..], set, *sense, *is_map),
            Step::Verdict(verdict) => return (Truth::Yes, Some(verdict)),
            Step::Undecided => Truth::Undecided,
            Step::Passes => Truth::Yes,
        };

        (truth, None)
    }

    fn load(&self, register: usize, source: &Source, registers: &mut Registers) {
        let bytes = match source {
            Source::Meta(key) => self.packet.meta(*key),
            Source::Ct(key) => self.packet.ct(*key),
            Source::Payload(base, offset, length) => self.packet.payload(*base, *offset, *length),
            Source::Bytes(bytes) => Some(bytes.clone()),
            Source::Unknown => None,
        };
        let bytes = bytes.unwrap_or_default().into_iter().map(Some);
        // Registers are loaded in ascending order: what lies behind is loaded later.
        let filled = bytes.chain(std::iter::repeat(None));
        for (place, byte) in registers[register..].iter_mut().zip(filled) {
            *place = byte;
        }
    }

    fn lookup(
        &self,
        registers: &[Option<u8>],
        set: &str,
        sense: bool,
        is_map: bool,
    ) -> (Truth, Option<&'a Verdict>) {
        let Some(Members { length, verdicts }) = self.table.sets.get(set) else {
            return (Truth::Undecided, is_map.then_some(&Verdict::Any));
        };
        let key: Option<Vec<u8>> = registers.iter().take(*length).copied().collect();

        match (key, is_map) {
            (None, true) if verdicts.is_empty() => (Truth::No, None),
            (None, true) => (Truth::Undecided, Some(&Verdict::Any)),
            (None, false) if verdicts.is_empty() => (Truth::No.is(sense), None),
            (None, false) => (Truth::Undecided, None),
            (Some(key), true) => match verdicts.get(&key) {
                Some(Some(verdict)) => (Truth::Yes, Some(verdict)),
                Some(None) => (Truth::Undecided, Some(&Verdict::Any)),
                None => (Truth::No, None),
            },
            (Some(key), false) if verdicts.contains_key(&key) => (Truth::Yes.is(sense), None),
            (Some(_), false) => (Truth::No.is(sense), None),
        }
    }
}

impl Truth {
    /// Returns whether what was asked holds, where `false` asked for the opposite.
    fn is(self, sense: bool) -> Self {
        match (self, sense) {
            (Self::Yes, false) => Self::No,
            (Self::No, false) => Self::Yes,
            (truth, _) => truth,
        }
    }
}

fn equal(registers: &[Option<u8>], bytes: &[u8]) -> Truth {
    let mut truth = Truth::Yes;
    for (at, byte) in bytes.iter().enumerate() {
        match registers.get(at).copied().flatten() {
            Some(found) if found != *byte => return Truth::No,
            Some(_) => {}
            None => truth = Truth::Undecided,
        }
    }

    truth
}
