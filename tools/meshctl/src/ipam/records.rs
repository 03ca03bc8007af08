//! The records of IPAM as a command reads and writes them: with an administrator's credential.

use anyhow::Context;
use cni_ipam::{Answer, Facts, Rules, Snapshot, Step};
use futures::{FutureExt, future::BoxFuture};
use model::{
    Kind, NodeName, Object, ObjectKey,
    resource::{IpPool, IpReservation, IpamConfiguration},
};
use store::{Perform, Store, StoreError, perform};

/// Takes the steps of operations in a store.
pub(super) struct Steps<'a>(pub(super) &'a dyn Store);

impl Perform for Steps<'_> {
    fn perform(&self, step: Step) -> BoxFuture<'_, Result<Answer, StoreError>> {
        perform(self.0, step).boxed()
    }
}

/// Reads records and facts, in the order in which they must be read.
pub(super) async fn read(store: &dyn Store) -> anyhow::Result<(Snapshot, Facts)> {
    let records = list(store, &Snapshot::KINDS).await?;
    let facts = list(store, &Facts::KINDS).await?;
    let facts = Facts::of(&facts).map_err(|(key, error)| {
        anyhow::anyhow!("{key} cannot be read, and what it says is not known: {error}")
    })?;

    Ok((Snapshot::of(records), facts))
}

/// Reads every pool.
pub(super) async fn pools(store: &dyn Store) -> anyhow::Result<Vec<IpPool>> {
    let objects = list(store, &[Kind::IPPool]).await?;
    let pools = objects.iter().map(|object| {
        IpPool::try_from(object).with_context(|| format!("{} cannot be read", object.key()))
    });

    pools.collect()
}

/// Reads the settings.
pub(super) async fn configuration(store: &dyn Store) -> anyhow::Result<IpamConfiguration> {
    let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
    match store.get(key).await {
        Ok(object) => Ok(IpamConfiguration::try_from(&object)?),
        Err(StoreError::NotFound(_)) => Ok(IpamConfiguration::default()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the authority's rules.
pub(super) async fn rules(store: &dyn Store) -> anyhow::Result<Rules> {
    let nobody: NodeName = "meshctl".parse().context("a name")?;
    let mut rules = Rules::of_node(nobody).for_authority();
    rules.configuration = configuration(store).await?;
    for object in list(store, &[Kind::IPReservation]).await? {
        rules.reservations.push(IpReservation::try_from(&object)?);
    }

    Ok(rules)
}

async fn list(store: &dyn Store, kinds: &[Kind]) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for kind in kinds {
        objects.extend(store.list(*kind).await?.objects);
    }

    Ok(objects)
}
