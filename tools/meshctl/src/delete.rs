//! `meshctl delete`: removes objects from the store.

use std::process::ExitCode;

use anyhow::Context;
use model::ObjectKey;
use store::{Precondition, Store, StoreError};

use crate::{
    connection::Connection,
    input::Input,
    say,
    selection::{Namespaces, Selection},
};

/// How the command is used.
const EXAMPLES: &str = "\
Examples:
  meshctl delete ippool pods
  meshctl delete node/n3
  meshctl delete -f pools.yaml
  meshctl delete wep -n shop n1-k8s-web--0-eth0

Exit status: 0 deleted, 1 not everything could be.";

/// Removes objects, by name or as documents name them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// The kind, or KIND/NAME.
    #[arg(required_unless_present = "files", conflicts_with = "files")]
    kind: Option<String>,

    /// The names.
    names: Vec<String>,

    #[command(flatten)]
    input: Input,

    #[command(flatten)]
    namespaces: Namespaces,

    /// Count what is not there as deleted.
    #[arg(long)]
    ignore_not_found: bool,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let keys = keys(&args)?;
    let store = args.connection.store()?;
    for key in keys {
        say(&format!(
            "{key} {}",
            delete(store.as_ref(), key.clone(), args.ignore_not_found).await?
        ));
    }

    Ok(ExitCode::SUCCESS)
}

/// Returns what to delete; documents from the last to the first, so that what came later goes first.
fn keys(args: &Args) -> anyhow::Result<Vec<ObjectKey>> {
    let Some(kind) = &args.kind else {
        let documents = args.input.read()?;
        return Ok(documents
            .iter()
            .rev()
            .map(|document| document.object.key())
            .collect());
    };
    let selection = Selection::of_names(kind, &args.names)?;

    let keys = selection
        .names
        .iter()
        .map(|name| args.namespaces.key(selection.kinds[0], name));

    Ok(keys.collect::<Result<_, _>>()?)
}

async fn delete(
    store: &dyn Store,
    key: ObjectKey,
    ignore_not_found: bool,
) -> anyhow::Result<&'static str> {
    let result = store.delete(key.clone(), Precondition::Any).await;
    if ignore_not_found && matches!(result, Err(StoreError::NotFound(_))) {
        return Ok("was not there");
    }
    result.with_context(|| format!("{key} was not deleted"))?;

    Ok("deleted")
}

#[cfg(test)]
mod tests {
    use model::{Kind, Object};
    use serde_json::json;
    use store::{Caller, Embedded, Options};

    use super::*;

    #[tokio::test]
    async fn what_is_deleted_is_gone_and_what_is_missing_is_an_error_unless_it_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.db"), Options::default()).unwrap();
        let store = store.session(Caller::local_admin());
        let key = ObjectKey::cluster(Kind::Namespace, "a");
        store.create(Object::new(&key, json!({}))).await.unwrap();

        assert_eq!(delete(&store, key.clone(), false).await.unwrap(), "deleted");
        let error = format!(
            "{:#}",
            delete(&store, key.clone(), false).await.unwrap_err()
        );
        assert_eq!(
            error,
            "Namespace a was not deleted: Namespace a does not exist"
        );
        assert_eq!(delete(&store, key, true).await.unwrap(), "was not there");
    }
}
