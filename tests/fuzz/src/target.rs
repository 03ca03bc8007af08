//! What is tried, one file a target.

use crate::Dice;

pub mod configuration;
pub mod data;
pub mod handshake;
pub mod lab;
pub mod manifest;
pub mod node;
pub mod record;
pub mod request;
pub mod uapi;

/// One door to the outside.
///
/// # Guarantees
///
/// - [`run`](Self::run) is a function of its input: the same bytes, the same fate, on any machine.
///
/// # Errors
///
/// [`Broken`] is a promise that did not hold; a panic counts as one.
pub trait Target {
    /// Its name, and its folder in `corpus/`.
    fn name(&self) -> &'static str;

    /// Makes an input, most often out of those that are there.
    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8>;

    /// Tries an input.
    ///
    /// # Errors
    /// The promise that it broke.
    fn run(&self, input: &[u8]) -> Result<Fate, Broken>;

    /// What one input may cost.
    fn allowance(&self, input: &[u8]) -> Allowance {
        Allowance {
            milliseconds: 2_000,
            bytes: (64 << 20) + 256 * input.len(),
        }
    }
}

/// What one input may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Of processor time.
    pub milliseconds: u64,
    /// Of memory, at once.
    pub bytes: usize,
}

/// What became of an input: the doors it passed and the reason of each refusal, in few words. An input with words
/// that none before it had goes into the corpus of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate(pub std::collections::BTreeSet<String>);

impl Fate {
    /// Notes one.
    pub fn note(&mut self, word: impl Into<String>) {
        self.0.insert(word.into());
    }

    /// The fate of one word.
    pub fn of(word: impl Into<String>) -> Self {
        let mut fate = Self::default();
        fate.note(word);
        fate
    }
}

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl Broken {
    /// Says which.
    pub fn new(promise: impl Into<String>) -> Self {
        Self(promise.into())
    }
}

/// Breaks a promise unless it holds.
///
/// # Errors
/// [`Broken`] with `promise`, where `holds` is false.
pub fn promise(holds: bool, promise: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err(Broken(promise()))
    }
}

/// Every target.
pub fn all() -> Vec<Box<dyn Target>> {
    vec![
        Box::new(handshake::Handshake),
        Box::new(data::Data),
        Box::new(uapi::Uapi),
        Box::new(record::RecordText),
        Box::new(node::NodeObject),
        Box::new(request::Requests),
        Box::new(manifest::Manifest),
        Box::new(configuration::Configuration),
        Box::new(lab::LabFile),
    ]
}

/// The target of that name.
pub fn named(name: &str) -> Option<Box<dyn Target>> {
    all().into_iter().find(|target| target.name() == name)
}
