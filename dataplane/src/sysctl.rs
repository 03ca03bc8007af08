//! Values under `/proc/sys`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use model::Change;

use crate::{Absent, Target};

/// Where the kernel's settings are. The network's are those of the calling thread's namespace.
const ROOT: &str = "/proc/sys";

/// Keeps values under `/proc/sys`; keys are paths below it, as in `net/ipv4/ip_forward`.
///
/// A value that is no longer wanted stays: what it was before us is not known.
#[derive(Debug, Default)]
pub struct SysctlTarget {
    /// What we were told to keep: only this can be looked at.
    kept: BTreeSet<String>,
}

/// Why a value could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The key leaves `/proc/sys`.
    #[error("{0:?} is not a path below /proc/sys")]
    Key(String),
    /// The value could not be read.
    #[error("could not read {0}")]
    Read(String, #[source] io::Error),
    /// The value could not be written.
    #[error("could not write {0}")]
    Write(String, #[source] io::Error),
}

impl SysctlTarget {
    /// Creates a target that keeps nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Target for SysctlTarget {
    type Key = String;
    type Row = String;
    type Error = SysctlError;

    fn observe(&mut self) -> Result<BTreeMap<String, String>, SysctlError> {
        let mut found = BTreeMap::new();
        for key in &self.kept {
            if let Some(value) = read(key)? {
                found.insert(key.clone(), value);
            }
        }

        Ok(found)
    }

    fn apply(
        &mut self,
        changes: &[Change<String, String>],
    ) -> Result<Vec<Absent<String>>, SysctlError> {
        let mut absent = Vec::new();
        for change in changes {
            match change {
                Change::Unset(key) => {
                    self.kept.remove(key);
                }
                Change::Set(key, value) => {
                    self.kept.insert(key.clone());
                    if !write(key, value)? {
                        let reason = format!("{key} is not there");
                        absent.push(Absent {
                            key: key.clone(),
                            reason,
                        });
                    }
                }
            }
        }

        Ok(absent)
    }
}

/// Reads a value; `None` where there is none of this name.
///
/// # Errors
///
/// [`SysctlError`] where the key leaves `/proc/sys`, or the kernel refuses.
pub fn read(key: &str) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(path(key)?) {
        // The kernel parts lists by tabs, whatever they were written with.
        Ok(text) => Ok(Some(text.split_whitespace().collect::<Vec<_>>().join(" "))),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(SysctlError::Read(key.to_owned(), error)),
    }
}

/// Writes a value where it differs; returns whether there is one of this name.
///
/// # Errors
///
/// [`SysctlError`] where the key leaves `/proc/sys`, or the kernel refuses.
pub fn write(key: &str, value: &str) -> Result<bool, SysctlError> {
    match read(key)? {
        None => Ok(false),
        Some(found) if found == value => Ok(true),
        Some(_) => match fs::write(path(key)?, value) {
            Ok(()) => Ok(true),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(SysctlError::Write(key.to_owned(), error)),
        },
    }
}

/// Returns whether a file, or the device it speaks of, is not there.
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn path(key: &str) -> Result<PathBuf, SysctlError> {
    let relative = Path::new(key);
    let plain = relative
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain || key.is_empty() {
        return Err(SysctlError::Key(key.chars().take(64).collect()));
    }

    Ok(Path::new(ROOT).join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_root() {
        for bad in ["", "/etc/passwd", "net/../../etc/passwd", "./net"] {
            assert!(matches!(path(bad), Err(SysctlError::Key(_))), "{bad}");
        }
        assert!(path("net/ipv4/conf/wireguard.cali/rp_filter").is_ok());
    }
}
