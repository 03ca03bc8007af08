//! The power of a node: cut without warning, and a boot that begins with nothing but its disk.
//!
//! ```text
//! power_off ─▶ boot (namespaces, settings) ─▶ restore_guard ─▶ plug ─▶ bring_up ─▶ services
//! ```
//!
//! The steps of a boot are apart so that a test can stand between them: what a machine sends before
//! its agent runs is decided there.

use std::{fs, io, time::Duration};

use rustix::process::Signal;

use super::{During, Site, SiteError, down, up::port_name};
use crate::{
    layout::Host,
    mount,
    process::{self, Process},
    state::{self, PodState},
};

/// How long the kernel may take to end a killed process.
const PATIENCE: Duration = Duration::from_secs(5);

/// What of a host's folders is in memory and gone after a boot.
const IN_MEMORY: [&str; 2] = ["run-meshd", "run-wireguard"];

impl Site {
    /// Cuts the power of a node: its programs, pods, devices and namespaces are gone at once; what is on
    /// its disk stays.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn power_off(&mut self, node: &str) -> Result<(), SiteError> {
        let host = self.host(node)?.clone();
        let pods: Vec<PodState> = { self.state.pods.iter() }
            .filter(|pod| pod.node == host.name)
            .cloned()
            .collect();
        for pod in &pods {
            self.echoes.remove(&pod.netns);
        }
        self.pull_cables(&host)?;
        let own = state::host_netns(self.name(), &host.name);
        let spaces: Vec<String> = pods.into_iter().map(|pod| pod.netns).chain([own]).collect();
        self.kill_members(&host, &spaces)?;
        self.state.pods.retain(|pod| pod.node != host.name);
        self.state
            .programs
            .retain(|program| program.host != host.name);
        self.state.routes.remove(&host.name);
        self.forget_mounts(&host)?;
        for space in spaces {
            self.forget_space(&space)?;
        }
        Ok(())
    }

    /// The network devices go first: what is cut off sends nothing while it is taken apart.
    fn pull_cables(&mut self, host: &Host) -> Result<(), SiteError> {
        for device in &host.devices {
            self.unplug(&host.name, &device.name)?;
        }
        Ok(())
    }

    /// Takes the port of a host's device away, and with it the device.
    pub(super) fn unplug(
        &mut self,
        host: &crate::spec::Label,
        device: &str,
    ) -> Result<(), SiteError> {
        let (port, netns) = self.port(host.as_str(), device)?;
        let space = self.space(&netns)?;
        let gone = space.netlink().delete_link(&port);
        gone.during(|| format!("{device} of {host} cannot be taken out"))
    }

    fn kill_members(&mut self, host: &Host, spaces: &[String]) -> Result<(), SiteError> {
        let step = || format!("the processes of {} do not end", host.name);
        let mut files: Vec<_> = spaces.iter().map(|s| crate::netns::path(s)).collect();
        files.extend(self.state.place(&host.name).mounts);
        let members = process::inside(&files).during(step)?;
        for process in &members {
            process.signal(Signal::KILL).during(step)?;
        }
        let ended = |process: &Process| process.wait(PATIENCE).and_then(in_time);
        members.iter().try_for_each(ended).during(step)?;
        self.reap();
        Ok(())
    }

    fn forget_mounts(&mut self, host: &Host) -> Result<(), SiteError> {
        let step = || format!("the folders of {} are still in use", host.name);
        if let Some(keep) = self.state.place(&host.name).mounts {
            down::forget(&keep).during(step)?;
            fs::remove_file(keep).during(step)?;
        }
        let folder = state::host_folder(self.name(), &host.name);
        for name in IN_MEMORY {
            fs::remove_dir_all(folder.join(name)).during(step)?;
        }
        Ok(())
    }

    /// Lets a node that was cut off boot as far as its first namespace: no device but `lo`, no program.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn boot(&mut self, node: &str) -> Result<(), SiteError> {
        let host = self.host(node)?.clone();
        let space = self.make_space(state::host_netns(self.name(), &host.name))?;
        space.set(&super::up::forwarding(host.role))?;
        let folder = state::host_folder(self.name(), &host.name);
        let keep = state::folder(self.name())
            .join("mounts")
            .join(host.name.as_str());
        Ok(mount::create(&space, &folder, &keep)?)
    }

    /// Puts a node's underlay devices in, each still down.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn plug(&mut self, node: &str) -> Result<(), SiteError> {
        let host = self.host(node)?.clone();
        let index = self.position(node)?;
        host.devices
            .iter()
            .try_for_each(|device| self.plug_in(index, &host, device))
    }

    /// Brings a node's underlay devices up, with their addresses and routes.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn bring_up(&mut self, node: &str) -> Result<(), SiteError> {
        let host = self.host(node)?.clone();
        self.state.routes.remove(&host.name);
        self.address_host(&host)?;
        self.sync_routes()
    }

    /// A host's place in the layout.
    pub(super) fn position(&self, host: &str) -> Result<usize, SiteError> {
        let hosts = &self.state.layout.hosts;
        let index = hosts.iter().position(|h| h.name.as_str() == host);
        index.ok_or_else(|| SiteError::NoHost(host.to_owned()))
    }

    /// The port of a host's device, and the namespace of the network that has it.
    pub(super) fn port(&self, host: &str, device: &str) -> Result<(String, String), SiteError> {
        let index = self.position(host)?;
        let devices = &self.state.layout.hosts[index].devices;
        let found = devices.iter().find(|d| d.name == device);
        let found = found.ok_or_else(|| SiteError::NoHost(format!("{host}/{device}")))?;
        let network = &self.state.document.spec.networks[found.network].name;
        Ok((
            port_name(index, found),
            state::network_netns(self.name(), network),
        ))
    }
}

fn in_time(ended: bool) -> io::Result<()> {
    if ended {
        Ok(())
    } else {
        Err(io::ErrorKind::TimedOut.into())
    }
}
