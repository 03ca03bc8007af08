//! What strangers may cost us: the gauge that says when we are under load, and, for the time while we
//! are, token buckets per source and a budget of cookies.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshake messages within a second that make a load. One costs some 0.2 ms of a core, so this
/// is a tenth of one; the kernel's figure is a queue of the same length.
pub(crate) const LOAD: u32 = 512;

/// So many messages a second that turn out to be authentic are no load: when a node with a thousand peers comes back,
/// they all greet at once. Behind that, members are asked for cookies as everybody is.
const WELCOME: u32 = 4 * LOAD;

/// Once under load, so for at least this long.
const CALM: Duration = Duration::from_secs(1);

/// A source gets 20 handshakes a second, 5 at once, as in the kernel.
const REFILL: Duration = Duration::from_millis(50);
const BURST: u32 = 5;

/// Cookies for strangers per second. One costs some 10 µs of a core and a datagram to an address that may
/// be forged.
const COOKIE_REFILL: Duration = Duration::from_micros(244);
const COOKIE_BURST: u32 = 1024;

/// Sources remembered. Ordered maps: no choice of addresses makes a lookup slow.
const SOURCES: usize = 1 << 16;

/// Counts handshake messages.
#[derive(Default)]
pub(crate) struct LoadGauge {
    /// The window's begin, and the messages in it that count.
    window: Option<(Instant, u32)>,
    /// Messages in the window that turned out to be authentic, and count no more.
    forgiven: u32,
    loaded_until: Option<Instant>,
    forced: bool,
}

impl LoadGauge {
    /// Says from outside that we are under load.
    pub(crate) const fn force(&mut self, forced: bool) {
        self.forced = forced;
    }

    /// Counts one message and says whether we are under load.
    pub(crate) fn record(&mut self, now: Instant) -> bool {
        let (start, count) = match self.window {
            Some((start, count)) if now < start + CALM => (start, count.saturating_add(1)),
            Some(_) | None => {
                self.forgiven = 0;
                (now, 1)
            }
        };
        self.window = Some((start, count));
        if count > LOAD {
            self.loaded_until = Some(now + CALM);
        }
        self.forced || self.loaded_until.is_some_and(|until| now < until)
    }

    /// The message that was counted last turned out to be authentic.
    pub(crate) const fn forgive(&mut self) {
        if let Some((_, count)) = &mut self.window
            && self.forgiven < WELCOME
        {
            *count = count.saturating_sub(1);
            self.forgiven += 1;
        }
    }
}

/// Says who may have a cookie. A source gets no more of them than of handshakes, so that one flooder does
/// not spend everybody's; and forged sources, of which there is no end, do not spend those of addresses
/// that have completed a handshake.
#[derive(Default)]
pub(crate) struct CookieBudget {
    per_source: SourceLimiter,
    /// When the strangers' bucket will be full again.
    full_at: Option<Instant>,
    known: BTreeSet<IpAddr>,
}

impl CookieBudget {
    /// An authentic handshake has come from here.
    pub(crate) fn remember(&mut self, source: IpAddr) {
        if self.known.len() >= SOURCES {
            self.known.clear();
        }
        self.known.insert(source.to_canonical());
    }

    /// Returns what a source is counted under: whoever has completed a handshake, by its own address. A network of
    /// 64 bits may hold a whole mesh, and a flooder beside it.
    pub(crate) fn bucket(&self, source: IpAddr) -> Bucket {
        let source = source.to_canonical();
        match source {
            IpAddr::V4(_) => Bucket::Address(source),
            IpAddr::V6(_) if self.known.contains(&source) => Bucket::Address(source),
            IpAddr::V6(ip) => Bucket::Network((ip.to_bits() >> 64) as u64),
        }
    }

    /// Takes a cookie for the source, if there is one.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let bucket = self.bucket(source);
        if self.known.contains(&source.to_canonical()) {
            return self.per_source.allow(bucket, now);
        }
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let next = full_at + COOKIE_REFILL;
        if next > now + COOKIE_REFILL * COOKIE_BURST || !self.per_source.allow(bucket, now) {
            return false;
        }
        self.full_at = Some(next);
        true
    }
}

/// What handshakes are counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bucket {
    /// An IPv4 address, or that of an IPv6 acquaintance.
    Address(IpAddr),
    /// The first 64 bits of strangers' IPv6 addresses.
    Network(u64),
}

/// Token buckets.
#[derive(Default)]
pub(crate) struct SourceLimiter {
    /// When the bucket will be full again.
    full_at: BTreeMap<Bucket, Instant>,
}

impl SourceLimiter {
    /// Takes a token of the source, if there is one.
    pub(crate) fn allow(&mut self, key: Bucket, now: Instant) -> bool {
        if !self.full_at.contains_key(&key) && !self.make_room(now) {
            return false;
        }
        let full_at = self.full_at.entry(key).or_insert(now);
        let next = (*full_at).max(now) + REFILL;
        if next > now + REFILL * BURST {
            return false;
        }
        *full_at = next;
        true
    }

    /// Forgets full buckets where the table is full.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full_at.len() >= SOURCES {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < SOURCES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_clock::{after, at};

    #[test]
    fn more_than_512_messages_in_a_second_are_a_load_for_a_second() {
        let mut gauge = LoadGauge::default();
        assert!((0..LOAD).all(|_| !gauge.record(at(0).instant)));
        assert!(gauge.record(after(Duration::from_millis(999)).instant));
        assert!(gauge.record(after(Duration::from_millis(1998)).instant));
        assert!(!gauge.record(after(Duration::from_millis(1999)).instant));
    }

    #[test]
    fn two_thousand_authentic_messages_in_a_second_are_no_load_and_more_are() {
        let mut gauge = LoadGauge::default();
        let mut calm = || {
            let loaded = gauge.record(at(0).instant);
            gauge.forgive();
            !loaded
        };
        assert!((0..WELCOME + LOAD).all(|_| calm()));
        assert!(!calm());
        assert!((0..LOAD).all(|_| !gauge.record(at(2).instant)));
        assert!(gauge.record(at(2).instant));
    }

    #[test]
    fn messages_spread_over_seconds_are_no_load() {
        let mut gauge = LoadGauge::default();
        for second in 0..20 {
            assert!((0..LOAD).all(|_| !gauge.record(at(second).instant)));
        }
    }

    /// What a stranger is counted under.
    fn bucket(ip: &str) -> Bucket {
        CookieBudget::default().bucket(ip.parse().unwrap())
    }

    #[test]
    fn a_source_gets_five_at_once_and_twenty_a_second() {
        let mut limiter = SourceLimiter::default();
        let ip = bucket("192.0.2.1");
        let mut granted = |now| (0..100).filter(|_| limiter.allow(ip, now)).count();
        assert_eq!(granted(at(0).instant), 5);
        assert_eq!(granted(after(Duration::from_millis(49)).instant), 0);
        assert_eq!(granted(after(Duration::from_millis(100)).instant), 2);
        assert_eq!(granted(at(60).instant), 5);
    }

    #[test]
    fn sources_do_not_share_a_bucket_but_a_64_does() {
        let mut limiter = SourceLimiter::default();
        let now = at(0).instant;
        let mut granted = |ip: &str| (0..100).filter(|_| limiter.allow(bucket(ip), now)).count();
        assert_eq!(granted("192.0.2.1"), 5);
        assert_eq!(granted("192.0.2.2"), 5);
        assert_eq!(granted("2001:db8::1"), 5);
        assert_eq!(granted("2001:db8::2"), 0);
        assert_eq!(granted("2001:db8:0:1::2"), 5);
    }

    fn addresses(count: u32) -> impl Iterator<Item = IpAddr> {
        (0..count).map(|number| IpAddr::V4((0x0a00_0000 + number).into()))
    }

    #[test]
    fn strangers_share_four_thousand_cookies_a_second() {
        let mut budget = CookieBudget::default();
        let mut granted = |now| {
            addresses(50_000)
                .filter(|source| budget.allow(*source, now))
                .count()
        };
        assert_eq!(granted(at(0).instant), 1024);
        assert_eq!(granted(after(Duration::from_millis(100)).instant), 409);
        assert_eq!(granted(at(60).instant), 1024);
    }

    #[test]
    fn one_flooder_leaves_cookies_for_others() {
        let mut budget = CookieBudget::default();
        let flooder = "192.0.2.1".parse().unwrap();
        let granted = (0..50_000).filter(|_| budget.allow(flooder, at(0).instant));
        assert_eq!(granted.count(), 5);
        assert!(budget.allow("192.0.2.2".parse().unwrap(), at(0).instant));
    }

    #[test]
    fn forged_sources_do_not_spend_the_cookies_of_those_we_know() {
        let mut budget = CookieBudget::default();
        let friend = "192.0.2.1".parse().unwrap();
        budget.remember(friend);
        let now = at(0).instant;
        assert!(!addresses(50_000).all(|source| budget.allow(source, now)));
        let granted = (0..100).filter(|_| budget.allow(friend, now));
        assert_eq!(granted.count(), 5);
        assert!(!budget.allow("192.0.2.2".parse().unwrap(), now));
    }

    #[test]
    fn a_flooder_in_a_friends_network_leaves_it_its_share() {
        let (mut budget, mut limiter) = (CookieBudget::default(), SourceLimiter::default());
        let friend = "2001:db8::7".parse().unwrap();
        budget.remember(friend);
        let now = at(0).instant;
        for host in 0..50_000_u128 {
            let flooder = IpAddr::V6((0x2001_0db8_u128 << 96 | 1 << 32 | host).into());
            budget.allow(flooder, now);
            limiter.allow(budget.bucket(flooder), now);
        }

        let handshakes = (0..100).filter(|_| limiter.allow(budget.bucket(friend), now));
        assert_eq!(handshakes.count(), 5);
        let cookies = (0..100).filter(|_| budget.allow(friend, now));
        assert_eq!(cookies.count(), 5);
        assert!(!budget.allow("2001:db8::8".parse().unwrap(), now));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_quiet() {
        let mut limiter = SourceLimiter::default();
        for i in 0..SOURCES as u32 {
            assert!(limiter.allow(Bucket::Address(IpAddr::V4(i.into())), at(0).instant));
        }
        assert!(!limiter.allow(bucket("203.0.113.1"), at(0).instant));
        assert!(limiter.allow(bucket("203.0.113.1"), at(1).instant));
        assert_eq!(limiter.full_at.len(), 1);
    }
}
