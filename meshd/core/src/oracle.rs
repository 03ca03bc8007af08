//! The slow twin: the same facts, looked at from scratch, one obvious loop after the other.
//!
//! Shares no judgement with the brain. What has to be remembered (is encryption up, who was
//! switched) is given to it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each loop picks one kind of many"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, NodeName, PublicKey, Resource,
    event::{Link, LinkKind},
    nft::{Element, NftFamily, SetKey},
    plan::{Peer, Plan, Route, RouteKey, RouteVia, RuleKey, Tunnel},
    resource::{
        IpPool, Node,
        ip_pool::AllowedUse,
        mesh_configuration::{Backend, EncryptionMode},
    },
};

/// What the oracle is told.
pub(crate) struct Given<'a> {
    pub(crate) own: &'a NodeName,
    pub(crate) objects: Vec<&'a Resource>,
    pub(crate) links: &'a BTreeMap<InterfaceName, Link>,
    pub(crate) keys: &'a [PublicKey],
    /// Guard, devices and peers are there.
    pub(crate) up: bool,
    /// For each member: is it switched, is its plaintext taken.
    pub(crate) passages: BTreeMap<NodeName, (bool, bool)>,
    /// How members came that have withdrawn since.
    pub(crate) retained:
        BTreeMap<NodeName, BTreeMap<Family, (InterfaceName, PublicKey, SocketAddr)>>,
}

/// The tables that follow members, blocks and claims.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) elements: BTreeSet<(SetKey, Element)>,
    pub(crate) tunnels: BTreeMap<InterfaceName, Tunnel>,
    pub(crate) addresses: BTreeSet<(InterfaceName, IpNet)>,
    pub(crate) peers: BTreeMap<(InterfaceName, PublicKey), Peer>,
    pub(crate) routes: BTreeMap<RouteKey, Route>,
    pub(crate) rules: BTreeSet<RuleKey>,
}

impl Tables {
    pub(crate) fn of(plan: &Plan) -> Self {
        Self {
            elements: plan.nft_elements.rows().keys().cloned().collect(),
            tunnels: plan.tunnels.rows().clone(),
            addresses: plan.addresses.rows().keys().cloned().collect(),
            peers: plan.peers.rows().clone(),
            routes: plan.routes.rows().clone(),
            rules: plan.rules.rows().keys().cloned().collect(),
        }
    }
}

/// A device as the settings have it: name, native family, families, port, key.
#[derive(Clone)]
struct Device {
    name: InterfaceName,
    native: Family,
    families: Vec<Family>,
    port: u16,
    key: Option<PublicKey>,
}

/// A tunnel that a node offers: key, port, families.
type Offer = (PublicKey, u16, Vec<Family>);

/// Works out the tables from scratch.
pub(crate) fn recompute(given: &Given) -> Tables {
    let mut tables = Tables::default();
    let devices = devices(given);
    let mut mtus: BTreeMap<InterfaceName, Vec<u32>> = BTreeMap::new();
    for node in nodes(given)
        .into_iter()
        .filter(|node| node.name != *given.own)
    {
        for (family, (device, _, endpoint)) in carriers(given, node, &devices) {
            let mtu = way_mtu(given, family, endpoint.ip());
            mtus.entry(device).or_default().push(mtu);
        }
    }
    base(given, &devices, &mtus, &mut tables);
    for node in nodes(given)
        .into_iter()
        .filter(|node| node.name != *given.own)
    {
        member(given, node, &devices, &mut tables);
    }

    tables
}

fn base(
    given: &Given,
    devices: &[Device],
    mtus: &BTreeMap<InterfaceName, Vec<u32>>,
    tables: &mut Tables,
) {
    let tables_up: &[NftFamily] = if given.up {
        &[NftFamily::Inet, NftFamily::Netdev]
    } else {
        &[NftFamily::Inet]
    };
    for table in tables_up {
        for net in space(given) {
            element(tables, *table, "space", Element::Net(net));
        }
        for address in own_addresses(given) {
            element(tables, *table, "own", Element::Address(address.addr()));
        }
    }
    let all = pools(given);
    for pool in &all {
        let inside_other = |others: &[&IpPool]| {
            others
                .iter()
                .any(|other| other.cidr != pool.cidr && other.cidr.contains(&pool.cidr))
        };
        if !inside_other(&all) {
            element(tables, NftFamily::Inet, "anypool", Element::Net(pool.cidr));
        }
        let nat: Vec<&IpPool> = all
            .iter()
            .copied()
            .filter(|pool| pool.nat_outgoing && serves(pool))
            .collect();
        if pool.nat_outgoing && serves(pool) && !inside_other(&nat) {
            element(tables, NftFamily::Inet, "natpool", Element::Net(pool.cidr));
        }
    }
    let own_blocks = blocks_of(given, given.own);
    for block in own_blocks.iter().filter(|block| !is_host(block)) {
        route(tables, 254, *block, None, RouteVia::Blackhole, None);
    }
    let own_loans = loans_of(given, given.own);
    for net in &own_loans {
        route(tables, 254, *net, Some(4096), RouteVia::Blackhole, None);
    }
    let own_blocks: BTreeSet<IpNet> = own_blocks.union(&own_loans).copied().collect();
    if !given.up {
        return;
    }
    let covered = |family: Family| {
        devices
            .iter()
            .any(|device| device.families.contains(&family))
    };
    for family in Family::BOTH.into_iter().filter(|family| covered(*family)) {
        tables.rules.insert(RuleKey {
            family,
            priority: 99,
            source: None,
            without_mark: Some(0x20_0000),
            table: 1,
        });
    }
    for pool in all
        .iter()
        .filter(|pool| guarded(pool) && covered(Family::of_net(&pool.cidr)))
    {
        route(
            tables,
            1,
            pool.cidr,
            Some(4096),
            RouteVia::Unreachable,
            None,
        );
    }
    for (block, _) in blocks(given) {
        if let Some(pool) = pool_of(given, block)
            && pool.disabled
            && covered(Family::of_net(&block))
        {
            route(tables, 1, block, Some(4096), RouteVia::Unreachable, None);
        }
    }
    for block in own_blocks
        .iter()
        .filter(|block| covered(Family::of_net(block)))
    {
        route(tables, 1, *block, None, RouteVia::Throw, None);
        tables.rules.insert(RuleKey {
            family: Family::of_net(block),
            priority: 100,
            source: Some(*block),
            without_mark: None,
            table: 2,
        });
    }
    for address in own_addresses(given) {
        let net = IpNet::from(address.addr());
        if in_space(given, address.addr()) && covered(Family::of_net(&net)) {
            route(tables, 1, net, None, RouteVia::Throw, None);
        }
    }
    for device in devices {
        let set = SetKey {
            table: NftFamily::Inet,
            name: "tunnels".into(),
        };
        tables
            .elements
            .insert((set, Element::Interface(device.name.clone())));
        let Some(key) = device.key else { continue };
        let smallest = mtus
            .get(&device.name)
            .and_then(|mtus| mtus.iter().min())
            .copied();
        let mut mtu = smallest.unwrap_or_else(|| least_mtu(given));
        let v6_pods = |pool: &&IpPool| serves(pool) && pool.cidr.addr().is_ipv6();
        if device.families.contains(&Family::V6) && pools(given).iter().any(v6_pods) {
            mtu = mtu.max(1280);
        }
        let (port, backend) = (device.port, Backend::Auto);
        let tunnel = Tunnel {
            key,
            port,
            mark: 0x20_0000,
            mtu,
            backend,
            threaded: false,
        };
        tables.tunnels.insert(device.name.clone(), tunnel);
    }
}

fn member(given: &Given, node: &Node, devices: &[Device], tables: &mut Tables) {
    let hosts = hosts(given, node);
    let loans = loans_of(given, &node.name);
    let lone = blocks_of(given, &node.name);
    let blocks: BTreeSet<IpNet> = lone.union(&loans).copied().collect();
    let is_stock = node.record.is_none();
    let gateway = |family| {
        hosts
            .iter()
            .find(|host| Family::of(**host) == family)
            .copied()
    };
    for block in &blocks {
        let Some(gateway) = gateway(Family::of_net(block)) else {
            continue;
        };
        if own_addresses(given)
            .iter()
            .any(|net| net.contains(&gateway) && is_up(given, net))
        {
            route(tables, 254, *block, None, RouteVia::Gateway(gateway), None);
        }
    }
    for host in &hosts {
        element(tables, NftFamily::Inet, "member", Element::Address(*host));
        if given.up {
            element(tables, NftFamily::Netdev, "member", Element::Address(*host));
        }
    }
    if !given.up {
        return;
    }
    let (switched, takes_plain) = given.passages[&node.name];
    let carriers = carriers(given, node, devices);
    let permissive = mode(given) == EncryptionMode::Permissive;
    for family in Family::BOTH {
        if !devices
            .iter()
            .any(|device| device.families.contains(&family))
        {
            continue;
        }
        let carrier = carriers.get(&family);
        let pods_plain = !switched || (carrier.is_none() && permissive);
        let hosts_plain = !switched || ((carrier.is_none() || is_stock) && permissive);
        for block in blocks
            .iter()
            .filter(|block| Family::of_net(block) == family)
        {
            if loans.contains(block) {
                route(tables, 1, *block, Some(4096), RouteVia::Unreachable, None);
            }
            if pods_plain {
                route(tables, 1, *block, None, RouteVia::Throw, None);
            } else if let Some((device, _, endpoint)) = carrier {
                let source = granted(given)
                    .into_iter()
                    .find(|a| Family::of(*a) == family);
                let source = source.filter(|_| !is_stock);
                let mtu = way_mtu(given, family, endpoint.ip());
                tunnel_route(tables, 1, *block, device, source, mtu);
            }
        }
        let lent = lent(given);
        let kept = |block: &IpNet| pieces(*block, &|net| lent.iter().any(|it| net.contains(&it.0)));
        let pods = lone.iter().flat_map(kept).chain(loans.iter().copied());
        for net in pods.filter(|net| Family::of_net(net) == family) {
            if pods_plain {
                element(tables, NftFamily::Inet, "open", Element::Net(net));
                element(tables, NftFamily::Netdev, "open", Element::Net(net));
            }
            if takes_plain {
                element(tables, NftFamily::Netdev, "take", Element::Net(net));
            }
        }
        for host in hosts.iter().filter(|host| Family::of(**host) == family) {
            let net = IpNet::from(*host);
            if in_space(given, *host) {
                route(tables, 1, net, None, RouteVia::Throw, None);
            }
            if hosts_plain {
                element(tables, NftFamily::Inet, "openhost", Element::Address(*host));
                element(
                    tables,
                    NftFamily::Netdev,
                    "openhost",
                    Element::Address(*host),
                );
            } else {
                route(tables, 2, net, Some(4096), RouteVia::Unreachable, None);
                if let (Some((device, _, endpoint)), false) = (carrier, is_stock) {
                    let mtu = way_mtu(given, family, endpoint.ip());
                    tunnel_route(tables, 2, net, device, None, mtu);
                }
            }
            if takes_plain {
                element(
                    tables,
                    NftFamily::Netdev,
                    "takehost",
                    Element::Address(*host),
                );
            }
        }
        let retained = given
            .retained
            .get(&node.name)
            .and_then(|retained| retained.get(&family));
        if let Some((device, key, endpoint)) = carrier.or(retained) {
            let ours = loans_of(given, given.own);
            let is_ours = |net: &IpNet| ours.iter().any(|it| net.contains(it));
            let nets = lone.iter().flat_map(|block| pieces(*block, &is_ours));
            let nets = nets.chain(loans.iter().copied());
            let nets = nets.chain(hosts.iter().filter(|_| !is_stock).map(|h| IpNet::from(*h)));
            let peer = tables
                .peers
                .entry((device.clone(), *key))
                .or_insert_with(|| Peer {
                    endpoint: *endpoint,
                    keepalive: 0,
                    allowed_ips: BTreeSet::new(),
                });
            peer.allowed_ips
                .extend(nets.filter(|net| Family::of_net(net) == family));
        }
    }
}

fn carriers(
    given: &Given,
    node: &Node,
    devices: &[Device],
) -> BTreeMap<Family, (InterfaceName, PublicKey, SocketAddr)> {
    let mut carriers = BTreeMap::new();
    for family in Family::BOTH {
        for device in devices.iter().filter(|d| d.families.contains(&family)) {
            if device.key.is_none() || (node.record.is_none() && device.native != family) {
                continue;
            }
            let offer = offers(given, node)
                .into_iter()
                .find(|(_, _, f)| f.contains(&family));
            let endpoint = endpoints(given, node, family);
            let native = endpoint.iter().find(|address| {
                device.families.len() == 1 && Family::of(**address) == device.native
            });
            let endpoint = native.or(endpoint.first()).copied();
            if let (Some((key, port, _)), Some(address)) = (offer, endpoint) {
                let endpoint = SocketAddr::new(address, port);
                carriers.insert(family, (device.name.clone(), key, endpoint));
            }
        }
    }

    carriers
}

fn offers(given: &Given, node: &Node) -> Vec<Offer> {
    let offers: Vec<Offer> = match &node.record {
        Some(Ok(record)) => {
            let tunnels = record.tunnels.iter();
            tunnels
                .map(|tunnel| (tunnel.key, tunnel.port, tunnel.families.clone()))
                .collect()
        }
        Some(Err(_)) => Vec::new(),
        None => {
            let key = |key: &Option<Result<PublicKey, String>>| key.clone().and_then(Result::ok);
            let v4 = key(&node.key_v4).map(|key| (key, 51820, vec![Family::V4]));
            let v6 = key(&node.key_v6).map(|key| (key, 51821, vec![Family::V6]));
            v4.into_iter().chain(v6).collect()
        }
    };
    let usable = |key: &PublicKey| {
        let holders: Vec<&NodeName> = given
            .objects
            .iter()
            .filter_map(|object| match object {
                Resource::KeyClaim(claim) if claim.name == key.claim_name() => Some(&claim.node),
                _ => None,
            })
            .collect();
        let publishers: Vec<&NodeName> = nodes(given)
            .into_iter()
            .filter(|other| crate::fact::published_keys(other).contains(key))
            .map(|other| &other.name)
            .collect();
        let granted = holders == [&node.name];
        let alone = holders.is_empty() && node.record.is_none() && publishers == [&node.name];

        !given.keys.contains(key) && (granted || alone)
    };

    offers.into_iter().filter(|(key, ..)| usable(key)).collect()
}

/// Usable endpoints in the node's order.
fn endpoints(given: &Given, node: &Node, family: Family) -> Vec<IpAddr> {
    let has_family = |address: &IpAddr| {
        own_addresses(given)
            .iter()
            .any(|net| Family::of_net(net) == Family::of(*address))
    };
    match &node.record {
        Some(Ok(record)) => record
            .endpoints
            .iter()
            .copied()
            .filter(has_family)
            .filter(|address| holder(given, *address) == Some(&node.name))
            .filter(|address| {
                !own_addresses(given)
                    .iter()
                    .any(|net| net.addr() == *address)
            })
            .collect(),
        Some(Err(_)) => Vec::new(),
        None => {
            let hosts = hosts(given, node);
            let addresses = node.addresses.iter().map(|net| net.addr());
            addresses
                .filter(|a| Family::of(*a) == family && hosts.contains(a) && has_family(a))
                .collect()
        }
    }
}

fn hosts(given: &Given, node: &Node) -> BTreeSet<IpAddr> {
    let mut published: BTreeSet<IpAddr> = BTreeSet::new();
    match &node.record {
        Some(Ok(record)) => published.extend(&record.addresses),
        Some(Err(_)) | None => {
            published.extend(node.addresses.iter().map(|net| net.addr()));
            for object in &given.objects {
                if let Resource::AddressClaim(claim) = object
                    && claim.node == node.name
                {
                    published.insert(claim.address);
                }
            }
        }
    }
    let others = |address: IpAddr| {
        nodes(given).into_iter().any(|other| {
            other.name != node.name && crate::fact::published_addresses(other).contains(&address)
        })
    };

    published.retain(|address| {
        let ours = own_addresses(given)
            .iter()
            .any(|net| net.addr() == *address);
        let granted = match holder(given, *address) {
            Some(holder) => *holder == node.name,
            None => node.record.is_none() && !others(*address),
        };
        !ours && granted && !is_pods(given, *address)
    });

    published
}

fn holder<'a>(given: &Given<'a>, address: IpAddr) -> Option<&'a NodeName> {
    given.objects.iter().find_map(|object| match object {
        Resource::AddressClaim(claim) if claim.address == address => Some(&claim.node),
        _ => None,
    })
}

fn is_pods(given: &Given, address: IpAddr) -> bool {
    blocks(given).into_iter().any(|(block, owner)| {
        owner.is_some() && block.contains(&address) && pool_of(given, block).is_some()
    })
}

fn devices(given: &Given) -> Vec<Device> {
    let felix = given.objects.iter().find_map(|object| match object {
        Resource::FelixConfiguration(felix) if felix.name == "default" => Some(felix),
        _ => None,
    });
    let v4 = felix.and_then(|felix| felix.wireguard_enabled);
    let v6 = felix.and_then(|felix| felix.wireguard_enabled_v6);
    let strict = mode(given) == EncryptionMode::Strict;
    let mut devices = Vec::new();
    let mut add = |native: Family, both: bool| {
        let (name, port, slot) = match native {
            Family::V4 => ("wireguard.cali", 51820, 0),
            Family::V6 => ("wg-v6.cali", 51821, 1),
        };
        let key = given.keys.get(slot).copied().filter(|key| {
            given.objects.iter().any(|object| match object {
                Resource::KeyClaim(claim) => {
                    claim.name == key.claim_name() && claim.node == *given.own
                }
                _ => false,
            })
        });
        let families = if both {
            Family::BOTH.to_vec()
        } else {
            vec![native]
        };
        devices.push(Device {
            name: name.parse().unwrap(),
            native,
            families,
            port,
            key,
        });
    };
    if v4 == Some(true) {
        add(Family::V4, strict && v6.is_none());
    }
    if v6 == Some(true) {
        add(Family::V6, strict && v4.is_none());
    }

    devices
}

fn mode(given: &Given) -> EncryptionMode {
    given
        .objects
        .iter()
        .find_map(|object| match object {
            Resource::MeshConfiguration(mesh) => Some(mesh.mode),
            _ => None,
        })
        .unwrap_or_default()
}

fn granted(given: &Given) -> Vec<IpAddr> {
    let networks: Vec<IpNet> = given
        .objects
        .iter()
        .filter_map(|object| match object {
            Resource::MeshConfiguration(mesh) => Some(mesh.underlay_networks.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    let ours = own_addresses(given);
    let in_networks = networks.iter().flat_map(|net| {
        ours.iter()
            .map(|own| own.addr())
            .filter(|own| net.contains(own))
    });

    in_networks
        .chain(ours.iter().map(|own| own.addr()))
        .filter(|address| holder(given, *address) == Some(given.own) && !is_pods(given, *address))
        .collect()
}

fn own_addresses(given: &Given) -> BTreeSet<IpNet> {
    let links = given
        .links
        .values()
        .filter(|link| link.kind == LinkKind::Underlay);

    links
        .flat_map(|link| link.addresses.iter().copied())
        .collect()
}

fn is_up(given: &Given, net: &IpNet) -> bool {
    given
        .links
        .values()
        .any(|link| link.up && link.addresses.contains(net))
}

fn path_mtu(given: &Given, endpoint: IpAddr) -> u32 {
    let overhead = if endpoint.is_ipv4() { 60 } else { 80 };
    let mut best: Option<(u8, u32)> = None;
    for link in given
        .links
        .values()
        .filter(|l| l.kind == LinkKind::Underlay && l.up)
    {
        for net in link.addresses.iter().filter(|net| net.contains(&endpoint)) {
            let candidate = (net.prefix_len(), link.mtu);
            best = match best {
                Some((length, mtu)) if length > candidate.0 => Some((length, mtu)),
                Some((length, mtu)) if length == candidate.0 => {
                    Some((length, mtu.min(candidate.1)))
                }
                Some(_) | None => Some(candidate),
            };
        }
    }
    let of_family = given.links.values().filter(|link| {
        link.kind == LinkKind::Underlay
            && link.up
            && link
                .addresses
                .iter()
                .any(|net| net.addr().is_ipv4() == endpoint.is_ipv4())
    });
    let mtu = best
        .map(|(_, mtu)| mtu)
        .or(of_family.map(|link| link.mtu).min());

    mtu.unwrap_or(1500) - overhead
}

fn way_mtu(given: &Given, family: Family, endpoint: IpAddr) -> u32 {
    match family {
        Family::V4 => path_mtu(given, endpoint),
        Family::V6 => path_mtu(given, endpoint).max(1280),
    }
}

fn least_mtu(given: &Given) -> u32 {
    let mut least = None;
    for link in given
        .links
        .values()
        .filter(|l| l.kind == LinkKind::Underlay && l.up)
    {
        for net in &link.addresses {
            let mtu = link.mtu - if net.addr().is_ipv4() { 60 } else { 80 };
            least = Some(least.map_or(mtu, |least: u32| least.min(mtu)));
        }
    }

    least.unwrap_or(1420)
}

fn space(given: &Given) -> Vec<IpNet> {
    let guarded: Vec<IpNet> = pools(given)
        .into_iter()
        .filter(|pool| guarded(pool))
        .map(|pool| pool.cidr)
        .collect();
    let nested = |net: &IpNet| {
        guarded
            .iter()
            .any(|outer| outer != net && outer.contains(net))
    };
    let lone = blocks(given).into_iter().map(|(block, _)| block);
    let lone = lone.filter(|block| pool_of(given, *block).is_some_and(|pool| pool.disabled));

    guarded
        .iter()
        .copied()
        .filter(|net| !nested(net))
        .chain(lone)
        .collect()
}

fn in_space(given: &Given, address: IpAddr) -> bool {
    pools(given)
        .into_iter()
        .any(|pool| guarded(pool) && pool.cidr.contains(&address))
}

fn nodes<'a>(given: &Given<'a>) -> Vec<&'a Node> {
    let nodes = given.objects.iter().filter_map(|object| match object {
        Resource::Node(node) => Some(&**node),
        _ => None,
    });

    nodes.collect()
}

fn pools<'a>(given: &Given<'a>) -> Vec<&'a IpPool> {
    let pools = given.objects.iter().filter_map(|object| match object {
        Resource::IpPool(pool) => Some(pool),
        _ => None,
    });

    pools.collect()
}

fn blocks(given: &Given) -> Vec<(IpNet, Option<NodeName>)> {
    let blocks = given.objects.iter().filter_map(|object| match object {
        Resource::IpamBlock(block) => Some((block.cidr, block.affinity.clone())),
        _ => None,
    });

    blocks.collect()
}

fn blocks_of(given: &Given, node: &NodeName) -> BTreeSet<IpNet> {
    let blocks = blocks(given).into_iter();
    let blocks = blocks
        .filter(|(block, owner)| owner.as_ref() == Some(node) && pool_of(given, *block).is_some());

    let lent = lent(given);
    let whole = |block: &IpNet| is_host(block) && lent.iter().any(|it| it.0 == block.addr());

    blocks
        .map(|(block, _)| block)
        .filter(|it| !whole(it))
        .collect()
}

/// Returns every address that somebody else than the block's owner uses, with its user.
fn lent(given: &Given) -> BTreeSet<(IpAddr, NodeName)> {
    let blocks = given.objects.iter().filter_map(|object| match object {
        Resource::IpamBlock(block) => Some(block),
        _ => None,
    });
    let proper = blocks.filter(|block| pool_of(given, block.cidr).is_some());

    proper.flat_map(|block| block.loans()).collect()
}

fn loans_of(given: &Given, node: &NodeName) -> BTreeSet<IpNet> {
    let lent = lent(given).into_iter();

    lent.filter(|it| it.1 == *node)
        .map(|it| IpNet::from(it.0))
        .collect()
}

/// Cuts a network in halves until no piece has an address that is not wanted.
fn pieces(net: IpNet, has_unwanted: &dyn Fn(&IpNet) -> bool) -> Vec<IpNet> {
    if !has_unwanted(&net) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();

    halves.flat_map(|half| pieces(half, has_unwanted)).collect()
}

fn pool_of<'a>(given: &Given<'a>, block: IpNet) -> Option<&'a IpPool> {
    let around: Vec<&IpPool> = pools(given)
        .into_iter()
        .filter(|pool| pool.cidr.contains(&block))
        .collect();
    match around.as_slice() {
        [pool] if serves(pool) && pool.block_size == block.prefix_len() => Some(*pool),
        _ => None,
    }
}

fn serves(pool: &IpPool) -> bool {
    pool.allowed_uses.contains(&AllowedUse::Workload)
        || pool.allowed_uses.contains(&AllowedUse::Tunnel)
}

fn guarded(pool: &IpPool) -> bool {
    !pool.disabled && serves(pool)
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == if net.addr().is_ipv4() { 32 } else { 128 }
}

fn element(tables: &mut Tables, table: NftFamily, name: &str, element: Element) {
    let is_v4 = match &element {
        Element::Net(net) => net.addr().is_ipv4(),
        Element::Address(address) => address.is_ipv4(),
        Element::Interface(_)
        | Element::InterfaceAddress(..)
        | Element::Ports(..)
        | Element::AddressPort(..)
        | Element::InterfaceVerdict(..) => unreachable!("not here"),
    };
    let name = format!("{name}{}", if is_v4 { 4 } else { 6 });
    tables.elements.insert((
        SetKey {
            table,
            name: name.into(),
        },
        element,
    ));
}

fn tunnel_route(
    tables: &mut Tables,
    table: u32,
    destination: IpNet,
    device: &InterfaceName,
    source: Option<IpAddr>,
    mtu: u32,
) {
    let via = RouteVia::Device(device.clone());
    route(tables, table, destination, None, via.clone(), source);
    if tables.tunnels.get(device).is_none_or(|t| t.mtu <= mtu) {
        return;
    }
    for (key, route) in &mut tables.routes {
        if key.table == table && key.destination == destination && route.via == via {
            route.mtu = Some(mtu / 16 * 16);
        }
    }
}

fn route(
    tables: &mut Tables,
    table: u32,
    destination: IpNet,
    metric: Option<u32>,
    via: RouteVia,
    source: Option<IpAddr>,
) {
    let metric = metric.unwrap_or(if destination.addr().is_ipv4() {
        0
    } else {
        1024
    });
    let key = RouteKey {
        table,
        destination,
        metric,
    };
    tables.routes.insert(
        key,
        Route {
            via,
            source,
            mtu: None,
            protocol: 80,
        },
    );
}

mod tests;
