//! The whole: facts in, plan and actions out.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Action, Event, InterfaceName, Kind, Moment, NodeName, Phase, Plan, PublicKey,
    action::NodePublication,
    resource::mesh_configuration::{EstablishedConnections, UnknownPods},
    status::{PeerStatus, Status},
};

use crate::{
    Config,
    applied::Applied,
    enforce::{self, Enforcement},
    fact::{Facts, Touched},
    ledger::{Ledger, Owner, Row},
    member::Member,
    own::Own,
    phase::{Passage, Phases, Posture},
    pod::Pods,
    publish, report,
    task::Tasks,
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
    Kind::WorkloadEndpoint,
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Tier,
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::KubernetesNetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
    Kind::HostEndpoint,
    Kind::Profile,
];

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
    /// The generation of the plan that last changed anything but policy.
    mesh_generation: u64,
    pub(crate) ledger: Ledger,
    batch: Vec<(Owner, Vec<Row>)>,
    pub(crate) tasks: Tasks,
    pub(crate) pods: Pods,
    pub(crate) policy: Enforcement,
    /// Members per device and MTU of their paths.
    pub(crate) mtus: BTreeMap<(InterfaceName, u32), usize>,
    pub(crate) first_seen: BTreeMap<PublicKey, Moment>,
    kinds_in_sync: BTreeSet<Kind>,
    pub(crate) is_synced: bool,
    pub(crate) is_connected: bool,
    /// What the dataplane made of the plan.
    pub(crate) applied: Applied,
    /// The generation since which packets to and from a member are to pass as they are.
    pub(crate) decided: BTreeMap<NodeName, u64>,
    /// Members for which that was decided anew and not put into the plan yet.
    undecided: Vec<NodeName>,
    /// The next phase, and the generation of the plan that makes it true.
    pub(crate) gate: Option<(Phase, u64)>,
    /// The phase to publish; `None` before this node may say anything.
    pub(crate) stated: Option<Phase>,
    /// The publication under way.
    pub(crate) draft: Option<NodePublication>,
    pub(crate) dirty: Touched,
    pub(crate) now: Moment,
    pub(crate) effort: u64,
    /// The devices are to go: the generation of the plan without them, until it is applied.
    pub(crate) torn_down: Option<Option<u64>>,
    /// Something changed that decides what this node says or asks for.
    pub(crate) has_news: bool,
}

impl World {
    /// Creates the world of a node that has heard nothing yet.
    pub fn new(config: Config) -> Self {
        let facts = Facts::new(config.node);

        Self {
            wish: Wish::new(&facts, None),
            policy: Enforcement::new(facts.own.clone()),
            facts,
            own: Own::default(),
            members: BTreeMap::new(),
            phases: Phases::default(),
            posture: Posture::default(),
            plan: Plan::default(),
            mesh_generation: 0,
            ledger: Ledger::default(),
            batch: Vec::new(),
            tasks: Tasks::default(),
            pods: Pods::default(),
            mtus: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            kinds_in_sync: BTreeSet::new(),
            is_synced: false,
            is_connected: false,
            applied: Applied::default(),
            decided: BTreeMap::new(),
            undecided: Vec::new(),
            gate: None,
            stated: None,
            draft: None,
            dirty: Touched::nothing(),
            now: Moment::START,
            effort: 0,
            torn_down: None,
            has_news: true,
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

    /// Returns the generation of the plan that last changed anything but policy.
    pub fn mesh_generation(&self) -> u64 {
        self.mesh_generation
    }

    /// Returns what becomes of connections that policy allowed once and no longer does.
    pub fn established_connections(&self) -> EstablishedConnections {
        self.facts.mesh.established_connections
    }

    /// Returns what becomes of a container whose pod the store does not have.
    pub fn unknown_pods(&self) -> UnknownPods {
        self.facts.mesh.unknown_pods
    }

    /// Returns the next action that is due; call until there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.tasks.poll(self.now)
    }

    /// Returns when an [`Event::Tick`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let timeouts = [
            self.tasks.poll_timeout(),
            self.phases.poll_timeout(),
            self.pods.poll_timeout(),
        ];

        timeouts.into_iter().flatten().min()
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
            Event::Applied(resource) => {
                self.facts.invalid.remove(&resource.key());
                let mut touched = self.learn_policy(&resource);
                touched.merge(self.facts.insert(resource));
                touched
            }
            Event::Invalid(key, why) => self.learn_invalid(key, why),
            Event::Deleted(key) => {
                self.facts.invalid.remove(&key);
                let mut touched = self.forget_policy(&key);
                touched.merge(self.facts.remove(&key));
                touched
            }
            Event::InSync(kind) => {
                self.kinds_in_sync.insert(kind);
                if kind == Kind::WorkloadEndpoint {
                    self.publish_missing();
                }
                Touched::nothing()
            }
            Event::OutOfSync(kind) => {
                self.kinds_in_sync.remove(&kind);
                Touched::nothing()
            }
            Event::StoreConnected(is_connected) => {
                if is_connected && !self.is_connected {
                    self.tasks.hurry(self.now);
                }
                self.is_connected = is_connected;
                Touched::nothing()
            }
            Event::ServerSawUs(addresses) if self.facts.server_saw == addresses => {
                Touched::nothing()
            }
            Event::ServerSawUs(addresses) => {
                self.facts.server_saw = addresses;
                Touched::ourselves()
            }
            Event::Underlay(links) => {
                let mut touched = self.facts.set_links(links);
                touched.policy |= self.policy.set_links(&self.facts.links);
                touched
            }
            Event::Keys(keys) if self.facts.keys == keys => Touched::nothing(),
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
                self.has_news = true;
                Touched::nothing()
            }
            Event::PlanApplied(pass) => {
                self.applied.learn(pass);
                self.forget_lapsed()
            }
            Event::Firewalls(firewalls) => self.facts.set_firewalls(firewalls),
            Event::Surroundings(surroundings) => {
                self.facts.surroundings = surroundings;
                Touched::nothing()
            }
            Event::Tick => Touched::nothing(),
        }
    }

    /// An object that cannot be read counts as gone; but settings and policy stay as they were, because
    /// nobody switches encryption off, or opens a pod, by a typing error.
    fn learn_invalid(&mut self, key: model::ObjectKey, why: String) -> Touched {
        let is_setting = matches!(key.kind, Kind::FelixConfiguration | Kind::MeshConfiguration);
        let touched = if is_setting {
            Touched::everything()
        } else if enforce::is_kept(key.kind) {
            Touched::nothing()
        } else {
            let mut touched = self.forget_policy(&key);
            touched.merge(self.facts.remove(&key));
            touched
        };
        self.facts.invalid.insert(key, why);

        touched
    }

    /// Follows what was touched until nothing is left to do.
    fn settle(&mut self) {
        // In the middle of a list that is told again, our own record may stand before older ones.
        if !WATCHED.iter().all(|kind| self.kinds_in_sync.contains(kind)) {
            return;
        }
        // Whoever does not know its own links yet would tell everybody that it has no address: its
        // peers would take what they send there for packets to a stranger.
        if !self.facts.knows_links {
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
        let record = self
            .facts
            .nodes
            .get(&self.facts.own)
            .and_then(|node| publish::record_of(node));
        self.stated = record.map(|record| record.phase);
        self.phases.resume(record, self.now);
        for name in self
            .facts
            .nodes
            .keys()
            .filter(|name| **name != self.facts.own)
        {
            self.phases.expect(name);
        }
    }

    /// Works out anew what concerns every member, where something of it was touched.
    fn reconsider(&mut self, touched: &mut Touched) {
        if touched.all || touched.own {
            self.has_news = true;
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
            self.torn_down = Some(None);
            self.has_news = true;
            touched.all = true;
        }
        for late in self.phases.check_laggards(self.now) {
            touched.nodes.insert(late);
        }
        let posture = self.phases.posture();
        if posture != self.posture {
            self.posture = posture;
            self.has_news = true;
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
        touched.policy |= self.policy.set_options(&wish.policy);
        self.wish = wish;
        self.own = own;
    }

    /// Brings the rows of everything that was touched up to date.
    fn follow(&mut self, touched: &Touched) {
        let mtus = self.mtus_in_use();
        if touched.all {
            let known = self.members.keys().chain(self.facts.nodes.keys());
            for name in known.cloned().collect::<BTreeSet<_>>() {
                self.refresh(&name);
            }
            let former = self.ledger.owners(|owner| matches!(owner, Owner::Block(_)));
            let former = former.into_iter().filter_map(|owner| match owner {
                Owner::Block(cidr) => Some(cidr),
                Owner::Base | Owner::Node(_) | Owner::Led | Owner::Pod(_) => None,
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
        let moved = mtus != self.mtus_in_use();
        if touched.all || touched.own || moved {
            self.refresh_base();
        }
        if touched.all || moved {
            self.replace_pods();
        }
        self.commit();
    }

    /// Writes rows, together with all that is written until [`commit`](Self::commit).
    pub(crate) fn write(&mut self, owner: Owner, rows: Vec<Row>) {
        self.effort += rows.len() as u64;
        self.batch.push((owner, rows));
    }

    /// Notes that packets to and from a member pass in another way from the next
    /// [`commit`](Self::commit) on.
    pub(crate) fn decide(&mut self, name: &NodeName) {
        self.undecided.push(name.clone());
    }

    /// Puts what was written into the plan.
    pub(crate) fn commit(&mut self) {
        let before = self.plan.generation;
        self.ledger
            .replace(&mut self.plan, std::mem::take(&mut self.batch));
        if self.plan.generation != before {
            self.mesh_generation = self.plan.generation;
        }
        if self.is_synced {
            self.effort += self.policy.write(&mut self.plan);
        }
        let generation = self.plan.generation;
        let decided = self.undecided.drain(..).map(|name| (name, generation));
        self.decided.extend(decided);
    }
}
