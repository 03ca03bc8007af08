//! Pods: in a plain lab the lab wires them itself; where a mesh runs, their node's agent does.

use std::{io, net::IpAddr, os::fd::AsRawFd};

use ipnet::IpNet;

use super::{During, Site, SiteError, container};
use crate::{
    agent::{Agent, PodRequest},
    layout::{plain_addresses, workload_device},
    netlink::{Hop, Mac, VethEnd},
    process,
    spec::{Label, Pod, PodName},
    state::{self, PodState},
};

/// The device inside a pod.
const POD_DEVICE: &str = "eth0";

/// The Ethernet address of the node's end, as Calico has it.
const NODE_MAC: Mac = [0xee; 6];

/// The next hop of every pod: nobody's address, answered for by the node's end.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"];

/// MTU of a plain lab's pods where the underlay's is larger.
const PLAIN_MTU: u32 = 1500;

impl Site {
    /// Starts a pod and returns its addresses.
    ///
    /// # Errors
    /// [`SiteError`]; what was half made is removed.
    pub fn add_pod(&mut self, node: &str, pod: Pod) -> Result<Vec<IpAddr>, SiteError> {
        let node = self.host(node)?.name.clone();
        let name = pod.full_name();
        if self.state.pod(&name).is_some() {
            return Err(SiteError::PodExists(name));
        }
        let state = if self.has_runtime() {
            self.run_container(&node, &pod)?
        } else {
            self.make_pod(&node, &pod)?
        };
        let PodState {
            netns, addresses, ..
        } = state.clone();
        self.state.pods.push(state);
        self.sync_routes()?;
        let is_served = self.has_runtime();
        let listens = pod.listens.iter().copied();
        let listens: Vec<_> = listens
            .filter(|listen| !is_served || !container::is_served(listen.protocol))
            .collect();
        self.start_echo(&node, &netns, &addresses, &listens)?;
        Ok(addresses)
    }

    /// A network namespace that is a pod; it is connected by the node's agent, or in a plain lab here.
    fn make_pod(&mut self, node: &Label, pod: &Pod) -> Result<PodState, SiteError> {
        let netns = state::pod_netns(self.name(), node, &pod.full_name());
        self.make_space(netns.clone())?;
        let wired = if self.state.document.spec.mesh {
            self.ask_agent(node, &netns, pod)
        } else {
            self.wire(node, &netns, pod)
        };
        let addresses = match wired {
            Ok(addresses) => addresses,
            Err(error) => {
                self.forget_space(&netns)?;
                return Err(error);
            }
        };
        Ok(PodState {
            node: node.clone(),
            pod: pod.clone(),
            netns,
            addresses,
            sandbox: None,
        })
    }

    /// Ends a pod.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn delete_pod(&mut self, name: &PodName) -> Result<(), SiteError> {
        let pod = self.pod(name)?.clone();
        self.echoes.remove(&pod.netns);
        if let Some(sandbox) = &pod.sandbox {
            self.end_container(&pod, sandbox)?;
        }
        let place = [crate::netns::path(&pod.netns)];
        let step = || format!("the processes of pod {name} do not end");
        let members = process::inside(&place).during(step)?;
        process::end(&members).during(step)?;
        self.reap();
        if pod.sandbox.is_some() {
            tracing::debug!(%name, "the runtime's plugin has disconnected it");
        } else if self.state.document.spec.mesh {
            let agent = self.agent(&pod.node);
            agent.delete_pod(name).map_err(|source| SiteError::Agent {
                node: pod.node.clone(),
                source,
            })?;
        } else {
            let space = self.host_space(&pod.node)?;
            let device = workload_device(&pod.pod);
            let gone = space.netlink().delete_link(&device);
            gone.during(|| format!("the device of pod {name} stays"))?;
        }
        self.state.pods.retain(|other| other.netns != pod.netns);
        self.state
            .programs
            .retain(|program| program.process.is_alive());
        self.forget_space(&pod.netns)?;
        self.sync_routes()
    }

    pub(super) fn forget_space(&mut self, netns: &str) -> Result<(), SiteError> {
        self.spaces.remove(netns);
        crate::netns::remove(netns)?;
        self.state.namespaces.retain(|name| name != netns);
        Ok(self.state.write()?)
    }

    /// The local API of a node's agent.
    pub fn agent(&self, node: &Label) -> Agent {
        let folder = state::host_folder(self.name(), node);
        Agent::at(&folder.join("run-meshd").join("meshd.sock"))
    }

    fn ask_agent(
        &mut self,
        node: &Label,
        netns: &str,
        pod: &Pod,
    ) -> Result<Vec<IpAddr>, SiteError> {
        let request = PodRequest {
            pod: &pod.full_name(),
            sandbox: netns,
            netns: crate::netns::path(netns),
            interface: POD_DEVICE,
            labels: &pod.labels,
            service_account: &pod.service_account,
            addresses: &pod.addresses,
        };
        let answer = self.agent(node).add_pod(&request);
        answer.map_err(|source| SiteError::Agent {
            node: node.clone(),
            source,
        })
    }

    /// Connects a pod to its node the way Calico does: a pair of devices and host routes.
    fn wire(&mut self, node: &Label, netns: &str, pod: &Pod) -> Result<Vec<IpAddr>, SiteError> {
        let addresses = self.plain_pod_addresses(node, pod)?;
        let step = || format!("pod {} cannot be wired", pod.full_name());
        let near = self.host_space(node)?;
        let far = self.space(netns)?;
        let device = workload_device(pod);
        let mac = pod_mac(&device);
        let node_end = VethEnd {
            name: &device,
            mac: Some(NODE_MAC),
            netns: None,
        };
        let inside = far.handle().as_raw_fd();
        let pod_end = VethEnd {
            name: POD_DEVICE,
            mac: Some(mac),
            netns: Some(inside),
        };
        let mtu = self.pod_mtu();
        near.netlink()
            .add_veth(&node_end, &pod_end, mtu)
            .during(step)?;
        near.netlink().set_up(&device).during(step)?;
        far.netlink().set_up(POD_DEVICE).during(step)?;
        for address in &addresses {
            let whole = IpNet::from(*address);
            near.netlink()
                .add_neighbour(&device, *address, mac)
                .during(step)?;
            near.netlink()
                .add_route(whole, Hop::Link, &device)
                .during(step)?;
            far.netlink().add_address(POD_DEVICE, whole).during(step)?;
            let gateway = gateway(*address);
            far.netlink()
                .add_neighbour(POD_DEVICE, gateway, NODE_MAC)
                .during(step)?;
            let mut netlink = far.netlink();
            netlink
                .add_route(IpNet::from(gateway), Hop::Link, POD_DEVICE)
                .during(step)?;
            netlink
                .add_route(default_route(*address), Hop::Via(gateway), POD_DEVICE)
                .during(step)?;
        }
        Ok(addresses)
    }

    fn pod_mtu(&self) -> u32 {
        let least = self
            .state
            .document
            .spec
            .networks
            .iter()
            .map(|network| network.mtu)
            .min();
        least.map_or(PLAIN_MTU, u32::from)
    }

    /// What the pod asked for, what the file's layout gives it, or what is free on its node.
    fn plain_pod_addresses(&self, node: &Label, pod: &Pod) -> Result<Vec<IpAddr>, SiteError> {
        let taken = |address: &IpAddr| {
            self.state
                .pods
                .iter()
                .any(|p| p.addresses.contains(address))
        };
        let planned = self.state.layout.plain_pod(&pod.full_name());
        let asked = if pod.addresses.is_empty() {
            planned
        } else {
            &pod.addresses
        };
        if !asked.is_empty() && !asked.iter().any(taken) {
            return Ok(asked.to_vec());
        }
        let nodes = &self.state.document.spec.nodes;
        let index = nodes
            .iter()
            .position(|n| n.name == *node)
            .unwrap_or_default();
        let underlay = self.host(node.as_str())?.addresses();
        let planned = nodes.get(index).map_or(0, |node| node.pods.len());
        let mut places = (planned..250).map(|place| plain_addresses(&underlay, index, place));
        let free = places.find(|chosen| pod.addresses.is_empty() && !chosen.iter().any(taken));
        free.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
            .during(|| format!("pod {} gets no address", pod.full_name()))
    }
}

fn gateway(address: IpAddr) -> IpAddr {
    let text = if address.is_ipv4() {
        GATEWAYS[0]
    } else {
        GATEWAYS[1]
    };
    text.parse().expect("the gateways are addresses")
}

fn default_route(address: IpAddr) -> IpNet {
    IpNet::new(address, 0)
        .expect("0 is a prefix length of both families")
        .trunc()
}

/// A locally administered Ethernet address made from the device's name.
fn pod_mac(device: &str) -> Mac {
    let hash = device.bytes().fold(0x9e37_79b9_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    [0x02, 0x4d, a, b, c, d]
}
