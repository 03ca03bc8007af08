//! Whatever comes, changes and goes, in whatever order: the rows are those of the slow compiler.

mod chance;

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Family, InterfaceName, Kind, NodeName, ObjectKey, PodName, Resource,
    nft::{Element, Match, Sense},
    policy::{Action, Directions, Policy, Rule, ServiceRef, Side, Stage},
    resource::{self, WorkloadEndpoint},
};

use self::chance::Chance;
use super::{Change, Compiler, Row, RowKey};
use crate::{
    cluster::{
        Cluster, Interface, Node, Service,
        object::{self, Origin},
    },
    compile::{Compiled, Options, Ruleset, Scene, Workload, compile},
};

/// The slow twin: it keeps objects, and compiles all of them.
#[derive(Clone, Default)]
struct Twin {
    objects: BTreeMap<ObjectKey, Resource>,
    options: Options,
    interfaces: Vec<Interface>,
}

#[test]
fn whatever_comes_and_goes_the_rows_are_those_of_a_fresh_compile() {
    let mut seen = BTreeMap::new();
    for seed in 0..150 {
        let mut chance = Chance::new(seed);
        let (mut compiler, mut twin) = (Compiler::new(own()), Twin::default());
        let mut rows = Ruleset::default();
        for step in 0..40 {
            for _ in 0..=chance.below(4) {
                act(&mut chance, &mut compiler, &mut twin);
            }
            let changes = compiler.update();
            let place = format!("seed {seed}, step {step}");

            assert_minimal(&rows, &changes, &place);
            follow(&mut rows, shuffled(changes, &mut chance));
            let Compiled {
                rows: right,
                refused,
            } = compile(&twin.scene());
            assert_eq!(differences(&right, &rows), "", "{place}");
            assert_eq!(differences(&right, &compiler.ruleset()), "", "{place}");
            let refused: BTreeMap<_, _> = refused
                .into_iter()
                .map(|(key, refusal)| (key, refusal.to_string()))
                .collect();
            assert_eq!(compiler.refused(), &refused, "{place}");
            note(&rows, &refused, &mut seen);
        }
        forget_all(compiler, &twin, rows);
    }

    for what in EVERYTHING {
        assert!(
            seen.get(what).is_some_and(|count| *count > 10),
            "{what}: {seen:?}"
        );
    }
}

/// Sorts of names of which a chain or set must have been there, or they have not been compared.
const EVERYTHING: [&str; 16] = [
    "selected",
    "selectednet",
    "nets",
    "netsnet",
    "answering",
    "service",
    "named",
    "ports",
    "group_in/",
    "group_out/",
    "policy_in/",
    "policy_out/",
    "profile_in/",
    "admit",
    "host_forward_in",
    "a refusal",
];

fn note(rows: &Ruleset, refused: &BTreeMap<ObjectKey, String>, seen: &mut BTreeMap<&str, u32>) {
    let sets = rows.sets.keys().map(|key| key.name.as_str());
    let chains = rows.chains.keys().map(|key| key.name.as_str());
    for name in sets.chain(chains) {
        for sort in EVERYTHING.iter().filter(|sort| name.starts_with(**sort)) {
            let rest = &name[sort.len()..];
            if sort.ends_with('/') || rest.starts_with(['4', '6', '_']) || rest.is_empty() {
                *seen.entry(sort).or_default() += 1;
            }
        }
    }
    *seen.entry("a refusal").or_default() += u32::try_from(refused.len()).unwrap();
}

/// Where the first of a family comes or the last goes, every rule that asks for somebody is written or goes with it.
#[test]
fn the_rules_of_a_family_come_with_its_first_and_go_with_its_last() {
    let mut turns = BTreeMap::new();
    for seed in 0..60 {
        let mut chance = Chance::new(3_000 + seed);
        let (mut compiler, mut twin) = (Compiler::new(own()), Twin::default());
        let (mut rows, mut season) = (Ruleset::default(), Vec::new());
        for step in 0..40 {
            if chance.once_in(5) {
                season = chance.families();
            }
            for _ in 0..=chance.below(4) {
                act(&mut chance, &mut compiler, &mut twin);
            }
            twin.keep_families(&season, &mut compiler);
            let before = compiler.known;
            let changes = compiler.update();
            let place = format!("seed {seed}, step {step}");

            assert_minimal(&rows, &changes, &place);
            follow(&mut rows, changes);
            let scene = twin.scene();
            assert_eq!(differences(&compile(&scene).rows, &rows), "", "{place}");
            let there = families_of(&scene);
            assert_eq!(asked_for(&rows).difference(&there).next(), None, "{place}");
            for family in Family::BOTH {
                let (was, is) = (before.has(family), there.contains(&family));
                *turns.entry((family, was, is)).or_insert(0) += 1;
            }
        }
    }

    let often = turns.values().filter(|count| **count > 40).count();
    assert_eq!(often, 8, "{turns:?}");
}

/// The families of which somebody is there, counted one by one.
fn families_of(scene: &Scene) -> BTreeSet<Family> {
    let nets = scene.members.iter().flat_map(|member| &member.nets);
    let backends = scene.services.values().flatten();
    let backends = backends.map(|backend| Family::of(backend.address));

    nets.map(Family::of_net).chain(backends).collect()
}

/// The families of the sets of which rules ask that somebody be in them, networks apart.
fn asked_for(rows: &Ruleset) -> BTreeSet<Family> {
    let rules = rows.chains.values().flat_map(|chain| chain.rules.iter());
    let sets = rules.flat_map(|rule| rule.matches.iter().filter_map(Match::set));
    let sets = sets.filter(|(sense, name)| *sense == Sense::Is && !name.starts_with("nets"));
    let word = |name: &str| name.split('_').next().and_then(|word| word.chars().last());

    sets.filter_map(|(_, name)| match word(name) {
        Some('4') => Some(Family::V4),
        Some('6') => Some(Family::V6),
        _ => None,
    })
    .collect()
}

#[test]
fn the_order_in_which_objects_come_changes_nothing() {
    for seed in 0..60 {
        let mut chance = Chance::new(1_000 + seed);
        let (mut other, mut twin) = (Compiler::new(own()), Twin::default());
        for _ in 0..60 {
            act(&mut chance, &mut other, &mut twin);
        }
        let rows: Vec<Ruleset> = (0..3)
            .map(|_| {
                let mut compiler = Compiler::new(own());
                compiler.set_options(twin.options.clone());
                compiler.set_interfaces(twin.interfaces.clone());
                for resource in shuffled(twin.objects.values().collect(), &mut chance) {
                    compiler.insert(resource);
                    if chance.below(4) == 0 {
                        compiler.update();
                    }
                }
                compiler.update();
                compiler.ruleset()
            })
            .collect();

        assert_eq!(differences(&rows[0], &rows[1]), "", "seed {seed}");
        assert_eq!(differences(&rows[0], &rows[2]), "", "seed {seed}");
    }
}

#[test]
fn what_the_evaluator_is_shown_is_what_was_compiled() {
    for seed in 0..60 {
        let mut chance = Chance::new(2_000 + seed);
        let (mut compiler, mut twin) = (Compiler::new(own()), Twin::default());
        for _ in 0..80 {
            act(&mut chance, &mut compiler, &mut twin);
        }
        compiler.update();

        let mut shown = Scene::of_node(&compiler.cluster(), &own());
        let right = twin.scene();
        shown.options.clone_from(&twin.options);
        shown.workloads.clone_from(&right.workloads);
        assert_eq!(
            differences(&compile(&right).rows, &compile(&shown).rows),
            ""
        );
        let pods = compiler.cluster().pods.len();
        assert_eq!(pods, twin.cluster().pods.len(), "seed {seed}");
    }
}

#[test]
fn what_changes_nothing_is_not_told() {
    let mut chance = Chance::new(7);
    let (mut compiler, mut twin) = (Compiler::new(own()), Twin::default());
    for _ in 0..200 {
        act(&mut chance, &mut compiler, &mut twin);
    }
    compiler.update();
    let effort = compiler.effort();

    for resource in twin.objects.values() {
        assert!(!compiler.insert(resource), "{resource:?}");
    }
    assert!(!compiler.set_options(twin.options.clone()));
    assert!(!compiler.set_interfaces(twin.interfaces.clone()));
    assert_eq!(compiler.update(), []);
    assert_eq!(compiler.effort(), effort);
}

/// Ten times the pods, and each change costs the same: rows and work.
#[test]
fn a_change_costs_what_it_touches() {
    let [few, many] = [300, 3_000].map(|pods| {
        let mut compiler = town(pods);
        let first = compiler.effort();
        let costs = steps().map(|(name, objects)| {
            let before = compiler.effort();
            for object in &objects {
                assert!(compiler.insert(object), "{name}");
            }
            let rows = compiler.update().len();
            (name, rows, compiler.effort() - before)
        });
        assert!(
            costs
                .iter()
                .all(|(name, rows, work)| *rows > 0 && *work > 0 || *name == "elsewhere"),
            "{costs:?}"
        );
        (costs, first)
    });

    assert_eq!(few.0, many.0);
    // The first plan looks at what is selected, not at each pod for each policy.
    assert!(
        many.1 < few.1 * 12 && many.1 < 12_000,
        "{} {}",
        few.1,
        many.1
    );
}

/// A policy for every pod here is a rule in each group, and no pod is led elsewhere.
#[test]
fn a_policy_for_all_moves_nobody() {
    let mut compiler = town(300);
    let before = compiler.ruleset();
    let mut all = by_law(0, "all()");
    if let Resource::Policy(policy) = &mut all {
        policy.key.name = "all".into();
        policy.selector = "all()".parse().unwrap();
    }

    compiler.insert(&all);
    let changes = compiler.update();
    let after = compiler.ruleset();

    assert!(!changes.is_empty());
    for change in &changes {
        match change {
            Change::Set(Row::Chain(key, chain)) if key.name.starts_with("group_in/") => {
                assert_eq!(chain.rules.len(), before.chains[key].rules.len() + 1);
            }
            Change::Set(Row::Chain(key, _)) => assert!(key.name.ends_with("/all"), "{key:?}"),
            Change::Set(Row::Set(..) | Row::Element(..)) => {}
            Change::Unset(_) => panic!("{change:?}"),
        }
    }
    let led = |rows: &Ruleset| {
        let elements = rows.elements.iter();
        let doors = elements.filter(|(_, to)| matches!(to, Element::InterfaceVerdict(..)));
        doors.cloned().collect::<Vec<_>>()
    };
    assert_eq!(led(&before), led(&after));
}

/// A town of many namespaces, with policy for each; ten pods are ours.
fn town(pods: u32) -> Compiler {
    let mut compiler = Compiler::new(own());
    for number in 0..pods {
        compiler.insert(&citizen(number, "a"));
    }
    for number in 0..pods / 30 {
        compiler.insert(&Resource::Namespace(resource::Namespace {
            name: format!("ns{number}"),
            labels: BTreeMap::new(),
        }));
        compiler.insert(&by_law(number, "app == 'a'"));
    }
    compiler.update();

    compiler
}

/// Changes, each to the same few.
fn steps() -> [(&'static str, Vec<Resource>); 6] {
    let namespace = resource::Namespace {
        name: "ns0".into(),
        labels: BTreeMap::from([("team".into(), "red".into())]),
    };

    [
        ("a label here", vec![citizen(3, "b")]),
        ("a label in a set", vec![citizen(15, "b"), citizen(16, "b")]),
        ("elsewhere", vec![citizen(45, "b")]),
        ("a new pod", vec![citizen(1_000_000 * 30, "a")]),
        ("a policy", vec![by_law(0, "app in {'a', 'b'}")]),
        ("a namespace", vec![Resource::Namespace(namespace)]),
    ]
}

/// A pod of the namespace of its number; the first ten are on our node.
fn citizen(number: u32, app: &str) -> Resource {
    let pod = PodName {
        namespace: format!("ns{}", number / 30 % 1_000_000),
        name: format!("p{number}"),
    };
    let node = if number < 10 { "n1" } else { "n2" };
    let [_, a, b, c] = number.to_be_bytes();

    Resource::WorkloadEndpoint(Box::new(WorkloadEndpoint {
        name: pod.name.clone(),
        interface: WorkloadEndpoint::host_interface(&pod),
        node: node.parse().unwrap(),
        addresses: vec![format!("10.{a}.{b}.{c}/32").parse().unwrap()],
        labels: BTreeMap::from([("app".into(), app.into())]),
        profiles: vec![format!("kns.{}", pod.namespace)],
        pod,
        ports: Vec::new(),
    }))
}

/// A namespace's policy: its pods get from its pods, and from those of the red team.
fn by_law(number: u32, from: &str) -> Resource {
    let here = format!("projectcalico.org/namespace == 'ns{number}'");
    let rule = |text: String| Rule {
        source: Side {
            selector: Some(text.parse().unwrap()),
            ..Side::default()
        },
        ..Rule::new(Action::Allow)
    };
    let team = "pcns.team == 'red' && projectcalico.org/namespace == 'ns0'";

    Resource::Policy(Box::new(Policy {
        key: ObjectKey::namespaced(Kind::NetworkPolicy, format!("ns{number}"), "law"),
        tier: "default".into(),
        order: None,
        selector: here.parse().unwrap(),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress: vec![rule(format!("{here} && {from}")), rule(team.to_owned())],
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: BTreeMap::new(),
    }))
}

fn own() -> NodeName {
    "n1".parse().unwrap()
}

/// Does one thing to both.
fn act(chance: &mut Chance, compiler: &mut Compiler, twin: &mut Twin) {
    match chance.below(12) {
        0 if !twin.objects.is_empty() => {
            let place = chance.below(twin.objects.len() as u64);
            let key = twin.objects.keys().nth(usize::try_from(place).unwrap());
            let key = key.unwrap().clone();
            let former = twin.objects.remove(&key).unwrap();
            assert_eq!(compiler.remove(&key), !is_of_nobody(&former), "{key}");
        }
        1 if chance.once_in(4) => {
            twin.options = chance.options();
            compiler.set_options(twin.options.clone());
        }
        1 => {
            twin.interfaces = chance.interfaces();
            compiler.set_interfaces(twin.interfaces.clone());
        }
        sort => {
            let mut resource = chance.resource();
            if sort < 6 && !twin.objects.is_empty() {
                let place = chance.below(twin.objects.len() as u64);
                let known = twin.objects.values().nth(usize::try_from(place).unwrap());
                resource = known.unwrap().clone();
                chance.edit(&mut resource);
            }
            let changed = compiler.insert(&resource);
            let former = twin.objects.insert(resource.key(), resource.clone());
            let is_same = former.as_ref() == Some(&resource);
            assert_eq!(
                changed,
                !is_same && tells(former.as_ref(), &resource),
                "{resource:?}"
            );
        }
    }
}

/// Whether policy learns anything where one object takes the place of another.
fn tells(former: Option<&Resource>, now: &Resource) -> bool {
    if let (Some(Resource::WorkloadEndpoint(former)), Resource::WorkloadEndpoint(now)) =
        (former, now)
    {
        return meant(former) != meant(now);
    }

    !(former.is_none_or(is_of_nobody) && is_of_nobody(now))
}

/// What an endpoint means: the labels of its place are its own in any case, and its interface matters at home.
fn meant(endpoint: &WorkloadEndpoint) -> impl PartialEq + use<> {
    let pod = object::pod(endpoint);
    let interface = (endpoint.node == own()).then(|| endpoint.interface.clone());

    (pod.looks(), pod.addresses, pod.ports, pod.node, interface)
}

/// Whether it is a slice of no service, which says nothing.
fn is_of_nobody(resource: &Resource) -> bool {
    matches!(resource, Resource::EndpointSlice(slice) if slice.service.is_none())
}

/// Checks that no change says what is so already, and that no row changes twice.
fn assert_minimal(rows: &Ruleset, changes: &[Change], place: &str) {
    let mut keys = BTreeSet::new();
    for change in changes {
        let (key, is_news) = match change.clone() {
            Change::Set(Row::Set(key, kind)) => {
                (RowKey::Set(key.clone()), rows.sets.get(&key) != Some(&kind))
            }
            Change::Set(Row::Element(key, element)) => {
                let news = !rows.elements.contains(&(key.clone(), element.clone()));
                (RowKey::Element(key, element), news)
            }
            Change::Set(Row::Chain(key, chain)) => (
                RowKey::Chain(key.clone()),
                rows.chains.get(&key) != Some(&chain),
            ),
            Change::Unset(key) => {
                let news = match &key {
                    RowKey::Set(key) => rows.sets.contains_key(key),
                    RowKey::Element(key, element) => {
                        rows.elements.contains(&(key.clone(), element.clone()))
                    }
                    RowKey::Chain(key) => rows.chains.contains_key(key),
                };
                (key, news)
            }
        };
        assert!(is_news, "{place}: no news: {change:?}");
        assert!(keys.insert(key), "{place}: twice: {change:?}");
    }
}

fn follow(rows: &mut Ruleset, changes: Vec<Change>) {
    for change in changes {
        rows.apply(change);
    }
}

fn shuffled<T>(mut list: Vec<T>, chance: &mut Chance) -> Vec<T> {
    for place in (1..list.len()).rev() {
        let other = chance.below(place as u64 + 1);
        list.swap(place, usize::try_from(other).unwrap());
    }

    list
}

/// Takes everything away again: nothing stays behind.
fn forget_all(mut compiler: Compiler, twin: &Twin, mut rows: Ruleset) {
    for key in twin.objects.keys() {
        compiler.remove(key);
    }
    compiler.set_options(Options::default());
    follow(&mut rows, compiler.update());

    let mut fresh = Compiler::new(own());
    fresh.update();
    assert_eq!(differences(&fresh.ruleset(), &rows), "");
    assert_eq!(
        compiler.population.words.len(),
        fresh.population.words.len()
    );
}

/// Says in what two sets of rows differ; empty where they do not.
fn differences(right: &Ruleset, found: &Ruleset) -> String {
    let changes = found.since(right);
    let lines = changes
        .iter()
        .take(12)
        .map(|change| format!("{change:?}\n"));

    lines.collect()
}

impl Twin {
    fn scene(&self) -> Scene {
        let cluster = self.cluster();
        let mut scene = Scene::of_node(&cluster, &own());
        scene.options.clone_from(&self.options);
        scene.workloads = self.workloads(&cluster);

        scene
    }

    /// Takes from everybody, here and in the compiler, what is not of these families.
    fn keep_families(&mut self, families: &[Family], compiler: &mut Compiler) {
        for resource in self.objects.values_mut() {
            let former = resource.clone();
            chance::keep_families(resource, families);
            if *resource != former {
                compiler.insert(resource);
            }
        }
    }

    /// Each interface has one pod: the one after which it is named, else the first by name.
    fn workloads(&self, cluster: &Cluster) -> Vec<Workload> {
        let mut claims: Vec<(bool, PodName, &WorkloadEndpoint)> = Vec::new();
        for resource in self.objects.values() {
            if let Resource::WorkloadEndpoint(endpoint) = resource
                && endpoint.node == own()
            {
                let named = WorkloadEndpoint::host_interface(&endpoint.pod);
                claims.push((named != endpoint.interface, endpoint.pod.clone(), endpoint));
            }
        }
        claims.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut found: BTreeMap<InterfaceName, Workload> = BTreeMap::new();
        for (_, _, endpoint) in claims {
            let asked = cluster.workload(&object::pod(endpoint));
            let interface = endpoint.interface.clone();
            found.entry(interface.clone()).or_insert(Workload {
                interface,
                labels: asked.labels,
                profiles: asked.profiles,
            });
        }

        found.into_values().collect()
    }

    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::default();
        let mut profiles = vec![object::built_in()];
        let mut services = Vec::new();
        let mut slices = Vec::new();
        for (key, resource) in &self.objects {
            match resource.clone() {
                Resource::WorkloadEndpoint(endpoint) => cluster.pods.push(object::pod(&endpoint)),
                Resource::Namespace(namespace) => profiles.extend(object::of_namespace(&namespace)),
                Resource::ServiceAccount(account) => {
                    profiles.push((Origin::Account(key.clone()), account.profile()));
                }
                Resource::Service(service) => services.push(*service),
                Resource::EndpointSlice(slice) => slices.push(*slice),
                Resource::Tier(tier) => cluster.tiers.push(tier),
                Resource::Policy(policy) => cluster.policies.push(*policy),
                Resource::NetworkSet(set) => cluster.sets.push(*set),
                Resource::HostEndpoint(host) => cluster.host_endpoints.push(*host),
                Resource::Profile(profile) => profiles.push((Origin::Object, *profile)),
                Resource::Node(_)
                | Resource::IpPool(_)
                | Resource::IpamBlock(_)
                | Resource::BlockAffinity(_)
                | Resource::FelixConfiguration(_)
                | Resource::MeshConfiguration(_)
                | Resource::KeyClaim(_)
                | Resource::AddressClaim(_)
                | Resource::Opaque(_) => panic!("chance makes none: {resource:?}"),
            }
        }
        cluster.nodes = vec![Node {
            name: own(),
            labels: BTreeMap::new(),
            interfaces: self.interfaces.clone(),
        }];
        cluster.services = of_slices(&services, &slices);
        profiles.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, profile) in profiles {
            cluster.profiles.insert(profile.name.clone(), profile);
        }

        cluster
    }
}

fn of_slices(
    services: &[resource::Service],
    slices: &[resource::EndpointSlice],
) -> BTreeMap<ServiceRef, Service> {
    let mut found = BTreeMap::new();
    for service in services {
        let of_service = slices.iter().filter(|slice| {
            slice.namespace == service.namespace
                && slice.service.as_deref() == Some(service.name.as_str())
        });
        let name = ServiceRef {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        let backends = of_service.flat_map(|slice| object::backends(service, slice));
        found.insert(
            name,
            Service {
                addresses: service.cluster_addresses.clone(),
                backends: backends.collect(),
            },
        );
    }

    found
}

/// An object's key must be its own kind's, or removal would miss it.
#[test]
fn every_kind_that_comes_can_go() {
    let mut chance = Chance::new(3);
    let mut kinds = BTreeSet::new();
    for _ in 0..400 {
        kinds.insert(chance.resource().key().kind);
    }

    assert!(
        kinds.contains(&Kind::WorkloadEndpoint) && kinds.len() == 11,
        "{kinds:?}"
    );
}
