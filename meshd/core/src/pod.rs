//! Local pods: from the request to the answer, and back.
//!
//! ```text
//! requested ─▶ addresses ─▶ rows in the kernel ─▶ endpoint in the store ─▶ namespace known ─▶ answered
//! released  ─▶ rows out of the kernel ─▶ addresses given back ─▶ endpoint removed
//! ```
//!
//! **Invariant:** an address is given back only after its rows have left the kernel, and after every
//! assignment for the pod has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use model::{
    ActionKind, ActionResult, Family, Moment, PodName,
    action::{AddressRequest, PodAnswer},
    event::PodRequest,
    family::host_net,
    plan::PodInterface,
    resource::{WorkloadEndpoint, ip_pool::AllowedUse},
};

mod way;

use crate::{
    World,
    fact::Touched,
    guard,
    ledger::{Owner, Row},
    own, pool, route,
    task::{Ended, PodTask, TaskKey},
};

/// How long a pod's answer waits for its namespace, which comes with its first endpoint. A pod without one stays
/// closed.
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(2);

/// Every local pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    pods: BTreeMap<PodName, Pod>,
    /// Pods that may go a step further.
    ready: BTreeSet<PodName>,
}

/// A local pod and how far it has come.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// What was asked for; `None` for a pod that is only to be cleaned up.
    pub(crate) request: Option<PodRequest>,
    pub(crate) handle: Option<String>,
    pub(crate) addresses: BTreeMap<Family, IpAddr>,
    pub(crate) stage: Stage,
    /// Asked for while its predecessor was still there.
    successor: Option<PodRequest>,
    /// Its endpoint went from the store while the pod is there.
    is_unpublished: bool,
}

/// How far a pod has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Addresses are looked for.
    Assigning,
    /// Its rows are in this generation of the plan.
    Placed(u64),
    /// Its endpoint is in the store; its namespace is waited for until then.
    Published(Moment),
    /// What its namespace allows is in this generation of the plan; the answer is due.
    Admitted(u64),
    /// It was answered.
    Ready,
    /// It gets no interface.
    Failed(String),
    /// Its rows are gone since this generation of the plan.
    Leaving(u64),
    /// Its addresses were given back.
    Released,
}

impl Pods {
    /// Returns the pods that have their addresses, in order.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (&PodName, &Pod)> {
        self.pods.iter().filter(|(_, pod)| pod.is_placed())
    }

    /// Returns when a pod has waited long enough.
    pub(crate) fn poll_timeout(&self) -> Option<Moment> {
        let waiting = self.ready.iter().filter_map(|name| self.pods.get(name));

        waiting
            .filter_map(|pod| match pod.stage {
                Stage::Published(until) => Some(until),
                Stage::Assigning
                | Stage::Placed(_)
                | Stage::Admitted(_)
                | Stage::Ready
                | Stage::Failed(_)
                | Stage::Leaving(_)
                | Stage::Released => None,
            })
            .min()
    }
}

impl Pod {
    fn new(request: PodRequest) -> Self {
        Self {
            handle: Some(format!("{}.{}", request.network, request.sandbox)),
            request: Some(request),
            addresses: BTreeMap::new(),
            stage: Stage::Assigning,
            successor: None,
            is_unpublished: false,
        }
    }

    fn is_placed(&self) -> bool {
        match self.stage {
            Stage::Placed(_) | Stage::Published(_) | Stage::Admitted(_) | Stage::Ready => true,
            Stage::Assigning | Stage::Failed(_) | Stage::Leaving(_) | Stage::Released => false,
        }
    }

    fn waits(&self) -> bool {
        match self.stage {
            Stage::Assigning
            | Stage::Placed(_)
            | Stage::Published(_)
            | Stage::Admitted(_)
            | Stage::Leaving(_) => true,
            Stage::Ready | Stage::Failed(_) | Stage::Released => false,
        }
    }

    fn nets(&self) -> Vec<IpNet> {
        self.addresses
            .values()
            .map(|address| host_net(*address))
            .collect()
    }
}

impl World {
    /// Takes in a request. The same sandbox is answered again, another one replaces the former.
    pub(crate) fn request_pod(&mut self, request: PodRequest) -> Touched {
        let name = request.pod.clone();
        let is_same = |pod: &Pod| {
            pod.request
                .as_ref()
                .is_some_and(|former| former.sandbox == request.sandbox)
        };
        self.pods.ready.insert(name.clone());
        let Some(pod) = self.pods.pods.get_mut(&name) else {
            self.pods.pods.insert(name, Pod::new(request));
            return Touched::nothing();
        };
        match &pod.stage {
            Stage::Ready if is_same(pod) => {
                pod.request = Some(request);
                pod.stage = Stage::Published(self.now);
                self.replace_pod(&name);
                self.commit();
            }
            Stage::Assigning | Stage::Placed(_) | Stage::Published(_) | Stage::Admitted(_)
                if is_same(pod) => {}
            Stage::Leaving(_) | Stage::Released | Stage::Failed(_) => {
                pod.successor = Some(request);
            }
            Stage::Assigning
            | Stage::Placed(_)
            | Stage::Published(_)
            | Stage::Admitted(_)
            | Stage::Ready => {
                pod.successor = Some(request);
                self.start_leaving(&name);
            }
        }

        Touched::nothing()
    }

    /// Takes in that a pod's interface is to go; also one that was set up before a restart.
    pub(crate) fn release_pod(&mut self, name: &PodName) -> Touched {
        self.pods.ready.insert(name.clone());
        if !self.pods.pods.contains_key(name) {
            let pod = Pod {
                request: None,
                handle: None,
                addresses: BTreeMap::new(),
                stage: Stage::Assigning,
                successor: None,
                is_unpublished: false,
            };
            self.pods.pods.insert(name.clone(), pod);
        }
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.successor = None;
        }
        self.start_leaving(name);

        Touched::nothing()
    }

    /// Takes in how an action for a pod ended.
    pub(crate) fn end_pod_task(&mut self, ended: Ended) {
        let TaskKey::Pod(name, task) = ended.key else {
            return;
        };
        self.pods.ready.insert(name.clone());
        let Some(pod) = self.pods.pods.get_mut(&name) else {
            return;
        };
        match (task, &pod.stage, ended.result) {
            (_, _, ActionResult::Retry(_)) => {}
            (PodTask::Assign, Stage::Assigning, ActionResult::Addresses(addresses)) => {
                let by_family = addresses.into_iter().map(|it| (Family::of(it), it));
                pod.addresses.extend(by_family);
            }
            (
                PodTask::Assign | PodTask::Publish,
                Stage::Assigning | Stage::Placed(_),
                ActionResult::Refused(why),
            ) => pod.stage = Stage::Failed(why),
            (PodTask::Publish, Stage::Placed(_), _) => {
                pod.stage = Stage::Published(self.now + NAMESPACE_PATIENCE);
            }
            (PodTask::Publish, Stage::Ready, _) => pod.is_unpublished = false,
            (PodTask::Answer, Stage::Admitted(_), _) => pod.stage = Stage::Ready,
            (PodTask::Answer, Stage::Failed(_), _) => self.start_leaving(&name),
            (PodTask::Release, Stage::Leaving(_), _) => pod.stage = Stage::Released,
            (PodTask::Remove, Stage::Released, _) => {
                self.tasks
                    .forget(&TaskKey::Pod(name.clone(), PodTask::Remove));
                let successor = self.pods.pods.remove(&name).and_then(|pod| pod.successor);
                self.pods
                    .pods
                    .extend(successor.map(|next| (name.clone(), Pod::new(next))));
                let touched = self.refresh_endpoint(&name);
                self.dirty.merge(touched);
            }
            (
                PodTask::Assign
                | PodTask::Publish
                | PodTask::Answer
                | PodTask::Release
                | PodTask::Remove,
                _,
                ActionResult::Done | ActionResult::Addresses(_) | ActionResult::Refused(_),
            ) => {}
        }
    }

    /// Takes every pod that may go on a step further.
    pub(crate) fn advance_pods(&mut self) {
        let names = std::mem::take(&mut self.pods.ready);
        for name in names {
            // Each step either ends in a stage that waits or leads to the next one.
            for _ in 0..4 {
                let before = self.pods.pods.get(&name).map(|pod| pod.stage.clone());
                self.advance_pod(&name);
                if self.pods.pods.get(&name).map(|pod| pod.stage.clone()) == before {
                    break;
                }
            }
            // Those that wait for blocks or for the kernel look again after the next event.
            if self.pods.pods.get(&name).is_some_and(Pod::waits) {
                self.pods.ready.insert(name);
            }
        }
    }

    /// Writes the rows of every pod again: MTU or state of the guard changed.
    pub(crate) fn replace_pods(&mut self) {
        let names = self
            .pods
            .placed()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>();
        for name in names {
            self.replace_pod(&name);
        }
    }

    fn advance_pod(&mut self, name: &PodName) {
        let Some(pod) = self.pods.pods.get(name).cloned() else {
            return;
        };
        let key = |task| TaskKey::Pod(name.clone(), task);
        let keep = match pod.stage {
            Stage::Assigning => return self.assign(name, &pod),
            Stage::Placed(generation) if self.has_applied_pod(generation, name) => {
                let endpoint = ActionKind::PublishEndpoint(Box::new(self.published(&pod, name)));
                self.tasks.ensure(key(PodTask::Publish), endpoint, self.now);
                Some(PodTask::Publish)
            }
            Stage::Published(until)
                if self.policy.has_namespace(&name.namespace) || until <= self.now =>
            {
                self.set_stage(name, Stage::Admitted(self.plan.generation));
                None
            }
            Stage::Admitted(generation) if self.has_applied_pod(generation, name) => {
                let answer = self.answer(&pod, name);
                let kind = ActionKind::AnswerPod(name.clone(), Ok(answer));
                self.tasks.ensure(key(PodTask::Answer), kind, self.now);
                Some(PodTask::Answer)
            }
            Stage::Failed(why) => {
                let kind = ActionKind::AnswerPod(name.clone(), Err(why));
                self.tasks.ensure(key(PodTask::Answer), kind, self.now);
                Some(PodTask::Answer)
            }
            Stage::Leaving(generation) if self.has_applied_pod(generation, name) => {
                self.give_back(name, &pod);
                Some(PodTask::Release)
            }
            Stage::Released => {
                let endpoint = WorkloadEndpoint::object_name(&self.facts.own, name);
                let kind = ActionKind::RemoveEndpoint {
                    pod: name.clone(),
                    name: endpoint,
                };
                self.tasks.ensure(key(PodTask::Remove), kind, self.now);
                Some(PodTask::Remove)
            }
            Stage::Ready if pod.is_unpublished => {
                let endpoint = ActionKind::PublishEndpoint(Box::new(self.published(&pod, name)));
                self.tasks.ensure(key(PodTask::Publish), endpoint, self.now);
                Some(PodTask::Publish)
            }
            Stage::Placed(_)
            | Stage::Published(_)
            | Stage::Admitted(_)
            | Stage::Leaving(_)
            | Stage::Ready => None,
        };
        self.forget_pod_tasks(name, keep);
    }

    fn forget_pod_tasks(&mut self, name: &PodName, keep: Option<PodTask>) {
        let all = [
            PodTask::Assign,
            PodTask::Publish,
            PodTask::Answer,
            PodTask::Release,
            PodTask::Remove,
        ];
        for task in all.into_iter().filter(|task| Some(*task) != keep) {
            self.tasks.forget(&TaskKey::Pod(name.clone(), task));
        }
    }

    /// Gives the addresses back, once no assignment is under way any more.
    fn give_back(&mut self, name: &PodName, pod: &Pod) {
        let assign = TaskKey::Pod(name.clone(), PodTask::Assign);
        if self.tasks.is_under_way(&assign) {
            return;
        }
        let handle = pod.handle.clone().or_else(|| self.handle_of(name));
        let Some(handle) = handle else {
            if let Some(pod) = self.pods.pods.get_mut(name) {
                pod.stage = Stage::Released;
            }
            return;
        };
        let kind = ActionKind::ReleaseHandle(handle);
        self.tasks
            .ensure(TaskKey::Pod(name.clone(), PodTask::Release), kind, self.now);
    }

    /// Finds the handle of a pod that an earlier run of the agent set up.
    fn handle_of(&self, name: &PodName) -> Option<String> {
        let is_pods = |attribute: &&model::resource::ipam_block::Attribute| {
            attribute.secondary.get("pod") == Some(&name.name)
                && attribute.secondary.get("namespace") == Some(&name.namespace)
        };
        let blocks = self.own.blocks.iter();
        let blocks = blocks.filter_map(|cidr| self.facts.blocks.get(cidr)?.own.as_deref());

        blocks
            .flat_map(|b| &b.attributes)
            .filter(is_pods)
            .find_map(|a| a.handle_id.clone())
    }

    /// Asks for what addresses the pod still lacks; places it when it has them all.
    fn assign(&mut self, name: &PodName, pod: &Pod) {
        let (Some(request), Some(handle)) = (&pod.request, &pod.handle) else {
            return;
        };
        let objection = self.objection(name, request).map_or(Ok(()), Err);
        let wanted = match objection.and_then(|()| self.wanted_addresses(request)) {
            Ok(wanted) => wanted,
            Err(why) => return self.set_stage(name, Stage::Failed(why)),
        };
        let held = own::held(&self.facts, &self.own.blocks, handle);
        let mut addresses = pod.addresses.clone();
        let unmanaged = request.wish.unmanaged.iter();
        addresses.extend(unmanaged.map(|address| (Family::of(*address), *address)));
        for address in held.into_iter().rev() {
            addresses.insert(Family::of(address), address);
        }
        addresses.retain(|family, _| wanted.contains_key(family));
        let is_complete = wanted.keys().all(|family| addresses.contains_key(family));
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.addresses = addresses;
        }
        if is_complete {
            self.forget_pod_tasks(name, None);
            self.set_stage(name, Stage::Placed(0));
            self.replace_pod(name);
            self.commit();
            return self.set_stage(name, Stage::Placed(self.plan.generation));
        }
        self.ask_for(name, handle, request, &wanted);
    }

    /// Returns the families in which the pod gets an address, and which one it insists on.
    fn wanted_addresses(
        &self,
        request: &PodRequest,
    ) -> Result<BTreeMap<Family, Option<IpAddr>>, String> {
        let given = if request.wish.unmanaged.is_empty() {
            &request.addresses
        } else {
            &request.wish.unmanaged
        };
        if !given.is_empty() {
            let wanted = given.iter().map(|a| (Family::of(*a), Some(*a)));
            return Ok(wanted.collect());
        }
        let pools = self
            .facts
            .pools
            .values()
            .filter(|pool| pool::selects(pool, &self.facts));
        let pools = pools.filter(|pool| pool.allowed_uses.contains(&AllowedUse::Workload));
        let families = &request.wish.families;
        let by_pool = request.wish.pools.keys().copied();
        let wanted: BTreeMap<_, _> = pools
            .map(|pool| Family::of_net(&pool.cidr))
            .chain(by_pool)
            .chain(families.iter().copied())
            .filter(|family| families.is_empty() || families.contains(family))
            .map(|family| (family, None))
            .collect();
        if wanted.is_empty() {
            return Err(format!("no configured pools for node {}", self.facts.own));
        }

        Ok(wanted)
    }

    /// Asks for every address that a pod is to have; what its handle holds counts.
    fn ask_for(
        &mut self,
        name: &PodName,
        handle: &str,
        asked: &PodRequest,
        wanted: &BTreeMap<Family, Option<IpAddr>>,
    ) {
        let attributes = [
            ("namespace", name.namespace.clone()),
            ("node", self.facts.own.to_string()),
            ("pod", name.name.clone()),
        ];
        let any = wanted.iter().filter(|(_, address)| address.is_none());
        let request = AddressRequest {
            handle: handle.to_owned(),
            attributes: attributes
                .into_iter()
                .map(|(key, v)| (key.to_owned(), v))
                .collect(),
            purpose: AllowedUse::Workload,
            families: any.map(|(family, _)| *family).collect(),
            pools: asked.wish.pools.clone(),
            addresses: wanted.values().copied().flatten().collect(),
        };
        let key = TaskKey::Pod(name.clone(), PodTask::Assign);
        self.tasks
            .ensure(key, ActionKind::AssignAddress(request), self.now);
    }

    fn start_leaving(&mut self, name: &PodName) {
        let is_leaving = self.pods.pods.get(name).is_some_and(|pod| match pod.stage {
            Stage::Leaving(_) | Stage::Released => true,
            Stage::Assigning
            | Stage::Placed(_)
            | Stage::Published(_)
            | Stage::Admitted(_)
            | Stage::Ready
            | Stage::Failed(_) => false,
        });
        if is_leaving {
            return;
        }
        self.write(Owner::Pod(name.clone()), Vec::new());
        self.set_stage(name, Stage::Leaving(u64::MAX));
        self.refresh_led();
        self.commit();
        self.forget_pod_tasks(name, None);
        self.set_stage(name, Stage::Leaving(self.plan.generation));
    }

    fn set_stage(&mut self, name: &PodName, stage: Stage) {
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.stage = stage;
        }
    }

    pub(super) fn replace_pod(&mut self, name: &PodName) {
        let Some(pod) = self.pods.pods.get(name) else {
            return;
        };
        let Some(request) = &pod.request else {
            return;
        };
        let host = WorkloadEndpoint::host_interface(name);
        let interface = PodInterface {
            host: host.clone(),
            inside: request.interface.clone(),
            netns: request.netns.clone(),
            addresses: pod.nets(),
            mtu: self.mtu_of(pod),
            mac: request.wish.mac,
            forwards: request.wish.forwards,
            limits: request.wish.limits,
        };
        let mut rows = vec![Row::Pod(name.clone(), interface)];
        for address in pod.addresses.values() {
            rows.push(guard::pod_source(&host, *address));
            rows.push(route::to_pod(host_net(*address), host.clone()));
        }
        rows.extend(self.ways_rows(pod, &host));
        self.write(Owner::Pod(name.clone()), rows);
        self.refresh_led();
        self.refresh_endpoint(name);
    }

    /// Returns the endpoint of a pod that has its addresses.
    pub(crate) fn placed_endpoint(&self, name: &PodName) -> Option<WorkloadEndpoint> {
        let pod = self.pods.pods.get(name).filter(|pod| pod.is_placed())?;

        Some(self.endpoint(pod, name))
    }

    /// Puts an endpoint back into the store that somebody removed while its pod is there.
    pub(crate) fn publish_again(&mut self, name: &PodName) {
        if let Some(pod) = self.pods.pods.get_mut(name)
            && pod.stage == Stage::Ready
        {
            pod.is_unpublished = true;
            self.pods.ready.insert(name.clone());
        }
    }

    /// Returns the endpoint as others see it: an address that nobody assigned is this node's affair alone.
    fn published(&self, pod: &Pod, name: &PodName) -> WorkloadEndpoint {
        let mut endpoint = self.endpoint(pod, name);
        let unmanaged = pod.request.iter().flat_map(|it| &it.wish.unmanaged);
        let unmanaged: Vec<IpNet> = unmanaged.copied().map(host_net).collect();
        endpoint.addresses.retain(|net| !unmanaged.contains(net));

        endpoint
    }

    fn endpoint(&self, pod: &Pod, name: &PodName) -> WorkloadEndpoint {
        let request = pod.request.as_ref();
        let account = request.and_then(|request| request.service_account.clone());
        let mut profiles = vec![format!("kns.{}", name.namespace)];
        profiles.extend(account.map(|account| format!("ksa.{}.{account}", name.namespace)));

        WorkloadEndpoint {
            name: WorkloadEndpoint::object_name(&self.facts.own, name),
            pod: name.clone(),
            node: self.facts.own.clone(),
            interface: WorkloadEndpoint::host_interface(name),
            addresses: pod.nets(),
            labels: request
                .map(|request| request.labels.clone())
                .unwrap_or_default(),
            profiles,
            ports: request
                .map(|request| request.wish.named_ports.clone())
                .unwrap_or_default(),
        }
    }

    fn answer(&self, pod: &Pod, name: &PodName) -> PodAnswer {
        PodAnswer {
            addresses: pod.nets(),
            host_interface: WorkloadEndpoint::host_interface(name).to_string(),
            mtu: self.mtu_of(pod),
        }
    }
}
