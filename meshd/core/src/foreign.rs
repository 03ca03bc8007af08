//! Other programs' packet filters: what we put into their extension points, and what they drop of ours.

use std::collections::BTreeSet;

use model::{
    Family,
    firewall::{ExtensionPoint, ForeignDrop, Opening, ZoneMember},
    resource::mesh_configuration::ForeignFirewalls,
};

use crate::{World, ledger::Row};

/// How many drops a condition names.
const NAMED: usize = 3;

impl World {
    /// Returns what we put into the extension points that are there, where we may use them.
    pub(crate) fn openings(&self) -> Vec<Row> {
        match self.facts.mesh.foreign_firewalls {
            ForeignFirewalls::Report => Vec::new(),
            ForeignFirewalls::Open => {
                let points = self.facts.firewalls.extension_points.iter();

                points
                    .flat_map(|point| self.openings_in(point))
                    .map(Row::Opening)
                    .collect()
            }
        }
    }

    /// Pods' interfaces are there with encryption and without, tunnels and their ports only with it.
    fn openings_in(&self, point: &ExtensionPoint) -> Vec<Opening> {
        let devices = self.own.devices.iter().filter(|_| self.posture.up);
        let devices = devices.map(|device| &device.wish);

        match point {
            ExtensionPoint::DockerUser(family) => vec![Opening::DockerUser(*family)],
            ExtensionPoint::FirewalldTrusted => {
                let tunnels = devices.map(|device| ZoneMember::Device(device.name.clone()));
                let members = tunnels.chain([ZoneMember::Pods]);

                members.map(Opening::FirewalldMember).collect()
            }
            ExtensionPoint::FirewalldZone(zone) => devices
                .map(|device| Opening::FirewalldPort {
                    zone: zone.clone(),
                    port: device.port,
                })
                .collect(),
        }
    }

    /// Says which packets of ours others drop, as far as there are such packets.
    pub(crate) fn foreign_drops(&self) -> Option<String> {
        let outer = self.own.addresses.iter().map(Family::of_net);
        let outer: BTreeSet<Family> = outer.collect();
        let inner = self.own.blocks.iter().map(Family::of_net);
        let inner: BTreeSet<Family> = inner.collect();
        let concerns_us = |drop: &&ForeignDrop| match drop.course.is_outer() {
            true => outer.contains(&drop.family),
            false => inner.contains(&drop.family),
        };
        let drops: Vec<_> = self
            .facts
            .firewalls
            .drops
            .iter()
            .filter(concerns_us)
            .collect();
        let named: Vec<_> = drops
            .iter()
            .take(NAMED)
            .map(|drop| drop.to_string())
            .collect();
        let more = drops.len().saturating_sub(NAMED);

        match (drops.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(named.join("; ")),
            (false, more) => Some(format!("{}; and {more} more", named.join("; "))),
        }
    }
}
