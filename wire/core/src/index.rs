//! Which session indices may be in use, for those who do not hold the tunnel.
use std::sync::atomic::{AtomicU16, Ordering};

/// Places; an index is counted at its lower 16 bits.
const PLACES: usize = 1 << 16;

/// How many indices in use fall on each place. Indices are random, so a stranger's guess finds an empty place nearly
/// always: with a thousand peers, 19 times of 20.
pub struct LiveIndices {
    places: Box<[AtomicU16]>,
}

impl Default for LiveIndices {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| AtomicU16::new(0)).collect(),
        }
    }
}

impl LiveIndices {
    /// Whether [`crate::Tunnel::session`] may know this index. `false` is certain.
    #[must_use]
    pub fn may_hold(&self, index: u32) -> bool {
        self.place(index).load(Ordering::Acquire) > 0
    }

    pub(crate) fn add(&self, index: u32) {
        self.place(index).fetch_add(1, Ordering::Release);
    }

    pub(crate) fn remove(&self, index: u32) {
        self.place(index).fetch_sub(1, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let counts = self
            .places
            .iter()
            .map(|place| place.load(Ordering::Acquire));
        counts.map(usize::from).sum()
    }

    fn place(&self, index: u32) -> &AtomicU16 {
        &self.places[index as usize % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_known_as_long_as_it_is_in_use_even_where_two_meet() {
        let live = LiveIndices::default();
        assert!(!live.may_hold(7));
        live.add(7);
        live.add(7 + (1 << 16));
        live.remove(7);
        assert!(live.may_hold(7 + (1 << 16)));
        live.remove(7 + (1 << 16));
        assert!(!live.may_hold(7));
    }
}
