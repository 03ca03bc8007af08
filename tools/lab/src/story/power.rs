//! Machines that lose their power, and devices that come and go, under the sniffers' eyes.

use super::{End as _, Lab, Node, or_fail};
use crate::{
    layout::Device,
    site::{Site, SiteError},
};

/// What a machine does about its guard when it boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// It restores the last good one before there is a network, as its service manager has it.
    Guarded,
    /// Nothing.
    Bare,
}

impl Lab {
    /// Cuts a node's power and lets it boot until its network is up; its services are then to be
    /// started, and its pods to be added, by the test. `early` is called as soon as the machine has its
    /// namespaces, before its guard and its devices. Sniffers stand on the new devices before they are up.
    pub fn reboot(&self, node: &Node, boot: Boot, early: impl FnOnce(&Node)) {
        let name = node.name();
        let step = |what: &str, work: &dyn Fn(&mut Site) -> Result<(), SiteError>| {
            self.inner
                .site(|site| or_fail(&format!("{name} {what}"), work(site)));
        };
        step("loses its power", &|site| site.power_off(name));
        self.inner.watch().retire(name);
        step("boots", &|site| site.boot(name));
        early(node);
        if boot == Boot::Guarded {
            step("restores its guard", &|site| site.restore_guard(name));
        }
        step("has devices", &|site| site.plug(name));
        let label = self
            .inner
            .site(|site| or_fail(name, site.host(name).map(|host| host.name.clone())));
        self.sniff_host(&mut self.inner.watch(), &label);
        step("is on its network", &|site| site.bring_up(name));
    }

    /// Puts one more underlay device into a node, with addresses and routes; it is watched from its first frame.
    pub fn add_device(&self, node: &Node, network: &str) -> Device {
        let device = self
            .inner
            .site(|site| or_fail("a new device", site.add_device(node.name(), network)));
        self.refresh();
        self.sniff_device(node, &device.name);
        self.inner.site(|site| {
            let up = site.bring_device_up(node.name(), &device);
            or_fail("the new device comes up", up);
        });
        device
    }

    /// Takes a device out of a node again.
    pub fn remove_device(&self, node: &Node, device: &Device) {
        self.inner.site(|site| {
            let gone = site.remove_device(node.name(), &device.name);
            or_fail("the device goes", gone);
        });
        let name = format!("{}-{}", node.label(), device.name);
        self.inner.watch().retire(&name);
    }

    /// Parts a network; see [`crate::Site::part`].
    pub fn part(&self, network: &str, one: &[&str], other: &[&str]) {
        self.inner
            .site(|site| or_fail("the network falls apart", site.part(network, one, other)));
    }
}
