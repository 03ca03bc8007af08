//! Prints what an agent costs while its mesh of 500 nodes is at rest: CPU, wake-ups, memory.
//!
//! ```text
//! ┌─ n1 ───────────────────────┐   ┌─ server ─────┐
//! │ meshd agent                │═══│ meshd serve  │ ◀── 500 nodes, as their agents write about
//! │ meshwire, 500 peers        │   │              │     themselves: one pod a node comes or goes
//! └────────────────────────────┘   └──────────────┘     every ten minutes, one record a minute
//!
//! bench-rest [NODES [SECONDS]]      MESHD_BIN_DIR names the folder of the programs
//! ```
//!
//! The programs are real, each in its namespace; of the 500 nodes only what they write is.

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod cost;
mod ghost;

use std::{
    env, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lab::{Lab, Node, Service, Topology};
use model::Object;

use self::{
    cost::{Look, resident_mib},
    ghost::Ghost,
};

/// How many nodes there are, unless somebody says otherwise.
const NODES: u32 = 500;

/// How long each look takes, unless somebody says otherwise.
const SECONDS: u64 = 120;

/// How often a pod comes or goes on each node.
const POD_LIFE: Duration = Duration::from_secs(600);

/// How often some node publishes its record anew.
const RECORD: Duration = Duration::from_secs(60);

/// For how long a peer that does not answer is tried (§6.1 of the WireGuard paper: 90 s), and some.
const UNANSWERED: Duration = Duration::from_secs(100);

/// How long the mesh may take to be whole.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let sizes = match arguments.next() {
        Some(text) => vec![text.parse()?],
        None => vec![1, NODES],
    };
    let seconds = arguments.next().map_or(Ok(SECONDS), |text| text.parse())?;
    let span = Duration::from_secs(seconds);

    println!("nodes  rest of         program    CPU %  wake-ups/s  RSS MiB");
    for nodes in sizes {
        let lab = mesh();
        let node = lab.node("n1");
        fill(&lab, nodes)?;
        settle(&node, nodes)?;
        pause(UNANSWERED);

        measure(&lab, nodes, "nothing", span, |_| Ok(()))?;
        let mut life = Life::new(nodes);
        measure(&lab, nodes, "a living mesh", span, |lab| life.go_on(lab))?;
    }

    Ok(())
}

/// One real member, encrypted.
fn mesh() -> Lab {
    let felix = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": {"wireguardEnabled": true},
    });

    // The real member claims no block in the ghosts' pool.
    let ghosts = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": {"name": "ghosts"},
        "spec": {"cidr": "10.66.0.0/16", "nodeSelector": "has(ghost)"},
    });

    Topology::new()
        .network("lan", &["100.64.0.0/16"])
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .resource(felix)
        .resource(ghosts)
        .node("n1", &["lan"])
        .pod("default/a")
        .up()
}

fn fill(lab: &Lab, nodes: u32) -> anyhow::Result<()> {
    let mut objects = Vec::new();
    for number in 1..nodes {
        objects.extend(Ghost(number).objects()?);
    }

    apply(lab, &objects)
}

fn apply(lab: &Lab, objects: &[Object]) -> anyhow::Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let texts = objects.iter().map(serde_json::to_string);
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    lab.apply(&texts.join("\n"));

    Ok(())
}

/// Waits until the member has all of them as peers.
fn settle(node: &Node, nodes: u32) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let status = node.ask("/v1/status");
        let members = status["encryption"]["members"] == nodes;
        if members && status["converged"] == true && status["encryption"]["phase"] == "Enforced" {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            bail!("the mesh does not settle: {status}");
        }
        pause(Duration::from_millis(200));
    }
}

fn measure(
    lab: &Lab,
    nodes: u32,
    what: &str,
    span: Duration,
    mut meanwhile: impl FnMut(&Lab) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let programs = [
        ("agent", "n1", Service::Agent),
        ("meshwire", "n1", Service::Wire),
        ("server", "server", Service::Server),
    ];
    let mut looks = Vec::new();
    for (name, host, service) in programs {
        let process = lab.site(|site| site.service(host, service).map(|process| process.pid));
        let pid = process.with_context(|| format!("{name} does not run"))?;
        looks.push((name, pid, Look::at(pid)?));
    }
    let end = Instant::now() + span;
    while Instant::now() < end {
        meanwhile(lab)?;
        pause(
            end.saturating_duration_since(Instant::now())
                .min(Duration::from_millis(50)),
        );
    }
    for (name, pid, before) in looks {
        let cost = Look::at(pid)?.since(before);
        println!(
            "{nodes:5}  {what:14}  {name:8}  {:6.3}  {:10.1}  {:7.1}",
            cost.cpu,
            cost.wakeups,
            resident_mib(pid)?
        );
    }

    Ok(())
}

/// What the others write while they live.
struct Life {
    nodes: u32,
    pods: u64,
    records: u64,
    next_pod: Instant,
    next_record: Instant,
}

impl Life {
    fn new(nodes: u32) -> Self {
        Self {
            nodes,
            pods: 0,
            records: 1,
            next_pod: Instant::now(),
            next_record: Instant::now(),
        }
    }

    /// Writes what is due.
    fn go_on(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let others = self.nodes.saturating_sub(1);
        if others == 0 {
            return Ok(());
        }
        let ghost = |count: u64| {
            let number = count % u64::from(others);
            Ok::<_, anyhow::Error>(Ghost(1 + u32::try_from(number)?))
        };
        let now = Instant::now();
        if self.next_pod <= now {
            self.next_pod = now + POD_LIFE / others;
            self.pods += 1;
            let round = self.pods / u64::from(others);
            apply(lab, &[ghost(self.pods)?.block(round + 1)])?;
        }
        if self.next_record <= now {
            self.next_record = now + RECORD;
            self.records += 1;
            apply(lab, &[ghost(self.records)?.node(self.records)?])?;
        }

        Ok(())
    }
}

fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}
