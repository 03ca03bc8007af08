//! Can a change of rows cut a connection that is there? Most changes of a large cluster only allow more: a pod
//! elsewhere comes, a rule is added; after them nobody's connection has to be looked at.
//!
//! **Sound, not complete.** [`Effect::Widens`] is a proof, in two steps. First the chains: each is, apart from rules
//! inserted that accept and rules gone that drop, what it was: a packet that was accepted is accepted still, whatever
//! is in the sets. Then the elements, with the chains as they are now: a set that grew is only one that accepting rules
//! ask for or that dropping rules ask not to have it, and the other way round for one that shrank. Every other change
//! may cut. So may all where host endpoints are: their chains leave a mark for one another.
//!
//! `tests/ruleset/tests/judge.rs` compares with [`Judge`](crate::Judge) asked before and behind random changes.

use std::{collections::BTreeMap, sync::Arc};

use model::nft::{
    Chain, ChainKey, Element, Match, Name, NftFamily, Rule, Sense, SetKey, Statement,
};

/// Chains of host endpoints begin so; of these, one is of pods alone.
const OF_HOSTS: &str = "host_";
const OF_PODS: &str = "host_to_pod";

/// The longest that two versions of a chain are laid side by side, as a product of their lengths.
const LARGEST: usize = 40_000;

/// What a change can do to connections that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// What was allowed is allowed still.
    Widens,
    /// Somebody may be allowed less.
    MayCut,
}

/// Follows the plan's chains, and tells of each change what it can do.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    chains: BTreeMap<Name, Chain>,
    uses: BTreeMap<Name, Uses>,
}

/// How many rules ask for a set, by what becomes of packets where the set grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// More are accepted, or fewer dropped.
    allow: u32,
    /// More are dropped, or fewer accepted.
    deny: u32,
    /// It cannot be told.
    unclear: u32,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Accepts,
    Drops,
    Nothing,
    Other,
}

impl Effects {
    /// Knows no chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what one transaction brought, and tells what that can do: chains with their rows, or `None` where they
    /// are gone, and elements with whether they are there.
    pub fn take_in<'a>(
        &mut self,
        chains: impl Iterator<Item = (&'a ChainKey, Option<&'a Chain>)>,
        elements: impl Iterator<Item = (&'a SetKey, &'a Element, bool)>,
    ) -> Effect {
        let concerned_hosts = self.concerns_hosts();
        let mut effect = Effect::Widens;
        for (key, chain) in chains.filter(|(key, _)| key.table == NftFamily::Inet) {
            effect = effect.max(self.take_chain(key, chain));
        }
        for (set, element, is_there) in elements.filter(|(set, ..)| set.table == NftFamily::Inet) {
            effect = effect.max(self.element(set, element, is_there));
        }

        if concerned_hosts || self.concerns_hosts() {
            Effect::MayCut
        } else {
            effect
        }
    }

    fn concerns_hosts(&self) -> bool {
        let of_hosts = self.chains.range(Name::from(OF_HOSTS)..);
        let mut names = of_hosts.map(|(name, _)| name.as_str());

        names
            .by_ref()
            .take_while(|name| name.starts_with(OF_HOSTS))
            .any(|name| name != OF_PODS)
    }

    fn take_chain(&mut self, key: &ChainKey, chain: Option<&Chain>) -> Effect {
        let former = match chain {
            Some(chain) => {
                self.note(&chain.rules, |count| *count = count.saturating_add(1));
                self.chains.insert(key.name.clone(), chain.clone())
            }
            None => self.chains.remove(&key.name),
        };
        if let Some(former) = &former {
            self.note(&former.rules, |count| *count = count.saturating_sub(1));
        }

        match (former, chain) {
            (None, None) => Effect::Widens,
            // Nobody comes by until another chain leads there.
            (None, Some(new)) if new.hook.is_none() => Effect::Widens,
            (Some(old), None) if old.hook.is_none() => Effect::Widens,
            (None, Some(_)) | (Some(_), None) => Effect::MayCut,
            (Some(old), Some(new)) if old.hook == new.hook => compare(&old.rules, &new.rules),
            (Some(_), Some(_)) => Effect::MayCut,
        }
    }

    fn element(&self, set: &SetKey, element: &Element, is_there: bool) -> Effect {
        if matches!(element, Element::InterfaceVerdict(..)) {
            return Effect::MayCut;
        }
        let uses = self.uses.get(&set.name).copied().unwrap_or_default();
        let harmful = if is_there { uses.deny } else { uses.allow };

        if harmful + uses.unclear > 0 {
            Effect::MayCut
        } else {
            Effect::Widens
        }
    }

    /// Counts the sets of some rules, up or down.
    fn note(&mut self, rules: &Arc<[Rule]>, count: impl Fn(&mut u32)) {
        for rule in rules.iter() {
            let deed = deed(&rule.statement);
            for (sense, name) in rule.matches.iter().filter_map(Match::set) {
                let uses = self.uses.entry(name.clone()).or_default();
                count(match (deed, sense) {
                    (Deed::Accepts, Sense::Is) | (Deed::Drops, Sense::Not) => &mut uses.allow,
                    (Deed::Accepts, Sense::Not) | (Deed::Drops, Sense::Is) => &mut uses.deny,
                    (Deed::Nothing, _) => continue,
                    (Deed::Other, _) => &mut uses.unclear,
                });
                if *uses == Uses::default() {
                    self.uses.remove(name);
                }
            }
        }
    }
}

/// Lays two versions of a chain side by side: what is only in the new one must accept, what is only in the old one must
/// drop.
fn compare(old: &[Rule], new: &[Rule]) -> Effect {
    let same = old.iter().zip(new).take_while(|(a, b)| is_same(a, b));
    let same = same.count();
    let (old, new) = (&old[same..], &new[same..]);
    let same = old.iter().rev().zip(new.iter().rev());
    let same = same.take_while(|(a, b)| is_same(a, b)).count();
    let (old, new) = (&old[..old.len() - same], &new[..new.len() - same]);
    if old.len().saturating_mul(new.len()) > LARGEST {
        return Effect::MayCut;
    }

    // Which rows of the new one can lie beside the first so many of the old one.
    let mut reached = vec![false; new.len() + 1];
    reached[0] = true;
    for i in 0..=old.len() {
        let mut next = vec![false; new.len() + 1];
        for j in 0..=new.len() {
            if !reached[j] {
                continue;
            }
            if j < new.len() && matches!(deed(&new[j].statement), Deed::Accepts | Deed::Nothing) {
                reached[j + 1] = true;
            }
            let Some(rule) = old.get(i) else {
                continue;
            };
            next[j] |= matches!(deed(&rule.statement), Deed::Drops | Deed::Nothing);
            if j < new.len() && is_same(rule, &new[j]) {
                next[j + 1] = true;
            }
        }
        if i < old.len() {
            reached = next;
        }
    }

    if reached[new.len()] {
        Effect::Widens
    } else {
        Effect::MayCut
    }
}

/// Returns whether two rules do the same, whatever they count and say.
fn is_same(one: &Rule, other: &Rule) -> bool {
    one.matches == other.matches && one.statement == other.statement
}

const fn deed(statement: &Statement) -> Deed {
    match statement {
        Statement::Accept => Deed::Accepts,
        Statement::Drop | Statement::LogAndDrop(_) => Deed::Drops,
        Statement::Log(_) | Statement::Continue => Deed::Nothing,
        Statement::Return
        | Statement::Jump(_)
        | Statement::Goto(_)
        | Statement::InputVerdict(_)
        | Statement::OutputVerdict(_)
        | Statement::AcceptUntracked
        | Statement::Snat(_)
        | Statement::SnatPorts(..)
        | Statement::Masquerade
        | Statement::MasqueradePorts(_)
        | Statement::Dnat(..)
        | Statement::SetMark { .. } => Deed::Other,
    }
}

#[cfg(test)]
mod tests {
    use model::{Family, nft::Verdict};

    use super::*;

    fn rule(matches: Vec<Match>, statement: Statement) -> Rule {
        Rule {
            matches,
            counter: false,
            statement,
            comment: "of a test".into(),
        }
    }

    fn from(set: &str, sense: Sense, statement: Statement) -> Rule {
        rule(
            vec![Match::Source(sense, Family::V4, set.into())],
            statement,
        )
    }

    fn key(name: &str) -> ChainKey {
        ChainKey {
            table: NftFamily::Inet,
            name: name.into(),
        }
    }

    fn become_(effects: &mut Effects, name: &str, rules: &[Rule]) -> Effect {
        let chain = Chain {
            hook: None,
            rules: rules.to_vec().into(),
        };
        effects.take_in([(&key(name), Some(&chain))].into_iter(), [].into_iter())
    }

    fn element(effects: &mut Effects, set: &str, is_there: bool) -> Effect {
        let set = SetKey {
            table: NftFamily::Inet,
            name: set.into(),
        };
        let element = Element::Address([192, 0, 2, 1].into());
        effects.take_in([].into_iter(), [(&set, &element, is_there)].into_iter())
    }

    #[test]
    fn a_set_widens_what_accepts_it_and_narrows_what_drops_it() {
        let mut effects = Effects::new();
        let rules = [
            from("taken", Sense::Is, Statement::Accept),
            from("refused", Sense::Is, Statement::Drop),
            from("spared", Sense::Not, Statement::Drop),
            from("led", Sense::Is, Statement::Jump("on".into())),
        ];
        become_(&mut effects, "policy", &rules);

        let of = |set: &str, effects: &mut Effects| {
            [true, false].map(|is_there| element(effects, set, is_there))
        };
        use Effect::{MayCut, Widens};
        assert_eq!(of("taken", &mut effects), [Widens, MayCut]);
        assert_eq!(of("refused", &mut effects), [MayCut, Widens]);
        assert_eq!(of("spared", &mut effects), [Widens, MayCut]);
        assert_eq!(of("led", &mut effects), [MayCut, MayCut]);
        assert_eq!(of("asked by nobody", &mut effects), [Widens, Widens]);

        become_(&mut effects, "policy", &[]);
        assert_eq!(effects.uses, [].into());
    }

    #[test]
    fn rules_that_accept_may_come_and_rules_that_drop_may_go() {
        let accept = |set| from(set, Sense::Is, Statement::Accept);
        let drop = |set| from(set, Sense::Is, Statement::Drop);
        let versions = [
            vec![],
            vec![drop("a"), drop("b"), accept("c")],
            vec![accept("d"), drop("a"), drop("b"), accept("c")],
            vec![accept("d"), drop("b"), accept("e"), accept("c")],
        ];
        for (i, old) in versions.iter().enumerate().skip(1) {
            for (j, new) in versions.iter().enumerate().skip(1) {
                let wanted = if i <= j {
                    Effect::Widens
                } else {
                    Effect::MayCut
                };
                assert_eq!(compare(old, new), wanted, "{i} {j}");
            }
        }
        assert_eq!(compare(&[accept("a")], &[]), Effect::MayCut);
        assert_eq!(
            compare(&[accept("a"), drop("b")], &[drop("b"), accept("a")]),
            Effect::MayCut
        );
    }

    #[test]
    fn where_hosts_have_policy_every_change_may_cut() {
        let mut effects = Effects::new();
        become_(&mut effects, "host_to_pod", &[]);
        assert_eq!(
            become_(
                &mut effects,
                "host_to_pod",
                &[from("a", Sense::Is, Statement::Accept)]
            ),
            Effect::Widens
        );

        assert_eq!(
            become_(&mut effects, "host_before_nat", &[]),
            Effect::MayCut
        );
        assert_eq!(element(&mut effects, "a", true), Effect::MayCut);
    }

    #[test]
    fn an_interface_that_is_led_elsewhere_may_be_cut() {
        let mut effects = Effects::new();
        let set = SetKey {
            table: NftFamily::Inet,
            name: "by_interface".into(),
        };
        let led = Element::InterfaceVerdict("cali1".parse().unwrap(), Verdict::Accept);

        let effect = effects.take_in([].into_iter(), [(&set, &led, true)].into_iter());

        assert_eq!(effect, Effect::MayCut);
    }
}
