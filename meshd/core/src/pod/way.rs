//! The ways to a pod beside its own addresses, and what a pod may not have.

use std::net::IpAddr;

use model::{
    Family, InterfaceName, PodName, event::PodRequest, family::host_net, pod::HostPort,
    policy::Protocol,
};

use super::Pod;
use crate::{
    World, guard,
    ledger::{Owner, Row},
    mtu, pool, route,
    translation::{self, Led},
};

impl World {
    /// Returns the MTU of a pod: the mesh's, or less where it asked for less.
    pub(super) fn mtu_of(&self, pod: &Pod) -> u32 {
        let mesh = self.pod_mtu();
        let asked = pod.request.as_ref().and_then(|request| request.wish.mtu);
        let least = mtu::carrying(0, pod.addresses.keys().copied());

        asked.map_or(mesh, |asked| asked.clamp(least.min(mesh), mesh))
    }

    /// Returns why a pod cannot be as it asks to be.
    pub(super) fn objection(&self, name: &PodName, request: &PodRequest) -> Option<String> {
        let ports = request.wish.host_ports.iter();
        let taken = ports
            .clone()
            .find_map(|port| self.holder_of_port(name, port));
        let floating = || {
            let mut addresses = request.wish.floating.iter();
            addresses.find_map(|address| self.objection_to_floating(name, *address))
        };
        let unmanaged = || {
            let mut addresses = request.wish.unmanaged.iter();
            addresses.find_map(|address| self.objection_to_unmanaged(name, *address))
        };

        taken.or_else(floating).or_else(unmanaged)
    }

    fn holder_of_port(&self, name: &PodName, port: &HostPort) -> Option<String> {
        let devices = self.wish.devices.iter();
        let mut tunnels = devices.map(|device| device.port);
        if port.protocol == Protocol::UDP && tunnels.any(|tunnel| tunnel == port.port) {
            return Some(format!(
                "UDP port {} of the host is the tunnel's",
                port.port
            ));
        }
        let others = self.pods.placed().filter(|(other, _)| *other != name);
        let overlaps = |other: &HostPort| {
            let same = (other.protocol, other.port) == (port.protocol, port.port);
            same && match (specific(other), specific(port)) {
                (Some(one), Some(two)) => one == two,
                (Some(_) | None, Some(_) | None) => true,
            }
        };
        let holder = others
            .filter_map(|(other, pod)| Some((other, pod.request.as_ref()?)))
            .find(|(_, other)| other.wish.host_ports.iter().any(overlaps));

        holder.map(|(other, _)| {
            let (protocol, number) = (port.protocol, port.port);
            format!("{protocol} port {number} of the host leads to {other} already")
        })
    }

    fn objection_to_floating(&self, name: &PodName, address: IpAddr) -> Option<String> {
        if let Some(why) = self.user_of(address) {
            return Some(format!("floatingIPs: {address} is {why}"));
        }
        let mut others = self.pods.placed().filter(|(other, _)| *other != name);
        let holder = others.find(|(_, pod)| {
            let floating = pod.request.iter().flat_map(|other| &other.wish.floating);
            let own = pod.addresses.values();
            own.chain(floating).any(|held| *held == address)
        });

        holder.map(|(other, _)| format!("floatingIPs: {address} is {other}'s"))
    }

    /// An address that nobody assigns must be nobody's.
    fn objection_to_unmanaged(&self, name: &PodName, address: IpAddr) -> Option<String> {
        if self
            .facts
            .pools
            .values()
            .any(|pool| pool.cidr.contains(&address))
        {
            let text = "is in a pool: ask for it by cni.projectcalico.org/ipAddrs";
            return Some(format!("ipAddrsNoIpam: {address} {text}"));
        }

        self.objection_to_floating(name, address)
            .map(|why| why.replacen("floatingIPs", "ipAddrsNoIpam", 1))
    }

    /// Returns who has an address that no pod may have.
    fn user_of(&self, address: IpAddr) -> Option<String> {
        let is_special = match address {
            IpAddr::V4(it) => {
                it.is_unspecified()
                    || it.is_loopback()
                    || it.is_link_local()
                    || it.is_multicast()
                    || it.is_broadcast()
            }
            IpAddr::V6(it) => {
                it.is_unspecified()
                    || it.is_loopback()
                    || it.is_unicast_link_local()
                    || it.is_multicast()
            }
        };
        if is_special {
            return Some("no host's".to_owned());
        }
        if self.own.has(address)
            || self
                .own
                .tunnel_addresses
                .values()
                .any(|own| *own == address)
        {
            return Some("this node's".to_owned());
        }
        let members = self.members.iter();
        let mut holders = members.filter(|(_, (member, _))| member.hosts.contains(&address));

        holders.next().map(|(name, _)| format!("{name}'s"))
    }

    /// Returns the rows of what a pod has beside the addresses of pools.
    pub(super) fn ways_rows(&self, pod: &Pod, host: &InterfaceName) -> Vec<Row> {
        let Some(request) = &pod.request else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for address in &request.wish.unmanaged {
            let covered = self.posture.up && self.wish.covers(Family::of(*address));
            rows.extend(guard::lone_block(host_net(*address), self.posture.up));
            rows.extend(covered.then(|| route::from_lone_address(&self.wish, *address)));
        }
        if self.wish.floating {
            let served = |address: &&IpAddr| pod.addresses.contains_key(&Family::of(**address));
            let floating = request.wish.floating.iter().filter(served);
            let lone = floating.filter(|address| !pool::is_pods(&self.facts, **address));
            rows.extend(lone.map(|address| route::to_pod(host_net(*address), host.clone())));
        }

        rows
    }

    /// Writes the ways by ports and floating addresses again.
    pub(super) fn refresh_led(&mut self) {
        let mut led = Vec::new();
        for (name, pod) in self.pods.placed() {
            let Some(request) = &pod.request else {
                continue;
            };
            let floating: &[IpAddr] = if self.wish.floating {
                &request.wish.floating
            } else {
                &[]
            };
            let ports = &request.wish.host_ports;
            if ports.is_empty() && floating.is_empty() {
                continue;
            }
            led.extend(pod.addresses.values().map(|address| Led {
                pod: name,
                address: *address,
                ports,
                floating,
            }));
        }
        let rows = translation::leading(&led);
        if !rows.is_empty() || !self.ledger.rows_of(&Owner::Led).is_empty() {
            self.write(Owner::Led, rows);
        }
    }
}

/// Returns the one address that a port is about.
fn specific(port: &HostPort) -> Option<IpAddr> {
    port.address.filter(|address| !address.is_unspecified())
}
