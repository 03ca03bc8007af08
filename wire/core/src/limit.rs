//! The numbers of the protocol (§6 of the paper; where it has none, the Linux kernel's
//! `drivers/net/wireguard/messages.h`).
use std::time::Duration;

/// Bits of the replay bitmap.
pub(crate) const WINDOW_BITS: u64 = 8192;
/// Counters the window reaches back: one word of the bitmap is always being filled.
pub(crate) const WINDOW: u64 = WINDOW_BITS - 64;

/// After so many packets the sender asks for a new session.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Counters from here on are neither sent nor accepted.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - WINDOW - 1;
/// At this age the initiator asks for a new session.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// At this age a session is neither sent with nor accepted.
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// How long an initiation waits for its response.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of the random time added to each wait.
pub(crate) const JITTER: Duration = Duration::from_millis(333);
/// How long initiations are repeated.
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// Silence after which received data is answered with an empty packet.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which sent data asks for a new session.
pub(crate) const NEW_HANDSHAKE_TIMEOUT: Duration =
    Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// Age at which received data makes the initiator ask for a new session, so that there is one
/// before this one is rejected.
pub(crate) const REKEY_ON_RECEIVE: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - NEW_HANDSHAKE_TIMEOUT.as_secs());
/// Age at which all keys are erased.
pub(crate) const ERASE_AFTER_TIME: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());
/// How much later than the other the one of two simultaneous initiators rekeys who gives way.
pub(crate) const YIELD: Duration = Duration::from_secs(10);

/// A peer's initiations that come closer together than this are ignored: 50 a second.
pub(crate) const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// Greetings (the initiations to new peers) leave at this distance, 500 a second: packets have the
/// rest of the core that computes them.
pub(crate) const GREETING_INTERVAL: Duration = Duration::from_millis(2);
/// Initiations that packets ask for are computed where the packets are sent, some 0.15 ms each: so many at once, and
/// so many a second. What goes beyond waits its turn among the timers, so that packets to others do not wait for it.
pub(crate) const PROMPT_BURST: u32 = 16;
pub(crate) const PROMPT_INTERVAL: Duration = Duration::from_millis(1);

/// Age at which the cookie secret is replaced.
pub(crate) const COOKIE_SECRET_AGE: Duration = Duration::from_secs(120);
/// A received cookie is used a little shorter, because its reply was under way.
pub(crate) const COOKIE_AGE: Duration = Duration::from_secs(COOKIE_SECRET_AGE.as_secs() - 5);

/// Packets that wait for a session, per peer.
pub(crate) const QUEUED_PACKETS: usize = 128;
/// Bytes that wait for sessions, over all peers.
pub(crate) const QUEUED_BYTES: usize = 64 << 20;
/// Peers of a tunnel.
pub(crate) const PEERS: usize = 1 << 20;
/// Events that wait to be polled; older ones give way.
pub(crate) const EVENTS: usize = 1 << 16;
