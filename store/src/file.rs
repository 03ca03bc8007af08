//! Files of the store; what is replaced is written by [`write_private`], whole or not at all.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

pub(crate) use keyring::{create_private_folder, write_private};

/// Makes an empty file with mode 0600 where there is none; its name is on disk when this returns.
pub(crate) fn touch_private(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;

    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a text of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(limit + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "longer than any valid one",
        ));
    }

    Ok(text)
}
