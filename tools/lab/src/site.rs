//! A lab as it stands on this machine: built, found again, changed, and taken down.
//!
//! ```text
//!        lan (a namespace with a bridge)                    far (a namespace with a bridge)
//!   ┌──────┬─────────┬──────────────┐                 ┌───────────┬─────────────┐
//!  eth0   eth0      eth0           eth0              eth1        eth0          eth0
//!  n1     n2        server         r1 ────────────── r1          n3            internet
//!  │ ├ default/a    own mounts                                   own mounts
//!  │ └ default/b
//!  own mounts
//! ```
//!
//! Every box is a network namespace of its own; nothing is ever attached to the machine's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    agent::AgentError,
    echo::{Echo, EchoError},
    layout::{Host, LayoutError, PLAIN_POOLS, Role, Route},
    link::{Link, LinkError},
    mesh::MeshError,
    mount::MountError,
    netlink::Hop,
    netns::{Netns, NetnsError},
    process::{Place, Process, Program},
    runtime::RuntimeError,
    sniffer::Territory,
    spec::{Label, Listen, PodName},
    state::{self, PodState, ProgramState, State, StateError, Turn},
};

pub use down::remove;
pub use up::serve_link;

mod container;
mod down;
mod nic;
mod partition;
mod pod;
mod power;
mod up;

/// Calico's default ports of WireGuard, for IPv4 and for IPv6.
const WIREGUARD_PORTS: [u16; 2] = [51820, 51821];

/// Who serves a lab's echo servers and user-space links.
#[derive(Clone, Debug)]
pub enum Hands {
    /// Threads of this process: they end with it.
    Threads,
    /// Processes of this program, which understands `lab-echo` and `lab-link`.
    Program(PathBuf),
}

/// Whose lab it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process: once it is gone, anybody may take the lab down.
    Process,
    /// Nobody: it stays until it is taken down.
    Nobody,
}

/// A lab that stands on this machine.
#[derive(Debug)]
pub struct Site {
    /// Held where others may change the lab at the same time.
    turn: Option<Turn>,
    state: State,
    spaces: BTreeMap<String, Arc<Netns>>,
    hands: Hands,
    echoes: BTreeMap<String, Echo>,
    links: Vec<Link>,
    children: Vec<Child>,
}

/// Why something could not be done with a lab.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A lab of that name is there already.
    #[error("lab {0} is up already, or was left behind: `meshctl lab down {0}` removes it")]
    Exists(String),
    /// Addresses or routes cannot be given out.
    #[error("the lab cannot be laid out")]
    Layout(#[from] LayoutError),
    /// The lab's state could not be read or written.
    #[error("the lab's state")]
    State(#[from] StateError),
    /// A network namespace failed.
    #[error("a network namespace")]
    Netns(#[from] NetnsError),
    /// A mount namespace failed.
    #[error("a mount namespace")]
    Mount(#[from] MountError),
    /// An echo server failed.
    #[error("an echo server")]
    Echo(#[from] EchoError),
    /// A user-space link failed.
    #[error("a link")]
    Link(#[from] LinkError),
    /// A container runtime failed.
    #[error("a container runtime")]
    Runtime(#[from] RuntimeError),
    /// One of the mesh's programs failed.
    #[error("the mesh")]
    Mesh(#[from] MeshError),
    /// An agent refused something.
    #[error("the agent of {node}")]
    Agent {
        /// The node.
        node: Label,
        /// Why.
        #[source]
        source: AgentError,
    },
    /// There is no such host.
    #[error("the lab has no host called {0}")]
    NoHost(String),
    /// There is no such pod.
    #[error("the lab has no pod {0}")]
    NoPod(PodName),
    /// The pod is there already.
    #[error("pod {0} exists already")]
    PodExists(PodName),
    /// A step in building, changing or removing failed.
    #[error("{step}")]
    Step {
        /// What was to be done.
        step: String,
        /// Why it was not.
        #[source]
        source: io::Error,
    },
}

/// Names the step that an I/O error belongs to.
pub(crate) trait During<T> {
    /// Says what was to be done.
    fn during(self, step: impl FnOnce() -> String) -> Result<T, SiteError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, step: impl FnOnce() -> String) -> Result<T, SiteError> {
        self.map_err(|source| SiteError::Step {
            step: step(),
            source,
        })
    }
}

impl Site {
    /// Finds a lab that was left running.
    ///
    /// # Errors
    /// [`SiteError::State`] where none of that name runs.
    pub fn attach(name: &str, hands: Hands) -> Result<Self, SiteError> {
        Ok(Self::with(State::read(name)?, hands))
    }

    /// Finds a lab that was left running, to change it: waits while somebody else does.
    ///
    /// # Errors
    /// [`SiteError::State`] where none of that name runs.
    pub fn attach_alone(name: &str, hands: Hands) -> Result<Self, SiteError> {
        let turn = Turn::wait(name)?;
        let mut site = Self::attach(name, hands)?;
        site.turn = Some(turn);
        Ok(site)
    }

    fn with(state: State, hands: Hands) -> Self {
        Self {
            turn: None,
            state,
            spaces: BTreeMap::new(),
            hands,
            echoes: BTreeMap::new(),
            links: Vec::new(),
            children: Vec::new(),
        }
    }

    /// What is known of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.state.name()
    }

    /// The host of that name.
    ///
    /// # Errors
    /// [`SiteError::NoHost`].
    pub fn host(&self, name: &str) -> Result<&Host, SiteError> {
        let host = self
            .state
            .layout
            .hosts
            .iter()
            .find(|host| host.name.as_str() == name);
        host.ok_or_else(|| SiteError::NoHost(name.to_owned()))
    }

    /// The pod of that name.
    ///
    /// # Errors
    /// [`SiteError::NoPod`].
    pub fn pod(&self, name: &PodName) -> Result<&PodState, SiteError> {
        self.state
            .pod(name)
            .ok_or_else(|| SiteError::NoPod(name.clone()))
    }

    /// A network namespace of the lab, by its full name.
    ///
    /// # Errors
    /// [`SiteError::Netns`] where it is gone.
    pub fn space(&mut self, netns: &str) -> Result<Arc<Netns>, SiteError> {
        if let Some(space) = self.spaces.get(netns) {
            return Ok(Arc::clone(space));
        }
        let space = Arc::new(Netns::open(netns)?);
        self.spaces.insert(netns.to_owned(), Arc::clone(&space));
        Ok(space)
    }

    /// The network namespace of a host.
    ///
    /// # Errors
    /// [`SiteError::Netns`] where it is gone.
    pub fn host_space(&mut self, host: &Label) -> Result<Arc<Netns>, SiteError> {
        self.space(&state::host_netns(self.name(), host))
    }

    /// Changes the address of a host's first device of that family; everybody's routes follow.
    ///
    /// # Errors
    /// [`SiteError`] where the device has no address of that family, or the kernel refuses.
    pub fn change_address(&mut self, host: &str, new: IpAddr) -> Result<(), SiteError> {
        let name = self.host(host)?.name.clone();
        let step = || format!("the address of {host} cannot become {new}");
        let space = self.host_space(&name)?;
        let hosts = &mut self.state.layout.hosts;
        let addresses = hosts
            .iter_mut()
            .filter(|host| host.name == name)
            .flat_map(|host| {
                host.devices.iter_mut().flat_map(|device| {
                    let name = device.name.clone();
                    device
                        .addresses
                        .iter_mut()
                        .map(move |address| (name.clone(), address))
                })
            });
        let same_family = |(_, a): &(String, &mut IpNet)| a.addr().is_ipv4() == new.is_ipv4();
        let (device, address) = { addresses }
            .find(same_family)
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
            .during(step)?;
        let old = *address;
        let prefixed = IpNet::new(new, old.prefix_len())
            .map_err(io::Error::other)
            .during(step)?;
        *address = prefixed;
        space
            .netlink()
            .add_address(&device, prefixed)
            .during(step)?;
        space.netlink().delete_address(&device, old).during(step)?;
        self.state.routes.remove(&name);
        self.sync_routes()
    }

    /// Pulls the cable of a host's device, or puts it back.
    ///
    /// # Errors
    /// [`SiteError`] where there is no such device.
    pub fn set_cable(&mut self, host: &str, device: &str, cable: Cable) -> Result<(), SiteError> {
        let (port, netns) = self.port(host, device)?;
        let space = self.space(&netns)?;
        let mut netlink = space.netlink();
        match cable {
            Cable::Out => netlink.set_down(&port),
            Cable::In => netlink.set_up(&port),
        }
        .during(|| format!("the cable of {host}'s {device}"))
    }

    /// Gives every host the routes that it should have, and takes away those it should not.
    pub(crate) fn sync_routes(&mut self) -> Result<(), SiteError> {
        for host in self.state.layout.hosts.clone() {
            let wanted = self.wanted_routes(&host);
            let had = self.state.routes.remove(&host.name).unwrap_or_default();
            if wanted != had {
                self.change_routes(&host, &had, &wanted)?;
            }
            self.state.routes.insert(host.name, wanted);
        }
        Ok(self.state.write()?)
    }

    fn change_routes(
        &mut self,
        host: &Host,
        had: &[Route],
        wanted: &[Route],
    ) -> Result<(), SiteError> {
        let space = self.host_space(&host.name)?;
        let mut netlink = space.netlink();
        for route in had.iter().filter(|route| !wanted.contains(route)) {
            netlink
                .delete_route(route.to, Hop::Via(route.via), &route.device)
                .during(|| format!("the route of {} to {} stays", host.name, route.to))?;
        }
        for route in wanted.iter().filter(|route| !had.contains(route)) {
            netlink
                .add_route(route.to, Hop::Via(route.via), &route.device)
                .during(|| format!("{} gets no route to {}", host.name, route.to))?;
        }
        Ok(())
    }

    /// The host's own routes, and those to pods elsewhere. Where a mesh runs, its nodes' routes to
    /// pods are their agents' business.
    fn wanted_routes(&self, host: &Host) -> Vec<Route> {
        let mut routes = self.state.layout.routes(host);
        let mesh = self.state.document.spec.mesh;
        let knows_pods = match host.role {
            Role::Router | Role::Outside => true,
            Role::Node | Role::Server => !mesh,
        };
        for pod in self
            .state
            .pods
            .iter()
            .filter(|pod| knows_pods && pod.node != host.name)
        {
            let Some(owner) = self.state.layout.host(&pod.node) else {
                continue;
            };
            let addresses = pod.addresses.iter();
            routes.extend(addresses.filter_map(|address| {
                self.state
                    .layout
                    .route_to_host(host, owner, IpNet::from(*address))
            }));
        }
        routes.sort();
        routes
    }

    /// Whose addresses are whose, for a sniffer: pods by the lab's pools and pods, members by its nodes,
    /// WireGuard by Calico's default ports.
    pub fn territory(&self) -> Territory {
        let spec = &self.state.document.spec;
        let plain = PLAIN_POOLS
            .iter()
            .filter(|_| !spec.mesh)
            .map(|pool| (*pool).to_owned());
        let pools = spec
            .resources
            .iter()
            .filter(|resource| resource["kind"] == "IPPool");
        let pools = pools.filter_map(|pool| pool["spec"]["cidr"].as_str().map(str::to_owned));
        let mut pods: Vec<IpNet> = plain
            .chain(pools)
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        let single = self
            .state
            .pods
            .iter()
            .flat_map(|pod| &pod.addresses)
            .copied();
        for address in single {
            if !pods.iter().any(|prefix| prefix.contains(&address)) {
                pods.push(IpNet::from(address));
            }
        }
        let nodes = self
            .state
            .layout
            .hosts
            .iter()
            .filter(|host| host.role == Role::Node);
        Territory {
            pods,
            tunnels: BTreeSet::new(),
            members: nodes.flat_map(Host::addresses).collect(),
            wireguard_ports: WIREGUARD_PORTS.into(),
        }
    }

    /// Starts the echo servers of a host or pod.
    fn start_echo(
        &mut self,
        host: &Label,
        netns: &str,
        addresses: &[IpAddr],
        listens: &[Listen],
    ) -> Result<(), SiteError> {
        if listens.is_empty() {
            return Ok(());
        }
        match self.hands.clone() {
            Hands::Threads => {
                let echo = Echo::start(&*self.space(netns)?, addresses, listens)?;
                self.echoes.insert(netns.to_owned(), echo);
                Ok(())
            }
            Hands::Program(file) => {
                let mut arguments = vec!["lab-echo".to_owned()];
                arguments.extend(
                    addresses
                        .iter()
                        .map(|address| format!("--address={address}")),
                );
                arguments.extend(listens.iter().map(Listen::to_string));
                let program = Program::new(&file, arguments.iter().map(String::as_str));
                let place = Place {
                    netns: netns.to_owned(),
                    mounts: None,
                };
                self.start_program(&format!("echo-{netns}"), host, &program, &place)
            }
        }
    }

    /// Starts a program, writes down that it runs, and keeps it to be reaped.
    pub(crate) fn start_program(
        &mut self,
        name: &str,
        host: &Label,
        program: &Program,
        place: &Place,
    ) -> Result<(), SiteError> {
        let log = log_file(self.name(), name);
        let child = program.start(place, &log).during(|| {
            format!(
                "{} cannot be started in {}",
                program.file.display(),
                place.netns
            )
        })?;
        let process = Process::of(child.id())
            .ok_or_else(|| io::Error::other("it ended at once"))
            .during(|| format!("{name}: see {}", log.display()))?;
        self.children.push(child);
        let name = name.to_owned();
        self.state.programs.retain(|program| program.name != name);
        self.state.programs.push(ProgramState {
            name,
            host: host.clone(),
            process,
            log,
        });
        Ok(self.state.write()?)
    }

    /// Reaps the children that have ended.
    pub(crate) fn reap(&mut self) {
        self.children
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Whether a device's cable is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// It is.
    In,
    /// It is not: the device has no carrier, but keeps its addresses and routes.
    Out,
}

/// The file that takes what a program prints.
pub(crate) fn log_file(lab: &str, name: &str) -> PathBuf {
    let folder: &Path = &state::folder(lab);
    folder.join("log").join(format!("{name}.log"))
}
