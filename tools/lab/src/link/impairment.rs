//! What a network does to the frames that enter it, as a pure queue: time is an argument, chance a seed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::spec::{Network, TooBig};

/// The most frames on their way at once; more are lost, as in a full queue.
const QUEUE: usize = 4096;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Frames on their way into a network.
#[derive(Debug)]
pub(super) struct Impairment {
    delay: Duration,
    jitter: Duration,
    loss: f64,
    reorder: f64,
    bits_per_second: Option<u64>,
    largest: Option<usize>,
    too_big: TooBig,
    chance: Chance,
    /// Frames by the time they are due, and by their number where that is the same.
    queue: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    /// When the last frame in order is due; none overtakes it but by chance.
    last_due: Option<Instant>,
    /// Until when the line is busy sending, where it has a rate.
    busy_until: Option<Instant>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It will come out when it is due.
    Kept,
    /// It is lost.
    Lost,
    /// It is larger than the network carries, and its sender is to be told.
    TooBig {
        /// Largest IP packet that passes, in bytes.
        mtu: u16,
    },
}

impl Impairment {
    /// What `network` does; the same seed does the same to the same frames.
    pub(super) fn new(network: &Network, seed: u64) -> Self {
        Self {
            delay: network.delay.0,
            jitter: network.jitter.0,
            loss: network.loss.probability(),
            reorder: network.reorder.probability(),
            bits_per_second: network.rate.map(|rate| rate.bits_per_second()),
            largest: network.path_mtu.map(usize::from),
            too_big: network.too_big,
            chance: Chance(seed),
            queue: BTreeMap::new(),
            count: 0,
            last_due: None,
            busy_until: None,
        }
    }

    /// A frame enters.
    pub(super) fn admit(&mut self, frame: &[u8], now: Instant) -> Admission {
        if let Some(largest) = self.largest.filter(|l| frame.len() > l + ETHERNET) {
            let mtu = u16::try_from(largest).expect("it was a u16");
            return match self.too_big {
                TooBig::Answer => Admission::TooBig { mtu },
                TooBig::Drop => Admission::Lost,
            };
        }
        if self.chance.strikes(self.loss) || self.queue.len() >= QUEUE {
            return Admission::Lost;
        }
        let due = self.due(frame.len(), now);
        self.count += 1;
        self.queue.insert((due, self.count), frame.to_vec());
        Admission::Kept
    }

    /// When a frame of that length comes out.
    fn due(&mut self, length: usize, now: Instant) -> Instant {
        let sent = self.sent(length, now);
        if self.chance.strikes(self.reorder) {
            return sent;
        }
        let due = sent + self.delay + self.jitter.mul_f64(self.chance.share());
        let due = self.last_due.map_or(due, |last| due.max(last));
        self.last_due = Some(due);
        due
    }

    /// When the last bit of a frame has left, at the line's rate.
    fn sent(&mut self, length: usize, now: Instant) -> Instant {
        let Some(rate) = self.bits_per_second else {
            return now;
        };
        let begin = self.busy_until.map_or(now, |until| until.max(now));
        let nanos = length as u128 * 8 * 1_000_000_000 / u128::from(rate);
        let sent = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.busy_until = Some(sent);
        sent
    }

    /// When to come back; none: when the next frame enters.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next frame that is due.
    pub(super) fn poll_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

/// A seeded source of chance: the generator `splitmix64` (Steele, Lea, Flood 2014).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..1, from the upper 53 bits.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True in that share of calls; no number is drawn where it cannot happen.
    fn strikes(&mut self, share: f64) -> bool {
        share > 0.0 && self.share() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(settings: &str) -> Network {
        let text = format!("{{name: lan, cidrs: [192.0.2.0/24], {settings}}}");
        serde_yaml_ng::from_str(&text).unwrap()
    }

    /// What comes out, when, of frames that enter one millisecond apart: (number, milliseconds).
    fn run(settings: &str, frames: u64, length: usize) -> Vec<(u64, u64)> {
        let begin = Instant::now();
        let mut impairment = Impairment::new(&network(settings), 7);
        for number in 0..frames {
            let mut frame = vec![0; length];
            frame[..8].copy_from_slice(&number.to_be_bytes());
            impairment.admit(&frame, begin + Duration::from_millis(number));
        }
        let mut out = Vec::new();
        while let Some(due) = impairment.poll_timeout() {
            let frame = impairment.poll_frame(due).unwrap();
            let number = u64::from_be_bytes(frame[..8].try_into().unwrap());
            out.push((number, u64::try_from((due - begin).as_millis()).unwrap()));
        }
        out
    }

    #[test]
    fn a_delay_delays_everything_alike() {
        assert_eq!(run("delay: 5ms", 3, 64), [(0, 5), (1, 6), (2, 7)]);
    }

    #[test]
    fn jitter_spreads_frames_but_keeps_their_order() {
        let out = run("delay: 5ms, jitter: 20ms", 200, 64);
        assert!(out.is_sorted(), "{out:?}");
        let latest = out.iter().map(|(n, at)| at - n).max().unwrap();
        assert!((20..=25).contains(&latest), "{latest}");
    }

    #[test]
    fn reordered_frames_overtake() {
        let out = run("delay: 5ms, reorder: 10%", 1000, 64);
        let early = out.iter().filter(|(number, at)| at == number).count();
        assert!((60..140).contains(&early), "{early}");
        assert_eq!(out.len(), 1000);
    }

    #[test]
    fn the_asked_for_share_is_lost_and_the_same_one_every_time() {
        let out = run("loss: 10%", 4000, 64);
        assert!((3500..3700).contains(&out.len()), "{}", out.len());
        assert_eq!(out, run("loss: 10%", 4000, 64));
    }

    #[test]
    fn a_rate_makes_frames_queue_up() {
        // 1000 bytes at 1 Mbit/s take 8 ms.
        assert_eq!(run("rate: 1mbit", 3, 1000), [(0, 8), (1, 16), (2, 24)]);
    }

    #[test]
    fn a_full_queue_loses_what_comes_next() {
        let mut impairment = Impairment::new(&network("delay: 1h"), 0);
        let now = Instant::now();
        let kept = (0..5000).filter(|_| impairment.admit(&[0; 60], now) == Admission::Kept);
        assert_eq!(kept.count(), QUEUE);
    }

    #[test]
    fn what_is_too_big_is_answered_or_disappears() {
        let now = Instant::now();
        let mut tells = Impairment::new(&network("pathMtu: 1400"), 0);
        assert_eq!(
            tells.admit(&[0; 1415], now),
            Admission::TooBig { mtu: 1400 }
        );
        assert_eq!(tells.admit(&[0; 1414], now), Admission::Kept);
        let mut silent = Impairment::new(&network("pathMtu: 1400, tooBig: Drop"), 0);
        assert_eq!(silent.admit(&[0; 1415], now), Admission::Lost);
    }
}
