//! Many containers at once, each known to the store first.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{
    End as _, Engine, Family, Probe, RuntimeError, Sandbox, Started, Wanted,
    spec::{Pod, PodName},
};
use netns::Mesh;
use serde_json::{Value, json};

/// Where every container listens.
pub const PORT: u16 = 80;

/// IANA's number of TCP.
const TCP: u8 = 6;

/// How long what is allowed may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing must come of what is denied.
const SILENCE: Duration = Duration::from_millis(900);

/// How long a runtime may be asked again for a container that it could not start.
const AGAIN: Duration = Duration::from_secs(120);

/// Time between two such questions.
const PAUSE: Duration = Duration::from_millis(200);

/// A container that is to be, and on which node.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The node.
    pub node: String,
    /// The pod.
    pub pod: Pod,
}

/// The containers of a mesh whose nodes run containerd.
#[derive(Debug)]
pub struct Fleet<'a> {
    mesh: &'a Mesh,
    engines: BTreeMap<String, Engine>,
    running: Mutex<BTreeMap<PodName, (Member, Started)>>,
    /// How many a runtime has started since [`Fleet::run`] was called last.
    started: AtomicUsize,
    /// How many attempts failed since.
    failed: AtomicUsize,
}

impl Member {
    /// A container `shop/NAME` with the label `role`.
    pub fn new(node: &str, name: &str, role: &str) -> Self {
        let name: PodName = format!("shop/{name}").parse().expect("a test's own name");
        let mut pod = Pod::bare(name);
        pod.labels = [("role".to_owned(), role.to_owned())].into();

        Self {
            node: node.to_owned(),
            pod,
        }
    }

    /// Its label `role`.
    pub fn role(&self) -> &str {
        self.pod.labels.get("role").map_or("", String::as_str)
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.pod.namespace, "name": self.pod.name, "labels": self.pod.labels},
            "spec": {"nodeName": self.node, "containers": [{"name": "pod", "image": lab::IMAGE}]},
        })
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            namespace: self.pod.namespace.to_string(),
            name: self.pod.name.to_string(),
            uid: format!("{}-{}", self.pod.namespace, self.pod.name),
            arguments: vec!["serve".to_owned(), PORT.to_string()],
            ..Wanted::default()
        }
    }
}

impl<'a> Fleet<'a> {
    /// No container yet.
    pub fn new(mesh: &'a Mesh) -> Self {
        let engine = |name: &str| {
            let engine = mesh.site(|site| site.engine(name));
            engine.unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let members = mesh.members();
        let engines = members.iter().map(|node| {
            let name = node.name().to_owned();
            let engine = engine(&name);
            (name, engine)
        });

        Self {
            mesh,
            engines: engines.collect(),
            running: Mutex::default(),
            started: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        }
    }

    /// Has the store know these pods: with their labels of now.
    pub fn announce(&self, members: &[Member]) {
        let objects = members.iter().map(|member| member.object().to_string());
        let objects: Vec<String> = objects.collect();
        self.mesh.apply(&objects.join("\n"));
    }

    /// Starts containers, so many at once; what a runtime cannot start it is asked for again.
    pub fn run(&self, members: &[Member], at_once: usize) {
        self.started.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
        each(members, at_once, |member| {
            let started = self.start(member);
            self.started.fetch_add(1, Ordering::Relaxed);
            let pod = member.pod.full_name();
            let taken = self
                .mesh
                .site(|site| site.take_in(&member.node, &member.pod, &started));
            taken.unwrap_or_else(|error| panic!("{pod}: {error}"));
            self.running().insert(pod, (member.clone(), started));
        });
    }

    fn start(&self, member: &Member) -> Started {
        let deadline = Instant::now() + lab::patience(AGAIN);
        loop {
            match self.try_run(member) {
                Ok(started) => return started,
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let cause = std::error::Error::source(&error);
                    assert!(Instant::now() < deadline, "{error}: {cause:?}");
                }
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Asks a runtime for a container, once.
    ///
    /// # Errors
    /// [`RuntimeError`] with what the runtime said.
    pub fn try_run(&self, member: &Member) -> Result<Started, RuntimeError> {
        self.engine(&member.node).run(&member.wanted())
    }

    /// Ends containers, so many at once, and has the store forget their pods.
    pub fn remove(&self, members: &[Member], at_once: usize) {
        each(members, at_once, |member| {
            let pod = member.pod.full_name();
            let found = self.running().remove(&pod);
            let Some((_, started)) = found else {
                panic!("{pod} does not run")
            };
            let removed = self.engine(&member.node).remove(&[&started.sandbox]);
            removed.unwrap_or_else(|error| panic!("{pod}: {error}"));
            let gone = self.mesh.site(|site| site.let_go(&pod));
            gone.unwrap_or_else(|error| panic!("{pod}: {error}"));
        });
        let names: Vec<&str> = members
            .iter()
            .map(|member| member.pod.name.as_str())
            .collect();
        for names in names.chunks(20) {
            self.mesh
                .meshctl(&[&["delete", "pod", "-n", "shop"], names].concat());
        }
    }

    /// How many containers have started since the last call of [`Fleet::run`], and how many attempts have failed.
    pub fn progress(&self) -> (usize, usize) {
        let (started, failed) = (&self.started, &self.failed);

        (
            started.load(Ordering::Relaxed),
            failed.load(Ordering::Relaxed),
        )
    }

    /// Every container that runs, with its addresses.
    pub fn addresses(&self) -> Vec<(IpAddr, String)> {
        let running = self.running();
        let addresses = running.iter().flat_map(|(pod, (_, started))| {
            let addresses = started.addresses.iter();
            addresses.map(|address| (*address, pod.to_string()))
        });

        addresses.collect()
    }

    /// Every sandbox of every node.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        let listed = self.engines.values().map(|engine| {
            let listed = engine.list();
            listed.unwrap_or_else(|error| panic!("{error}"))
        });

        listed.flatten().collect()
    }

    /// Asks from each container a number of others, in both families, whether they answer; panics where that is not
    /// `allows` says of the two.
    pub fn assert_reaches(
        &self,
        state: &str,
        others: usize,
        allows: impl Fn(&Member, &Member) -> bool,
    ) {
        let running: Vec<(Member, Started)> = self.running().values().cloned().collect();
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for (index, (from, own)) in running.iter().enumerate() {
            let netns = self.mesh.pod(&from.pod.full_name().to_string()).netns();
            for step in 1..=others {
                // A stride that meets both nodes and every role.
                let (to, theirs) = &running[(index + step * step) % running.len()];
                let family = if step % 2 == 0 {
                    Family::V4
                } else {
                    Family::V6
                };
                let of = |started: &Started| {
                    let mut addresses = started.addresses.iter();
                    addresses
                        .find(|address| Family::of(address) == family)
                        .copied()
                };
                let (Some(own), Some(theirs)) = (of(own), of(theirs)) else {
                    panic!(
                        "{state}: {:?} has no address of {family:?}",
                        from.pod.full_name()
                    )
                };
                let probe = Probe {
                    netns: netns.clone(),
                    from: SocketAddr::new(own, 0),
                    to: SocketAddr::new(theirs, PORT),
                    protocol: TCP,
                };
                let what = format!("{} to {}", from.pod.full_name(), to.pod.full_name());
                let side = if own == theirs || allows(from, to) {
                    &mut allowed
                } else {
                    &mut denied
                };
                side.push((what, probe));
            }
        }
        assert!(
            !allowed.is_empty() && !denied.is_empty(),
            "{state}: one outcome alone proves nothing"
        );
        expect(state, true, &allowed, PATIENCE);
        expect(state, false, &denied, SILENCE);
    }

    fn engine(&self, node: &str) -> &Engine {
        let engine = self.engines.get(node);
        engine.unwrap_or_else(|| panic!("there is no node {node}"))
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<PodName, (Member, Started)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expect(state: &str, passes: bool, asked: &[(String, Probe)], usual: Duration) {
    let probes: Vec<Probe> = asked.iter().map(|(_, probe)| probe.clone()).collect();
    let answered = Probe::send_all(&probes, usual);
    let wrong: Vec<&str> = asked
        .iter()
        .zip(&answered)
        .filter(|(_, answered)| answered.as_ref().ok() != Some(&passes))
        .map(|((what, _), _)| what.as_str())
        .collect();
    let should = if passes { "must pass" } else { "must not pass" };
    assert!(
        wrong.is_empty(),
        "{state}: {} of {} {should}: {wrong:?}",
        wrong.len(),
        asked.len()
    );
}

/// Does something with each, so many at once.
fn each<T: Sync>(all: &[T], at_once: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..at_once.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}
