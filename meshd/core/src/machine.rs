//! The rows that this node has by itself: chains, devices, rules, own routes, what the kernel is told.

use ipnet::IpNet;
use model::{
    Family, Phase, constant::TUNNEL_MARK, event::LinkKind, family::host_net, plan::Tunnel,
};

use crate::{
    World, guard,
    ledger::{Owner, Row},
    mtu, pool, route,
    wish::DeviceWish,
};

impl World {
    /// Guards a block whose pool is disabled, for as long as it exists.
    pub(crate) fn refresh_block(&mut self, cidr: IpNet) {
        let is_guarded_alone = self.facts.blocks.contains_key(&cidr)
            && pool::of_block(&self.facts, cidr).is_ok_and(|pool| pool.disabled);
        let mut rows = Vec::new();
        if is_guarded_alone {
            let is_up = self.posture.up && self.wish.covers(Family::of_net(&cidr));
            rows.extend(guard::lone_block(cidr, self.posture.up));
            rows.extend(is_up.then(|| route::of_lone_block(cidr)));
        }
        self.write(Owner::Block(cidr), rows);
    }

    /// Replaces what this node has by itself: chains, rules, devices, own routes.
    pub(crate) fn refresh_base(&mut self) {
        let mut rows = guard::always(&self.facts, &self.wish, &self.own);
        rows.extend(route::of_own_blocks(&self.own));
        rows.extend(self.forwarding());
        rows.extend(self.openings());
        if self.posture.up {
            rows.extend(guard::barriers(&self.facts, &self.wish, &self.own));
            rows.extend(route::of_guard(&self.facts, &self.wish, &self.own));
            rows.extend(self.devices());
            rows.extend(self.reverse_paths());
        }
        self.write(Owner::Base, rows);
    }

    fn devices(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for device in &self.own.devices {
            let name = &device.wish.name;
            let tunnel = Tunnel {
                key: device.key,
                port: device.wish.port,
                mark: TUNNEL_MARK,
                mtu: self.device_mtu(&device.wish),
                backend: self.wish.backend,
                threaded: self.wish.threaded,
            };
            rows.push(Row::Tunnel(name.clone(), tunnel));
            for family in &device.wish.families {
                if let Some(address) = self.own.tunnel_addresses.get(family) {
                    rows.push(Row::Address(name.clone(), host_net(*address)));
                }
            }
            if self.facts.links.contains_key(name) {
                let is = |key: &str, value: &str| Row::Sysctl(key.to_owned(), value.to_owned());
                rows.push(is(&format!("net/ipv4/conf/{name}/rp_filter"), "2"));
                rows.push(is(&format!("net/ipv6/conf/{name}/accept_ra"), "0"));
            }
        }

        rows
    }

    /// While a node switches, packets of one connection come and go by different devices.
    fn reverse_paths(&self) -> Vec<Row> {
        if self.phases.confirmed() == Phase::Enforced && self.wish.wanted {
            return Vec::new();
        }
        let links = self.facts.links.iter();
        let links = links.filter(|(_, link)| link.kind == LinkKind::Underlay);

        links
            .map(|(name, _)| Row::Sysctl(format!("net/ipv4/conf/{name}/rp_filter"), "2".into()))
            .collect()
    }

    fn forwarding(&self) -> Vec<Row> {
        let has = |family| self.pod_families().any(|pods| pods == family);
        let mut rows = Vec::new();
        if has(Family::V4) {
            rows.push(Row::Sysctl("net/ipv4/ip_forward".into(), "1".into()));
        }
        if has(Family::V6) {
            rows.push(Row::Sysctl(
                "net/ipv6/conf/all/forwarding".into(),
                "1".into(),
            ));
        }

        rows
    }

    /// Returns the MTU that pods get: the tunnels', also while nothing is encrypted, so that a
    /// switch changes nothing for them.
    pub(crate) fn pod_mtu(&self) -> u32 {
        let devices = self
            .wish
            .devices
            .iter()
            .map(|device| self.device_mtu(device));

        let mtu = devices
            .min()
            .unwrap_or_else(|| mtu::without_peers(&self.facts.links));

        mtu::carrying(mtu, self.pod_families())
    }

    /// Returns the families of pods' pools, one as often as it has pools.
    fn pod_families(&self) -> impl Iterator<Item = Family> {
        let pools = self.facts.pools.values();
        let pools = pools.filter(|pool| pool::serves_pods(pool));

        pools.map(|pool| Family::of_net(&pool.cidr))
    }

    pub(crate) fn device_mtu(&self, device: &DeviceWish) -> u32 {
        let first = (device.name.clone(), 0);
        let last = (device.name.clone(), u32::MAX);
        let smallest = self
            .mtus
            .range(first..=last)
            .next()
            .map(|((_, mtu), _)| *mtu);

        let mtu = device
            .mtu
            .or(smallest)
            .unwrap_or_else(|| mtu::without_peers(&self.facts.links));

        let families = self.pod_families();

        mtu::carrying(mtu, families.filter(|f| device.families.contains(f)))
    }

    pub(crate) fn device_mtu_for(&self, family: Family) -> u32 {
        self.wish
            .device_for(family)
            .map_or(u32::MAX, |device| self.device_mtu(device))
    }

    /// Returns the MTU of every device, and that of pods.
    pub(crate) fn mtus_in_use(&self) -> Vec<u32> {
        let devices = self
            .wish
            .devices
            .iter()
            .map(|device| self.device_mtu(device));

        devices.chain([self.pod_mtu()]).collect()
    }
}
