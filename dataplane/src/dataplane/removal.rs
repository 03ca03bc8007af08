//! Taking everything of ours off the machine, and saying what that is.

use std::collections::BTreeMap;

use model::{Moment, Plan};

use super::{Component, Dataplane, Report};
use crate::{Reconciler, Target, nft::NftKey, reconciler::chain};

/// Something of ours on this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned {
    /// What kind it is.
    pub component: Component,
    /// Which, in words for people.
    pub name: String,
}

/// Why what is ours could not be found or taken away.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// A part of the machine could not be looked at.
    #[error("could not look at {component}: {reason}")]
    Look {
        /// The part's name.
        component: &'static str,
        /// Why not.
        reason: String,
    },
    /// A part could not be removed. What comes after it, the guard last, stands.
    #[error("could not remove all {component}: {reason}")]
    Remove {
        /// The part's name.
        component: String,
        /// Why not.
        reason: String,
    },
}

impl Dataplane {
    /// Lists everything of ours on this machine, in the order in which it is made. Changes nothing,
    /// but for taking over nftables tables whose owner is gone.
    ///
    /// # Errors
    ///
    /// [`RemovalError::Look`].
    pub fn owned(&mut self) -> Result<Vec<Owned>, RemovalError> {
        let mut owned = self.owned_tables()?;
        owned.extend(look(Component::Pods, &mut self.pods, |pod, row| {
            format!("{} of pod {pod}", row.host)
        })?);
        owned.extend(look(Component::Tunnels, &mut self.tunnels, |name, _| {
            name.to_string()
        })?);
        owned.extend(look(Component::Routes, &mut self.routes, |key, route| {
            let (to, table, via) = (key.destination, key.table, &route.via);
            format!("{to} in table {table}: {via:?}")
        })?);
        owned.extend(look(Component::Rules, &mut self.rules, |key, ()| {
            let (family, priority, table) = (key.family, key.priority, key.table);
            format!("{family:?}, priority {priority}, to table {table}")
        })?);
        self.openings
            .target_mut()
            .await_firewalld()
            .map_err(|error| RemovalError::Look {
                component: Component::Openings.name(),
                reason: chain(&error),
            })?;
        owned.extend(look(Component::Openings, &mut self.openings, |key, _| {
            key.to_string()
        })?);

        Ok(owned)
    }

    /// Removes everything of ours, in the order in which nothing is ever open: the guard goes last,
    /// when neither a pod's interface nor a route of ours is left.
    ///
    /// # Errors
    ///
    /// [`RemovalError::Remove`] names the first part that could not be removed; all after it stands.
    pub fn remove_all(&mut self, now: Moment) -> Result<(), RemovalError> {
        self.openings
            .target_mut()
            .leave_firewalld()
            .map_err(|error| RemovalError::Remove {
                component: Component::Openings.name().to_owned(),
                reason: chain(&error),
            })?;
        // What a plan in sync does not name must not exist.
        let mut nothing = Plan {
            generation: 1,
            in_sync: true,
            ..Plan::default()
        };
        let Report { failures, .. } = self.apply(&mut nothing, now);
        if let Some((component, reason)) = failures.into_iter().next() {
            return Err(RemovalError::Remove { component, reason });
        }

        self.nft
            .target_mut()
            .remove_tables()
            .map_err(|error| RemovalError::Remove {
                component: Component::Nft.name().to_owned(),
                reason: chain(&error),
            })
    }

    fn owned_tables(&mut self) -> Result<Vec<Owned>, RemovalError> {
        let found = observed(Component::Nft, &mut self.nft)?;
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for key in found.keys() {
            let word = match key {
                NftKey::Set(_) => "sets",
                NftKey::Element(..) => "elements",
                NftKey::Chain(_) => "chains",
            };
            *counts.entry(word).or_default() += 1;
        }
        let tables = self.nft.target_mut().table_names().map_err(|error| {
            let component = Component::Nft.name();
            let reason = chain(&error);
            RemovalError::Look { component, reason }
        })?;
        let inside: Vec<String> = counts
            .iter()
            .map(|(word, count)| format!("{count} {word}"))
            .collect();

        Ok(tables
            .into_iter()
            .map(|table| Owned {
                component: Component::Nft,
                name: format!("table {table} ({} in all)", inside.join(", ")),
            })
            .collect())
    }
}

fn look<T: Target>(
    component: Component,
    reconciler: &mut Reconciler<T>,
    name: impl Fn(&T::Key, &T::Row) -> String,
) -> Result<Vec<Owned>, RemovalError> {
    let found = observed(component, reconciler)?;

    Ok(found
        .iter()
        .map(|(key, row)| Owned {
            component,
            name: name(key, row),
        })
        .collect())
}

fn observed<T: Target>(
    component: Component,
    reconciler: &mut Reconciler<T>,
) -> Result<BTreeMap<T::Key, T::Row>, RemovalError> {
    reconciler
        .target_mut()
        .observe()
        .map_err(|error| RemovalError::Look {
            component: component.name(),
            reason: chain(&error),
        })
}
