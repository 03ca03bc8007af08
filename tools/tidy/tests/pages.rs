//! How our pages read, as far as a machine can tell.

#![expect(
    clippy::unwrap_used,
    reason = "a repository that cannot be read fails its tests"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Longest source file. Past about 600 lines a page is a question: which two nouns are in here?
const LONGEST_FILE: usize = 900;

/// Longest function body in lines; a third of a screen is the aim, this is the end of patience.
const LONGEST_FUNCTION: usize = 80;

/// Longest line of source.
const LONGEST_LINE: usize = 120;

/// File names that say nothing.
const EMPTY_WORDS: [&str; 7] = [
    "utils", "util", "helpers", "common", "types", "manager", "misc",
];

#[test]
fn files_are_short_and_named_by_a_noun() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if EMPTY_WORDS.contains(&stem.as_str()) || stem == "mod" {
            wrong.push(format!("{}: `{stem}` names nothing", path.display()));
        }
        if text.lines().count() > LONGEST_FILE {
            let lines = text.lines().count();
            wrong.push(format!(
                "{}: {lines} lines; which two nouns are in here?",
                path.display()
            ));
        }
        for (number, line) in text.lines().enumerate() {
            // Texts for people are not broken where they would read worse.
            if line.chars().count() > LONGEST_LINE && !line.contains('"') {
                wrong.push(format!(
                    "{}:{}: longer than {LONGEST_LINE}",
                    path.display(),
                    number + 1
                ));
            }
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn functions_fit_a_screen() {
    let mut wrong = Vec::new();
    // An oracle is one obvious pass over everything: cutting it up would hide what it says.
    let oracle = |path: &Path| path.file_stem().is_some_and(|stem| stem == "oracle");
    for (path, text) in sources().into_iter().filter(|(path, _)| !oracle(path)) {
        for (line, name, length) in functions(&text) {
            if length > LONGEST_FUNCTION {
                wrong.push(format!(
                    "{}:{line}: `{name}` has {length} lines",
                    path.display()
                ));
            }
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_lives_in_files_named_sys() {
    for (path, text) in sources() {
        let lifted = ["expect", "allow"]
            .iter()
            .any(|word| text.contains(&format!("{word}(unsafe_code")));
        let named = path.file_stem().is_some_and(|stem| stem == "sys");
        assert!(
            !lifted || named,
            "{}: unsafe code outside a sys.rs",
            path.display()
        );
    }
}

#[test]
fn nothing_is_unfinished() {
    let marks = [
        "todo".to_owned() + "!(",
        "unimplemented".to_owned() + "!(",
        "FIX".to_owned() + "ME",
    ];
    for (path, text) in sources() {
        for mark in &marks {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}

#[test]
fn every_crate_and_module_tree_says_what_it_is() {
    for (path, text) in sources() {
        let root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        assert!(
            !root || text.starts_with("//!"),
            "{}: no `//!` header",
            path.display()
        );
    }
}

#[test]
fn the_architecture_fits_its_page() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();

    assert!(
        text.lines().count() <= 300,
        "docs/architecture.md is past 300 lines"
    );
}

#[test]
fn what_the_documents_link_to_exists() {
    for name in [
        "README.md",
        "docs/architecture.md",
        "docs/operating.md",
        "docs/policy-test.md",
        "docs/glossary.md",
    ] {
        let page = root().join(name);
        let text = fs::read_to_string(&page).unwrap();
        for target in links(&text) {
            let there = page
                .parent()
                .unwrap()
                .join(target.split('#').next().unwrap_or_default());
            assert!(
                there.exists(),
                "{name} links to {target}, which is not there"
            );
        }
    }
}

#[test]
fn a_long_function_is_noticed() {
    let body = "    let x = 1;\n".repeat(LONGEST_FUNCTION + 1);
    let found = functions(&format!("fn long() {{\n{body}}}\n"));

    assert_eq!(found, [(1, "long".to_owned(), LONGEST_FUNCTION + 1)]);
}

/// Returns every Rust source file of the repository with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    collect(&root(), &mut found);
    assert!(found.len() > 20, "the walk found the sources");

    found
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name.starts_with("target") {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// Returns line, name and body length of every function, by the indentation that rustfmt gives it.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines = text.lines().collect::<Vec<_>>();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let Some(name) = function_name(line.trim_start()) else {
            continue;
        };
        let opens = |line: &&str| line.ends_with('{') || line.ends_with(';');
        let Some(open) = lines[at..].iter().position(opens) else {
            continue;
        };
        if lines[at + open].ends_with(';') {
            continue; // A trait's method without a body.
        }
        let close = format!("{}}}", " ".repeat(indent));
        let rest = &lines[at + open..];
        if let Some(end) = rest.iter().position(|line| *line == close) {
            found.push((at + 1, name, end - 1));
        }
    }

    found
}

fn function_name(line: &str) -> Option<String> {
    let (head, tail) = line.split_once("fn ")?;
    let words = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "async",
        "const",
        "unsafe",
    ];
    let is_function = head.split_whitespace().all(|word| words.contains(&word));
    let name: String = tail
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();

    (is_function && !name.is_empty()).then_some(name)
}

/// Returns the relative targets of Markdown links.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
