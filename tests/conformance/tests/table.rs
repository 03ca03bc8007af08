//! What the tables of README.md name exists.

#![expect(
    clippy::unwrap_used,
    reason = "a repository that cannot be read fails its tests"
)]

use std::{fs, path::Path};

const PAGE: &str = include_str!("../README.md");

/// Everything in backquotes in the last column of the page's tables.
fn named() -> Vec<&'static str> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());

    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

fn files(folder: &Path, extension: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let entries = entries.filter(|path| path.extension().is_some_and(|found| found == extension));
    entries
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn every_case_and_story_that_the_tables_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cases = files(&root.join("tests/conformance/case"), "yaml");
    let stories = files(&root.join("tests/netns/tests"), "rs");
    let is_case = |name: &str| {
        let line = format!("metadata: {{name: {name}}}");
        cases
            .iter()
            .any(|(file, text)| format!("{file}.yaml") == name || text.contains(&line))
    };
    let is_story = |name: &str| {
        let (function, end) = match name.strip_suffix('…') {
            Some(beginning) => (beginning, ""),
            None => (name, "()"),
        };
        let line = format!("fn {function}{end}");
        stories
            .iter()
            .any(|(file, text)| file == name || text.contains(&line))
    };
    let exists = |name: &&str| {
        is_case(name)
            || is_story(name)
            || root.join(name).exists()
            || ["ipForwarding: Disabled", "tests/table.rs"].contains(name)
    };

    let named = named();
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();

    assert!(named.len() > 150, "{named:?}");
    assert_eq!(missing, [&""; 0]);
}
