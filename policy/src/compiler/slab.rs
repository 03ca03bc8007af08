//! Things under small numbers, and words under theirs.

use std::{
    collections::BTreeMap,
    ops::{Index, IndexMut},
    sync::Arc,
};

/// Things under numbers; a number is used again when its thing is gone.
#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    things: Vec<Option<T>>,
    free: Vec<u32>,
}

/// A label's key or value, or a name, under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Word(u32);

/// Words, each for as long as somebody holds it.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    numbers: BTreeMap<Arc<str>, Word>,
    held: Slab<(Arc<str>, u32)>,
}

impl<T> Slab<T> {
    /// Returns a thing's number.
    pub(super) fn insert(&mut self, thing: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.things[number as usize] = Some(thing);
            return number;
        }
        self.things.push(Some(thing));

        u32::try_from(self.things.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let thing = self.things.get_mut(number as usize)?.take()?;
        self.free.push(number);

        Some(thing)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.things.get_mut(number as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.things.iter().flatten()
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            things: Vec::new(),
            free: Vec::new(),
        }
    }
}

/// # Panics
///
/// Where a number outlived its thing.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        let thing = self.things[number as usize].as_ref();

        thing.expect("nobody keeps the number of what is gone")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        let thing = self.things[number as usize].as_mut();

        thing.expect("nobody keeps the number of what is gone")
    }
}

impl Words {
    /// Returns a word's number, which stands for it until it is given back as often as it was taken.
    pub(super) fn take(&mut self, text: &str) -> Word {
        if let Some(word) = self.find(text) {
            self.held[word.0].1 += 1;
            return word;
        }
        let text: Arc<str> = text.into();
        let word = Word(self.held.insert((Arc::clone(&text), 1)));
        self.numbers.insert(text, word);

        word
    }

    pub(super) fn give_back(&mut self, word: Word) {
        let (text, holders) = &mut self.held[word.0];
        *holders -= 1;
        if *holders == 0 {
            self.numbers.remove(text);
            self.held.remove(word.0);
        }
    }

    pub(super) fn find(&self, text: &str) -> Option<Word> {
        self.numbers.get(text).copied()
    }

    pub(super) fn text(&self, word: Word) -> &str {
        &self.held[word.0].0
    }

    /// Returns how many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

impl Word {
    /// The first and the last there can be.
    pub(super) const ENDS: (Self, Self) = (Self(0), Self(u32::MAX));
}
