//! A network that falls into two parts: every link is up, and some hosts do not hear each other.

use super::{During, Site, SiteError};
use crate::{
    process::{Place, Program},
    state,
};

/// Takes the partition of a network away, if there is one.
const WHOLE: &str = "table bridge lab-partition\ndelete table bridge lab-partition\n";

impl Site {
    /// Parts a network: nobody of `one` and nobody of `other` hear each other there any more. An
    /// earlier partition of the network is replaced; an empty part makes the network whole.
    ///
    /// # Errors
    /// [`SiteError`] where there is no such network or host, or the kernel has no nftables on bridges.
    pub fn part(&mut self, network: &str, one: &[&str], other: &[&str]) -> Result<(), SiteError> {
        let [one, other] = [one, other].map(|hosts| {
            let ports = hosts.iter().map(|host| self.port_on(host, network));
            ports.collect::<Result<Vec<String>, _>>()
        });
        let rules = rules(&one?, &other?);
        let label = self.network(network)?;
        let place = Place {
            netns: state::network_netns(self.name(), &label),
            mounts: None,
        };
        let program = Program::new("nft".as_ref(), ["-f", "-"]);
        let done = program.output(&place, rules.as_bytes());
        done.map(drop)
            .during(|| format!("network {network} cannot be parted"))
    }

    fn network(&self, name: &str) -> Result<crate::spec::Label, SiteError> {
        let mut networks = self.state.document.spec.networks.iter();
        let found = networks.find(|network| network.name.as_str() == name);
        found
            .map(|network| network.name.clone())
            .ok_or_else(|| SiteError::NoHost(name.to_owned()))
    }

    /// The port of a host on a network.
    fn port_on(&self, host: &str, network: &str) -> Result<String, SiteError> {
        let networks = &self.state.document.spec.networks;
        let position = networks.iter().position(|n| n.name.as_str() == network);
        let device = position.and_then(|position| self.host(host).ok()?.device_on(position));
        let device = device.ok_or_else(|| SiteError::NoHost(format!("{host} on {network}")))?;
        Ok(self.port(host, &device.name)?.0)
    }
}

fn rules(one: &[String], other: &[String]) -> String {
    if one.is_empty() || other.is_empty() {
        return WHOLE.to_owned();
    }
    let list = |ports: &[String]| {
        let quoted: Vec<String> = ports.iter().map(|port| format!("\"{port}\"")).collect();
        quoted.join(", ")
    };
    let (one, other) = (list(one), list(other));
    format!(
        "{WHOLE}table bridge lab-partition {{
           chain forwarded {{
             type filter hook forward priority 0;
             iifname {{ {one} }} oifname {{ {other} }} drop
             iifname {{ {other} }} oifname {{ {one} }} drop
           }}
         }}\n"
    )
}
