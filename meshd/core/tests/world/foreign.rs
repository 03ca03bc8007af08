//! What is put into other firewalls' extension points.

use model::{
    Event, Resource,
    firewall::{ExtensionPoint, Firewalls, Opening, ZoneMember, ZoneName},
    resource::{MeshConfiguration, mesh_configuration::ForeignFirewalls},
};

use crate::fixture::*;

fn zone() -> ZoneName {
    "public".parse().unwrap()
}

/// What the plan opens where firewalld has both of its places.
fn openings(brain: &mut Brain) -> Vec<Opening> {
    brain.tell(Event::Firewalls(Firewalls {
        extension_points: [
            ExtensionPoint::FirewalldTrusted,
            ExtensionPoint::FirewalldZone(zone()),
        ]
        .into(),
        ..Firewalls::default()
    }));

    brain.world.plan().openings.rows().keys().cloned().collect()
}

fn pods() -> Opening {
    Opening::FirewalldMember(ZoneMember::Pods)
}

#[test]
fn tunnel_and_pods_are_members_of_trusted_and_the_underlay_s_zone_lets_the_port_pass() {
    let tunnel = ZoneMember::Device("wireguard.cali".parse().unwrap());
    let port = Opening::FirewalldPort {
        zone: zone(),
        port: 51820,
    };
    let brain = &mut Brain::enforced();
    assert_eq!(
        openings(brain),
        [pods(), Opening::FirewalldMember(tunnel), port]
    );

    brain.tell(Event::Firewalls(Firewalls::default()));
    assert!(brain.world.plan().openings.rows().is_empty());
}

#[test]
fn without_a_tunnel_no_port_is_opened() {
    let brain = &mut Brain::new();
    brain.sync();
    assert_eq!(openings(brain), [pods()]);
}

#[test]
fn a_firewall_that_is_only_to_be_reported_gets_nothing() {
    let report = MeshConfiguration {
        foreign_firewalls: ForeignFirewalls::Report,
        ..MeshConfiguration::default()
    };
    let brain = &mut Brain::with(&[Resource::MeshConfiguration(Box::new(report))]);
    assert_eq!(openings(brain), []);
}
