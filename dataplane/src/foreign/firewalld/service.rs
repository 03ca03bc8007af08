//! firewalld on the bus: its zones are read, and told what is ours.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use model::firewall::{Opening, ZoneName};
use zbus::OwnedVariant;

use super::{
    bus::{Bus, BusError, NAME, Place},
    note::Notes,
    view::{TRUSTED, View, Zone},
};

/// Its objects and their interfaces (firewalld.dbus(5)).
const ROOT: Place<'_> = ("/org/fedoraproject/FirewallD1", NAME);
const ZONES: Place<'_> = (ROOT.0, "org.fedoraproject.FirewallD1.zone");
const CONFIG: Place<'_> = (
    "/org/fedoraproject/FirewallD1/config",
    "org.fedoraproject.FirewallD1.config",
);
const CONFIG_ZONE: &str = "org.fedoraproject.FirewallD1.config.zone";

/// Zones, and devices or ports of one, that are taken in.
const ZONES_MAX: usize = 256;
const MEMBERS_MAX: usize = 4096;

/// firewalld, if it runs, and what it has of ours.
pub(super) struct Service<'a> {
    bus: &'a Bus,
    notes_path: PathBuf,
    /// What is ours in this run of it.
    notes: Option<Notes>,
    /// It was there when last looked at.
    runs: bool,
}

impl<'a> Service<'a> {
    pub(super) fn new(bus: &'a Bus, notes_path: PathBuf) -> Self {
        Self {
            bus,
            notes_path,
            notes: None,
            runs: false,
        }
    }

    /// Looks at firewalld: its zones, and what is ours there. `None` where none filters our packets.
    pub(super) async fn look(&mut self) -> Result<(Option<View>, BTreeSet<Opening>), BusError> {
        let view = self.view().await?;
        let ours = match (&view, &mut self.notes) {
            (Some(view), Some(notes)) => {
                // What somebody took out is not ours any more.
                let has = |opening: &Opening| view.has(opening);
                notes.retain(has).map_err(BusError::Note)?;
                notes.ours().clone()
            }
            _ => BTreeSet::new(),
        };
        let runs = view.is_some();
        if runs != self.runs {
            tracing::info!(runs, "firewalld came or went");
        }
        self.runs = runs;

        Ok((view, ours))
    }

    async fn view(&mut self) -> Result<Option<View>, BusError> {
        let Some(owner) = self.bus.find_firewalld().await? else {
            return Ok(None);
        };
        if !filters_our_packets(self.bus.process(&owner).await?) {
            return Ok(None);
        }
        let run = format!("{} {owner}", self.bus.id());
        if self.notes.as_ref().is_none_or(|notes| notes.run() != run) {
            self.notes = Some(Notes::open(&self.notes_path, &run));
        }

        let default: String = self.bus.ask(ROOT, "getDefaultZone", &()).await?;
        let default = zone_name("getDefaultZone", &default)?;
        let mut zones = self.active_zones().await?;
        zones.entry(default.clone()).or_default();
        for (name, zone) in &mut zones {
            self.read_zone(name, zone).await?;
        }
        for name in self.further_zones()? {
            let Entry::Vacant(entry) = zones.entry(name) else {
                continue;
            };
            let mut zone = Zone::default();
            match self.read_zone(entry.key(), &mut zone).await {
                Ok(()) => {
                    entry.insert(zone);
                }
                // An administrator may have removed it.
                Err(BusError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }

        Ok(Some(View {
            run,
            default,
            zones,
        }))
    }

    /// Returns the zones that have members, with these.
    async fn active_zones(&self) -> Result<BTreeMap<ZoneName, Zone>, BusError> {
        let method = "getActiveZones";
        let active: HashMap<String, HashMap<String, Vec<String>>> =
            self.bus.ask(ZONES, method, &()).await?;
        bounded(method, active.len(), ZONES_MAX)?;
        let mut zones = BTreeMap::new();
        for (name, mut content) in active {
            let interfaces = content.remove("interfaces").unwrap_or_default();
            bounded(method, interfaces.len(), MEMBERS_MAX)?;
            let zone = Zone {
                interfaces: interfaces.into_iter().collect(),
                ..Zone::default()
            };
            zones.insert(zone_name(method, &name)?, zone);
        }

        Ok(zones)
    }

    /// Returns the zones that concern us although they may have no members.
    fn further_zones(&self) -> Result<BTreeSet<ZoneName>, BusError> {
        let mut zones = BTreeSet::from([zone_name("getZoneSettings2", TRUSTED)?]);
        let ours = self.notes.iter().flat_map(|notes| notes.ours());
        zones.extend(ours.filter_map(|opening| match opening {
            Opening::FirewalldPort { zone, .. } => Some(zone.clone()),
            Opening::DockerUser(_) | Opening::FirewalldMember(_) => None,
        }));

        Ok(zones)
    }

    async fn read_zone(&self, name: &ZoneName, zone: &mut Zone) -> Result<(), BusError> {
        let method = "getZoneSettings2";
        let settings: HashMap<String, OwnedVariant> =
            self.bus.ask(ZONES, method, &(name.as_str(),)).await?;
        let target = settings.get("target").map(<&str>::try_from);
        zone.accepts = matches!(target, Some(Ok("ACCEPT")));
        let method = "getPorts";
        let ports: Vec<Vec<String>> = self.bus.ask(ZONES, method, &(name.as_str(),)).await?;
        bounded(method, ports.len(), MEMBERS_MAX)?;
        zone.ports = ports.iter().filter_map(|port| udp_ports(port)).collect();

        Ok(())
    }

    /// Notes an opening as ours, then makes it.
    pub(super) async fn make(&mut self, opening: &Opening) -> Result<(), BusError> {
        let Some(notes) = &mut self.notes else {
            return Ok(());
        };
        notes.add(opening).map_err(BusError::Note)?;
        let told: Result<String, BusError> = match opening {
            Opening::DockerUser(_) => return Ok(()),
            Opening::FirewalldMember(member) => {
                let arguments = (TRUSTED, &*member.to_string());
                self.bus.ask(ZONES, "addInterface", &arguments).await
            }
            Opening::FirewalldPort { zone, port } => {
                // Without an end: for as long as this run of firewalld.
                let arguments = (zone.as_str(), &*port.to_string(), "udp", 0i32);
                self.bus.ask(ZONES, "addPort", &arguments).await
            }
        };
        if let (Err(BusError::Refused { .. }), Some(notes)) = (&told, &mut self.notes) {
            // It was not done, or somebody else had done it.
            notes
                .retain(|each| each != opening)
                .map_err(BusError::Note)?;
        }

        told.map(drop)
    }

    /// Takes back what is ours, unless an administrator has made it permanent: then it is his.
    pub(super) async fn take_back(&mut self, opening: &Opening) -> Result<(), BusError> {
        if self.is_permanent(opening).await? {
            tracing::info!(%opening, "An administrator made this permanent; it stays");
        } else {
            let _zone: String = match opening {
                Opening::DockerUser(_) => return Ok(()),
                Opening::FirewalldMember(member) => {
                    let arguments = (TRUSTED, &*member.to_string());
                    self.bus.ask(ZONES, "removeInterface", &arguments).await?
                }
                Opening::FirewalldPort { zone, port } => {
                    let arguments = (zone.as_str(), &*port.to_string(), "udp");
                    self.bus.ask(ZONES, "removePort", &arguments).await?
                }
            };
        }

        match &mut self.notes {
            Some(notes) => notes.retain(|each| each != opening).map_err(BusError::Note),
            None => Ok(()),
        }
    }

    async fn is_permanent(&self, opening: &Opening) -> Result<bool, BusError> {
        let zone = match opening {
            Opening::DockerUser(_) => return Ok(false),
            Opening::FirewalldMember(_) => TRUSTED,
            Opening::FirewalldPort { zone, .. } => zone.as_str(),
        };
        let place: zbus::OwnedObjectPath = self.bus.ask(CONFIG, "getZoneByName", &(zone,)).await?;
        let place = (place.as_str(), CONFIG_ZONE);

        match opening {
            Opening::DockerUser(_) => Ok(false),
            Opening::FirewalldMember(member) => {
                let member = member.to_string();
                self.bus.ask(place, "queryInterface", &(&*member,)).await
            }
            Opening::FirewalldPort { port, .. } => {
                let port = port.to_string();
                self.bus.ask(place, "queryPort", &(&*port, "udp")).await
            }
        }
    }
}

/// Returns whether a process lives in our network namespace: another one's rules are none of our business.
fn filters_our_packets(process: u32) -> bool {
    let namespace = |of: &str| {
        let file = fs::metadata(format!("/proc/{of}/ns/net"));
        file.map(|file| (file.dev(), file.ino())).ok()
    };
    let (theirs, ours) = (namespace(&process.to_string()), namespace("thread-self"));
    if theirs.is_none() || theirs != ours {
        tracing::debug!(
            process,
            "firewalld is not in our network namespace; left alone"
        );
    }

    theirs.is_some() && theirs == ours
}

fn zone_name(method: &'static str, name: &str) -> Result<ZoneName, BusError> {
    name.parse().map_err(|error| BusError::Answer {
        method,
        what: format!("{error}"),
    })
}

fn bounded(method: &'static str, count: usize, most: usize) -> Result<(), BusError> {
    if count <= most {
        return Ok(());
    }
    let what = format!("{count} entries, of which {most} are taken in");

    Err(BusError::Answer { method, what })
}

/// Reads a port, or a range of them, with its protocol: `51820`, `udp`.
fn udp_ports(port: &[String]) -> Option<(u16, u16)> {
    let [ports, protocol] = port else { return None };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));

    (protocol == "udp").then_some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_a_range_and_another_protocol_are_told_apart() {
        let read = |ports: &str, protocol: &str| udp_ports(&[ports.into(), protocol.into()]);
        assert_eq!(read("51820", "udp"), Some((51820, 51820)));
        assert_eq!(read("500-510", "udp"), Some((500, 510)));
        assert_eq!(read("51820", "tcp"), None);
        assert_eq!(read("51820-", "udp"), None);
        assert_eq!(udp_ports(&["1".into()]), None);
    }

    #[test]
    fn who_lives_in_our_network_namespace_filters_our_packets() {
        assert!(filters_our_packets(std::process::id()));
        assert!(!filters_our_packets(u32::MAX));
    }
}
