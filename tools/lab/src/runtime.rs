//! A real container runtime on a node of a lab: containerd, driven as a kubelet drives it, with `meshd-cni` as its
//! network.
//!
//! ```text
//! Engine ──containerd.toml, /etc/cni, /opt/cni──▶ containerd ──▶ runc, shims (cgroup /meshd-lab/LAB/NODE)
//!    └───cri run | remove | list ───CRI──────────────▲   └──ADD, DEL──▶ meshd-cni ──▶ agent
//! ```
//!
//! Everything it writes lies in the node's own folders of the lab; the machine's own containerd, if there is one, is
//! neither asked nor seen. Images come from a file: nothing is downloaded.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::process::{Place, Program};

/// The folder of the tools that `tools/setup` unpacks and builds, where it is not in the user's cache.
const FOLDER_VARIABLE: &str = "MESHD_TOOLS_DIR";

/// The image of every container, which is also the sandbox's.
pub const IMAGE: &str = "meshd.test/pod:1";

/// The control group that holds all labs'.
pub(crate) const GROUP: &str = "meshd-lab";

/// The namespace of containerd that the Container Runtime Interface uses.
const CRI: &str = "k8s.io";

/// Where a node's plugins are, in its own mount namespace.
const PLUGINS: &str = "/opt/cni/bin";

/// Where a node's network configurations are, in its own mount namespace.
const NETWORKS: &str = "/etc/cni/net.d";

/// Where distributions install plugins.
const USUAL_PLUGINS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// The network configuration of a node, in the words of the newest specification that containerd 1.6 speaks.
pub const NETWORK: &str =
    r#"{"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [{"type": "meshd"}]}"#;

/// Why a container runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Something that `tools/setup` provides is not there.
    #[error("there is no {name} in {folders:?}; run tools/setup, or set {FOLDER_VARIABLE}")]
    Missing {
        /// What.
        name: &'static str,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// A file of the node could not be written.
    #[error("{path} cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("{what}")]
    Command {
        /// What was to be done.
        what: String,
        /// What the program said.
        #[source]
        source: io::Error,
    },
    /// A command printed something else than was expected.
    #[error("{what}: not understood")]
    Answer {
        /// What was to be done.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Programs and files that a runtime needs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Where the distribution's packages were unpacked; their programs also count where they are installed.
    unpacked: PathBuf,
    /// What was built for tests and labs: `cri`, `cnitool`, `pod.tar`.
    built: PathBuf,
}

/// The container runtime of one node.
#[derive(Clone, Debug)]
pub struct Engine {
    tools: Tools,
    place: Place,
    folder: PathBuf,
    group: String,
}

/// What a container is to be.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wanted {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    #[serde(rename = "UID")]
    pub uid: String,
    /// What the runtime is told of its labels.
    pub labels: BTreeMap<String, String>,
    /// What its program is told: `serve 80`, `pause`.
    pub arguments: Vec<String>,
    /// Ports of the host that lead to it.
    pub ports: Vec<HostPort>,
}

/// A port of the host that leads to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostPort {
    /// The container's port.
    pub container_port: u16,
    /// The host's port.
    pub host_port: u16,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Started {
    /// Its sandbox.
    pub sandbox: String,
    /// The container in it.
    pub container: String,
    /// The sandbox's first process.
    pub pid: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A sandbox that the runtime knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sandbox {
    /// Its identifier.
    pub sandbox: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Whether it runs.
    pub ready: bool,
}

impl Tools {
    /// Finds the tools.
    ///
    /// # Errors
    /// [`RuntimeError::Missing`] with the first that is not there.
    pub fn find() -> Result<Self, RuntimeError> {
        let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
        let folder = folder.unwrap_or_else(|| cache().join("meshd").join("tools"));
        let tools = Self {
            unpacked: folder.join("containers"),
            built: folder.join("runtime"),
        };
        for name in ["containerd", "containerd-shim-runc-v2", "ctr", "runc"] {
            tools.program(name)?;
        }
        for name in ["cri", "pod.tar"] {
            tools.built(name)?;
        }
        tools.plugins()?;

        Ok(tools)
    }

    /// A program of the distribution's.
    ///
    /// # Errors
    /// [`RuntimeError::Missing`].
    pub fn program(&self, name: &'static str) -> Result<PathBuf, RuntimeError> {
        found(name, self.search_path())
    }

    /// A program or file that was built for tests and labs.
    ///
    /// # Errors
    /// [`RuntimeError::Missing`].
    pub fn built(&self, name: &'static str) -> Result<PathBuf, RuntimeError> {
        found(name, vec![self.built.clone()])
    }

    /// The folder of the distribution's CNI plugins.
    ///
    /// # Errors
    /// [`RuntimeError::Missing`].
    pub fn plugins(&self) -> Result<PathBuf, RuntimeError> {
        let mut folders = vec![self.unpacked.join("usr/lib/cni")];
        folders.extend(USUAL_PLUGINS.map(PathBuf::from));
        let loopback = found("loopback", folders)?;

        Ok(loopback.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Variables by which unpacked programs find each other and their libraries.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = std::env::join_paths(self.search_path()).unwrap_or_default();
        let libraries = ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|machine| {
            let places = ["usr/lib", "lib"];
            let folders = places.map(|place| self.unpacked.join(place).join(machine));
            folders.map(|folder| folder.display().to_string()).join(":")
        });

        vec![
            ("PATH".to_owned(), path.to_string_lossy().into_owned()),
            ("LD_LIBRARY_PATH".to_owned(), libraries.join(":")),
        ]
    }

    fn search_path(&self) -> Vec<PathBuf> {
        let unpacked = ["usr/bin", "usr/sbin"].map(|folder| self.unpacked.join(folder));
        let usual = std::env::var_os("PATH").unwrap_or_default();

        unpacked
            .into_iter()
            .chain(std::env::split_paths(&usual))
            .collect()
    }
}

impl Engine {
    /// The runtime of a node whose namespaces are `place`; `folder` holds the node's state in the lab.
    pub(crate) fn new(tools: Tools, lab: &str, node: &str, place: Place, folder: &Path) -> Self {
        Self {
            tools,
            place,
            folder: folder.to_owned(),
            group: format!("/{GROUP}/{lab}/{node}"),
        }
    }

    /// Its programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Writes configuration and plugins; returns the program that serves.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub(crate) fn prepare(&self, meshd_cni: &Path) -> Result<Program, RuntimeError> {
        let file = self.folder.join("containerd.toml");
        write(&file, &self.configuration())?;
        self.install(meshd_cni)?;
        self.set_network(NETWORK)?;
        let config = file.display().to_string();
        let mut program = Program::new(
            &self.tools.program("containerd")?,
            ["--config", config.as_str()],
        );
        program.environment = self.tools.environment();

        Ok(program)
    }

    /// Has the node's containers use this network from now on: a list of plugins, as CNI has it.
    ///
    /// # Errors
    /// [`RuntimeError::Write`].
    pub fn set_network(&self, list: &str) -> Result<(), RuntimeError> {
        let folder = self.seen_here(NETWORKS);
        make_folder(&folder)?;
        let (fresh, file) = (folder.join(".new"), folder.join("10-meshd.conflist"));
        write(&fresh, list)?;

        fs::rename(&fresh, &file).map_err(|source| RuntimeError::Write { path: file, source })
    }

    /// The plugins: the distribution's, and ours by its name in configurations.
    fn install(&self, meshd_cni: &Path) -> Result<(), RuntimeError> {
        let folder = self.seen_here(PLUGINS);
        make_folder(&folder)?;
        let theirs = self.tools.plugins()?;
        let listed = fs::read_dir(&theirs).map_err(|source| RuntimeError::Write {
            path: theirs.clone(),
            source,
        })?;
        let theirs = listed
            .flatten()
            .map(|entry| (entry.path(), entry.file_name()));
        for (plugin, name) in theirs.chain([(meshd_cni.to_owned(), "meshd".into())]) {
            let path = folder.join(name);
            match symlink(&plugin, &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(RuntimeError::Write {
                        path,
                        source: error,
                    });
                }
                Ok(()) | Err(_) => {}
            }
        }

        Ok(())
    }

    /// Waits until the runtime answers, and gives it its image.
    ///
    /// # Errors
    /// [`RuntimeError::Command`].
    pub(crate) fn load(&self) -> Result<(), RuntimeError> {
        let image = self.tools.built("pod.tar")?.display().to_string();
        let socket = self.socket().display().to_string();
        let arguments = ["-a", &socket, "-n", CRI, "images", "import", &image];
        let program = Program::new(&self.tools.program("ctr")?, arguments);
        self.command("the image is loaded", program)?;

        self.cri(&["version"]).map(drop)
    }

    /// The runtime's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// The node's namespaces.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts a sandbox and its container; what fails leaves nothing.
    ///
    /// # Errors
    /// [`RuntimeError::Command`] with what the runtime, or the plugin behind it, said.
    pub fn run(&self, wanted: &Wanted) -> Result<Started, RuntimeError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Whole<'a> {
            #[serde(flatten)]
            wanted: &'a Wanted,
            image: &'static str,
            cgroup_parent: &'a str,
        }
        let whole = Whole {
            wanted,
            image: IMAGE,
            cgroup_parent: &self.group,
        };
        let what = format!("{}/{} runs", wanted.namespace, wanted.name);
        let text = serde_json::to_string(&whole).map_err(|source| RuntimeError::Answer {
            what: what.clone(),
            source,
        })?;
        let file = self.folder.join(format!("wanted-{}.json", wanted.uid));
        write(&file, &text)?;
        let said = self.cri(&["run", &file.display().to_string()]);
        let removed = fs::remove_file(&file);
        let said = said?;
        removed.map_err(|source| RuntimeError::Write { path: file, source })?;

        serde_json::from_slice(&said).map_err(|source| RuntimeError::Answer { what, source })
    }

    /// Ends sandboxes with all that is in them; those that are gone are no error.
    ///
    /// # Errors
    /// [`RuntimeError::Command`].
    pub fn remove(&self, sandboxes: &[&str]) -> Result<(), RuntimeError> {
        self.cri(&[&["remove"], sandboxes].concat()).map(drop)
    }

    /// Every sandbox that the runtime knows.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        let said = self.cri(&["list"])?;

        serde_json::from_slice(&said).map_err(|source| RuntimeError::Answer {
            what: "the sandboxes are listed".to_owned(),
            source,
        })
    }

    fn cri(&self, arguments: &[&str]) -> Result<Vec<u8>, RuntimeError> {
        let socket = self.socket().display().to_string();
        let all = [&[socket.as_str()], arguments].concat();
        let program = Program::new(&self.tools.built("cri")?, all);

        self.command(&format!("cri {}", arguments.join(" ")), program)
    }

    fn command(&self, what: &str, mut program: Program) -> Result<Vec<u8>, RuntimeError> {
        program.environment = self.tools.environment();
        let said = program.output(&self.place, b"");

        said.map_err(|source| RuntimeError::Command {
            what: what.to_owned(),
            source,
        })
    }

    /// A file of the node's own folders, as it is seen from the machine.
    fn seen_here(&self, path: &str) -> PathBuf {
        let own = crate::mount::PLACES.iter().find_map(|(place, own)| {
            let rest = Path::new(path).strip_prefix(place).ok()?;
            Some(self.folder.join(own).join(rest))
        });

        own.unwrap_or_else(|| PathBuf::from(path))
    }

    fn configuration(&self) -> String {
        let folder = self.folder.display();
        let socket = self.socket();
        let socket = socket.display();
        format!(
            r#"version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{NETWORKS}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
        )
    }
}

fn cache() -> PathBuf {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let usual = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");

    named.unwrap_or_else(usual)
}

fn found(name: &'static str, folders: Vec<PathBuf>) -> Result<PathBuf, RuntimeError> {
    let file = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());

    file.ok_or(RuntimeError::Missing { name, folders })
}

fn make_folder(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(|source| RuntimeError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), RuntimeError> {
    fs::write(path, text).map_err(|source| RuntimeError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_where_it_was_looked_for() {
        let nowhere = tempfile::tempdir().unwrap();
        let tools = Tools {
            unpacked: nowhere.path().join("containers"),
            built: nowhere.path().join("runtime"),
        };

        let error = tools.built("cri").unwrap_err().to_string();

        assert!(error.contains("there is no cri in"), "{error}");
        assert!(error.contains("tools/setup"), "{error}");
    }
}
