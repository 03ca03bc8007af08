//! Prints how fast policy reaches the kernel of a node that has a large ruleset, and what that costs its agent.
//!
//! ```text
//! ┌─ n1 ─────────┐   ┌─ server ─────┐
//! │ meshd agent  │═══│ meshd serve  │ ◀── an administrator: pods, policies, and one change at a time
//! └──────────────┘   └──────────────┘
//!   the generation of nftables' rules: when the transaction took effect
//!
//! bench-enforce [LOCAL [REMOTE [POLICIES [ACTIVE [CHANGES]]]]]   MESHD_BIN_DIR names the folder of the programs
//! ```
//!
//! Time is from the administrator's request to the moment when the last transaction that it caused has taken effect.
//! What the kernel tells of a transaction is counted in rounds of their own, behind those that are timed.

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod cluster;
mod desk;
mod monitor;
mod process;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lab::{End, Lab, Service, Topology};
use model::{Kind, NodeName, Object, ObjectKey};
use serde_json::json;

use self::{
    cluster::{NAMESPACE, Size},
    desk::{Desk, Write, Written},
    monitor::{Heard, Monitor, pause},
    process::Use,
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The kernel has been told everything when it heard nothing for so long.
const QUIET: Duration = Duration::from_millis(150);

/// How often each change is made once more to be counted.
const COUNTED: u32 = 3;

/// How often the agent is started.
const STARTS: usize = 5;

/// One change, repeated.
struct Change<'a> {
    name: &'a str,
    make: Box<dyn Fn(u32) -> Write + 'a>,
    undo: Option<Box<dyn Fn(u32) -> Write + 'a>>,
}

/// What one change cost.
struct Sample {
    kernel: Duration,
    request: Duration,
    cpu: Duration,
    transactions: u32,
}

/// The lab and what looks at it.
struct Bench {
    lab: Lab,
    desk: Desk,
    monitor: Monitor,
    changes: u32,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut number = |usual: u32| arguments.next().map_or(Ok(usual), |text| text.parse());
    let size = Size {
        local: number(110)?,
        remote: number(5000)?,
        policies: number(1000)?,
        active: number(500)?,
    };
    let changes = number(30)?;
    let lab = Topology::new()
        .network("lan", &["192.0.2.0/24"])
        .server(&["lan"])
        .pool("10.65.0.0/16")
        .node("n1", &["lan"])
        .up();
    let label = lab.node("n1").name().parse().map_err(anyhow::Error::msg)?;
    let netns = lab.site(|site| site.host_space(&label))?;
    let bench = Bench {
        desk: Desk::open(&lab)?,
        monitor: Monitor::start(netns)?,
        lab,
        changes,
    };
    bench.fill(size)?;
    println!("cluster: {size:?}");
    bench.starts()?;
    bench.change_all(size)
}

impl Bench {
    fn fill(&self, size: Size) -> anyhow::Result<()> {
        let begin = Instant::now();
        let objects = cluster::objects(size, &node());
        let count = objects.len();
        let is_namespace = |object: &Object| object.kind == Kind::Namespace;
        // An endpoint brings its namespace with it, where there is none yet.
        let (namespaces, others) = objects.into_iter().partition(is_namespace);
        self.desk.write(Write::Create(namespaces))?;
        self.desk.write(Write::Create(others))?;
        self.settle()?;
        println!(
            "{count} objects written and in force after {:.1} s",
            begin.elapsed().as_secs_f64()
        );

        Ok(())
    }

    /// Starts the agent anew: on a kernel without any of our rules, and on one that has them all.
    fn starts(&self) -> anyhow::Result<()> {
        println!("\nstart            in force ms (least, median, most)  CPU ms  RSS MiB  peak MiB");
        for is_cold in [true, false] {
            let mut times = Vec::new();
            let mut last = None;
            for _ in 0..STARTS {
                self.lab.site(|site| site.kill("n1", Service::Agent))?;
                if is_cold {
                    self.lab.node("n1").run("nft", &["flush", "ruleset"]);
                }
                let begin = Instant::now();
                self.lab.site(|site| site.restart("n1", Service::Agent))?;
                self.await_applied()?;
                times.push(begin.elapsed());
                let started = Use::of(self.agent()?)?;
                self.settle()?;
                // What the start took is given back by now.
                last = Some(Use {
                    cpu: started.cpu,
                    ..Use::of(self.agent()?)?
                });
            }
            times.sort();
            let cost = last.context("there was no start")?;
            println!(
                "{:15}  {:6.0} {:6.0} {:6.0}  {:21.0}  {:7.1}  {:8.1}",
                if is_cold { "no rules" } else { "killed" },
                ms(times[0]),
                ms(times[times.len() / 2]),
                ms(times[times.len() - 1]),
                ms(cost.cpu),
                cost.resident_mib,
                cost.peak_mib,
            );
        }

        Ok(())
    }

    fn change_all(&self, size: Size) -> anyhow::Result<()> {
        println!(
            "\nchange                                             kernel ms: p50    p90  request p50   CPU ms  transactions  objects    bytes"
        );
        let one = |i: u32| (i % size.local).to_string();
        let name = |what: &str, i: u32| {
            ObjectKey::namespaced(
                Kind::KubernetesNetworkPolicy,
                NAMESPACE,
                format!("{what}-{i}"),
            )
        };
        let create = move |what: &str, i: u32, selector: (&str, &str)| {
            Write::Create(vec![cluster::policy(
                &format!("{what}-{i}"),
                NAMESPACE,
                selector,
                i,
                Some(60_000 + i),
            )])
        };
        self.run(&Change {
            name: "policy created that selects one local pod",
            make: Box::new(move |i| create("one", i, ("pod", &one(i)))),
            undo: Some(Box::new(move |i| Write::Delete(name("one", i)))),
        })?;
        self.desk.write(create("edit", 0, ("pod", "7")))?;
        self.run(&Change {
            name: "rule edited in a policy of one local pod",
            make: Box::new(move |i| edit(&name("edit", 0), i)),
            undo: None,
        })?;
        self.run(&Change {
            name: "policy created that selects all local pods",
            make: Box::new(move |i| create("all", i, ("local", "yes"))),
            undo: Some(Box::new(move |i| Write::Delete(name("all", i)))),
        })?;
        self.desk.write(create("edit", 1, ("local", "yes")))?;
        self.run(&Change {
            name: "rule edited in a policy of all local pods",
            make: Box::new(move |i| edit(&name("edit", 1), i)),
            undo: None,
        })?;
        self.desk.write(create("edit", 2, ("local", "no")))?;
        self.settle()?;
        let select = move |value: &str| {
            Write::Patch(
                name("edit", 2),
                json!({"spec": {"podSelector": {"matchLabels": {"local": value}}}}),
            )
        };
        self.run(&Change {
            name: "selector edited, from none to all local pods",
            make: Box::new(move |_| select("yes")),
            undo: Some(Box::new(move |_| select("no"))),
        })?;
        let late = |i: u32| cluster::late_pod(i);
        self.run(&Change {
            name: "pod elsewhere created",
            make: Box::new(move |i| Write::Create(vec![late(i)])),
            undo: None,
        })?;
        self.run(&Change {
            name: "pod elsewhere deleted",
            make: Box::new(move |i| Write::Delete(late(i).key())),
            undo: None,
        })?;
        self.run(&Change {
            name: "label of a local pod changed",
            make: Box::new(move |i| relabel(i % size.local)),
            undo: None,
        })
    }

    fn run(&self, change: &Change<'_>) -> anyhow::Result<()> {
        self.settle()?;
        let mut samples = Vec::new();
        for i in 0..self.changes {
            samples.push(
                self.sample((change.make)(i))
                    .with_context(|| change.name.to_owned())?,
            );
            self.undo(change, i)?;
        }
        let counts = self.count(change)?;
        let at = |share: usize, of: &dyn Fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[(values.len() - 1) * share / 100]
        };
        let mean = |of: &dyn Fn(&Sample) -> f64| {
            samples.iter().map(of).sum::<f64>() / samples.len() as f64
        };
        println!(
            "{:50} {:14.1} {:6.1}  {:11.1}  {:7.1}  {:12.1}  {:7.0}  {:7.0}",
            change.name,
            at(50, &|sample| ms(sample.kernel)),
            at(90, &|sample| ms(sample.kernel)),
            at(50, &|sample| ms(sample.request)),
            mean(&|sample| ms(sample.cpu)),
            mean(&|sample| f64::from(sample.transactions)),
            counts.messages as f64 / f64::from(COUNTED),
            counts.bytes as f64 / f64::from(COUNTED),
        );

        Ok(())
    }

    fn undo(&self, change: &Change<'_>, i: u32) -> anyhow::Result<()> {
        let Some(undo) = &change.undo else {
            return Ok(());
        };
        self.desk.write(undo(i))?;

        self.settle()
    }

    /// Makes a change a few times more, and counts what the kernel tells of it.
    fn count(&self, change: &Change<'_>) -> anyhow::Result<Heard> {
        let mut sum = Heard::default();
        for i in self.changes..self.changes + COUNTED {
            let mut listener = self.monitor.listen()?;
            self.sample((change.make)(i))?;
            let heard = listener.heard()?;
            sum.messages += heard.messages;
            sum.bytes += heard.bytes;
            drop(listener);
            self.undo(change, i)?;
        }

        Ok(sum)
    }

    /// Makes one change and waits until the kernel has it.
    fn sample(&self, write: Write) -> anyhow::Result<Sample> {
        let agent = self.agent()?;
        let before = Use::of(agent)?;
        self.monitor.measure();
        let Written { at, took } = self.desk.write(write)?;
        while self.monitor.seen().last.is_none() {
            if at.elapsed() > PATIENCE {
                bail!("the kernel heard nothing");
            }
            pause(Duration::from_millis(1));
        }
        self.settle()?;
        self.monitor.relax();
        let seen = self.monitor.seen();
        let last = seen.last.context("it was heard")?;

        Ok(Sample {
            kernel: last.saturating_duration_since(at),
            request: took,
            cpu: Use::of(agent)?.cpu.saturating_sub(before.cpu),
            transactions: seen.transactions,
        })
    }

    /// Waits until the agent says that everything it knows is in the kernel.
    fn await_applied(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        let node = self.lab.node("n1");
        while node.ask("/v1/status")["converged"] != true {
            if begin.elapsed() > PATIENCE {
                bail!("the agent does not settle");
            }
            pause(Duration::from_millis(2));
        }

        Ok(())
    }

    /// Waits until nothing more comes into the kernel.
    fn settle(&self) -> anyhow::Result<()> {
        self.await_applied()?;
        let begin = Instant::now();
        loop {
            let last = self.monitor.seen().last.unwrap_or(begin);
            let Some(left) = QUIET.checked_sub(last.max(begin).elapsed()) else {
                return Ok(());
            };
            pause(left);
        }
    }

    fn agent(&self) -> anyhow::Result<u32> {
        let process = self.lab.site(|site| site.service("n1", Service::Agent))?;

        Ok(process.pid)
    }
}

fn edit(key: &ObjectKey, i: u32) -> Write {
    let object = cluster::policy(&key.name, NAMESPACE, ("pod", "7"), 7, Some(61_000 + i));
    let ingress = object.body["spec"]["ingress"].clone();

    Write::Patch(key.clone(), json!({"spec": {"ingress": ingress}}))
}

fn relabel(i: u32) -> Write {
    let pod = cluster::local_pod(i, &node(), cluster::local_labels(i));
    let f0 = ((i % 10 + 1) % 10).to_string();

    Write::Patch(pod.key(), json!({"metadata": {"labels": {"f0": f0}}}))
}

fn node() -> NodeName {
    "n1".parse().expect("a node's name")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
