//! Numbers for names, for as long as somebody uses them.

use std::{collections::BTreeMap, sync::Arc};

/// Things with names, each under a number that rules can hold.
#[derive(Clone, Debug)]
pub(super) struct Slots<T> {
    ids: BTreeMap<Arc<str>, u32>,
    slots: Vec<Slot<T>>,
    /// Numbers that nobody uses.
    free: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    name: Arc<str>,
    /// How often it is spoken of; being there counts too.
    users: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// Returns the number of a name, which stays until it is released as often as it was held.
    pub(super) fn hold(&mut self, name: &str) -> u32 {
        let id = match self.find(name) {
            Some(id) => id,
            None => self.make(name),
        };
        if let Some(slot) = self.slots.get_mut(id as usize) {
            slot.users += 1;
        }

        id
    }

    /// Ends one use of a number.
    pub(super) fn release(&mut self, id: u32) {
        let Some(slot) = self.slots.get_mut(id as usize) else {
            return;
        };
        slot.users = slot.users.saturating_sub(1);
        if slot.users == 0 {
            slot.value = None;
            self.ids.remove(&slot.name);
            self.free.push(id);
        }
    }

    /// Returns the number of a name that is in use.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// Returns what is there under a number.
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.slots.get(id as usize)?.value.as_ref()
    }

    /// Returns everything that is there.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }

    /// Puts a thing under its name; returns its number, and what was there.
    pub(super) fn define(&mut self, name: &str, value: T) -> (u32, Option<T>) {
        let id = self.hold(name);
        let former = self
            .slots
            .get_mut(id as usize)
            .and_then(|slot| slot.value.replace(value));
        if former.is_some() {
            self.release(id);
        }

        (id, former)
    }

    /// Takes away the thing of a name, and returns it.
    pub(super) fn undefine(&mut self, name: &str) -> Option<T> {
        let id = self.find(name)?;
        let value = self.slots.get_mut(id as usize)?.value.take()?;
        self.release(id);

        Some(value)
    }

    /// Returns how many names are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    fn make(&mut self, name: &str) -> u32 {
        let name: Arc<str> = name.into();
        let slot = Slot {
            name: Arc::clone(&name),
            users: 0,
            value: None,
        };
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(unused) = self.slots.get_mut(id as usize) {
                    *unused = slot;
                }
                id
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.ids.insert(name, id);

        id
    }
}

impl<T: Default> Slots<T> {
    /// Returns what is there under a number that is held.
    pub(super) fn get_or_default(&mut self, id: u32) -> &mut T {
        self.slots[id as usize].value.get_or_insert_default()
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            ids: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_lasts_as_long_as_its_users_and_is_used_again() {
        let mut slots = Slots::default();
        let (first, former) = slots.define("a", 1);
        assert_eq!((former, slots.hold("a")), (None, first));

        assert_eq!(slots.define("a", 2), (first, Some(1)));
        assert_eq!(slots.undefine("a"), Some(2));
        assert_eq!((slots.get(first), slots.find("a")), (None, Some(first)));

        slots.release(first);
        assert_eq!((slots.find("a"), slots.len()), (None, 0));
        assert_eq!(slots.define("b", 3), (first, None));
    }
}
