//! Data packets of live sessions, and what somebody on the way makes of them.

use super::{Broken, Fate, Target};
use crate::{Dice, mutation, story::Story};

/// Stories (see [`crate::story`]) that are mostly about data.
///
/// Promises, beside those of [`Handshake`](super::handshake::Handshake): what is delivered is what the peer sealed,
/// byte for byte, from an address that is its own, and once.
#[derive(Clone, Copy, Debug)]
pub struct Data;

/// A session stands.
const BEGINNING: &[u8] = b"begin\ndeliver\nsend 8\ndeliver\n";

impl Target for Data {
    fn name(&self) -> &'static str {
        "data"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut story = BEGINNING.to_vec();
        story.extend(mutation::lines(dice, corpus, step));
        story
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        Story::tell(&String::from_utf8_lossy(input))
    }
}

fn step(dice: &mut Dice) -> String {
    let near = dice.roll(10);
    match dice.roll(24) {
        0..=4 => format!("send {}", dice.edge() % 1400),
        5 => format!("spoof {}", dice.roll(100)),
        6 => format!("junk {}", dice.roll(80)),
        7 | 8 => "deliver".into(),
        9..=11 => format!("carry {near}"),
        12 => format!("move {near} {}", dice.edge()),
        13..=16 => {
            let (at, bit) = (dice.roll(100), 1 << dice.roll(8));
            format!("forge {near} {at} {bit}")
        }
        17 => format!("cut {near} {}", dice.roll(1600)),
        18 => format!("splice {near} {} {}", dice.roll(10), dice.roll(120)),
        19 => format!("raw 04000000{}", hex::encode(dice.bytes(28))),
        20 => format!("ask {}", dice.edge() % 1400),
        21 => format!(
            "wait {}",
            [1, 10_001, 15_001, 121_000, 165_001, 181_000][dice.roll(6)]
        ),
        22 => "begin".into(),
        _ => ["psk 1", "drop", "add", "down", "up", "deaf", "hear"][dice.roll(7)].into(),
    }
}
