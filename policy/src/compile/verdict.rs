//! Chains of policies and profiles: their rules, in order, each with where it was written.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Kind, ObjectKey,
    constant::{ADMITTED_MARK, PASS_MARK},
    nft::{Chain, ChainKey, Match, Nflog, NftFamily, Rule, Sense, Statement},
    policy::{self, Action, Direction, Policy, Profile, Stage},
};

use super::{
    Options, Refusal, Scene,
    family::Families,
    name,
    rule::alternatives,
    set::{Naming, Sets},
};

/// Where a packet goes on that host policy lets in before normal policy is asked.
const ADMIT: &str = "admit";

/// The same for a packet that is not to be tracked.
const ADMIT_UNTRACKED: &str = "admit_untracked";

/// The groups of nfnetlink_log, as Felix has them: for what comes to an endpoint, and for what it sends.
const INGRESS_LOG: u16 = 1;
const EGRESS_LOG: u16 = 2;

/// The chains of policies and profiles that have been asked for.
pub(super) struct Verdicts<'a> {
    scene: &'a Scene,
    known: Families,
    sets: Sets<'a>,
    /// By name, each once.
    chains: BTreeMap<String, Vec<Rule>>,
    /// What could not be compiled, and denies, with the first direction in which it cannot.
    refused: BTreeMap<ObjectKey, (Direction, Refusal)>,
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
    /// The families of which anybody is there.
    known: Families,
    options: &'a Options,
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

/// Whose rules a chain holds.
#[derive(Clone, Copy)]
pub(crate) enum Author<'a> {
    /// A policy's.
    Policy(&'a Policy),
    /// A profile's.
    Profile(&'a Profile),
}

impl<'a> Author<'a> {
    /// Returns the object.
    pub(crate) fn key(self) -> ObjectKey {
        match self {
            Self::Policy(policy) => policy.key.clone(),
            Self::Profile(profile) => ObjectKey::cluster(Kind::Profile, &profile.name),
        }
    }

    /// Returns the name of its chain of one direction.
    pub(crate) fn chain(self, direction: Direction) -> String {
        match self {
            Self::Policy(policy) => name::of_object("policy", direction, &name::path(&policy.key)),
            Self::Profile(profile) => name::of_object("profile", direction, &profile.name),
        }
    }

    /// Returns the rules of its chain, where of the families `known` anybody is there; what cannot be compiled denies,
    /// and says why.
    pub(crate) fn write(
        self,
        direction: Direction,
        known: Families,
        options: &Options,
        sets: &mut Naming<'_>,
    ) -> (Vec<Rule>, Option<Refusal>) {
        let object = match self {
            Self::Policy(policy) => policy.key.to_string(),
            Self::Profile(profile) => format!("Profile {}", profile.name),
        };
        let writing = Writing {
            object: &object,
            direction,
            allow: self.allow(),
            pass: match self {
                Self::Policy(_) => Pass::Mark,
                Self::Profile(_) => Pass::Return,
            },
            known,
            options,
        };
        match writing.rules(self.rules(direction), sets) {
            Ok(rules) => (rules, None),
            Err(refusal) => {
                let comment = name::comment(&object, "cannot be compiled");
                (vec![denial(options, direction, comment)], Some(refusal))
            }
        }
    }

    fn rules(self, direction: Direction) -> &'a [policy::Rule] {
        match self {
            Self::Policy(policy) => policy.rules(direction),
            Self::Profile(profile) => profile.rules(direction),
        }
    }

    const fn allow(self) -> Allow {
        match self {
            Self::Profile(_) => Allow::Accept,
            Self::Policy(policy) => match policy.stage {
                Stage::Normal => Allow::Accept,
                Stage::PreDnat => Allow::Admit,
                Stage::Untracked => Allow::AdmitUntracked,
            },
        }
    }
}

impl<'a> Verdicts<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            known: Families::of(scene),
            sets: Sets::new(scene),
            chains: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Adds an author's chain, once.
    pub(super) fn add(&mut self, author: Author<'_>, direction: Direction) {
        let chain = author.chain(direction);
        if self.chains.contains_key(&chain) {
            return;
        }
        let options = &self.scene.options;
        let mut naming = |meaning| self.sets.name(meaning);
        let (rules, refusal) = author.write(direction, self.known, options, &mut naming);
        if let Some(refusal) = refusal {
            let known = self.refused.entry(author.key());
            known
                .and_modify(|known| {
                    if direction < known.0 {
                        *known = (direction, refusal.clone());
                    }
                })
                .or_insert((direction, refusal));
        }
        self.chains.insert(chain, rules);
    }

    /// Returns every chain as a row.
    pub(super) fn into_rows(
        self,
    ) -> (
        BTreeMap<ChainKey, Chain>,
        Sets<'a>,
        BTreeMap<ObjectKey, Refusal>,
    ) {
        let rules = self.chains.values().flatten();
        let admissions: BTreeSet<Admission> = rules.filter_map(Admission::of).collect();
        let admissions = admissions.into_iter().map(Admission::chain);
        let chains = self.chains.into_iter().chain(admissions);
        let rows = chains
            .map(|(name, rules)| {
                (
                    key(&name),
                    Chain {
                        hook: None,
                        rules: rules.into(),
                    },
                )
            })
            .collect();
        let refused = self.refused.into_iter();

        (
            rows,
            self.sets,
            refused.map(|(key, (_, refusal))| (key, refusal)).collect(),
        )
    }
}

impl Writing<'_> {
    fn rules(&self, rules: &[policy::Rule], sets: &mut Naming<'_>) -> Result<Vec<Rule>, Refusal> {
        let most = self.options.limits.rules;
        let passes = rules.iter().any(|rule| rule.action == Action::Pass);
        let mut found = Vec::new();
        if passes && matches!(self.pass, Pass::Mark) {
            found.push(clear(PASS_MARK, "nobody has said Pass yet"));
        }
        for rule in rules {
            let place = format!("{} {}", name::long_word(self.direction), rule.index);
            let comment = name::comment(self.object, &place);
            for conditions in alternatives(rule, self.known, sets)? {
                found.extend(self.outcome(rule.action, conditions, &comment));
            }
            if found.len() > most {
                return Err(Refusal::TooManyRules { most });
            }
        }

        Ok(found)
    }

    /// Returns the rules that do what an action means.
    fn outcome(&self, action: Action, conditions: Vec<Match>, comment: &str) -> Vec<Rule> {
        let statement = match action {
            Action::Allow => match self.allow {
                Allow::Accept => Statement::Accept,
                Allow::Admit => Statement::Goto(ADMIT.into()),
                Allow::AdmitUntracked => Statement::Goto(ADMIT_UNTRACKED.into()),
            },
            Action::Deny => drop(self.options, self.direction, comment),
            Action::Log => Statement::Log(nflog(self.direction, comment)),
            Action::Pass => {
                let mark = counted(conditions.clone(), set(PASS_MARK), comment.to_owned());
                let end = Rule {
                    counter: false,
                    ..counted(conditions, Statement::Return, comment.to_owned())
                };

                return match self.pass {
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
}

/// `Allow` before normal policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Admission {
    /// Of a packet with a connection.
    Tracked,
    /// Of a packet that is to have none.
    Untracked,
}

impl Admission {
    /// Returns to which admission a rule leads, if to one.
    pub(crate) fn of(rule: &Rule) -> Option<Self> {
        let Statement::Goto(chain) = &rule.statement else {
            return None;
        };
        match chain.as_str() {
            ADMIT => Some(Self::Tracked),
            ADMIT_UNTRACKED => Some(Self::Untracked),
            _ => None,
        }
    }

    /// Returns its chain.
    pub(crate) fn chain(self) -> (String, Vec<Rule>) {
        let (chain, statement) = match self {
            Self::Tracked => (ADMIT, Statement::Accept),
            Self::Untracked => (ADMIT_UNTRACKED, Statement::AcceptUntracked),
        };
        let mark = plain(
            Vec::new(),
            set(ADMITTED_MARK),
            "spared the host's normal policy",
        );
        let end = plain(Vec::new(), statement, "let in");

        (chain.to_owned(), vec![mark, end])
    }
}

/// Returns the rule that drops what gets to it, and says so where that is wanted.
pub(super) fn denial(options: &Options, direction: Direction, comment: String) -> Rule {
    counted(Vec::new(), drop(options, direction, &comment), comment)
}

fn drop(options: &Options, direction: Direction, comment: &str) -> Statement {
    match options.tells_denied {
        true => Statement::LogAndDrop(nflog(direction, comment)),
        false => Statement::Drop,
    }
}

/// Returns the key of a chain of ours.
pub(crate) fn key(name: &str) -> ChainKey {
    ChainKey {
        table: NftFamily::Inet,
        name: name.into(),
    }
}

/// Returns a rule that counts.
pub(super) fn counted(matches: Vec<Match>, statement: Statement, comment: String) -> Rule {
    Rule {
        matches,
        counter: true,
        statement,
        comment: comment.into(),
    }
}

/// Returns a rule that does not count.
pub(super) fn plain(matches: Vec<Match>, statement: Statement, comment: &str) -> Rule {
    Rule {
        matches,
        counter: false,
        statement,
        comment: comment.into(),
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

fn nflog(direction: Direction, comment: &str) -> Nflog {
    Nflog {
        group: match direction {
            Direction::Ingress => INGRESS_LOG,
            Direction::Egress => EGRESS_LOG,
        },
        prefix: comment.into(),
    }
}
