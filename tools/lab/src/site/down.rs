//! Taking a lab down, however much of it is left: nothing here relies on the lab's own memory alone.
//!
//! Namespaces are found by the state and by their names, processes by the namespaces they are in.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::mount::{UnmountFlags, unmount};

use super::{During, Site, SiteError};
use crate::{
    netns, poll_until, process,
    state::{self, Registry, State},
};

/// How long the kernel may take to let go of a lab's folder.
const PATIENCE: Duration = Duration::from_secs(5);

impl Site {
    /// Takes the lab down and leaves nothing behind.
    ///
    /// # Errors
    /// [`SiteError`] with what could not be removed.
    pub fn down(mut self) -> Result<(), SiteError> {
        let name = self.name().to_owned();
        self.echoes.clear();
        self.links.clear();
        self.spaces.clear();
        let removed = remove(&name);
        for child in &mut self.children {
            child
                .wait()
                .during(|| "a program of the lab is not reaped".to_owned())?;
        }
        removed
    }
}

/// Removes everything that belongs to a lab of that name; one that does not exist is an error.
///
/// # Errors
/// [`SiteError`] with what could not be removed.
pub fn remove(name: &str) -> Result<(), SiteError> {
    let _registry = Registry::lock().during(|| "the list of labs cannot be locked".to_owned())?;
    let gone = dismantle(name);
    _registry
        .tidy()
        .during(|| "the labs' folder cannot be tidied".to_owned())?;
    gone
}

/// Removes the labs whose owner is gone. What fails is logged, for nobody asked for it.
pub(super) fn remove_orphans() {
    let names = state::names().unwrap_or_default();
    for name in names {
        let Ok(state) = State::read(&name) else {
            continue;
        };
        if state.owner.is_some_and(|owner| !owner.is_alive())
            && let Err(error) = dismantle(&name)
        {
            tracing::warn!(lab = name, %error, "a lab without owner could not be removed");
        }
    }
}

/// The work of [`remove`], for a caller who holds the registry.
fn dismantle(name: &str) -> Result<(), SiteError> {
    let spaces = namespaces(name)?;
    let folder = state::folder(name);
    if spaces.is_empty() && !folder.exists() {
        return Err(crate::state::StateError::Absent(name.to_owned()).into());
    }
    let mounts = mounts(&folder);
    super::container::remove_groups(name)?;
    end_members(name, &spaces, &mounts)?;
    for mount in &mounts {
        forget(mount).during(|| format!("{} is still mounted", mount.display()))?;
    }
    for space in &spaces {
        netns::remove(space)?;
    }
    remove_folder(&folder).during(|| format!("{} cannot be removed", folder.display()))
}

/// Every network namespace of the lab: those it wrote down, and those that bear its name and are no
/// other lab's.
fn namespaces(name: &str) -> Result<BTreeSet<String>, SiteError> {
    let mut ours: BTreeSet<String> = match State::read(name) {
        Ok(state) => state.namespaces.into_iter().collect(),
        Err(_) => BTreeSet::new(),
    };
    let mut foreign = BTreeSet::new();
    let step = || "the labs cannot be listed".to_owned();
    for other in state::names()
        .during(step)?
        .into_iter()
        .filter(|other| other != name)
    {
        foreign.extend(
            State::read(&other)
                .map(|state| state.namespaces)
                .unwrap_or_default(),
        );
    }
    let entries = match fs::read_dir(netns::DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.during(step)?,
    };
    let mut there = BTreeSet::new();
    for entry in entries {
        there.extend(entry.during(step)?.file_name().into_string());
    }
    let bears_name = |space: &String| {
        space
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['-', '.']))
    };
    let orphans = there
        .iter()
        .filter(|s| bears_name(s) && !foreign.contains(*s))
        .cloned();
    ours.extend(orphans);
    ours.retain(|space| there.contains(space));
    Ok(ours)
}

/// The files that keep the hosts' mount namespaces.
fn mounts(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("mounts"));
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// Ends every process inside the lab's namespaces.
fn end_members(name: &str, spaces: &BTreeSet<String>, mounts: &[PathBuf]) -> Result<(), SiteError> {
    let step = || format!("the processes of lab {name} do not end");
    let networks = spaces.iter().map(|space| netns::path(space));
    let files: Vec<PathBuf> = networks.chain(mounts.iter().cloned()).collect();
    // A program may start another while we look; the second round finds it.
    for _ in 0..3 {
        let members = process::inside(&files).during(step)?;
        if members.is_empty() {
            return Ok(());
        }
        process::end(&members).during(step)?;
    }
    let left = process::inside(&files).during(step)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("still there: {left:?}"))).during(step)
}

pub(super) fn forget(keep: &Path) -> io::Result<()> {
    match unmount(keep, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    match unmount(folder, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + PATIENCE;
    let mut last = Ok(());
    poll_until(deadline, || {
        last = fs::remove_dir_all(folder);
        last.is_ok()
    });
    last
}
