//! State files: JSON with a version, written whole, refused by name.
//!
//! **Invariants:** the version is read before anything else, so that a file of a newer meshd is
//! refused for what it is; a file that is refused is left as it is; what is wrong is said with the
//! path and with what to do.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest state file that is read, in bytes: a guard of a hundred thousand networks has room.
const LONGEST: u64 = 64 * 1024 * 1024;

/// Why a state file cannot be used. `remedy` says what its reader makes of that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// The system would not let us read it.
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is longer than any that we write.
    #[error("{path} is longer than {LONGEST} bytes: {remedy}")]
    Long { path: PathBuf, remedy: &'static str },
    /// It is empty, cut off, or something else.
    #[error("{path} is damaged (line {line}, column {column}): {remedy}")]
    Damaged {
        path: PathBuf,
        line: usize,
        column: usize,
        remedy: &'static str,
    },
    /// Another version of meshd wrote it.
    #[error("{path} has version {found}, this meshd reads {known}: {remedy}")]
    Version {
        path: PathBuf,
        found: u64,
        known: u32,
        remedy: &'static str,
    },
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Serialize)]
struct Stored<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Reads a state file; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
    known: u32,
    remedy: &'static str,
) -> Result<Option<T>, Unreadable> {
    let Some(text) = read_bounded(path, remedy)? else {
        return Ok(None);
    };
    let damaged = |error: serde_json::Error| Unreadable::Damaged {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        remedy,
    };
    let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version != u64::from(known) {
        return Err(Unreadable::Version {
            path: path.to_owned(),
            found: version,
            known,
            remedy,
        });
    }

    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Writes a state file whole.
///
/// # Errors
///
/// Whatever the file system says; the old file is then untouched.
pub(crate) fn write<T: Serialize>(path: &Path, version: u32, content: &T) -> io::Result<()> {
    let text = serde_json::to_vec(&Stored { version, content })?;

    keyring::write_private(path, &text)
}

fn read_bounded(path: &Path, remedy: &'static str) -> Result<Option<Vec<u8>>, Unreadable> {
    let failed = |source| Unreadable::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(Unreadable::Long {
            path: path.to_owned(),
            remedy,
        });
    }

    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Content {
        words: Vec<String>,
    }

    #[test]
    fn what_is_written_is_read_and_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.json");
        assert_eq!(read::<Content>(&path, 1, "").unwrap(), None);

        write(&path, 1, &content()).unwrap();

        assert_eq!(read(&path, 1, "").unwrap(), Some(content()));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_damaged_never_read_nor_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.json");
        write(&path, 1, &content()).unwrap();
        let whole = fs::read(&path).unwrap();

        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = read::<Content>(&path, 1, "do this").unwrap_err();
            assert!(matches!(error, Unreadable::Damaged { .. }), "{error}");
            let said = error.to_string();
            assert!(
                said.contains("it.json") && said.ends_with("do this"),
                "{said}"
            );
            assert_eq!(fs::read(&path).unwrap(), whole[..length]);
        }
    }

    #[test]
    fn a_newer_form_is_refused_by_its_version_whatever_else_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.json");
        fs::write(&path, r#"{"shape": [], "version": 7}"#).unwrap();

        let error = read::<Content>(&path, 1, "do this").unwrap_err();

        assert_eq!(
            error.to_string(),
            format!(
                "{} has version 7, this meshd reads 1: do this",
                path.display()
            )
        );
    }

    fn content() -> Content {
        Content {
            words: vec!["one".to_owned(), "two".to_owned()],
        }
    }
}
