//! From one state of a policy test to the next, on machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use lab::{Site, poll_until, spec};
use model::{Kind, NodeName, Object, ObjectKey, resource::WorkloadEndpoint, status::Held};
use policy::{
    cluster::{Pod, PodNetwork},
    scenario::Stage,
};
use serde_json::json;

use super::{PATIENCE, topology};
use crate::lab::held;

/// Makes a lab what a stage says, and waits until every agent has applied it. `holders` are the nodes that have the
/// blocks.
pub(super) fn reach(
    site: &mut Site,
    former: Option<&Stage>,
    stage: &Stage,
    holders: &mut BTreeMap<IpNet, NodeName>,
) -> anyhow::Result<()> {
    let before = former.map(objects).unwrap_or_default();
    let after = objects(stage);
    let before_pods = former.map(pods).unwrap_or_default();
    let after_pods = pods(stage);
    for (name, pod) in &before_pods {
        if after_pods.get(name) != Some(pod) {
            site.delete_pod(&label(pod)?)?;
        }
    }
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    for key in gone.collect::<Vec<_>>() {
        delete(site, key)?;
    }
    let changed = after
        .iter()
        .filter(|(key, object)| before.get(*key) != Some(*object));
    let changed = changed.map(|(_, object)| *object);
    // Who closes a host may cut its agent from the store: that comes last.
    let (last, first): (Vec<&Object>, Vec<&Object>) =
        changed.partition(|object| object.kind == Kind::HostEndpoint);
    apply(site, first.into_iter())?;
    hand_over(site, stage, holders)?;
    let mut named = Vec::new();
    for (name, pod) in &after_pods {
        if before_pods.get(name) == Some(pod) {
            continue;
        }
        site.add_pod(pod.node.as_str(), topology::pod(pod)?)
            .with_context(|| format!("pod {name}"))?;
        if !pod.ports.is_empty() {
            named.push(endpoint(pod));
        }
    }
    settle(site, &after_pods)?;
    if !named.is_empty() {
        apply(site, named.iter())?;
        settle(site, &after_pods)?;
    }
    if !last.is_empty() {
        apply(site, last.into_iter())?;
        settle(site, &after_pods)?;
    }
    if is_encrypted(stage) {
        await_encryption(site)?;
    }

    Ok(())
}

/// Gives blocks to the nodes whose pods have their addresses now.
fn hand_over(
    site: &mut Site,
    stage: &Stage,
    holders: &mut BTreeMap<IpNet, NodeName>,
) -> anyhow::Result<()> {
    for (cidr, node) in topology::holders(stage)? {
        let former = holders.insert(cidr, node.clone());
        let Some(former) = former.filter(|former| *former != node) else {
            continue;
        };
        for object in topology::block(cidr, &former) {
            delete(site, &object.key())?;
        }
        apply(site, topology::block(cidr, &node).iter())?;
        let held: Vec<Held> = held(site)?;
        let late = site.await_applied(&serde_json::to_vec(&held)?, PATIENCE);
        if let Some((node, why)) = late.first() {
            bail!("the agent of {node} has not heard of block {cidr}: {why}");
        }
    }

    Ok(())
}

fn objects(stage: &Stage) -> BTreeMap<ObjectKey, &Object> {
    let objects = stage.objects.iter();

    objects.map(|object| (object.key(), object)).collect()
}

/// Returns the pods that have a network of their own; the others are their node.
fn pods(stage: &Stage) -> BTreeMap<String, &Pod> {
    let pods = stage.pods.iter();
    let own = pods.filter(|pod| pod.network == PodNetwork::Own);

    own.map(|pod| (pod.name.to_string(), pod)).collect()
}

fn label(pod: &Pod) -> anyhow::Result<spec::PodName> {
    let name = pod.name.to_string();

    name.parse().map_err(|error| anyhow!("pod {name}: {error}"))
}

fn apply<'a>(site: &mut Site, objects: impl Iterator<Item = &'a Object>) -> anyhow::Result<()> {
    // A tier stands before its policies, and a namespace before what is in it.
    let mut objects: Vec<&Object> = objects.collect();
    objects.sort_by_key(|object| {
        (
            object.kind != Kind::Namespace,
            object.kind != Kind::Tier,
            object.key(),
        )
    });
    if objects.is_empty() {
        return Ok(());
    }
    let documents: Result<Vec<String>, _> = objects.iter().map(serde_yaml_ng::to_string).collect();
    let text = documents?.join("---\n");
    site.meshctl(&["apply", "-f", "-"], text.as_bytes())?;

    Ok(())
}

fn delete(site: &mut Site, key: &ObjectKey) -> anyhow::Result<()> {
    let mut arguments = vec!["delete", key.kind.as_str(), key.name.as_str()];
    if let Some(namespace) = &key.namespace {
        arguments.extend(["-n", namespace]);
    }
    site.meshctl(&arguments, b"")?;

    Ok(())
}

/// Returns a pod's endpoint with the names of its ports: an agent is not told of them, Kubernetes' store is.
fn endpoint(pod: &Pod) -> Object {
    let name = WorkloadEndpoint::object_name(&pod.node, &pod.name);
    let key = ObjectKey::namespaced(Kind::WorkloadEndpoint, &pod.name.namespace, &name);
    let ports = pod.ports.iter().map(
        |port| json!({"name": port.name, "port": port.port, "protocol": port.protocol.to_string()}),
    );
    let networks = pod
        .addresses
        .iter()
        .map(|address| ipnet::IpNet::from(*address));

    Object::new(
        &key,
        json!({
            "orchestrator": "k8s",
            "node": pod.node,
            "pod": pod.name.name,
            "endpoint": "eth0",
            "serviceAccountName": pod.service_account,
            "interfaceName": WorkloadEndpoint::host_interface(&pod.name),
            "ipNetworks": networks.collect::<Vec<_>>(),
            "profiles": [
                format!("kns.{}", pod.name.namespace),
                format!("ksa.{}.{}", pod.name.namespace, pod.service_account),
            ],
            "ports": ports.collect::<Vec<_>>(),
        }),
    )
}

/// Waits until the store has every pod's endpoint and no other, and every agent has applied all that the store has.
fn settle(site: &Site, pods: &BTreeMap<String, &Pod>) -> anyhow::Result<()> {
    let wanted: BTreeSet<ObjectKey> = pods.values().map(|pod| endpoint(pod).key()).collect();
    let mut objection = None;
    let deadline = Instant::now() + PATIENCE;
    poll_until(deadline, || {
        objection = look(site, &wanted).err();
        objection.is_none()
    });

    objection.map_or(Ok(()), |objection| {
        Err(objection.context(format!("not within {PATIENCE:?}")))
    })
}

fn look(site: &Site, wanted: &BTreeSet<ObjectKey>) -> anyhow::Result<()> {
    let held = held(site)?;
    let endpoints = held.iter().map(|held| &held.key);
    let endpoints = endpoints.filter(|key| key.kind == Kind::WorkloadEndpoint);
    let known: BTreeSet<ObjectKey> = endpoints.cloned().collect();
    if let Some(key) = known.symmetric_difference(wanted).next() {
        bail!("{key}: the store and the lab differ");
    }
    // Who is cut from the store by a policy hears no more of what others say of themselves.
    let mut held = held;
    held.retain(|held| {
        !matches!(
            held.key.kind,
            Kind::Node | Kind::IPAMBlock | Kind::AddressClaim
        )
    });
    let late = site.await_applied(&serde_json::to_vec(&held)?, PATIENCE / 10);
    match late.first() {
        Some((node, why)) => bail!("the agent of {node}: {why}"),
        None => Ok(()),
    }
}

fn is_encrypted(stage: &Stage) -> bool {
    let settings = stage.objects.iter();
    let mut settings = settings.filter(|object| object.kind == Kind::FelixConfiguration);

    settings.any(|object| {
        let spec = object.body.get("spec");
        let is_set = |field: &str| spec.and_then(|spec| spec.get(field)) == Some(&json!(true));
        is_set("wireguardEnabled") || is_set("wireguardEnabledV6")
    })
}

fn await_encryption(site: &Site) -> anyhow::Result<()> {
    let nodes = site.state().document.spec.nodes.iter();
    for node in nodes {
        let agent = site.agent(&node.name);
        let is_enforced = || {
            let status = agent.get("/v1/status");
            status.is_ok_and(|status| status["encryption"]["summary"] == "Enforced")
        };
        if !poll_until(Instant::now() + PATIENCE, is_enforced) {
            bail!("node {} does not encrypt within {PATIENCE:?}", node.name);
        }
    }

    Ok(())
}
