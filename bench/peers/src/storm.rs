//! Handshakes with everybody at once, as after a restart.

use std::{
    fmt, fs,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    cost::service,
    crowd::Crowd,
    hub::{BLOCKS, Carrier, Hub},
};

/// How long all may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The heads of the columns.
pub(crate) const HEADER: &str = "storm     peers  half s   all s  CPU s";

/// Why handshakes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The peers were just programmed, and are greeted.
    Greeted,
    /// So they were, and there is a packet for each of them.
    Packets,
}

/// What a storm came to.
pub(crate) struct Storm {
    reason: Reason,
    peers: u32,
    half: Duration,
    all: Duration,
    cpu: Duration,
}

/// Makes a node with so many peers who all answer, and waits until all sessions are there.
pub(crate) fn measure(carrier: &Carrier, count: u32, reason: Reason) -> anyhow::Result<Storm> {
    let crowd = Crowd::gather(count)?;
    let mut hub = Hub::new(carrier)?;
    hub.want(count)?;
    let (busy, began) = (busy(carrier)?, Instant::now());
    hub.pass()?;
    if reason == Reason::Packets {
        send_to_all(count)?;
    }

    let (mut half, mut done) = (None, 0);
    while done < count {
        if began.elapsed() > PATIENCE {
            bail!("{done} of {count} after {PATIENCE:?}");
        }
        std::thread::park_timeout(LOOK);
        let known = hub.peers.target_mut().statistics()?;
        let shaken = known.iter().filter(|peer| peer.last_handshake.is_some());
        done = u32::try_from(shaken.count())?;
        if done * 2 >= count {
            half.get_or_insert_with(|| began.elapsed());
        }
    }
    let all = began.elapsed();
    let cpu = self::busy(carrier)?.saturating_sub(busy);
    hub.end()?;
    crowd.end()?;

    Ok(Storm {
        reason,
        peers: count,
        half: half.unwrap_or(all),
        all,
        cpu,
    })
}

/// Leads the peers' networks to the device.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark prepares its machine by the usual programs"
)]
fn lead_to_device() -> anyhow::Result<()> {
    for arguments in [
        ["address", "add", "10.255.0.1/32", "dev", "wg.bench"],
        ["route", "replace", "10.0.0.0/8", "dev", "wg.bench"],
    ] {
        let status = Command::new("ip").args(arguments).status()?;
        if !status.success() {
            bail!("ip {}", arguments.join(" "));
        }
    }

    Ok(())
}

/// Sends a packet to an address of each peer.
fn send_to_all(count: u32) -> anyhow::Result<()> {
    lead_to_device()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for index in 0..count {
        let address = Ipv4Addr::from(0x0a00_0001 + index * BLOCKS * 64);
        socket
            .send_to(b"hello", (address, 9))
            .with_context(|| address.to_string())?;
    }

    Ok(())
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            Reason::Greeted => "greeted",
            Reason::Packets => "packets",
        };
        let [half, all, cpu] = [self.half, self.all, self.cpu].map(|time| time.as_secs_f64());

        write!(
            f,
            "{reason:8}  {:5}  {half:6.2}  {all:6.2}  {cpu:5.2}",
            self.peers
        )
    }
}

/// Returns the time that the carrier has worked: the service's, or the machine's without ours.
fn busy(carrier: &Carrier) -> anyhow::Result<Duration> {
    match carrier {
        Carrier::Kernel => {
            let text = fs::read_to_string("/proc/stat")?;
            let line = text.lines().next().context("a line for all CPUs")?;
            let fields: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
            // user nice system idle iowait irq softirq (proc_stat(5))
            let ticks = fields.iter().take(7).sum::<u64>() - fields[3] - fields[4];

            Ok(ticks_of(ticks).saturating_sub(of_process("self")?))
        }
        Carrier::Meshwire(_) => of_process(&service()?),
    }
}

fn of_process(process: &str) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after) = text.rsplit_once(')').context("a name in brackets")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;

    Ok(ticks_of(ticks))
}

fn ticks_of(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
