//! The authority over addresses: lends those of one node's blocks to another, takes them back, frees idle blocks.
//!
//! A node is known by its certificate, never by what it says. What it gets is noted in the block with its name: every
//! other node takes a borrowed address for the borrower's only because of that note.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_ipam::{
    Answer, ExactRequest, Preference, Release, Request, Rules, Step, assign_exact,
    borrow_addresses, handle, pool::choose, reclaim_block, release_addresses,
};
use futures::{FutureExt, future::BoxFuture};
use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Family, Kind, NodeName, Object, ObjectKey,
    action::AddressRequest,
    ipam::{Plea, Verdict},
    resource::{
        FieldError, IpPool, IpReservation, IpamBlock, IpamConfiguration, IpamHandle,
        ip_pool::AllowedUse,
    },
};
use store::{Perform, Session, Store, StoreError, drive, perform};
use tokio::sync::Mutex;

use crate::ipam::{holder, named_pools, namespace_labels};

/// Most addresses that a node may have borrowed at once.
const LOANS_MAX: usize = 256;

/// Most facts about a holder, and the longest of them, in bytes.
const FACTS_MAX: usize = 8;
const FACT_MAX: usize = 253;

/// Decides and acts, one plea at a time.
#[derive(Debug, Default)]
pub(super) struct Authority {
    turn: Mutex<()>,
}

/// The authority's own access to the store.
pub(super) struct Local(pub(super) Session);

/// What a plea is judged by.
struct Facts {
    pools: Vec<IpPool>,
    rules: Rules,
    labels: BTreeMap<String, String>,
    blocks: Vec<IpamBlock>,
}

/// An address that a handle holds in a block of another node.
struct Loan {
    node: Option<String>,
    release: Release,
}

type Judged = Result<Verdict, StoreError>;

impl store::Lender for Authority {
    fn judge(&self, node: NodeName, plea: Plea, store: Session) -> BoxFuture<'_, Judged> {
        async move {
            let _turn = self.turn.lock().await;
            let verdict = match plea {
                Plea::Lend(request) => lend(&Local(store), &node, request).await,
                Plea::TakeBack { handle } => take_back(&Local(store), &node, &handle).await,
            };
            match &verdict {
                Ok(Verdict::Lent(addresses)) => {
                    tracing::info!(%node, count = addresses.len(), "Addresses are lent");
                }
                Ok(Verdict::Refused(why)) => tracing::info!(%node, why, "A plea was refused"),
                Ok(Verdict::BlockFreed) => tracing::info!(%node, "An idle block became free"),
                Ok(Verdict::TakenBack) | Err(_) => {}
            }

            verdict
        }
        .boxed()
    }
}

impl Perform for Local {
    fn perform(&self, step: Step) -> BoxFuture<'_, Result<Answer, StoreError>> {
        perform(&self.0, step).boxed()
    }
}

async fn lend(store: &Local, node: &NodeName, mut request: AddressRequest) -> Judged {
    if let Some(why) = objection(&request) {
        return refused(why);
    }
    let name = ("node".to_owned(), node.to_string());
    request.attributes.extend([name]);
    if let Some(other) = store.others_handle(node, &request.handle).await? {
        return refused(other);
    }
    let facts = match store.facts(node).await? {
        Ok(facts) => facts,
        Err(why) => return refused(why),
    };
    if facts.rules.configuration.strict_affinity {
        return refused("spec.strictAffinity forbids addresses of other nodes' blocks");
    }
    let wanted = request.families.len() + request.addresses.len();
    if facts.loans_of(node) + wanted > LOANS_MAX {
        let why = format!("{node} has borrowed {LOANS_MAX} addresses, and may have no more");
        return refused(why);
    }
    let mut addresses = BTreeSet::new();
    for address in &request.addresses {
        match lend_exact(store, node, &request, *address, &facts).await? {
            Ok(address) => drop(addresses.insert(address)),
            Err(why) => return refused(why),
        }
    }
    if !request.families.is_empty() {
        match lend_any(store, node, &request, facts).await? {
            Verdict::Lent(any) => addresses.extend(any),
            other @ (Verdict::BlockFreed | Verdict::TakenBack | Verdict::Refused(_)) => {
                return Ok(other);
            }
        }
    }

    Ok(Verdict::Lent(addresses.into_iter().collect()))
}

async fn lend_exact(
    store: &Local,
    node: &NodeName,
    request: &AddressRequest,
    address: IpAddr,
    facts: &Facts,
) -> Result<Result<IpAddr, String>, StoreError> {
    // Who claims a block is judged when it does; nobody gets one by asking for an address.
    if !facts.blocks.iter().any(|it| it.cidr.contains(&address)) {
        return Ok(Err(format!("{address} is in no block: claim its block")));
    }
    let serves = |pool: &&IpPool| pool.allowed_uses.contains(&AllowedUse::Workload);
    let pools = facts.pools.iter().filter(serves).cloned().collect();
    let exact = ExactRequest {
        node: node.clone(),
        holder: holder(request),
        address,
    };
    let operation = assign_exact(exact, pools, facts.rules.clone(), Timestamp::now());

    Ok(match drive(store, operation).await? {
        Ok(Ok(assigned)) => Ok(assigned.addr()),
        Ok(Err(denied)) => Err(denied.to_string()),
        Err(failure) => return Err(unavailable(&failure)),
    })
}

async fn lend_any(
    store: &Local,
    node: &NodeName,
    request: &AddressRequest,
    facts: Facts,
) -> Judged {
    let named = match named_pools(request, &facts.pools) {
        Ok(named) => named,
        Err(why) => return refused(why),
    };
    let preference = Preference {
        purpose: request.purpose,
        named,
        node_labels: facts.labels,
        namespace_labels: namespace_labels(&store.0, request, &facts.pools).await?,
    };
    let (rules, now) = (facts.rules, Timestamp::now());
    for family in &request.families {
        let Ok(pools) = choose(&facts.pools, *family, &preference) else {
            continue;
        };
        let pools = pools.into_iter().cloned().collect();
        let operation = reclaim_block(pools, rules.clone(), now);
        let freed = drive(store, operation).await?;
        if freed.map_err(|failure| unavailable(&failure))?.is_some() {
            return Ok(Verdict::BlockFreed);
        }
    }
    let counts = request.families.iter().map(|family| (*family, 1));
    let asked = Request {
        node: node.clone(),
        holder: holder(request),
        counts: counts.collect(),
        preference,
        blocks_max: None,
    };
    let operation = borrow_addresses(asked, facts.pools, rules, now);
    let assigned = drive(store, operation).await?;
    let assigned = assigned.map_err(|failure| unavailable(&failure))?;
    if let Some((_, missing)) = assigned.missing.first_key_value() {
        return refused(missing.to_string());
    }

    Ok(Verdict::Lent(
        assigned.addresses.iter().map(IpNet::addr).collect(),
    ))
}

/// Gives back what a handle of the node's holds in any block. An address that another node has stays.
async fn take_back(store: &Local, node: &NodeName, handle: &str) -> Judged {
    let facts = match store.facts(node).await? {
        Ok(facts) => facts,
        Err(why) => return refused(why),
    };
    let loans: Vec<Loan> = facts
        .blocks
        .iter()
        .flat_map(|block| loans_in(block, handle))
        .collect();
    if let Some(other) = loans
        .iter()
        .find(|it| it.node.as_deref() != Some(node.as_str()))
    {
        let holder = other.node.as_deref().unwrap_or("nobody that is known");
        return refused(format!("the handle {handle} holds addresses for {holder}"));
    }
    let releases = loans.into_iter().map(|loan| loan.release).collect();
    let operation = release_addresses(releases, facts.pools, facts.rules, Timestamp::now());
    let released = drive(store, operation).await?;
    released.map_err(|failure| unavailable(&failure))?;

    Ok(Verdict::TakenBack)
}

impl Local {
    /// Returns why a handle is not the node's to use, if that is so.
    async fn others_handle(&self, node: &NodeName, id: &str) -> Result<Option<String>, StoreError> {
        let key = ObjectKey::cluster(Kind::IPAMHandle, IpamHandle::object_name(id));
        let object = match self.0.get(key).await {
            Ok(object) => object,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stored = IpamHandle::try_from(&object).map_err(StoreError::Invalid)?;
        let is_its = stored.id == id && stored.node.as_ref() == Some(node);

        Ok((!is_its).then(|| format!("the handle {id} is not {node}'s")))
    }

    /// Reads what a plea is judged by; the inner error says what is missing.
    async fn facts(&self, node: &NodeName) -> Result<Result<Facts, String>, StoreError> {
        let key = ObjectKey::cluster(Kind::Node, node.as_str());
        let labels = match self.0.get(key).await {
            Ok(object) => object.metadata.labels,
            Err(StoreError::NotFound(_)) => return Ok(Err(format!("there is no node {node}"))),
            Err(error) => return Err(error),
        };
        let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
        let configuration = match self.0.get(key).await {
            Ok(object) => IpamConfiguration::try_from(&object).map_err(StoreError::Invalid)?,
            Err(StoreError::NotFound(_)) => IpamConfiguration::default(),
            Err(error) => return Err(error),
        };
        let reservations = self.all::<IpReservation>(Kind::IPReservation).await?;
        let mut rules = Rules::of_node(node.clone()).for_authority();
        rules.configuration = configuration;
        // Whoever reserved what cannot be read meant to keep it.
        rules.reservations = reservations
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(StoreError::Invalid)?;
        let readable = |it: Result<IpPool, FieldError>| it.ok();
        let pools = self.all::<IpPool>(Kind::IPPool).await?;
        let blocks = self.all::<IpamBlock>(Kind::IPAMBlock).await?;

        Ok(Ok(Facts {
            pools: pools.into_iter().filter_map(readable).collect(),
            rules,
            labels,
            blocks: blocks.into_iter().flatten().collect(),
        }))
    }

    async fn all<T>(&self, kind: Kind) -> Result<Vec<Result<T, FieldError>>, StoreError>
    where
        T: for<'a> TryFrom<&'a Object, Error = FieldError>,
    {
        let objects = self.0.list(kind).await?.objects;

        Ok(objects.iter().map(T::try_from).collect())
    }
}

impl Facts {
    /// Returns how many addresses of others' blocks a node has.
    fn loans_of(&self, node: &NodeName) -> usize {
        let foreign = self
            .blocks
            .iter()
            .filter(|it| it.affinity.as_ref() != Some(node));

        foreign
            .map(|it| it.loans().filter(|(_, it)| it == node).count())
            .sum()
    }
}

/// Returns what a handle holds in a block, and for whom.
fn loans_in(block: &IpamBlock, handle: &str) -> Vec<Loan> {
    let ordinals = block.allocations.iter().filter_map(|(ordinal, index)| {
        let attribute = block.attributes.get(*index)?;
        let is_it = attribute.handle_id.as_deref() == Some(handle);
        is_it.then_some((ordinal, attribute))
    });

    ordinals
        .filter_map(|(ordinal, attribute)| {
            Some(Loan {
                node: attribute.secondary.get("node").cloned(),
                release: Release {
                    address: block.address(*ordinal)?,
                    handle: Some(handle.to_owned()),
                    sequence_number: block.sequence_number_for_allocation.get(ordinal).copied(),
                },
            })
        })
        .collect()
}

/// Returns what speaks against a request by itself.
fn objection(request: &AddressRequest) -> Option<&'static str> {
    let families: BTreeSet<Family> = request.addresses.iter().map(|it| Family::of(*it)).collect();
    let is_long = |text: &String| text.is_empty() || text.len() > FACT_MAX;
    let mut facts = request.attributes.iter();
    if request.purpose != AllowedUse::Workload || handle::is_tunnels(&request.handle) {
        return Some("addresses are lent to pods only");
    }
    if families.len() != request.addresses.len() || !families.is_disjoint(&request.families) {
        return Some("a pod has one address of a family");
    }
    let too_much = request.attributes.len() > FACTS_MAX
        || facts.any(|(name, value)| is_long(name) || is_long(value))
        || is_long(&request.handle);

    too_much.then_some("more is said about the holder than there is to say")
}

fn refused(why: impl Into<String>) -> Judged {
    Ok(Verdict::Refused(why.into()))
}

fn unavailable(failure: &cni_ipam::Failure) -> StoreError {
    StoreError::Unavailable(failure.to_string())
}

#[cfg(test)]
mod tests;
