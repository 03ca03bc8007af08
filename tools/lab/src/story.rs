//! How tests speak of a lab: short, and with a panic where something fails.
//!
//! ```no_run
//! let lab = lab::Lab::new();
//! let [a, b] = lab.mesh(["a", "b"]);
//! let stream = a.connect(&b);
//! a.change_address("192.0.2.7");
//! stream.assert_alive();
//! ```
//!
//! Dropping the lab asserts what holds for every test: no plaintext left a node (where a mesh runs, or
//! where the test asked for it), and nothing that was made is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    builtin::Builtin,
    layout::Role,
    netlink::Netlink,
    poll_until,
    site::{Hands, Owner, Site},
    sniffer::{Counts, Sniffer, Territory},
    spec::{self, Document, Label, PodName},
    state,
    stream::{Canary, TICK},
};

pub use end::{End, Family, Node, Outside, Pod};
pub use power::Boot;
pub use topology::Topology;

use failure::{chain, or_fail, or_fail_boxed, or_fail_text};

mod end;
mod failure;
mod power;
mod topology;

/// How long a mesh may take to settle.
const SETTLE: Duration = Duration::from_secs(20);

/// Numbers the labs of this process.
static LABS: AtomicU32 = AtomicU32::new(0);

/// Whether plaintext on the underlay fails the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// It does.
    Forbidden,
    /// It does not.
    Allowed,
}

/// A lab of a test. Dropping it takes it down and makes the standing assertions.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

/// What the lab and the handles of its nodes and pods share.
#[derive(Debug)]
struct Inner {
    site: Mutex<Option<Site>>,
    watch: Mutex<Watch>,
    canary: [u8; 12],
    canaries: AtomicU32,
    /// Time between two records of a stream, in microseconds.
    tick: AtomicU32,
    /// Devices of the machine's own namespace before there was a lab.
    devices: BTreeSet<String>,
}

/// The sniffers, and what they are judged by.
#[derive(Debug)]
struct Watch {
    sniffers: BTreeMap<Label, Sniffer>,
    plaintext: Plaintext,
    /// What sniffers saw whose device is gone.
    retired: Counts,
    /// What had been seen when plaintext was forbidden.
    baseline: Counts,
    territory: Territory,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A lab of which nothing stands yet; [`Lab::mesh`] builds it.
    pub fn new() -> Self {
        let watch = Watch {
            sniffers: BTreeMap::new(),
            plaintext: Plaintext::Allowed,
            retired: Counts::default(),
            baseline: Counts::default(),
            territory: Territory::default(),
        };
        let inner = Inner {
            site: Mutex::new(None),
            watch: Mutex::new(watch),
            canary: or_fail("random bytes", random()),
            canaries: AtomicU32::new(0),
            tick: AtomicU32::new(micros(TICK)),
            devices: own_devices(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// An encrypted mesh of such nodes on one LAN of both families, each with one pod `default/NAME`.
    pub fn mesh<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        let mut topology = Topology::new()
            .network("lan", &["192.0.2.0/24", "2001:db8:1::/64"])
            .server(&["lan"])
            .pool("10.65.0.0/16")
            .pool("fd00:65::/112");
        for name in names {
            topology = topology
                .node(name, &["lan"])
                .pod(&format!("default/{name}"));
        }
        self.build(topology.document());
        self.encrypt();
        names.map(|name| self.node(name))
    }

    /// A built-in lab, as its file has it.
    pub fn builtin(name: &str) -> Self {
        Self::of(builtin(name))
    }

    /// A built-in lab without its mesh: namespaces, links and plain routes.
    pub fn plain(name: &str) -> Self {
        let mut document = builtin(name);
        document.spec.mesh = false;
        Self::of(document)
    }

    /// The lab that a file describes; its name is replaced by one that is free.
    pub fn of(document: Document) -> Self {
        let lab = Self::new();
        lab.build(document);
        lab
    }

    fn build(&self, mut document: Document) {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}x{number}", std::process::id());
        document.metadata.name = name.parse().expect("letters and digits are a DNS label");
        let mesh = document.spec.mesh;
        let site = Site::up(document, Owner::Process, Hands::Threads, &mut |_| {});
        let site = or_fail("the lab is built", site);
        *self.inner.slot() = Some(site);
        if mesh {
            self.sniff();
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.inner.site(|site| site.name().to_owned())
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Node {
        self.inner
            .site(|site| or_fail(name, site.host(name).map(drop)));
        Node::new(&self.inner, name)
    }

    /// All nodes, in the file's order.
    pub fn nodes(&self) -> Vec<Node> {
        let names = self.inner.hosts(Role::Node);
        names
            .iter()
            .map(|name| Node::new(&self.inner, name.as_str()))
            .collect()
    }

    /// The pod of that name, `NAMESPACE/NAME`.
    pub fn pod(&self, name: &str) -> Pod {
        let name = or_fail_text(name, name.parse::<PodName>());
        self.inner
            .site(|site| or_fail(&name.to_string(), site.pod(&name).map(drop)));
        Pod::new(&self.inner, name)
    }

    /// All pods that run.
    pub fn pods(&self) -> Vec<Pod> {
        let names = self.inner.site(|site| {
            site.state()
                .pods
                .iter()
                .map(|pod| pod.pod.full_name())
                .collect::<Vec<_>>()
        });
        names
            .into_iter()
            .map(|name| Pod::new(&self.inner, name))
            .collect()
    }

    /// The outside host of that name.
    pub fn outside(&self, name: &str) -> Outside {
        self.inner
            .site(|site| or_fail(name, site.host(name).map(drop)));
        Outside::new(&self.inner, name)
    }

    /// Starts a pod on a node.
    pub fn add_pod(&self, node: &str, name: &str) -> Pod {
        let name = or_fail_text(name, name.parse::<PodName>());
        let pod = spec::Pod::bare(name.clone());
        self.inner
            .site(|site| or_fail("the pod starts", site.add_pod(node, pod).map(drop)));
        self.refresh();
        Pod::new(&self.inner, name)
    }

    /// Ends a pod.
    pub fn delete_pod(&self, pod: &Pod) {
        self.inner
            .site(|site| or_fail("the pod ends", site.delete_pod(pod.name())));
    }

    /// Turns encryption on, waits until every node enforces it, and forbids plaintext from then on.
    pub fn encrypt(&self) {
        self.sniff();
        self.switch("true");
        self.await_phase("Enforced");
        self.plaintext(Plaintext::Forbidden);
    }

    /// Allows plaintext, turns encryption off, and waits until every node has taken it down.
    pub fn decrypt(&self) {
        self.assert_no_plaintext();
        self.plaintext(Plaintext::Allowed);
        self.switch("false");
        self.await_phase("Off");
    }

    fn switch(&self, enabled: &str) {
        self.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {{wireguardEnabled: {enabled}}}\n"
        ));
    }

    /// Waits until every agent says that its node's encryption is in that phase.
    pub fn await_phase(&self, phase: &str) {
        let mut said = BTreeMap::new();
        let settled = poll_until(Instant::now() + SETTLE, || {
            for node in self.nodes() {
                let status = node.status();
                said.insert(node.name().to_owned(), status["encryption"].clone());
            }
            said.values().all(|encryption| encryption["phase"] == phase)
        });
        assert!(settled, "not {phase} within {SETTLE:?}: {said:#?}");
    }

    /// Waits until every agent has applied all that the store holds now.
    pub fn wait(&self) {
        let name = self.name();
        let arguments = ["lab", "--lab", &name, "wait"];
        self.inner
            .site(|site| or_fail("the agents settle", site.meshctl(&arguments, b"").map(drop)));
    }

    /// Runs `meshctl` against the lab's store and returns what it printed.
    pub fn meshctl(&self, arguments: &[&str]) -> String {
        let said = self
            .inner
            .site(|site| or_fail("meshctl", site.meshctl(arguments, b"")));
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Applies resources to the lab's store.
    pub fn apply(&self, resources: &str) {
        let arguments = ["apply", "-f", "-"];
        let input = resources.as_bytes();
        self.inner
            .site(|site| or_fail("meshctl apply", site.meshctl(&arguments, input).map(drop)));
    }

    /// Lets a node that stood aside join; its agent is not started.
    pub fn admit(&self, node: &Node) {
        self.inner.site(|site| {
            or_fail("the node joins", site.admit(node.name()));
        });
    }

    /// Works with the lab itself.
    pub fn site<T>(&self, work: impl FnOnce(&mut Site) -> T) -> T {
        self.inner.site(work)
    }

    /// Starts a sniffer on every underlay device of every node; twice is once.
    pub fn sniff(&self) {
        let mut watch = self.inner.watch();
        watch.territory = self.inner.site(|site| site.territory());
        for name in self.inner.hosts(Role::Node) {
            if !watch.sniffers.contains_key(&name) {
                self.sniff_host(&mut watch, &name);
            }
        }
    }

    /// Starts a sniffer on every underlay device of a node.
    fn sniff_host(&self, watch: &mut Watch, name: &Label) {
        let (territory, canary) = (watch.territory.clone(), self.inner.canary);
        let sniffer = self.inner.site(|site| {
            let netns = site.host_space(name).map_err(Box::<dyn Error>::from)?;
            let host = site.host(name.as_str()).map_err(Box::<dyn Error>::from)?;
            let devices: Vec<&str> = host.devices.iter().map(|d| d.name.as_str()).collect();
            Sniffer::start(&netns, &devices, territory, &canary).map_err(Box::from)
        });
        watch
            .sniffers
            .insert(name.clone(), or_fail_boxed("the sniffer starts", sniffer));
    }

    /// What the sniffers know of addresses; a test may say more (such as tunnel addresses).
    pub fn set_territory(&self, change: impl FnOnce(&mut Territory)) {
        let mut watch = self.inner.watch();
        change(&mut watch.territory);
        for sniffer in watch.sniffers.values() {
            or_fail(
                "the sniffer learns",
                sniffer.set_territory(watch.territory.clone()),
            );
        }
    }

    /// Listens on one more device of a node, which the lab did not make.
    pub fn sniff_device(&self, node: &Node, device: &str) {
        let mut watch = self.inner.watch();
        let (territory, canary) = (watch.territory.clone(), self.inner.canary);
        let sniffer = Sniffer::start(&node.netns(), &[device], territory, &canary);
        let name = format!("{}-{device}", node.name());
        watch.sniffers.insert(
            or_fail_text(&name, name.parse()),
            or_fail("the sniffer starts", sniffer),
        );
    }

    /// Streams that are started from now on send a record in every such time.
    pub fn pace(&self, tick: Duration) {
        self.inner.tick.store(micros(tick), Ordering::Relaxed);
    }

    /// Takes up what the lab has learnt since: new pods, new addresses of nodes.
    fn refresh(&self) {
        let fresh = self.inner.site(|site| site.territory());
        self.set_territory(|territory| {
            territory.members.extend(fresh.members);
            for prefix in fresh.pods {
                if !territory.pods.contains(&prefix) {
                    territory.pods.push(prefix);
                }
            }
        });
    }

    /// What all sniffers saw so far.
    pub fn seen(&self) -> Counts {
        self.inner.watch().seen()
    }

    /// Says whether plaintext fails the test from now on.
    pub fn plaintext(&self, plaintext: Plaintext) {
        let mut watch = self.inner.watch();
        watch.baseline = watch.seen();
        watch.plaintext = plaintext;
    }

    /// Asserts that no plaintext left a node since it was forbidden.
    pub fn assert_no_plaintext(&self) {
        if let Some(complaint) = self.inner.watch().complaint() {
            panic!("{complaint}");
        }
    }

    /// The standing assertions; the complaint where one fails.
    fn finish(&self) -> Option<String> {
        let mut complaints: Vec<String> = self.inner.watch().complaint().into_iter().collect();
        self.inner.watch().sniffers.clear();
        let site = self.inner.slot().take()?;
        let name = site.name().to_owned();
        if let Err(error) = site.down() {
            complaints.push(format!("the lab is not taken down: {}", chain(&error)));
        }
        complaints.extend(left_behind(&name, &self.inner.devices));
        (!complaints.is_empty()).then(|| complaints.join("\n"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let complaint = self.finish();
        if let Some(complaint) = complaint.filter(|_| !std::thread::panicking()) {
            panic!("{complaint}");
        }
    }
}

impl Inner {
    fn slot(&self) -> MutexGuard<'_, Option<Site>> {
        self.site.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn site<T>(&self, work: impl FnOnce(&mut Site) -> T) -> T {
        let mut slot = self.slot();
        let Some(site) = slot.as_mut() else {
            drop(slot);
            panic!("the lab does not stand (yet, or any more)");
        };
        work(site)
    }

    fn hosts(&self, role: Role) -> Vec<Label> {
        self.site(|site| {
            let hosts = site
                .state()
                .layout
                .hosts
                .iter()
                .filter(|host| host.role == role);
            hosts.map(|host| host.name.clone()).collect()
        })
    }

    fn tick(&self) -> Duration {
        Duration::from_micros(self.tick.load(Ordering::Relaxed).into())
    }

    /// The mark of a stream: twelve bytes that all streams of the lab share, and its number.
    fn next_canary(&self) -> Canary {
        let number = self.canaries.fetch_add(1, Ordering::Relaxed);
        let mut canary = [0; 16];
        canary[..12].copy_from_slice(&self.canary);
        canary[12..].copy_from_slice(&number.to_be_bytes());
        canary
    }
}

impl Watch {
    /// Lets a sniffer go whose device is gone; what it saw still counts.
    fn retire(&mut self, name: &str) {
        let gone = self
            .sniffers
            .extract_if(.., |label, _| label.as_str() == name);
        for (_, sniffer) in gone {
            self.retired
                .add(&or_fail("the sniffer answers", sniffer.counts()));
        }
    }

    fn seen(&self) -> Counts {
        let mut all = self.retired.clone();
        for sniffer in self.sniffers.values() {
            all.add(&or_fail("the sniffer answers", sniffer.counts()));
        }
        all
    }

    /// What the standing assertion has to say.
    fn complaint(&self) -> Option<String> {
        if self.plaintext == Plaintext::Allowed {
            return None;
        }
        let seen = self.seen().since(&self.baseline);
        if seen.lost > 0 {
            return Some(format!(
                "the sniffers lost {} frames: they prove nothing",
                seen.lost
            ));
        }
        if seen.leaked() == 0 {
            return None;
        }
        let mut text = format!("plaintext left a node: {:?}", seen.leaks);
        for (device, leak) in seen.samples.iter().take(8) {
            let line = write!(text, "\n  {device}: {} ({})", leak.summary, leak.kind);
            line.expect("writing to a string does not fail");
        }
        Some(text)
    }
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}

/// Sixteen bytes that nobody can guess, so that none is found by chance.
fn random() -> std::io::Result<[u8; 12]> {
    use std::io::Read;
    let mut bytes = [0; 12];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The devices of the namespace that the test runs in.
fn own_devices() -> BTreeSet<String> {
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices());
    or_fail("the machine's devices", devices)
        .into_iter()
        .collect()
}

/// What of a lab is still there.
fn left_behind(name: &str, devices: &BTreeSet<String>) -> Vec<String> {
    let mut left = Vec::new();
    let spaces = std::fs::read_dir(crate::netns::DIRECTORY)
        .into_iter()
        .flatten()
        .flatten();
    let names = spaces.filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |space: &String| {
        space
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['-', '.']))
    };
    left.extend(
        names
            .filter(ours)
            .map(|space| format!("network namespace {space} is left")),
    );
    if state::folder(name).exists() {
        left.push(format!("{} is left", state::folder(name).display()));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = format!("{}/{name}", state::ROOT);
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&folder))
            .map(|l| format!("mount: {l}")),
    );
    // Somebody else may plug something in meanwhile, but not under the names that labs and meshd use.
    let ours = |device: &&String| {
        ["cali", "wireguard", "wg-v6", "vxlan", "p0-", "p1-", "eth0"]
            .iter()
            .any(|prefix| device.starts_with(prefix))
    };
    let new = own_devices();
    let new = new.difference(devices).filter(ours);
    left.extend(new.map(|device| format!("device {device} is left")));
    left
}

fn builtin(name: &str) -> Document {
    let Some(builtin) = Builtin::named(name) else {
        panic!("no built-in lab is called {name}")
    };
    or_fail(name, builtin.document())
}

/// An address in a test's text.
fn address(text: &str) -> IpAddr {
    match text.parse() {
        Ok(address) => address,
        Err(error) => panic!("{text}: {error}"),
    }
}

/// How long a stream may take to show that it is alive.
const ALIVE: Duration = Duration::from_secs(5);

impl crate::stream::Stream {
    /// Asserts that what is sent from now on still comes back, and that the connection never broke.
    pub fn assert_alive(&self) {
        let alive = self.is_alive(ALIVE);
        let report = self.report();
        assert!(
            alive,
            "nothing comes back from {}: {report:?}",
            self.to_address()
        );
        assert_eq!(report.resets, 0, "the connection broke: {report:?}");
        assert_eq!(report.wrong, 0, "wrong bytes came back: {report:?}");
    }

    /// Waits until so many more records came back; panics where they do not come.
    pub fn assert_carries(&self, records: u64) {
        let wanted = self.report().echoed + records;
        let came = poll_until(Instant::now() + ALIVE, || self.report().echoed >= wanted);
        assert!(
            came,
            "not {records} records from {}: {:?}",
            self.to_address(),
            self.report()
        );
    }

    /// Asserts that it is alive, and that it never waited longer than this for a byte.
    pub fn assert_no_gap(&self, most: Duration) {
        self.assert_alive();
        let report = self.report();
        assert!(
            report.longest_gap <= most,
            "{:?} without a byte: {report:?}",
            report.longest_gap
        );
    }
}
