//! What peers cost at rest and to change.

use std::{
    fmt, fs,
    time::{Duration, Instant},
};

use anyhow::Context;
use dataplane::Target;

use crate::hub::{Carrier, Hub, key, peer};

/// How many changes are timed.
const CHANGES: u32 = 100;

/// The heads of the columns.
pub(crate) const HEADER: &str =
    "peers  program ms  change µs p50/p99   netlink B/change  look ms  agent MiB  tunnel MiB";

/// What so many peers cost.
pub(crate) struct Cost {
    peers: u32,
    program: Duration,
    change: [Duration; 2],
    bytes: Option<u64>,
    look: Duration,
    agent: f64,
    tunnel: f64,
}

/// Programs so many peers, then takes an allowed IP from one of them and gives it back, again and again.
pub(crate) fn measure(carrier: &Carrier, count: u32) -> anyhow::Result<Cost> {
    let before = (resident("self")?, tunnel_memory(carrier)?);
    let mut hub = Hub::new(carrier)?;
    hub.want(count)?;
    let began = Instant::now();
    hub.pass()?;
    let program = began.elapsed();
    let after = (resident("self")?, tunnel_memory(carrier)?);

    let bytes = hub.traffic.count().iter().sum::<u64>();
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let mut row = peer(change / 2 % count)?;
        if change % 2 == 0 {
            row.allowed_ips.pop_first();
        }
        hub.wanted.set(key(change / 2 % count)?, row);
        let began = Instant::now();
        hub.pass()?;
        times.push(began.elapsed());
    }
    let bytes = hub.traffic.count().iter().sum::<u64>() - bytes;
    times.sort();

    let began = Instant::now();
    hub.peers.target_mut().observe()?;
    let look = began.elapsed();
    hub.end()?;

    Ok(Cost {
        peers: count,
        program,
        change: [times[times.len() / 2], times[times.len() * 99 / 100]],
        bytes: matches!(carrier, Carrier::Kernel).then_some(bytes / u64::from(CHANGES)),
        look,
        agent: (after.0 - before.0) / 1024.0,
        tunnel: (after.1 - before.1) / 1024.0,
    })
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let [p50, p99] = self.change.map(|time| time.as_secs_f64() * 1e6);
        let bytes = self.bytes.map_or("-".to_owned(), |bytes| bytes.to_string());

        write!(
            f,
            "{:5}  {:10.1}  {p50:9.0}/{p99:9.0}  {bytes:>16}  {:7.1}  {:9.1}  {:10.1}",
            self.peers,
            milliseconds(self.program),
            milliseconds(self.look),
            self.agent,
            self.tunnel,
        )
    }
}

/// Returns the memory of whoever carries the packets, in KiB: the service's, or what the kernel has less.
fn tunnel_memory(carrier: &Carrier) -> anyhow::Result<f64> {
    match carrier {
        Carrier::Kernel => Ok(-field("/proc/meminfo", "MemAvailable:")?),
        Carrier::Meshwire(_) => resident(&service()?),
    }
}

/// Returns the process of the tunnel service, which whoever started us names.
pub(crate) fn service() -> anyhow::Result<String> {
    std::env::var("MESHWIRE_PID").context("MESHWIRE_PID names the tunnel service")
}

fn resident(process: &str) -> anyhow::Result<f64> {
    field(&format!("/proc/{process}/status"), "VmRSS:")
}

fn field(path: &str, name: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());

    Ok(number.with_context(|| name.to_owned())?.parse()?)
}
