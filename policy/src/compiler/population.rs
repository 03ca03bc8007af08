//! Whatever selectors may select: pods, hosts' endpoints and network sets, in the whole cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    Family, InterfaceName, Kind, NodeName, ObjectKey, PodName,
    policy::{HostEndpoint, NamedPort, NetworkSet},
    resource::WorkloadEndpoint,
};

use super::{
    index::{AskId, Index, Turn},
    kin::{KinId, Kins, Looks, MemberId},
    slab::{Slab, Words},
};
use crate::{
    cluster::{self, Pod, PodNetwork, object},
    compile::family::{Census, Families},
};

/// Whatever selectors may select.
#[derive(Clone, Debug, Default)]
pub(super) struct Population {
    pub(super) words: Words,
    pub(super) kins: Kins,
    /// Which sets' selectors select whom.
    pub(super) index: Index,
    keys: BTreeMap<ObjectKey, MemberId>,
    members: Slab<Member>,
    nodes: BTreeSet<Arc<NodeName>>,
    /// Of which families the members' networks are.
    census: Census,
}

/// What selectors may select.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) kin: KinId,
    pub(super) body: Body,
}

/// A member, apart from its looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// Its networks; an endpoint's addresses are networks of one.
    pub(super) nets: Box<[IpNet]>,
    /// Ports with names.
    pub(super) ports: Box<[NamedPort]>,
    pub(super) pod: Option<Box<Seat>>,
}

/// A pod's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pod: Box<str>,
    account: Box<str>,
    node: Arc<NodeName>,
    /// The host end of its interface, where that matters: on its own node.
    pub(super) interface: Option<InterfaceName>,
}

/// A member as it is to be.
pub(super) struct Newcomer {
    looks: Looks,
    body: Body,
}

/// What the coming or going of a member did.
#[derive(Debug, Default)]
pub(super) struct Move {
    /// The kin that it left, if it left one, and the body with which; whether that is without members now.
    pub(super) left: Option<(KinId, Body, bool)>,
    /// The member and its kin, if it is there now, and whether the kin is new.
    pub(super) joined: Option<(MemberId, KinId, bool)>,
}

impl Population {
    /// Reads a pod's endpoint; the interface counts on the node `own`.
    pub(super) fn pod(&mut self, endpoint: &WorkloadEndpoint, own: &NodeName) -> Newcomer {
        let pod = object::pod(endpoint);
        let (labels, profiles) = pod.looks();
        let interface = endpoint.interface.clone();
        let seat = Seat {
            pod: pod.name.name.into(),
            account: pod.service_account.into(),
            node: self.node(&endpoint.node),
            interface: (endpoint.node == *own).then_some(interface),
        };

        Newcomer {
            looks: Looks::new(&labels, &profiles, &mut self.words),
            body: Body {
                nets: endpoint.addresses.iter().map(IpNet::trunc).collect(),
                ports: endpoint.ports.clone().into(),
                pod: Some(Box::new(seat)),
            },
        }
    }

    /// Reads a host's endpoint.
    pub(super) fn host(&mut self, host: &HostEndpoint) -> Newcomer {
        let addresses = host.expected_addresses.iter();

        Newcomer {
            looks: Looks::new(&host.labels, &host.profiles, &mut self.words),
            body: Body {
                nets: addresses.copied().map(IpNet::from).collect(),
                ports: host.ports.clone().into(),
                pod: None,
            },
        }
    }

    /// Reads a network set.
    pub(super) fn set(&mut self, set: &NetworkSet) -> Newcomer {
        let (labels, profiles) = cluster::looks_of_set(set);

        Newcomer {
            looks: Looks::new(&labels, &profiles, &mut self.words),
            body: Body {
                nets: set.nets.iter().map(IpNet::trunc).collect(),
                ports: Box::default(),
                pod: None,
            },
        }
    }

    /// Returns whether a member is there exactly so.
    fn is_same(&self, id: MemberId, newcomer: &Newcomer) -> bool {
        let member = &self.members[id];

        member.body == newcomer.body && *self.kins.looks(member.kin) == newcomer.looks
    }

    /// Puts a member in the place of what was there under its key; `None` where it is the same.
    pub(super) fn put(&mut self, key: ObjectKey, newcomer: Newcomer) -> Option<Move> {
        let known = self.keys.get(&key).copied();
        if let Some(id) = known
            && self.is_same(id, &newcomer)
        {
            newcomer.looks.release(&mut self.words);
            return None;
        }
        let Newcomer { looks, body } = newcomer;
        self.census.come(body.families());
        let (id, left) = match known {
            Some(id) => {
                let former = std::mem::replace(&mut self.members[id].body, body);
                let kin = self.members[id].kin;
                self.census.go(former.families());
                (id, Some((kin, former)))
            }
            None => (self.members.insert(Member { kin: 0, body }), None),
        };
        let left = left.map(|(kin, body)| (kin, body, self.kins.part(kin, id)));
        let (kin, is_new) = self.kins.join(looks, id, &mut self.words);
        self.members[id].kin = kin;
        self.keys.insert(key, id);
        if is_new {
            self.index.enter(kin, self.kins.labels(kin), &self.words);
        }
        // The kin that was left may be the one that was joined.
        let left = left.map(|(kin, body, _)| {
            let is_empty = self.kins.members(kin).is_empty();
            (kin, body, is_empty)
        });

        Some(Move {
            left,
            joined: Some((id, kin, is_new)),
        })
    }

    /// Takes a member out.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<(MemberId, Move)> {
        let id = self.keys.remove(key)?;
        let member = self.members.remove(id)?;
        let is_empty = self.kins.part(member.kin, id);
        self.census.go(member.body.families());
        if let Some(seat) = &member.body.pod
            && Arc::strong_count(&seat.node) == 2
        {
            self.nodes.remove(&seat.node);
        }
        let left = Some((member.kin, member.body, is_empty));

        Some((id, Move { left, joined: None }))
    }

    /// Returns the families of which anybody is there.
    pub(super) const fn families(&self) -> Families {
        self.census.families()
    }

    /// Forgets a kin without members.
    pub(super) fn bury(&mut self, kin: KinId) {
        self.index.leave(kin, self.kins.labels(kin));
        self.kins.forget(kin, &mut self.words);
    }

    /// Gives a kin's former labels up; returns whose sets that changes.
    pub(super) fn relabel(&mut self, kin: KinId, former: &super::condition::Labels) -> Turn {
        let labels = self.kins.labels(kin);

        self.index.relabel(kin, former, labels, &self.words)
    }

    /// Returns whom a selector selects.
    pub(super) fn selected_by(&self, ask: AskId) -> impl Iterator<Item = &Body> {
        let kins = self.index.selected_by(ask).iter();

        kins.flat_map(|kin| self.bodies(*kin))
    }

    /// Returns the members of a kin.
    pub(super) fn bodies(&self, kin: KinId) -> impl Iterator<Item = &Body> {
        let members = self.kins.members(kin).iter();

        members.map(|id| &self.members[*id].body)
    }

    /// Returns the names of the profiles that a kin has, in order.
    pub(super) fn profiles_of(&self, kin: KinId) -> impl Iterator<Item = &str> {
        let profiles = self.kins.looks(kin).profiles.iter();

        profiles.map(|word| self.words.text(*word))
    }

    pub(super) fn member(&self, id: MemberId) -> &Member {
        &self.members[id]
    }

    pub(super) fn find(&self, key: &ObjectKey) -> Option<&Member> {
        self.keys.get(key).map(|id| &self.members[*id])
    }

    /// Returns the pods.
    pub(super) fn pods(&self) -> impl Iterator<Item = Pod> {
        self.keys.iter().filter_map(|(key, id)| {
            let member = &self.members[*id];
            let seat = member.body.pod.as_ref()?;

            Some(Pod {
                name: member.body.pod_name(key),
                node: NodeName::clone(&seat.node),
                service_account: seat.account.to_string(),
                labels: self.own_labels(member.kin),
                addresses: member.body.nets.iter().map(IpNet::addr).collect(),
                ports: member.body.ports.to_vec(),
                network: PodNetwork::Own,
            })
        })
    }

    /// Returns the network sets.
    pub(super) fn sets(&self) -> impl Iterator<Item = NetworkSet> {
        let is_set = |kind| kind == Kind::NetworkSet || kind == Kind::GlobalNetworkSet;
        let sets = self.keys.iter().filter(move |(key, _)| is_set(key.kind));

        sets.map(|(key, id)| {
            let member = &self.members[*id];

            NetworkSet {
                key: key.clone(),
                labels: self.own_labels(member.kin),
                nets: member.body.nets.to_vec(),
                invalid: BTreeMap::new(),
            }
        })
    }

    fn own_labels(&self, kin: KinId) -> BTreeMap<String, String> {
        let labels = self.kins.looks(kin).labels.iter();
        let text = |word| self.words.text(word).to_owned();

        labels
            .map(|(key, value)| (text(*key), text(*value)))
            .collect()
    }

    fn node(&mut self, name: &NodeName) -> Arc<NodeName> {
        if let Some(known) = self.nodes.get(name) {
            return Arc::clone(known);
        }
        let node = Arc::new(name.clone());
        self.nodes.insert(Arc::clone(&node));

        node
    }
}

impl Body {
    /// Returns the family of each of its networks.
    fn families(&self) -> impl Iterator<Item = Family> {
        self.nets.iter().map(Family::of_net)
    }

    /// Returns the pod's interface, where it is on this node.
    pub(super) fn interface(&self) -> Option<&InterfaceName> {
        self.pod.as_ref()?.interface.as_ref()
    }

    /// Returns the name of the pod that it is, as the object of this key.
    pub(super) fn pod_name(&self, key: &ObjectKey) -> PodName {
        let name = self.pod.as_ref().map(|seat| seat.pod.to_string());

        PodName {
            namespace: key.namespace.clone().unwrap_or_default(),
            name: name.unwrap_or_default(),
        }
    }
}
