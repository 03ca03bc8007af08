//! Would policy still allow a connection that is there? Asked of the rows that the kernel has, fast enough for every
//! connection of a machine after every change.
//!
//! ```text
//! plan's rows ──change by change──▶ Judge: rules with numbers for names, sets that are searched, not walked
//!                                     │
//! connection, where it came from ─────┴──▶ Allow, Deny: what its first packet would meet now
//!             and goes to
//! ```
//!
//! A connection is what its first packet was: that packet, as translated, is led through policy's base chains anew,
//! as one that opens a connection. Whether the answers would be allowed by themselves does not matter: they were
//! never asked about.
//!
//! **Invariants:** no I/O, no clock. It knows nothing of policies, only rows; it shares nothing with the compiler but
//! the names of the base chains.

mod rule;
mod set;
mod slot;
mod walk;

use model::{
    InterfaceName,
    nft::{Chain, ChainKey, Element, HookPoint, Name, NftFamily, Policy, SetKey, Verdict as Named},
};

use self::{rule::Rule, set::Content, slot::Slots};
use crate::{Verdict, packet::Header};

/// The base chains in which policy is asked; others of our table guard or translate.
const BASE_CHAINS: [&str; 12] = [
    "from_pod",
    "host_before_nat",
    "host_forward_in",
    "host_forward_out",
    "host_in",
    "host_out",
    "host_to_pod",
    "host_translated",
    "host_untracked_in",
    "host_untracked_out",
    "pod_to_host",
    "to_pod",
];

/// Base chains that ask about the node's own interfaces: without them, only pods' interfaces matter.
const HOST_CHAINS: [&str; 3] = ["host_in", "host_out", "host_forward_in"];

/// Rows of policy, in the form in which connections are judged.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    chains: Slots<Vec<Rule>>,
    sets: Slots<Content>,
    /// Sorted as packets meet them.
    bases: Vec<Base>,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    point: HookPoint,
    priority: i32,
    name: String,
    chain: u32,
    /// Whether it drops what no rule decided.
    drops: bool,
}

/// A connection, as its first packet was on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Where the packet came in.
    pub from: Station<'a>,
    /// Where it went out, behind translation.
    pub to: Station<'a>,
    /// What it said when it came in.
    pub before: Header,
    /// What it said behind destination NAT, before source NAT.
    pub header: Header,
    /// Whether its destination was translated.
    pub translated: bool,
}

/// Where on a machine a packet comes from, or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station<'a> {
    /// The machine itself.
    Host,
    /// One of its interfaces.
    Interface(&'a InterfaceName),
    /// An interface that is no pod's, whichever it is.
    Elsewhere,
}

impl Judge {
    /// Knows no row, and allows everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a chain of the plan; `None`: it is gone.
    pub fn set_chain(&mut self, key: &ChainKey, chain: Option<&Chain>) {
        if key.table != NftFamily::Inet {
            return;
        }
        self.bases.retain(|base| key.name != base.name);
        let Some(chain) = chain else {
            for rule in self.chains.undefine(&key.name).unwrap_or_default() {
                self.release(&rule);
            }
            return;
        };

        let rules = chain.rules.iter().map(|rule| self.compile(rule)).collect();
        let (id, former) = self.chains.define(&key.name, rules);
        for rule in former.unwrap_or_default() {
            self.release(&rule);
        }
        if let Some(hook) = &chain.hook
            && BASE_CHAINS.contains(&key.name.as_str())
        {
            self.bases.push(Base {
                point: hook.point.clone(),
                priority: hook.priority,
                name: key.name.to_string(),
                chain: id,
                drops: hook.policy == Policy::Drop,
            });
            self.bases.sort_by_key(|base| base.priority);
        }
    }

    /// Takes in an element of a set of the plan, or that it is gone.
    pub fn set_element(&mut self, key: &SetKey, element: &Element, is_there: bool) {
        if key.table != NftFamily::Inet {
            return;
        }
        let leads_to = match element {
            Element::InterfaceVerdict(_, verdict) => chain_of(verdict),
            Element::Net(_)
            | Element::Address(_)
            | Element::Interface(_)
            | Element::InterfaceAddress(..)
            | Element::Ports(..)
            | Element::AddressPort(..) => None,
        };
        if is_there {
            let target = leads_to.map(|chain| self.chains.hold(chain));
            let set = self.sets.hold(&key.name);
            if !self.sets.get_or_default(set).insert(element, target) {
                self.sets.release(set);
                self.let_go(target);
            }
        } else if let Some(set) = self.sets.find(&key.name) {
            let target = leads_to.and_then(|chain| self.chains.find(chain));
            if self.sets.get_or_default(set).remove(element, target) {
                self.sets.release(set);
                self.let_go(target);
            }
        }
    }

    /// Takes less memory, after much has come in.
    pub fn compact(&mut self) {
        self.sets.values_mut().for_each(Content::compact);
    }

    /// Returns whether somebody asks about the node's own interfaces; otherwise it is enough to tell pods' interfaces
    /// from all others.
    pub fn asks_about_hosts(&self) -> bool {
        let mut bases = self.bases.iter();

        bases.any(|base| HOST_CHAINS.contains(&base.name.as_str()))
    }

    /// Returns whether a connection may go on.
    pub fn judge(&self, connection: &Connection<'_>) -> Verdict {
        walk::judge(self, connection)
    }

    fn let_go(&mut self, chain: Option<u32>) {
        if let Some(chain) = chain {
            self.chains.release(chain);
        }
    }
}

/// Returns the chain that a map's verdict leads to.
fn chain_of(verdict: &Named) -> Option<&Name> {
    match verdict {
        Named::Jump(chain) | Named::Goto(chain) => Some(chain),
        Named::Accept | Named::Drop => None,
    }
}

#[cfg(test)]
mod tests;
