//! A host's network device that comes while the host runs, and goes again.

use std::io;

use super::{During, Site, SiteError};
use crate::layout::Device;

impl Site {
    /// Puts one more device into a host, on a network where it has none: still down, without address.
    ///
    /// # Errors
    /// [`SiteError`] where there is no such network, or the host is on it already.
    pub fn add_device(&mut self, host: &str, network: &str) -> Result<Device, SiteError> {
        let step = || format!("{host} gets no device on {network}");
        let networks = &self.state.document.spec.networks;
        let position = networks.iter().position(|n| n.name.as_str() == network);
        let index = self.position(host)?;
        let attached = position.and_then(|position| self.state.layout.attach(index, position));
        let device = attached
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
            .during(step)?;
        let owner = self.state.layout.hosts[index].clone();
        self.plug_in(index, &owner, &device)?;
        Ok(device)
    }

    /// Brings a device up that [`Site::add_device`] put in, with its addresses and the routes that follow.
    ///
    /// # Errors
    /// [`SiteError`] with the step that failed.
    pub fn bring_device_up(&mut self, host: &str, device: &Device) -> Result<(), SiteError> {
        let name = self.host(host)?.name.clone();
        let space = self.host_space(&name)?;
        let step = || format!("{} of {host} cannot be set up", device.name);
        let mut netlink = space.netlink();
        netlink.set_up(&device.name).during(step)?;
        for address in &device.addresses {
            netlink.add_address(&device.name, *address).during(step)?;
        }
        drop(netlink);
        self.sync_routes()
    }

    /// Takes a device out of a running host.
    ///
    /// # Errors
    /// [`SiteError`] where there is no such device.
    pub fn remove_device(&mut self, host: &str, device: &str) -> Result<(), SiteError> {
        let name = self.host(host)?.name.clone();
        self.unplug(&name, device)?;
        let index = self.position(host)?;
        self.state.layout.hosts[index]
            .devices
            .retain(|other| other.name != device);
        // The routes by that device went with it.
        self.state.routes.remove(&name);
        self.sync_routes()
    }
}
