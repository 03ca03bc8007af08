//! A large mesh, as one of its members hears of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use meshd_core::{Config, WATCHED, World};
use model::{
    Event, Family, Moment, NodeName, Phase, PublicKey, Record, Resource,
    event::{Link, LinkKind},
    record::TunnelClaim,
    resource::{
        AddressClaim, FelixConfiguration, IpPool, IpamBlock, KeyClaim, Node, ip_pool::AllowedUse,
        mesh_configuration::MeshConfiguration,
    },
};

/// Prefix length of the blocks.
const BLOCK: u8 = 26;

/// A mesh of so many nodes with so many blocks each; node 0 is the one that listens.
#[derive(Clone, Copy, Debug)]
pub struct Big {
    /// How many nodes, at most 65,000.
    pub nodes: u32,
    /// How many blocks each of them has; with the nodes at most 2^18 in all.
    pub blocks: u32,
}

impl Big {
    /// Starts the brain of node 0 on the enforced mesh.
    pub fn start(self) -> World {
        let mut world = World::new(Config::new(name(0)));
        for event in self.facts() {
            world.apply(event, Moment::START);
        }
        for kind in WATCHED {
            world.apply(Event::InSync(*kind), Moment::START);
        }

        world
    }

    /// Returns everything that node 0 hears, one by one.
    pub fn facts(self) -> impl Iterator<Item = Event> {
        let claims = (0..self.nodes).flat_map(|node| {
            [
                Resource::KeyClaim(KeyClaim::new(key(node), name(node))),
                Resource::AddressClaim(AddressClaim {
                    address: address(node),
                    node: name(node),
                }),
            ]
        });
        let nodes = (0..self.nodes).map(move |node| Resource::Node(Box::new(self.node(node, 1))));
        let blocks = (0..self.nodes * self.blocks)
            .map(move |number| self.block(number, Some(number / self.blocks)));
        let objects = settings()
            .into_iter()
            .chain(claims)
            .chain(nodes)
            .chain(blocks);
        let second = PublicKey::new([255; 32]).expect("not zero");

        [Event::Keys(vec![key(0), second]), Event::Underlay(links())]
            .into_iter()
            .chain(objects.map(Event::Applied))
    }

    /// Returns a node whose record has this epoch and, in every other epoch, another port.
    pub fn node(self, number: u32, epoch: u64) -> Node {
        let record = Record {
            version: 1,
            node: name(number),
            epoch,
            tunnels: vec![TunnelClaim {
                key: key(number),
                port: 51820 + u16::from(epoch.is_multiple_of(2)),
                families: Family::BOTH.to_vec(),
            }],
            endpoints: vec![address(number)],
            addresses: vec![address(number)],
            phase: Phase::Enforced,
            conditions: BTreeMap::new(),
            signature: None,
            unknown: BTreeMap::new(),
        };

        Node {
            name: name(number),
            labels: BTreeMap::new(),
            addresses: vec![IpNet::new(address(number), 8).expect("a length of IPv4")],
            tunnel_addresses: vec![],
            key_v4: Some(Ok(key(number))),
            key_v6: None,
            record: Some(Ok(record)),
            invalid: BTreeMap::new(),
        }
    }

    /// Returns a block and whose it is.
    pub fn block(self, number: u32, node: Option<u32>) -> Resource {
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << (32 - BLOCK));
        let cidr = Ipv4Net::new(Ipv4Addr::from(first), BLOCK).expect("a length of IPv4");

        Resource::IpamBlock(Box::new(IpamBlock {
            cidr: cidr.into(),
            affinity: node.map(name),
            deleted: false,
            allocations: BTreeMap::new(),
            unallocated: (0..64).collect(),
            attributes: vec![],
            sequence_number: u64::from(node.unwrap_or_default()),
            sequence_number_for_allocation: BTreeMap::new(),
            affinity_claim_time: None,
        }))
    }
}

fn settings() -> Vec<Resource> {
    let felix = FelixConfiguration {
        name: "default".into(),
        wireguard_enabled: Some(true),
        ..FelixConfiguration::default()
    };
    let pool = IpPool {
        name: "default-ipv4".into(),
        cidr: "10.0.0.0/8".parse().expect("a network"),
        block_size: BLOCK,
        nat_outgoing: true,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload, AllowedUse::Tunnel],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    };
    let mesh = MeshConfiguration {
        underlay_networks: vec!["100.64.0.0/10".parse().expect("a network")],
        ..MeshConfiguration::default()
    };

    vec![
        Resource::FelixConfiguration(Box::new(felix)),
        Resource::IpPool(pool),
        Resource::MeshConfiguration(Box::new(mesh)),
    ]
}

fn links() -> BTreeMap<model::InterfaceName, Link> {
    let net = IpNet::new(address(0), 10).expect("a length of IPv4");
    let link = Link {
        mtu: 1500,
        up: true,
        kind: LinkKind::Underlay,
        addresses: vec![net],
    };

    BTreeMap::from([("eth0".parse().expect("an interface name"), link)])
}

/// Returns the name of a node by its number.
pub fn name(number: u32) -> NodeName {
    format!("n{number}").parse().expect("a node name")
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 1)) + number).into()
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());

    PublicKey::new(bytes).expect("not zero")
}
