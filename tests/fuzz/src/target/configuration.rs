//! Settings: FelixConfiguration and MeshConfiguration, and the files that meshd itself reads.

use std::collections::BTreeMap;

use model::{Kind, NodeName, Object, Resource, resource::FelixConfiguration, settings::Settings};
use serde_json::Value;
use store::{Credential, Token};

use super::{Broken, Fate, Target, promise};
use crate::{
    Dice,
    mutation::{self, Form},
};

/// Letters of the shortest key.
const KEY: usize = 40;
/// So many of them would tell something of it.
const QUOTE: usize = 12;

/// Stored configurations, several in a list, as they come from a store that did not check them; and texts of credential
/// files and join tokens.
///
/// Promises: a bad field of a FelixConfiguration disables itself, never the object (but for its selector), and
/// what holds does not depend on the order in which objects come; what was read can be recorded and replayed as the
/// same; an error about a credential or token never quotes what it read.
#[derive(Clone, Copy, Debug)]
pub struct Configuration;

impl Target for Configuration {
    fn name(&self) -> &'static str {
        "configuration"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::tree(dice, corpus, Form::Yaml)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let text = String::from_utf8_lossy(input);
        let mut fate = secrets(&text)?;
        let Ok(value) = serde_yaml_ng::from_str::<Value>(&text) else {
            fate.note("no YAML");
            return Ok(fate);
        };
        let items = match value.as_array() {
            Some(items) => items.clone(),
            None => vec![value],
        };
        let objects: Vec<Object> = items
            .into_iter()
            .filter_map(|item| serde_json::from_value(item).ok())
            .collect();
        let mut felix = Vec::new();
        for object in &objects {
            match Resource::try_from(object) {
                Ok(resource) => {
                    replays(&resource)?;
                    fate.note(format!("read: {}", object.kind));
                    if let Resource::FelixConfiguration(configuration) = resource {
                        invalid(&configuration, &mut fate);
                        felix.push(*configuration);
                    }
                }
                Err(error) => fate.note(refused(object, &error)?),
            }
        }
        holds_in_any_order(&felix)?;
        Ok(fate)
    }
}

fn invalid(configuration: &FelixConfiguration, fate: &mut Fate) {
    for field in configuration.invalid.keys() {
        fate.note(format!("read without {field}"));
    }
}

/// Only what says where a configuration holds disables it, its name and its selector; or a spec that has no fields.
fn refused(object: &Object, error: &model::resource::FieldError) -> Result<String, Broken> {
    let of_place = error.field.starts_with("metadata.")
        || ["spec", "spec.nodeSelector"].contains(&&*error.field);
    let tolerant = object.kind == Kind::FelixConfiguration;
    promise(of_place || !tolerant, || {
        format!("{} was disabled: {error}", object.key())
    })?;
    Ok(format!("refused: {}", object.kind))
}

fn replays(resource: &Resource) -> Result<(), Broken> {
    let text = serde_json::to_string(resource)
        .map_err(|error| Broken(format!("a resource cannot be recorded: {error}")))?;
    let again: Resource = serde_json::from_str(&text)
        .map_err(|error| Broken(format!("a resource cannot be replayed: {error}: {text}")))?;
    promise(again == *resource, || {
        format!("{resource:?} is replayed as {again:?}")
    })
}

fn holds_in_any_order(configurations: &[FelixConfiguration]) -> Result<(), Broken> {
    let node: NodeName = "n1".parse().map_err(|_| Broken::new("n1 is a name"))?;
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    // A store holds one object of a name.
    let unique: BTreeMap<_, _> = configurations
        .iter()
        .map(|one| (one.name.clone(), one))
        .collect();
    let forward = Settings::effective(&node, &labels, unique.values().copied());
    let backward = Settings::effective(&node, &labels, unique.values().rev().copied());
    promise(forward == backward, || {
        format!("{forward:?}\nor, the other way round,\n{backward:?}")
    })?;
    let text = serde_json::to_string(&forward)
        .map_err(|error| Broken(format!("settings cannot be written: {error}")))?;
    let again = serde_json::from_str::<Settings>(&text).ok();
    promise(again.as_ref() == Some(&forward), || {
        format!("{forward:?} is read back as {again:?}")
    })
}

/// Credentials and tokens: nothing of them may be in a message.
fn secrets(text: &str) -> Result<Fate, Broken> {
    let mut fate = Fate::default();
    if let Err(error) = Credential::parse(text) {
        let message = chain(&error);
        quotes_nothing(text, &message)?;
        let words: Vec<&str> = message.split(' ').take(3).collect();
        fate.note(format!("no credential: {}", words.join(" ")));
    }
    match text.trim().parse::<Token>() {
        Ok(token) => {
            let same = token.reveal().eq_ignore_ascii_case(text.trim());
            promise(same, || "a token is not the same when shown again".into())?;
            fate.note("a token");
        }
        Err(error) => quotes_nothing(text, &error.to_string())?,
    }
    Ok(fate)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Nothing of what is as long as a key and written like one stands in a message.
fn quotes_nothing(input: &str, message: &str) -> Result<(), Broken> {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c| !is_digit(c));
        words.map(str::to_owned).collect()
    };
    // What a file says it is may be told.
    let file: Value = serde_yaml_ng::from_str(input).unwrap_or_default();
    let said = ["apiVersion", "kind"].map(|field| file.get(field).and_then(Value::as_str));
    let is_said = |word: &String| said.iter().flatten().any(|text| text.contains(&**word));
    let secrets: Vec<String> = words(input)
        .into_iter()
        .filter(|word| word.len() >= KEY && !is_said(word))
        .collect();
    for word in words(message) {
        let parts = word.as_bytes().windows(QUOTE);
        let quoted = parts
            .filter_map(|part| std::str::from_utf8(part).ok())
            .any(|part| secrets.iter().any(|secret| secret.contains(part)));
        promise(!quoted, || {
            format!("a message quotes what may be a secret: {message}")
        })?;
    }
    Ok(())
}
