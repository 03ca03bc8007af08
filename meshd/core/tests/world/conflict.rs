//! What others have where something of ours stands is said, by name and with what to do; the plan stays.

use std::collections::BTreeMap;

use model::{
    Event, Pass,
    conflict::{
        Conflict, Detour, ForeignRoute, ForeignRule, Membership, NetworkManager, Role, Share,
        Surroundings, Taken, Traffic,
    },
    pass::{Chosen, DeviceBackend, Implementation, IncompleteRow},
    plan::RowKey,
};

use crate::fixture::*;

const DEVICE: &str = "wireguard.cali";

fn conditions(brain: &Brain) -> BTreeMap<String, String> {
    brain.world.status(brain.now).conditions
}

/// A pass that left the tunnel device out because of this.
fn pass_with(brain: &mut Brain, conflict: Conflict) {
    let generation = brain.world.plan().generation;
    let backend = DeviceBackend {
        implementation: Implementation::Meshwire,
        chosen: Chosen::KernelLacksIt,
    };
    brain.tell(Event::PlanApplied(Pass {
        generation,
        incomplete: vec![IncompleteRow {
            row: RowKey::Tunnel(DEVICE.parse().unwrap()),
            reason: MISSING.into(),
        }],
        backends: [(DEVICE.parse().unwrap(), backend)].into(),
        conflicts: vec![conflict],
        ..Pass::default()
    }));
}

#[test]
fn a_taken_port_is_said_with_its_holder_and_what_to_do() {
    let mut brain = Brain::enforced();
    let port = Conflict::Port {
        device: DEVICE.parse().unwrap(),
        port: 51820,
        families: model::Family::BOTH.into(),
        holder: Some("the WireGuard device wg0".into()),
    };

    pass_with(&mut brain, port);

    let text = "wireguard.cali cannot listen on UDP port 51820 (IPv4, IPv6): the WireGuard device wg0 has it; give that another port, or set wireguardListeningPort in FelixConfiguration";
    assert_eq!(
        conditions(&brain),
        [("PortTaken".to_owned(), text.to_owned())].into()
    );
    let status = brain.world.status(brain.now);
    assert_eq!(status.encryption.devices[0].backend, "meshwire");
    assert!(!status.ready);

    brain.applied();
    assert_eq!(conditions(&brain), BTreeMap::new());
}

#[test]
fn a_name_that_others_have_is_no_missing_device() {
    let mut brain = Brain::enforced();
    let name = Conflict::Device {
        device: DEVICE.parse().unwrap(),
        kind: "bridge".into(),
    };

    pass_with(&mut brain, name);

    let conditions = conditions(&brain);
    assert_eq!(conditions.keys().collect::<Vec<_>>(), ["DeviceNameTaken"]);
    assert!(conditions["DeviceNameTaken"].contains("wireguardInterfaceName"));
}

#[test]
fn what_others_do_around_us_changes_no_plan_and_is_said_by_kind() {
    let mut brain = Brain::enforced();
    let before = brain.world.plan().generation;
    let detour = Detour {
        traffic: Traffic::ToPods,
        share: Share::All,
        example: "10.65.0.64".parse().unwrap(),
        planned: Some(DEVICE.parse().unwrap()),
        taken: Taken::Device("eth0".parse().unwrap(), 254),
        rule: ForeignRule {
            priority: 97,
            text: "97: from all lookup main suppress_prefixlength 0".into(),
        },
    };
    let route = ForeignRoute {
        table: 1,
        destination: net("198.51.100.0/24"),
        device: None,
        protocol: "static".into(),
    };

    brain.tell(Event::Surroundings(Surroundings {
        detours: [detour].into(),
        routes: [route].into(),
        marks: ["500: from all fwmark 0x200000/0x200000 lookup 78".to_owned()].into(),
        managers: [NetworkManager::Networkd].into(),
        ..Surroundings::default()
    }));

    assert_eq!(brain.world.plan().generation, before);
    let said = conditions(&brain);
    let expected = [
        (
            "ForeignMark",
            "rule \"500: from all fwmark 0x200000/0x200000 lookup 78\" looks for 0x200000, the mark on WireGuard's own packets: use another mark",
        ),
        (
            "ForeignRoutes",
            "198.51.100.0/24 proto static in table 1; tables 1 and 2 are meshd's: use another table",
        ),
        (
            "NetworkManager",
            "systemd-networkd runs without /etc/systemd/networkd.conf.d/90-meshd.conf: it may remove devices, routes and rules of meshd's; install the file from deploy/",
        ),
        (
            "PolicyRouting",
            "rule \"97: from all lookup main suppress_prefixlength 0\" (IPv4) takes packets to other nodes' pods (such as 10.65.0.64) to eth0 (table main) instead of wireguard.cali: there they are dropped, never sent in plaintext; give it a priority above 100, or set wireguardRoutingRulePriority in FelixConfiguration to 95 or less",
        ),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(said, expected.into());

    brain.tell(Event::Surroundings(Surroundings::default()));
    assert_eq!(conditions(&brain), BTreeMap::new());
}

#[test]
fn a_rule_that_takes_some_packets_and_a_device_in_a_vrf_are_said_for_what_they_do() {
    let mut brain = Brain::enforced();
    let detour = Detour {
        traffic: Traffic::ToPods,
        share: Share::Some,
        example: "10.65.0.64".parse().unwrap(),
        planned: Some(DEVICE.parse().unwrap()),
        taken: Taken::Refused,
        rule: ForeignRule {
            priority: 52,
            text: "52: from all ipproto tcp dport 443 prohibit".into(),
        },
    };
    let membership = Membership {
        device: "eth0".parse().unwrap(),
        role: Role::Underlay,
        vrf: "blue".parse().unwrap(),
        table: 10,
    };

    brain.tell(Event::Surroundings(Surroundings {
        detours: [detour].into(),
        memberships: [membership].into(),
        ..Surroundings::default()
    }));

    let said = conditions(&brain);
    let expected = [
        (
            "PolicyRouting",
            "rule \"52: from all ipproto tcp dport 443 prohibit\" (IPv4) takes some packets to other nodes' pods (such as 10.65.0.64) nowhere instead of wireguard.cali; give it a priority above 100, or set wireguardRoutingRulePriority in FelixConfiguration to 50 or less",
        ),
        (
            "Vrf",
            "eth0, by which peers are reached, belongs to the VRF blue (table 10): WireGuard's packets are not the VRF's, and neither leave nor arrive there; take it out (ip link set eth0 nomaster), or give table main routes to the peers and set net.ipv4.udp_l3mdev_accept to 1",
        ),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(said, expected.into());
}

#[test]
fn only_the_first_few_of_a_kind_are_named() {
    let mut brain = Brain::enforced();
    let rows = (0..100).map(|index| Conflict::Contested {
        row: RowKey::Sysctl(format!("s{index:02}")),
    });
    let generation = brain.world.plan().generation;
    brain.tell(Event::PlanApplied(Pass {
        generation,
        conflicts: rows.collect(),
        ..Pass::default()
    }));

    let text = &conditions(&brain)["Contested"];
    assert!(text.ends_with("sysctl s02; and 97 more"), "{text}");
}
