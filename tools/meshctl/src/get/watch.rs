//! `meshctl get --watch`: what is there, then what changes.

use std::{collections::BTreeSet, process::ExitCode, sync::Arc};

use jiff::Timestamp;
use model::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{Store, StoreEvent, watch_all};
use tokio_stream::StreamExt;

use super::{Format, View, cells, column, render, shows_namespace};
use crate::{say, selection::Selection, warn};

/// Shows what is there, and everything that happens to it, until the process is stopped.
pub(super) async fn run(
    store: Arc<dyn Store>,
    selection: &Selection,
    view: &View,
) -> anyhow::Result<ExitCode> {
    let mut events = watch_all(store, &selection.kinds);
    let mut screen = Screen::new(selection, view);
    while let Some(event) = events.next().await {
        for line in screen.take(event, Timestamp::now())? {
            say(&line);
        }
    }

    Ok(ExitCode::FAILURE)
}

/// What was shown so far.
struct Screen<'a> {
    selection: &'a Selection,
    view: &'a View,
    /// Kinds whose first list is not complete, and what came of them.
    waiting: BTreeSet<Kind>,
    first: Vec<Object>,
    widths: Vec<usize>,
}

impl<'a> Screen<'a> {
    fn new(selection: &'a Selection, view: &'a View) -> Self {
        let waiting = selection.kinds.iter().copied().collect();

        Self {
            selection,
            view,
            waiting,
            first: Vec::new(),
            widths: Vec::new(),
        }
    }

    /// Takes in an event, and returns what is to be shown for it.
    fn take(&mut self, event: StoreEvent, now: Timestamp) -> anyhow::Result<Vec<String>> {
        match event {
            StoreEvent::Connected(true) => Ok(Vec::new()),
            StoreEvent::Connected(false) => {
                warn("the store is away; waiting for it");
                Ok(Vec::new())
            }
            StoreEvent::Applied(object) if !self.shows(&object) => Ok(Vec::new()),
            StoreEvent::Applied(object) if !self.waiting.is_empty() => {
                self.first.retain(|old| old.key() != object.key());
                self.first.push(object);
                Ok(Vec::new())
            }
            StoreEvent::Applied(object) => self.changed(&object, now).map(|line| vec![line]),
            StoreEvent::Deleted(key) if !self.waiting.is_empty() => {
                self.first.retain(|old| old.key() != key);
                Ok(Vec::new())
            }
            StoreEvent::Deleted(key) if self.names(&key) => Ok(vec![self.deleted(&key)]),
            StoreEvent::Deleted(_) | StoreEvent::OutOfSync(_) => Ok(Vec::new()),
            StoreEvent::InSync(kind) => {
                let last = self.waiting.remove(&kind) && self.waiting.is_empty();
                if last {
                    self.begin(now)
                } else {
                    Ok(Vec::new())
                }
            }
        }
    }

    /// Shows everything that was there.
    fn begin(&mut self, now: Timestamp) -> anyhow::Result<Vec<String>> {
        let mut objects = std::mem::take(&mut self.first);
        objects.sort_by_key(Object::key);
        if self.view.output == Format::Json {
            return Ok(objects
                .iter()
                .map(|object| happened("Applied", json!(object)))
                .collect());
        }
        self.widths = widths(&objects, self.view, now);
        let text = render(&objects, self.selection, self.view, now)?;

        Ok(vec![text.trim_end_matches('\n').to_owned()])
    }

    fn changed(&self, object: &Object, now: Timestamp) -> anyhow::Result<String> {
        match self.view.output {
            Format::Table | Format::Wide => {
                let cells = cells(object, self.view, now);
                let padded: Vec<_> = cells
                    .iter()
                    .enumerate()
                    .map(|(place, cell)| {
                        let width = self.widths.get(place).copied().unwrap_or(0);
                        format!("{cell:width$}")
                    })
                    .collect();
                let line = padded.join("  ").trim_end().to_owned();
                let several = self.selection.kinds.len() > 1;
                Ok(if several {
                    format!("{}: {line}", object.kind.plural())
                } else {
                    line
                })
            }
            Format::Json => Ok(happened("Applied", json!(object))),
            Format::Yaml => Ok(format!(
                "---\n{}",
                serde_yaml_ng::to_string(object)?.trim_end()
            )),
            Format::Name => Ok(super::name(object)),
        }
    }

    fn deleted(&self, key: &ObjectKey) -> String {
        match self.view.output {
            Format::Json => happened(
                "Deleted",
                json!({
                    "apiVersion": key.kind.api_version(), "kind": key.kind,
                    "metadata": {"name": key.name, "namespace": key.namespace},
                }),
            ),
            Format::Yaml => format!("# {key} was deleted"),
            Format::Table | Format::Wide | Format::Name => format!("{key} was deleted"),
        }
    }

    fn shows(&self, object: &Object) -> bool {
        self.names(&object.key()) && self.view.shows(object)
    }

    fn names(&self, key: &ObjectKey) -> bool {
        let named = self.selection.names.is_empty() || self.selection.names.contains(&key.name);

        named
            && self
                .view
                .namespaces
                .contain_namespace(key.namespace.as_deref())
    }
}

/// Returns one line for a program.
fn happened(kind: &str, object: serde_json::Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

/// Returns how wide the columns of the first table are; only one kind has columns that stay.
fn widths(objects: &[Object], view: &View, now: Timestamp) -> Vec<usize> {
    let Some(first) = objects.first() else {
        return Vec::new();
    };
    if objects.iter().any(|object| object.kind != first.kind) {
        return Vec::new();
    }
    let namespace = shows_namespace(first.kind, view).then_some("NAMESPACE");
    let heads = namespace
        .into_iter()
        .chain(column::heads(first.kind, view.output == Format::Wide));
    let mut widths: Vec<_> = heads.map(str::len).collect();
    for object in objects {
        for (width, cell) in widths.iter_mut().zip(cells(object, view, now)) {
            *width = (*width).max(cell.chars().count());
        }
    }

    widths
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use model::Revision;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        view: View,
    }

    #[test]
    fn a_watch_shows_what_is_there_once_then_each_change() {
        let selection = Selection::parse("namespaces", &[]).unwrap();
        let view = Line::parse_from(["x"]).view;
        let mut screen = Screen::new(&selection, &view);
        let mut take = |event| screen.take(event, Timestamp::UNIX_EPOCH).unwrap();

        assert_eq!(take(StoreEvent::Applied(namespace("a", "1"))), [""; 0]);
        assert_eq!(take(StoreEvent::Applied(namespace("a", "2"))), [""; 0]);
        assert_eq!(
            take(StoreEvent::InSync(Kind::Namespace)),
            ["NAME  AGE\na     –"]
        );
        assert_eq!(take(StoreEvent::Applied(namespace("b", "3"))), ["b     –"]);
        let key = namespace("a", "1").key();
        assert_eq!(take(StoreEvent::Deleted(key)), ["Namespace a was deleted"]);
    }

    #[test]
    fn a_watch_for_programs_is_one_json_object_a_line() {
        let selection = Selection::parse("namespaces", &["a".into()]).unwrap();
        let view = Line::parse_from(["x", "-o", "json"]).view;
        let mut screen = Screen::new(&selection, &view);
        let mut take = |event| screen.take(event, Timestamp::UNIX_EPOCH).unwrap();

        take(StoreEvent::InSync(Kind::Namespace));
        assert_eq!(take(StoreEvent::Applied(namespace("b", "1"))), [""; 0]);
        let lines = take(StoreEvent::Applied(namespace("a", "2")));
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&line["type"], &line["object"]["metadata"]["name"]),
            (&json!("Applied"), &json!("a"))
        );
        assert!(take(StoreEvent::Deleted(namespace("a", "2").key()))[0].contains("Deleted"));
    }

    fn namespace(name: &str, revision: &str) -> Object {
        let mut object = Object::new(&ObjectKey::cluster(Kind::Namespace, name), json!({}));
        object.metadata.resource_version = Some(Revision(revision.into()).0);
        object
    }
}
