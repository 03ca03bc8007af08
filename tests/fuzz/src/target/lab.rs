//! Lab files.

use lab::{Document, Layout};

use super::{Broken, Fate, Target, promise};
use crate::{
    Dice,
    mutation::{self, Form},
};

/// Texts of `meshctl lab up FILE`.
///
/// Promises: an error names the file; what is taken is taken again from its own YAML, as the same; what is taken is
/// laid out or refused with a reason, and no address is given twice.
#[derive(Clone, Copy, Debug)]
pub struct LabFile;

impl Target for LabFile {
    fn name(&self) -> &'static str {
        "lab"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::tree(dice, corpus, Form::Yaml)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let text = String::from_utf8_lossy(input);
        let document = match Document::parse("lab.yaml", &text) {
            Ok(document) => document,
            Err(error) => return refused(&error.to_string()),
        };
        let yaml = serde_yaml_ng::to_string(&document)
            .map_err(|error| Broken(format!("a lab cannot be written: {error}")))?;
        let again = Document::parse("again", &yaml)
            .map_err(|error| Broken(format!("a written lab is refused: {error}\n{yaml}")))?;
        promise(again == document, || {
            format!("{document:?} is read back as {again:?}")
        })?;
        match Layout::plan(&document.spec) {
            Ok(layout) => {
                let mut given: Vec<_> =
                    layout.hosts.iter().flat_map(lab::Host::addresses).collect();
                let count = given.len();
                given.sort_unstable();
                given.dedup();
                promise(given.len() == count, || {
                    "two devices have one address".into()
                })?;
                Ok(Fate::of("laid out"))
            }
            Err(error) => {
                let word = error.to_string();
                let word = if word.contains("two hosts") {
                    "twice"
                } else {
                    "exhausted"
                };
                Ok(Fate::of(format!("not laid out: {word}")))
            }
        }
    }
}

fn refused(error: &str) -> Result<Fate, Broken> {
    promise(error.contains("lab.yaml"), || {
        format!("it names no file: {error}")
    })?;
    let field = error.split(": ").nth(1).unwrap_or_default();
    let field: String = field
        .chars()
        .filter(|c| c.is_ascii_alphabetic() || *c == '.')
        .take(40)
        .collect();
    let known = ["spec", "metadata", "kind", "apiVersion"];
    let is_known = known.contains(&field.split('.').next().unwrap_or_default());
    Ok(Fate::of(if is_known {
        format!("refused: {field}")
    } else {
        "refused".to_owned()
    }))
}
