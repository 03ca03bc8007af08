//! Who put which row into the plan, so that a change of one owner touches its own rows only.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{
    InterfaceName, NodeName, Plan, PodName, PublicKey, Table,
    firewall::Opening,
    nft::{Chain, ChainKey, Element, SetKey, SetKind},
    plan::{Peer, PodInterface, Route, RouteKey, RowKey, RuleKey, Tunnel},
};

/// Who a row is there for. No two owners write the same row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The node itself.
    Base,
    /// A block of a disabled pool, which is guarded as long as it exists.
    Block(IpNet),
    /// Another node.
    Node(NodeName),
    /// The ways by others' ports and addresses to local pods, together.
    Led,
    /// A local pod.
    Pod(PodName),
}

/// A row of any table of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Set(SetKey, SetKind),
    Element(SetKey, Element),
    Chain(ChainKey, Chain),
    Sysctl(String, String),
    Pod(PodName, PodInterface),
    Tunnel(InterfaceName, Tunnel),
    Address(InterfaceName, IpNet),
    Peer((InterfaceName, PublicKey), Peer),
    Route(RouteKey, Route),
    Rule(RuleKey),
    Opening(Opening),
}

/// Remembers each owner's rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    rows: BTreeMap<Owner, Vec<RowKey>>,
}

impl Ledger {
    /// Makes these the rows of these owners; the plan's generation rises when anything changed.
    ///
    /// Owners that pass a row from one to the other are written together: what one of them lost
    /// and another one gained stays.
    pub(crate) fn replace(&mut self, plan: &mut Plan, batch: Vec<(Owner, Vec<Row>)>) {
        let mut changed = false;
        let mut kept = Vec::new();
        for (owner, rows) in &batch {
            let mut keys = rows.iter().map(Row::key).collect::<Vec<_>>();
            keys.sort();
            let former = self.rows.remove(owner).unwrap_or_default();
            for lost in former.iter().filter(|key| keys.binary_search(key).is_err()) {
                remove(lost, plan);
                changed = true;
            }
            kept.push(keys);
        }
        for ((owner, rows), keys) in batch.into_iter().zip(kept) {
            for row in rows {
                changed |= row.write(plan);
            }
            if !keys.is_empty() {
                self.rows.insert(owner, keys);
            }
        }
        plan.generation += u64::from(changed);
    }

    /// Returns the rows of an owner.
    pub(crate) fn rows_of(&self, owner: &Owner) -> &[RowKey] {
        self.rows.get(owner).map_or(&[], Vec::as_slice)
    }

    /// Returns whether the row is there for a pod alone.
    pub(crate) fn is_a_pods(&self, row: &RowKey) -> bool {
        let pods = self.rows.iter().rev();
        let mut pods = pods.take_while(|(owner, _)| matches!(owner, Owner::Pod(_)));

        pods.any(|(_, rows)| rows.contains(row))
    }

    /// Returns every owner that has rows and for which `is` holds.
    pub(crate) fn owners(&self, is: impl Fn(&Owner) -> bool) -> Vec<Owner> {
        self.rows
            .keys()
            .filter(|owner| is(owner))
            .cloned()
            .collect()
    }
}

impl Row {
    fn key(&self) -> RowKey {
        match self {
            Self::Set(key, _) => RowKey::Set(key.clone()),
            Self::Element(set, element) => RowKey::Element(set.clone(), element.clone()),
            Self::Chain(key, _) => RowKey::Chain(key.clone()),
            Self::Sysctl(key, _) => RowKey::Sysctl(key.clone()),
            Self::Pod(pod, _) => RowKey::Pod(pod.clone()),
            Self::Tunnel(name, _) => RowKey::Tunnel(name.clone()),
            Self::Address(name, net) => RowKey::Address(name.clone(), *net),
            Self::Peer((name, key), _) => RowKey::Peer(name.clone(), *key),
            Self::Route(key, _) => RowKey::Route(key.clone()),
            Self::Rule(key) => RowKey::Rule(key.clone()),
            Self::Opening(opening) => RowKey::Opening(opening.clone()),
        }
    }

    /// Writes the row and says whether that changed the plan.
    fn write(self, plan: &mut Plan) -> bool {
        match self {
            Self::Set(key, kind) => write(&mut plan.nft_sets, key, kind),
            Self::Element(set, element) => write(&mut plan.nft_elements, (set, element), ()),
            Self::Chain(key, chain) => write(&mut plan.nft_chains, key, chain),
            Self::Sysctl(key, value) => write(&mut plan.sysctls, key, value),
            Self::Pod(pod, interface) => write(&mut plan.pods, pod, interface),
            Self::Tunnel(name, tunnel) => write(&mut plan.tunnels, name, tunnel),
            Self::Address(name, net) => write(&mut plan.addresses, (name, net), ()),
            Self::Peer(key, peer) => write(&mut plan.peers, key, peer),
            Self::Route(key, route) => write(&mut plan.routes, key, route),
            Self::Rule(key) => write(&mut plan.rules, key, ()),
            Self::Opening(opening) => write(&mut plan.openings, opening, true),
        }
    }
}

/// Takes a row out of the plan.
fn remove(key: &RowKey, plan: &mut Plan) {
    match key {
        RowKey::Set(key) => plan.nft_sets.unset(key),
        RowKey::Element(set, element) => plan.nft_elements.unset(&(set.clone(), element.clone())),
        RowKey::Chain(key) => plan.nft_chains.unset(key),
        RowKey::Sysctl(key) => plan.sysctls.unset(key),
        RowKey::Pod(pod) => plan.pods.unset(pod),
        RowKey::Tunnel(name) => plan.tunnels.unset(name),
        RowKey::Address(name, net) => plan.addresses.unset(&(name.clone(), *net)),
        RowKey::Peer(name, key) => plan.peers.unset(&(name.clone(), *key)),
        RowKey::Route(key) => plan.routes.unset(key),
        RowKey::Rule(key) => plan.rules.unset(key),
        RowKey::Opening(opening) => plan.openings.unset(opening),
    }
}

fn write<K: Ord + Clone, V: Clone + PartialEq>(table: &mut Table<K, V>, key: K, row: V) -> bool {
    if table.get(&key) == Some(&row) {
        return false;
    }
    table.set(key, row);

    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_changes_leaves_the_rows_of_others_alone() {
        let (mut ledger, mut plan) = (Ledger::default(), Plan::default());
        let [a, b] = ["a", "b"].map(|name| Owner::Node(name.parse().unwrap()));
        ledger.replace(&mut plan, vec![(a, vec![row("1")])]);
        ledger.replace(&mut plan, vec![(b.clone(), vec![row("2"), row("3")])]);

        ledger.replace(&mut plan, vec![(b.clone(), vec![row("3")])]);

        assert_eq!(plan.sysctls.rows().keys().collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(plan.generation, 3);
        ledger.replace(&mut plan, vec![(b, vec![row("3")])]);
        assert_eq!(plan.generation, 3);
    }

    #[test]
    fn a_row_that_changes_hands_stays() {
        for giver_first in [true, false] {
            let (mut ledger, mut plan) = (Ledger::default(), Plan::default());
            let [a, b] = ["a", "b"].map(|name| Owner::Node(name.parse().unwrap()));
            ledger.replace(&mut plan, vec![(a.clone(), vec![row("1")])]);

            let mut batch = vec![(a, vec![]), (b, vec![row("1")])];
            if !giver_first {
                batch.reverse();
            }
            ledger.replace(&mut plan, batch);

            assert_eq!(plan.sysctls.rows().keys().collect::<Vec<_>>(), ["1"]);
        }
    }

    fn row(name: &str) -> Row {
        Row::Sysctl(name.into(), "1".into())
    }
}
