//! The rows that another node is: a WireGuard peer for each key, routes, exceptions.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{Family, InterfaceName, NodeName, Phase, PublicKey, family::host_net, plan::Peer};

use crate::{
    World,
    fact::Touched,
    guard::{self, Sends},
    ledger::{Owner, Row},
    member::{Carrier, Judge, Member},
    phase::{Passage, Standing},
    publish, route,
};

impl World {
    /// Judges one node again and replaces its rows.
    pub(crate) fn refresh(&mut self, name: &NodeName) {
        self.effort += 1;
        let judge = Judge {
            facts: &self.facts,
            wish: &self.wish,
            own: &self.own,
        };
        let mut judged = judge.judge(name);
        let former = self.members.remove(name);
        let way = former
            .as_ref()
            .map(|(member, passage)| (member.carriers.clone(), *passage));
        let former = former.map(|(member, _)| member);
        if let (Some(former), Some(member)) = (&former, &mut judged) {
            member.retained = self.retained(name, former, member);
        }
        self.recount_mtus(former.as_ref(), judged.as_ref());
        self.lapse_handshakes(name, former.as_ref(), judged.as_ref());
        let Some(member) = judged else {
            self.phases.part(name);
            self.decided.remove(name);
            self.write(Owner::Node(name.clone()), Vec::new());
            return;
        };
        for carrier in member.carriers.values() {
            self.first_seen.entry(carrier.key).or_insert(self.now);
        }
        let standing = self.standing(&member);
        let passage = self.phases.meet(name, standing, self.posture, self.now);
        let rows = self.rows_of(&member, passage);
        self.write(Owner::Node(name.clone()), rows);
        if way.is_none_or(|way| way != (member.carriers.clone(), passage)) {
            self.decide(name);
        }
        self.members.insert(name.clone(), (member, passage));
    }

    /// Returns the carriers of a member that withdrew its tunnels while ours are still there.
    ///
    /// Who has shown by a handshake that it has a peer must be able to count on that, for as long
    /// as it is there: the member may be back before it hears that we took it out.
    fn retained(
        &self,
        name: &NodeName,
        former: &Member,
        member: &Member,
    ) -> BTreeMap<Family, Carrier> {
        if !self.posture.up || !member.is_withdrawn {
            return BTreeMap::new();
        }
        let judge = Judge {
            facts: &self.facts,
            wish: &self.wish,
            own: &self.own,
        };
        let mut carriers = former.known_carriers().clone();
        carriers.retain(|family, carrier| {
            let device = self.own.device_for(*family);
            device.is_some_and(|device| device.wish.name == carrier.device)
                && judge.may_use(name, &carrier.key)
        });

        carriers
    }

    /// Returns whether a handshake was completed on this way.
    pub(crate) fn has_shaken(&self, carrier: &Carrier) -> bool {
        let way = (carrier.device.clone(), carrier.key);

        self.facts.handshakes.contains(&way)
    }

    pub(crate) fn standing(&self, member: &Member) -> Standing {
        let has_carrier = !member.carriers.is_empty();
        let mut carriers = member.carriers.values();
        let reached = has_carrier && carriers.all(|carrier| self.has_shaken(carrier));
        let phase = match (member.is_stock, reached) {
            (false, _) => member.phase,
            (true, true) => Phase::Sending,
            (true, false) => Phase::Off,
        };
        let may_stay_plain = self.wish.permits_plain() && (member.is_stock || !has_carrier);

        Standing {
            phase,
            has_carrier,
            reached,
            is_stock: member.is_stock,
            may_stay_plain,
        }
    }

    /// Returns how packets to a member's pods and to its own addresses leave, in one family.
    pub(crate) fn sends(
        &self,
        member: &Member,
        passage: Passage,
        family: Family,
    ) -> (Sends, Sends) {
        if !passage.switched {
            return (Sends::Plain, Sends::Plain);
        }
        let without = if self.wish.permits_plain() {
            Sends::Plain
        } else {
            Sends::Nothing
        };
        let pods = if member.carriers.contains_key(&family) {
            Sends::Tunnel
        } else {
            without
        };
        // A stock node takes pods' packets to its own address in plaintext only.
        let hosts = if member.is_stock { without } else { pods };

        (pods, hosts)
    }

    fn rows_of(&self, member: &Member, passage: Passage) -> Vec<Row> {
        let mut rows = route::plain(&self.facts, member);
        rows.extend(guard::member_hosts(member, self.posture.up));
        if !self.posture.up {
            return rows;
        }
        for family in Family::BOTH
            .into_iter()
            .filter(|family| self.wish.covers(*family))
        {
            let (pods, hosts) = self.sends(member, passage, family);
            let mtu = self.device_mtu_for(family);
            rows.extend(route::to_member(
                &self.facts,
                &self.own,
                member,
                family,
                pods,
                hosts,
                mtu,
            ));
            rows.extend(guard::exceptions(
                member,
                family,
                pods,
                hosts,
                passage.takes_plain,
            ));
        }
        rows.extend(self.peers_of(member));

        rows
    }

    /// Returns the WireGuard peers that a member is: one for each of its keys.
    fn peers_of(&self, member: &Member) -> Vec<Row> {
        let mut peers: BTreeMap<(InterfaceName, PublicKey), Peer> = BTreeMap::new();
        for (family, carrier) in member.known_carriers() {
            let of_family = |net: &IpNet| Family::of_net(net) == *family;
            let pods = member.allowed.iter().copied().filter(of_family);
            let hosts = member.hosts.iter().filter(|_| !member.is_stock);
            let hosts = hosts.map(|host| host_net(*host)).filter(of_family);
            let key = (carrier.device.clone(), carrier.key);
            let peer = peers.entry(key).or_insert_with(|| Peer {
                endpoint: carrier.endpoint,
                keepalive: self.wish.keepalive,
                allowed_ips: BTreeSet::new(),
            });
            peer.allowed_ips.extend(pods.chain(hosts));
        }

        peers
            .into_iter()
            .map(|(key, peer)| Row::Peer(key, peer))
            .collect()
    }

    /// A peer that is taken out of the machine has to prove itself again when it comes back.
    ///
    /// One that withdrew and is retained need not, if our own record shows tunnels: then it has us
    /// as a peer again before it says that it accepts. While our record shows none, whoever goes may
    /// have taken us out.
    fn lapse_handshakes(
        &mut self,
        name: &NodeName,
        former: Option<&Member>,
        member: Option<&Member>,
    ) {
        let generation = self.plan.generation;
        let own = self.facts.nodes.get(&self.facts.own);
        let record = own.and_then(|node| publish::record_of(node));
        let is_shown = record.is_some_and(|record| !record.tunnels.is_empty());
        let still = |carrier: &Carrier| {
            member.is_some_and(|member| {
                let known = if is_shown {
                    member.known_carriers()
                } else {
                    &member.carriers
                };
                let mut carriers = known.values();
                carriers.any(|c| (&c.device, c.key) == (&carrier.device, carrier.key))
            })
        };
        for carrier in former
            .iter()
            .flat_map(|member| member.known_carriers().values())
        {
            if !still(carrier) {
                let way = (carrier.device.clone(), carrier.key);
                if !is_shown {
                    self.facts.handshakes.remove(&way);
                } else if self.facts.handshakes.contains(&way) {
                    self.applied.lapses.leave(name, way, generation);
                }
                self.first_seen.remove(&carrier.key);
            }
        }
        for carrier in member.iter().flat_map(|member| member.carriers.values()) {
            let way = (carrier.device.clone(), carrier.key);
            if self.applied.lapses.return_to(name, &way, generation) {
                self.facts.handshakes.remove(&way);
            }
        }
    }

    /// Forgets the handshakes of peers that a pass took out of the machine.
    pub(crate) fn forget_lapsed(&mut self) -> Touched {
        let mut touched = Touched::nothing();
        for way in self.applied.lapses.pass(self.applied.generation) {
            self.facts.handshakes.remove(&way);
            let users = self.facts.key_users.get(&way.1);
            touched.nodes.extend(users.into_iter().flatten().cloned());
        }

        touched
    }

    fn recount_mtus(&mut self, former: Option<&Member>, member: Option<&Member>) {
        let key = |c: &Carrier| (c.device.clone(), c.mtu);
        for carrier in member.iter().flat_map(|member| member.carriers.values()) {
            *self.mtus.entry(key(carrier)).or_default() += 1;
        }
        for carrier in former.iter().flat_map(|member| member.carriers.values()) {
            let key = key(carrier);
            if let Some(count) = self.mtus.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.mtus.remove(&key);
                }
            }
        }
    }
}
