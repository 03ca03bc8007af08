//! What others have, or do, where something of ours stands: said so that a person can act.
//!
//! Nothing here changes the plan. The numbers that others collide with are settings, and an
//! administrator decides who moves.

use std::{collections::BTreeMap, fmt::Display};

use model::{
    Family, InterfaceName,
    conflict::{
        Conflict, Detour, ForeignRule, Membership, NetworkManager, Role, Share, Taken, Traffic,
    },
    constant::{SOURCE_TABLE, TUNNEL_MARK, TUNNEL_TABLE},
};

use crate::World;

/// How many of a kind a condition names.
const NAMED: usize = 3;

impl World {
    /// Says who stands where something of ours belongs, by type of condition.
    pub(crate) fn conflicts(&self) -> BTreeMap<String, String> {
        let found = &self.facts.surroundings;
        let conflicts = self.applied.conflicts.iter();
        let mut texts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, text) in conflicts.map(|conflict| self.describe(conflict)) {
            let texts = texts.entry(name).or_default();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let detours = found.detours.iter().map(|detour| self.detour(detour));
        texts.insert("PolicyRouting", detours.collect());
        let mut routes = few(found.routes.iter());
        let tables =
            format!("tables {TUNNEL_TABLE} and {SOURCE_TABLE} are meshd's: use another table");
        routes.extend((!routes.is_empty()).then_some(tables));
        texts.insert("ForeignRoutes", routes);
        let marks = found.marks.iter();
        let marks = marks.map(|rule| format!("rule \"{rule}\" looks for {TUNNEL_MARK:#x}, the mark on WireGuard's own packets: use another mark"));
        texts.insert("ForeignMark", marks.collect());
        let memberships = found.memberships.iter().map(membership);
        texts.insert("Vrf", memberships.collect());
        let managers = found.managers.iter().map(|manager| unmanaged(*manager));
        texts.insert("NetworkManager", managers.collect());

        texts
            .into_iter()
            .filter(|(_, texts)| !texts.is_empty())
            .map(|(name, texts)| (name.to_owned(), few(texts.iter()).join("; ")))
            .collect()
    }

    /// Returns whether somebody else has what this device needs.
    pub(crate) fn has_conflict(&self, name: &InterfaceName) -> bool {
        self.waits_for_port(name)
            || self
                .applied
                .conflicts
                .iter()
                .any(|conflict| match conflict {
                    Conflict::Device { device, .. } => device == name,
                    Conflict::Port { .. } | Conflict::Contested { .. } => false,
                })
    }

    /// Returns whether a device is there, and somebody else has its port.
    pub(crate) fn waits_for_port(&self, name: &InterfaceName) -> bool {
        self.applied
            .conflicts
            .iter()
            .any(|conflict| match conflict {
                Conflict::Port { device, .. } => device == name,
                Conflict::Device { .. } | Conflict::Contested { .. } => false,
            })
    }

    fn describe(&self, conflict: &Conflict) -> (&'static str, String) {
        match conflict {
            Conflict::Port {
                device,
                port,
                families,
                holder,
            } => {
                let families: Vec<_> = families.iter().map(|family| word(*family)).collect();
                let of = if families.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", families.join(", "))
                };
                let holder = holder.as_deref().unwrap_or("somebody unknown");
                let field = self.field(device, "wireguardListeningPort");
                let text = format!(
                    "{device} cannot listen on UDP port {port}{of}: {holder} has it; give that another port, or set {field} in FelixConfiguration"
                );
                ("PortTaken", text)
            }
            Conflict::Device { device, kind } => {
                let field = self.field(device, "wireguardInterfaceName");
                let text = format!(
                    "a link of kind {kind}, which is not meshd's, is called {device}; rename it, or set {field} in FelixConfiguration"
                );
                ("DeviceNameTaken", text)
            }
            Conflict::Contested { row } => {
                let text = format!("somebody else keeps changing {row}");
                ("Contested", text)
            }
        }
    }

    /// Returns the name of a device's setting: Felix has one for each of the two devices.
    fn field(&self, device: &InterfaceName, base: &str) -> String {
        let devices = self.own.devices.iter();
        let mut named = devices.filter(|found| found.wish.name == *device);
        match named.next().map(|found| found.wish.native) {
            Some(Family::V6) => format!("{base}V6"),
            Some(Family::V4) | None => base.to_owned(),
        }
    }

    fn detour(&self, detour: &Detour) -> String {
        let Detour {
            traffic,
            share,
            example,
            planned,
            taken,
            rule,
        } = detour;
        let family = word(Family::of(*example));
        let instead = match planned {
            Some(device) => format!(" instead of {device}"),
            None => String::new(),
        };
        let some = match share {
            Share::All => "",
            Share::Some => "some ",
        };
        let fate = match (traffic, taken) {
            (Traffic::ToPods | Traffic::ToMembers, Taken::Device(..))
                if !self.wish.permits_plain() =>
            {
                ": there they are dropped, never sent in plaintext"
            }
            (Traffic::ToPods | Traffic::ToMembers | Traffic::Tunnel, _) => "",
        };
        let (text, advice) = (&rule.text, self.advice(rule));

        format!(
            "rule \"{text}\" ({family}) takes {some}{traffic} (such as {example}) {taken}{instead}{fate}{advice}"
        )
    }

    /// Says who may move: the other rule behind ours, or ours before it.
    fn advice(&self, rule: &ForeignRule) -> String {
        let ours = self.wish.rule_priority;
        let behind = format!("; give it a priority above {}", ours.saturating_add(1));
        // Our second rule stands right behind the first, and zero is the kernel's own.
        match rule.priority.checked_sub(2) {
            Some(first @ 1..) => format!(
                "{behind}, or set wireguardRoutingRulePriority in FelixConfiguration to {first} or less"
            ),
            Some(0) | None => behind,
        }
    }
}

fn membership(membership: &Membership) -> String {
    let Membership {
        device,
        role,
        vrf,
        table,
    } = membership;
    let (which, harm, remedy) = match role {
        Role::Tunnel => (
            "",
            "what peers send is looked up in that table, not in ours",
            "",
        ),
        Role::Pod => (
            ", which is a pod's,",
            "what the pod sends is looked up in that table where ours leave off",
            "",
        ),
        Role::Underlay => (
            ", by which peers are reached,",
            "WireGuard's packets are not the VRF's, and neither leave nor arrive there",
            ", or give table main routes to the peers and set net.ipv4.udp_l3mdev_accept to 1",
        ),
    };

    format!(
        "{device}{which} belongs to the VRF {vrf} (table {table}): {harm}; take it out (ip link set {device} nomaster){remedy}"
    )
}

fn unmanaged(manager: NetworkManager) -> String {
    let file = manager.drop_in();
    format!(
        "{manager} runs without {file}: it may remove devices, routes and rules of meshd's; install the file from deploy/"
    )
}

/// Returns the first few, and how many more there are.
fn few<T: Display>(all: impl ExactSizeIterator<Item = T>) -> Vec<String> {
    let more = all.len().saturating_sub(NAMED);
    let mut named: Vec<_> = all.take(NAMED).map(|each| each.to_string()).collect();
    named.extend((more > 0).then(|| format!("and {more} more")));

    named
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
