//! Prints what peers cost one node: to program them, to change one, to look at them, and to shake hands
//! with all of them again.
//!
//! ```text
//! bench/peers/run              both halves, each in a network namespace of its own
//! bench-peers kernel           the kernel's WireGuard, in the namespace where it is started
//! bench-peers meshwire SOCKET  the tunnel service that listens there
//! ```
//!
//! The other ends of the handshakes are boringtun's, a thousand of them in this process.

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod cost;
mod crowd;
mod hub;
mod storm;

use anyhow::{Context, bail};

use self::hub::Carrier;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let carrier = match words[..] {
        ["kernel"] => Carrier::Kernel,
        ["meshwire", socket] => Carrier::Meshwire(socket.into()),
        _ => bail!("bench-peers kernel | meshwire SOCKET"),
    };

    println!("{}", cost::HEADER);
    for count in [10, 100, 1000, 5000] {
        let row = cost::measure(&carrier, count).with_context(|| format!("{count} peers"))?;
        println!("{row}");
    }
    println!("\n{}", storm::HEADER);
    for reason in [storm::Reason::Greeted, storm::Reason::Packets] {
        let row = storm::measure(&carrier, 1000, reason).context("the storm")?;
        println!("{row}");
    }

    Ok(())
}
