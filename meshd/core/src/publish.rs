//! What this node asks of the store: its grants, its blocks, and what it says about itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use model::{
    ActionKind, Family, Phase, PublicKey, Record,
    action::{AddressRequest, NodePublication},
    record::{RECORD_VERSION, TunnelClaim},
    resource::{Node, ip_pool::AllowedUse},
};

use crate::{
    World,
    fact::Facts,
    own::{self, Own},
    pool,
    task::TaskKey,
    wish::Wish,
};

/// How long a record waits that was written before and does not stand in the store as it was written.
const REWRITE: Duration = Duration::from_secs(5);

impl World {
    /// Decides what to say and what to ask for, now that the plan is settled.
    pub(crate) fn step(&mut self) {
        let stated = self.stated;
        self.choose_phase();
        self.watch_teardown();
        let has_news = std::mem::take(&mut self.has_news);
        if !has_news && self.stated == stated {
            return;
        }
        self.write_record();
        let wanted = claims(&self.facts, &self.wish, &self.own);
        let keys = wanted
            .iter()
            .map(|(key, _)| key.clone())
            .collect::<BTreeSet<_>>();
        self.tasks.forget_all(|key| match key {
            TaskKey::Pod(..) | TaskKey::Publish => false,
            TaskKey::ClaimKey(_)
            | TaskKey::ClaimAddress(_)
            | TaskKey::ClaimBlock(_)
            | TaskKey::TunnelAddress(_) => !keys.contains(key),
        });
        for (key, kind) in wanted {
            self.tasks.ensure(key, kind, self.now);
        }
    }

    /// The record shows the tunnels until the kernel has them no more.
    fn watch_teardown(&mut self) {
        match self.torn_down {
            None => {}
            Some(None) => self.torn_down = Some(Some(self.plan.generation)),
            Some(Some(generation)) if self.has_applied(generation) => {
                self.torn_down = None;
                self.has_news = true;
            }
            Some(Some(_)) => {}
        }
    }

    /// States the next phase once what it promises is in the kernel.
    fn choose_phase(&mut self) {
        if self.stated.is_none() && !self.wish.wanted && self.knows_its_addresses() {
            self.stated = Some(Phase::Off);
        }
        let goal = self.phases.goal().filter(|goal| self.is_prepared(*goal));
        self.gate = match (goal, self.gate) {
            (Some(goal), Some((phase, generation))) if goal == phase => Some((goal, generation)),
            (Some(goal), _) => Some((goal, self.plan.generation)),
            (None, _) => None,
        };
        if let Some((phase, generation)) = self.gate
            && self.has_applied(generation)
        {
            self.stated = Some(phase);
        }
    }

    fn shows_tunnels(&self, phase: Phase) -> bool {
        self.phases.shows_tunnels(phase) || self.torn_down.is_some()
    }

    fn is_prepared(&self, goal: Phase) -> bool {
        if goal <= Phase::Leaving || self.phases.confirmed() >= Phase::Accepting {
            return true;
        }
        let has_devices = self.wish.devices.len() == self.own.devices.len();
        let are_up = self
            .wish
            .devices
            .iter()
            .all(|d| self.facts.links.contains_key(&d.name));
        let missing = missing_tunnel_addresses(&self.facts, &self.wish, &self.own);
        let are_refused = missing
            .iter()
            .all(|family| self.is_tunnel_address_refused(*family));

        has_devices && are_up && are_refused && !self.own.granted.is_empty()
    }

    fn is_tunnel_address_refused(&self, family: Family) -> bool {
        let is_about = |key: &TaskKey| match key {
            TaskKey::TunnelAddress(of) => *of == family,
            TaskKey::ClaimBlock(pool) => Family::of_net(pool) == family,
            TaskKey::ClaimKey(_) | TaskKey::ClaimAddress(_) => false,
            TaskKey::Publish | TaskKey::Pod(..) => false,
        };

        self.tasks.refusals().any(|(key, _)| is_about(key))
    }

    /// Nothing is left to be granted: one write of the record says it all.
    fn knows_its_addresses(&self) -> bool {
        let is_settled = |address: &IpAddr| {
            self.facts.address_claims.contains_key(address)
                || self
                    .tasks
                    .refusal(&TaskKey::ClaimAddress(*address))
                    .is_some()
        };

        !self.own.candidates.is_empty() && self.own.candidates.iter().all(is_settled)
    }

    /// Writes the record when the store shows another one.
    fn write_record(&mut self) {
        let Some(phase) = self.stated else {
            return;
        };
        let mut wanted = publication(
            &self.facts,
            &self.wish,
            &self.own,
            self.shows_tunnels(phase),
            phase,
        );
        let node = self.facts.nodes.get(&self.facts.own);
        let is_settled = self.phases.epoch_under_way().is_none();
        if is_settled && is_published(node.map(|node| &**node), &wanted) {
            self.draft = None;
            self.tasks.forget(&TaskKey::Publish);
            return;
        }
        let seen = node
            .and_then(|node| record_of(node))
            .map_or(0, |record| record.epoch);
        let last = self.draft.as_ref().map_or(0, |draft| draft.record.epoch);
        wanted.record.epoch = last;
        let is_repeated = self.draft.as_ref() == Some(&wanted);
        if is_repeated && seen < last {
            return;
        }
        // Somebody else writes what we write: do not race with it.
        let at = if is_repeated {
            self.now + REWRITE
        } else {
            self.now
        };
        wanted.record.epoch = seen
            .max(last)
            .max(self.phases.epoch_under_way().unwrap_or(0))
            + 1;
        self.phases.state(wanted.record.epoch, phase);
        self.draft = Some(wanted.clone());
        let kind = ActionKind::PublishNode(Box::new(wanted));
        self.tasks.ensure(TaskKey::Publish, kind, at);
    }
}

/// Returns everything that must be asked of the store before this node can take part.
pub(crate) fn claims(facts: &Facts, wish: &Wish, own: &Own) -> Vec<(TaskKey, ActionKind)> {
    let mut wanted = Vec::new();
    for device in wish.devices.iter().filter(|_| wish.wanted) {
        let Some(key) = facts.keys.get(device.slot()).or(facts.keys.first()) else {
            continue;
        };
        // A claim that names somebody else stays; the authority alone deletes claims.
        if !facts.key_claims.contains_key(&key.claim_name()) {
            wanted.push((TaskKey::ClaimKey(*key), ActionKind::ClaimKey(*key)));
        }
    }
    for address in &own.candidates {
        if !facts.address_claims.contains_key(address) {
            wanted.push((
                TaskKey::ClaimAddress(*address),
                ActionKind::ClaimAddress(*address),
            ));
        }
    }
    for pool in facts
        .pools
        .values()
        .filter(|pool| pool::selects(pool, facts))
    {
        if !own.blocks.iter().any(|block| pool.cidr.contains(block)) {
            let (pool, block_size) = (pool.cidr, pool.block_size);
            wanted.push((
                TaskKey::ClaimBlock(pool),
                ActionKind::ClaimBlock { pool, block_size },
            ));
        }
    }
    for family in missing_tunnel_addresses(facts, wish, own) {
        if let Some(request) = tunnel_address(facts, own, family) {
            let kind = ActionKind::AssignAddress(request);
            wanted.push((TaskKey::TunnelAddress(family), kind));
        }
    }

    wanted
}

/// Returns the families whose tunnel address is still to come, though a pool could give one.
pub(crate) fn missing_tunnel_addresses(facts: &Facts, wish: &Wish, own: &Own) -> BTreeSet<Family> {
    let is_served = |family: Family| {
        let mut pools = facts
            .pools
            .values()
            .filter(|pool| pool::selects(pool, facts));
        let by_pool = pools.any(|pool| {
            Family::of_net(&pool.cidr) == family && pool.allowed_uses.contains(&AllowedUse::Tunnel)
        });

        by_pool || block_for_tunnels(facts, own, family).is_some()
    };

    Family::BOTH
        .into_iter()
        .filter(|family| wish.wanted && own.device_for(*family).is_some())
        .filter(|family| !own.tunnel_addresses.contains_key(family) && is_served(*family))
        .collect()
}

/// Returns a block of ours that may give a tunnel address.
fn block_for_tunnels(facts: &Facts, own: &Own, family: Family) -> Option<IpNet> {
    let serves = |block: &&IpNet| {
        Family::of_net(block) == family
            && pool::of_block(facts, **block)
                .is_ok_and(|pool| !pool.disabled && pool.allowed_uses.contains(&AllowedUse::Tunnel))
    };

    own.blocks.iter().find(serves).copied()
}

/// Returns the assignment of a tunnel address, as Calico's node start-up makes it.
fn tunnel_address(facts: &Facts, own: &Own, family: Family) -> Option<AddressRequest> {
    block_for_tunnels(facts, own, family)?;
    let kind = match family {
        Family::V4 => "wireguardTunnelAddress",
        Family::V6 => "wireguardV6TunnelAddress",
    };

    Some(AddressRequest {
        handle: own::tunnel_handle(facts, family),
        attributes: BTreeMap::from([
            ("node".to_owned(), facts.own.to_string()),
            ("type".to_owned(), kind.to_owned()),
        ]),
        purpose: AllowedUse::Tunnel,
        families: [family].into(),
        pools: BTreeMap::new(),
        addresses: Vec::new(),
    })
}

/// Returns what this node says about itself in a phase; the epoch is still to be set.
///
/// The record shows the tunnels for as long as the devices are there; Calico's fields only while
/// a stock node may send to them.
pub(crate) fn publication(
    facts: &Facts,
    wish: &Wish,
    own: &Own,
    shows_tunnels: bool,
    phase: Phase,
) -> NodePublication {
    let shown = own.devices.iter().filter(|_| shows_tunnels);
    let speaks = phase >= Phase::Leaving;
    let devices = own.devices.iter().filter(|_| speaks);
    let seen = facts.nodes.get(&facts.own).and_then(|node| record_of(node));
    let mut addresses = BTreeMap::new();
    let mut endpoints = Vec::new();
    for address in &own.granted {
        let net = own.addresses.iter().find(|net| net.addr() == *address);
        if let (Some(net), false) = (net, addresses.contains_key(&Family::of(*address))) {
            addresses.insert(Family::of(*address), *net);
            endpoints.push(*address);
        }
    }
    let record = Record {
        version: RECORD_VERSION,
        node: facts.own.clone(),
        epoch: 0,
        tunnels: shown
            .map(|device| TunnelClaim {
                key: device.key,
                port: device.wish.port,
                families: device.wish.families.iter().copied().collect(),
            })
            .collect(),
        endpoints,
        addresses: own.granted.clone(),
        phase,
        conditions: conditions(wish),
        signature: None,
        unknown: seen
            .map(|record| record.unknown.clone())
            .unwrap_or_default(),
    };

    NodePublication {
        node: facts.own.clone(),
        record: within_bounds(record),
        addresses,
        tunnel_addresses: if speaks {
            own.tunnel_addresses.clone()
        } else {
            BTreeMap::new()
        },
        keys: devices
            .map(|device| (device.wish.native, device.key))
            .collect(),
    }
}

/// Leaves out what is not ours to say when the record would be too large for peers to read.
fn within_bounds(record: Record) -> Record {
    if record.encode().is_ok() {
        return record;
    }

    Record {
        unknown: BTreeMap::new(),
        ..record
    }
}

/// Returns whether the store shows exactly this, whatever the epoch.
pub(crate) fn is_published(node: Option<&Node>, publication: &NodePublication) -> bool {
    let Some(node) = node else {
        return false;
    };
    let Some(seen) = record_of(node) else {
        return false;
    };
    let wanted = Record {
        epoch: seen.epoch,
        ..publication.record.clone()
    };
    let key = |field: &Option<Result<PublicKey, String>>| match field {
        Some(Ok(key)) => Some(*key),
        Some(Err(_)) | None => None,
    };
    let keys = [
        (Family::V4, key(&node.key_v4)),
        (Family::V6, key(&node.key_v6)),
    ];
    let keys: BTreeMap<_, _> = keys
        .into_iter()
        .filter_map(|(family, key)| Some((family, key?)))
        .collect();
    let tunnels = node
        .tunnel_addresses
        .iter()
        .map(|address| (Family::of(*address), *address));
    let addresses = node.addresses.iter().map(|net| (Family::of_net(net), *net));

    *seen == wanted
        && keys == publication.keys
        && tunnels.collect::<BTreeMap<_, _>>() == publication.tunnel_addresses
        && addresses.collect::<BTreeMap<_, _>>() == publication.addresses
}

/// Returns a node's record, when it can be read.
pub(crate) fn record_of(node: &Node) -> Option<&Record> {
    node.record.as_ref()?.as_ref().ok()
}

/// What of the settings peers and operators should see; short, so that the record stays small.
fn conditions(wish: &Wish) -> BTreeMap<String, String> {
    let short = |text: &String| text.chars().take(128).collect::<String>();

    wish.conditions
        .iter()
        .take(8)
        .map(|(name, text)| (name.clone(), short(text)))
        .collect()
}
