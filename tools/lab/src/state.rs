//! What is known of a running lab: one file per lab, which every command reads.
//!
//! `/run/meshd-lab/LAB` is a file system of its own, so that nothing of a lab can outlive it:
//!
//! ```text
//! /run/meshd-lab/LAB/state.json      this file
//!                    mounts/HOST     keeps the host's mount namespace
//!                    hosts/HOST/…    the host's own /run/meshd, /var/lib/meshd, …
//!                    log/NAME.log    what its programs printed
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    layout::{Layout, Route},
    process::{Place, Process},
    spec::{Document, Label, Pod, PodName},
};

/// Where labs keep what is known of them.
pub(crate) const ROOT: &str = "/run/meshd-lab";

/// The version of the form below.
const VERSION: u32 = 1;

/// What is known of a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    version: u32,
    /// The file it was built from.
    pub document: Document,
    /// Addresses and routes.
    pub layout: Layout,
    /// The process whose lab it is; none: it stays until somebody takes it down.
    pub owner: Option<Process>,
    /// Names of its network namespaces, each written down before it is made.
    pub namespaces: Vec<String>,
    /// Its pods.
    pub pods: Vec<PodState>,
    /// Programs that were started.
    pub programs: Vec<ProgramState>,
    /// Routes that were set, by host.
    pub routes: BTreeMap<Label, Vec<Route>>,
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// The node it runs on.
    pub node: Label,
    /// What it was asked to be.
    pub pod: Pod,
    /// Its network namespace.
    pub netns: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its sandbox, where a container runtime made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// A program that was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramState {
    /// What it does, such as `agent`.
    pub name: String,
    /// The host it serves.
    pub host: Label,
    /// The process.
    pub process: Process,
    /// What it printed.
    pub log: PathBuf,
}

/// Why the state of a lab could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No lab of that name runs.
    #[error("no lab called {0} runs; `meshctl lab list` shows those that do")]
    Absent(String),
    /// The file could not be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} is not the state of a lab")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of another version of the program.
    #[error(
        "{path} is of version {found}, not {VERSION}: take the lab down with the program that made it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it bears.
        found: u32,
    },
}

impl State {
    /// The state of a lab of which nothing is made yet.
    pub(crate) fn new(document: Document, layout: Layout, owner: Option<Process>) -> Self {
        Self {
            version: VERSION,
            document,
            layout,
            owner,
            namespaces: Vec::new(),
            pods: Vec::new(),
            programs: Vec::new(),
            routes: BTreeMap::new(),
        }
    }

    /// Reads the state of a lab.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(lab: &str) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let path = file(lab);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Absent(lab.to_owned()));
            }
            Err(source) => return Err(StateError::File { path, source }),
        };
        let content = |source| StateError::Content {
            path: path.clone(),
            source,
        };
        let found = serde_json::from_slice::<Versioned>(&text)
            .map_err(content)?
            .version;
        if found != VERSION {
            return Err(StateError::Version { path, found });
        }
        serde_json::from_slice(&text).map_err(content)
    }

    /// Writes the state, by rename.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(crate) fn write(&self) -> Result<(), StateError> {
        let path = file(self.name());
        let write = || -> io::Result<()> {
            let fresh = path.with_extension("json.new");
            fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| StateError::File {
            path: path.clone(),
            source,
        })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        self.document.metadata.name.as_str()
    }

    /// The namespaces of a host.
    pub fn place(&self, host: &Label) -> Place {
        let keep = folder(self.name()).join("mounts").join(host.as_str());
        let mounts = keep.exists().then_some(keep);
        Place {
            netns: host_netns(self.name(), host),
            mounts,
        }
    }

    /// The pod of that name.
    pub fn pod(&self, name: &PodName) -> Option<&PodState> {
        self.pods.iter().find(|pod| pod.pod.full_name() == *name)
    }
}

/// Name of a host's network namespace.
pub(crate) fn host_netns(lab: &str, host: &Label) -> String {
    format!("{lab}-{host}")
}

/// Name of a network's own namespace, where its bridge is.
pub(crate) fn network_netns(lab: &str, network: &Label) -> String {
    format!("{lab}.{network}")
}

/// Name of a pod's network namespace.
pub(crate) fn pod_netns(lab: &str, node: &Label, pod: &PodName) -> String {
    format!("{lab}-{node}-{}.{}", pod.namespace, pod.name)
}

/// The folder of a lab.
pub(crate) fn folder(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// The folder on the machine that a host sees as one of its own (see [`crate::mount::PLACES`]).
pub(crate) fn host_folder(lab: &str, host: &Label) -> PathBuf {
    folder(lab).join("hosts").join(host.as_str())
}

fn file(lab: &str) -> PathBuf {
    folder(lab).join("state.json")
}

/// Names of all labs, running or left behind.
///
/// # Errors
/// Where the labs' folder cannot be listed.
pub fn names() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// The right to change a lab, held until it is dropped: who has it reads the state that the one before
/// wrote.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The lock is the folder's, for as long as it is open.
    _folder: File,
}

impl Turn {
    /// Waits for the right to change a lab.
    pub(crate) fn wait(lab: &str) -> Result<Self, StateError> {
        let path = folder(lab);
        let folder = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Absent(lab.to_owned()));
            }
            other => other.map_err(|source| StateError::File {
                path: path.clone(),
                source,
            })?,
        };
        flock(&folder, FlockOperation::LockExclusive).map_err(|error| StateError::File {
            path,
            source: error.into(),
        })?;
        Ok(Self { _folder: folder })
    }
}

/// The right to make or remove labs on this machine, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    /// The lock is the folder's, for as long as it is open.
    _folder: File,
}

impl Registry {
    /// Waits for the right.
    pub(crate) fn lock() -> io::Result<Self> {
        loop {
            fs::create_dir_all(ROOT)?;
            let Ok(folder) = File::open(ROOT) else {
                continue;
            };
            flock(&folder, FlockOperation::LockExclusive)?;
            // The last lab may have taken the folder away while we waited.
            let same = fs::metadata(ROOT)
                .is_ok_and(|now| folder.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
            if same {
                return Ok(Self { _folder: folder });
            }
        }
    }

    /// Makes sure that folders exist, and remembers those that did not.
    pub(crate) fn make_folders<'a>(
        &self,
        folders: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<()> {
        let list = Path::new(ROOT).join(".folders");
        let mut made = read_lines(&list)?;
        for folder in folders {
            if !Path::new(folder).exists() {
                fs::create_dir_all(folder)?;
                made.push(folder.to_owned());
            }
        }
        fs::write(list, made.join("\n"))
    }

    /// Removes what no lab needs any more: the folders made for them, and the labs' own.
    pub(crate) fn tidy(&self) -> io::Result<()> {
        if !names()?.is_empty() {
            return Ok(());
        }
        let list = Path::new(ROOT).join(".folders");
        for folder in read_lines(&list)?.iter().rev() {
            // One that somebody has put something into is no longer ours.
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) => tracing::debug!(%folder, %error, "a folder stays"),
            }
        }
        remove_if_there(&list)?;
        fs::remove_dir(ROOT)
    }
}

fn read_lines(file: &Path) -> io::Result<Vec<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
