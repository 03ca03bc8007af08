//! `meshctl describe`: one object in full, and what belongs to it.

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use jiff::Timestamp;
use model::{
    Kind, Object, Resource,
    resource::{AddressClaim, IpPool, IpamBlock, KeyClaim, WorkloadEndpoint},
};
use serde_json::Value;
use store::Store;

use crate::{
    apply::LAST_APPLIED,
    column,
    connection::Connection,
    say,
    selection::{Namespaces, Selection},
};

/// Longest value that is shown on one line.
const LINE_MAX: usize = 120;

/// How the command is used.
const EXAMPLES: &str = "\
Examples:
  meshctl describe node n1
  meshctl describe ippool/pods
  meshctl describe block 10-65-4-0-26

Exit status: 0 shown, 1 it is not there or no store answers.";

/// Shows one object in full, and what belongs to it.
///
/// That is a node's blocks, claims and pods, a pool's blocks, and who holds a block's addresses.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// The kind, or KIND/NAME.
    kind: String,

    /// The names.
    names: Vec<String>,

    #[command(flatten)]
    namespaces: Namespaces,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let selection = Selection::of_names(&args.kind, &args.names)?;
    let store = args.connection.store()?;
    let mut texts = Vec::new();
    for name in &selection.names {
        let object = store
            .get(args.namespaces.key(selection.kinds[0], name)?)
            .await?;
        texts.push(describe(store.as_ref(), &object, Timestamp::now()).await?);
    }
    say(column::plain(texts.join("\n").trim_end()).as_str());

    Ok(ExitCode::SUCCESS)
}

async fn describe(store: &dyn Store, object: &Object, now: Timestamp) -> anyhow::Result<String> {
    let mut text = String::new();
    let metadata = &object.metadata;
    line(&mut text, "Name", &metadata.name)?;
    if let Some(namespace) = &metadata.namespace {
        line(&mut text, "Namespace", namespace)?;
    }
    line(
        &mut text,
        "Kind",
        &format!("{} ({})", object.kind, object.api_version),
    )?;
    line(&mut text, "Labels", &column::pairs(&metadata.labels))?;
    let age = column::age(object, now);
    let created = metadata.creation_timestamp.as_deref().unwrap_or("–");
    line(&mut text, "Created", &format!("{created} ({age} ago)"))?;
    line(
        &mut text,
        "Revision",
        metadata.resource_version.as_deref().unwrap_or("–"),
    )?;
    let annotations = metadata
        .annotations
        .iter()
        .filter(|(key, _)| *key != LAST_APPLIED);
    section(
        &mut text,
        "Annotations",
        annotations.map(|(key, value)| format!("{key}: {}", cut(value))),
    )?;
    for (name, value) in &object.body {
        tree(&mut text, name, value, 0)?;
    }
    match Resource::try_from(object) {
        Ok(resource) => belongings(store, &resource, &mut text).await?,
        Err(error) => writeln!(text, "Unusable: {error}")?,
    }

    Ok(text)
}

/// Adds what belongs to the object.
async fn belongings(
    store: &dyn Store,
    resource: &Resource,
    text: &mut String,
) -> anyhow::Result<()> {
    match resource {
        Resource::Node(node) => {
            for (field, reason) in &node.invalid {
                writeln!(text, "Unusable: {field}: {reason}")?;
            }
            let name = &node.name;
            let blocks = every::<IpamBlock>(store, Kind::IPAMBlock).await?;
            section(
                text,
                "Blocks",
                blocks
                    .iter()
                    .filter(|b| b.affinity.as_ref() == Some(name))
                    .map(usage),
            )?;
            let keys = every::<KeyClaim>(store, Kind::KeyClaim).await?;
            section(
                text,
                "Granted keys (SHA-256)",
                keys.iter()
                    .filter(|k| k.node == *name)
                    .map(|k| k.name.clone()),
            )?;
            let addresses = every::<AddressClaim>(store, Kind::AddressClaim).await?;
            section(
                text,
                "Granted addresses",
                addresses
                    .iter()
                    .filter(|a| a.node == *name)
                    .map(|a| a.address.to_string()),
            )?;
            let pods = every::<WorkloadEndpoint>(store, Kind::WorkloadEndpoint).await?;
            section(
                text,
                "Pods",
                pods.iter().filter(|e| e.node == *name).map(|e| {
                    format!(
                        "{} {}",
                        e.pod,
                        column::list(e.addresses.iter().map(ipnet::IpNet::addr))
                    )
                }),
            )
        }
        Resource::IpPool(pool) => {
            let blocks = every::<IpamBlock>(store, Kind::IPAMBlock).await?;
            section(
                text,
                "Blocks",
                blocks.iter().filter(|b| inside(b, pool)).map(usage),
            )
        }
        Resource::IpamBlock(block) => section(text, "Addresses", holders(block)),
        Resource::FelixConfiguration(settings) => unusable(text, &settings.invalid),
        Resource::Policy(policy) => unusable(text, &policy.invalid),
        Resource::NetworkSet(set) => unusable(text, &set.invalid),
        Resource::Profile(profile) => unusable(text, &profile.invalid),
        Resource::BlockAffinity(_)
        | Resource::MeshConfiguration(_)
        | Resource::KeyClaim(_)
        | Resource::AddressClaim(_)
        | Resource::WorkloadEndpoint(_)
        | Resource::Namespace(_)
        | Resource::ServiceAccount(_)
        | Resource::Service(_)
        | Resource::EndpointSlice(_)
        | Resource::Tier(_)
        | Resource::HostEndpoint(_)
        | Resource::Opaque(_) => Ok(()),
    }
}

/// Adds the fields that cannot be used, each with its reason.
fn unusable(text: &mut String, invalid: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let fields = invalid
        .iter()
        .map(|(field, reason)| format!("{field}: {reason}"));

    section(text, "Unusable", fields)
}

/// Reads every object of a kind that can be read.
async fn every<T>(store: &dyn Store, kind: Kind) -> anyhow::Result<Vec<T>>
where
    T: for<'a> TryFrom<&'a Object>,
{
    let objects = store.list(kind).await?.objects;

    Ok(objects
        .iter()
        .filter_map(|object| T::try_from(object).ok())
        .collect())
}

fn inside(block: &IpamBlock, pool: &IpPool) -> bool {
    pool.cidr.contains(&block.cidr)
}

fn usage(block: &IpamBlock) -> String {
    let owner = block
        .affinity
        .as_ref()
        .map_or_else(|| "no node".to_owned(), ToString::to_string);

    format!(
        "{} of {owner}: {} of {} addresses used",
        block.cidr,
        block.allocations.len(),
        block.size()
    )
}

/// Returns a line for each address that somebody holds.
fn holders(block: &IpamBlock) -> Vec<String> {
    let holder = |index: &usize| {
        let attribute = block.attributes.get(*index)?;
        let handle = attribute.handle_id.as_deref().unwrap_or("no handle");
        let facts = column::pairs(&attribute.secondary);
        Some(format!("{handle} ({facts})"))
    };

    block
        .allocations
        .iter()
        .filter_map(|(ordinal, index)| {
            let address = block.address(*ordinal)?;
            Some(format!("{address} {}", holder(index).unwrap_or_default()))
        })
        .collect()
}

fn section(
    text: &mut String,
    title: &str,
    lines: impl IntoIterator<Item = String>,
) -> anyhow::Result<()> {
    let lines: Vec<_> = lines.into_iter().collect();
    if !lines.is_empty() {
        writeln!(text, "{title}:")?;
    }
    for line in lines {
        writeln!(text, "  {line}")?;
    }

    Ok(())
}

fn line(text: &mut String, name: &str, value: &str) -> std::fmt::Result {
    writeln!(text, "{:<12} {value}", format!("{name}:"))
}

/// Adds a value: plain ones on a line, short lists too, members indented.
fn tree(text: &mut String, name: &str, value: &Value, depth: usize) -> std::fmt::Result {
    let blank = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => {
            writeln!(text, "{blank}{name}:")?;
            members
                .iter()
                .try_for_each(|(name, value)| tree(text, name, value, depth + 1))
        }
        Value::String(plain) => writeln!(text, "{blank}{name}: {}", cut(plain)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            writeln!(text, "{blank}{name}: {}", cut(&value.to_string()))
        }
    }
}

fn cut(text: &str) -> String {
    let mut line: String = text.chars().take(LINE_MAX).collect();
    if line.len() < text.len() {
        line.push('…');
    }

    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use model::ObjectKey;
    use serde_json::json;
    use store::{Caller, Embedded, Options};

    use super::*;

    #[tokio::test]
    async fn a_node_is_shown_with_what_belongs_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.db"), Options::default()).unwrap();
        let store = store.session(Caller::local_admin());
        let block = json!({
            "cidr": "10.65.0.0/31", "affinity": "host:n1", "allocations": [0, null], "unallocated": [1],
            "attributes": [{"handle_id": "h", "secondary": {"pod": "web-0"}}],
        });
        for (kind, name, spec) in [
            (
                Kind::Node,
                "n1",
                json!({"bgp": {"ipv4Address": "192.0.2.1/24"}}),
            ),
            (Kind::IPAMBlock, "10-65-0-0-31", block),
            (Kind::AddressClaim, "192.0.2.1", json!({"node": "n1"})),
            (Kind::AddressClaim, "192.0.2.2", json!({"node": "n2"})),
        ] {
            store
                .create(Object::new(&ObjectKey::cluster(kind, name), spec))
                .await
                .unwrap();
        }
        let show = async |kind, name: &str| {
            let object = store.get(ObjectKey::cluster(kind, name)).await.unwrap();
            describe(&store, &object, Timestamp::now()).await.unwrap()
        };

        let node = show(Kind::Node, "n1").await;
        assert!(
            node.starts_with("Name:        n1\nKind:        Node (projectcalico.org/v3)\n"),
            "{node}"
        );
        assert!(
            node.contains("spec:\n  bgp:\n    ipv4Address: 192.0.2.1/24\n"),
            "{node}"
        );
        assert!(
            node.contains("Blocks:\n  10.65.0.0/31 of n1: 1 of 2 addresses used\n"),
            "{node}"
        );
        assert!(
            node.contains("Granted addresses:\n  192.0.2.1\n") && !node.contains("192.0.2.2"),
            "{node}"
        );
        let block = show(Kind::IPAMBlock, "10-65-0-0-31").await;
        assert!(
            block.contains("Addresses:\n  10.65.0.0 h (pod=web-0)\n"),
            "{block}"
        );
    }

    #[test]
    fn a_long_text_is_cut_to_one_line() {
        assert_eq!(cut("a\nb"), "a b");
        assert_eq!(cut(&"x".repeat(500)).chars().count(), LINE_MAX + 1);
    }
}
