//! Removals that no agent heard: kept on disk until one does.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use model::cni::Attachment;

/// What a tombstone's name ends in.
const SUFFIX: &str = ".json";

/// The folder of tombstones: a file for each attachment that the runtime removed while no agent ran.
#[derive(Clone, Debug)]
pub struct Tombstones {
    folder: PathBuf,
}

/// A tombstone as it lies in the folder.
#[derive(Debug)]
pub struct Tombstone {
    /// Its file.
    pub path: PathBuf,
    /// What was removed, or why the file cannot be read.
    pub attachment: io::Result<Attachment>,
}

impl Tombstones {
    /// The tombstones in `folder`, which need not exist yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Notes that an attachment is removed; returns once that survives a loss of power.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn bury(&self, attachment: &Attachment) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let name = format!("{}@{}", attachment.key.container, attachment.key.interface);
        let new = self.folder.join(format!(".{name}.{}", std::process::id()));
        let written = write(&new, &serde_json::to_vec(attachment)?)
            .and_then(|()| fs::rename(&new, self.folder.join(format!("{name}{SUFFIX}"))));
        if let Err(error) = written {
            // What is left of it has no tombstone's name: nobody reads it.
            drop(fs::remove_file(&new));
            return Err(error);
        }

        File::open(&self.folder)?.sync_all()
    }

    /// Returns every tombstone, by name.
    ///
    /// # Errors
    /// The folder cannot be read; that there is none means that there are none.
    pub fn list(&self) -> io::Result<Vec<Tombstone>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.ends_with(SUFFIX) && !name.starts_with('.')) {
                paths.push(path);
            }
        }
        paths.sort();
        let read = |path: PathBuf| {
            let attachment = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            Tombstone { path, attachment }
        };

        Ok(paths.into_iter().map(read).collect())
    }
}

impl Tombstone {
    /// Takes it away: its removal is done.
    ///
    /// # Errors
    /// Those of the file system; that it is gone already is none.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Tombstone {
    /// Puts a file that is not understood out of the way, for somebody to look at.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_aside(&self) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_extension("unreadable"))
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)?;

    file.sync_all()
}

#[cfg(test)]
mod tests {
    use model::cni::{AttachmentKey, CniName, Wishes};

    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment {
            key: AttachmentKey {
                container: CniName::parse(container).unwrap(),
                interface: "eth0".parse().unwrap(),
            },
            network: CniName::parse("mesh").unwrap(),
            netns: None,
            pod: None,
            pod_uid: None,
            wishes: Wishes::default(),
        }
    }

    #[test]
    fn a_removal_is_found_again_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let stones = Tombstones::at(folder.path().join("new/folder"));
        assert!(stones.list().unwrap().is_empty());

        for container in ["b", "a", "b"] {
            stones.bury(&attachment(container)).unwrap();
        }

        let found = stones.list().unwrap();
        let containers: Vec<Attachment> = found
            .iter()
            .map(|stone| stone.attachment.as_ref().unwrap().clone())
            .collect();
        assert_eq!(containers, [attachment("a"), attachment("b")]);
        found[0].clear().unwrap();
        found[0].clear().unwrap();
        assert_eq!(stones.list().unwrap().len(), 1);
    }

    #[test]
    fn half_a_file_is_no_tombstone_and_a_broken_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".a@eth0.17"), "{").unwrap();
        fs::write(folder.path().join("a@eth0.json"), "{").unwrap();

        let found = Tombstones::at(folder.path()).list().unwrap();

        assert_eq!(found.len(), 1);
        assert!(found[0].attachment.is_err());
    }
}
