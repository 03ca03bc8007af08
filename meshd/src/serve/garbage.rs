//! What belongs to pods and nodes that are gone: found by comparing the records, and collected.
//!
//! The records are listed before the facts, so that whoever came in between does not look gone. What may only show
//! somebody at work is collected when it was seen twice, a grace period apart, and unchanged.

use std::time::Duration;

use cni_ipam::{Collector, Facts, Repaired, Rules, Snapshot, audit, repair};
use jiff::Timestamp;
use model::{Kind, NodeName, Object, ObjectKey, resource::IpamConfiguration};
use store::{Caller, Embedded, Session, Store, StoreError, drive};
use tokio::time;

use super::lender::Local;

/// How often the records are compared.
const INTERVAL: Duration = Duration::from_secs(60);

/// Most that is put right at a time.
const LIMIT: usize = 256;

/// Collects garbage for as long as the process lives.
pub(super) async fn collect(store: Embedded, grace: Duration) {
    let mut collector = Collector::new(grace, LIMIT);
    let mut interval = time::interval(INTERVAL.min(grace.max(Duration::from_secs(1))));
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let session = store.session(Caller::local_admin());
        match sweep(session, &mut collector).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "Records of addresses were put right"),
            Err(error) => tracing::warn!(%error, "Records of addresses cannot be compared"),
        }
    }
}

/// Compares the records once and puts right what is due; returns how much that was.
pub(super) async fn sweep(store: Session, collector: &mut Collector) -> Result<usize, StoreError> {
    let records = list(&store, &Snapshot::KINDS).await?;
    let facts = list(&store, &Facts::KINDS).await?;
    // Whoever is not understood must not look gone.
    let facts = Facts::of(&facts).map_err(|(_, error)| StoreError::Invalid(error))?;
    let now = Timestamp::now();
    let findings = audit(&Snapshot::of(records), &facts, now);
    let rules = rules(&store).await?;
    let local = Local(store);
    let mut count = 0;
    for (finding, what) in collector.collect(&findings, now) {
        match drive(&local, repair(what, rules.clone(), now)).await? {
            Ok(Repaired::Done) => {
                tracing::info!(fault = finding.fault.as_str(), "A record was put right");
                count += 1;
            }
            Ok(Repaired::Outdated) => {}
            Err(failure) => tracing::warn!(%failure, "A record cannot be put right"),
        }
    }

    Ok(count)
}

/// Returns the authority's rules: only the cool-down matters to what is given back.
async fn rules(store: &Session) -> Result<Rules, StoreError> {
    let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
    let internal = |_| StoreError::Internal("a name".to_owned());
    let nobody: NodeName = "meshd".parse().map_err(internal)?;
    let mut rules = Rules::of_node(nobody).for_authority();
    rules.configuration = match store.get(key).await {
        Ok(object) => IpamConfiguration::try_from(&object).map_err(StoreError::Invalid)?,
        Err(StoreError::NotFound(_)) => IpamConfiguration::default(),
        Err(error) => return Err(error),
    };

    Ok(rules)
}

async fn list(store: &Session, kinds: &[Kind]) -> Result<Vec<Object>, StoreError> {
    let mut objects = Vec::new();
    for kind in kinds {
        objects.extend(store.list(*kind).await?.objects);
    }

    Ok(objects)
}
