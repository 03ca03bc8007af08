//! Files that only their owner reads, written whole or not at all.
//!
//! ```text
//! NAME.new (0600, locked) ─ write ─ fsync ─▶ rename to NAME ─▶ fsync of the folder
//! ```
//!
//! The one way in which meshd writes a file that a later start reads. Killed or without power at any
//! point, the file is the old one or the new one, whole; `NAME.new` may be left, is never read, and is
//! written over the next time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Writes a file with mode 0600 by rename: a reader sees the old content or the new, never a part.
///
/// Both the content and the name are on disk when this returns. Writers of the same file take turns.
///
/// # Errors
///
/// Whatever the file system says. Unless the last step failed, the old file is untouched; that step
/// makes the new name survive a loss of power.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = beside(path)?;
    let mut file = open_alone(&beside)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;

    sync_folder(path)
}

/// Makes a folder, with its parents, that only its owner enters; one that is there stays as it is.
///
/// Each new folder's name is on disk before anything is written into it.
///
/// # Errors
///
/// Whatever the file system says.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_private_folder(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }

    sync_folder(path)
}

/// Removes a file for good; none there is no error.
///
/// # Errors
///
/// Whatever the file system says.
pub fn remove_private(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens the file beside, once nobody else writes it.
fn open_alone(beside: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(beside)?;
        file.lock()?;
        // Whoever held the lock until now has renamed that file: it is no longer beside.
        if is_at(&file, beside)? {
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;

    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts the names in a path's folder on disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };

    File::open(folder)?.sync_all()
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut beside = name.to_owned();
    beside.push(".new");

    Ok(path.with_file_name(beside))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_private_file_is_readable_by_its_owner_alone_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");

        write_private(&path, b"first").unwrap();
        write_private(&path, b"2").unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(names(folder.path()), ["secret"], "nothing else is left");
    }

    #[test]
    fn what_a_killed_writer_left_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, left) = (folder.path().join("it"), folder.path().join("it.new"));
        fs::write(&left, "a half that is longer than the whole").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();

        write_private(&path, b"whole").unwrap();

        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(names(folder.path()), ["it"]);
    }

    #[test]
    fn writers_at_the_same_time_leave_the_words_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it");
        let words = [b"a".repeat(70_000), b"bc".repeat(9_000), b"d".to_vec()];
        thread::scope(|scope| {
            for word in &words {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_private(path, word).unwrap();
                        let read = fs::read(path).unwrap();
                        assert!(words_of_one(&read), "torn: {} bytes", read.len());
                    }
                });
            }
        });

        assert!(words.contains(&fs::read(&path).unwrap()));
    }

    #[test]
    fn a_folder_is_made_with_its_parents_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");

        create_private_folder(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
        assert_eq!(mode(&folder.path().join("a")), 0o700);

        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        create_private_folder(&inner).unwrap();
        assert_eq!(mode(&inner), 0o755);
    }

    fn words_of_one(read: &[u8]) -> bool {
        match read.first() {
            Some(b'a') => read.len() == 70_000 && read.iter().all(|byte| *byte == b'a'),
            Some(b'b') => read.len() == 18_000,
            Some(b'd') => read.len() == 1,
            Some(_) | None => false,
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();

        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }
}
