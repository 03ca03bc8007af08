//! Files of policy tests, and the files of objects that they name.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use model::manifest::{self, FILE_MAX};
use policy::scenario::{PolicyTest, Source};

/// Most files that one pattern may match.
const MATCHES_MAX: usize = 10_000;

/// A policy test and the objects that it names.
pub(crate) struct Case {
    /// Where it stands, for people.
    pub(crate) place: String,
    pub(crate) test: PolicyTest,
    pub(crate) sources: Vec<Source>,
}

/// Reads every policy test of a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Case>> {
    let shown = path.display().to_string();
    let text = text_of(path).with_context(|| format!("cannot read {shown}"))?;
    let folder = match path.parent() {
        Some(folder) if path.as_os_str() != "-" => folder,
        Some(_) | None => Path::new("."),
    };
    let values = manifest::values(&text);
    let several = values.len() > 1;
    let mut cases = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let place = if several {
            format!("{shown}, document {}", index + 1)
        } else {
            shown.clone()
        };
        let value = value.with_context(|| place.clone())?;
        let test = PolicyTest::parse(&value).with_context(|| place.clone())?;
        let sources = sources(folder, &test.resource_files).with_context(|| place.clone())?;
        cases.push(Case {
            place,
            test,
            sources,
        });
    }
    if cases.is_empty() {
        bail!("{shown}: no policy test in it");
    }

    Ok(cases)
}

/// Reads the objects of every file that a pattern matches.
pub(super) fn sources(folder: &Path, patterns: &[String]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for pattern in patterns {
        let files = matches(folder, pattern)
            .with_context(|| format!("resourceFiles: cannot look for {pattern}"))?;
        if files.is_empty() {
            bail!("resourceFiles: no file matches {pattern}");
        }
        for file in files {
            let shown = file.display().to_string();
            let text = text_of(&file).with_context(|| format!("cannot read {shown}"))?;
            let values = manifest::values(&text).into_iter().enumerate();
            sources.extend(values.map(|(index, value)| Source {
                value: value.map_err(|fault| fault.to_string()),
                position: format!("{shown}, document {}", index + 1),
            }));
        }
    }

    Ok(sources)
}

/// Returns the files that a pattern matches, in order: `*` and `?` stand for anything within one name.
fn matches(folder: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = match pattern.strip_prefix('/') {
        Some(_) => vec![PathBuf::from("/")],
        None => vec![folder.to_owned()],
    };
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for path in found {
            if !part.contains(['*', '?']) {
                next.push(path.join(part));
                continue;
            }
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let name = entry?.file_name();
                let Some(name) = name.to_str() else { continue };
                let hidden = name.starts_with('.') && !part.starts_with('.');
                if !hidden && is_match(part.as_bytes(), name.as_bytes()) {
                    next.push(path.join(name));
                }
            }
        }
        if next.len() > MATCHES_MAX {
            return Err(io::Error::other(format!("more than {MATCHES_MAX} files")));
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();

    Ok(found)
}

/// Returns whether a name is what a pattern stands for. Linear: of several stars only the last is tried again.
fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                star = Some((at, read));
                at += 1;
            }
            (Some(wanted), _) if *wanted == b'?' || *wanted == name[read] => {
                at += 1;
                read += 1;
            }
            (Some(_) | None, Some((place, from))) => {
                star = Some((place, from + 1));
                at = place + 1;
                read = from + 1;
            }
            (Some(_) | None, None) => return false,
        }
    }

    pattern[at..].iter().all(|byte| *byte == b'*')
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let limit = FILE_MAX as u64 + 1;
    if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_string(&mut text)?;
    } else {
        fs::File::open(path)?
            .take(limit)
            .read_to_string(&mut text)?;
    }

    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_names() {
        for (pattern, name, matches) in [
            ("*.yaml", "a.yaml", true),
            ("*.yaml", ".yaml", true),
            ("*.yaml", "a.yml", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xaxxbx", true),
            ("*a*b", "xaxbx", false),
            ("", "", true),
        ] {
            assert_eq!(
                is_match(pattern.as_bytes(), name.as_bytes()),
                matches,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn files_are_found_beside_the_test_in_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("policies/deep")).unwrap();
        for name in [
            "policies/b.yaml",
            "policies/a.yaml",
            "policies/.c.yaml",
            "policies/deep/d.yaml",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = |pattern: &str| -> Vec<String> {
            let files = matches(folder.path(), pattern).unwrap();
            let names = files
                .iter()
                .map(|file| file.strip_prefix(folder.path()).unwrap());
            names.map(|name| name.display().to_string()).collect()
        };

        assert_eq!(
            found("policies/*.yaml"),
            ["policies/a.yaml", "policies/b.yaml"]
        );
        assert_eq!(found("*/*/*.yaml"), ["policies/deep/d.yaml"]);
        assert_eq!(found("policies/b.yaml"), ["policies/b.yaml"]);
        assert!(found("policies/x.yaml").is_empty());
    }
}
