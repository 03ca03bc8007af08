//! Who may say what about itself.

use model::{
    Kind, Resource,
    plan::RouteVia,
    resource::{IpPool, mesh_configuration::EncryptionMode},
    status::PeerState,
};

use crate::fixture::*;

#[test]
fn a_granted_node_gets_its_blocks_and_its_own_address() {
    let mut brain = Brain::enforced();

    let peer = brain.tunnel_to(key(2)).unwrap();

    assert_eq!(peer.endpoint.to_string(), "192.0.2.2:51820");
    assert_eq!(
        peer.allowed_ips,
        [net("10.65.0.64/26"), net("192.0.2.2/32")].into()
    );
    let device = Some(RouteVia::Device("wireguard.cali".parse().unwrap()));
    assert_eq!(brain.route(1, "10.65.0.64/26"), device);
    assert_eq!(brain.route(2, "192.0.2.2/32"), device);
    assert_eq!(brain.route(1, "10.65.0.0/26"), Some(RouteVia::Throw));
}

#[test]
fn a_copied_key_harms_only_the_copier() {
    let mut brain = Brain::enforced();

    brain.put(meshd("c", key(2), address(3)));

    let peer = brain.tunnel_to(key(2)).unwrap();
    assert_eq!(
        peer.allowed_ips,
        [net("10.65.0.64/26"), net("192.0.2.2/32")].into()
    );
    assert_eq!(brain.state("c"), PeerState::Unreachable);
    assert!(
        brain.reason("c").contains("granted to node b"),
        "{}",
        brain.reason("c")
    );
    assert_eq!(brain.route(1, "10.65.0.128/26"), None);
}

#[test]
fn a_key_that_nobody_granted_is_not_used() {
    let mut brain = Brain::enforced();

    brain.put(meshd("c", key(9), address(3)));

    assert_eq!(brain.tunnel_to(key(9)), None);
    assert!(brain.reason("c").contains("nobody granted it the key"));
    brain.put(key_claim(key(9), "c"));
    assert!(brain.tunnel_to(key(9)).is_some());
}

#[test]
fn of_two_stock_nodes_with_one_key_neither_is_used() {
    let stock = |node, last| Resource::Node(Box::new(stock(node, Some(key(9)), address(last))));
    let mut brain = Brain::with(&[stock("c", 3)]);
    assert!(brain.tunnel_to(key(9)).is_some());

    brain.put(stock("d", 4));

    assert_eq!(brain.tunnel_to(key(9)), None);
    assert!(brain.reason("c").contains("several nodes publish the key"));
    brain.delete(Kind::Node, "d");
    assert!(brain.tunnel_to(key(9)).is_some());
}

#[test]
fn whoever_publishes_our_key_is_refused_and_we_go_on() {
    let mut brain = Brain::enforced();

    brain.put(meshd("c", key(1), address(3)));

    assert!(brain.reason("c").contains("our own key"));
    assert!(!brain.world.plan().tunnels.rows().is_empty());
    assert!(brain.tunnel_to(key(2)).is_some());
}

#[test]
fn an_address_that_was_granted_to_another_is_no_allowed_ip_and_no_endpoint() {
    let mut brain = Brain::enforced();

    brain.put(meshd("c", key(3), address(2)));

    assert_eq!(brain.tunnel_to(key(3)), None);
    assert!(
        brain
            .reason("c")
            .contains("192.0.2.2 was granted to node b")
    );
    assert!(
        brain
            .tunnel_to(key(2))
            .unwrap()
            .allowed_ips
            .contains(&net("192.0.2.2/32"))
    );
}

#[test]
fn a_claim_inside_a_pods_block_never_takes_the_pods_address() {
    let pods = "10.65.0.66".parse().unwrap();
    let mut brain = Brain::with(&[address_claim(pods, "c"), meshd("c", key(3), pods)]);

    assert!(
        brain.reason("c").contains("10.65.0.66 is a pod's"),
        "{}",
        brain.reason("c")
    );
    assert!(
        brain
            .tunnel_to(key(3))
            .is_none_or(|p| !p.allowed_ips.contains(&pods.into()))
    );
}

#[test]
fn a_block_counts_only_inside_one_pool_of_its_size() {
    let inner = |block_size| {
        let Resource::IpPool(pool) = pool("10.66.0.0/16") else {
            unreachable!()
        };
        Resource::IpPool(IpPool { block_size, ..pool })
    };
    let mut brain = Brain::with(&[block("10.66.0.0/26", Some("b"))]);
    let allowed = |brain: &mut Brain| brain.tunnel_to(key(2)).unwrap().allowed_ips;

    assert!(
        !allowed(&mut brain).contains(&net("10.66.0.0/26")),
        "in no pool"
    );
    brain.put(inner(24));
    assert!(
        !allowed(&mut brain).contains(&net("10.66.0.0/26")),
        "of another size"
    );
    brain.put(inner(26));
    assert!(allowed(&mut brain).contains(&net("10.66.0.0/26")));
    brain.put(pool("10.66.0.0/17"));
    assert!(
        !allowed(&mut brain).contains(&net("10.66.0.0/26")),
        "in two pools"
    );
    assert!(
        allowed(&mut brain).contains(&net("10.65.0.64/26")),
        "its neighbour"
    );
}

#[test]
fn an_unreadable_record_disables_its_node_alone() {
    let mut brain = Brain::enforced();
    let mut node = stock("c", Some(key(3)), address(3));
    node.record = Some(Err("the record has version 7".into()));

    brain.put(Resource::Node(Box::new(node)));

    assert_eq!(brain.tunnel_to(key(3)), None);
    assert_eq!(brain.state("c"), PeerState::Unreachable);
    assert!(brain.reason("c").contains("version 7"));
    assert!(brain.tunnel_to(key(2)).is_some());
}

#[test]
fn strict_drops_what_permissive_lets_pass_and_both_name_it() {
    let keyless = || Resource::Node(Box::new(stock("c", None, address(3))));
    let mut strict = Brain::with(&[keyless()]);
    assert_eq!(strict.state("c"), PeerState::Unreachable);
    assert_eq!(strict.route(1, "10.65.0.128/26"), None);

    let permissive = settings(Some(EncryptionMode::Permissive));
    let mut permissive = Brain::with(&[keyless(), permissive, felix(Some(true), Some(true))]);
    assert_eq!(permissive.state("c"), PeerState::PlainPermitted);
    assert_eq!(permissive.route(1, "10.65.0.128/26"), Some(RouteVia::Throw));
    assert!(permissive.reason("c").contains("publishes no key"));
}
