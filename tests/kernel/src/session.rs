//! Sessions over virtual minutes: when each was made, as `wg` shows it.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lab::{End as _, Node};

/// When a node made its present session with each peer: by the peer's key, in time since 1970. A peer without a
/// session is not among them.
pub fn handshakes(node: &Node) -> BTreeMap<String, Duration> {
    let said = node.run("wg", &["show", "wireguard.cali", "latest-handshakes"]);
    let of = |line: &str| {
        let (key, seconds) = line.split_once('\t')?;
        let seconds: u64 = seconds.trim().parse().ok()?;
        (seconds > 0).then(|| (key.to_owned(), Duration::from_secs(seconds)))
    };
    said.lines().filter_map(of).collect()
}

/// The age of a session that was made then; to the second, as `wg` has it.
pub fn age(made: &Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("the clock of a test stands after 1970");
    now.saturating_sub(*made)
}

/// A node's public key.
pub fn key(node: &Node) -> String {
    let said = node.run("wg", &["show", "wireguard.cali", "public-key"]);
    said.trim().to_owned()
}

/// Lets time pass. Under a warped clock it takes none outside; nothing but the time itself can be waited for here.
pub fn pass(span: Duration) {
    let until = Instant::now() + span;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}
