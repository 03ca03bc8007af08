//! A large cluster: what a node with 110 or 1,000 pods makes of 100,000 pods and 10,000 policies.

use policy::Compiler;

use crate::{
    Figures, changes, measured,
    object::{label, namespace, pod, policy},
    resident_kib,
};

/// Policies, a hundred in a namespace.
const POLICIES: u32 = 10_000;
const NAMESPACES: u32 = 100;
const APPS: u32 = POLICIES / NAMESPACES;

/// Changes of each sort that are timed.
const CHANGES: u32 = 300;

pub(crate) const MEMORY_HEAD: &str =
    "  pods  alike  local  B/pod  B/policy  learn ms  first plan ms   rows  all MiB";

pub(crate) const CHANGES_HEAD: &str = "  pods  alike  local  change                                   p50 µs    p99 µs   rows  effort";

/// A cluster.
#[derive(Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) endpoints: u32,
    /// Pods that look the same, labels and namespace.
    pub(crate) alike: u32,
    /// Pods of the node.
    pub(crate) local: u32,
}

impl Cluster {
    /// Builds the cluster and prints what that costs.
    pub(crate) fn print_memory(self) {
        let mut compiler = Compiler::new("own".parse().expect("three letters name a node"));
        let ((), pods_taken, pods) = measured(|| self.learn_pods(&mut compiler));
        let ((), policies_taken, policies) = measured(|| self.learn_policies(&mut compiler));
        let (rows, plan, _) = measured(|| compiler.update().len());
        println!(
            "{:6}  {:5}  {:5}  {:5}  {:8}  {:8.0}  {:13.1}  {:5}  {:7.1}",
            self.endpoints,
            self.alike,
            self.local,
            pods * 1024 / u64::from(self.endpoints),
            policies * 1024 / u64::from(POLICIES),
            pods_taken + policies_taken,
            plan,
            rows,
            resident_kib() as f64 / 1024.0,
        );
    }

    /// Builds the cluster and prints what changes cost.
    pub(crate) fn print_changes(self) {
        let mut compiler = Compiler::new("own".parse().expect("three letters name a node"));
        self.learn_pods(&mut compiler);
        self.learn_policies(&mut compiler);
        compiler.update();
        print!("{}", self.changes(&mut compiler));
    }

    fn learn_pods(self, compiler: &mut Compiler) {
        for number in 0..NAMESPACES {
            compiler.insert(&namespace(&format!("n{number}")));
        }
        for number in 0..self.endpoints {
            compiler.insert(&self.pod(number, 0));
        }
    }

    fn learn_policies(self, compiler: &mut Compiler) {
        for number in 0..POLICIES {
            compiler.insert(&self.policy(number, 80));
        }
    }

    fn changes(self, compiler: &mut Compiler) -> String {
        // In the namespace of the node's first pod, and so in sets.
        let remote = 1;
        let mut table = String::new();
        let mut row = |name: &str, figures: &Figures| {
            table += &format!(
                "{:6}  {:5}  {:5}  {name:38}  {:8.1}  {:8.1}  {:5}  {:6}\n",
                self.endpoints,
                self.alike,
                self.local,
                figures.p50,
                figures.p99,
                figures.rows,
                figures.effort,
            );
        };
        let figures = changes(compiler, CHANGES, |compiler, n| {
            compiler.insert(&self.pod(remote, 1 + n % 2));
        });
        row("a remote pod's label: out of sets, in", &figures);
        let figures = changes(compiler, CHANGES, |compiler, n| {
            compiler.insert(&self.pod(0, 1 + n % 2));
        });
        row("a local pod's label: other policies", &figures);
        let new = self.endpoints;
        let figures = changes(compiler, CHANGES, |compiler, n| {
            compiler.insert(&self.pod(new + n, 0));
        });
        row("a new pod elsewhere", &figures);
        let figures = changes(compiler, CHANGES, |compiler, n| {
            let name = format!("new-{n}");
            let labels = self.labels(0, 0);
            compiler.insert(&pod(
                &self.namespace(0),
                &name,
                "own",
                new + 1_000 + n,
                labels,
            ));
        });
        row("a new pod here", &figures);
        let figures = changes(compiler, CHANGES, |compiler, n| {
            let port = if n % 2 == 0 { 81 } else { 80 };
            compiler.insert(&self.policy(0, port));
        });
        row("a policy's rule", &figures);
        let figures = changes(compiler, 40, |compiler, n| {
            let selector = if n % 2 == 0 { "has(app)" } else { "!has(app)" };
            compiler.insert(&policy("wide", selector, &[self.source(0, 1)], 80));
        });
        row("a policy for every pod here, and back", &figures);
        let figures = changes(compiler, CHANGES, |compiler, n| {
            let team = if n % 2 == 0 { "b" } else { "a" };
            compiler.insert(&relabelled(&self.namespace(0), team));
        });
        row("a namespace's label", &figures);

        table
    }

    /// The pods of the node are all over the namespaces.
    fn pod(self, number: u32, turn: u32) -> model::Resource {
        let is_local =
            number.is_multiple_of(self.endpoints / self.local) && number < self.endpoints;
        let node = if is_local { "own" } else { "other" };
        let name = format!("pod-{number}");
        let labels = self.labels(number, turn);

        pod(&self.namespace(number), &name, node, number, labels)
    }

    fn namespace(self, number: u32) -> String {
        format!("n{}", (number / self.alike) % NAMESPACES)
    }

    fn labels(self, number: u32, turn: u32) -> Vec<(String, String)> {
        let kin = number / self.alike / NAMESPACES;

        vec![
            label("app", format!("a{}", (kin + turn) % APPS)),
            label("tier", format!("t{}", kin % 3)),
            label("pod-template-hash", format!("h{kin}")),
        ]
    }

    /// A policy for each app of each namespace: two other apps of the namespace may come.
    fn policy(self, number: u32, port: u16) -> model::Resource {
        let (namespace, app) = (number % NAMESPACES, number / NAMESPACES);

        policy(
            &format!("p{number}"),
            &self.source(namespace, app),
            &[
                self.source(namespace, app + 1),
                self.source(namespace, app + 2),
            ],
            port,
        )
    }

    fn source(self, namespace: u32, app: u32) -> String {
        let app = app % APPS;

        format!("projectcalico.org/namespace == 'n{namespace}' && app == 'a{app}'")
    }
}

fn relabelled(name: &str, team: &str) -> model::Resource {
    let mut changed = namespace(name);
    if let model::Resource::Namespace(namespace) = &mut changed {
        namespace.labels.insert("team".to_owned(), team.to_owned());
    }

    changed
}
