//! The files that hold a node's keys.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{PrivateKey, create_private_folder, write_private};

/// First line of a key file, without its version.
const WORD: &str = "meshd-wireguard-key";

/// The version of the form: the first line's end.
const VERSION: u32 = 1;

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
    /// The file is not a key file.
    #[error(
        "the key file {path} is damaged: it is not `{WORD} {VERSION}` and a base64 key; restore it, or move it away for a new key (the peers then see a new identity)"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file is a key file of a version we do not know.
    #[error(
        "the key file {path} has version {found}, this meshd reads {VERSION}: run the meshd that wrote it, or move it away for a new key (the peers then see a new identity)"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
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
        create_private_folder(&folder).map_err(|source| VaultError::Folder {
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
    parse(&text, path).map(Some)
}

fn parse(text: &str, path: &Path) -> Result<PrivateKey, VaultError> {
    let malformed = || VaultError::Malformed {
        path: path.to_owned(),
    };
    let (first, rest) = text.split_once('\n').ok_or_else(malformed)?;
    let version = first
        .strip_prefix(WORD)
        .and_then(|end| end.strip_prefix(' '));
    let found: u32 = version
        .and_then(|version| version.parse().ok())
        .ok_or_else(malformed)?;
    if found != VERSION {
        return Err(VaultError::Version {
            path: path.to_owned(),
            found,
        });
    }

    PrivateKey::from_base64(rest).ok_or_else(malformed)
}

fn write(path: &Path, key: &PrivateKey) -> io::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(128));
    text.push_str(WORD);
    text.push_str(&format!(" {VERSION}\n"));
    text.push_str(&key.to_base64());
    text.push('\n');

    write_private(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    #[test]
    fn every_damage_of_a_key_file_is_named_and_leaves_it_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let vault = open(&folder);
        vault.tunnel_key(Slot::First).unwrap();
        let path = folder.path().join("keys/wireguard.key");
        let whole = fs::read_to_string(&path).unwrap();

        for length in 0..whole.len() - 1 {
            fs::write(&path, &whole[..length]).unwrap();
            let Err(error) = vault.tunnel_key(Slot::First) else {
                panic!("{length} bytes of a key were used, or replaced")
            };
            assert!(error.to_string().contains("wireguard.key"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), whole[..length]);
        }
    }

    #[test]
    fn a_key_of_a_newer_version_is_refused_by_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let vault = open(&folder);
        let path = folder.path().join("keys/wireguard.key");
        write_private(&path, b"meshd-wireguard-key 2\nwho knows\n").unwrap();

        let Err(error) = vault.tunnel_key(Slot::First) else {
            panic!("a key of an unknown form was used")
        };

        assert!(
            matches!(error, VaultError::Version { found: 2, .. }),
            "{error}"
        );
        assert!(fs::read_to_string(&path).unwrap().ends_with("who knows\n"));
    }

    fn open(folder: &tempfile::TempDir) -> Vault {
        Vault::open(folder.path().join("keys")).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }
}
