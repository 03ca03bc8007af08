//! A request for addresses in the allocator's words: the agent's and the authority's are the same.

use std::collections::BTreeMap;

use cni_ipam::Holder;
use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Family, Kind, ObjectKey,
    action::AddressRequest,
    resource::{IpPool, Namespace},
};
use store::{Store, StoreError};

/// Returns who is to hold the addresses of a request.
pub(crate) fn holder(request: &AddressRequest) -> Holder {
    let mut attributes = request.attributes.clone();
    attributes.insert("timestamp".to_owned(), Timestamp::now().to_string());

    Holder {
        handle: request.handle.clone(),
        attributes,
    }
}

/// Returns the ranges of the pools that were asked for, by their names or ranges.
///
/// # Errors
///
/// Where there is no such pool.
pub(crate) fn named_pools(
    request: &AddressRequest,
    pools: &[IpPool],
) -> Result<Vec<IpNet>, String> {
    let mut named = Vec::new();
    for (family, text) in request.families.iter().flat_map(|family| {
        let asked = request.pools.get(family).into_iter().flatten();
        asked.map(move |text| (*family, text))
    }) {
        let is_it = |pool: &&IpPool| {
            pool.name == *text || text.parse::<IpNet>().is_ok_and(|net| net == pool.cidr)
        };
        let of_family = |pool: &&IpPool| Family::of_net(&pool.cidr) == family;
        let found = pools.iter().filter(of_family).find(is_it);
        let found = found.ok_or_else(|| format!("there is no {family} pool {text:?}"))?;
        named.push(found.cidr);
    }

    Ok(named)
}

/// Returns the labels of a pod's namespace, where a pool asks for any.
pub(crate) async fn namespace_labels(
    store: &dyn Store,
    request: &AddressRequest,
    pools: &[IpPool],
) -> Result<BTreeMap<String, String>, StoreError> {
    let is_asked = pools.iter().any(|pool| !pool.namespace_selector.is_empty());
    let name = request.attributes.get("namespace").filter(|_| is_asked);
    let Some(name) = name else {
        return Ok(BTreeMap::new());
    };
    match store
        .get(ObjectKey::cluster(Kind::Namespace, name.as_str()))
        .await
    {
        Ok(object) => Ok(Namespace::try_from(&object)
            .map_err(StoreError::Invalid)?
            .labels),
        Err(StoreError::NotFound(_)) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}
