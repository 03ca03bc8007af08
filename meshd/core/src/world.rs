//! The whole: facts in, plan and actions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;
use model::{
    Action, Event, Family, InterfaceName, Kind, Moment, NodeName, Phase, Plan, PublicKey,
    action::NodePublication,
    constant::TUNNEL_MARK,
    plan::{Peer, Tunnel},
    status::{PeerStatus, Status},
};

use crate::{
    Config,
    fact::{Facts, Touched},
    guard::{self, Sends},
    ledger::{Ledger, Owner, Row},
    member::{Judge, Member},
    mtu,
    own::Own,
    phase::{Passage, Phases, Posture, Standing},
    pod::Pods,
    pool, publish, report, route,
    task::{TaskKey, Tasks},
    wish::Wish,
};

/// The kinds that the brain listens to; it plans nothing before each of them is in sync.
pub const WATCHED: &[Kind] = &[
    Kind::Node,
    Kind::IPPool,
    Kind::IPAMBlock,
    Kind::FelixConfiguration,
    Kind::MeshConfiguration,
    Kind::KeyClaim,
    Kind::AddressClaim,
];

/// How long a record waits that was written before and does not stand in the store as it was written.
const REWRITE: Duration = Duration::from_secs(5);

/// How often an event may make the world reconsider everything before it rests.
///
/// Each round is caused by a step of the phases, of which there are four.
const ROUNDS: usize = 8;

/// Everything this node knows about the cluster, and what follows from it.
///
/// Feed it with [`apply`](Self::apply); then look at [`plan`](Self::plan), call
/// [`poll_action`](Self::poll_action) until it has nothing, and come back at
/// [`poll_timeout`](Self::poll_timeout) with [`Event::Tick`].
///
/// Assumes of its sources: objects of one kind arrive in the order in which the store took them;
/// [`Event::Underlay`] lists tunnel devices too, once they exist; the keys of [`Event::Keys`] are
/// those of the IPv4 device and the IPv6 device; pods that were there before a restart are requested
/// again before the last kind of [`WATCHED`] is in sync.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) facts: Facts,
    pub(crate) wish: Wish,
    pub(crate) own: Own,
    pub(crate) members: BTreeMap<NodeName, (Member, Passage)>,
    pub(crate) phases: Phases,
    pub(crate) posture: Posture,
    pub(crate) plan: Plan,
    pub(crate) ledger: Ledger,
    pub(crate) tasks: Tasks,
    pub(crate) pods: Pods,
    /// Members per device and MTU of their paths.
    mtus: BTreeMap<(InterfaceName, u32), usize>,
    pub(crate) first_seen: BTreeMap<PublicKey, Moment>,
    kinds_in_sync: BTreeSet<Kind>,
    pub(crate) is_synced: bool,
    pub(crate) is_connected: bool,
    /// The newest generation that the dataplane saw, and what it could not apply.
    pub(crate) applied: Option<(u64, BTreeMap<String, String>)>,
    /// The next phase, and the generation of the plan that makes it true.
    gate: Option<(Phase, u64)>,
    /// The phase to publish; `None` before this node may say anything.
    stated: Option<Phase>,
    /// The publication under way.
    draft: Option<NodePublication>,
    dirty: Touched,
    pub(crate) now: Moment,
    effort: u64,
}

impl World {
    /// Creates the world of a node that has heard nothing yet.
    pub fn new(config: Config) -> Self {
        let facts = Facts::new(config.node);

        Self {
            wish: Wish::new(&facts, None),
            facts,
            own: Own::default(),
            members: BTreeMap::new(),
            phases: Phases::default(),
            posture: Posture::default(),
            plan: Plan::default(),
            ledger: Ledger::default(),
            tasks: Tasks::default(),
            pods: Pods::default(),
            mtus: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            kinds_in_sync: BTreeSet::new(),
            is_synced: false,
            is_connected: false,
            applied: None,
            gate: None,
            stated: None,
            draft: None,
            dirty: Touched::nothing(),
            now: Moment::START,
            effort: 0,
        }
    }

    /// Learns something, and brings plan and actions up to date.
    pub fn apply(&mut self, event: Event, now: Moment) {
        self.now = self.now.max(now);
        let touched = self.learn(event);
        self.dirty.merge(touched);
        self.settle();
    }

    /// Returns the plan. The dataplane takes its changes; nobody else writes to it.
    pub fn plan(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// Returns the next action that is due; call until there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.tasks.poll(self.now)
    }

    /// Returns when an [`Event::Tick`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        [self.tasks.poll_timeout(), self.phases.poll_timeout()].into_iter().flatten().min()
    }

    /// Returns what the agent says about itself.
    pub fn status(&self, now: Moment) -> Status {
        report::status(self, now)
    }

    /// Returns what the agent says about each peer; devices' counters are the caller's to add.
    pub fn peers(&self, now: Moment) -> Vec<PeerStatus> {
        report::peers(self, now)
    }

    /// Returns how many nodes were judged and rows computed so far: the measure of an event's cost.
    pub fn effort(&self) -> u64 {
        self.effort
    }

    fn learn(&mut self, event: Event) -> Touched {
        match event {
            Event::Applied(resource) => self.facts.insert(resource),
            Event::Invalid(key, why) => self.learn_invalid(key, why),
            Event::Deleted(key) => {
                self.facts.invalid.remove(&key);
                self.facts.remove(&key)
            }
            Event::InSync(kind) => {
                self.kinds_in_sync.insert(kind);
                Touched::nothing()
            }
            Event::OutOfSync(kind) => {
                self.kinds_in_sync.remove(&kind);
                Touched::nothing()
            }
            Event::StoreConnected(is_connected) => {
                self.is_connected = is_connected;
                Touched::nothing()
            }
            Event::ServerSawUs(addresses) => {
                self.facts.server_saw = addresses;
                Touched::ourselves()
            }
            Event::Underlay(links) => self.facts.set_links(links),
            Event::Keys(keys) => {
                self.facts.keys = keys;
                Touched::everything()
            }
            Event::Handshake { device, peer } => self.facts.add_handshake(device, peer),
            Event::PodRequested(request) => self.request_pod(request),
            Event::PodReleased(pod) => self.release_pod(&pod),
            Event::ActionDone(id, result) => {
                if let Some(ended) = self.tasks.end(id, result, self.now) {
                    self.end_pod_task(ended);
                }
                Touched::nothing()
            }
            Event::PlanApplied { generation, failures } => {
                self.applied = Some((generation, failures));
                Touched::nothing()
            }
            Event::Tick => Touched::nothing(),
        }
    }

    /// An object that cannot be read counts as gone; but settings stay as they were, because
    /// nobody switches encryption off by a typing error.
    fn learn_invalid(&mut self, key: model::ObjectKey, why: String) -> Touched {
        let is_setting = matches!(key.kind, Kind::FelixConfiguration | Kind::MeshConfiguration);
        let touched =
            if is_setting { Touched::everything() } else { self.facts.remove(&key) };
        self.facts.invalid.insert(key, why);

        touched
    }

    /// Follows what was touched until nothing is left to do.
    fn settle(&mut self) {
        // In the middle of a list that is told again, our own record may stand before older ones.
        if !WATCHED.iter().all(|kind| self.kinds_in_sync.contains(kind)) {
            return;
        }
        if !self.is_synced {
            self.begin();
        }
        for _ in 0..ROUNDS {
            let mut touched = std::mem::take(&mut self.dirty);
            self.reconsider(&mut touched);
            if touched.is_nothing() {
                break;
            }
            self.follow(&touched);
        }
        self.advance_pods();
        self.step();
    }

    /// Begins to plan once everything that the store held was seen.
    fn begin(&mut self) {
        self.is_synced = true;
        self.plan.in_sync = true;
        self.plan.generation += 1;
        self.dirty = Touched::everything();
        let record = self.facts.nodes.get(&self.facts.own).and_then(|node| publish::record_of(node));
        self.stated = record.map(|record| record.phase);
        self.phases.resume(self.stated, self.now);
        for name in self.facts.nodes.keys().filter(|name| **name != self.facts.own) {
            self.phases.expect(name);
        }
    }

    /// Works out anew what concerns every member, where something of it was touched.
    fn reconsider(&mut self, touched: &mut Touched) {
        if touched.all || touched.own {
            self.reconsider_own(touched);
        }
        let node = self.facts.nodes.get(&self.facts.own);
        let has_record = node.is_some_and(|node| node.record.is_some());
        if let Some(record) = node.and_then(|node| publish::record_of(node)) {
            self.phases.confirm(record.epoch, self.now);
        }
        self.phases.wish(self.wish.wanted, has_record, self.now);
        if self.phases.ends() {
            self.facts.handshakes.clear();
            touched.all = true;
        }
        for late in self.phases.check_laggards(self.now) {
            touched.nodes.insert(late);
        }
        let posture = self.phases.posture();
        if posture != self.posture {
            self.posture = posture;
            touched.all = true;
        }
    }

    fn reconsider_own(&mut self, touched: &mut Touched) {
        let wish = Wish::new(&self.facts, Some(&self.wish));
        let own = Own::new(&self.facts, &wish);
        let concerns_members = wish != self.wish
            || own.devices != self.own.devices
            || own.addresses != self.own.addresses
            || own.granted != self.own.granted;
        touched.all |= concerns_members;
        self.wish = wish;
        self.own = own;
    }

    /// Brings the rows of everything that was touched up to date.
    fn follow(&mut self, touched: &Touched) {
        let mtu = self.pod_mtu();
        if touched.all {
            let known = self.members.keys().chain(self.facts.nodes.keys());
            for name in known.cloned().collect::<BTreeSet<_>>() {
                self.refresh(&name);
            }
            let former = self.ledger.owners(|owner| matches!(owner, Owner::Block(_)));
            let former = former.into_iter().filter_map(|owner| match owner {
                Owner::Block(cidr) => Some(cidr),
                Owner::Base | Owner::Node(_) | Owner::Pod(_) => None,
            });
            let blocks = former.chain(self.facts.blocks.keys().copied());
            for cidr in blocks.collect::<BTreeSet<_>>() {
                self.refresh_block(cidr);
            }
        } else {
            for name in &touched.nodes {
                self.refresh(name);
            }
            for cidr in &touched.blocks {
                self.refresh_block(*cidr);
            }
        }
        let moved = mtu != self.pod_mtu();
        if touched.all || touched.own || moved {
            self.refresh_base();
        }
        if touched.all || moved {
            self.replace_pods();
        }
    }

    /// Judges one node again and replaces its rows.
    fn refresh(&mut self, name: &NodeName) {
        self.effort += 1;
        let judge = Judge { facts: &self.facts, wish: &self.wish, own: &self.own };
        let judged = judge.judge(name);
        let former = self.members.remove(name).map(|(member, _)| member);
        self.recount_mtus(former.as_ref(), judged.as_ref());
        self.forget_handshakes(former.as_ref(), judged.as_ref());
        let Some(member) = judged else {
            self.phases.part(name);
            self.write(Owner::Node(name.clone()), Vec::new());
            return;
        };
        for carrier in member.carriers.values() {
            self.first_seen.entry(carrier.key).or_insert(self.now);
        }
        let standing = self.standing(&member);
        let passage = self.phases.meet(name, standing, self.posture, self.now);
        let rows = self.rows_of(&member, passage);
        self.write(Owner::Node(name.clone()), rows);
        self.members.insert(name.clone(), (member, passage));
    }

    pub(crate) fn standing(&self, member: &Member) -> Standing {
        let shook = |carrier: &crate::member::Carrier| {
            self.facts.handshakes.contains(&(carrier.device.clone(), carrier.key))
        };
        let has_carrier = !member.carriers.is_empty();
        let reached = has_carrier && member.carriers.values().all(shook);
        let phase = match (member.is_stock, reached) {
            (false, _) => member.phase,
            (true, true) => Phase::Sending,
            (true, false) => Phase::Off,
        };
        let may_stay_plain = self.wish.permits_plain() && (member.is_stock || !has_carrier);

        Standing { phase, has_carrier, reached, is_stock: member.is_stock, may_stay_plain }
    }

    /// Returns how packets to a member's pods and to its own addresses leave, in one family.
    pub(crate) fn sends(
        &self,
        member: &Member,
        passage: Passage,
        family: Family,
    ) -> (Sends, Sends) {
        if !passage.switched {
            return (Sends::Plain, Sends::Plain);
        }
        let without = if self.wish.permits_plain() { Sends::Plain } else { Sends::Nothing };
        let pods =
            if member.carriers.contains_key(&family) { Sends::Tunnel } else { without };
        // A stock node takes pods' packets to its own address in plaintext only.
        let hosts = if member.is_stock { without } else { pods };

        (pods, hosts)
    }

    fn rows_of(&self, member: &Member, passage: Passage) -> Vec<Row> {
        let mut rows = route::plain(&self.facts, member);
        rows.extend(guard::member_hosts(member, self.posture.up));
        if !self.posture.up {
            return rows;
        }
        for family in Family::BOTH.into_iter().filter(|family| self.wish.covers(*family)) {
            let (pods, hosts) = self.sends(member, passage, family);
            let mtu = self.device_mtu_for(family);
            rows.extend(route::to_member(&self.facts, &self.own, member, family, pods, hosts, mtu));
            rows.extend(guard::exceptions(member, family, pods, hosts, passage.takes_plain));
        }
        rows.extend(self.peers_of(member));

        rows
    }

    /// Returns the WireGuard peers that a member is: one for each of its keys.
    fn peers_of(&self, member: &Member) -> Vec<Row> {
        let mut peers: BTreeMap<(InterfaceName, PublicKey), Peer> = BTreeMap::new();
        for (family, carrier) in &member.carriers {
            let of_family = |net: &IpNet| Family::of_net(net) == *family;
            let blocks = member.blocks.iter().copied().filter(of_family);
            let hosts = member.hosts.iter().filter(|_| !member.is_stock);
            let hosts = hosts.map(|host| model::family::host_net(*host)).filter(of_family);
            let key = (carrier.device.clone(), carrier.key);
            let peer = peers.entry(key).or_insert_with(|| Peer {
                endpoint: carrier.endpoint,
                keepalive: self.wish.keepalive,
                allowed_ips: BTreeSet::new(),
            });
            peer.allowed_ips.extend(blocks.chain(hosts));
        }

        peers.into_iter().map(|(key, peer)| Row::Peer(key, peer)).collect()
    }

    /// Guards a block whose pool is disabled, for as long as it exists.
    fn refresh_block(&mut self, cidr: IpNet) {
        let is_guarded_alone = self.facts.blocks.contains_key(&cidr)
            && pool::of_block(&self.facts, cidr).is_ok_and(|pool| pool.disabled);
        let mut rows = Vec::new();
        if is_guarded_alone {
            let is_up = self.posture.up && self.wish.covers(Family::of_net(&cidr));
            rows.extend(guard::lone_block(cidr, self.posture.up));
            rows.extend(is_up.then(|| route::of_lone_block(cidr)));
        }
        self.write(Owner::Block(cidr), rows);
    }

    /// Replaces what this node has by itself: chains, rules, devices, own routes.
    fn refresh_base(&mut self) {
        let mut rows = guard::always(&self.facts, &self.own);
        rows.extend(route::of_own_blocks(&self.own));
        rows.extend(self.forwarding());
        if self.posture.up {
            rows.extend(guard::barriers(&self.facts, &self.wish, &self.own));
            rows.extend(route::of_guard(&self.facts, &self.wish, &self.own));
            rows.extend(self.devices());
            rows.extend(self.reverse_paths());
        }
        self.write(Owner::Base, rows);
    }

    fn devices(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for device in &self.own.devices {
            let name = &device.wish.name;
            let tunnel = Tunnel {
                key: device.key,
                port: device.wish.port,
                mark: TUNNEL_MARK,
                mtu: self.device_mtu(&device.wish),
                backend: self.wish.backend,
            };
            rows.push(Row::Tunnel(name.clone(), tunnel));
            for family in &device.wish.families {
                if let Some(address) = self.own.tunnel_addresses.get(family) {
                    rows.push(Row::Address(name.clone(), model::family::host_net(*address)));
                }
            }
            if self.facts.links.contains_key(name) {
                let is = |key: &str, value: &str| Row::Sysctl(key.to_owned(), value.to_owned());
                rows.push(is(&format!("net/ipv4/conf/{name}/rp_filter"), "2"));
                rows.push(is(&format!("net/ipv6/conf/{name}/accept_ra"), "0"));
            }
        }

        rows
    }

    /// While a node switches, packets of one connection come and go by different devices.
    fn reverse_paths(&self) -> Vec<Row> {
        if self.phases.confirmed() == Phase::Enforced && self.wish.wanted {
            return Vec::new();
        }
        let links = self.facts.links.iter();
        let links = links.filter(|(_, link)| link.kind == model::event::LinkKind::Underlay);

        links
            .map(|(name, _)| Row::Sysctl(format!("net/ipv4/conf/{name}/rp_filter"), "2".into()))
            .collect()
    }

    fn forwarding(&self) -> Vec<Row> {
        let has = |family| {
            let mut pools = self.facts.pools.values().filter(|pool| pool::serves_pods(pool));
            pools.any(|pool| Family::of_net(&pool.cidr) == family)
        };
        let mut rows = Vec::new();
        if has(Family::V4) {
            rows.push(Row::Sysctl("net/ipv4/ip_forward".into(), "1".into()));
        }
        if has(Family::V6) {
            rows.push(Row::Sysctl("net/ipv6/conf/all/forwarding".into(), "1".into()));
        }

        rows
    }

    pub(crate) fn write(&mut self, owner: Owner, rows: Vec<Row>) {
        self.effort += rows.len() as u64;
        self.ledger.replace(&mut self.plan, &owner, rows);
    }

    /// Returns the MTU that pods get: the tunnels', also while nothing is encrypted, so that a
    /// switch changes nothing for them.
    pub(crate) fn pod_mtu(&self) -> u32 {
        let devices = self.wish.devices.iter().map(|device| self.device_mtu(device));

        devices.min().unwrap_or_else(|| mtu::without_peers(&self.facts.links))
    }

    pub(crate) fn device_mtu(&self, device: &crate::wish::DeviceWish) -> u32 {
        let first = (device.name.clone(), 0);
        let last = (device.name.clone(), u32::MAX);
        let smallest = self.mtus.range(first..=last).next().map(|((_, mtu), _)| *mtu);

        device.mtu.or(smallest).unwrap_or_else(|| mtu::without_peers(&self.facts.links))
    }

    fn device_mtu_for(&self, family: Family) -> u32 {
        self.wish.device_for(family).map_or(u32::MAX, |device| self.device_mtu(device))
    }

    fn recount_mtus(&mut self, former: Option<&Member>, member: Option<&Member>) {
        let key = |c: &crate::member::Carrier| (c.device.clone(), c.mtu);
        for carrier in member.iter().flat_map(|member| member.carriers.values()) {
            *self.mtus.entry(key(carrier)).or_default() += 1;
        }
        for carrier in former.iter().flat_map(|member| member.carriers.values()) {
            let key = key(carrier);
            if let Some(count) = self.mtus.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.mtus.remove(&key);
                }
            }
        }
    }

    /// A peer that is taken out has to prove itself again when it comes back.
    fn forget_handshakes(&mut self, former: Option<&Member>, member: Option<&Member>) {
        let still = |carrier: &crate::member::Carrier| {
            member.is_some_and(|member| {
                let mut carriers = member.carriers.values();
                carriers.any(|c| (&c.device, c.key) == (&carrier.device, carrier.key))
            })
        };
        for carrier in former.iter().flat_map(|member| member.carriers.values()) {
            if !still(carrier) {
                self.facts.handshakes.remove(&(carrier.device.clone(), carrier.key));
                self.first_seen.remove(&carrier.key);
            }
        }
    }

    /// Decides what to say and what to ask for, now that the plan is settled.
    fn step(&mut self) {
        self.choose_phase();
        self.write_record();
        let wanted = publish::claims(&self.facts, &self.wish, &self.own);
        let keys = wanted.iter().map(|(key, _)| key.clone()).collect::<BTreeSet<_>>();
        self.tasks.forget_all(|key| match key {
            TaskKey::Pod(..) | TaskKey::Publish => false,
            TaskKey::ClaimKey(_)
            | TaskKey::ClaimAddress(_)
            | TaskKey::ClaimBlock(_)
            | TaskKey::TunnelAddress(_) => !keys.contains(key),
        });
        for (key, kind) in wanted {
            self.tasks.ensure(key, kind, self.now);
        }
    }

    /// States the next phase once what it promises is in the kernel.
    fn choose_phase(&mut self) {
        if self.stated.is_none() && !self.wish.wanted && self.knows_its_addresses() {
            self.stated = Some(Phase::Off);
        }
        let goal = self.phases.goal().filter(|goal| self.is_prepared(*goal));
        self.gate = match (goal, self.gate) {
            (Some(goal), Some((phase, generation))) if goal == phase => Some((goal, generation)),
            (Some(goal), _) => Some((goal, self.plan.generation)),
            (None, _) => None,
        };
        if let Some((phase, generation)) = self.gate
            && self.has_applied(generation)
        {
            self.stated = Some(phase);
        }
    }

    /// Returns whether the machine matches at least this generation of the plan.
    pub(crate) fn has_applied(&self, generation: u64) -> bool {
        self.applied
            .as_ref()
            .is_some_and(|(applied, failures)| *applied >= generation && failures.is_empty())
    }

    fn is_prepared(&self, goal: Phase) -> bool {
        if goal <= Phase::Leaving || self.phases.confirmed() >= Phase::Accepting {
            return true;
        }
        let has_devices = self.wish.devices.len() == self.own.devices.len();
        let are_up = self.wish.devices.iter().all(|d| self.facts.links.contains_key(&d.name));
        let missing = publish::missing_tunnel_addresses(&self.facts, &self.wish, &self.own);
        let are_refused = missing.iter().all(|family| self.is_tunnel_address_refused(*family));

        has_devices && are_up && are_refused && !self.own.granted.is_empty()
    }

    fn is_tunnel_address_refused(&self, family: Family) -> bool {
        let is_about = |key: &TaskKey| match key {
            TaskKey::TunnelAddress(of) => *of == family,
            TaskKey::ClaimBlock(pool) => Family::of_net(pool) == family,
            TaskKey::ClaimKey(_) | TaskKey::ClaimAddress(_) => false,
            TaskKey::Publish | TaskKey::Pod(..) => false,
        };

        self.tasks.refusals().any(|(key, _)| is_about(key))
    }

    /// Nothing is left to be granted: one write of the record says it all.
    fn knows_its_addresses(&self) -> bool {
        let is_settled = |address: &std::net::IpAddr| {
            self.facts.address_claims.contains_key(address)
                || self.tasks.refusal(&TaskKey::ClaimAddress(*address)).is_some()
        };

        !self.own.candidates.is_empty() && self.own.candidates.iter().all(is_settled)
    }

    /// Writes the record when the store shows another one.
    fn write_record(&mut self) {
        let Some(phase) = self.stated else {
            return;
        };
        let mut wanted = publish::publication(&self.facts, &self.wish, &self.own, phase);
        let node = self.facts.nodes.get(&self.facts.own);
        let is_settled = self.phases.epoch_under_way().is_none();
        if is_settled && publish::is_published(node.map(|node| &**node), &wanted) {
            self.draft = None;
            self.tasks.forget(&TaskKey::Publish);
            return;
        }
        let seen = node.and_then(|node| publish::record_of(node)).map_or(0, |record| record.epoch);
        let last = self.draft.as_ref().map_or(0, |draft| draft.record.epoch);
        wanted.record.epoch = last;
        let is_repeated = self.draft.as_ref() == Some(&wanted);
        if is_repeated && seen < last {
            return;
        }
        // Somebody else writes what we write: do not race with it.
        let at = if is_repeated { self.now + REWRITE } else { self.now };
        wanted.record.epoch = seen.max(last).max(self.phases.epoch_under_way().unwrap_or(0)) + 1;
        self.phases.state(wanted.record.epoch, phase);
        self.draft = Some(wanted.clone());
        let kind = model::ActionKind::PublishNode(Box::new(wanted));
        self.tasks.ensure(TaskKey::Publish, kind, at);
    }
}
