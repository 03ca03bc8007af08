//! Building a lab: networks, hosts, pods, and, where it is asked for, the mesh.

use std::{
    fs, io,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::{During, Hands, Owner, Site, SiteError, remove};
use crate::{
    layout::{Device, Host, Layout, Role},
    link::{Link, LinkEnd},
    mount,
    netlink::VethEnd,
    netns::{self, Netns},
    poll_until,
    process::{Place, Process, Program},
    spec::{Document, Network, Router},
    state::{self, Registry, State},
};

/// How long a link's own process may take until its devices are there.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

impl Site {
    /// Builds a lab. What is half built when a step fails is taken down again.
    ///
    /// `progress` hears, in a few words, what is done next.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed; [`SiteError::Exists`] where the lab is up already.
    pub fn up(
        document: Document,
        owner: Owner,
        hands: Hands,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, SiteError> {
        let layout = Layout::plan(&document.spec)?;
        let owner = match owner {
            Owner::Process => Process::own(),
            Owner::Nobody => None,
        };
        let state = State::new(document, layout, owner);
        let name = state.name().to_owned();
        claim(&state)?;
        let mut site = Self::with(state, hands);
        match site.build(progress) {
            Ok(()) => Ok(site),
            Err(error) => {
                drop(site);
                if let Err(second) = remove(&name) {
                    tracing::warn!(%second, "what was half built could not be removed");
                }
                Err(error)
            }
        }
    }

    fn build(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), SiteError> {
        let spec = self.state.document.spec.clone();
        progress("networks and hosts");
        for network in &spec.networks {
            self.add_network(network)?;
        }
        for (index, host) in self.state.layout.hosts.clone().iter().enumerate() {
            self.add_host(index, host)?;
        }
        for (index, network) in spec.networks.iter().enumerate() {
            if network.is_impaired() {
                self.start_link(index, network)?;
            }
        }
        for host in self.state.layout.hosts.clone() {
            self.address_host(&host)?;
        }
        for router in &spec.routers {
            self.filter(router)?;
        }
        self.sync_routes()?;
        for outside in &spec.outside {
            let netns = state::host_netns(self.name(), &outside.name);
            let addresses = self.host(outside.name.as_str())?.addresses();
            self.start_echo(&outside.name, &netns, &addresses, &outside.listens)?;
        }
        if spec.mesh {
            self.start_mesh(progress)?;
        }
        if self.has_runtime() {
            progress("container runtimes");
            for node in spec.nodes.iter().filter(|node| node.mesh) {
                self.start_engine(&node.name)?;
            }
        }
        progress("pods");
        for node in &spec.nodes {
            for pod in &node.pods {
                self.add_pod(node.name.as_str(), pod.clone())?;
            }
        }
        Ok(())
    }

    /// Makes a namespace, after writing down that it will be made.
    pub(super) fn make_space(&mut self, name: String) -> Result<Arc<Netns>, SiteError> {
        self.state.namespaces.push(name.clone());
        self.state.write()?;
        let space = Arc::new(Netns::create(&name)?);
        self.spaces.insert(name, Arc::clone(&space));
        Ok(space)
    }

    fn add_network(&mut self, network: &Network) -> Result<(), SiteError> {
        let space = self.make_space(state::network_netns(self.name(), &network.name))?;
        // A switch is no host: it has no address and sends nothing of its own.
        space.set(&[
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
        ])?;
        space
            .netlink()
            .add_bridge(BRIDGE, u32::from(network.mtu))
            .during(|| format!("network {} has no bridge", network.name))?;
        space
            .run(|| fs::write(format!("/proc/sys/net/ipv4/conf/{BRIDGE}/arp_ignore"), "8"))?
            .during(|| format!("network {} answers ARP", network.name))
    }

    fn add_host(&mut self, index: usize, host: &Host) -> Result<(), SiteError> {
        let space = self.make_space(state::host_netns(self.name(), &host.name))?;
        space.set(&forwarding(host.role))?;
        match host.role {
            Role::Node | Role::Server => {
                let folder = state::host_folder(self.name(), &host.name);
                let keep = state::folder(self.name())
                    .join("mounts")
                    .join(host.name.as_str());
                mount::create(&space, &folder, &keep)?;
            }
            Role::Router | Role::Outside => {}
        }
        for device in &host.devices {
            self.plug_in(index, host, device)?;
        }
        Ok(())
    }

    /// Connects a device to its network by a pair of devices, unless a link of the lab's own does.
    pub(super) fn plug_in(
        &mut self,
        index: usize,
        host: &Host,
        device: &Device,
    ) -> Result<(), SiteError> {
        let network = self.state.document.spec.networks[device.network].clone();
        if network.is_impaired() {
            return Ok(());
        }
        let host_space = self.host_space(&host.name)?;
        let lan = self.space(&state::network_netns(self.name(), &network.name))?;
        let port = port_name(index, device);
        let near = VethEnd {
            name: &port,
            mac: None,
            netns: None,
        };
        let far = host_space.handle().as_raw_fd();
        let far = VethEnd {
            name: &device.name,
            mac: None,
            netns: Some(far),
        };
        let step = || format!("{} cannot be put on network {}", host.name, network.name);
        let mut netlink = lan.netlink();
        netlink
            .add_veth(&near, &far, u32::from(network.mtu))
            .during(step)?;
        netlink.plug(&port, BRIDGE).during(step)
    }

    pub(super) fn address_host(&mut self, host: &Host) -> Result<(), SiteError> {
        let space = self.host_space(&host.name)?;
        let mut netlink = space.netlink();
        for device in &host.devices {
            let step = || format!("{} of {} cannot be set up", device.name, host.name);
            netlink.set_up(&device.name).during(step)?;
            for address in &device.addresses {
                netlink.add_address(&device.name, *address).during(step)?;
            }
        }
        for own in &host.own {
            let step = || format!("{} does not get {own}", host.name);
            netlink.add_address("lo", IpNet::from(*own)).during(step)?;
        }
        Ok(())
    }

    /// Starts the user-space link of a network, and puts its devices in their places.
    fn start_link(&mut self, index: usize, network: &Network) -> Result<(), SiteError> {
        let lan = self.space(&state::network_netns(self.name(), &network.name))?;
        let mut ends = Vec::new();
        for (device, port, host) in self.attachments(index) {
            let netns = self.host_space(&host)?;
            ends.push(LinkEnd {
                netns,
                device,
                port,
            });
        }
        match self.hands.clone() {
            Hands::Threads => self.links.push(Link::start(network, &lan, &ends)?),
            Hands::Program(file) => {
                let arguments = ["lab-link", self.state.name(), network.name.as_str()];
                let program = Program::new(&file, arguments);
                let place = Place {
                    netns: lan.name().to_owned(),
                    mounts: None,
                };
                let name = format!("link-{}", network.name);
                self.start_program(&name, &network.name, &program, &place)?;
                wait_for_devices(&ends)?;
            }
        }
        for LinkEnd {
            netns,
            device,
            port,
        } in &ends
        {
            let step = || format!("the link of {} cannot be set up", netns.name());
            netns
                .netlink()
                .set_mtu(device, u32::from(network.mtu))
                .during(step)?;
            lan.netlink()
                .set_mtu(port, u32::from(network.mtu))
                .during(step)?;
            lan.netlink().plug(port, BRIDGE).during(step)?;
        }
        Ok(())
    }

    /// The devices on a network: name of the device, of its port, and of its host.
    pub(crate) fn attachments(&self, network: usize) -> Vec<(String, String, crate::spec::Label)> {
        let mut attachments = Vec::new();
        for (index, host) in self.state.layout.hosts.iter().enumerate() {
            if let Some(device) = host.device_on(network) {
                let port = port_name(index, device);
                attachments.push((device.name.clone(), port, host.name.clone()));
            }
        }
        attachments
    }

    /// What a router filters or translates; by `nft`, in the router's own namespace.
    fn filter(&mut self, router: &Router) -> Result<(), SiteError> {
        let mut rules = String::new();
        if !router.icmp {
            rules.push_str(SILENT);
        }
        if let Some(nat) = &router.nat {
            let networks = &router.networks;
            let device = networks
                .iter()
                .position(|n| n.name == nat.network)
                .unwrap_or_default();
            rules.push_str(&TRANSLATE.replace("OUTER", &format!("eth{device}")));
        }
        if rules.is_empty() {
            return Ok(());
        }
        let program = Program::new("nft".as_ref(), ["-f", "-"]);
        let place = self.state.place(&router.name);
        let done = program.output(&place, rules.as_bytes());
        done.map(drop)
            .during(|| format!("router {} cannot be given its rules", router.name))
    }
}

/// The settings by which a host forwards, or does not.
pub(super) fn forwarding(role: Role) -> [(&'static str, &'static str); 3] {
    let forwards = match role {
        Role::Node | Role::Router => "1",
        Role::Server | Role::Outside => "0",
    };
    [
        ("ipv4/ip_forward", forwards),
        ("ipv6/conf/all/forwarding", forwards),
        ("ipv6/conf/default/forwarding", forwards),
    ]
}

/// The bridge of every network's namespace.
const BRIDGE: &str = "lan";

/// A router that never says that a packet is too big.
const SILENT: &str = "
table inet lab-silent {
  chain sent {
    type filter hook output priority filter;
    icmp type destination-unreachable icmp code frag-needed drop
    icmpv6 type packet-too-big drop
  }
}
";

/// A symmetric NAT: a new random port for every flow, and nothing comes in unasked.
const TRANSLATE: &str = "
table inet lab-translate {
  chain sent {
    type nat hook postrouting priority srcnat;
    oifname \"OUTER\" masquerade fully-random
  }
  chain forwarded {
    type filter hook forward priority filter;
    iifname \"OUTER\" ct state new drop
  }
}
";

/// The name of a device's port on its network's bridge.
pub(super) fn port_name(host: usize, device: &Device) -> String {
    format!("p{host}-{}", device.name)
}

/// Takes the lab's name: makes its folder, a file system of its own, and writes its first state.
fn claim(state: &State) -> Result<(), SiteError> {
    let name = state.name();
    let registry = Registry::lock().during(|| "the list of labs cannot be locked".to_owned())?;
    super::down::remove_orphans();
    netns::prepare_directory()?;
    let places = mount::PLACES.map(|(place, _)| place);
    registry
        .make_folders(places)
        .during(|| "the mount points cannot be made".to_owned())?;
    let folder = state::folder(name);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(SiteError::Exists(name.to_owned()));
        }
        other => other.during(|| format!("{} cannot be made", folder.display()))?,
    }
    let fill = || -> io::Result<()> {
        mount(
            "meshd-lab",
            &folder,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=700"),
        )?;
        mount_change(&folder, MountPropagationFlags::PRIVATE)?;
        fs::create_dir(folder.join("mounts"))?;
        fs::create_dir(folder.join("log"))
    };
    fill().during(|| format!("{} cannot be filled", folder.display()))?;
    Ok(state.write()?)
}

fn wait_for_devices(ends: &[LinkEnd]) -> Result<(), SiteError> {
    let deadline = Instant::now() + LINK_PATIENCE;
    for end in ends {
        let there = poll_until(deadline, || end.netns.netlink().index(&end.device).is_ok());
        if !there {
            let late = io::Error::from(io::ErrorKind::TimedOut);
            return Err(late).during(|| format!("the link made no {}", end.device));
        }
    }
    Ok(())
}

/// The link that a network's own process serves: it is told the lab and the network.
///
/// # Errors
/// [`SiteError`] where the lab or its network is unknown, or a device cannot be made.
pub fn serve_link(lab: &str, network: &str) -> Result<Link, SiteError> {
    let mut site = Site::attach(lab, Hands::Threads)?;
    let networks = site.state.document.spec.networks.clone();
    let index = networks.iter().position(|n| n.name.as_str() == network);
    let index = index.ok_or_else(|| SiteError::NoHost(network.to_owned()))?;
    let lan = site.space(&state::network_netns(lab, &networks[index].name))?;
    let mut ends = Vec::new();
    for (device, port, host) in site.attachments(index) {
        ends.push(LinkEnd {
            netns: site.host_space(&host)?,
            device,
            port,
        });
    }
    Ok(Link::start(&networks[index], &lan, &ends)?)
}
