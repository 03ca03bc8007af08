//! What no single field of a lab file can show: names that refer to something, given once.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Attachment, Label, MAX_OBJECTS, Spec};

/// A field that is wrong in the light of others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: String,
    pub(super) reason: String,
}

impl Wrong {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl Spec {
    /// Checks what no single field can show.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_size()?;
        self.check_networks()?;
        self.check_hosts()?;
        self.check_attachments()?;
        self.check_routers()?;
        self.check_pods()
    }

    fn check_size(&self) -> Result<(), Wrong> {
        let pods: usize = self.nodes.iter().map(|node| node.pods.len()).sum();
        let hosts = self.nodes.len() + self.routers.len() + self.outside.len();
        if self.networks.len() + hosts + pods > MAX_OBJECTS {
            return Err(Wrong::new(
                "spec",
                format!("more than {MAX_OBJECTS} objects"),
            ));
        }
        Ok(())
    }

    fn check_networks(&self) -> Result<(), Wrong> {
        let mut seen = BTreeSet::new();
        for (i, network) in self.networks.iter().enumerate() {
            let path = format!("spec.networks[{i}]");
            if !seen.insert(&network.name) {
                return Err(Wrong::new(format!("{path}.name"), "the name is taken"));
            }
            let v4 = network
                .cidrs
                .iter()
                .filter(|cidr| cidr.addr().is_ipv4())
                .count();
            if network.cidrs.is_empty() || v4 > 1 || network.cidrs.len() - v4 > 1 {
                let reason = "expected one subnet per family, and one at least";
                return Err(Wrong::new(format!("{path}.cidrs"), reason));
            }
            let narrow = |cidr: &IpNet| cidr.max_prefix_len() - cidr.prefix_len() < 3;
            if network.cidrs.iter().any(narrow) {
                let reason = "a subnet needs room for at least eight addresses";
                return Err(Wrong::new(format!("{path}.cidrs"), reason));
            }
            let least = if v4 < network.cidrs.len() { 1280 } else { 576 };
            if network.mtu < least || network.path_mtu.is_some_and(|mtu| mtu < least) {
                return Err(Wrong::new(
                    format!("{path}.mtu"),
                    format!("expected {least} or more"),
                ));
            }
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), Wrong> {
        let mut seen = BTreeSet::new();
        let server = self
            .server
            .as_ref()
            .map(|_| ("spec.server".to_owned(), "server"));
        let named = server.into_iter().chain(
            self.named_hosts()
                .map(|(path, name, _)| (format!("{path}.name"), name.as_str())),
        );
        for (path, name) in named {
            if !seen.insert(name) {
                return Err(Wrong::new(path, format!("{name:?}: the name is taken")));
            }
        }
        Ok(())
    }

    fn check_attachments(&self) -> Result<(), Wrong> {
        let server = self
            .server
            .iter()
            .map(|s| ("spec.server".to_owned(), &s.networks));
        let all = self
            .named_hosts()
            .map(|(path, _, networks)| (path, networks))
            .chain(server);
        for (path, networks) in all {
            if networks.is_empty() {
                return Err(Wrong::new(
                    format!("{path}.networks"),
                    "expected one at least",
                ));
            }
            for (i, attachment) in networks.iter().enumerate() {
                self.check_attachment(&format!("{path}.networks[{i}]"), attachment)?;
                if networks[..i]
                    .iter()
                    .any(|earlier| earlier.name == attachment.name)
                {
                    return Err(Wrong::new(format!("{path}.networks[{i}]"), "named twice"));
                }
            }
        }
        Ok(())
    }

    fn check_attachment(&self, path: &str, attachment: &Attachment) -> Result<(), Wrong> {
        let Some(network) = self.networks.iter().find(|n| n.name == attachment.name) else {
            return Err(Wrong::new(
                path,
                format!("no network is called {}", attachment.name),
            ));
        };
        for address in &attachment.addresses {
            if !network.cidrs.iter().any(|cidr| cidr.contains(address)) {
                return Err(Wrong::new(
                    path,
                    format!("{address} is not in {}", network.name),
                ));
            }
        }
        Ok(())
    }

    fn check_routers(&self) -> Result<(), Wrong> {
        for (i, router) in self.routers.iter().enumerate() {
            let path = format!("spec.routers[{i}]");
            if let Some(nat) = &router.nat
                && !router
                    .networks
                    .iter()
                    .any(|attachment| attachment.name == nat.network)
            {
                let reason = format!("the router is not on {}", nat.network);
                return Err(Wrong::new(format!("{path}.nat.network"), reason));
            }
            for (j, route) in router.routes.iter().enumerate() {
                if route.to.addr().is_ipv4() != route.via.is_ipv4() {
                    let reason = "the next hop is of the other family";
                    return Err(Wrong::new(format!("{path}.routes[{j}].via"), reason));
                }
            }
        }
        Ok(())
    }

    fn check_pods(&self) -> Result<(), Wrong> {
        let mut names = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for (j, pod) in node.pods.iter().enumerate() {
                let path = format!("spec.nodes[{i}].pods[{j}]");
                if !names.insert(pod.full_name()) {
                    let reason = format!("{} exists already", pod.full_name());
                    return Err(Wrong::new(format!("{path}.name"), reason));
                }
                if let Some(taken) = pod.addresses.iter().find(|a| !addresses.insert(**a)) {
                    let reason = format!("{taken} is another pod's");
                    return Err(Wrong::new(format!("{path}.addresses"), reason));
                }
            }
        }
        Ok(())
    }

    /// Every host with a name of its own, its path in the file, and its networks.
    fn named_hosts(&self) -> impl Iterator<Item = (String, &Label, &Vec<Attachment>)> {
        let nodes = self.nodes.iter().enumerate();
        let routers = self.routers.iter().enumerate();
        let outside = self.outside.iter().enumerate();
        nodes
            .map(|(i, host)| (format!("spec.nodes[{i}]"), &host.name, &host.networks))
            .chain(routers.map(|(i, r)| (format!("spec.routers[{i}]"), &r.name, &r.networks)))
            .chain(outside.map(|(i, o)| (format!("spec.outside[{i}]"), &o.name, &o.networks)))
    }
}
