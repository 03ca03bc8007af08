//! How large packets may be in the tunnel, to each peer and in each family.

use model::{Family, Resource, plan::RouteVia, resource::FelixConfiguration};

use crate::fixture::*;

const POOL_V6: &str = "fd00:65::/112";
const BLOCK_V6: &str = "fd00:65::40/122";

/// The mesh with encryption on, this `wireguardMTU`, and with IPv6 where it is asked for.
fn mesh_with(mtu: u32, families: &[Family]) -> Brain {
    let mut objects = vec![Resource::FelixConfiguration(Box::new(FelixConfiguration {
        name: "default".into(),
        wireguard_enabled: Some(true),
        wireguard_mtu: Some(mtu),
        ..FelixConfiguration::default()
    }))];
    if families.contains(&Family::V6) {
        objects.extend([pool(POOL_V6), block(BLOCK_V6, Some("b"))]);
    }

    Brain::with(&objects)
}

/// The MTU of the device, and those of the routes to a peer's blocks.
fn mtus(brain: &mut Brain) -> (u32, Vec<Option<u32>>) {
    let plan = brain.world.plan();
    let tunnel = plan.tunnels.rows().values().next().unwrap().mtu;
    let rows = plan.routes.rows().iter();
    let to_b = rows.filter(|(key, route)| {
        let is_b = key.destination == net(BLOCKS[1]) || key.destination == net(BLOCK_V6);
        is_b && matches!(route.via, RouteVia::Device(_))
    });

    (tunnel, to_b.map(|(_, route)| route.mtu).collect())
}

#[test]
fn a_configured_mtu_is_the_device_s() {
    assert_eq!(
        mtus(&mut mesh_with(1240, &[Family::V4])),
        (1240, vec![None])
    );
    assert_eq!(
        mtus(&mut mesh_with(1300, &Family::BOTH)),
        (1300, vec![None, None])
    );
}

#[test]
fn a_configured_mtu_that_ipv6_cannot_have_holds_for_ipv4_alone() {
    assert_eq!(
        mtus(&mut mesh_with(1240, &Family::BOTH)),
        (1280, vec![Some(1232), None])
    );
}
