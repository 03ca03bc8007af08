//! What the agent tells people about itself and its peers.

use std::collections::BTreeMap;

use model::{
    Moment, NodeName, Phase,
    resource::mesh_configuration::EncryptionMode,
    status::{DeviceStatus, Encryption, PeerState, PeerStatus, PodStatus, Status},
};

use crate::{
    World,
    guard::Sends,
    member::Member,
    phase::{Passage, Standing},
    reason::Reason,
    task::TaskKey,
};

/// Returns what the agent says about itself.
pub(crate) fn status(world: &World, _now: Moment) -> Status {
    let (applied, failures) = match &world.applied {
        Some((applied, failures)) => (*applied, failures.clone()),
        None => (0, BTreeMap::new()),
    };
    let mut peers = BTreeMap::new();
    for (name, (member, passage)) in &world.members {
        let (state, _) = judge(world, name, member, *passage);
        *peers.entry(label(state).to_owned()).or_default() += 1;
    }
    let granted = world.own.granted.iter().copied();

    Status {
        node: world.facts.own.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_connected: world.is_connected,
        in_sync: world.is_synced,
        converged: world.is_synced && applied >= world.plan.generation && failures.is_empty(),
        failures,
        encryption: encryption(world),
        addresses: granted.collect(),
        blocks: world.own.blocks.iter().copied().collect(),
        pods: world
            .pods
            .placed()
            .map(|(name, pod)| pod_status(name, pod))
            .collect(),
        peers,
        conditions: conditions(world),
    }
}

/// Returns what the agent says about each peer.
pub(crate) fn peers(world: &World, now: Moment) -> Vec<PeerStatus> {
    let members = world.members.iter();

    members
        .map(|(name, (member, passage))| peer(world, name, member, *passage, now))
        .collect()
}

fn peer(
    world: &World,
    name: &NodeName,
    member: &Member,
    passage: Passage,
    now: Moment,
) -> PeerStatus {
    let (state, reason) = judge(world, name, member, passage);
    let carrier = member.carriers.values().next();
    let key = carrier.map(|carrier| carrier.key).or(member.key);
    let age = key
        .and_then(|key| world.first_seen.get(&key))
        .map(|seen| (now - *seen).as_secs());
    let hosts = member.hosts.iter().filter(|_| !member.is_stock);
    let hosts = hosts.map(|host| model::family::host_net(*host));

    PeerStatus {
        node: name.clone(),
        state,
        reason,
        phase: world.standing(member).phase,
        key,
        key_age_seconds: age,
        endpoint: carrier.map(|carrier| carrier.endpoint),
        handshake_age_seconds: None,
        received_bytes: 0,
        sent_bytes: 0,
        allowed_ips: member.blocks.iter().copied().chain(hosts).collect(),
    }
}

/// Returns how packets to a member travel, and everything that an operator should know about it.
fn judge(
    world: &World,
    name: &NodeName,
    member: &Member,
    passage: Passage,
) -> (PeerState, Option<String>) {
    let standing = world.standing(member);
    let state = state(world, member, passage, standing);
    let mut reasons = member
        .reasons
        .iter()
        .map(Reason::to_string)
        .collect::<Vec<_>>();
    if world.phases.is_laggard(name) {
        reasons.push(Reason::Lagging.to_string());
    }
    let is_wanted = world.posture.up && standing.has_carrier;
    if is_wanted && !standing.reached {
        reasons.push(Reason::NoHandshake.to_string());
    }
    reasons.dedup();

    (state, (!reasons.is_empty()).then(|| reasons.join("; ")))
}

fn state(world: &World, member: &Member, passage: Passage, standing: Standing) -> PeerState {
    if !world.posture.up {
        return PeerState::Plain;
    }
    let covered = model::Family::BOTH
        .into_iter()
        .filter(|family| world.wish.covers(*family));
    let sends = covered
        .map(|family| world.sends(member, passage, family).0)
        .collect::<Vec<_>>();
    if standing.may_stay_plain && sends.contains(&Sends::Plain) {
        return PeerState::PlainPermitted;
    }
    if !passage.switched {
        return PeerState::Enabling;
    }
    if !standing.has_carrier || !standing.reached {
        return PeerState::Unreachable;
    }
    if passage.takes_plain && !standing.may_stay_plain {
        return PeerState::Enabling;
    }

    PeerState::Encrypted
}

fn label(state: PeerState) -> &'static str {
    match state {
        PeerState::Encrypted => "Encrypted",
        PeerState::Enabling => "Enabling",
        PeerState::Plain => "Plain",
        PeerState::PlainPermitted => "PlainPermitted",
        PeerState::Unreachable => "Unreachable",
    }
}

fn encryption(world: &World) -> Encryption {
    let phase = world.phases.stated();
    let is_ready = usize::from(phase >= Phase::Sending);
    let ready = world.phases.members_sending() + is_ready;
    let members = world.members.len() + 1;
    let is_on = usize::from(phase > Phase::Leaving);
    let left = members - (world.phases.members_encrypting() + is_on).min(members);
    let summary = match (world.wish.wanted, phase) {
        (true, Phase::Enforced) => "Enforced".to_owned(),
        (true, _) => format!("Enabling {ready}/{members} nodes"),
        (false, Phase::Off) if !world.posture.up => "Off".to_owned(),
        (false, _) => format!("Disabling {left}/{members} nodes"),
    };

    Encryption {
        wanted: world.wish.wanted,
        mode: match world.wish.mode {
            EncryptionMode::Strict => "Strict".to_owned(),
            EncryptionMode::Permissive => "Permissive".to_owned(),
        },
        phase,
        members_ready: ready,
        members,
        summary,
        devices: if world.posture.up {
            devices(world)
        } else {
            Vec::new()
        },
    }
}

/// Which implementation a device got is the dataplane's to say: `backend` is what was asked for.
fn devices(world: &World) -> Vec<DeviceStatus> {
    let devices = world.own.devices.iter();

    devices
        .map(|device| DeviceStatus {
            name: device.wish.name.to_string(),
            backend: format!("{:?}", world.wish.backend),
            key: device.key,
            port: device.wish.port,
            mtu: world.device_mtu(&device.wish),
            addresses: {
                let families = device.wish.families.iter();
                families
                    .filter_map(|f| world.own.tunnel_addresses.get(f))
                    .copied()
                    .collect()
            },
        })
        .collect()
}

fn pod_status(name: &model::PodName, pod: &crate::pod::Pod) -> PodStatus {
    let addresses = pod
        .addresses
        .values()
        .map(|address| model::family::host_net(*address));

    PodStatus {
        pod: name.clone(),
        addresses: addresses.collect(),
        interface: model::resource::WorkloadEndpoint::host_interface(name).to_string(),
    }
}

fn conditions(world: &World) -> BTreeMap<String, String> {
    let mut conditions = world.wish.conditions.clone();
    for (key, why) in world.tasks.refusals() {
        let name = match key {
            TaskKey::ClaimKey(_) => "KeyRefused",
            TaskKey::ClaimAddress(_) => "AddressRefused",
            TaskKey::Publish => "RecordRefused",
            TaskKey::ClaimBlock(_) => "BlockRefused",
            TaskKey::TunnelAddress(_) => "TunnelAddressRefused",
            TaskKey::Pod(..) => continue,
        };
        conditions.insert(name.to_owned(), why.to_owned());
    }
    let own = &world.facts.own;
    for key in &world.facts.keys {
        match world.facts.key_claims.get(&key.claim_name()) {
            Some(holder) if holder != own => {
                let text = format!("our key {key} was granted to node {holder}");
                conditions.insert("KeyTaken".into(), text);
            }
            Some(_) | None => {}
        }
    }
    if world.is_synced && world.own.candidates.is_empty() {
        let text = "no address of this node may be claimed: set underlay.networks";
        conditions.insert("NoAddress".into(), text.into());
    }
    let laggards = world
        .members
        .keys()
        .filter(|name| world.phases.is_laggard(name));
    let laggards = laggards.take(50).map(NodeName::as_str).collect::<Vec<_>>();
    if !laggards.is_empty() {
        conditions.insert("Lagging".into(), laggards.join(", "));
    }
    if let Some((key, why)) = world.facts.invalid.iter().next() {
        let more = world.facts.invalid.len() - 1;
        let text = format!("{key}: {why}; and {more} more");
        conditions.insert("InvalidObjects".into(), text);
    }
    let covered = world
        .own
        .addresses
        .iter()
        .filter(|net| crate::pool::is_in_space(&world.facts, net.addr()));
    if let Some(net) = covered.min() {
        let text = format!("a pool covers our own address {net}: its other hosts are unreachable");
        conditions.insert("PoolCoversUnderlay".into(), text);
    }

    conditions
}
