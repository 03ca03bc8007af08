//! `meshctl apply`: makes the store hold what documents say.

mod patch;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use anyhow::{Context, bail};
use model::{
    Kind, Object, ObjectKey, Revision,
    manifest::{self, Document},
    publication::merge,
};
use serde_json::Value;
use store::{Precondition, Store};

pub(crate) use self::patch::LAST_APPLIED;
use crate::{connection::Connection, input, input::Input, say, selection::Usage};

/// How the command is used.
const EXAMPLES: &str = "\
Examples:
  meshctl apply -f pools.yaml
  meshctl apply -f manifests/ -R
  cat mesh.yaml | meshctl apply -f -
  meshctl apply -f pools.yaml --dry-run

Exit status: 0 stored, 1 nothing was stored, or not everything.";

/// Stores what YAML and JSON documents say: creates what is not there, changes what differs.
///
/// Everything is checked first, each document by itself and beside what is
/// stored; if anything is wrong, nothing is stored and every error is shown.
/// Fields that others wrote stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    #[command(flatten)]
    input: Input,

    /// Check everything and say what would happen, but store nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What is to be done for one document.
struct Step {
    key: ObjectKey,
    change: Change,
}

enum Change {
    Create(Box<Object>),
    Patch(Value, Precondition),
    None,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.input.files.is_empty() {
        bail!(Usage("what? Name a file, a folder or - with -f".to_owned()));
    }
    let documents = args.input.read()?;
    let store = args.connection.store()?;
    let steps = plan(store.as_ref(), documents).await?;
    if args.dry_run {
        for step in &steps {
            say(&format!("{} {} (dry run)", step.key, step.change.word()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let total = steps.len();
    for (done, step) in steps.into_iter().enumerate() {
        let text = format!("{} {}", step.key, step.change.word());
        let key = step.key.clone();
        carry_out(store.as_ref(), step).await.with_context(|| {
            format!("{key} was not stored; of {total} objects, the first {done} were")
        })?;
        say(&text);
    }

    Ok(ExitCode::SUCCESS)
}

/// Checks every document beside what is stored, and says what is to be done; stores nothing.
async fn plan(store: &dyn Store, mut documents: Vec<Document>) -> anyhow::Result<Vec<Step>> {
    let existing = existing(store, &documents).await?;
    let mut steps = Vec::new();
    for document in &mut documents {
        let key = document.object.key();
        let change = change(&document.object, existing.get(&key))
            .with_context(|| format!("{}: {key}", document.position))?;
        match &change {
            Change::Create(object) => document.object = Object::clone(object),
            Change::Patch(patch, _) => {
                let stored = existing.get(&key).context("a patch needs an object")?;
                document.object = patched(stored, patch)?;
            }
            Change::None => {}
        }
        steps.push(Step { key, change });
    }
    let mut errors = Vec::new();
    for document in &documents {
        if let Err(error) = manifest::check(&document.object) {
            let error = manifest::Fault::Field(error);
            errors.push(manifest::ManifestError {
                position: document.position.clone(),
                error,
            });
        }
    }
    errors.extend(
        manifest::validate_all(&documents, existing.values())
            .err()
            .unwrap_or_default(),
    );
    if !errors.is_empty() {
        bail!(input::together(&errors));
    }
    // A policy needs its tier.
    steps.sort_by_key(|step| step.key.kind != Kind::Tier);

    Ok(steps)
}

/// Reads every stored object that the documents change, or that they must get on with.
async fn existing(
    store: &dyn Store,
    documents: &[Document],
) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
    let mut kinds: BTreeSet<Kind> = documents
        .iter()
        .map(|document| document.object.kind)
        .collect();
    for document in documents {
        kinds.extend(manifest::neighbours(document.object.kind));
    }
    let mut existing = BTreeMap::new();
    for kind in kinds {
        let list = store
            .list(kind)
            .await
            .with_context(|| format!("cannot list {}", kind.plural()))?;
        existing.extend(
            list.objects
                .into_iter()
                .map(|object| (object.key(), object)),
        );
    }

    Ok(existing)
}

fn change(object: &Object, stored: Option<&Object>) -> anyhow::Result<Change> {
    let wish = patch::wish(object)?;
    let Some(stored) = stored else {
        return Ok(Change::Create(Box::new(serde_json::from_value(
            patch::noted(&wish),
        )?)));
    };
    let expected = match &object.metadata.resource_version {
        Some(version) => Precondition::Revision(Revision(version.clone())),
        None => Precondition::Any,
    };

    Ok(patch::patch(stored, &wish)?.map_or(Change::None, |patch| Change::Patch(patch, expected)))
}

fn patched(stored: &Object, patch: &Value) -> anyhow::Result<Object> {
    let mut value = serde_json::to_value(stored)?;
    merge(&mut value, patch);

    Ok(serde_json::from_value(value)?)
}

async fn carry_out(store: &dyn Store, step: Step) -> anyhow::Result<()> {
    match step.change {
        Change::Create(object) => {
            store.create(*object).await?;
        }
        Change::Patch(patch, expected) => {
            store.patch(step.key, patch, expected).await?;
        }
        Change::None => {}
    }

    Ok(())
}

impl Change {
    const fn word(&self) -> &'static str {
        match self {
            Self::Create(_) => "created",
            Self::Patch(..) => "configured",
            Self::None => "unchanged",
        }
    }
}

#[cfg(test)]
mod tests;
