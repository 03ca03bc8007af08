//! Starting the mesh of a lab: the server, then on every node its tunnel service and its agent.
//!
//! ```text
//! server: meshd serve ─▶ resources applied ─▶ one join token per node
//! node:   meshwire --supervise ─▶ meshd join ─▶ meshd agent ─▶ its socket answers
//! ```
//!
//! Everything that depends on how the programs are called stands in this file.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    agent::Agent,
    layout::Role,
    poll_until,
    process::{Place, Process, Program},
    site::{Site, SiteError, log_file},
    spec::{Backend, Label},
    state::ProgramState,
};

/// Where the server listens (TCP).
const SERVER_PORT: u16 = 7443;

/// How long a program may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long one attempt to reach the server may take.
const ATTEMPT: Duration = Duration::from_millis(200);

/// The folder of the programs, where it is not that of the caller.
const FOLDER_VARIABLE: &str = "MESHD_BIN_DIR";

/// The administrator's credential, on the server's host.
const CREDENTIAL: &str = "/var/lib/meshd/server/admin.yaml";

/// A service of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `meshd agent`.
    Agent,
    /// `meshwire --supervise`.
    Wire,
    /// `meshd serve`.
    Server,
}

impl Service {
    /// Its name in the lab's state and log, on a host.
    fn name(self, host: &Label) -> String {
        match self {
            Self::Agent => format!("agent-{host}"),
            Self::Wire => format!("wire-{host}"),
            Self::Server => "server".to_owned(),
        }
    }
}

/// Why the mesh does not run.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A program is not there.
    #[error("there is no program {name} in {folders:?}; build it, or set {FOLDER_VARIABLE}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// A program did not become ready.
    #[error("{name} is not ready after {PATIENCE:?}: {why}; it said:\n{log}")]
    NotReady {
        /// Its name.
        name: String,
        /// What was waited for.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// A command failed.
    #[error("`{command}` on {host} failed")]
    Command {
        /// The command.
        command: String,
        /// The host.
        host: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The lab has a mesh but no address where its server could be reached.
    #[error("the lab has no server: nodes cannot join (mesh: true needs `server`)")]
    NoServer,
    /// The lab's resources cannot be written as YAML.
    #[error("the lab's resources cannot be written down")]
    Resources(#[source] serde_yaml_ng::Error),
    /// There is no such service.
    #[error("{0} does not run")]
    NotRunning(String),
}

/// The mesh's programs.
#[derive(Clone, Debug)]
struct Programs {
    meshd: PathBuf,
    meshwire: PathBuf,
    meshctl: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, MeshError> {
        Self::find_in(folders())
    }

    fn find_in(folders: Vec<PathBuf>) -> Result<Self, MeshError> {
        let find = |name: &'static str| find(name, &folders);
        let (meshd, meshwire, meshctl) = (find("meshd")?, find("meshwire")?, find("meshctl")?);
        Ok(Self {
            meshd,
            meshwire,
            meshctl,
        })
    }

    /// An agent that prefers this WireGuard; none: it chooses.
    fn agent(&self, backend: Option<Backend>) -> Program {
        let mut agent = Program::new(&self.meshd, ["agent"]);
        let named = backend.map(|backend| ("MESHD_BACKEND".to_owned(), backend.name().to_owned()));
        agent.environment.extend(named);
        agent
    }
}

/// The CNI plugin.
pub(crate) fn plugin() -> Result<PathBuf, MeshError> {
    find("meshd-cni", &folders())
}

fn find(name: &'static str, folders: &[PathBuf]) -> Result<PathBuf, MeshError> {
    let file = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    file.ok_or_else(|| MeshError::Missing {
        name,
        folders: folders.to_owned(),
    })
}

/// Where programs are looked for: the folder that was named, that of this program, its parent (where
/// cargo keeps programs when this is a test), and the search path.
fn folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        return vec![PathBuf::from(folder)];
    }
    let own = std::env::current_exe().ok();
    let mut folders: Vec<PathBuf> = Vec::new();
    let own = own.as_deref().and_then(Path::parent);
    folders.extend(
        own.into_iter()
            .flat_map(|own| [Some(own), own.parent()])
            .flatten()
            .map(Path::to_owned),
    );
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    folders
}

impl Site {
    /// Starts server, tunnel services and agents, and waits until each is ready.
    pub(crate) fn start_mesh(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), SiteError> {
        let programs = Programs::find()?;
        let server = self.server_address()?;
        progress("server");
        self.start_server(&programs, server)?;
        self.apply_resources(&programs)?;
        let nodes: Vec<Label> = self.nodes();
        progress("nodes join");
        for node in &nodes {
            self.start_wire(&programs, node)?;
            self.join(&programs, node, server)?;
        }
        progress("agents");
        for node in &nodes {
            self.start_agent(&programs, node)?;
        }
        Ok(())
    }

    /// Lets a node that stood aside (`mesh: false`) join the mesh, with its tunnel service; its agent is
    /// started by [`Site::restart`].
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn admit(&mut self, node: &str) -> Result<(), SiteError> {
        let programs = Programs::find()?;
        let server = self.server_address()?;
        let name = self.host(node)?.name.clone();
        for spec in &mut self.state_mut().document.spec.nodes {
            spec.mesh |= spec.name == name;
        }
        self.start_wire(&programs, &name)?;
        self.join(&programs, &name, server)
    }

    /// Lets a node that was removed from the mesh join again, as a new member, although it still has the
    /// credential that the server no longer knows. Its agent must not run, and is started by [`Site::restart`].
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn rejoin(&mut self, node: &str) -> Result<(), SiteError> {
        let programs = Programs::find()?;
        let server = self.server_address()?;
        let name = self.host(node)?.name.clone();
        self.join(&programs, &name, server)
    }

    /// Restores a node's last good guard, as the service manager does at boot before there is a network.
    ///
    /// # Errors
    /// [`SiteError`] with what the program said.
    pub fn restore_guard(&mut self, node: &str) -> Result<(), SiteError> {
        let programs = Programs::find()?;
        let name = self.host(node)?.name.clone();
        let program = Program::new(&programs.meshd, ["guard"]);
        self.command(&name, &program, b"").map(drop)
    }

    /// The nodes that take part in the mesh.
    fn nodes(&self) -> Vec<Label> {
        let spec = &self.state().document.spec;
        let members = spec.nodes.iter().filter(|node| node.mesh);
        members.map(|node| node.name.clone()).collect()
    }

    /// The first address of the server, where every node can reach it.
    fn server_address(&self) -> Result<IpAddr, MeshError> {
        let server = self
            .state()
            .layout
            .hosts
            .iter()
            .find(|host| host.role == Role::Server);
        server
            .and_then(|host| host.addresses().first().copied())
            .ok_or(MeshError::NoServer)
    }

    fn start_server(&mut self, programs: &Programs, address: IpAddr) -> Result<(), SiteError> {
        let host: Label = server_label();
        let place = self.state().place(&host);
        let program = Program::new(&programs.meshd, ["serve", "--no-user-config"]);
        let name = Service::Server.name(&host);
        self.start_program(&name, &host, &program, &place)?;
        let space = self.host_space(&host)?;
        let socket = SocketAddr::new(address, SERVER_PORT);
        let credential = self.credential();
        let reached = || {
            let tried = space.run(|| TcpStream::connect_timeout(&socket, ATTEMPT));
            credential.exists() && tried.is_ok_and(|connected| connected.is_ok())
        };
        self.await_ready(&name, &format!("{socket} accepts nobody"), reached)
    }

    fn apply_resources(&mut self, programs: &Programs) -> Result<(), SiteError> {
        let resources = &self.state().document.spec.resources;
        if resources.is_empty() {
            return Ok(());
        }
        let documents: Result<Vec<String>, _> =
            resources.iter().map(serde_yaml_ng::to_string).collect();
        let documents = documents.map_err(MeshError::Resources)?.join("---\n");
        let program = Program::new(&programs.meshctl, ["apply", "-f", "-"]);
        self.command(&server_label(), &program, documents.as_bytes())
            .map(drop)
    }

    /// A token that admits one node, once.
    fn token(&mut self, programs: &Programs, node: &Label) -> Result<String, SiteError> {
        let arguments = ["token", "create", "--node", node.as_str(), "--ttl", "1h"];
        let said = self.command(
            &server_label(),
            &Program::new(&programs.meshctl, arguments),
            b"",
        )?;
        let said = String::from_utf8_lossy(&said);
        Ok(said.lines().last().unwrap_or_default().trim().to_owned())
    }

    fn join(&mut self, programs: &Programs, node: &Label, server: IpAddr) -> Result<(), SiteError> {
        let token = self.token(programs, node)?;
        let url = format!("https://{}", SocketAddr::new(server, SERVER_PORT));
        let name = node.as_str();
        let arguments = [
            "join",
            &url,
            "--token",
            "-",
            "--name",
            name,
            "--no-services",
        ];
        let program = Program::new(&programs.meshd, arguments);
        self.command(node, &program, token.as_bytes()).map(drop)
    }

    /// Runs a command on a host to its end. A secret for it is input, never an argument.
    fn command(
        &mut self,
        host: &Label,
        program: &Program,
        input: &[u8],
    ) -> Result<Vec<u8>, SiteError> {
        let place = self.state().place(host);
        let mut program = program.clone();
        if *host == server_label() {
            program
                .environment
                .push(("MESHD_CONFIG".to_owned(), CREDENTIAL.to_owned()));
        }
        let said = program.output(&place, input);
        said.map_err(|source| {
            let name = program
                .file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let first = program.arguments.first().cloned().unwrap_or_default();
            let command = format!("{name} {first}");
            MeshError::Command {
                command,
                host: host.to_string(),
                source,
            }
            .into()
        })
    }

    fn start_wire(&mut self, programs: &Programs, node: &Label) -> Result<(), SiteError> {
        let program = Program::new(&programs.meshwire, ["--supervise", "/run/meshd/wire.sock"]);
        let name = Service::Wire.name(node);
        let place = self.state().place(node);
        self.start_program(&name, node, &program, &place)?;
        let socket = self.socket(node, "wire.sock");
        let ready = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        self.await_ready(&name, "its socket accepts nobody", ready)
    }

    fn start_agent(&mut self, programs: &Programs, node: &Label) -> Result<(), SiteError> {
        let nodes = &self.state().document.spec.nodes;
        let backend = nodes
            .iter()
            .find(|n| n.name == *node)
            .and_then(|n| n.backend);
        let program = programs.agent(backend);
        let name = Service::Agent.name(node);
        let place = self.state().place(node);
        self.start_program(&name, node, &program, &place)?;
        let agent = self.agent(node);
        self.await_ready(&name, "its socket does not answer", || agent.answers())
    }

    /// A socket of a node's programs, as seen from here.
    fn socket(&self, node: &Label, file: &str) -> PathBuf {
        crate::state::host_folder(self.name(), node)
            .join("run-meshd")
            .join(file)
    }

    /// Waits until a program is ready; gives up at once if it has ended.
    fn await_ready(
        &mut self,
        name: &str,
        why: &str,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), SiteError> {
        let process = self.program(name)?.process;
        let mut ended = false;
        let deadline = Instant::now() + PATIENCE;
        let came = poll_until(deadline, || {
            if ready() {
                return true;
            }
            ended = !process.is_alive();
            ended
        });
        if came && !ended {
            return Ok(());
        }
        let why = if ended {
            "it ended".to_owned()
        } else {
            why.to_owned()
        };
        let log = last_lines(&log_file(self.name(), name));
        Err(MeshError::NotReady {
            name: name.to_owned(),
            why,
            log,
        }
        .into())
    }

    fn program(&self, name: &str) -> Result<&ProgramState, MeshError> {
        let program = self
            .state()
            .programs
            .iter()
            .find(|program| program.name == name);
        program.ok_or_else(|| MeshError::NotRunning(name.to_owned()))
    }

    /// The process of a service.
    ///
    /// # Errors
    /// [`MeshError::NotRunning`] where the lab never started it.
    pub fn service(&self, host: &str, service: Service) -> Result<Process, SiteError> {
        let name = service.name(&self.host(host)?.name);
        Ok(self.program(&name)?.process)
    }

    /// Kills a service without warning and waits for its end.
    ///
    /// # Errors
    /// [`SiteError`] where it does not run or does not end.
    pub fn kill(&mut self, host: &str, service: Service) -> Result<(), SiteError> {
        let process = self.service(host, service)?;
        let step = || format!("{service:?} of {host} cannot be killed");
        let kill = || {
            process.signal(Signal::KILL)?;
            if process.wait(PATIENCE)? {
                Ok(())
            } else {
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        kill().map_err(|source| SiteError::Step {
            step: step(),
            source,
        })?;
        self.reap();
        Ok(())
    }

    /// Starts a service that ended, or was killed, and waits until it is ready.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn restart(&mut self, host: &str, service: Service) -> Result<(), SiteError> {
        self.restart_as(host, service, &Programs::find()?)
    }

    /// Starts a service that ended, or was killed, with the programs of another folder, which may be of
    /// another version; and waits until it is ready.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn restart_from(
        &mut self,
        host: &str,
        service: Service,
        folder: &Path,
    ) -> Result<(), SiteError> {
        let programs = Programs::find_in(vec![folder.to_owned()])?;
        self.restart_as(host, service, &programs)
    }

    fn restart_as(
        &mut self,
        host: &str,
        service: Service,
        programs: &Programs,
    ) -> Result<(), SiteError> {
        let name = self.host(host)?.name.clone();
        match service {
            Service::Agent => self.start_agent(programs, &name),
            Service::Wire => self.start_wire(programs, &name),
            Service::Server => {
                let address = self.server_address()?;
                self.start_server(programs, address)
            }
        }
    }

    /// Waits until every agent has applied these versions of objects: `held` is the body of the agent's
    /// `POST /v1/applied`. Returns the nodes that have not, each with why; none, where all have.
    pub fn await_applied(&self, held: &[u8], patience: Duration) -> Vec<(Label, String)> {
        let deadline = Instant::now() + patience;
        let mut late: BTreeMap<Label, String> = BTreeMap::new();
        for node in self.nodes() {
            late.insert(node, "not asked".to_owned());
        }
        poll_until(deadline, || {
            late.retain(|node, why| match missing(&self.agent(node), held) {
                Ok(()) => false,
                Err(reason) => {
                    *why = reason;
                    true
                }
            });
            late.is_empty()
        });
        late.into_iter().collect()
    }

    /// Runs `meshctl` with these arguments against the lab's store and returns what it printed.
    ///
    /// # Errors
    /// [`SiteError::Mesh`] with what it said where it fails.
    pub fn meshctl(&mut self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, SiteError> {
        let programs = Programs::find()?;
        let program = Program::new(&programs.meshctl, arguments.iter().copied());
        self.command(&server_label(), &program, input)
    }

    /// The administrator's credential, as seen from the machine.
    pub fn credential(&self) -> PathBuf {
        let server = crate::state::host_folder(self.name(), &server_label());
        server
            .join("var-lib-meshd")
            .join("server")
            .join("admin.yaml")
    }

    /// What `meshctl` needs to speak to the lab's store: names and values of variables.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("MESHD_LAB", self.name().to_owned()),
            ("MESHD_CONFIG", self.credential().display().to_string()),
            (
                "MESHD_NETNS",
                crate::state::host_netns(self.name(), &server_label()),
            ),
        ]
    }
}

fn server_label() -> Label {
    "server".parse().expect("`server` is a DNS label")
}

/// The namespaces of the lab's server, for commands that speak to its store.
pub fn server_place(site: &Site) -> Place {
    site.state().place(&server_label())
}

/// What an agent has not applied yet, in words.
fn missing(agent: &Agent, held: &[u8]) -> Result<(), String> {
    let answer = agent
        .ask("POST", "/v1/applied", held)
        .map_err(|error| error.to_string())?;
    let missing: Vec<serde_json::Value> =
        serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    match missing.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(format!(
            "{} objects not applied, such as {first}",
            missing.len()
        )),
    }
}

/// The end of a log.
pub(crate) fn last_lines(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Document;

    const FILE: &str = "
apiVersion: meshd.dev/v1
kind: Lab
metadata: {name: two}
spec:
  networks: [{name: lan, cidrs: [192.0.2.0/24]}]
  server: {networks: [lan]}
  nodes: [{name: n1, networks: [lan], backend: Userspace}, {name: n2, networks: [lan]}]
";

    #[test]
    fn an_agent_is_told_which_wireguard_its_node_prefers() {
        let document = Document::parse("two", FILE).unwrap();
        let programs = Programs {
            meshd: "meshd".into(),
            meshwire: "meshwire".into(),
            meshctl: "meshctl".into(),
        };
        let told = document.spec.nodes.iter().map(|node| {
            let agent = programs.agent(node.backend);
            agent.environment
        });
        let told: Vec<_> = told.collect();
        let preferred = ("MESHD_BACKEND".to_owned(), "Userspace".to_owned());
        assert_eq!(told, [vec![preferred], vec![]]);
    }

    #[test]
    fn a_backend_that_nobody_knows_is_refused() {
        let wrong = FILE.replace("Userspace", "kernel");
        let error = Document::parse("two", &wrong).unwrap_err().to_string();
        assert!(error.contains("backend"), "{error}");
    }
}
