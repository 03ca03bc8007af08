//! A host's own mount namespace: the folders that the mesh's programs write to are the host's alone.
//!
//! It follows the machine's mounts (so that a pod's network namespace, named later, is seen), hides
//! [`PLACES`] behind folders of the lab's state, and shows the devices of its network namespace in
//! `/sys`, and the machine's control groups where it has them. A file in the lab's state keeps it alive
//! without a process.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    thread,
};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
};

use crate::{
    group,
    netns::{self, Netns},
    sys::{self, Unshare},
};

/// What each host has of its own: the folder on the machine, and its name in the lab's state.
pub(crate) const PLACES: [(&str, &str); 8] = [
    ("/run/meshd", "run-meshd"),
    ("/run/wireguard", "run-wireguard"),
    ("/var/lib/meshd", "var-lib-meshd"),
    ("/etc/cni", "etc-cni"),
    ("/opt/cni", "opt-cni"),
    ("/var/lib/cni", "var-lib-cni"),
    ("/run/containerd", "run-containerd"),
    ("/etc/meshd", "etc-meshd"),
];

/// Why a mount namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A folder of the host's state could not be made.
    #[error("{folder} cannot be made")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be made.
    #[error("the mount namespace of {host} cannot be made")]
    Create {
        /// The host's network namespace.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be kept.
    #[error("{name} cannot keep a mount namespace")]
    Keep {
        /// The file meant to keep it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the mount namespace of a host: `folder` holds its state, the file `keep` keeps it alive.
///
/// `keep` must lie on a mount that is not shared with other mount namespaces.
///
/// # Errors
/// [`MountError`].
pub(crate) fn create(netns: &Netns, folder: &Path, keep: &Path) -> Result<(), MountError> {
    for (_, own) in PLACES {
        let path = folder.join(own);
        fs::create_dir_all(&path).map_err(|source| MountError::Folder {
            folder: path.display().to_string(),
            source,
        })?;
    }
    let made = thread::scope(|scope| {
        let made = scope.spawn(|| inside(netns, folder));
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    });
    let host = || netns.name().to_owned();
    let handle = made.map_err(|source| MountError::Create {
        host: host(),
        source,
    })?;
    let bind = || -> io::Result<()> {
        File::create_new(keep)?;
        Ok(mount_bind(
            format!("/proc/self/fd/{}", handle.as_raw_fd()),
            keep,
        )?)
    };
    bind().map_err(|source| MountError::Keep {
        name: keep.display().to_string(),
        source,
    })
}

/// What the new namespace's first thread does; it ends right after.
fn inside(host: &Netns, folder: &Path) -> io::Result<OwnedFd> {
    netns::enter(host.handle())?;
    sys::unshare(Unshare::Mounts)?;
    let follow = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
    mount_change("/", follow)?;
    let groups = fs::metadata(group::ROOT).and_then(|_| File::open(group::ROOT));
    mount(
        "lab",
        "/sys",
        "sysfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        None,
    )?;
    if let Ok(groups) = groups
        && Path::new(group::ROOT).exists()
    {
        let hidden = format!("/proc/thread-self/fd/{}", groups.as_raw_fd());
        mount_bind_recursive(hidden, group::ROOT)?;
    }
    for (place, own) in PLACES {
        mount_bind(folder.join(own), place)?;
    }
    Ok(OwnedFd::from(File::open("/proc/thread-self/ns/mnt")?))
}
