//! Base chains: where packets meet policy, and the one lookup that leads each to its endpoint's chain.
//!
//! Each question has a base chain of its own, so that `accept` answers that question and no other: the packet goes on
//! to the next chain of the hook.

use model::{
    InterfaceName,
    constant::{ADMITTED_MARK, REVOKED_MARK, WORKLOAD_PREFIX},
    nft::{
        Chain, ChainKind, CtState, Element, Hook, HookPoint, Match, NftFamily, Policy, Rule, Sense,
        SetKey, SetKind, Statement, Verdict,
    },
};

use super::{Ruleset, verdict};

/// A base chain in the making.
pub(super) struct Base {
    name: &'static str,
    hook: Option<(HookPoint, i32)>,
    rules: Vec<Rule>,
}

/// What a map says of interfaces.
pub(crate) type Entries = Vec<(InterfaceName, Verdict)>;

impl Base {
    pub(super) const fn new(name: &'static str, point: HookPoint, priority: i32) -> Self {
        Self {
            name,
            hook: Some((point, priority)),
            rules: Vec::new(),
        }
    }

    /// Begins a chain that others lead into.
    pub(super) const fn without_hook(name: &'static str) -> Self {
        Self {
            name,
            hook: None,
            rules: Vec::new(),
        }
    }

    /// Appends a rule.
    pub(super) fn rule(mut self, matches: Vec<Match>, statement: Statement, comment: &str) -> Self {
        self.rules.push(verdict::plain(matches, statement, comment));
        self
    }

    /// Appends a rule that counts.
    pub(super) fn counted(
        mut self,
        matches: Vec<Match>,
        statement: Statement,
        comment: &str,
    ) -> Self {
        let comment = comment.to_owned();
        self.rules
            .push(verdict::counted(matches, statement, comment));
        self
    }

    /// Appends rules.
    pub(super) fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules.extend(rules);
        self
    }

    /// Appends the rules that let pass what was allowed before, and stop both directions of what has been revoked.
    pub(super) fn established(self) -> Self {
        let state = CtState {
            established: true,
            related: true,
            ..CtState::default()
        };
        let stands = Match::CtMark {
            sense: Sense::Is,
            mask: REVOKED_MARK,
            value: 0,
        };

        self.rule(
            vec![Match::CtState(state), stands],
            Statement::Accept,
            "allowed before",
        )
        .counted(
            vec![revoked()],
            Statement::Drop,
            "allowed once, and no longer",
        )
    }

    /// Appends the rule that lets pass what the host's early policy let in.
    pub(super) fn admitted(self, is_possible: bool) -> Self {
        if !is_possible {
            return self;
        }

        self.rule(
            vec![verdict::marked(ADMITTED_MARK)],
            Statement::Accept,
            "spared the host's normal policy",
        )
    }

    /// Appends the lookup of the input interface in a map of the chain's name.
    pub(super) fn by_input(self, entries: Entries, rows: &mut Ruleset) -> Self {
        let map = self.map(entries, rows);

        self.rule(
            Vec::new(),
            Statement::InputVerdict(map.into()),
            "the interface's own",
        )
    }

    /// Appends the lookup of the output interface in a map of the chain's name.
    pub(super) fn by_output(self, entries: Entries, rows: &mut Ruleset) -> Self {
        let map = self.map(entries, rows);

        self.rule(
            Vec::new(),
            Statement::OutputVerdict(map.into()),
            "the interface's own",
        )
    }

    /// Writes the chain.
    pub(super) fn write(self, rows: &mut Ruleset) {
        let hook = self.hook.map(|(point, priority)| Hook {
            point,
            priority,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
        });
        let chain = Chain {
            hook,
            rules: self.rules.into(),
        };
        rows.chains.insert(verdict::key(self.name), chain);
    }

    fn map(&self, entries: Entries, rows: &mut Ruleset) -> String {
        let name = format!("{}_by_interface", self.name);
        let key = SetKey {
            table: NftFamily::Inet,
            name: name.as_str().into(),
        };
        rows.sets.insert(key.clone(), SetKind::InterfaceVerdicts);
        for (interface, verdict) in entries {
            let element = Element::InterfaceVerdict(interface, verdict);
            rows.elements.insert((key.clone(), element));
        }

        name
    }
}

/// Returns the condition that a packet, of either direction, belongs to a connection that policy allowed once and no
/// longer does.
pub(super) const fn revoked() -> Match {
    Match::CtMark {
        sense: Sense::Is,
        mask: REVOKED_MARK,
        value: REVOKED_MARK,
    }
}

/// Returns the condition that a packet comes (or does not come) from a pod of the node.
pub(super) fn from_pod(sense: Sense) -> Match {
    Match::IifPrefix(sense, WORKLOAD_PREFIX.into())
}

/// Returns the condition that a packet goes (or does not go) to a pod of the node.
pub(super) fn to_pod(sense: Sense) -> Match {
    Match::OifPrefix(sense, WORKLOAD_PREFIX.into())
}

/// Returns the condition that a packet belongs to no connection and opens none.
pub(super) fn invalid() -> Match {
    Match::CtState(CtState {
        invalid: true,
        ..CtState::default()
    })
}
