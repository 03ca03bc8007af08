//! The record: what a node says about itself, read by every other node.

use std::collections::BTreeSet;

use model::{NodeName, Record, record::RecordError};
use serde_json::Value;

use super::{Broken, Fate, Target, promise};
use crate::{
    Dice,
    mutation::{self, Form},
};

/// Texts of the annotation `meshd.dev/record`, on the node `n1`.
///
/// Promises: what is taken names its carrier, its version and at most 4 KiB; its canonical text is read back as
/// the same record, and is the same text again; fields at its top that we do not know are kept as they came.
#[derive(Clone, Copy, Debug)]
pub struct RecordText;

/// The fields that we know.
const KNOWN: [&str; 9] = [
    "version",
    "node",
    "epoch",
    "tunnels",
    "endpoints",
    "addresses",
    "phase",
    "conditions",
    "signature",
];

impl Target for RecordText {
    fn name(&self) -> &'static str {
        "record"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::tree(dice, corpus, Form::Json)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let text = String::from_utf8_lossy(input);
        let carrier: NodeName = "n1".parse().map_err(|_| Broken::new("n1 is a name"))?;
        let record = match Record::parse(&text, &carrier) {
            Ok(record) => record,
            Err(error) => return Ok(Fate::of(reason(&error))),
        };
        promise(text.len() <= 4096, || {
            "a record of more than 4 KiB was taken".into()
        })?;
        promise(record.node == carrier && record.version == 1, || {
            "the record of another node or version was taken".into()
        })?;
        keeps_what_it_does_not_know(&text, &record)?;
        let canonical = match record.encode() {
            Ok(canonical) => canonical,
            // What is written out may be longer than what was read: escapes, and fields that were left out.
            Err(error) => return Ok(Fate::of(format!("taken, not written: {}", reason(&error)))),
        };
        let again = Record::parse(&canonical, &carrier).map_err(|error| {
            Broken(format!(
                "its canonical text is refused: {error}: {canonical}"
            ))
        })?;
        promise(again == record, || {
            format!("{record:?} was read back as {again:?}")
        })?;
        promise(again.encode().ok() == Some(canonical), || {
            "the canonical text is not a fixed point".into()
        })?;
        let mut fate = Fate::of(format!("taken, in phase {:?}", record.phase));
        if !record.unknown.is_empty() {
            fate.note("taken, with fields of a later version");
        }
        Ok(fate)
    }
}

fn keeps_what_it_does_not_know(text: &str, record: &Record) -> Result<(), Broken> {
    let Ok(Value::Object(members)) = serde_json::from_str(text) else {
        return Err(Broken::new("what is no JSON object was taken"));
    };
    let known = BTreeSet::from(KNOWN);
    for (name, value) in members {
        if !known.contains(name.as_str()) {
            promise(record.unknown.get(&name) == Some(&value), || {
                format!("the unknown field {name:?} was lost")
            })?;
        }
    }
    Ok(())
}

fn reason(error: &RecordError) -> &'static str {
    match error {
        RecordError::TooLong(_) => "refused: too long",
        RecordError::Malformed(_) => "refused: malformed",
        RecordError::UnknownVersion(_) => "refused: unknown version",
        RecordError::WrongNode(_) => "refused: names another node",
    }
}
