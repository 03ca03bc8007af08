//! A lab whose mesh runs, as stories speak of it.

use std::{
    net::IpAddr,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lab::{Builtin, Document, End as _, Lab, Node, Plaintext, Topology};
use serde_json::{Map, Value, json};

/// How many meshes run at once: their streams' gaps are measured in milliseconds.
const AT_ONCE: usize = 2;

/// How long a mesh may take to switch.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks at a fact.
const LOOK: Duration = Duration::from_millis(10);

/// How much of each program's log a failing story shows.
const LAST_LINES: usize = 12;

/// How many meshes of this process run.
static RUNNING: Mutex<usize> = Mutex::new(0);

/// Wakes those who wait for their turn.
static ENDED: Condvar = Condvar::new();

/// Whether encryption is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// A lab whose mesh runs. It begins with encryption off, and plaintext allowed.
#[derive(Debug)]
pub struct Mesh {
    lab: Lab,
    /// What FelixConfiguration/default says beside the toggle.
    settings: Mutex<Map<String, Value>>,
    _turn: Turn,
}

impl Deref for Mesh {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Mesh {
    /// The mesh of a built-in lab, still in plaintext.
    pub fn builtin(name: &str) -> Self {
        Self::of(document(name))
    }

    /// The mesh of a lab file, still in plaintext.
    pub fn of(document: Document) -> Self {
        let turn = Turn::take();
        let lab = Lab::of(document);
        lab.plaintext(Plaintext::Allowed);
        let mesh = Self {
            lab,
            settings: Mutex::default(),
            _turn: turn,
        };
        for node in mesh.members() {
            await_addresses(&node);
        }
        mesh
    }

    /// The mesh of a built-in lab whose pools translate outgoing packets, or do not.
    pub fn translating(name: &str, nat_outgoing: bool) -> Self {
        let mut document = document(name);
        for resource in &mut document.spec.resources {
            if resource["kind"] == "IPPool" {
                resource["spec"]["natOutgoing"] = json!(nat_outgoing);
            }
        }
        Self::of(document)
    }

    /// The mesh of a built-in lab, encrypted.
    pub fn enforced(name: &str) -> Self {
        let mesh = Self::builtin(name);
        mesh.enable();
        mesh
    }

    /// The nodes where meshd runs.
    pub fn members(&self) -> Vec<Node> {
        let names: Vec<String> = self.site(|site| {
            let nodes = site.state().document.spec.nodes.iter();
            let members = nodes.filter(|node| node.mesh);
            members.map(|node| node.name.to_string()).collect()
        });
        names.iter().map(|name| self.node(name)).collect()
    }

    /// Has a field of FelixConfiguration/default stand beside the toggle, from its next turn on.
    pub fn set(&self, field: &str, value: Value) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        settings.insert(field.to_owned(), value);
    }

    /// Turns the one toggle.
    pub fn ask_for(&self, encryption: Encryption) {
        self.set("wireguardEnabled", json!(encryption == Encryption::On));
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let felix = json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "FelixConfiguration",
            "metadata": { "name": "default" },
            "spec": &*settings,
        });
        self.apply(&felix.to_string());
    }

    /// Sets the mode of encryption, `Strict` or `Permissive`.
    pub fn set_mode(&self, mode: &str) {
        let configuration = json!({
            "apiVersion": "meshd.dev/v1",
            "kind": "MeshConfiguration",
            "metadata": { "name": "default" },
            "spec": { "encryption": { "mode": mode } },
        });
        self.apply(&configuration.to_string());
    }

    /// Switches encryption on and waits until every member is `Enforced`; from then on plaintext fails
    /// the test. Returns how long it took.
    pub fn enable(&self) -> Duration {
        let start = Instant::now();
        self.ask_for(Encryption::On);
        self.await_summary("Enforced");
        self.await_settled();
        let taken = start.elapsed();
        self.forbid_plaintext();
        taken
    }

    /// Switches encryption off and waits until every member is. Returns how long it took.
    pub fn disable(&self) -> Duration {
        self.assert_no_plaintext();
        self.plaintext(Plaintext::Allowed);
        let start = Instant::now();
        self.ask_for(Encryption::Off);
        self.await_summary("Off");
        start.elapsed()
    }

    /// From now on plaintext fails the test; the sniffers know the tunnels' addresses.
    pub fn forbid_plaintext(&self) {
        self.forbid_plaintext_knowing(&self.members());
    }

    /// From now on plaintext fails the test, though only these members can tell their tunnels' addresses.
    pub fn forbid_plaintext_of(&self, names: &[&str]) {
        let members: Vec<Node> = names.iter().map(|name| self.node(name)).collect();
        self.forbid_plaintext_knowing(&members);
    }

    fn forbid_plaintext_knowing(&self, members: &[Node]) {
        let tunnels: Vec<IpAddr> = members.iter().flat_map(tunnel_addresses).collect();
        self.set_territory(|territory| territory.tunnels.extend(tunnels));
        self.plaintext(Plaintext::Forbidden);
    }

    /// Waits until every member says so of its encryption.
    pub fn await_summary(&self, summary: &str) {
        for node in self.members() {
            await_summary(&node, summary, PATIENCE);
        }
    }

    /// Waits until every member's machine matches its plan: what is not needed any more is gone.
    pub fn await_settled(&self) {
        for node in self.members() {
            await_settled(&node, PATIENCE);
        }
    }
}

impl Drop for Mesh {
    /// A story that fails shows what the programs said.
    #[expect(
        clippy::print_stderr,
        reason = "the test harness shows it with the failure"
    )]
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let logs = self.site(|site| {
            let programs = site.state().programs.iter();
            programs
                .map(|p| (p.name.clone(), p.log.clone()))
                .collect::<Vec<_>>()
        });
        for (name, log) in logs {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
            eprintln!("{name} said:\n  {last}");
        }
    }
}

/// One LAN of both families with a server, a pool of each, and these members with a pod each.
pub fn lan(members: &[(&str, &str)]) -> Topology {
    let topology = Topology::new()
        .network("lan", &["192.0.2.0/24", "2001:db8:1::/64"])
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .pool("fd00:65::/112");

    members.iter().fold(topology, |topology, (node, pod)| {
        topology.node(node, &["lan"]).pod(pod)
    })
}

/// The folder of the programs, as cargo lays them out beside a test's.
pub fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    let near = own.ancestors().nth(2).map(Path::to_owned);
    let folder = std::env::var_os("MESHD_BIN_DIR").map(Into::into).or(near);

    folder.unwrap_or_default()
}

/// Waits until every address of a node was granted to it, and its machine matches its plan.
fn await_addresses(node: &Node) {
    await_fact(
        &format!("{} has its addresses", node.name()),
        PATIENCE,
        || {
            let status = node.try_ask("/v1/status").map_err(|e| format!("{e:?}"))?;
            let granted = status["addresses"].to_string();
            let has = |address: &IpAddr| granted.contains(&format!("\"{address}\""));
            let holds = node.addresses().iter().all(has) && status["converged"] == true;
            if holds {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    );
}

/// Waits until a node says so of its encryption.
pub fn await_summary(node: &Node, summary: &str, patience: Duration) {
    await_fact(&format!("{} is {summary}", node.name()), patience, || {
        let status = node.try_ask("/v1/status").map_err(|e| format!("{e:?}"))?;
        let holds = status["encryption"]["summary"] == summary;
        if holds {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

/// Waits until a node's machine matches its plan.
pub fn await_settled(node: &Node, patience: Duration) {
    await_fact(&format!("{} settles", node.name()), patience, || {
        let status = node.try_ask("/v1/status").map_err(|e| format!("{e:?}"))?;
        let settled = status["converged"] == true;
        if settled {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

/// The addresses of a node's tunnel devices.
pub fn tunnel_addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.ask("/v1/status");
    let devices = status["encryption"]["devices"].as_array().into_iter();
    let addresses = devices
        .flatten()
        .flat_map(|device| device["addresses"].as_array().into_iter().flatten());
    addresses
        .filter_map(|address| address.as_str()?.parse().ok())
        .collect()
}

/// What a node says of a peer.
pub fn peer(node: &Node, name: &str) -> Value {
    let peers = node.ask("/v1/peers");
    let found = peers.as_array().into_iter().flatten();
    let mut found = found.filter(|peer| peer["node"] == name);
    found.next().cloned().unwrap_or_default()
}

/// Looks at a fact until it holds, and returns how long that took; panics with the last objection.
pub fn await_fact(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<(), String>,
) -> Duration {
    let start = Instant::now();
    let patience = lab::patience(patience);
    loop {
        let Err(objection) = look() else {
            return start.elapsed();
        };
        assert!(
            start.elapsed() < patience,
            "not within {patience:?}: {what}\n{objection}"
        );
        thread::park_timeout(LOOK);
    }
}

fn document(name: &str) -> Document {
    let Some(builtin) = Builtin::named(name) else {
        panic!("no built-in lab is called {name}")
    };
    match builtin.document() {
        Ok(document) => document,
        Err(error) => panic!("{name}: {error}"),
    }
}

/// The permission to run a mesh.
#[derive(Debug)]
struct Turn;

impl Turn {
    fn take() -> Self {
        let mut running = running();
        while *running >= AT_ONCE {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *running() -= 1;
        ENDED.notify_one();
    }
}

fn running() -> MutexGuard<'static, usize> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
