//! firewalld's zones, as far as they concern us, and what may be put into them.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    InterfaceName,
    firewall::{ExtensionPoint, Opening, ZoneMember, ZoneName},
};

/// The zone that comes with firewalld and lets everything of its members pass.
pub(super) const TRUSTED: &str = "trusted";

/// The zones in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Which run of firewalld this is: what it was told at run time ends with it.
    pub(super) run: String,
    /// The zone of what no zone names.
    pub(super) default: ZoneName,
    /// Zones in use, and `trusted` where there is one.
    pub(super) zones: BTreeMap<ZoneName, Zone>,
}

/// One zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Zone {
    /// It accepts what it does not name.
    pub(super) accepts: bool,
    /// Its devices; a trailing `+` stands for any ending.
    pub(super) interfaces: BTreeSet<String>,
    /// UDP ports that it names, each range with its ends.
    pub(super) ports: BTreeSet<(u16, u16)>,
}

/// What must be done for an opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing: our packets pass there.
    Passes,
    /// It can be made.
    Free,
    /// Somebody else decided otherwise, in words.
    Taken(String),
}

impl View {
    /// Returns the places that concern packets of ours on these devices to the other machines.
    pub(super) fn points(&self, underlay: &BTreeSet<InterfaceName>) -> BTreeSet<ExtensionPoint> {
        let trusted = self.trusted().filter(|(_, zone)| zone.accepts);
        let trusted = trusted.map(|_| ExtensionPoint::FirewalldTrusted);
        let zones = underlay.iter().map(|device| self.zone_of(device.as_str()));
        let closed = zones.filter(|name| !self.accepts(name));

        closed
            .map(|name| ExtensionPoint::FirewalldZone(name.clone()))
            .chain(trusted)
            .collect()
    }

    /// Returns whether firewalld has it, whoever told it so.
    pub(super) fn has(&self, opening: &Opening) -> bool {
        match opening {
            Opening::DockerUser(_) => false,
            Opening::FirewalldMember(member) => self
                .trusted()
                .is_some_and(|(_, zone)| zone.interfaces.contains(&member.to_string())),
            Opening::FirewalldPort { zone, port } => self
                .zones
                .get(zone)
                .is_some_and(|zone| zone.ports.contains(&(*port, *port))),
        }
    }

    /// Says what must be done for an opening.
    pub(super) fn judge(&self, opening: &Opening) -> Judgement {
        match opening {
            Opening::DockerUser(_) => Judgement::Passes,
            Opening::FirewalldMember(member) => self.judge_member(member),
            Opening::FirewalldPort { zone: name, port } => match self.zones.get(name) {
                None => Judgement::Taken(format!("firewalld's zone {name} is not in use any more")),
                Some(zone) if zone.accepts || zone.names(*port) => Judgement::Passes,
                Some(_) => Judgement::Free,
            },
        }
    }

    fn judge_member(&self, member: &ZoneMember) -> Judgement {
        let Some((trusted, _)) = self.trusted().filter(|(_, zone)| zone.accepts) else {
            return Judgement::Taken("firewalld has no zone trusted that accepts".to_owned());
        };
        let ours = member.to_string();
        let bound = self.zones.iter().find_map(|(name, zone)| {
            let mut interfaces = zone.interfaces.iter();
            let theirs = interfaces.find(|theirs| decides(theirs, &ours))?;
            Some((name, theirs))
        });

        match bound {
            Some((zone, _)) if zone == trusted => Judgement::Passes,
            Some((zone, theirs)) => Judgement::Taken(format!(
                "{theirs} belongs to firewalld's zone {zone}; what somebody chose is left as it is"
            )),
            None if self.accepts(&self.default) => Judgement::Passes,
            None => Judgement::Free,
        }
    }

    fn trusted(&self) -> Option<(&ZoneName, &Zone)> {
        self.zones.iter().find(|(name, _)| name.as_str() == TRUSTED)
    }

    /// Returns the zone of a device's packets; one that names it goes before one that names its beginning.
    fn zone_of(&self, device: &str) -> &ZoneName {
        let by = |binds: fn(&str, &str) -> bool| {
            let mut zones = self.zones.iter();
            let zone =
                zones.find(|(_, zone)| zone.interfaces.iter().any(|each| binds(each, device)));
            zone.map(|(name, _)| name)
        };

        by(|each, device| each == device)
            .or_else(|| by(covers))
            .unwrap_or(&self.default)
    }

    fn accepts(&self, zone: &ZoneName) -> bool {
        self.zones.get(zone).is_some_and(|zone| zone.accepts)
    }
}

impl Zone {
    /// Returns whether it names a UDP port.
    fn names(&self, port: u16) -> bool {
        let mut ports = self.ports.iter();

        ports.any(|(first, last)| (*first..=*last).contains(&port))
    }
}

/// Returns whether who bound `theirs` has thereby decided about all or some of `ours`.
///
/// A single device among all that `ours` stands for is no such decision: firewalld asks for it first.
fn decides(theirs: &str, ours: &str) -> bool {
    theirs == ours || covers(theirs, ours) || theirs.ends_with('+') && covers(ours, theirs)
}

/// Returns whether a pattern with a trailing `+` stands for a name, or for another pattern.
fn covers(pattern: &str, name: &str) -> bool {
    let prefix = pattern.strip_suffix('+');

    prefix.is_some_and(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> ZoneName {
        name.parse().unwrap()
    }

    /// Zones with these devices; public is the default, and trusted accepts.
    fn view(zones: &[(&str, &[&str])]) -> View {
        let mut view = View {
            run: "1".to_owned(),
            default: zone("public"),
            zones: BTreeMap::new(),
        };
        for (name, interfaces) in [("public", &[][..]), ("trusted", &[])].iter().chain(zones) {
            let entry = view.zones.entry(zone(name)).or_default();
            entry.accepts = *name == TRUSTED;
            entry
                .interfaces
                .extend(interfaces.iter().map(|each| (*each).to_owned()));
        }

        view
    }

    fn device(name: &str) -> Opening {
        Opening::FirewalldMember(ZoneMember::Device(name.parse().unwrap()))
    }

    fn pods() -> Opening {
        Opening::FirewalldMember(ZoneMember::Pods)
    }

    fn port(port: u16) -> Opening {
        let zone = zone("public");
        Opening::FirewalldPort { zone, port }
    }

    #[test]
    fn a_device_that_nobody_chose_a_zone_for_may_be_put_into_trusted() {
        assert_eq!(view(&[]).judge(&device("wireguard.cali")), Judgement::Free);
        assert_eq!(view(&[]).judge(&pods()), Judgement::Free);
    }

    #[test]
    fn what_an_administrator_bound_elsewhere_is_left_and_named() {
        for theirs in ["wireguard.cali", "wire+"] {
            let view = view(&[("dmz", &[theirs])]);
            let Judgement::Taken(reason) = view.judge(&device("wireguard.cali")) else {
                panic!("{theirs} was overruled");
            };
            assert!(
                reason.contains(theirs) && reason.contains("zone dmz"),
                "{reason}"
            );
        }
        for theirs in ["cali+", "c+", "calif00+"] {
            let view = view(&[("dmz", &[theirs])]);
            assert!(
                matches!(view.judge(&pods()), Judgement::Taken(_)),
                "{theirs}"
            );
        }
    }

    #[test]
    fn one_pod_s_interface_in_another_zone_decides_nothing_for_the_others() {
        let view = view(&[("dmz", &["cali123"])]);
        assert_eq!(view.judge(&pods()), Judgement::Free);
    }

    #[test]
    fn what_passes_already_is_not_put_in_again() {
        let mut view = view(&[("trusted", &["cali+"])]);
        assert_eq!(view.judge(&pods()), Judgement::Passes);
        assert_eq!(view.judge(&device("wireguard.cali")), Judgement::Free);
        view.default = zone(TRUSTED);
        assert_eq!(view.judge(&device("wireguard.cali")), Judgement::Passes);
    }

    #[test]
    fn a_trusted_zone_that_was_closed_is_not_used() {
        let mut view = view(&[]);
        view.zones.get_mut(&zone(TRUSTED)).unwrap().accepts = false;
        assert!(matches!(view.judge(&pods()), Judgement::Taken(_)));
        assert!(
            !view
                .points(&BTreeSet::new())
                .contains(&ExtensionPoint::FirewalldTrusted)
        );
    }

    #[test]
    fn the_zones_of_underlay_devices_are_places_unless_they_accept() {
        let view = view(&[
            ("work", &["eth1"]),
            ("trusted", &["lan+"]),
            ("dmz", &["lan9"]),
        ]);
        let underlay = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let closed = |name| ExtensionPoint::FirewalldZone(zone(name));
        let points = |names: &[&str]| -> Vec<_> {
            let points = view.points(&underlay(names)).into_iter();
            points
                .filter(|point| *point != ExtensionPoint::FirewalldTrusted)
                .collect()
        };
        assert_eq!(
            points(&["eth0", "eth1"]),
            [closed("public"), closed("work")]
        );
        assert_eq!(points(&["lan0"]), []);
        assert_eq!(points(&["lan9"]), [closed("dmz")]);
    }

    #[test]
    fn a_port_within_a_range_passes_and_is_nobody_s_single_port() {
        let mut view = view(&[]);
        assert_eq!(view.judge(&port(51820)), Judgement::Free);
        view.zones.get_mut(&zone("public")).unwrap().ports = BTreeSet::from([(51000, 52000)]);
        assert_eq!(view.judge(&port(51820)), Judgement::Passes);
        assert!(!view.has(&port(51820)));
    }
}
