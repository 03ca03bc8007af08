//! Prints how long a container runtime waits for `meshd-cni`, beside the distribution's plugins in the same run; and
//! whether a pod that sends from its first microsecond gets a packet out before its policy is live.
//!
//! ```text
//! ┌─ n1 ───────────────────────────────┐   ┌─ server ─────┐        ┌─ rival ─────────────────┐
//! │ meshd-cni ─▶ agent ─▶ kernel       │═══│ meshd serve  │        │ bridge + host-local     │
//! │ 110 pods, 10,000 policies known    │   └──────────────┘        │ ptp + host-local        │
//! └────────────────────────────────────┘                           └─────────────────────────┘
//!
//! bench-cni [POLICIES [PODS [ROUNDS [STARTS]]]]     MESHD_BIN_DIR names the folder of the programs
//! ```
//!
//! Time is from the plugin's start to its end, its own start included: what a runtime waits for. The container's
//! network namespace is there before. The rivals have a namespace of their own, without pods or rules.

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod hostile;
mod plugin;

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Barrier, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lab::{End as _, Lab, Netns, Place, Tools, Topology};
use serde_json::{Value, json};

use self::{
    hostile::{Tried, Victim, attack},
    plugin::{Container, Plugin, Verb},
};

/// How many containers come at once.
const AT_ONCE: usize = 50;

/// How many objects are applied at once.
const CHUNK: usize = 1000;

/// How many residents share a policy of their own.
const SHARED: usize = 10;

/// The pod that listens, and may be reached by all that may send.
const VICTIM: &str = "victim";

/// How long everything may take to be in force.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// How long the hostile pod goes on once its ADD was answered.
const AFTERWARDS: Duration = Duration::from_millis(3);

/// How large the run is.
#[derive(Clone, Copy, Debug)]
struct Size {
    policies: usize,
    pods: usize,
    rounds: usize,
    starts: usize,
}

/// Times by what was asked.
#[derive(Debug, Default)]
struct Times {
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut number = |usual: usize| arguments.next().map_or(Ok(usual), |text| text.parse());
    let size = Size {
        policies: number(10_000)?,
        pods: number(110)?,
        rounds: number(300)?,
        starts: number(1000)?,
    };
    let lab = lab();
    let plugins = plugins(&lab)?;
    fill(&lab, size)?;
    let ours = plugins.first().context("there are no plugins")?;
    reside(&lab, ours, size.pods)?;
    println!("{size:?}");
    settle(&lab)?;

    println!("\none after the other    ADD ms: p50    p99    max   DEL ms: p50    p99    max");
    let comers = (0..AT_ONCE).map(|index| container(&lab, &format!("c{index}")));
    let comers = comers.collect::<anyhow::Result<Vec<Container>>>()?;
    print(&plugins, &sequential(&comers[0], &plugins, size.rounds)?);
    println!(
        "\n{AT_ONCE} at once             ADD ms: p50    p99    max   DEL ms: p50    p99    max"
    );
    print(&plugins, &parallel(&comers, &plugins, size.rounds / 60)?);

    starts(&lab, ours, size.starts)
}

fn lab() -> Lab {
    Topology::new()
        .network("lan", &["192.0.2.0/24"])
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .node("n1", &["lan"])
        .outside("far", &["lan"], &[])
        .up()
}

/// Ours first.
fn plugins(lab: &Lab) -> anyhow::Result<Vec<Plugin>> {
    let node = lab.node("n1");
    let rival = space(lab, "rival")?;
    let elsewhere = Place {
        netns: rival,
        ..node.place()
    };
    let theirs = Tools::find()?.plugins()?;
    let programs = env::var_os("MESHD_BIN_DIR")
        .map(PathBuf::from)
        .context("MESHD_BIN_DIR is not set")?;
    let ipam = |subnet: &str| {
        json!({"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [[{"subnet": subnet}]],
               "routes": [{"dst": "0.0.0.0/0"}]})
    };
    let ours = json!({"cniVersion": "1.0.0", "name": "mesh", "type": "meshd"});
    let bridge = json!({"cniVersion": "1.0.0", "name": "bridged", "type": "bridge", "bridge": "rival0",
                        "isGateway": true, "ipam": ipam("10.90.0.0/16")});
    let ptp = json!({"cniVersion": "1.0.0", "name": "paired", "type": "ptp", "ipam": ipam("10.91.0.0/16")});

    Ok(vec![
        Plugin::new("meshd", &programs.join("meshd-cni"), &ours, node.place()),
        Plugin::new(
            "bridge+host-local",
            &theirs.join("bridge"),
            &bridge,
            elsewhere.clone(),
        ),
        Plugin::new("ptp+host-local", &theirs.join("ptp"), &ptp, elsewhere),
    ])
}

/// Makes a network namespace that goes with the lab.
fn space(lab: &Lab, name: &str) -> anyhow::Result<String> {
    let netns = format!("{}-{name}", lab.name());
    Netns::create(&netns)?;

    Ok(netns)
}

/// Policies and pods, as an administrator applies them.
fn fill(lab: &Lab, size: Size) -> anyhow::Result<()> {
    let namespaces = ["shop", "crowd"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    apply(lab, &namespaces);
    let felix = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": {"defaultEndpointToHostAction": "Accept"},
    });
    apply(lab, &[felix]);
    let local = size.pods.div_ceil(SHARED).min(size.policies);
    let policies: Vec<Value> = (0..size.policies)
        .map(|index| {
            let (namespace, app) = if index < local { ("shop", index) } else { ("crowd", index) };
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace, "name": format!("p{index}")},
                "spec": {"podSelector": {"matchLabels": {"app": format!("a{app}")}},
                         "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": format!("t{}", index % 7)}}}],
                                      "ports": [{"port": 8000 + index % 50}]}]},
            })
        })
        .collect();
    for policies in policies.chunks(CHUNK) {
        apply(lab, policies);
    }
    let hostile = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "hostile"},
        "spec": {"podSelector": {"matchLabels": {"app": "hostile"}}, "policyTypes": ["Egress"]},
    });
    apply(lab, &[hostile]);
    let apps = (0..size.pods).map(|index| (format!("r{index}"), format!("a{}", index / SHARED)));
    let comers =
        (0..AT_ONCE).map(|index| (format!("c{index}"), format!("a{}", index % local.max(1))));
    let hostile = ["hostile", "friend", VICTIM].map(|name| (name.to_owned(), name.to_owned()));
    let pods: Vec<Value> = apps
        .chain(comers)
        .chain(hostile)
        .map(|(name, app)| {
            json!({"apiVersion": "v1", "kind": "Pod",
                   "metadata": {"namespace": "shop", "name": name, "labels": {"app": app, "tier": "t1"}},
                   "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}})
        })
        .collect();
    apply(lab, &pods);

    settle(lab)
}

fn apply(lab: &Lab, objects: &[Value]) {
    let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
    lab.apply(&texts.join("\n"));
}

/// Waits until the agent has done all it was told.
fn settle(lab: &Lab) -> anyhow::Result<()> {
    lab.wait();
    let begin = Instant::now();
    while lab.node("n1").status()["converged"] != true {
        ensure!(begin.elapsed() < PATIENCE, "the agent does not settle");
        thread::park_timeout(LOOK);
    }

    Ok(())
}

fn container(lab: &Lab, name: &str) -> anyhow::Result<Container> {
    Ok(Container {
        name: name.to_owned(),
        netns: space(lab, name)?,
    })
}

/// The pods that are there while others come and go.
fn reside(lab: &Lab, ours: &Plugin, count: usize) -> anyhow::Result<()> {
    for index in 0..count {
        let container = container(lab, &format!("r{index}"))?;
        ours.call(Verb::Add, &container)?;
    }

    Ok(())
}

fn address(answer: &Value) -> anyhow::Result<IpAddr> {
    let written = answer["ips"][0]["address"].as_str().context("no address")?;
    let bare = written.split('/').next().unwrap_or_default();

    Ok(bare.parse()?)
}

/// One container comes and goes, by each plugin in turn.
fn sequential(
    container: &Container,
    plugins: &[Plugin],
    rounds: usize,
) -> anyhow::Result<Vec<Times>> {
    let mut times: Vec<Times> = plugins.iter().map(|_| Times::default()).collect();
    for _ in 0..rounds {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            times.add.push(plugin.call(Verb::Add, container)?.0);
            times.del.push(plugin.call(Verb::Del, container)?.0);
        }
    }

    Ok(times)
}

/// Many come at once, then go at once, by each plugin in turn.
fn parallel(
    containers: &[Container],
    plugins: &[Plugin],
    rounds: usize,
) -> anyhow::Result<Vec<Times>> {
    let mut times: Vec<Times> = plugins.iter().map(|_| Times::default()).collect();
    for _ in 0..rounds.max(1) {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            times.add.extend(at_once(plugin, Verb::Add, containers)?);
            times.del.extend(at_once(plugin, Verb::Del, containers)?);
        }
    }

    Ok(times)
}

fn at_once(plugin: &Plugin, verb: Verb, containers: &[Container]) -> anyhow::Result<Vec<Duration>> {
    let (together, taken) = (Barrier::new(containers.len()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for container in containers {
            scope.spawn(|| {
                together.wait();
                let called = plugin.call(verb, container).map(|(taken, _)| taken);
                taken
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(called);
            });
        }
    });

    taken
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_iter()
        .collect()
}

fn print(plugins: &[Plugin], times: &[Times]) {
    for (plugin, times) in plugins.iter().zip(times) {
        let row = |times: &[Duration]| {
            let mut sorted = times.to_vec();
            sorted.sort();
            let at = |per_mille: usize| {
                let place = sorted.len().saturating_sub(1) * per_mille / 1000;
                sorted
                    .get(place)
                    .map_or(0.0, |time| time.as_secs_f64() * 1e3)
            };
            format!("{:6.1} {:6.1} {:6.1}", at(500), at(990), at(1000))
        };
        println!(
            "{:18}         {}        {}",
            plugin.name,
            row(&times.add),
            row(&times.del)
        );
    }
}

/// Starts hostile pods one after the other; nothing of theirs may arrive. A friendly one first: what it sends arrives.
fn starts(lab: &Lab, ours: &Plugin, count: usize) -> anyhow::Result<()> {
    let neighbour = container(lab, VICTIM)?;
    let (_, answer) = ours.call(Verb::Add, &neighbour)?;
    let node = lab.node("n1");
    let far = lab.outside("far");
    let v4 = |addresses: Vec<IpAddr>| {
        addresses
            .into_iter()
            .find(IpAddr::is_ipv4)
            .context("no IPv4 address")
    };
    let victims = [
        Victim::new(&Netns::open(&neighbour.netns)?, address(&answer)?)?,
        Victim::new(&node.netns(), v4(node.addresses())?)?,
        Victim::new(&far.netns(), v4(far.addresses())?)?,
    ];
    let names = ["another pod", "the node", "beyond the node"];
    let mut guesses: Vec<Ipv4Addr> = Vec::new();
    println!(
        "\na pod that sends from the start     starts   it sent: datagrams  frames   arrived at {}",
        names.join(", ")
    );
    for (name, count) in [("friend", count.min(20)), ("hostile", count)] {
        let before: Vec<u64> = victims.iter().map(Victim::heard).collect();
        let mut tried = Tried::default();
        let container = container(lab, name)?;
        for _ in 0..count {
            let (one, answered) = start(ours, &container, &victims, &guesses)?;
            tried.datagrams += one.datagrams;
            tried.frames += one.frames;
            if let IpAddr::V4(answered) = answered {
                guesses = (1..=4)
                    .map(|next| Ipv4Addr::from(u32::from(answered) + next))
                    .chain([answered])
                    .collect();
            }
        }
        let arrived = victims
            .iter()
            .zip(&before)
            .map(|(victim, before)| victim.heard() - before);
        let arrived: Vec<u64> = arrived.collect();
        let policy = if name == "friend" {
            "no policy"
        } else {
            "all of it denied"
        };
        println!(
            "{name:8} {policy:18} {count:14} {:20} {:7}   {arrived:?}",
            tried.datagrams, tried.frames
        );
        match name {
            "friend" => ensure!(
                arrived.iter().all(|count| *count > 0),
                "what is allowed does not arrive: {arrived:?}"
            ),
            _ => ensure!(
                arrived.iter().all(|count| *count == 0),
                "packets passed before policy: {arrived:?}"
            ),
        }
        ensure!(
            tried.datagrams > 0 && tried.frames > 0,
            "the pod sent nothing: {tried:?}"
        );
    }

    Ok(())
}

/// One start; returns what the pod tried, and its address.
fn start(
    ours: &Plugin,
    container: &Container,
    victims: &[Victim],
    guesses: &[Ipv4Addr],
) -> anyhow::Result<(Tried, IpAddr)> {
    let netns = Netns::open(&container.netns)?;
    let addresses: Vec<IpAddr> = victims.iter().map(|victim| victim.address).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let attack = scope.spawn(|| attack(&netns, &addresses, guesses, &over));
        let added = ours.call(Verb::Add, container);
        thread::park_timeout(AFTERWARDS);
        let removed = ours.call(Verb::Del, container);
        over.store(true, Ordering::Relaxed);
        let tried = attack
            .join()
            .unwrap_or_else(|_| bail!("the hostile pod panicked"))?;
        let (_, answer) = added?;
        removed?;

        Ok((tried, address(&answer)?))
    })
}
