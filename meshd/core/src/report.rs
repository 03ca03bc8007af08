//! What the agent tells people about itself and its peers.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Family, InterfaceName, Moment, NodeName, Phase,
    plan::RowKey,
    resource::mesh_configuration::EncryptionMode,
    status::{
        DeviceStatus, Encryption, IncompleteStatus, PeerState, PeerStatus, PodStatus, Status,
    },
};

use crate::{World, guard::Sends, member::Member, phase::Passage, reason::Reason, task::TaskKey};

/// Returns what the agent says about itself.
pub(crate) fn status(world: &World, _now: Moment) -> Status {
    let mut peers = BTreeMap::new();
    for (name, (member, passage)) in &world.members {
        let (state, _) = judge(world, name, member, *passage);
        *peers.entry(label(overall(&state)).to_owned()).or_default() += 1;
    }
    let granted = world.own.granted.iter().copied();
    let applied = &world.applied;
    let is_through = world.is_synced && applied.generation >= world.plan.generation;
    let is_whole = applied.failures.is_empty() && applied.incomplete.is_empty();

    Status {
        node: world.facts.own.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_connected: world.is_connected,
        in_sync: world.is_synced,
        ready: world.is_synced && world.has_applied(0) && applied.generation > 0,
        converged: is_through && is_whole,
        failures: applied.failures.clone(),
        incomplete: incomplete(world),
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

fn incomplete(world: &World) -> Vec<IncompleteStatus> {
    let rows = world.applied.incomplete.iter();

    rows.map(|(row, reason)| IncompleteStatus {
        row: row.to_string(),
        reason: reason.clone(),
        essential: world.is_essential(row),
    })
    .collect()
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
    let (families, reason) = judge(world, name, member, passage);
    let carrier = member.carriers.values().next();
    let key = carrier.map(|carrier| carrier.key).or(member.key);
    let age = key
        .and_then(|key| world.first_seen.get(&key))
        .map(|seen| (now - *seen).as_secs());
    let hosts = member.hosts.iter().filter(|_| !member.is_stock);
    let hosts = hosts.map(|host| model::family::host_net(*host));

    PeerStatus {
        node: name.clone(),
        state: overall(&families),
        families,
        reason,
        phase: world.standing(member).phase,
        key,
        key_age_seconds: age,
        endpoint: carrier.map(|carrier| carrier.endpoint),
        handshake_age_seconds: None,
        received_bytes: 0,
        sent_bytes: 0,
        allowed_ips: member.allowed.iter().copied().chain(hosts).collect(),
    }
}

/// Returns how packets to a member travel, and everything that an operator should know about it.
fn judge(
    world: &World,
    name: &NodeName,
    member: &Member,
    passage: Passage,
) -> (BTreeMap<Family, PeerState>, Option<String>) {
    let standing = world.standing(member);
    let missing = world.lacks(name, member);
    let families = families(world, member);
    let states = families.into_iter().map(|family| {
        let planned = planned(world, member, passage, family);
        let held = match planned {
            PeerState::Encrypted if missing.is_some() => PeerState::Unreachable,
            PeerState::Encrypted if !world.is_in_force(name) => PeerState::Enabling,
            PeerState::Encrypted
            | PeerState::Partly
            | PeerState::Enabling
            | PeerState::Plain
            | PeerState::PlainPermitted
            | PeerState::Unreachable => planned,
        };
        (family, held)
    });
    let states = states.collect();
    let mut reasons = member
        .reasons
        .iter()
        .map(Reason::to_string)
        .collect::<Vec<_>>();
    reasons.extend(missing);
    if world.phases.is_laggard(name) {
        reasons.push(Reason::Lagging.to_string());
    }
    let is_wanted = world.posture.up && standing.has_carrier;
    if is_wanted && !standing.reached {
        reasons.push(Reason::NoHandshake.to_string());
    }
    let is_plain = |family: &Family| world.posture.up && !world.wish.covers(*family);
    let plain = BTreeMap::keys(&states).copied().filter(is_plain);
    reasons.extend(plain.map(|family| Reason::NotCovered(family).to_string()));
    reasons.dedup();

    (states, (!reasons.is_empty()).then(|| reasons.join("; ")))
}

/// Returns the families in which something could travel between a member and us; those that are
/// encrypted where it has nothing yet.
fn families(world: &World, member: &Member) -> Vec<Family> {
    let has_pods = |family: Family| {
        let mut pools = world.facts.pools.values();
        pools.any(|pool| Family::of_net(&pool.cidr) == family)
    };
    let has_any = |family: Family| {
        let mut blocks = member.pods.iter().map(Family::of_net);
        let mut hosts = member.hosts.iter().map(|host| Family::of(*host));
        has_pods(family) && (blocks.any(|of| of == family) || hosts.any(|of| of == family))
    };
    let both = || Family::BOTH.into_iter();
    let used = both().filter(|family| has_any(*family));
    let used = used.collect::<Vec<_>>();
    if !used.is_empty() {
        return used;
    }

    both()
        .filter(|f| world.wish.covers(*f) || !world.posture.up)
        .collect()
}

/// Returns how packets of a family are to travel.
fn planned(world: &World, member: &Member, passage: Passage, family: Family) -> PeerState {
    let permitted = if world.wish.permits_plain() {
        PeerState::PlainPermitted
    } else {
        PeerState::Plain
    };
    if !world.posture.up {
        return PeerState::Plain;
    }
    if !world.wish.covers(family) {
        return permitted;
    }
    let standing = world.standing(member);
    let carrier = member.carriers.get(&family);
    let reached = carrier.is_some_and(|carrier| world.has_shaken(carrier));
    match world.sends(member, passage, family).0 {
        Sends::Plain if standing.may_stay_plain || passage.switched => permitted,
        Sends::Plain => PeerState::Enabling,
        Sends::Nothing => PeerState::Unreachable,
        Sends::Tunnel if !reached => PeerState::Unreachable,
        Sends::Tunnel if passage.takes_plain && !standing.may_stay_plain => PeerState::Enabling,
        Sends::Tunnel => PeerState::Encrypted,
    }
}

/// Returns one word for all families of a member.
fn overall(states: &BTreeMap<Family, PeerState>) -> PeerState {
    let mut different = states.values().copied().collect::<BTreeSet<_>>();
    if different.contains(&PeerState::Enabling) {
        different.remove(&PeerState::Encrypted);
    }
    let mut different = different.into_iter();

    match (different.next(), different.next()) {
        (Some(state), None) => state,
        (Some(_), Some(_)) => PeerState::Partly,
        (None, _) => PeerState::Plain,
    }
}

fn label(state: PeerState) -> &'static str {
    match state {
        PeerState::Encrypted => "Encrypted",
        PeerState::Partly => "Partly",
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

fn devices(world: &World) -> Vec<DeviceStatus> {
    let devices = world.own.devices.iter();

    devices
        .map(|device| {
            let (backend, backend_reason) = backend(world, &device.wish.name);
            let families = device.wish.families.iter();
            let addresses = families.filter_map(|f| world.own.tunnel_addresses.get(f));

            DeviceStatus {
                name: device.wish.name.to_string(),
                backend,
                backend_reason,
                key: device.key,
                port: device.wish.port,
                mtu: world.device_mtu(&device.wish),
                addresses: addresses.copied().collect(),
            }
        })
        .collect()
}

/// Returns what carries a device and why that; or why nothing does.
fn backend(world: &World, device: &InterfaceName) -> (String, String) {
    let none = |reason: &str| ("none".to_owned(), reason.to_owned());
    if let Some(reason) = missing_device(world, device)
        && !world.waits_for_port(device)
    {
        return none(reason);
    }

    match world.applied.backends.get(device) {
        Some(found) => (found.implementation.to_string(), found.chosen.to_string()),
        None => none("the device is not there yet"),
    }
}

fn missing_device<'a>(world: &'a World, device: &InterfaceName) -> Option<&'a str> {
    let row = RowKey::Tunnel(device.clone());

    world.applied.incomplete.get(&row).map(String::as_str)
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
    for device in &world.own.devices {
        if let Some(reason) = missing_device(world, &device.wish.name)
            && !world.has_conflict(&device.wish.name)
        {
            let text = format!("{}: {reason}", device.wish.name);
            conditions.insert("DeviceMissing".into(), text);
        }
    }
    conditions.extend(world.conflicts());
    conditions.extend(world.policy_conditions());
    if let Some(drops) = world.foreign_drops() {
        conditions.insert("ForeignFirewall".into(), drops);
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
