//! The peers, found by id or by key. An id names one peer for ever: its slot may be used again, but
//! under another generation.
use std::collections::BTreeMap;

use crate::peer::Peer;
use crate::{PeerId, PublicKey};

/// All peers of a tunnel.
#[derive(Default)]
pub(crate) struct Roster {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ids: BTreeMap<PublicKey, PeerId>,
}

struct Slot {
    generation: u32,
    peer: Option<Box<Peer>>,
}

impl Roster {
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn find(&self, key: &PublicKey) -> Option<PeerId> {
        self.ids.get(key).copied()
    }

    pub(crate) fn get(&self, id: PeerId) -> Option<&Peer> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.peer
            .as_deref()
            .filter(|_| slot.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.peer
            .as_deref_mut()
            .filter(|_| slot.generation == id.generation)
    }

    /// Adds a peer under its own id.
    pub(crate) fn insert(&mut self, make: impl FnOnce(PeerId) -> Peer) -> PeerId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                peer: None,
            });
            self.slots.len() as u32 - 1
        });
        let place = &mut self.slots[slot as usize];
        let id = PeerId {
            slot,
            generation: place.generation,
        };
        let peer = make(id);
        self.ids.insert(peer.public_key, id);
        place.peer = Some(Box::new(peer));
        id
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.get(id)?;
        let slot = &mut self.slots[id.slot as usize];
        let peer = slot.peer.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.ids.remove(&peer.public_key);
        Some(*peer)
    }

    /// All ids, in the order of their slots.
    pub(crate) fn ids(&self) -> Vec<PeerId> {
        self.iter().map(|peer| peer.id).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().filter_map(|slot| slot.peer.as_deref())
    }
}
