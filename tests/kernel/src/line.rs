//! An underlay device that is made slow and lossy, or counts what WireGuard sends on it.

use lab::{End as _, Node};

/// Counts by the first byte of what is sent to WireGuard's port: the type of the message (§5.4 of the WireGuard paper).
/// The chain stands before the queue, so that it counts what netem loses, too.
const COUNTING: &str = "
add table netdev counting
delete table netdev counting
add table netdev counting
add counter netdev counting initiations
add counter netdev counting responses
add counter netdev counting data
add chain netdev counting sent { type filter hook egress device eth0 priority 0; policy accept; }
add rule netdev counting sent udp dport 51820 @th,64,8 1 counter name initiations
add rule netdev counting sent udp dport 51820 @th,64,8 2 counter name responses
add rule netdev counting sent udp dport 51820 @th,64,8 4 counter name data
";

/// Drops what is sent to WireGuard's port, and nothing else: neighbours still find each other.
const MUTING: &str = "
add table netdev muting
add chain netdev muting sent { type filter hook egress device eth0 priority 0; policy accept; }
add rule netdev muting sent udp dport 51820 drop
";

/// What a node sent by WireGuard's messages since it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Handshakes begun.
    pub initiations: u64,
    /// Handshakes answered.
    pub responses: u64,
    /// Packets, keepalives among them.
    pub data: u64,
}

impl Sent {
    /// What was sent since then.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            initiations: self.initiations - before.initiations,
            responses: self.responses - before.responses,
            data: self.data - before.data,
        }
    }
}

/// The first underlay device of a node.
#[derive(Clone, Debug)]
pub struct Line(Node);

impl Line {
    /// That of a node.
    pub fn of(node: &Node) -> Self {
        Self(node.clone())
    }

    /// Lets the kernel treat what is sent in this way: `netem`'s own words, such as `delay 20ms loss 1%`.
    pub fn impair(&self, how: &str) {
        let script = format!("tc qdisc replace dev eth0 root netem {how}");
        self.0.run("sh", &["-e", "-c", &script]);
    }

    /// Lets nothing of WireGuard out any more; what comes in is heard.
    pub fn mute(&self) {
        self.load(MUTING);
    }

    /// Takes that back.
    pub fn unmute(&self) {
        self.load("delete table netdev muting");
    }

    /// Begins to count.
    pub fn count(&self) {
        self.load(COUNTING);
    }

    fn load(&self, rules: &str) {
        let script = "printf '%s' \"$0\" | nft -f -";
        self.0.run("sh", &["-e", "-c", script, rules]);
    }

    /// What was counted so far.
    pub fn sent(&self) -> Sent {
        let said = self.0.run(
            "nft",
            &["-j", "list", "counters", "table", "netdev", "counting"],
        );
        let said: serde_json::Value = match serde_json::from_str(&said) {
            Ok(said) => said,
            Err(error) => panic!("nft says no JSON: {error}: {said}"),
        };
        let objects = said["nftables"].as_array().into_iter().flatten();
        let counters: Vec<&serde_json::Value> = objects
            .map(|object| &object["counter"])
            .filter(|counter| counter.is_object())
            .collect();
        let packets = |name: &str| {
            let counter = counters.iter().find(|counter| counter["name"] == name);
            match counter.and_then(|counter| counter["packets"].as_u64()) {
                Some(packets) => packets,
                None => panic!("nft has no counter {name}: {said}"),
            }
        };
        Sent {
            initiations: packets("initiations"),
            responses: packets("responses"),
            data: packets("data"),
        }
    }
}
