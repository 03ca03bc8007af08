//! `meshctl ipam show`: pools, blocks, loans, and who has an address.

use std::{collections::BTreeMap, net::IpAddr, process::ExitCode};

use anyhow::bail;
use cni_ipam::{Facts, Snapshot};
use comfy_table::{Table, presets};
use ipnet::IpNet;
use model::{
    Family,
    resource::{IpamBlock, ipam_block::Attribute},
};
use serde::Serialize;
use store::Store;

use super::records;
use crate::status::Output;

/// Shows how full pools and blocks are, or who has an address.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show blocks, with their owners.
    #[arg(long)]
    show_blocks: bool,

    /// Show addresses that other nodes than the block's owner use.
    #[arg(long)]
    show_borrowed: bool,

    /// Show who has this address.
    #[arg(long, group = "one")]
    ip: Option<IpAddr>,

    /// Show the addresses of this block.
    #[arg(long, group = "one")]
    block: Option<IpNet>,

    /// Show the addresses that this handle holds.
    #[arg(long, group = "one")]
    handle: Option<String>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How full a pool or a block is.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    grouping: &'static str,
    cidr: IpNet,
    owner: Option<String>,
    total: String,
    in_use: u128,
    /// Released a short while ago.
    cooling: u128,
    free: String,
}

/// An address that somebody has.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    address: IpAddr,
    block: IpNet,
    owner: Option<String>,
    handle: Option<String>,
    attributes: BTreeMap<String, String>,
    released_at: Option<String>,
    is_borrowed: bool,
}

/// Runs the command.
pub(super) async fn run(store: &dyn Store, args: Args) -> anyhow::Result<ExitCode> {
    let (snapshot, facts) = records::read(store).await?;
    let all: Vec<Allocation> = blocks(&snapshot).flat_map(allocations).collect();
    if let Some(address) = args.ip {
        let found: Vec<_> = all.into_iter().filter(|it| it.address == address).collect();
        if found.is_empty() {
            println(&format!("{address} is not assigned"));
            return Ok(ExitCode::SUCCESS);
        }
        return print_allocations(&found, args.output);
    }
    if let Some(cidr) = args.block {
        if !snapshot.blocks.contains_key(&cidr) {
            bail!("there is no block {cidr}");
        }
        let found: Vec<_> = all.into_iter().filter(|it| it.block == cidr).collect();
        return print_allocations(&found, args.output);
    }
    if let Some(handle) = args.handle {
        let is_it = |it: &Allocation| it.handle.as_deref() == Some(handle.as_str());
        let found: Vec<_> = all.into_iter().filter(is_it).collect();
        return print_allocations(&found, args.output);
    }
    if args.show_borrowed {
        let found: Vec<_> = all.into_iter().filter(|it| it.is_borrowed).collect();
        return print_allocations(&found, args.output);
    }

    print_usages(&usages(&snapshot, &facts, args.show_blocks), args.output)
}

fn blocks(snapshot: &Snapshot) -> impl Iterator<Item = &IpamBlock> {
    snapshot.blocks.values().map(|stored| &stored.value)
}

/// Returns how full each pool is, each followed by its blocks where these are asked for.
fn usages(snapshot: &Snapshot, facts: &Facts, with_blocks: bool) -> Vec<Usage> {
    let mut usages = Vec::new();
    for pool in &facts.pools {
        let inside = || blocks(snapshot).filter(|block| pool.cidr.contains(&block.cidr));
        let (used, cooling) = inside()
            .map(counts)
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        usages.push(Usage::new("IP Pool", pool.cidr, None, used, cooling));
        if with_blocks {
            usages.extend(inside().map(|block| {
                let (used, cooling) = counts(block);
                let owner = block.affinity.as_ref().map(ToString::to_string);
                Usage::new("Block", block.cidr, owner, used, cooling)
            }));
        }
    }

    usages
}

/// Returns how many addresses are in use, and how many cool down.
fn counts(block: &IpamBlock) -> (u128, u128) {
    let holders = block.allocations.values();
    let (used, cooling): (Vec<_>, Vec<_>) = holders
        .filter_map(|index| block.attributes.get(*index))
        .partition(|it| it.handle_id.is_some() || it.released_at.is_none());

    (used.len() as u128, cooling.len() as u128)
}

fn allocations(block: &IpamBlock) -> Vec<Allocation> {
    let allocation = |(ordinal, index): (&u32, &usize)| {
        let holder: &Attribute = block.attributes.get(*index)?;
        let user = holder.node();

        Some(Allocation {
            address: block.address(*ordinal)?,
            block: block.cidr,
            owner: block.affinity.as_ref().map(ToString::to_string),
            handle: holder.handle_id.clone(),
            attributes: holder.secondary.clone(),
            released_at: holder.released_at.clone(),
            is_borrowed: user.is_some() && user != block.affinity,
        })
    };

    block.allocations.iter().filter_map(allocation).collect()
}

impl Usage {
    fn new(
        grouping: &'static str,
        cidr: IpNet,
        owner: Option<String>,
        in_use: u128,
        cooling: u128,
    ) -> Self {
        let bits = Family::of_net(&cidr).bits() - cidr.prefix_len();
        let total = 1u128.checked_shl(bits.into());
        let text = |number: Option<u128>| match number {
            Some(number) if number < 1 << 40 => number.to_string(),
            Some(_) | None => format!("2^{bits}"),
        };

        Self {
            grouping,
            cidr,
            owner,
            total: text(total),
            in_use,
            cooling,
            free: text(total.map(|total| total.saturating_sub(in_use + cooling))),
        }
    }
}

fn print_usages(usages: &[Usage], output: Output) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => println(&serde_json::to_string_pretty(usages)?),
        Output::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header([
                "GROUPING",
                "CIDR",
                "OWNER",
                "IPS TOTAL",
                "IPS IN USE",
                "COOLING",
                "IPS FREE",
            ]);
            for it in usages {
                table.add_row([
                    it.grouping.to_owned(),
                    it.cidr.to_string(),
                    it.owner.clone().unwrap_or_default(),
                    it.total.clone(),
                    it.in_use.to_string(),
                    it.cooling.to_string(),
                    it.free.clone(),
                ]);
            }
            println(&table.to_string());
        }
    }

    Ok(ExitCode::SUCCESS)
}

fn print_allocations(found: &[Allocation], output: Output) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => println(&serde_json::to_string_pretty(found)?),
        Output::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(["ADDRESS", "BLOCK", "OWNER", "BORROWED", "HANDLE", "HOLDER"]);
            for it in found {
                let facts = it
                    .attributes
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"));
                let cooling = it.released_at.iter().map(|at| format!("released {at}"));
                table.add_row([
                    it.address.to_string(),
                    it.block.to_string(),
                    it.owner.clone().unwrap_or_else(|| "nobody".to_owned()),
                    if it.is_borrowed { "yes" } else { "no" }.to_owned(),
                    it.handle.clone().unwrap_or_default(),
                    facts.chain(cooling).collect::<Vec<_>>().join(" "),
                ]);
            }
            println(&table.to_string());
        }
    }

    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn println(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use cni_ipam::{Holder, allocation::take, new_block};

    use super::*;

    #[test]
    fn a_borrowed_address_is_told_from_the_owners() {
        let cidr = "10.65.0.0/26".parse().unwrap();
        let mut block = new_block(cidr, "n1".parse().unwrap(), 1, None);
        for (handle, node) in [("own", "n1"), ("lent", "n2")] {
            let holder = Holder {
                handle: handle.into(),
                attributes: [("node".to_owned(), node.to_owned())].into(),
            };
            take(&mut block, 1, &holder, |_| false);
        }
        let snapshot = Snapshot::of([block.to_object()]);

        let borrowed: Vec<_> = allocations(&block)
            .into_iter()
            .filter(|it| it.is_borrowed)
            .collect();
        assert_eq!(borrowed.len(), 1);
        assert_eq!(borrowed[0].address.to_string(), "10.65.0.1");
        let facts = Facts::of(&[model::Object::new(
            &model::ObjectKey::cluster(model::Kind::IPPool, "p"),
            serde_json::json!({"cidr": "10.65.0.0/24"}),
        )])
        .unwrap();
        let usages = usages(&snapshot, &facts, true);
        assert_eq!(
            usages[0],
            Usage::new("IP Pool", "10.65.0.0/24".parse().unwrap(), None, 2, 0)
        );
        assert_eq!((usages[1].in_use, usages[1].free.as_str()), (2, "62"));
    }

    #[test]
    fn a_pool_larger_than_anybody_counts_is_a_power_of_two() {
        let usage = Usage::new("IP Pool", "fd00::/48".parse().unwrap(), None, 1, 0);

        assert_eq!(usage.total, "2^80");
    }
}
