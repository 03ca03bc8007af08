//! What meshd wrote into one node's kernel, as the distribution's own tools print it.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{End, Node};

/// For how long no handshake comes where none is under way: `REKEY_TIMEOUT` of the WireGuard paper (§6.1), and a third
/// of a second by which implementations spread it.
const SETTLED: Duration = Duration::from_secs(6);

/// Time after which both of two handshakes that began at once are over.
const BOTH: Duration = Duration::from_secs(1);

/// Time between two looks at the sessions.
const LOOK: Duration = Duration::from_millis(500);

/// Prints all of it: rules, routes, tables, the tunnel device, its peers, settings. Of tables it leaves out
/// counters and owners; the order of rules in a chain counts, that of sets and of their elements does not.
const SCRIPT: &str = r#"
exec 2>&1
echo == rules; ip -4 rule | sed 's/^/4 /'; ip -6 rule | sed 's/^/6 /'
echo == routes; ip route show table all proto 80; ip -6 route show table all proto 80
table() { nft -s list table $1 meshd | awk '
  / # progname / { sub(/ # progname .*/, "") } /^\tflags / || /^\tflags$/ { next }
  /^\t(set|map|chain) / { name = $1 " " $2; n = 0 }
  name ~ /^(set|map)/ { gsub(/,/, ""); for (i = 1; i <= NF; i++) print name, $i; next }
  !/^[ \t}]*$/ { print name, n++, $0 }' | sort; }
echo == inet; table inet
echo == netdev; table netdev
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

    /// The lines that only one of the two has, marked `-` for self and `+` for the other; empty only where
    /// both are the same.
    pub fn difference(&self, other: &Self) -> String {
        if self == other {
            return String::new();
        }
        let only = |a: &Self, b: &Self, mark: &str| -> Vec<String> {
            let lines = a.0.lines().filter(|line| !b.0.lines().any(|l| l == *line));
            lines.map(|line| format!("{mark} {line}")).collect()
        };
        let lines = [only(self, other, "-"), only(other, self, "+")].concat();
        if lines.is_empty() {
            return format!("the same lines, but not as often or not in order:\n{other:?}");
        }
        lines.join("\n")
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
    /// Reads them, once no handshake is under way.
    ///
    /// Where both ends of a session begin at once, the kernel's WireGuard drops both answers and begins again after
    /// five seconds; so its sessions are read when none has come for longer than that. `meshwire` finishes both, of
    /// which the later one counts.
    pub fn of(node: &Node) -> Self {
        let kind = node.run("ip", &["-d", "link", "show", "wireguard.cali"]);
        let mut sessions = Self::now(node);
        let mut since = Instant::now();
        let settled = if kind.contains(" wireguard ") {
            SETTLED
        } else {
            BOTH
        };
        while since.elapsed() < settled {
            thread::park_timeout(LOOK);
            let now = Self::now(node);
            if now != sessions {
                (sessions, since) = (now, Instant::now());
            }
        }
        sessions
    }

    fn now(node: &Node) -> Self {
        let script = "cat /sys/class/net/wireguard.cali/ifindex
                      wg show wireguard.cali latest-handshakes | sort";
        Self(node.run("sh", &["-e", "-c", script]))
    }
}
