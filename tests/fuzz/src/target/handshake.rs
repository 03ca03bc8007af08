//! Handshake packets: initiations, responses, cookies, by anybody.

use super::{Broken, Fate, Target};
use crate::{Dice, mutation, story::Story};

/// Stories (see [`crate::story`]) that are mostly about handshakes.
///
/// Promises: what is not authentic, or was taken before, changes nothing that a peer has, and is answered by at most
/// one cookie, no longer than itself and to where it came from; timers end.
#[derive(Clone, Copy, Debug)]
pub struct Handshake;

impl Target for Handshake {
    fn name(&self) -> &'static str {
        "handshake"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::lines(dice, corpus, step)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        Story::tell(&String::from_utf8_lossy(input))
    }
}

fn step(dice: &mut Dice) -> String {
    let number = dice.edge();
    let near = dice.roll(6);
    match dice.roll(24) {
        0..=2 => "begin".into(),
        3 | 4 => "deliver".into(),
        5 | 6 => format!("carry {near}"),
        7 => format!("move {near} {number}"),
        8..=13 => {
            let (at, bit, signed) = (dice.roll(150), 1 << dice.roll(8), dice.roll(2));
            format!("forge {near} {at} {bit} {signed}")
        }
        14 => format!("cut {near} {}", dice.roll(200)),
        15 => format!("splice {near} {} {}", dice.roll(6), dice.roll(150)),
        16 => {
            let (kind, length) = (1 + dice.roll(4), [60, 88, 144, 28][dice.roll(4)]);
            format!("raw {kind:02x}000000{}", hex::encode(dice.bytes(length)))
        }
        17 => format!("ask {}", dice.roll(50)),
        18 => format!("send {}", dice.roll(50)),
        19 => format!(
            "wait {}",
            [1, 30, 5_400, 16_000, 121_000, 200_000][dice.roll(6)]
        ),
        20 if dice.one_in(4) => format!("flood {}", dice.roll(1500)),
        20 => format!("flood {}", dice.roll(40)),
        21 => ["deaf", "hear"][dice.roll(2)].into(),
        22 => ["psk 0", "psk 1", "key", "mute", "drop", "add", "down", "up"][dice.roll(8)].into(),
        _ => format!("wait {}", number % 600_000),
    }
}
