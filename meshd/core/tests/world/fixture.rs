//! ```text
//!  a 192.0.2.1         b 192.0.2.2          c 192.0.2.3      all Enforced, pool 10.65.0.0/16
//!  10.65.0.0/26        10.65.0.64/26        10.65.0.128/26
//! ```

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use meshd_core::{Config, WATCHED, World};
use model::{
    Action, ActionId, ActionKind, ActionResult, Event, Family, Kind, Moment, NodeName, ObjectKey,
    Pass, Phase, PublicKey, Record, Resource,
    event::{Link, LinkKind},
    pass::IncompleteRow,
    plan::{Peer, RouteKey, RouteVia, RowKey},
    record::TunnelClaim,
    resource::{
        AddressClaim, FelixConfiguration, IpPool, IpamBlock, KeyClaim, MeshConfiguration,
        Namespace, Node, ip_pool::AllowedUse, ipam_block::Attribute,
        mesh_configuration::EncryptionMode,
    },
    status::{PeerState, PeerStatus},
};

pub(crate) const BLOCKS: [&str; 3] = ["10.65.0.0/26", "10.65.0.64/26", "10.65.0.128/26"];

/// Why a row could not be set.
pub(crate) const MISSING: &str = "what it stands on is missing";

/// A brain and the actions that it has under way.
pub(crate) struct Brain {
    pub(crate) world: World,
    pub(crate) now: Moment,
}

impl Brain {
    /// Knows only its keys and links.
    pub(crate) fn new() -> Self {
        let mut brain = Self {
            world: World::new(Config::new(name("a"))),
            now: Moment::START,
        };
        brain.tell(Event::Keys(vec![key(1), key(11)]));
        brain.tell(Event::Underlay(links()));

        brain
    }

    /// The mesh above, in sync and applied.
    pub(crate) fn enforced() -> Self {
        Self::with(&[])
    }

    /// The mesh above with other objects in the place of its own, or beside them.
    pub(crate) fn with(objects: &[Resource]) -> Self {
        let mut brain = Self::new();
        for resource in mesh().into_iter().chain(objects.iter().cloned()) {
            brain.put(resource);
        }
        brain.sync();
        brain.applied();

        brain
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.world.apply(event, self.now);
    }

    pub(crate) fn put(&mut self, resource: Resource) {
        self.tell(Event::Applied(resource));
    }

    pub(crate) fn delete(&mut self, kind: Kind, name: &str) {
        self.tell(Event::Deleted(ObjectKey::cluster(kind, name)));
    }

    pub(crate) fn sync(&mut self) {
        for kind in WATCHED {
            self.tell(Event::InSync(*kind));
        }
    }

    /// The dataplane is through with the plan as it is.
    pub(crate) fn applied(&mut self) {
        let generation = self.world.plan().generation;
        self.tell(Event::PlanApplied(Pass {
            generation,
            ..Pass::default()
        }));
    }

    /// The dataplane is through with the plan as it is, but for these rows.
    pub(crate) fn applied_but(&mut self, rows: Vec<RowKey>) {
        let generation = self.world.plan().generation;
        let incomplete = rows.into_iter().map(|row| IncompleteRow {
            row,
            reason: MISSING.into(),
        });
        self.tell(Event::PlanApplied(Pass {
            generation,
            incomplete: incomplete.collect(),
            ..Pass::default()
        }));
    }

    /// Everything that is to be done now.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.world.poll_action()).collect()
    }

    /// The only thing that is to be done now.
    pub(crate) fn action(&mut self) -> (ActionId, ActionKind) {
        let mut actions = self.actions();
        assert_eq!(actions.len(), 1, "{actions:?}");
        let action = actions.remove(0);

        (action.id, action.kind)
    }

    pub(crate) fn done(&mut self, id: ActionId, result: ActionResult) {
        self.tell(Event::ActionDone(id, result));
    }

    pub(crate) fn peer(&self, node: &str) -> PeerStatus {
        let mut peers = self.world.peers(self.now).into_iter();

        peers.find(|peer| peer.node == name(node)).unwrap()
    }

    /// Why a peer is not used as it wants to be.
    pub(crate) fn reason(&self, node: &str) -> String {
        self.peer(node).reason.unwrap_or_default()
    }

    pub(crate) fn state(&self, node: &str) -> PeerState {
        self.peer(node).state
    }

    /// The WireGuard peer with this key.
    pub(crate) fn tunnel_to(&mut self, key: PublicKey) -> Option<Peer> {
        let mut peers = self.world.plan().peers.rows().iter();

        peers
            .find(|((_, of), _)| *of == key)
            .map(|(_, peer)| peer.clone())
    }

    /// Where a destination goes in a table.
    pub(crate) fn route(&mut self, table: u32, destination: &str) -> Option<RouteVia> {
        let destination: IpNet = destination.parse().unwrap();
        let metric = if Family::of_net(&destination) == Family::V4 {
            0
        } else {
            1024
        };
        let key = RouteKey {
            table,
            destination,
            metric,
        };

        self.world
            .plan()
            .routes
            .get(&key)
            .map(|route| route.via.clone())
    }
}

/// A brain that has nothing left to do.
pub(crate) fn ready() -> Brain {
    let mut brain = Brain::enforced();
    assert_eq!(brain.actions(), []);

    brain
}

/// Everything that the store holds.
pub(crate) fn mesh() -> Vec<Resource> {
    let mut objects = vec![
        namespace("default"),
        pool("10.65.0.0/16"),
        felix(Some(true), None),
        settings(None),
    ];
    for number in 1..=3u8 {
        let node = ["a", "b", "c"][usize::from(number) - 1];
        objects.push(key_claim(key(number), node));
        objects.push(address_claim(address(number), node));
        objects.push(block(BLOCKS[usize::from(number) - 1], Some(node)));
        objects.push(meshd(node, key(number), address(number)));
    }
    objects.extend([own_block(&[(1, "wireguard-tunnel-addr-a")]), own_node()]);

    objects
}

/// A namespace, without which a pod is closed.
pub(crate) fn namespace(name: &str) -> Resource {
    Resource::Namespace(Namespace {
        name: name.into(),
        labels: BTreeMap::new(),
    })
}

/// A node that runs meshd, `Enforced`.
pub(crate) fn meshd(node: &str, key: PublicKey, address: IpAddr) -> Resource {
    let record = Record {
        version: 1,
        node: name(node),
        epoch: 1,
        tunnels: vec![TunnelClaim {
            key,
            port: 51820,
            families: Family::BOTH.to_vec(),
        }],
        endpoints: vec![address],
        addresses: vec![address],
        phase: Phase::Enforced,
        conditions: BTreeMap::new(),
        signature: None,
        unknown: BTreeMap::new(),
    };

    Resource::Node(Box::new(Node {
        record: Some(Ok(record)),
        ..stock(node, None, address)
    }))
}

/// Our own node, as we publish it: nothing is left to be said.
fn own_node() -> Resource {
    let Resource::Node(mut node) = meshd("a", key(1), address(1)) else {
        unreachable!()
    };
    node.tunnel_addresses = vec!["10.65.0.1".parse().unwrap()];
    node.key_v4 = Some(Ok(key(1)));

    Resource::Node(node)
}

/// Our own block, in which handles hold these ordinals for the pod `default/web`.
pub(crate) fn own_block(held: &[(u32, &str)]) -> Resource {
    let Resource::IpamBlock(mut block) = block(BLOCKS[0], Some("a")) else {
        unreachable!()
    };
    for (index, (ordinal, handle)) in held.iter().enumerate() {
        block.unallocated.retain(|free| free != ordinal);
        block.allocations.insert(*ordinal, index);
        block.attributes.push(Attribute {
            handle_id: Some((*handle).to_owned()),
            secondary: [("namespace", "default"), ("pod", "web")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Attribute::default()
        });
    }

    Resource::IpamBlock(block)
}

/// A node as Calico writes it.
pub(crate) fn stock(node: &str, key: Option<PublicKey>, address: IpAddr) -> Node {
    Node {
        name: name(node),
        labels: BTreeMap::new(),
        addresses: vec![IpNet::new(address, 24).unwrap()],
        tunnel_addresses: vec![],
        key_v4: key.map(Ok),
        key_v6: None,
        record: None,
        invalid: BTreeMap::new(),
    }
}

pub(crate) fn pool(cidr: &str) -> Resource {
    let cidr: IpNet = cidr.parse().unwrap();
    let block_size = if Family::of_net(&cidr) == Family::V4 {
        26
    } else {
        122
    };

    Resource::IpPool(IpPool {
        name: cidr.to_string(),
        cidr,
        block_size,
        nat_outgoing: false,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload, AllowedUse::Tunnel],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    })
}

pub(crate) fn felix(v4: Option<bool>, v6: Option<bool>) -> Resource {
    Resource::FelixConfiguration(Box::new(FelixConfiguration {
        name: "default".into(),
        wireguard_enabled: v4,
        wireguard_enabled_v6: v6,
        ..FelixConfiguration::default()
    }))
}

pub(crate) fn settings(mode: Option<EncryptionMode>) -> Resource {
    Resource::MeshConfiguration(Box::new(MeshConfiguration {
        mode: mode.unwrap_or_default(),
        underlay_networks: vec!["192.0.2.0/24".parse().unwrap()],
        ..MeshConfiguration::default()
    }))
}

pub(crate) fn block(cidr: &str, node: Option<&str>) -> Resource {
    let cidr = cidr.parse().unwrap();

    Resource::IpamBlock(Box::new(IpamBlock {
        cidr,
        affinity: node.map(name),
        deleted: false,
        allocations: BTreeMap::new(),
        unallocated: (0..IpamBlock::size_of(cidr)).collect(),
        attributes: vec![],
        sequence_number: 1,
        sequence_number_for_allocation: BTreeMap::new(),
        affinity_claim_time: None,
    }))
}

pub(crate) fn key_claim(key: PublicKey, node: &str) -> Resource {
    Resource::KeyClaim(KeyClaim::new(key, name(node)))
}

pub(crate) fn address_claim(address: IpAddr, node: &str) -> Resource {
    Resource::AddressClaim(AddressClaim {
        address,
        node: name(node),
    })
}

pub(crate) fn links() -> BTreeMap<model::InterfaceName, Link> {
    let link = |kind, nets: &[&str]| Link {
        mtu: 1500,
        up: true,
        kind,
        addresses: nets.iter().map(|net| net.parse().unwrap()).collect(),
    };

    BTreeMap::from([
        (
            "eth0".parse().unwrap(),
            link(LinkKind::Underlay, &["192.0.2.1/24"]),
        ),
        (
            "wireguard.cali".parse().unwrap(),
            link(LinkKind::Tunnel, &[]),
        ),
        ("wg-v6.cali".parse().unwrap(), link(LinkKind::Tunnel, &[])),
    ])
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey::new([number; 32]).unwrap()
}

pub(crate) fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
