//! Which families anybody has: a rule that asks for somebody of another matches nothing, and is not written.

use model::Family;

use super::Scene;

/// The families of which anybody has an address: whatever selectors may select, and whoever answers for a service, in
/// the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Families {
    v4: bool,
    v6: bool,
}

/// How often each family is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    v4: usize,
    v6: usize,
}

impl Families {
    /// Returns the families of a moment.
    pub(super) fn of(scene: &Scene) -> Self {
        let mut census = Census::default();
        for member in &scene.members {
            census.come(member.nets.iter().map(Family::of_net));
        }
        for backends in scene.services.values() {
            census.come(backends.iter().map(|backend| Family::of(backend.address)));
        }

        census.families()
    }

    /// Returns whether anybody has an address of a family.
    pub(crate) const fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Returns the families that one or the other has.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }
}

impl Census {
    /// Counts families in.
    pub(crate) fn come(&mut self, families: impl Iterator<Item = Family>) {
        for family in families {
            *self.of(family) += 1;
        }
    }

    /// Counts families out that have been counted in.
    pub(crate) fn go(&mut self, families: impl Iterator<Item = Family>) {
        for family in families {
            *self.of(family) -= 1;
        }
    }

    /// Returns the families that are there.
    pub(crate) const fn families(self) -> Families {
        Families {
            v4: self.v4 > 0,
            v6: self.v6 > 0,
        }
    }

    const fn of(&mut self, family: Family) -> &mut usize {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
