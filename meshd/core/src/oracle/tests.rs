//! Random histories: the incremental plan equals the one from scratch, after every single event.

use proptest::{prelude::*, test_runner::FileFailurePersistence};

use model::{
    Event, Moment, ObjectKey, Phase, Record,
    record::TunnelClaim,
    resource::{
        AddressClaim, FelixConfiguration, IpamBlock, KeyClaim, MeshConfiguration,
        ipam_block::Attribute,
    },
};

use super::*;
use crate::{Config, WATCHED, World};

/// Four bytes decide an event: what, which, and two details.
type Bytes = (u8, u8, u8, u8);

const NODES: [&str; 4] = ["own", "n1", "n2", "n3"];

/// The first is our own on eth0, the second our own on eth1; the last is inside a pool.
const ADDRESSES: [&str; 7] = [
    "192.0.2.1",
    "198.51.100.1",
    "192.0.2.2",
    "192.0.2.3",
    "2001:db8::2",
    "203.0.113.4",
    "10.65.0.70",
];

/// Pools that may overlap, and the block sizes they have.
const POOLS: [(&str, u8); 5] = [
    ("10.65.0.0/16", 26),
    ("10.66.0.0/16", 24),
    ("10.65.0.0/17", 26),
    ("fd00:65::/112", 122),
    ("192.0.2.0/24", 28),
];

const BLOCKS: [&str; 7] = [
    "10.65.0.0/26",
    "10.65.0.64/26",
    "10.65.128.0/26",
    "10.66.1.0/24",
    "10.66.2.0/26",
    "fd00:65::40/122",
    "192.0.2.0/28",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/oracle.txt"),
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_every_event_the_plan_is_the_one_from_scratch(
        before in proptest::collection::vec(any::<Bytes>(), 0..40),
        after in proptest::collection::vec(any::<Bytes>(), 1..60),
    ) {
        let mut history = History::new();
        for bytes in before {
            history.happen(bytes);
        }
        history.sync();
        history.check()?;
        for bytes in after {
            history.happen(bytes);
            history.check()?;
        }
    }

    #[test]
    fn the_set_of_facts_decides_and_not_their_order(
        facts in proptest::collection::vec(any::<Bytes>(), 1..60),
        seed: u64,
    ) {
        let mut history = History::new();
        for bytes in facts {
            history.happen(bytes);
        }
        history.sync();
        let mut events = history.facts();
        shuffle(&mut events, seed);
        let mut other = World::new(Config::new("own".parse().unwrap()));
        for event in events {
            other.apply(event, Moment::START);
        }
        for kind in WATCHED {
            other.apply(Event::InSync(*kind), Moment::START);
        }

        let plan = history.world.plan().clone();
        prop_assert_eq!(rows(other.plan()), rows(&plan));
    }
}

/// A world and, beside it, what it was told.
struct History {
    world: World,
    objects: BTreeMap<ObjectKey, Resource>,
    links: BTreeMap<InterfaceName, Link>,
    handshakes: BTreeSet<(InterfaceName, PublicKey)>,
    keys: Vec<PublicKey>,
}

impl History {
    fn new() -> Self {
        let mut history = Self {
            world: World::new(Config::new("own".parse().unwrap())),
            objects: BTreeMap::new(),
            links: links(0),
            handshakes: BTreeSet::new(),
            keys: vec![key(0), key(1)],
        };
        history.tell(Event::Keys(history.keys.clone()));
        history.tell(Event::Underlay(history.links.clone()));

        history
    }

    fn tell(&mut self, event: Event) {
        self.world.apply(event, Moment::START);
    }

    fn sync(&mut self) {
        for kind in WATCHED {
            self.tell(Event::InSync(*kind));
        }
    }

    fn happen(&mut self, (what, which, detail, more): Bytes) {
        let which = usize::from(which);
        match what % 16 {
            0..=3 => self.put(node(1 + which % 3, detail, more)),
            4 => self.put(node(0, 0, more)),
            5 | 6 => self.put(pool(which % POOLS.len(), detail)),
            7..=9 => self.put(block(which % BLOCKS.len(), detail)),
            10 => self.put(felix(detail)),
            11 => self.put(mesh(detail)),
            12 => self.put(Resource::KeyClaim(KeyClaim::new(
                key(detail % 6),
                name(which),
            ))),
            13 => self.put(Resource::AddressClaim(AddressClaim {
                address: address(usize::from(detail)),
                node: name(which),
            })),
            14 if which.is_multiple_of(3) => {
                self.links = links(detail);
                self.tell(Event::Underlay(self.links.clone()));
            }
            14 => self.remove(which),
            _ => {
                let device = if more.is_multiple_of(4) {
                    "wg-v6.cali"
                } else {
                    "wireguard.cali"
                };
                let device: InterfaceName = device.parse().unwrap();
                self.handshakes.insert((device.clone(), key(detail % 6)));
                self.tell(Event::Handshake {
                    device,
                    peer: key(detail % 6),
                });
            }
        }
    }

    fn put(&mut self, resource: Resource) {
        self.objects.insert(object_key(&resource), resource.clone());
        self.tell(Event::Applied(resource));
    }

    fn remove(&mut self, which: usize) {
        let Some(key) = self
            .objects
            .keys()
            .nth(which % self.objects.len().max(1))
            .cloned()
        else {
            return;
        };
        self.objects.remove(&key);
        self.tell(Event::Deleted(key));
    }

    /// What was told, each fact once, as it is now.
    fn facts(&self) -> Vec<Event> {
        let objects = self.objects.values().cloned().map(Event::Applied);
        let shakes = self.handshakes.iter().cloned();
        let shakes = shakes.map(|(device, peer)| Event::Handshake { device, peer });
        let others = [
            Event::Keys(self.keys.clone()),
            Event::Underlay(self.links.clone()),
        ];

        objects.chain(shakes).chain(others).collect()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let members = self.world.members.iter();
        let passages = members
            .map(|(name, (_, passage))| (name.clone(), (passage.switched, passage.takes_plain)))
            .collect();
        let retained = self.world.members.iter().map(|(name, (member, _))| {
            let carriers = member.retained.iter();
            let carriers = carriers
                .map(|(f, c)| (*f, (c.device.clone(), c.key, c.endpoint)))
                .collect();
            (name.clone(), carriers)
        });
        let retained = retained.collect();
        let given = Given {
            own: &"own".parse().unwrap(),
            objects: self.objects.values().collect(),
            links: &self.links,
            keys: &self.keys,
            up: self.world.posture.up,
            passages,
            retained,
        };
        let wanted = recompute(&given);
        let planned = Tables::of(self.world.plan());

        prop_assert_eq!(&planned.elements, &wanted.elements);
        prop_assert_eq!(&planned.routes, &wanted.routes);
        prop_assert_eq!(planned, wanted);
        Ok(())
    }
}

fn node(which: usize, detail: u8, more: u8) -> Resource {
    let bit = |bit: u8| more & (1 << bit) != 0;
    let mine = address(which + 1);
    let other = address(usize::from(detail));
    let mut addresses = vec![mine];
    if bit(0) {
        addresses.push(other);
    }
    let families = if bit(1) {
        vec![Family::V4]
    } else {
        Family::BOTH.to_vec()
    };
    let tunnel = TunnelClaim {
        key: key(2 + detail % 4),
        port: 51820,
        families,
    };
    let second = TunnelClaim {
        key: key(detail % 6),
        port: 51821,
        families: vec![Family::V6],
    };
    let tunnels = match more % 4 {
        0 => vec![],
        1 | 2 => vec![tunnel],
        _ => vec![tunnel, second],
    };
    let record = Record {
        version: 1,
        node: name(which),
        epoch: 1,
        tunnels,
        endpoints: addresses.clone(),
        addresses: addresses.clone(),
        phase: [
            Phase::Off,
            Phase::Accepting,
            Phase::Sending,
            Phase::Enforced,
        ][usize::from(detail >> 4) % 4],
        conditions: BTreeMap::new(),
        signature: None,
        unknown: BTreeMap::new(),
    };
    let is_own = which == 0;
    let record = match more >> 5 {
        _ if is_own => None,
        0 | 1 => None,
        2 => Some(Err("unreadable".into())),
        _ => Some(Ok(record)),
    };

    Resource::Node(Box::new(Node {
        name: name(which),
        labels: BTreeMap::new(),
        addresses: addresses
            .iter()
            .map(|a| IpNet::new(*a, 24).unwrap())
            .collect(),
        tunnel_addresses: vec![],
        key_v4: (!is_own && bit(2)).then(|| Ok(key(2 + detail % 4))),
        key_v6: (!is_own && bit(3)).then(|| Ok(key(detail % 6))),
        record,
        invalid: BTreeMap::new(),
    }))
}

fn pool(which: usize, detail: u8) -> Resource {
    let (cidr, block_size) = POOLS[which];
    let uses = match detail % 8 {
        0 => vec![AllowedUse::LoadBalancer],
        1 => vec![AllowedUse::Tunnel],
        _ => vec![AllowedUse::Workload, AllowedUse::Tunnel],
    };

    Resource::IpPool(IpPool {
        name: format!("pool{which}"),
        cidr: cidr.parse().unwrap(),
        block_size,
        nat_outgoing: detail & 16 != 0,
        disabled: detail & 96 == 96,
        allowed_uses: uses,
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    })
}

/// A block of somebody's or nobody's, of which somebody may use the first address.
fn block(which: usize, detail: u8) -> Resource {
    let user = Attribute {
        handle_id: Some("h".into()),
        secondary: BTreeMap::from([(
            "node".into(),
            name(usize::from((detail >> 4) % 5)).to_string(),
        )]),
        ..Attribute::default()
    };
    let is_used = detail & 8 != 0;

    Resource::IpamBlock(Box::new(IpamBlock {
        cidr: BLOCKS[which].parse().unwrap(),
        affinity: (detail % 5 != 4).then(|| name(usize::from(detail % 5))),
        deleted: false,
        allocations: is_used.then_some((0, 0)).into_iter().collect(),
        unallocated: vec![],
        attributes: vec![user],
        sequence_number: u64::from(detail),
        sequence_number_for_allocation: BTreeMap::new(),
        affinity_claim_time: None,
    }))
}

fn felix(detail: u8) -> Resource {
    let switch = |n: u8| [None, Some(true), Some(true), Some(false)][usize::from(n % 4)];

    Resource::FelixConfiguration(Box::new(FelixConfiguration {
        name: "default".into(),
        wireguard_enabled: switch(detail),
        wireguard_enabled_v6: switch((detail >> 2) & (detail >> 4)),
        ..FelixConfiguration::default()
    }))
}

fn mesh(detail: u8) -> Resource {
    let mode = if detail.is_multiple_of(4) {
        EncryptionMode::Permissive
    } else {
        EncryptionMode::Strict
    };
    let networks = ["198.51.100.0/24", "192.0.2.0/24"].map(|net| net.parse().unwrap());

    Resource::MeshConfiguration(Box::new(MeshConfiguration {
        mode,
        underlay_networks: networks[usize::from(detail >> 7)..].to_vec(),
        ..MeshConfiguration::default()
    }))
}

fn links(detail: u8) -> BTreeMap<InterfaceName, Link> {
    let link = |kind, mtu, nets: &[&str]| Link {
        mtu,
        up: true,
        kind,
        addresses: nets.iter().map(|net| net.parse().unwrap()).collect(),
    };
    let mut links = BTreeMap::from([
        ("lo".parse().unwrap(), link(LinkKind::Loopback, 65536, &[])),
        (
            "eth0".parse().unwrap(),
            link(
                LinkKind::Underlay,
                1500,
                &["192.0.2.1/24", "2001:db8::1/64"],
            ),
        ),
    ]);
    if detail & 1 != 0 {
        let mtu = if detail & 4 != 0 { 1300 } else { 1400 };
        let eth1 = link(LinkKind::Underlay, mtu, &["198.51.100.1/24"]);
        links.insert("eth1".parse().unwrap(), eth1);
    }
    if detail & 2 != 0 {
        let tunnel = link(LinkKind::Tunnel, 1440, &["10.65.0.9/32"]);
        links.insert("wireguard.cali".parse().unwrap(), tunnel);
    }

    links
}

fn object_key(resource: &Resource) -> ObjectKey {
    use model::Kind;
    match resource {
        Resource::Node(node) => ObjectKey::cluster(Kind::Node, node.name.as_str()),
        Resource::IpPool(pool) => ObjectKey::cluster(Kind::IPPool, pool.name.clone()),
        Resource::IpamBlock(block) => {
            ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(block.cidr))
        }
        Resource::FelixConfiguration(felix) => {
            ObjectKey::cluster(Kind::FelixConfiguration, felix.name.clone())
        }
        Resource::MeshConfiguration(_) => ObjectKey::cluster(Kind::MeshConfiguration, "default"),
        Resource::KeyClaim(claim) => ObjectKey::cluster(Kind::KeyClaim, claim.name.clone()),
        Resource::AddressClaim(claim) => {
            ObjectKey::cluster(Kind::AddressClaim, AddressClaim::object_name(claim.address))
        }
        other => unreachable!("{other:?}"),
    }
}

/// Every row of every table, without what counts and remembers.
fn rows(plan: &Plan) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (
            plan.nft_sets.rows().clone(),
            plan.nft_elements.rows().clone(),
        ),
        (
            plan.nft_chains.rows().clone(),
            plan.sysctls.rows().clone(),
            plan.pods.rows().clone(),
        ),
        (
            plan.tunnels.rows().clone(),
            plan.addresses.rows().clone(),
            plan.peers.rows().clone(),
        ),
        (plan.routes.rows().clone(), plan.rules.rows().clone()),
    )
}

fn shuffle(events: &mut [Event], mut seed: u64) {
    for at in (1..events.len()).rev() {
        // Knuth's MMIX generator.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        events.swap(at, (seed >> 33) as usize % (at + 1));
    }
}

fn name(which: usize) -> NodeName {
    NODES[which % NODES.len()].parse().unwrap()
}

fn address(which: usize) -> IpAddr {
    ADDRESSES[which % ADDRESSES.len()].parse().unwrap()
}

fn key(which: u8) -> PublicKey {
    PublicKey::new([which + 1; 32]).unwrap()
}
