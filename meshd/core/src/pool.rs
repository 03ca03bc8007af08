//! Pools: which addresses are pods', and whether a block is a proper piece of one.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use model::{
    Family, Selector,
    resource::{IpPool, ip_pool::AllowedUse},
};

use crate::{fact::Facts, reason::Reason};

/// Returns whether pods or tunnels get addresses from the pool.
pub(crate) fn serves_pods(pool: &IpPool) -> bool {
    pool.allowed_uses
        .iter()
        .any(|r#use| matches!(r#use, AllowedUse::Workload | AllowedUse::Tunnel))
}

/// Returns whether the whole pool belongs to the space that the guard protects.
pub(crate) fn is_guarded(pool: &IpPool) -> bool {
    !pool.disabled && serves_pods(pool)
}

/// Returns whether this node should own a block of the pool.
///
/// An unreadable selector selects nobody.
pub(crate) fn selects(pool: &IpPool, facts: &Facts) -> bool {
    if !is_guarded(pool) || !pool.automatic {
        return false;
    }
    let text = pool.node_selector.trim();
    let Some(node) = facts.nodes.get(&facts.own) else {
        return false;
    };

    text.is_empty()
        || text
            .parse::<Selector>()
            .is_ok_and(|selector| selector.matches(&node.labels))
}

/// Returns the one pool that the block is a piece of.
pub(crate) fn of_block(facts: &Facts, block: IpNet) -> Result<&IpPool, Reason> {
    let mut around = facts
        .pools
        .values()
        .filter(|pool| pool.cidr.contains(&block));
    let pool = around.next().ok_or(Reason::BlockOutsidePools(block))?;
    if around.next().is_some() {
        return Err(Reason::BlockInTwoPools(block));
    }
    if !serves_pods(pool) {
        return Err(Reason::BlockOfServices(block));
    }
    if block.prefix_len() != pool.block_size || block.trunc() != block {
        return Err(Reason::BlockSize(block));
    }

    Ok(pool)
}

/// Returns whether an address is inside a proper block of any node.
pub(crate) fn is_pods(facts: &Facts, address: IpAddr) -> bool {
    facts
        .pools
        .values()
        .filter(|pool| pool.cidr.contains(&address))
        .any(|pool| {
            IpNet::new(address, pool.block_size).is_ok_and(|net| {
                let block = net.trunc();
                facts
                    .blocks
                    .get(&block)
                    .is_some_and(|it| it.affinity.is_some() || it.loans.contains_key(&address))
                    && of_block(facts, block).is_ok()
            })
        })
}

/// Returns whether an address is inside the space that the guard protects.
pub(crate) fn is_in_space(facts: &Facts, address: IpAddr) -> bool {
    facts
        .pools
        .values()
        .any(|pool| is_guarded(pool) && pool.cidr.contains(&address))
}

/// Returns those networks that no other one contains, each once, in order.
pub(crate) fn without_nested(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut nets = nets.into_iter().collect::<Vec<_>>();
    nets.sort_by_key(|net| (Family::of_net(net), net.network(), net.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::new();
    for net in nets {
        if !kept.last().is_some_and(|outer| outer.contains(&net)) {
            kept.push(net);
        }
    }

    kept
}

/// Returns networks without some of their addresses: what is left of each, in as few pieces as there can be.
pub(crate) fn without_addresses(
    nets: impl IntoIterator<Item = IpNet>,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> BTreeSet<IpNet> {
    let mut nets: BTreeSet<IpNet> = nets.into_iter().collect();
    for address in addresses {
        let Some(around) = nets.iter().copied().find(|net| net.contains(&address)) else {
            continue;
        };
        nets.remove(&around);
        let mut inner = around;
        while let Ok(halves) = inner.subnets(inner.prefix_len() + 1) {
            for half in halves {
                if half.contains(&address) {
                    inner = half;
                } else {
                    nets.insert(half);
                }
            }
        }
    }

    nets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_networks_vanish_in_those_around_them() {
        let nets = [
            "10.1.0.0/16",
            "10.0.0.0/8",
            "10.0.0.0/8",
            "11.0.0.0/16",
            "fd00::/8",
        ];

        let kept = without_nested(nets.map(|net| net.parse().unwrap()));

        assert_eq!(
            kept,
            ["10.0.0.0/8", "11.0.0.0/16", "fd00::/8"].map(|n| n.parse().unwrap())
        );
    }

    #[test]
    fn what_is_left_of_a_block_are_exactly_the_addresses_that_were_not_taken_out() {
        let block: IpNet = "10.65.0.0/26".parse().unwrap();
        let taken: BTreeSet<IpAddr> = ["10.65.0.0", "10.65.0.5", "10.65.0.63"]
            .map(|text| text.parse().unwrap())
            .into();

        let left = without_addresses([block], taken.iter().copied());

        for last in 0..64u8 {
            let address = IpAddr::from([10, 65, 0, last]);
            let holders = left.iter().filter(|net| net.contains(&address)).count();
            assert_eq!(holders, usize::from(!taken.contains(&address)), "{address}");
        }
        assert!(left.len() <= 3 * 6, "{left:?}");
    }
}
