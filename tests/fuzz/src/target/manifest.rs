//! What operators apply: YAML and JSON of every kind.

use model::{
    Resource,
    manifest::{self, Document, Fault, ManifestError},
};

use super::{Broken, Fate, Target, promise};
use crate::{
    Dice,
    mutation::{self, Form},
};

/// Texts of `meshctl apply -f`.
///
/// Promises: an error names file, document and, where it is about one, the field; what is taken is taken again
/// from its own YAML and JSON, as the same; what is taken can be read as its kind; and all of them together
/// either contradict each other with an error or not at all.
#[derive(Clone, Copy, Debug)]
pub struct Manifest;

impl Target for Manifest {
    fn name(&self) -> &'static str {
        "manifest"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        match dice.roll(4) {
            // Documents one after the other.
            0 => {
                let mut text = mutation::tree(dice, corpus, Form::Yaml);
                text.extend(b"\n---\n");
                text.extend(mutation::tree(dice, corpus, Form::Yaml));
                text
            }
            1 => mutation::lines(dice, corpus, |dice| {
                let indent = " ".repeat(2 * dice.roll(4));
                format!("{indent}{}: {}", mutation::word(dice), mutation::word(dice))
            }),
            _ => mutation::tree(dice, corpus, Form::Yaml),
        }
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let text = String::from_utf8_lossy(input);
        let documents = match manifest::parse("mesh.yaml", &text) {
            Ok(documents) => documents,
            Err(errors) => return refused(&errors),
        };
        let mut fate = Fate::default();
        if documents.is_empty() {
            fate.note("nothing in it");
        }
        for document in &documents {
            survives(document)?;
            fate.note(format!("taken: {}", document.object.kind));
        }
        if let Err(error) = manifest::validate_all(&documents, std::iter::empty()) {
            promise(!error.is_empty(), || "refused without an error".into())?;
            fate.note("refused beside another");
        }
        Ok(fate)
    }
}

fn refused(errors: &[ManifestError]) -> Result<Fate, Broken> {
    let mut fate = Fate::default();
    promise(!errors.is_empty(), || "refused without an error".into())?;
    for error in errors {
        let place = error.to_string().starts_with("mesh.yaml, document ");
        promise(place && error.position.document > 0, || {
            format!("it names no place: {error}")
        })?;
        match &error.error {
            Fault::Text(_) => fate.note("refused: no YAML"),
            Fault::Field(error) => {
                let letter = |c: &char| c.is_ascii_alphabetic() || *c == '.';
                let field: String = error.field.chars().filter(letter).take(32).collect();
                let is_path = error.field.len() < 4096;
                promise(is_path, || {
                    format!("the field has {} bytes", error.field.len())
                })?;
                // Names that somebody made up are no fate of their own.
                let known = field.split('.').next().unwrap_or_default();
                fate.note(match known {
                    "metadata" | "spec" | "kind" | "apiVersion" | "status" => {
                        format!(
                            "refused: {}",
                            field.split('.').take(2).collect::<Vec<_>>().join(".")
                        )
                    }
                    _ => "refused: some other field".to_owned(),
                });
            }
        }
    }
    Ok(fate)
}

fn survives(document: &Document) -> Result<(), Broken> {
    let object = &document.object;
    Resource::try_from(object).map_err(|error| {
        Broken(format!(
            "{} was taken and cannot be read: {error}",
            object.key()
        ))
    })?;
    let yaml = serde_yaml_ng::to_string(object).map_err(|error| {
        Broken(format!(
            "{} cannot be written as YAML: {error}",
            object.key()
        ))
    })?;
    let json = serde_json::to_string(object).map_err(|error| {
        Broken(format!(
            "{} cannot be written as JSON: {error}",
            object.key()
        ))
    })?;
    for text in [yaml, json] {
        let again = manifest::parse("again", &text).map_err(|errors| {
            Broken(format!(
                "{} is refused when applied again: {}\n{text}",
                object.key(),
                errors[0]
            ))
        })?;
        let same = matches!(&again[..], [document] if document.object == *object);
        promise(same, || {
            format!("{object:?}\nis read back as\n{again:?}\nfrom\n{text}")
        })?;
    }
    Ok(())
}
