//! `meshctl get`: shows what the store holds.

mod watch;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use jiff::Timestamp;
use model::{Kind, Object, Selector, kind::Scope};
use serde_json::json;
use store::Store;

use crate::{
    column,
    connection::Connection,
    say,
    selection::{Namespaces, Selection},
};

/// How the command is used.
const EXAMPLES: &str = "\
Examples:
  meshctl get nodes
  meshctl get ippool pods -o yaml
  meshctl get wep -A -o wide
  meshctl get nodes -l 'zone == \"a\" && has(gpu)'
  meshctl get all -A
  meshctl get nodes --watch
  meshctl get blocks -o json | jq '.items[].spec.cidr'

Exit status: 0 shown (also nothing), 1 a name is not there or no store answers.";

/// Shows objects: a kind, several, or all; some by name.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// A kind, kinds separated by commas, KIND/NAME, or all.
    kind: String,

    /// Names of objects of that kind.
    names: Vec<String>,

    #[command(flatten)]
    view: View,

    /// Go on showing what changes, until stopped.
    #[arg(short, long)]
    watch: bool,
}

/// Which objects are shown, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct View {
    #[command(flatten)]
    namespaces: Namespaces,

    /// Only objects whose labels this selector (Calico's language) names.
    #[arg(short = 'l', long, default_value = "")]
    selector: Selector,

    /// How to show them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// How objects are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table of what matters.
    #[default]
    Table,
    /// A table of more.
    Wide,
    /// YAML documents.
    Yaml,
    /// JSON; several objects as a List.
    Json,
    /// Kinds and names.
    Name,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let selection = Selection::parse(&args.kind, &args.names)?;
    let store = args.connection.store()?;
    if args.watch {
        return watch::run(store, &selection, &args.view).await;
    }
    let objects = find(store.as_ref(), &selection, &args.view).await?;
    let text = render(&objects, &selection, &args.view, Timestamp::now())?;
    say(text.trim_end_matches('\n'));

    Ok(ExitCode::SUCCESS)
}

/// Reads the objects; a name that is not there is an error.
async fn find(
    store: &dyn Store,
    selection: &Selection,
    view: &View,
) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for name in &selection.names {
        objects.push(
            store
                .get(view.namespaces.key(selection.kinds[0], name)?)
                .await?,
        );
    }
    if !selection.names.is_empty() {
        return Ok(objects);
    }
    for kind in &selection.kinds {
        let list = store
            .list(*kind)
            .await
            .with_context(|| format!("cannot list {}", kind.plural()))?;
        objects.extend(list.objects.into_iter().filter(|object| view.shows(object)));
    }

    Ok(objects)
}

impl View {
    fn shows(&self, object: &Object) -> bool {
        self.namespaces.contain(object) && self.selector.matches(&object.metadata.labels)
    }
}

fn render(
    objects: &[Object],
    selection: &Selection,
    view: &View,
    now: Timestamp,
) -> anyhow::Result<String> {
    let one = selection.names.len() == 1;
    match view.output {
        Format::Table | Format::Wide => Ok(tables(objects, selection, view, now)),
        Format::Yaml => Ok(objects
            .iter()
            .map(serde_yaml_ng::to_string)
            .collect::<Result<Vec<_>, _>>()?
            .join("---\n")),
        Format::Json if one => Ok(serde_json::to_string_pretty(&objects[0])?),
        Format::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            Ok(serde_json::to_string_pretty(&list)?)
        }
        Format::Name => {
            let names: Vec<_> = objects.iter().map(name).collect();
            Ok(names.join("\n"))
        }
    }
}

/// Returns `ippools/pods`: what `get` and `delete` take.
fn name(object: &Object) -> String {
    format!("{}/{}", object.kind.plural(), object.metadata.name)
}

/// Returns one table for each kind that has objects; the kind's name above, when there are several kinds.
fn tables(objects: &[Object], selection: &Selection, view: &View, now: Timestamp) -> String {
    let mut tables = Vec::new();
    for kind in &selection.kinds {
        let objects: Vec<_> = objects
            .iter()
            .filter(|object| object.kind == *kind)
            .collect();
        if objects.is_empty() {
            continue;
        }
        let mut table = empty_table(*kind, view);
        table.add_rows(objects.iter().map(|object| cells(object, view, now)));
        let table = trimmed(&table);
        match selection.kinds.len() {
            1 => tables.push(table),
            _ => tables.push(format!("{}\n{table}", kind.plural())),
        }
    }
    if tables.is_empty() {
        return "nothing".into();
    }

    tables.join("\n\n")
}

/// Returns a table with the heads of a kind; bold on a terminal that wants colours.
fn empty_table(kind: Kind, view: &View) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal() {
        table.force_no_tty();
    }
    let namespace = shows_namespace(kind, view).then_some("NAMESPACE");
    let heads = namespace
        .into_iter()
        .chain(column::heads(kind, view.output == Format::Wide));
    table.set_header(heads.map(|head| Cell::new(head).add_attribute(Attribute::Bold)));

    table
}

fn cells(object: &Object, view: &View, now: Timestamp) -> Vec<String> {
    let mut cells = column::row(object, view.output == Format::Wide, now);
    if shows_namespace(object.kind, view) {
        cells.insert(0, object.metadata.namespace.clone().unwrap_or_default());
    }

    cells
}

fn shows_namespace(kind: Kind, view: &View) -> bool {
    kind.scope() == Scope::Namespaced && view.namespaces.are_all()
}

/// Returns a table without the blanks around its lines.
pub(crate) fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect();

    lines.join("\n")
}

#[cfg(test)]
mod tests;
