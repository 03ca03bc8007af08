//! What meshd wrote into one node's kernel, as the distribution's own tools print it.

use lab::{End, Node};

/// Prints all of it: rules, routes, tables without counters and owner, the tunnel device, its peers,
/// settings.
const SCRIPT: &str = r#"
exec 2>&1
echo == rules; ip rule; ip -6 rule
echo == routes; ip route show table all proto 80; ip -6 route show table all proto 80
owner='s/ # progname .*//; /^\tflags /d; /^\tflags$/d'
echo == inet; nft -s list table inet meshd | sed "$owner"
echo == netdev; nft -s list table netdev meshd | sed "$owner"
echo == device; ip -o addr show dev wireguard.cali scope global | cut -d: -f2-; cat /sys/class/net/wireguard.cali/mtu
echo == peers; wg show wireguard.cali allowed-ips | sort
wg show wireguard.cali fwmark; wg show wireguard.cali listen-port
echo == settings; cat /proc/sys/net/ipv4/conf/wireguard.cali/rp_filter
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
"#;

/// All that meshd wrote into a node's kernel, without what changes with every packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Kernel(String);

impl Kernel {
    /// Reads it.
    pub fn of(node: &Node) -> Self {
        Self(node.run("sh", &["-c", SCRIPT]))
    }

    /// The lines that only one of the two has, marked `-` for self and `+` for the other.
    pub fn difference(&self, other: &Self) -> String {
        let only = |a: &Self, b: &Self, mark: &str| -> Vec<String> {
            let lines = a.0.lines().filter(|line| !b.0.lines().any(|l| l == *line));
            lines.map(|line| format!("{mark} {line}")).collect()
        };
        [only(self, other, "-"), only(other, self, "+")]
            .concat()
            .join("\n")
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tunnel as WireGuard has it: the device's index, and when each peer's last handshake was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions(String);

impl Sessions {
    /// Reads them.
    pub fn of(node: &Node) -> Self {
        let script = "cat /sys/class/net/wireguard.cali/ifindex
                      wg show wireguard.cali latest-handshakes | sort";
        Self(node.run("sh", &["-e", "-c", script]))
    }
}
