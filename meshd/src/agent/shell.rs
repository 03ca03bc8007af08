//! The loop: one task that owns the brain and the hands.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use dataplane::{Component, Dataplane, KernelEvent, PeerStatistics, Report};
use futures::StreamExt;
use meshd_core::{WATCHED, World};
use model::{
    Action, ActionId, ActionKind, ActionResult, Event, Moment, NodeName, Object, ObjectKey, Pass,
    Plan, PodName, PublicKey, Resource,
    action::PodAnswer,
    cni::{AttachmentKey, Failure},
    event::PodRequest,
    status::{Held, PeerStatus, Status},
};
use store::{Client, StoreEvent};
use tokio::{
    sync::{mpsc, oneshot},
    task::block_in_place,
};

use super::{
    api::Ask,
    cni::{Examined, Known},
    connection::Connections,
    executor::Executor,
    held::HeldRevisions,
    ipam::view::WATCHED_FOR_IPAM,
    metrics::{self, Counters},
    pods::PodFile,
    recording::Recorder,
};
use crate::{former::FormerSettings, guard::LastGood, memory};

/// How many store events are taken in before the plan is applied.
const BATCH: usize = 4096;

/// How often the server is asked from where it sees us.
const HELLO_INTERVAL: Duration = Duration::from_secs(30);

/// Rows of nftables that one pass brings in or takes away, from which on what it took is given back to the machine.
const LARGE_PASS: usize = 1000;

/// How long after it: until the thread that judges connections is done with it, too.
const GIVE_BACK_AFTER: Duration = Duration::from_millis(100);

/// The parts of a running agent.
pub(crate) struct Shell {
    started: Instant,
    world: World,
    dataplane: Dataplane,
    client: Client,
    executor: Executor,
    recorder: Option<Recorder>,
    state: PathBuf,
    pods: PodFile,
    asked: BTreeMap<PodName, Vec<oneshot::Sender<Result<PodAnswer, String>>>>,
    held: HeldRevisions,
    connections: Connections,
    counters: Counters,
    results: mpsc::UnboundedSender<(ActionId, ActionResult)>,
    ended: mpsc::UnboundedReceiver<(ActionId, ActionResult)>,
    last_good: LastGood,
    /// The generation of the mesh's rows of which it is.
    guarded: u64,
    /// None where what was noted cannot be read: it is left to be mended.
    former: Option<FormerSettings>,
    /// The last pass over the plan; `None` when it says nothing any more.
    applied: Option<Report>,
    /// What the brain was told last of a pass.
    told: Option<Pass>,
    /// When to give back what is free: something large was done.
    give_back_at: Option<Instant>,
}

impl Shell {
    /// Puts the parts together.
    pub(crate) fn new(
        node: NodeName,
        world: World,
        dataplane: Dataplane,
        client: Client,
        recorder: Option<Recorder>,
        state: PathBuf,
    ) -> anyhow::Result<Self> {
        let (results, ended) = mpsc::unbounded_channel();
        let counters = Counters::new().context("could not make the metrics")?;
        let former = FormerSettings::open(&state)
            .inspect_err(|error| tracing::warn!(%error, "Settings are not noted for an uninstall"))
            .ok();
        let last_good = LastGood::load(&state).unwrap_or_else(|unreadable| {
            let reason = format!("{:#}", anyhow::Error::new(unreadable));
            tracing::warn!(reason, "The last good guard is not adopted");
            None
        });

        Ok(Self {
            started: Instant::now(),
            executor: Executor::new(node, client.clone()),
            world,
            dataplane,
            client,
            recorder,
            pods: PodFile::open(state.join("pods.json"))?,
            state,
            asked: BTreeMap::new(),
            held: HeldRevisions::default(),
            connections: Connections::start(counters.connections.clone())?,
            counters,
            results,
            ended,
            last_good: last_good.unwrap_or_default(),
            guarded: 0,
            former,
            applied: None,
            told: None,
            give_back_at: None,
        })
    }

    /// Runs until a source ends, which none should.
    pub(crate) async fn run(
        mut self,
        keys: Vec<PublicKey>,
        mut asks: mpsc::Receiver<Ask>,
    ) -> anyhow::Result<()> {
        let mut kernel = self
            .dataplane
            .events()
            .context("could not watch the kernel")?;
        let mut store = self
            .client
            .watch_all(&[WATCHED, &WATCHED_FOR_IPAM[..]].concat());
        let mut hello = tokio::time::interval(HELLO_INTERVAL);
        let (greetings, mut greeted) = mpsc::unbounded_channel();

        self.tell(Event::Keys(keys))?;
        for pod in self.pods.dead() {
            self.tell(Event::PodReleased(pod.clone()))?;
            self.pods.remove(&pod)?;
        }
        for pod in self.pods.alive() {
            self.tell(Event::PodRequested(pod))?;
        }

        loop {
            let wake = self.wake_at();
            tokio::select! {
                Some(event) = store.next() => {
                    self.store_event(event, &greetings)?;
                    self.store_batch(&mut store, &greetings)?;
                }
                Some(event) = kernel.recv() => self.kernel_event(event)?,
                Some(ask) = asks.recv() => self.answer(ask)?,
                Some((id, result)) = self.ended.recv() => self.tell(Event::ActionDone(id, result))?,
                Some(source) = greeted.recv() => self.tell(Event::ServerSawUs(source))?,
                _ = hello.tick() => self.greet(&greetings),
                () = tokio::time::sleep_until(wake.into()) => self.tick()?,
                else => anyhow::bail!("every source of the agent ended"),
            }
            self.settle()?;
        }
    }

    /// Takes in what the store has ready, so that a burst is planned once.
    fn store_batch(
        &mut self,
        store: &mut (impl futures::Stream<Item = StoreEvent> + Unpin),
        greetings: &mpsc::UnboundedSender<Vec<std::net::IpAddr>>,
    ) -> anyhow::Result<()> {
        for _ in 1..BATCH {
            let Some(Some(event)) = futures::FutureExt::now_or_never(store.next()) else {
                break;
            };
            self.store_event(event, greetings)?;
        }

        Ok(())
    }

    fn store_event(
        &mut self,
        event: StoreEvent,
        greetings: &mpsc::UnboundedSender<Vec<std::net::IpAddr>>,
    ) -> anyhow::Result<()> {
        match event {
            StoreEvent::Applied(object) => {
                self.executor.view().applied(&object);
                self.held.applied(&object);
                if WATCHED_FOR_IPAM.contains(&object.kind) {
                    return Ok(());
                }
                self.tell(parsed(&object))
            }
            StoreEvent::Deleted(key) => {
                self.executor.view().forget(&key);
                self.held.deleted(&key);
                if WATCHED_FOR_IPAM.contains(&key.kind) {
                    return Ok(());
                }
                self.tell(Event::Deleted(key))
            }
            StoreEvent::InSync(kind) => {
                self.executor.view().completed(kind);
                self.tell(Event::InSync(kind))
            }
            StoreEvent::OutOfSync(kind) => self.tell(Event::OutOfSync(kind)),
            StoreEvent::Connected(connected) => {
                if connected {
                    self.greet(greetings);
                }
                self.tell(Event::StoreConnected(connected))
            }
        }
    }

    fn kernel_event(&mut self, event: KernelEvent) -> anyhow::Result<()> {
        match event {
            KernelEvent::Underlay(links) => {
                self.client.addresses_changed();
                self.tell(Event::Underlay(links))
            }
            KernelEvent::Firewalls(firewalls) => self.tell(Event::Firewalls(firewalls)),
            KernelEvent::Surroundings(found) => self.tell(Event::Surroundings(found)),
            KernelEvent::Handshake { device, peer } => self.tell(Event::Handshake { device, peer }),
            KernelEvent::Drift(component) => {
                tracing::debug!(
                    component = component.name(),
                    "Somebody changed what is ours"
                );
                if component == Component::Nft {
                    self.connections.note_damage();
                }
                self.dataplane.distrust(component);
                self.applied = None;

                Ok(())
            }
        }
    }

    /// Asks the server, beside the loop, from which addresses it sees us.
    fn greet(&self, greetings: &mpsc::UnboundedSender<Vec<std::net::IpAddr>>) {
        let (client, greetings) = (self.client.clone(), greetings.clone());
        tokio::spawn(async move {
            match client.sources().await {
                Ok(sources) => drop(greetings.send(sources.into_iter().collect())),
                Err(error) => {
                    tracing::debug!(%error, "The server did not say from where it sees us")
                }
            }
        });
    }

    /// It is time for what waits.
    fn tick(&mut self) -> anyhow::Result<()> {
        if self.give_back_at.is_some_and(|at| at <= Instant::now()) {
            self.give_back_at = None;
            self.world.plan().compact();
            self.dataplane.compact();
            memory::give_back();
        }

        self.tell(Event::Tick)
    }

    fn tell(&mut self, event: Event) -> anyhow::Result<()> {
        let now = self.now();
        if let Some(recorder) = &mut self.recorder {
            recorder.event(&event, now)?;
        }
        self.counters.events.inc();
        self.world.apply(event, now);

        Ok(())
    }

    /// Brings the machine up to date and carries out actions, until neither changes the other.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.connections.set(self.world.established_connections());
        loop {
            while let Some(action) = self.world.poll_action() {
                if let Some(recorder) = &mut self.recorder {
                    recorder.action(&action, Moment::after_start(self.started.elapsed()))?;
                }
                self.carry_out(action)?;
            }
            if !self.is_due() {
                return Ok(());
            }
            self.apply_plan()?;
        }
    }

    /// Nothing is programmed before the sources are in sync: until then the kernel keeps what it has.
    fn is_due(&mut self) -> bool {
        let now = self.now();
        let plan = self.world.plan();

        plan.in_sync
            && self.applied.as_ref().is_none_or(|pass| {
                pass.generation != plan.generation || pass.retry_at.is_some_and(|at| at <= now)
            })
    }

    fn apply_plan(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        if let Some(former) = &mut self.former {
            former.note(self.world.plan().sysctls.rows())?;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.plan(self.world.plan(), now)?;
        }
        self.connections.note(self.world.plan());
        let is_large = nft_changes(self.world.plan()) >= LARGE_PASS;
        let report = block_in_place(|| self.dataplane.apply(self.world.plan(), now));
        self.connections.applied(&report);
        if is_large {
            self.will_give_back();
        }
        let is_whole = report.failures.is_empty();
        if !report.troubles().is_empty() {
            self.counters.dataplane_failures.inc();
        }
        let pass = pass(&report);
        if self.told.as_ref() != Some(&pass) {
            self.told = Some(pass.clone());
            self.tell(Event::PlanApplied(pass))?;
        }
        if is_whole {
            self.keep_guard()?;
        }
        self.applied = Some(report);

        Ok(())
    }

    /// Leaves the guard on disk for the next boot, when it changed.
    fn keep_guard(&mut self) -> anyhow::Result<()> {
        let generation = self.world.mesh_generation();
        if self.guarded == generation {
            return Ok(());
        }
        let guard = LastGood::of(self.world.plan());
        if guard != self.last_good {
            guard.save(&self.state)?;
            self.last_good = guard;
        }
        self.guarded = generation;

        Ok(())
    }

    fn carry_out(&mut self, action: Action) -> anyhow::Result<()> {
        if let ActionKind::AnswerPod(pod, answer) = action.kind {
            for reply in self.asked.remove(&pod).unwrap_or_default() {
                // A client that went away does not want the answer any more.
                drop(reply.send(answer.clone()));
            }
            return self.tell(Event::ActionDone(action.id, ActionResult::Done));
        }

        let (executor, results) = (self.executor.clone(), self.results.clone());
        tokio::spawn(async move {
            let result = executor.execute(action.kind).await;
            // The loop is gone only when the process ends.
            drop(results.send((action.id, result)));
        });

        Ok(())
    }

    fn answer(&mut self, ask: Ask) -> anyhow::Result<()> {
        let now = self.now();
        // A client that went away does not want the answer any more.
        match ask {
            Ask::Status(reply) => drop(reply.send(Box::new(self.status(now)))),
            Ask::Peers(reply) => drop(reply.send(self.peers(now))),
            Ask::Applied(held, reply) => drop(reply.send(self.missing(&held))),
            Ask::Metrics(reply) => drop(reply.send(self.metrics(now))),
            Ask::Inquire(reply) => {
                let peers = self.peers(now);
                drop(reply.send(Box::new(self.world.inquire(peers))));
                self.will_give_back();
            }
            Ask::Ready(reply) => drop(reply.send(ready(&self.status(now)))),
            Ask::AddPod(request, reply) => return self.add_pod(*request, reply),
            Ask::DeletePod(pod, reply) => {
                self.release([pod])?;
                drop(reply.send(Ok(())));
            }
            Ask::Detach(key, reply) => {
                let pod = self.pods.attached(&key).map(|found| found.pod.clone());
                self.release(pod)?;
                drop(reply.send(Ok(())));
            }
            Ask::Identify(pod, reply) => self.identify(pod, reply),
            Ask::Examine(key, reply) => drop(reply.send(self.examine(&key).map(Box::new))),
            Ask::Collect(survivors, reply) => {
                self.release(self.pods.left_over(&survivors))?;
                drop(reply.send(Ok(())));
            }
        }

        Ok(())
    }

    fn add_pod(
        &mut self,
        request: PodRequest,
        reply: oneshot::Sender<Result<PodAnswer, String>>,
    ) -> anyhow::Result<()> {
        self.pods.add(request.clone())?;
        self.asked
            .entry(request.pod.clone())
            .or_default()
            .push(reply);

        self.tell(Event::PodRequested(request))
    }

    /// Asks the store what a pod is, beside the loop.
    fn identify(&self, pod: PodName, reply: oneshot::Sender<Result<Box<Known>, Failure>>) {
        let (client, unknown) = (self.client.clone(), self.world.unknown_pods());
        tokio::spawn(async move {
            let known = Known::ask(&client, &pod, unknown).await;
            // A client that went away does not want the answer any more.
            drop(reply.send(known.map(Box::new)));
        });
    }

    /// Compares an attachment with the kernel; `None` where there is none.
    fn examine(&mut self, key: &AttachmentKey) -> Option<Examined> {
        let pod = self.pods.attached(key)?.pod.clone();
        let plan = self.world.plan();
        let row = plan.pods.rows().get(&pod).cloned();
        let differences = match &row {
            None => vec![format!("{pod} has no addresses yet")],
            Some(row) => {
                let examined = block_in_place(|| self.dataplane.examine_pod(&pod, row));
                examined.unwrap_or_else(|error| vec![format!("{:#}", anyhow::Error::new(error))])
            }
        };

        Some(Examined {
            pod,
            addresses: row.map(|row| row.addresses).unwrap_or_default(),
            differences,
        })
    }

    /// Takes pods off the machine; returns once the kernel has let go of them.
    fn release(&mut self, pods: impl IntoIterator<Item = PodName>) -> anyhow::Result<()> {
        for pod in pods {
            self.pods.remove(&pod)?;
            self.tell(Event::PodReleased(pod))?;
        }

        self.settle()
    }

    fn status(&mut self, now: Moment) -> Status {
        let mut status = self.world.status(now);
        status.version = env!("CARGO_PKG_VERSION").to_owned();
        let settled = self.applied.as_ref();
        status.converged &= settled.is_some_and(|report| report.troubles().is_empty());

        status
    }

    /// Merges what the devices count into what the brain knows.
    fn peers(&mut self, now: Moment) -> Vec<PeerStatus> {
        let counted = block_in_place(|| self.dataplane.statistics()).unwrap_or_else(|error| {
            tracing::debug!(%error, "The tunnel devices did not answer");
            Vec::new()
        });
        let counted: BTreeMap<PublicKey, PeerStatistics> = counted
            .into_iter()
            .map(|counted| (counted.peer, counted))
            .collect();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();

        let mut peers = self.world.peers(now);
        for peer in &mut peers {
            let Some(counted) = peer.key.and_then(|key| counted.get(&key)) else {
                continue;
            };
            peer.received_bytes = counted.received;
            peer.sent_bytes = counted.sent;
            peer.endpoint = counted.endpoint.or(peer.endpoint);
            peer.handshake_age_seconds = counted
                .last_handshake
                .map(|at| unix.saturating_sub(at).as_secs());
        }

        peers
    }

    fn metrics(&mut self, now: Moment) -> String {
        let (status, peers) = (self.status(now), self.peers(now));
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();

        metrics::render(&self.counters, &status, &peers, unix)
            .unwrap_or_else(|error| format!("# could not render the metrics: {error}\n"))
    }

    /// Says which objects this agent has not seen, or seen but not applied.
    fn missing(&mut self, wanted: &[Held]) -> Vec<ObjectKey> {
        let settled = !self.is_due() && self.world.status(self.now()).ready;

        if settled {
            self.held.missing(wanted)
        } else {
            wanted.iter().map(|held| held.key.clone()).collect()
        }
    }

    fn will_give_back(&mut self) {
        let at = Instant::now() + GIVE_BACK_AFTER;
        self.give_back_at.get_or_insert(at);
    }

    fn now(&self) -> Moment {
        Moment::after_start(self.started.elapsed())
    }

    /// Returns when the brain or a failed target wants to be asked again; an hour at most.
    fn wake_at(&self) -> Instant {
        let retry = self.applied.as_ref().and_then(|pass| pass.retry_at);
        let latest = self.now() + Duration::from_secs(3600);
        let at = [self.world.poll_timeout(), retry]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(latest);

        let at = self.started + at.min(latest).since_start();

        self.give_back_at.map_or(at, |early| early.min(at))
    }
}

/// Returns how many rows of nftables the next pass changes.
fn nft_changes(plan: &Plan) -> usize {
    plan.nft_elements.change_count() + plan.nft_chains.change_count()
}

fn parsed(object: &Object) -> Event {
    match Resource::try_from(object) {
        Ok(resource) => Event::Applied(resource),
        Err(error) => Event::Invalid(object.key(), error.to_string()),
    }
}

fn ready(status: &Status) -> Result<(), String> {
    if !status.in_sync {
        return Err("not in sync with the store yet".to_owned());
    }
    if let Some((target, reason)) = status.failures.first_key_value() {
        return Err(format!("{target}: {reason}"));
    }
    if let Some(missing) = status.incomplete.iter().find(|row| row.essential) {
        return Err(format!("{}: {}", missing.row, missing.reason));
    }
    if !status.ready {
        return Err("the plan was not applied yet".to_owned());
    }

    Ok(())
}

/// Returns what the brain must know of a pass.
fn pass(report: &Report) -> Pass {
    Pass {
        generation: report.generation,
        failures: report.failures.clone(),
        incomplete: report.incomplete.clone(),
        backends: report.backends.clone(),
        conflicts: report.conflicts.clone(),
    }
}
