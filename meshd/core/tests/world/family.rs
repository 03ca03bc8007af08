//! Which device carries which family, and what is planned when.

use std::collections::BTreeSet;

use model::{
    Family, InterfaceName, Kind, ObjectKey, Phase, Resource, plan::RouteVia,
    resource::FelixConfiguration,
};

use crate::fixture::*;

const POOL_V6: &str = "fd00:65::/112";

#[test]
fn one_switch_carries_both_families_in_one_device() {
    let mut brain = Brain::with(&[pool(POOL_V6), block("fd00:65::40/122", Some("b"))]);

    assert_eq!(devices(&mut brain), ["wireguard.cali"]);
    let peer = brain.tunnel_to(key(2)).unwrap();
    assert!(peer.allowed_ips.contains(&net("fd00:65::40/122")));
    assert_eq!(brain.route(1, "fd00:65::40/122"), tunnel("wireguard.cali"));
}

#[test]
fn a_second_switch_gives_ipv6_its_own_device() {
    let objects = [
        pool(POOL_V6),
        block("fd00:65::40/122", Some("b")),
        felix(Some(true), Some(true)),
        key_claim(key(11), "a"),
    ];
    let mut brain = Brain::with(&objects);

    assert_eq!(devices(&mut brain), ["wg-v6.cali", "wireguard.cali"]);
    assert_eq!(brain.route(1, "10.65.0.64/26"), tunnel("wireguard.cali"));
    assert_eq!(brain.route(1, "fd00:65::40/122"), tunnel("wg-v6.cali"));
}

#[test]
fn ipv6_that_is_switched_off_by_name_stays_plain_and_says_so() {
    let objects = [
        pool(POOL_V6),
        block("fd00:65::40/122", Some("b")),
        felix(Some(true), Some(false)),
    ];
    let mut brain = Brain::with(&objects);

    assert!(
        brain
            .world
            .status(brain.now)
            .conditions
            .contains_key("PlainIPv6")
    );
    assert_eq!(brain.route(1, "fd00:65::40/122"), None);
    let families = brain
        .world
        .plan()
        .rules
        .rows()
        .keys()
        .map(|rule| rule.family);
    assert_eq!(families.collect::<BTreeSet<_>>(), [Family::V4].into());
}

#[test]
fn a_switch_that_cannot_be_read_changes_nothing() {
    let mut brain = Brain::enforced();
    let rows = brain.world.plan().routes.rows().clone();

    let mut felix = FelixConfiguration {
        name: "default".into(),
        ..Default::default()
    };
    felix
        .invalid
        .insert("spec.wireguardEnabled".into(), "expected a boolean".into());
    brain.put(Resource::FelixConfiguration(Box::new(felix)));

    assert_eq!(brain.world.plan().routes.rows(), &rows);
    let key = ObjectKey::cluster(Kind::FelixConfiguration, "default");
    brain.tell(model::Event::Invalid(key, "not readable at all".into()));
    assert_eq!(brain.world.plan().routes.rows(), &rows);
    assert!(
        brain
            .world
            .status(brain.now)
            .conditions
            .contains_key("SettingsUnreadable")
    );
}

#[test]
fn nothing_is_planned_before_everything_was_heard() {
    let mut brain = Brain::new();
    for resource in mesh() {
        brain.put(resource);
    }
    for kind in &meshd_core::WATCHED[1..] {
        brain.tell(model::Event::InSync(*kind));
    }
    assert!(brain.world.plan().routes.rows().is_empty() && !brain.world.plan().in_sync);

    brain.tell(model::Event::InSync(meshd_core::WATCHED[0]));

    assert!(!brain.world.plan().routes.rows().is_empty() && brain.world.plan().in_sync);
}

#[test]
fn a_members_own_address_is_never_taken_for_a_pods() {
    // The pool covers the underlay, as Calico's default does on many home networks.
    let mut brain = Brain::with(&[pool("192.0.0.0/16")]);

    assert_eq!(brain.route(1, "192.0.2.2/32"), Some(RouteVia::Throw));
    assert_eq!(brain.route(1, "192.0.2.1/32"), Some(RouteVia::Throw));
    assert!(
        brain
            .world
            .status(brain.now)
            .conditions
            .contains_key("PoolCoversUnderlay")
    );
}

#[test]
fn a_hosts_answer_to_a_pod_is_held_back_like_any_packet_to_a_pod() {
    let mut brain = Brain::enforced();

    let chains = brain.world.plan().nft_chains.rows();
    let (_, barrier) = chains
        .iter()
        .find(|(key, _)| key.name == "barrier")
        .unwrap();
    let rules = barrier
        .rules
        .iter()
        .map(|rule| rule.comment.as_str())
        .collect::<Vec<_>>();

    let of_a_family = [
        "to a pod outside the tunnel",
        "answers for this host's own address",
        "from a pod to a member outside the tunnel",
    ];
    assert_eq!(rules[3..], [of_a_family, of_a_family].concat());
}

#[test]
fn a_disabled_pool_is_guarded_only_where_it_still_has_blocks() {
    let disabled = |is_disabled| {
        let Resource::IpPool(pool) = pool("10.66.0.0/16") else {
            unreachable!()
        };
        Resource::IpPool(model::resource::IpPool {
            disabled: is_disabled,
            ..pool
        })
    };
    let mut brain = Brain::with(&[disabled(true), block("10.66.0.64/26", None)]);
    let guarded = |brain: &mut Brain| {
        let routes = brain.world.plan().routes.rows().iter();
        let last = routes.filter(|(key, _)| key.table == 1 && key.metric == 4096);
        last.map(|(key, _)| key.destination.to_string())
            .collect::<Vec<_>>()
    };

    assert_eq!(guarded(&mut brain), ["10.65.0.0/16", "10.66.0.64/26"]);
    brain.put(disabled(false));
    assert_eq!(guarded(&mut brain), ["10.65.0.0/16", "10.66.0.0/16"]);
}

#[test]
fn a_node_that_joins_an_enforced_mesh_starts_closed_and_says_so_in_one_write() {
    let newcomer = Resource::Node(Box::new(model::resource::Node {
        addresses: vec![],
        ..stock("a", None, address(1))
    }));
    let mut brain = Brain::with(&[newcomer]);
    let open = brain
        .world
        .plan()
        .nft_elements
        .rows()
        .keys()
        .any(|(set, _)| {
            ["open", "take"]
                .iter()
                .any(|name| set.name.starts_with(name))
        });
    assert!(!open);

    let mut phases = vec![];
    for _ in 0..4 {
        for action in brain.actions() {
            match action.kind {
                model::ActionKind::PublishNode(publication) => {
                    phases.push(publication.record.phase);
                }
                other => panic!("{other:?}"),
            }
        }
        brain.applied();
    }
    assert_eq!(phases, [Phase::Enforced]);
}

fn devices(brain: &mut Brain) -> Vec<String> {
    brain
        .world
        .plan()
        .tunnels
        .rows()
        .keys()
        .map(InterfaceName::to_string)
        .collect()
}

fn tunnel(device: &str) -> Option<RouteVia> {
    Some(RouteVia::Device(device.parse().unwrap()))
}
