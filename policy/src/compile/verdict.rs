//! Chains of policies and profiles: their rules, in order, each with where it was written.

use std::collections::BTreeMap;

use model::{
    ObjectKey,
    constant::{ADMITTED_MARK, PASS_MARK},
    nft::{Chain, ChainKey, Match, Nflog, NftFamily, Rule, Sense, Statement},
    policy::{self, Action, Direction, Policy, Profile, Stage},
};

use super::{Refusal, Scene, name, option::LogGroups, rule::alternatives, set::Sets};

/// Where a packet goes on that host policy lets in before normal policy is asked.
const ADMIT: &str = "admit";

/// The same for a packet that is not to be tracked.
const ADMIT_UNTRACKED: &str = "admit_untracked";

/// The chains of policies and profiles that have been asked for.
pub(super) struct Verdicts<'a> {
    scene: &'a Scene,
    pub(super) sets: Sets<'a>,
    /// By name, each once.
    pub(super) chains: BTreeMap<String, Vec<Rule>>,
    /// What could not be compiled, and denies.
    pub(super) refused: BTreeMap<ObjectKey, Refusal>,
}

/// What rules are written for.
#[derive(Clone, Copy)]
struct Writing<'a> {
    /// What comments call the object.
    object: &'a str,
    direction: Direction,
    /// What `Allow` is.
    allow: Allow,
    /// What `Pass` is.
    pass: Pass,
}

/// What `Allow` is.
#[derive(Clone, Copy)]
enum Allow {
    /// The base chain's end.
    Accept,
    /// Also the end of what the host's normal policy would ask.
    Admit,
    /// The same, without a connection.
    AdmitUntracked,
}

/// What `Pass` is.
#[derive(Clone, Copy)]
enum Pass {
    /// A mark, which the group's chain looks at.
    Mark,
    /// The end of the chain: no tier is left.
    Return,
}

impl<'a> Verdicts<'a> {
    pub(super) const fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            sets: Sets::new(scene),
            chains: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Returns the name of a policy's chain of one direction.
    pub(super) fn policy(&mut self, policy: &Policy, direction: Direction) -> String {
        let chain = name::of_object("policy", direction, &name::path(&policy.key));
        if self.chains.contains_key(&chain) {
            return chain;
        }
        let object = policy.key.to_string();
        let writing = Writing {
            object: &object,
            direction,
            allow: match policy.stage {
                Stage::Normal => Allow::Accept,
                Stage::PreDnat => Allow::Admit,
                Stage::Untracked => Allow::AdmitUntracked,
            },
            pass: Pass::Mark,
        };
        let rules = match self.rules(policy.rules(direction), &writing) {
            Ok(rules) => rules,
            Err(refusal) => {
                let rule = self.denial(direction, name::comment(&object, "cannot be compiled"));
                self.refused.insert(policy.key.clone(), refusal);
                vec![rule]
            }
        };
        self.chains.insert(chain.clone(), rules);

        chain
    }

    /// Returns the name of a profile's chain of one direction.
    pub(super) fn profile(&mut self, profile: &Profile, direction: Direction) -> String {
        let chain = name::of_object("profile", direction, &profile.name);
        if self.chains.contains_key(&chain) {
            return chain;
        }
        let object = format!("Profile {}", profile.name);
        let writing = Writing {
            object: &object,
            direction,
            allow: Allow::Accept,
            pass: Pass::Return,
        };
        let rules = match self.rules(profile.rules(direction), &writing) {
            Ok(rules) => rules,
            Err(refusal) => {
                let rule = self.denial(direction, name::comment(&object, "cannot be compiled"));
                let key = ObjectKey::cluster(model::Kind::Profile, &profile.name);
                self.refused.insert(key, refusal);
                vec![rule]
            }
        };
        self.chains.insert(chain.clone(), rules);

        chain
    }

    /// Returns the rule that drops what gets to it, and says so where that is wanted.
    pub(super) fn denial(&self, direction: Direction, comment: String) -> Rule {
        counted(Vec::new(), self.drop(direction, &comment), comment)
    }

    /// Adds a chain that only jumps lead into.
    pub(super) fn add(&mut self, name: String, rules: Vec<Rule>) {
        self.chains.insert(name, rules);
    }

    /// Returns every chain as a row.
    pub(super) fn into_rows(
        mut self,
    ) -> (
        BTreeMap<ChainKey, Chain>,
        Sets<'a>,
        BTreeMap<ObjectKey, Refusal>,
    ) {
        self.add_admissions();
        let rows = self
            .chains
            .into_iter()
            .map(|(name, rules)| (key(&name), Chain { hook: None, rules }))
            .collect();

        (rows, self.sets, self.refused)
    }

    fn rules(
        &mut self,
        rules: &[policy::Rule],
        writing: &Writing<'_>,
    ) -> Result<Vec<Rule>, Refusal> {
        let most = self.scene.options.limits.rules;
        let passes = rules.iter().any(|rule| rule.action == Action::Pass);
        let mut found = Vec::new();
        if passes && matches!(writing.pass, Pass::Mark) {
            found.push(clear(PASS_MARK, "nobody has said Pass yet"));
        }
        for rule in rules {
            let place = format!("{} {}", name::long_word(writing.direction), rule.index);
            let comment = name::comment(writing.object, &place);
            for conditions in alternatives(rule, &mut self.sets)? {
                found.extend(self.outcome(rule.action, conditions, &comment, writing));
            }
            if found.len() > most {
                return Err(Refusal::TooManyRules { most });
            }
        }

        Ok(found)
    }

    /// Returns the rules that do what an action means.
    fn outcome(
        &self,
        action: Action,
        conditions: Vec<Match>,
        comment: &str,
        writing: &Writing<'_>,
    ) -> Vec<Rule> {
        let statement = match action {
            Action::Allow => match writing.allow {
                Allow::Accept => Statement::Accept,
                Allow::Admit => Statement::Goto(ADMIT.to_owned()),
                Allow::AdmitUntracked => Statement::Goto(ADMIT_UNTRACKED.to_owned()),
            },
            Action::Deny => self.drop(writing.direction, comment),
            Action::Log => self.log(writing.direction, comment),
            Action::Pass => {
                let mark = counted(conditions.clone(), set(PASS_MARK), comment.to_owned());
                let end = Rule {
                    counter: false,
                    ..counted(conditions, Statement::Return, comment.to_owned())
                };

                return match writing.pass {
                    Pass::Mark => vec![mark, end],
                    Pass::Return => vec![Rule {
                        counter: true,
                        ..end
                    }],
                };
            }
        };

        vec![counted(conditions, statement, comment.to_owned())]
    }

    fn drop(&self, direction: Direction, comment: &str) -> Statement {
        match self.scene.options.log {
            Some(groups) => Statement::LogAndDrop(nflog(groups, direction, comment)),
            None => Statement::Drop,
        }
    }

    /// A `Log` rule counts in any case.
    fn log(&self, direction: Direction, comment: &str) -> Statement {
        match self.scene.options.log {
            Some(groups) => Statement::Log(nflog(groups, direction, comment)),
            None => Statement::Continue,
        }
    }

    /// Adds the chains of `Allow` before normal policy, where a rule leads there.
    fn add_admissions(&mut self) {
        let leads_to = |chain: &str| {
            self.chains
                .values()
                .flatten()
                .any(|rule| matches!(&rule.statement, Statement::Goto(to) if to == chain))
        };
        let admissions = [
            (ADMIT, Statement::Accept),
            (ADMIT_UNTRACKED, Statement::AcceptUntracked),
        ];
        let wanted: Vec<_> = admissions
            .into_iter()
            .filter(|(chain, _)| leads_to(chain))
            .collect();
        for (chain, statement) in wanted {
            let mark = Rule {
                counter: false,
                ..counted(
                    Vec::new(),
                    set(ADMITTED_MARK),
                    "spared the host's normal policy".into(),
                )
            };
            let end = Rule {
                counter: false,
                ..counted(Vec::new(), statement, "let in".into())
            };
            self.chains.insert(chain.to_owned(), vec![mark, end]);
        }
    }
}

/// Returns the key of a chain of ours.
pub(super) fn key(name: &str) -> ChainKey {
    ChainKey {
        table: NftFamily::Inet,
        name: name.to_owned(),
    }
}

/// Returns a rule that counts.
pub(super) fn counted(matches: Vec<Match>, statement: Statement, comment: String) -> Rule {
    Rule {
        matches,
        counter: true,
        statement,
        comment,
    }
}

/// Returns a rule that does not count.
pub(super) fn plain(matches: Vec<Match>, statement: Statement, comment: &str) -> Rule {
    Rule {
        matches,
        counter: false,
        statement,
        comment: comment.to_owned(),
    }
}

/// Returns the condition that a bit of the packet's mark is set.
pub(super) const fn marked(bit: u32) -> Match {
    Match::Mark {
        sense: Sense::Is,
        mask: bit,
        value: bit,
    }
}

/// Returns the rule that clears a bit of the packet's mark.
pub(super) fn clear(bit: u32, comment: &str) -> Rule {
    let statement = Statement::SetMark {
        mask: bit,
        value: 0,
    };

    plain(Vec::new(), statement, comment)
}

const fn set(bit: u32) -> Statement {
    Statement::SetMark {
        mask: bit,
        value: bit,
    }
}

fn nflog(groups: LogGroups, direction: Direction, comment: &str) -> Nflog {
    Nflog {
        group: match direction {
            Direction::Ingress => groups.ingress,
            Direction::Egress => groups.egress,
        },
        prefix: comment.to_owned(),
    }
}
