//! What stands of ours in other firewalls' extension points.
//!
//! For firewalld see [`Firewalld`]. In docker's chain `DOCKER-USER` stand two rules: packets forwarded to
//! pods pass, and packets from them. They are put behind the rules of others that are there, before the
//! closing `RETURN`, in the shape in which `iptables-nft` writes its own, so that it goes on showing the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use model::{
    Change, Family,
    constant::WORKLOAD_PREFIX,
    firewall::Opening,
    nft::{Match, NftFamily, Rule, Sense, Statement},
};

use super::{
    family_code,
    firewalld::Firewalld,
    rule::{self, Step, Verdict},
};
use crate::{
    Absent, OpenError, Target,
    netlink::{Attributes, Message, Protocol, Socket, flag, text},
    nft::{
        code::{
            CHAIN_NAME, CHAIN_TABLE, DEL_RULE, GET_CHAIN, GET_RULE, NEW_RULE, RULE_CHAIN,
            RULE_HANDLE, RULE_POSITION, RULE_TABLE, RULE_USERDATA,
        },
        ruleset::attributes,
        transaction::{CommitError, Transaction, put_expressions, rule_tag},
        userdata,
    },
};

/// Docker's table and the chain that it leaves to its users.
pub(super) const DOCKER_TABLE: &str = "filter";
pub(super) const DOCKER_CHAIN: &str = "DOCKER-USER";

/// How long firewalld may take to say what it has, and to give back what is ours, at an uninstall.
const LOOK: Duration = Duration::from_secs(15);
const TAKE_BACK: Duration = Duration::from_secs(30);

/// Keeps rules and zones' members in other firewalls' extension points.
pub struct OpeningTarget {
    socket: Socket,
    firewalld: Firewalld,
    /// What firewalld was to have when it was last told.
    wanted: BTreeSet<Opening>,
}

/// Why extension points could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The kernel could not be asked.
    #[error("could not list the rules of chain {DOCKER_CHAIN}")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel could not be told.
    #[error("could not send rules for chain {DOCKER_CHAIN}")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// firewalld still has something of ours, or may have.
    #[error("firewalld was not left as it was: {0}")]
    Firewalld(String),
    /// The note of what firewalld has of ours is still there.
    #[error("could not remove the note of what is ours in firewalld")]
    Forget(#[source] std::io::Error),
}

/// A rule that is there.
struct Found {
    handle: Vec<u8>,
    /// Its tag, where it has one: then it is ours, of this version or another.
    tag: Option<u64>,
    /// It closes the chain.
    returns: bool,
}

impl OpeningTarget {
    /// Opens a socket in the calling thread's network namespace. `notes` is the file of what firewalld has
    /// of ours.
    pub fn open(notes: PathBuf) -> Result<Self, OpenError> {
        let firewalld = Firewalld::new(notes).map_err(|error| OpenError(Box::new(error)))?;

        Ok(Self {
            socket: Socket::open(Protocol::Netfilter)?,
            firewalld,
            wanted: BTreeSet::new(),
        })
    }

    pub(crate) fn firewalld(&self) -> &Firewalld {
        &self.firewalld
    }

    /// Waits until it is known what firewalld has of ours, where something was noted.
    pub(crate) fn await_firewalld(&self) -> Result<(), OpeningError> {
        if !self.firewalld.has_notes() {
            return Ok(());
        }

        self.firewalld
            .await_look(LOOK)
            .map_err(OpeningError::Firewalld)
    }

    /// Takes back what firewalld has of ours, and waits for that.
    pub(crate) fn leave_firewalld(&self) -> Result<(), OpeningError> {
        if !self.firewalld.has_notes() {
            return Ok(());
        }
        self.await_firewalld()?;
        self.firewalld
            .take_back_all(TAKE_BACK)
            .map_err(OpeningError::Firewalld)?;

        self.firewalld.forget().map_err(OpeningError::Forget)
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Lists the chain's rules in order; `None` where there is no such chain.
    fn rules(&mut self, family: Family) -> Result<Option<Vec<Found>>, OpeningError> {
        let header = [family_code(family), 0, 0, 0];
        let chains = self
            .socket
            .dump(Message::new(GET_CHAIN, 0, &header), |message| {
                let chain = attributes(message);
                let is_it = chain.find(CHAIN_TABLE).and_then(text) == Some(DOCKER_TABLE)
                    && chain.find(CHAIN_NAME).and_then(text) == Some(DOCKER_CHAIN);

                is_it.then_some(())
            })
            .map_err(|error| OpeningError::List(Box::new(error)))?;
        if chains.is_empty() {
            return Ok(None);
        }
        let mut request = Message::new(GET_RULE, 0, &header);
        request.put_text(RULE_TABLE, DOCKER_TABLE);
        request.put_text(RULE_CHAIN, DOCKER_CHAIN);

        self.socket
            .dump(request, |message| found(attributes(message)))
            .map(Some)
            .map_err(|error| OpeningError::List(Box::new(error)))
    }

    /// Makes our rules of a chain these, in one transaction. Returns why not.
    fn write(&mut self, family: Family, wanted: &[Rule]) -> Result<Option<String>, OpeningError> {
        let Some(rules) = self.rules(family)? else {
            let gone = "there is no chain DOCKER-USER any more".to_owned();

            return Ok((!wanted.is_empty()).then_some(gone));
        };
        let mut transaction = Transaction::default();
        for rule in rules.iter().filter(|rule| rule.tag.is_some()) {
            let mut message = about(DEL_RULE, 0, family);
            message.put(RULE_HANDLE, &rule.handle);
            transaction.push(message, format!("delete our rule of {DOCKER_CHAIN}"));
        }
        let end = rules.iter().rfind(|rule| rule.returns);
        for rule in wanted {
            // Without a place it is the last one.
            let flags = if end.is_some() { 0 } else { flag::APPEND };
            let mut message = about(NEW_RULE, flag::CREATE | flags, family);
            put_expressions(&mut message, NftFamily::Inet, rule);
            let tag = rule_tag(NftFamily::Inet, rule);
            message.put(RULE_USERDATA, &userdata::encode(&rule.comment, tag));
            if let Some(end) = end {
                message.put(RULE_POSITION, &end.handle);
            }
            transaction.push(message, format!("add to {DOCKER_CHAIN}: {}", rule.comment));
        }
        if transaction.is_empty() {
            return Ok(None);
        }

        match transaction.commit(&mut self.socket) {
            Ok(_) => Ok(None),
            Err(CommitError::Refused(step, refusal)) => Ok(Some(format!("{step}: {refusal}"))),
            Err(CommitError::Netlink(error)) => Err(OpeningError::Send(Box::new(error))),
        }
    }
}

impl Target for OpeningTarget {
    type Key = Opening;
    /// Whether it is as it should be.
    type Row = bool;
    type Error = OpeningError;

    fn observe(&mut self) -> Result<BTreeMap<Opening, bool>, OpeningError> {
        // What passes by somebody else's word stands where ours would.
        let passes = self
            .wanted
            .iter()
            .filter(|each| self.firewalld.passes(each));
        let there = passes.cloned().chain(self.firewalld.ours());
        let mut openings: BTreeMap<_, _> = there.map(|opening| (opening, true)).collect();
        for family in Family::BOTH {
            let rules = self.rules(family)?.unwrap_or_default();
            let ours: Vec<u64> = rules.iter().filter_map(|rule| rule.tag).collect();
            if !ours.is_empty() {
                let is_whole = ours == tags(&for_pods());
                openings.insert(Opening::DockerUser(family), is_whole);
            }
        }

        Ok(openings)
    }

    fn apply(
        &mut self,
        changes: &[Change<Opening, bool>],
    ) -> Result<Vec<Absent<Opening>>, OpeningError> {
        let mut absent = Vec::new();
        for change in changes {
            let (Change::Set(opening, _) | Change::Unset(opening)) = change;
            if let Some(reason) = self.apply_one(change)? {
                absent.push(Absent {
                    key: opening.clone(),
                    reason,
                });
            }
        }

        Ok(absent)
    }
}

impl OpeningTarget {
    /// Makes one change; returns what stands against it.
    fn apply_one(
        &mut self,
        change: &Change<Opening, bool>,
    ) -> Result<Option<String>, OpeningError> {
        let refusal = match change {
            Change::Set(Opening::DockerUser(family), _) => return self.write(*family, &for_pods()),
            Change::Unset(Opening::DockerUser(family)) => return self.write(*family, &[]),
            Change::Set(opening, _) => {
                self.wanted.insert(opening.clone());
                self.firewalld.make(opening)
            }
            Change::Unset(opening) => {
                self.wanted.remove(opening);
                self.firewalld.take_back(opening)
            }
        };

        Ok(refusal.map(|refusal| refusal.to_string()))
    }
}

/// Returns the rules by which packets to and from pods pass.
fn for_pods() -> Vec<Rule> {
    let prefix = || WORKLOAD_PREFIX.to_owned();
    let sides = [
        (Match::IifPrefix(Sense::Is, prefix()), "meshd: from pods"),
        (Match::OifPrefix(Sense::Is, prefix()), "meshd: to pods"),
    ];

    sides
        .into_iter()
        .map(|(side, comment)| Rule {
            matches: vec![side],
            counter: true,
            statement: Statement::Accept,
            comment: comment.into(),
        })
        .collect()
}

fn tags(rules: &[Rule]) -> Vec<u64> {
    let tag = |rule| rule_tag(NftFamily::Inet, rule);

    rules.iter().map(tag).collect()
}

/// Begins a message about the chain's rules.
fn about(kind: u16, flags: u16, family: Family) -> Message {
    let mut message = Message::new(kind, flags, &[family_code(family), 0, 0, 0]);
    message.put_text(RULE_TABLE, DOCKER_TABLE);
    message.put_text(RULE_CHAIN, DOCKER_CHAIN);

    message
}

fn found(rule: Attributes<'_>) -> Option<Found> {
    let is_it = rule.find(RULE_TABLE).and_then(text) == Some(DOCKER_TABLE)
        && rule.find(RULE_CHAIN).and_then(text) == Some(DOCKER_CHAIN);
    let steps = rule::steps(rule);
    let returns = steps
        .iter()
        .all(|step| matches!(step, Step::Passes | Step::Verdict(Verdict::Return)))
        && steps.contains(&Step::Verdict(Verdict::Return));

    is_it.then_some(Found {
        handle: rule.find(RULE_HANDLE)?.to_vec(),
        tag: rule.find(RULE_USERDATA).and_then(userdata::tag),
        returns,
    })
}
