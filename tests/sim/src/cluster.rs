//! Nodes, their agents and the wire between them, one random step after the other.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use meshd_core::{Config, WATCHED, World};
use model::{
    ActionId, ActionKind, ActionResult, Event, Family, InterfaceName, Kind, Moment, NodeName,
    ObjectKey, Pass, Phase, PublicKey, Resource,
    event::{Link, LinkKind},
    resource::{
        FelixConfiguration, IpPool, MeshConfiguration, ip_pool::AllowedUse,
        mesh_configuration::EncryptionMode,
    },
};

use crate::{
    dice::Dice,
    machine::{Machine, UNDERLAY, Way},
    packet::{Fate, Packet},
    store::{Cursor, Store},
};

/// How many steps a story goes back.
const STORY: usize = 400;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    /// How many nodes.
    pub nodes: usize,
    /// The families of underlay and pools.
    pub families: Vec<Family>,
    /// Strict or Permissive.
    pub mode: EncryptionMode,
    /// One action in this many fails before or after it took effect; zero: none.
    pub failures: usize,
    /// Keep the last steps for [`Cluster::story`]; slow.
    pub tells: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            nodes: 3,
            families: vec![Family::V4],
            mode: EncryptionMode::Strict,
            failures: 8,
            tells: false,
        }
    }
}

/// A cluster in virtual time.
#[derive(Debug)]
pub struct Cluster {
    /// The store.
    pub store: Store,
    /// Virtual time.
    pub now: Moment,
    layout: Layout,
    hosts: BTreeMap<NodeName, Host>,
    dice: Dice,
    /// Nodes whose agent does not run.
    dead: BTreeSet<NodeName>,
    /// A node that hears nothing for so many steps.
    deaf: Option<(NodeName, usize)>,
    trace: VecDeque<String>,
}

#[derive(Debug)]
struct Host {
    world: World,
    machine: Machine,
    cursor: Cursor,
    addresses: Vec<IpNet>,
    keys: Vec<PublicKey>,
    applied: u64,
    results: VecDeque<(ActionId, ActionResult)>,
    shaken: BTreeSet<(InterfaceName, PublicKey)>,
    devices: BTreeSet<InterfaceName>,
}

/// Something that can happen next.
#[derive(Clone, Debug)]
enum Step {
    Hear(Kind),
    Act,
    End,
    Begin,
    Advance,
    Shake(InterfaceName, PublicKey),
    Links,
}

impl Cluster {
    /// Creates a cluster whose members know nothing yet; encryption is off.
    pub fn new(layout: Layout, seed: u64) -> Self {
        let mut store = Store::default();
        for pool in pools(&layout) {
            let key = ObjectKey::cluster(Kind::IPPool, pool.name.clone());
            store.put(key, Resource::IpPool(pool));
        }
        let mesh = MeshConfiguration {
            mode: layout.mode,
            underlay_networks: vec![net("192.0.2.0/24"), net("2001:db8::/64")],
            ..MeshConfiguration::default()
        };
        let key = ObjectKey::cluster(Kind::MeshConfiguration, "default");
        store.put(key, Resource::MeshConfiguration(Box::new(mesh)));
        let mut cluster = Self {
            store,
            now: Moment::START,
            hosts: BTreeMap::new(),
            dice: Dice::new(seed),
            dead: BTreeSet::new(),
            deaf: None,
            trace: VecDeque::new(),
            layout,
        };
        for number in 1..=cluster.layout.nodes {
            cluster.join(number);
        }

        cluster
    }

    /// Adds a member.
    pub fn join(&mut self, number: usize) -> NodeName {
        let name: NodeName = format!("n{number}").parse().expect("a node name");
        self.store.create_node(&name);
        let addresses = self.layout.families.iter().map(|family| match family {
            Family::V4 => net(&format!("192.0.2.{number}/24")),
            Family::V6 => net(&format!("2001:db8::{number:x}/64")),
        });
        let key = |last: u8| {
            PublicKey::new(
                [number as u8, last, 7].repeat(11)[..32]
                    .try_into()
                    .expect("32 bytes"),
            )
            .expect("not zero")
        };
        let host = Host {
            world: World::new(Config::new(name.clone())),
            machine: Machine::default(),
            cursor: Cursor::default(),
            addresses: addresses.collect(),
            keys: vec![key(1), key(2)],
            applied: 0,
            results: VecDeque::new(),
            shaken: BTreeSet::new(),
            devices: BTreeSet::new(),
        };
        self.hosts.insert(name.clone(), host);
        self.start(&name);

        name
    }

    /// Starts an agent anew on a machine that stays as it is.
    pub fn restart(&mut self, name: &NodeName) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        host.world = World::new(Config::new(name.clone()));
        host.machine.interrupt();
        host.cursor = Cursor::default();
        host.applied = 0;
        host.results.clear();
        host.shaken.clear();
        self.start(name);
    }

    /// Stops an agent; its machine goes on.
    pub fn kill(&mut self, name: &NodeName) {
        self.dead.insert(name.clone());
    }

    /// Starts a stopped agent.
    pub fn revive(&mut self, name: &NodeName) {
        self.dead.remove(name);
        self.restart(name);
    }

    fn start(&mut self, name: &NodeName) {
        let Some(host) = self.hosts.get_mut(name) else {
            return;
        };
        let mut events = vec![
            Event::Keys(host.keys.clone()),
            Event::Underlay(links(&host.addresses, &host.devices)),
            Event::StoreConnected(true),
        ];
        for kind in WATCHED {
            events.extend(self.store.relist(*kind, &mut host.cursor));
        }
        for event in events {
            host.world.apply(event, self.now);
        }
    }

    /// Writes the switch for the whole cluster.
    pub fn encrypt(&mut self, is_wanted: bool) {
        let felix = FelixConfiguration {
            name: "default".into(),
            wireguard_enabled: Some(is_wanted),
            ..FelixConfiguration::default()
        };
        let key = ObjectKey::cluster(Kind::FelixConfiguration, "default");
        self.store
            .put(key, Resource::FelixConfiguration(Box::new(felix)));
    }

    /// Returns the members.
    pub fn members(&self) -> Vec<NodeName> {
        self.hosts.keys().cloned().collect()
    }

    /// Returns a member's brain.
    pub fn world(&self, name: &NodeName) -> &World {
        &self.hosts[name].world
    }

    /// Returns a member's machine.
    pub fn machine(&self, name: &NodeName) -> &Machine {
        &self.hosts[name].machine
    }

    /// Returns the phase that the store shows of a member.
    pub fn phase(&self, name: &NodeName) -> Phase {
        let key = ObjectKey::cluster(Kind::Node, name.as_str());
        match self.store.get(&key) {
            Some(Resource::Node(node)) => match &node.record {
                Some(Ok(record)) => record.phase,
                Some(Err(_)) | None => Phase::Off,
            },
            _ => Phase::Off,
        }
    }

    /// Takes one random step; returns whether it changed a machine, or `None` when nothing can
    /// happen before time passes.
    ///
    /// Now and then the store's news do not reach one of the nodes for a while.
    pub fn step(&mut self) -> Option<bool> {
        let members = self.members();
        if self.deaf.is_none() && self.dice.one_in(40) {
            let name = members[self.dice.roll(members.len())].clone();
            self.deaf = Some((name, self.dice.roll(120)));
        }
        let mut steps = Vec::new();
        for name in members {
            if !self.dead.contains(&name) {
                let possible = self.possible(&name);
                steps.extend(possible.into_iter().map(|step| (name.clone(), step)));
            }
        }
        if let Some((deaf, left)) = self.deaf.take() {
            let reaches =
                |(name, step): &(_, Step)| *name != deaf || !matches!(step, Step::Hear(_));
            if left > 0 && steps.iter().any(reaches) {
                steps.retain(reaches);
                self.deaf = Some((deaf, left - 1));
            }
        }
        let (name, step) = self.dice.pick(&mut steps)?;
        self.now = self.now + Duration::from_micros(self.dice.roll(3000) as u64);
        let changes = matches!(step, Step::Advance);
        let text = self
            .layout
            .tells
            .then(|| format!("{:?} {name} {step:?}", self.now.since_start()));
        self.take(&name, step);
        if let Some(text) = text {
            self.note(&name, text);
        }

        Some(changes)
    }

    /// Returns the last steps, and what each made of its node.
    pub fn story(&self) -> String {
        let lines = self.trace.iter().map(String::as_str);

        lines.collect::<Vec<_>>().join("\n")
    }

    fn note(&mut self, name: &NodeName, step: String) {
        let world = &self.hosts[name].world;
        let status = world.status(self.now).encryption;
        let peers = world.peers(self.now).into_iter();
        let peers = peers.map(|peer| format!("{}={:?}/{:?}", peer.node, peer.phase, peer.state));
        let peers = peers.collect::<Vec<_>>().join(" ");
        let stored = self.phase(name);
        self.trace.push_back(format!(
            "{step} -> {:?} (stored {stored:?}, wanted {}) {peers}",
            status.phase, status.wanted
        ));
        if self.trace.len() > STORY {
            self.trace.pop_front();
        }
    }

    /// Lets time pass until somebody wants to be woken; returns whether anybody does.
    pub fn sleep(&mut self) -> bool {
        let alive = self
            .hosts
            .iter()
            .filter(|(name, _)| !self.dead.contains(*name));
        let Some(at) = alive
            .filter_map(|(_, host)| host.world.poll_timeout())
            .min()
        else {
            return false;
        };
        self.now = self.now.max(at);
        for (name, host) in &mut self.hosts {
            if !self.dead.contains(name) {
                host.world.apply(Event::Tick, self.now);
            }
        }

        true
    }

    fn possible(&mut self, name: &NodeName) -> Vec<Step> {
        let shakes = self.handshakes(name);
        let now = self.now;
        let Some(host) = self.hosts.get_mut(name) else {
            return Vec::new();
        };
        let mut steps: Vec<Step> = self
            .store
            .unread(&host.cursor)
            .into_iter()
            .filter(|k| WATCHED.contains(k))
            .map(Step::Hear)
            .collect();
        if host.world.poll_timeout().is_some_and(|at| at <= now) {
            steps.push(Step::Act);
        }
        if !host.results.is_empty() {
            steps.push(Step::End);
        }
        if host.machine.is_busy() {
            steps.push(Step::Advance);
        } else if host.world.plan().generation > host.applied {
            steps.push(Step::Begin);
        }
        if host.machine.rows.tunnels.keys().ne(host.devices.iter()) {
            steps.push(Step::Links);
        }
        steps.extend(
            shakes
                .into_iter()
                .map(|(device, key)| Step::Shake(device, key)),
        );

        steps
    }

    fn take(&mut self, name: &NodeName, step: Step) {
        let relists = self.dice.one_in(16);
        let now = self.now;
        let host = self.hosts.get_mut(name).expect("steps are of members");
        match step {
            Step::Hear(kind) if relists => {
                for event in self.store.relist(kind, &mut host.cursor) {
                    host.world.apply(event, now);
                }
            }
            Step::Hear(kind) => {
                if let Some(event) = self.store.next(kind, &mut host.cursor) {
                    host.world.apply(event, now);
                }
            }
            Step::Act => self.act(name),
            Step::End => {
                if let Some((id, result)) = host.results.pop_front() {
                    host.world.apply(Event::ActionDone(id, result), now);
                }
            }
            Step::Begin => host.machine.begin(host.world.plan()),
            Step::Advance => {
                if let Some(generation) = host.machine.advance() {
                    host.applied = generation;
                    let pass = Pass {
                        generation,
                        ..Pass::default()
                    };
                    host.world.apply(Event::PlanApplied(pass), now);
                }
                self.end_sessions();
            }
            Step::Shake(device, peer) => {
                host.shaken.insert((device.clone(), peer));
                host.world.apply(Event::Handshake { device, peer }, now);
            }
            Step::Links => {
                host.devices = host.machine.rows.tunnels.keys().cloned().collect();
                let links = links(&host.addresses, &host.devices);
                host.world.apply(Event::Underlay(links), now);
            }
        }
    }

    /// Carries out the next action: truly, or lost on the way there, or on the way back.
    fn act(&mut self, name: &NodeName) {
        let odds = self.layout.failures;
        let trouble = if odds > 0 {
            self.dice.roll(odds)
        } else {
            usize::MAX
        };
        let host = self.hosts.get_mut(name).expect("actions are of members");
        let Some(action) = host.world.poll_action() else {
            host.world.apply(Event::Tick, self.now);
            return;
        };
        let is_answer = matches!(action.kind, ActionKind::AnswerPod(..));
        let result = match trouble {
            0 if !is_answer => ActionResult::Retry("lost on the way".into()),
            1 if !is_answer => {
                self.store.execute(name, &action.kind);
                ActionResult::Retry("answer lost".into())
            }
            _ => self.store.execute(name, &action.kind),
        };
        host.results.push_back((action.id, result));
    }

    /// Returns the handshakes that this node would complete now and was not told of.
    fn handshakes(&self, name: &NodeName) -> Vec<(InterfaceName, PublicKey)> {
        let host = &self.hosts[name];
        let peers = host.machine.rows.peers.keys();
        let news = peers.filter(|key| !host.shaken.contains(key) && self.is_mutual(name, key));

        news.cloned().collect()
    }

    /// A session ends when either end has lost the other.
    fn end_sessions(&mut self) {
        let mut ended = Vec::new();
        for (name, host) in &self.hosts {
            let lost = host.shaken.iter().filter(|key| !self.is_mutual(name, key));
            ended.extend(lost.map(|key| (name.clone(), key.clone())));
        }
        for (name, key) in ended {
            if let Some(host) = self.hosts.get_mut(&name) {
                host.shaken.remove(&key);
            }
        }
    }

    /// Returns whether a node and the holder of a key have each other as peers.
    fn is_mutual(&self, name: &NodeName, peer: &(InterfaceName, PublicKey)) -> bool {
        let rows = &self.hosts[name].machine.rows;
        let Some(own) = rows.tunnels.get(&peer.0).map(|tunnel| tunnel.key) else {
            return false;
        };

        rows.peers.contains_key(peer)
            && self.holder(&peer.1).is_some_and(|(holder, device)| {
                let key = (device.clone(), own);
                self.hosts[holder].machine.rows.peers.contains_key(&key)
            })
    }

    /// Returns whose device has this key.
    fn holder(&self, key: &PublicKey) -> Option<(&NodeName, &InterfaceName)> {
        self.hosts.iter().find_map(|(name, host)| {
            let mut tunnels = host.machine.rows.tunnels.iter();
            let (device, _) = tunnels.find(|(_, tunnel)| tunnel.key == *key)?;
            Some((name, device))
        })
    }

    /// Returns the packets that should always get through between two members: pod to pod, pod to
    /// node and node to pod, in each family.
    pub fn packets(&self, from: &NodeName, to: &NodeName) -> Vec<Packet> {
        let mut packets = Vec::new();
        for family in &self.layout.families {
            let of_family = |address: &IpAddr| Family::of(*address) == *family;
            let host = |name| {
                let addresses = self.hosts[name].addresses.iter().map(IpNet::addr);
                addresses.into_iter().find(of_family)
            };
            let (pod, other_pod) = (self.pod(from, *family), self.pod(to, *family));
            let (host, other_host) = (host(from), host(to));
            for (source, destination, is_local) in [
                (pod, other_pod, false),
                (pod, other_host, false),
                (host, other_pod, true),
            ] {
                if let (Some(source), Some(destination)) = (source, destination) {
                    packets.push(Packet {
                        source,
                        destination,
                        is_local,
                    });
                }
            }
        }

        packets
    }

    /// Returns an address that a pod of the node has: the sixth of its block.
    pub fn pod(&self, name: &NodeName, family: Family) -> Option<IpAddr> {
        let block = self.store.block_of(name, family)?;

        Some(match block.network() {
            IpAddr::V4(first) => IpAddr::from((u32::from(first) + 5).to_be_bytes()),
            IpAddr::V6(first) => IpAddr::from((u128::from(first) + 5).to_be_bytes()),
        })
    }

    /// Sends a packet from a member and says what becomes of it.
    pub fn send(&self, from: &NodeName, packet: &Packet) -> Fate {
        let machine = &self.hosts[from].machine;
        match machine.route(packet) {
            Way::Nowhere => Fate::Dropped("no way".into()),
            Way::Underlay => self.send_plain(from, packet),
            Way::Device(device) => self.send_encrypted(from, &device, packet),
        }
    }

    fn send_plain(&self, from: &NodeName, packet: &Packet) -> Fate {
        if let Some(why) = self.hosts[from].machine.drops_out(packet, UNDERLAY) {
            return Fate::Dropped(why);
        }
        let Some(to) = self.owner(packet.destination) else {
            return Fate::Strayed(from.clone());
        };

        match self.hosts[to].machine.drops_in(packet, UNDERLAY) {
            Some(why) => Fate::PlainRefused(why),
            None => Fate::Plain,
        }
    }

    fn send_encrypted(&self, from: &NodeName, device: &InterfaceName, packet: &Packet) -> Fate {
        let machine = &self.hosts[from].machine;
        if let Some(why) = machine.drops_out(packet, device.as_str()) {
            return Fate::Dropped(why);
        }
        let Some(own) = machine.rows.tunnels.get(device).map(|tunnel| tunnel.key) else {
            return Fate::Dropped("no device".into());
        };
        let Some((key, _)) = machine.peer_for(device, packet.destination) else {
            return Fate::Dropped("no peer".into());
        };
        let Some((to, device)) = self.holder(key) else {
            return Fate::EncryptedRefused("its device is gone".into());
        };
        match self.hosts[to].machine.peer_for(device, packet.source) {
            Some((peer, _)) if *peer == own => {}
            Some(_) => return Fate::EncryptedRefused("the source is another's".into()),
            None => return Fate::EncryptedRefused("the source is nobody's".into()),
        }
        if self.owner(packet.destination) == Some(to) {
            Fate::Encrypted
        } else {
            Fate::Strayed(to.clone())
        }
    }

    fn owner(&self, address: IpAddr) -> Option<&NodeName> {
        self.hosts.iter().find_map(|(name, host)| {
            let is_host = host.addresses.iter().any(|net| net.addr() == address);
            let is_pod = self.pod(name, Family::of(address)) == Some(address);
            (is_host || is_pod).then_some(name)
        })
    }
}

fn links(addresses: &[IpNet], devices: &BTreeSet<InterfaceName>) -> BTreeMap<InterfaceName, Link> {
    let link = |kind, mtu, addresses: &[IpNet]| Link {
        mtu,
        up: true,
        kind,
        addresses: addresses.to_vec(),
    };
    let tunnels = devices
        .iter()
        .map(|name| (name.clone(), link(LinkKind::Tunnel, 1420, &[])));
    let name = |text: &str| text.parse::<InterfaceName>().expect("an interface name");
    let fixed = [
        (name("lo"), link(LinkKind::Loopback, 65536, &[])),
        (name(UNDERLAY), link(LinkKind::Underlay, 1500, addresses)),
    ];

    tunnels.chain(fixed).collect()
}

fn pools(layout: &Layout) -> Vec<IpPool> {
    let pool = |name: &str, cidr: &str, block_size| IpPool {
        name: name.into(),
        cidr: net(cidr),
        block_size,
        nat_outgoing: true,
        disabled: false,
        allowed_uses: vec![AllowedUse::Workload, AllowedUse::Tunnel],
        node_selector: "all()".into(),
        namespace_selector: String::new(),
        automatic: true,
    };
    let of = |family: &Family| match family {
        Family::V4 => pool("default-ipv4", "10.65.0.0/16", 26),
        Family::V6 => pool("default-ipv6", "fd00:65::/112", 122),
    };

    layout.families.iter().map(of).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}
