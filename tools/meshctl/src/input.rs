//! The documents that a command is given: files, folders, the standard input.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use model::manifest::{self, Document, FILE_MAX, ManifestError};

/// Most folders below one another that are read.
const DEPTH_MAX: usize = 32;

/// Which documents a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Input {
    /// A file, a folder, or - for the standard input. May be given several times.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) files: Vec<PathBuf>,

    /// Read the folders in a folder too.
    #[arg(short = 'R', long, requires = "files")]
    pub(crate) recursive: bool,
}

impl Input {
    /// Reads every document. All that is wrong is reported at once.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Document>> {
        let mut files = Vec::new();
        for path in &self.files {
            find(path, self.recursive, 0, &mut files)
                .with_context(|| format!("cannot read {}", path.display()))?;
        }
        let mut documents = Vec::new();
        let mut errors = Vec::new();
        for file in &files {
            let text = text_of(file).with_context(|| format!("cannot read {}", file.display()))?;
            match manifest::parse(&file.display().to_string(), &text) {
                Ok(read) => documents.extend(read),
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            bail!(together(&errors));
        }
        if documents.is_empty() {
            bail!("no objects in {}", names(&self.files));
        }

        Ok(documents)
    }
}

/// Puts errors below one another, with what follows from them.
pub(crate) fn together(errors: &[ManifestError]) -> String {
    let lines: Vec<_> = errors.iter().map(|error| format!("\n  {error}")).collect();

    format!("nothing was stored:{}", lines.concat())
}

/// Collects the files of a path: itself, or the YAML and JSON files of a folder by name.
fn find(path: &Path, recursive: bool, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.as_os_str() == "-" || !fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(io::Error::other(format!(
            "more than {DEPTH_MAX} folders below one another"
        )));
    }
    let mut entries = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        if fs::metadata(&entry)?.is_dir() {
            if recursive {
                find(&entry, recursive, depth + 1, files)?;
            }
        } else if entry
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
        {
            files.push(entry);
        }
    }

    Ok(())
}

fn text_of(path: &Path) -> io::Result<String> {
    let limit = FILE_MAX as u64 + 1;
    let mut text = String::new();
    if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_string(&mut text)?;
    } else {
        fs::File::open(path)?
            .take(limit)
            .read_to_string(&mut text)?;
    }

    Ok(text)
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();

    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_yaml_and_json_in_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("b.yaml", namespace("b")),
            ("a.yml", namespace("a")),
            ("notes.txt", "no: yaml: at: all".into()),
            (
                "deep/c.json",
                r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}"#.into(),
            ),
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let names = |recursive| {
            let input = Input {
                files: vec![folder.path().to_owned()],
                recursive,
            };
            let documents = input.read().unwrap();
            documents
                .iter()
                .map(|document| document.object.metadata.name.clone())
                .collect::<Vec<_>>()
        };

        assert_eq!(names(false), ["a", "b"]);
        assert_eq!(names(true), ["a", "b", "c"]);
    }

    #[test]
    fn all_that_is_wrong_in_all_files_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = ["x.yaml", "y.yaml"]
            .iter()
            .map(|name| {
                let path = folder.path().join(name);
                fs::write(&path, namespace("Not_A_Name")).unwrap();
                path
            })
            .collect();

        let error = Input {
            files,
            recursive: false,
        }
        .read()
        .unwrap_err()
        .to_string();

        assert!(error.starts_with("nothing was stored:\n  "), "{error}");
        assert!(
            error.contains("x.yaml, document 1: metadata.name:"),
            "{error}"
        );
        assert!(
            error.contains("y.yaml, document 1: metadata.name:"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_there_or_empty_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.yaml");
        let read = |path: &Path| {
            let input = Input {
                files: vec![path.to_owned()],
                recursive: false,
            };
            format!("{:#}", input.read().unwrap_err())
        };

        assert!(read(&missing).contains("missing.yaml: No such file"));
        assert!(read(folder.path()).starts_with("no objects in "));
    }

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }
}
