//! Do real container runtimes get what they ask for? Stories with containerd, podman and cnitool; see `tests/`.
//!
//! Each runs in the namespaces of a lab's node, with folders of its own. They need root and what `tools/setup` unpacks
//! and builds.

use std::{collections::BTreeSet, net::IpAddr};

use lab::{End as _, Node};
use serde_json::Value;

pub use fleet::{Fleet, Member, PORT};

mod fleet;

/// What a node's kernel has of containers: what a story must find again when its containers are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Host ends of pods' interfaces.
    pub interfaces: BTreeSet<String>,
    /// Routes to single addresses behind such interfaces.
    pub routes: BTreeSet<String>,
    /// Elements of our ruleset's sets and maps, and its chains.
    pub elements: BTreeSet<String>,
    /// Network namespaces that the container runtime keeps.
    pub namespaces: BTreeSet<String>,
}

impl Kept {
    /// What a node's kernel has now.
    pub fn of(node: &Node) -> Self {
        let links = node.run("ip", &["-o", "link", "show", "type", "veth"]);
        let interfaces = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .filter_map(|name| name.split('@').next())
            .filter(|name| name.starts_with("cali"))
            .map(str::to_owned)
            .collect();
        let routes =
            ["-4", "-6"].map(|family| node.run("ip", &[family, "route", "show", "table", "all"]));
        let routes = routes
            .iter()
            .flat_map(|routes| routes.lines())
            .filter(|route| route.contains(" dev cali"))
            .map(str::to_owned)
            .collect();

        Self {
            interfaces,
            routes,
            namespaces: namespaces(&node.run("cat", &["/proc/self/mounts"])),
            elements: elements(&node.run("nft", &["-j", "list", "table", "inet", "meshd"])),
        }
    }
}

/// Those that a runtime mounted under its own folder.
fn namespaces(mounts: &str) -> BTreeSet<String> {
    let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let own = mounted.filter(|place| place.contains("/netns/cni-"));

    own.map(str::to_owned).collect()
}

/// Each element of each set and map, with where it is.
fn elements(listed: &str) -> BTreeSet<String> {
    let listed: Value = serde_json::from_str(listed).unwrap_or_default();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let mut found = BTreeSet::new();
    for object in objects {
        for kind in ["set", "map"] {
            let holder = &object[kind];
            let elements = holder["elem"].as_array().into_iter().flatten();
            found.extend(elements.map(|element| format!("{} {element}", holder["name"])));
        }
        if let Some(chain) = object["chain"]["name"].as_str() {
            found.insert(format!("chain {chain}"));
        }
    }

    found
}

/// Every address that the store says is some pod's, with whose it is.
pub fn assigned(mesh: &netns::Mesh) -> Vec<(IpAddr, String)> {
    let listed = mesh.meshctl(&["get", "ipamblocks", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let mut found = Vec::new();
    for block in listed["items"].as_array().into_iter().flatten() {
        let spec = &block["spec"];
        let Some(first) = spec["cidr"]
            .as_str()
            .and_then(|cidr| cidr.split('/').next()?.parse::<IpAddr>().ok())
        else {
            continue;
        };
        let allocations = spec["allocations"].as_array().into_iter().flatten();
        for (ordinal, allocation) in allocations.enumerate() {
            let Some(attribute) = allocation.as_u64().and_then(|at| usize::try_from(at).ok())
            else {
                continue;
            };
            let attributes = &spec["attributes"][attribute]["secondary"];
            if attributes["pod"].is_string() {
                let whose = format!("{}/{}", attributes["namespace"], attributes["pod"]);
                found.push((nth(first, ordinal), whose.replace('"', "")));
            }
        }
    }

    found
}

fn nth(first: IpAddr, ordinal: usize) -> IpAddr {
    match first {
        IpAddr::V4(first) => {
            let ordinal = u32::try_from(ordinal).unwrap_or(u32::MAX);
            IpAddr::V4(u32::from(first).saturating_add(ordinal).into())
        }
        IpAddr::V6(first) => {
            let ordinal = u128::try_from(ordinal).unwrap_or(u128::MAX);
            IpAddr::V6(u128::from(first).saturating_add(ordinal).into())
        }
    }
}
