//! The files that hold a node's keys.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::PrivateKey;

/// First line of a key file: what it is, and its version.
const HEADER: &str = "meshd-wireguard-key 1";

/// A folder of key files.
#[derive(Clone, Debug)]
pub struct Vault {
    folder: PathBuf,
}

/// Which of a node's tunnels a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The first device, `wireguard.cali`.
    First,
    /// The second device, `wg-v6.cali`.
    Second,
}

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The folder could not be made.
    #[error("could not make the key folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("could not read the key file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("could not write the key file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others than its owner may read the file.
    #[error(
        "the key file {path} has mode {mode:o}: others may have read it; delete it for a new key, or chmod 600 it to keep it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is not a key file of a version we know.
    #[error("the key file {path} is not of the form `{HEADER}` and a base64 key")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("could not make a key")]
    Randomness(#[from] rand_core::OsError),
}

impl Vault {
    /// Opens the vault in this folder, making it (mode 0700) where it is missing.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, VaultError> {
        let folder = folder.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| VaultError::Folder {
                path: folder.clone(),
                source,
            })?;

        Ok(Self { folder })
    }

    /// Returns the key of a tunnel, made and kept at the first call.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written, is malformed, or may be read by others.
    /// A damaged file is never replaced: the peers would see another identity.
    pub fn tunnel_key(&self, slot: Slot) -> Result<PrivateKey, VaultError> {
        let path = self.folder.join(slot.file_name());
        if let Some(key) = read(&path)? {
            return Ok(key);
        }

        let key = PrivateKey::generate()?;
        write(&path, &key).map_err(|source| VaultError::Write { path, source })?;

        Ok(key)
    }
}

impl Slot {
    const fn file_name(self) -> &'static str {
        match self {
            Self::First => "wireguard.key",
            Self::Second => "wireguard-second.key",
        }
    }
}

fn read(path: &Path) -> Result<Option<PrivateKey>, VaultError> {
    let failed = |source| VaultError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(VaultError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }

    let mut text = Zeroizing::new(String::with_capacity(128));
    Read::by_ref(&mut file)
        .take(128)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let key = text
        .strip_prefix(HEADER)
        .and_then(|rest| rest.strip_prefix('\n'))
        .and_then(PrivateKey::from_base64);

    key.map(Some).ok_or_else(|| VaultError::Malformed {
        path: path.to_owned(),
    })
}

/// Writes beside the file and renames, so that a crash leaves the old one or the new one.
fn write(path: &Path, key: &PrivateKey) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(HEADER.as_bytes())?;
    file.write_all(b"\n")?;
    file.write_all(key.to_base64().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;

    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();

        let first = open(&folder).tunnel_key(Slot::First).unwrap().public();
        let again = open(&folder).tunnel_key(Slot::First).unwrap().public();

        assert_eq!(first, again);
    }

    #[test]
    fn tunnels_have_different_keys() {
        let folder = tempfile::tempdir().unwrap();
        let vault = open(&folder);

        let first = vault.tunnel_key(Slot::First).unwrap().public();
        let second = vault.tunnel_key(Slot::Second).unwrap().public();

        assert_ne!(first, second);
    }

    #[test]
    fn only_its_owner_reads_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let vault = open(&folder);
        vault.tunnel_key(Slot::First).unwrap();
        let path = folder.path().join("keys/wireguard.key");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&folder.path().join("keys")), 0o700);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();

        assert!(matches!(
            vault.tunnel_key(Slot::First),
            Err(VaultError::Exposed { mode: 0o644, .. })
        ));
    }

    #[test]
    fn a_damaged_key_is_not_replaced_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let vault = open(&folder);
        vault.tunnel_key(Slot::First).unwrap();
        let path = folder.path().join("keys/wireguard.key");
        fs::write(&path, "meshd-wireguard-key 1\nc2VjcmV0\n").unwrap();

        let Err(error) = vault.tunnel_key(Slot::First) else {
            panic!("a damaged key was used")
        };

        assert!(matches!(error, VaultError::Malformed { .. }));
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "meshd-wireguard-key 1\nc2VjcmV0\n"
        );
    }

    fn open(folder: &tempfile::TempDir) -> Vault {
        Vault::open(folder.path().join("keys")).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }
}
