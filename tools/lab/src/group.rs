//! The control groups of a lab's containers: how they are found, and ended, whatever namespaces they are in.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{poll_until, process::Process, runtime::GROUP};

/// Where control groups are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// How long a group may take to be empty once its processes were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills every process in the lab's groups and removes the groups.
///
/// # Errors
/// Where a group cannot be read or removed.
pub(crate) fn remove(lab: &str) -> io::Result<()> {
    for folder in folders(lab) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Ok(());
        poll_until(deadline, || {
            last = kill(&folder).and_then(|()| prune(&folder));
            last.is_ok()
        });
        last?;
        // The group of all labs goes with its last.
        if let Some(all) = folder.parent()
            && let Err(error) = fs::remove_dir(all)
        {
            tracing::debug!(group = %all.display(), %error, "the group of all labs stays");
        }
    }

    Ok(())
}

/// The lab's group in each hierarchy: one under version 2, several under version 1.
pub(crate) fn folders(lab: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let roots = hierarchies
        .map(|entry| entry.path())
        .chain([PathBuf::from(ROOT)]);
    // Some hierarchies have several names.
    let own: BTreeSet<PathBuf> = roots
        .map(|root| root.join(GROUP).join(lab))
        .filter_map(|folder| fs::canonicalize(folder).ok())
        .collect();

    own.into_iter().collect()
}

fn kill(folder: &Path) -> io::Result<()> {
    for group in children(folder)? {
        kill(&group)?;
    }
    let processes = fs::read_to_string(folder.join("cgroup.procs"))?;
    let pids = processes.lines().filter_map(|line| line.parse().ok());
    for process in pids.filter_map(Process::of) {
        process.signal(Signal::KILL)?;
    }

    Ok(())
}

fn prune(folder: &Path) -> io::Result<()> {
    for group in children(folder)? {
        prune(&group)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut groups = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.path());
        }
    }

    Ok(groups)
}
