//! Pods of a lab that has a container runtime: containers in sandboxes that the runtime made, and its plugin connected.

use std::{
    net::IpAddr,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{During, Site, SiteError, log_file};
use crate::{
    group,
    mesh::{self, MeshError},
    netns::{self, Netns},
    poll_until,
    runtime::{Engine, HostPort, IMAGE, Started, Tools, Wanted},
    spec::{Label, Pod, PodName, Protocol, Runtime},
    state::{self, PodState},
};

/// How long a runtime may take until it serves.
const PATIENCE: Duration = Duration::from_secs(30);

impl Site {
    /// The container runtime of a node.
    ///
    /// # Errors
    /// [`SiteError::Runtime`] where its programs are not there.
    pub fn engine(&self, node: &str) -> Result<Engine, SiteError> {
        let node = &self.host(node)?.name;
        let folder = state::host_folder(self.name(), node);
        let place = self.state.place(node);

        Ok(Engine::new(
            Tools::find()?,
            self.name(),
            node.as_str(),
            place,
            &folder,
        ))
    }

    /// Starts the container runtime of a node, whose agent runs.
    pub(crate) fn start_engine(&mut self, node: &Label) -> Result<(), SiteError> {
        let engine = self.engine(node.as_str())?;
        let program = engine.prepare(&mesh::plugin()?)?;
        let name = format!("containerd-{node}");
        let place = engine.place().clone();
        self.start_program(&name, node, &program, &place)?;
        let socket = engine.socket();
        let deadline = Instant::now() + PATIENCE;
        if !poll_until(deadline, || UnixStream::connect(&socket).is_ok()) {
            return Err(MeshError::NotReady {
                why: "its socket accepts nobody".to_owned(),
                log: mesh::last_lines(&log_file(self.name(), &name)),
                name,
            }
            .into());
        }

        Ok(engine.load()?)
    }

    /// Has the store know the pod, and the runtime run it.
    pub(super) fn run_container(&mut self, node: &Label, pod: &Pod) -> Result<PodState, SiteError> {
        let name = pod.full_name();
        let object = pod_object(node, pod).to_string();
        self.meshctl(&["apply", "-f", "-"], object.as_bytes())?;
        let engine = self.engine(node.as_str())?;
        let started = match engine.run(&wanted(pod)) {
            Ok(started) => started,
            Err(error) => {
                self.forget_object(&name)?;
                return Err(error.into());
            }
        };

        self.named(node, pod, &started)
    }

    /// Takes in a container that somebody ran by the node's [`Engine`] as a pod of the lab.
    ///
    /// # Errors
    /// [`SiteError`] where its namespace is gone, or there is a pod of that name.
    pub fn take_in(&mut self, node: &str, pod: &Pod, started: &Started) -> Result<(), SiteError> {
        let node = self.host(node)?.name.clone();
        if self.state.pod(&pod.full_name()).is_some() {
            return Err(SiteError::PodExists(pod.full_name()));
        }
        let state = self.named(&node, pod, started)?;
        self.state.pods.push(state);

        self.sync_routes()
    }

    /// Forgets a container that was taken in, and that somebody removed by the node's [`Engine`].
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn let_go(&mut self, name: &PodName) -> Result<(), SiteError> {
        let netns = self.pod(name)?.netns.clone();
        self.echoes.remove(&netns);
        self.state.pods.retain(|pod| pod.netns != netns);
        self.forget_space(&netns)?;

        self.sync_routes()
    }

    fn named(&mut self, node: &Label, pod: &Pod, started: &Started) -> Result<PodState, SiteError> {
        let netns = state::pod_netns(self.name(), node, &pod.full_name());
        self.adopt(&netns, started)?;

        Ok(PodState {
            node: node.clone(),
            pod: pod.clone(),
            netns,
            addresses: started.addresses.clone(),
            sandbox: Some(started.sandbox.clone()),
        })
    }

    /// Gives the namespace that a runtime made a name of the lab's own.
    fn adopt(&mut self, netns: &str, started: &Started) -> Result<(), SiteError> {
        self.state.namespaces.push(netns.to_owned());
        self.state.write()?;
        netns::adopt(netns, started.pid)?;
        // Whoever looks from inside may use ping sockets, as everywhere in a lab.
        Netns::open(netns)?.set(&[("ipv4/ping_group_range", "0 2147483647")])?;

        Ok(())
    }

    /// Ends a pod's container, its sandbox, and the store's record of it.
    pub(super) fn end_container(&mut self, pod: &PodState, sandbox: &str) -> Result<(), SiteError> {
        self.engine(pod.node.as_str())?.remove(&[sandbox])?;

        self.forget_object(&pod.pod.full_name())
    }

    fn forget_object(&mut self, name: &PodName) -> Result<(), SiteError> {
        let (namespace, name) = (name.namespace.as_str(), name.name.as_str());
        let arguments = ["delete", "pod", name, "-n", namespace, "--ignore-not-found"];

        self.meshctl(&arguments, b"").map(drop)
    }

    /// Whether the lab's pods are a runtime's containers.
    pub(crate) fn has_runtime(&self) -> bool {
        let spec = &self.state.document.spec;
        match spec.runtime {
            Runtime::Lab => false,
            Runtime::Containerd => spec.mesh,
        }
    }
}

/// Removes what a lab's containers leave behind: their processes and control groups.
pub(super) fn remove_groups(lab: &str) -> Result<(), SiteError> {
    group::remove(lab).during(|| format!("the containers of lab {lab} do not end"))
}

/// What the runtime is told: a container that echoes what its pod listens on.
fn wanted(pod: &Pod) -> Wanted {
    let mut ports: Vec<String> = pod
        .listens
        .iter()
        .filter(|listen| is_served(listen.protocol))
        .map(|listen| listen.port.to_string())
        .collect();
    ports.sort();
    ports.dedup();
    let arguments = if ports.is_empty() {
        vec!["pause".to_owned()]
    } else {
        [vec!["serve".to_owned()], ports].concat()
    };

    Wanted {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: format!("{}-{}", pod.namespace, pod.name),
        labels: pod.labels.clone(),
        arguments,
        ports: Vec::<HostPort>::new(),
    }
}

/// Whether the image's program echoes by that protocol itself.
pub(super) fn is_served(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp | Protocol::Udp => true,
        Protocol::Sctp => false,
    }
}

/// The pod as the store knows it: where its labels, service account and named ports come from.
fn pod_object(node: &Label, pod: &Pod) -> serde_json::Value {
    let ports = pod.ports.iter().map(|port| {
        let protocol = port.protocol.to_string();
        json!({"name": port.name, "containerPort": port.port, "protocol": protocol})
    });
    let ports: Vec<_> = ports.collect();
    let addresses: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
    let annotations = if addresses.is_empty() {
        json!({})
    } else {
        json!({"cni.projectcalico.org/ipAddrs": json!(addresses).to_string()})
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.namespace, "name": pod.name,
            "labels": pod.labels, "annotations": annotations,
        },
        "spec": {
            "nodeName": node, "serviceAccountName": pod.service_account,
            "containers": [{"name": pod.name, "image": IMAGE, "ports": ports}],
        },
    })
}
