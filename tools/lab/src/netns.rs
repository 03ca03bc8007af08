//! A named network namespace, as `ip netns` knows it.
//!
//! A namespace is entered by a thread that ends when its work is done, so nobody else's namespace
//! ever changes; sockets opened there keep it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    netlink::Netlink,
    sys::{self, Unshare},
};

/// Where `ip netns` keeps its names.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace that has a name.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: OwnedFd,
    netlink: Mutex<Netlink>,
}

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The directory of names could not be prepared.
    #[error("{DIRECTORY} cannot be prepared")]
    Directory(#[source] io::Error),
    /// The namespace could not be made.
    #[error("network namespace {name} cannot be made")]
    Create {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("network namespace {name} cannot be entered")]
    Enter {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A setting in `/proc/sys/net` could not be written.
    #[error("{setting} cannot be set in network namespace {name}")]
    Setting {
        /// The namespace.
        name: String,
        /// The file under `/proc/sys/net`.
        setting: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name could not be removed.
    #[error("network namespace {name} cannot be removed")]
    Remove {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What every namespace of a lab is set to: no waiting for duplicate addresses, no addresses from
/// routers, errors told as often as they happen, ping sockets for everybody.
const SETTINGS: [(&str, &str); 12] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/keep_addr_on_down", "1"),
    ("ipv6/conf/default/keep_addr_on_down", "1"),
    ("ipv4/conf/all/promote_secondaries", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];

impl Netns {
    /// Makes a namespace, names it, and brings its loopback up.
    ///
    /// # Errors
    /// [`NetnsError`]; a name in use is an error.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let create = |source| NetnsError::Create {
            name: name.to_owned(),
            source,
        };
        let path = path(name);
        File::create_new(&path).map_err(create)?;
        let made = thread::scope(|scope| {
            let made = scope.spawn(|| {
                sys::unshare(Unshare::Network)?;
                mount_bind("/proc/thread-self/ns/net", &path)?;
                let handle = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
                Ok((handle, Netlink::open()?))
            });
            made.join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
        let (handle, netlink) = made.map_err(create)?;
        let netns = Self {
            name: name.to_owned(),
            handle,
            netlink: Mutex::new(netlink),
        };
        netns.set(&SETTINGS)?;
        netns.netlink().set_up("lo").map_err(create)?;
        Ok(netns)
    }

    /// Opens a namespace that exists.
    ///
    /// # Errors
    /// [`NetnsError::Enter`] where there is none of that name.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let enter = |source| NetnsError::Enter {
            name: name.to_owned(),
            source,
        };
        let handle = OwnedFd::from(File::open(path(name)).map_err(enter)?);
        let netlink = within(&handle, Netlink::open)
            .and_then(|opened| opened)
            .map_err(enter)?;
        Ok(Self {
            name: name.to_owned(),
            handle,
            netlink: Mutex::new(netlink),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Runs something on a thread inside the namespace and waits for it.
    ///
    /// # Errors
    /// [`NetnsError::Enter`]; what `work` returns is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        within(&self.handle, work).map_err(|source| NetnsError::Enter {
            name: self.name.clone(),
            source,
        })
    }

    /// Writes settings; each is a file under `/proc/sys/net` and its content.
    ///
    /// # Errors
    /// [`NetnsError::Setting`] with the first that was refused.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<(), NetnsError> {
        self.run(|| {
            for (setting, value) in settings {
                fs::write(format!("/proc/sys/net/{setting}"), value).map_err(|source| {
                    let setting = (*setting).to_owned();
                    NetnsError::Setting {
                        name: self.name.clone(),
                        setting,
                        source,
                    }
                })?;
            }
            Ok(())
        })?
    }

    /// Its routing socket.
    pub(crate) fn netlink(&self) -> MutexGuard<'_, Netlink> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor that stands for it.
    pub(crate) fn handle(&self) -> &OwnedFd {
        &self.handle
    }
}

/// The file that stands for a namespace.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Gives the network namespace of a process a name.
///
/// # Errors
/// [`NetnsError::Create`]; a name in use is an error.
pub(crate) fn adopt(name: &str, pid: u32) -> Result<(), NetnsError> {
    let adopt = || -> io::Result<()> {
        let path = path(name);
        File::create_new(&path)?;
        Ok(mount_bind(format!("/proc/{pid}/ns/net"), &path)?)
    };
    adopt().map_err(|source| NetnsError::Create {
        name: name.to_owned(),
        source,
    })
}

/// Moves the calling thread into a namespace for good.
///
/// # Errors
/// As `setns(2)`.
pub(crate) fn enter(handle: impl AsFd) -> io::Result<()> {
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Runs something on a thread of its own inside a namespace.
fn within<T: Send>(handle: &OwnedFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let done = scope.spawn(|| enter(handle).map(|()| work()));
        done.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the directory of names a mount that other mount namespaces follow, as `ip netns add` does.
///
/// # Errors
/// [`NetnsError::Directory`].
pub(crate) fn prepare_directory() -> Result<(), NetnsError> {
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(DIRECTORY)?;
        let share = || {
            mount_change(
                DIRECTORY,
                MountPropagationFlags::SHARED | MountPropagationFlags::REC,
            )
        };
        match share() {
            Err(Errno::INVAL) => {
                mount_bind(DIRECTORY, DIRECTORY)?;
                Ok(share()?)
            }
            other => Ok(other?),
        }
    };
    prepare().map_err(NetnsError::Directory)
}

/// Takes a namespace's name away; the namespace goes with the last process in it.
///
/// # Errors
/// [`NetnsError::Remove`]; a name that does not exist is no error.
pub(crate) fn remove(name: &str) -> Result<(), NetnsError> {
    let path = path(name);
    let remove = || -> io::Result<()> {
        match unmount(&path, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    remove().map_err(|source| NetnsError::Remove {
        name: name.to_owned(),
        source,
    })
}
