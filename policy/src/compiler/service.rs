//! Services and who answers for them.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family, ObjectKey,
    policy::ServiceRef,
    resource::{EndpointSlice, Service},
};

use crate::{
    cluster::{self, Backend, object},
    compile::{
        family::{Census, Families},
        set::Meaning,
    },
};

/// Services and who answers for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    services: BTreeMap<ServiceRef, Known>,
    /// Whose each slice is.
    slices: BTreeMap<ObjectKey, ServiceRef>,
    /// Of which families the backends are.
    census: Census,
}

/// What is known of a service.
#[derive(Clone, Debug, Default)]
struct Known {
    service: Option<Box<Service>>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    backends: Vec<Backend>,
}

impl Services {
    /// Takes a service in; returns its name, if anything changed.
    pub(super) fn put(&mut self, service: &Service) -> Option<ServiceRef> {
        let name = name(&service.namespace, &service.name);
        let known = self.services.entry(name.clone()).or_default();
        if known.service.as_deref() == Some(service) {
            return None;
        }
        known.service = Some(Box::new(service.clone()));
        known.count(&mut self.census);

        Some(name)
    }

    /// Takes a slice in; returns the services that it changed.
    pub(super) fn put_slice(&mut self, key: ObjectKey, slice: &EndpointSlice) -> Vec<ServiceRef> {
        let owner = slice
            .service
            .as_deref()
            .map(|service| name(&slice.namespace, service));
        let before = self.slices.get(&key).cloned();
        let is_known = before.as_ref().and_then(|name| self.services.get(name));
        if before == owner && is_known.is_some_and(|known| known.slices.get(&key) == Some(slice)) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        if before != owner {
            changed.extend(self.remove_slice(&key));
        }
        if let Some(owner) = owner {
            let known = self.services.entry(owner.clone()).or_default();
            known.slices.insert(key.clone(), slice.clone());
            known.count(&mut self.census);
            self.slices.insert(key, owner.clone());
            changed.push(owner);
        }

        changed
    }

    /// Forgets a service; returns its name, if it was known.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<ServiceRef> {
        let name = name(key.namespace.as_deref().unwrap_or_default(), &key.name);
        let known = self.services.get_mut(&name)?;
        known.service.take()?;
        known.count(&mut self.census);
        self.tidy(&name);

        Some(name)
    }

    /// Forgets a slice; returns the service whose it was.
    pub(super) fn remove_slice(&mut self, key: &ObjectKey) -> Option<ServiceRef> {
        let owner = self.slices.remove(key)?;
        let known = self.services.get_mut(&owner)?;
        known.slices.remove(key);
        known.count(&mut self.census);
        self.tidy(&owner);

        Some(owner)
    }

    fn tidy(&mut self, name: &ServiceRef) {
        let is_nothing = |known: &Known| known.service.is_none() && known.slices.is_empty();
        if self.services.get(name).is_some_and(is_nothing) {
            self.services.remove(name);
        }
    }

    /// Returns who answers for the service that a set speaks of.
    pub(super) fn backends_of(&self, meaning: &Meaning) -> &[Backend] {
        let service = match meaning {
            Meaning::Answering(service, _) | Meaning::Serving(service, _) => service,
            Meaning::Selected(..)
            | Meaning::Nets(..)
            | Meaning::Named { .. }
            | Meaning::Ports(_) => return &[],
        };
        let known = self.services.get(service);

        known.map_or(&[], |known| &known.backends)
    }

    /// Returns the families of which anybody answers.
    pub(super) const fn families(&self) -> Families {
        self.census.families()
    }

    /// Returns the services as the evaluator sees them.
    pub(super) fn all(&self) -> BTreeMap<ServiceRef, cluster::Service> {
        let known = self.services.iter();

        known
            .filter_map(|(name, known)| {
                let addresses: Vec<IpAddr> = known.service.as_ref()?.cluster_addresses.clone();
                let service = cluster::Service {
                    addresses,
                    backends: known.backends.clone(),
                };

                Some((name.clone(), service))
            })
            .collect()
    }
}

impl Known {
    /// Finds out who answers; keeps `census` right.
    fn count(&mut self, census: &mut Census) {
        census.go(families(&self.backends));
        let slices = self.slices.values();
        self.backends = match &self.service {
            Some(service) => slices
                .flat_map(|slice| object::backends(service, slice))
                .collect(),
            None => Vec::new(),
        };
        census.come(families(&self.backends));
    }
}

fn families(backends: &[Backend]) -> impl Iterator<Item = Family> {
    backends.iter().map(|backend| Family::of(backend.address))
}

fn name(namespace: &str, name: &str) -> ServiceRef {
    ServiceRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}
