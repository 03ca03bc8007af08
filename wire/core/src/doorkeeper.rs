//! Who may cost us a handshake.
//!
//! ```text
//!  initiation, response ─▶ mac1 ─▶ load? ─┬─ no ──▶ read ───▶ Entrant ─▶ Tunnel::handle_entrant
//!                                         ├─ mac2 right, within the source's rate ─▶ the same
//!                                         └─ else ─▶ a cookie, within a budget
//!  cookie reply ────────────────────────────────────────────▶ Entrant
//! ```
//!
//! A doorkeeper refers to no tunnel: a caller that keeps the tunnel behind a lock holds it neither for what strangers
//! send nor for the one key agreement that a stranger can cost us.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::cookie::Checker;
use crate::device::Identity;
use crate::hash::hash;
use crate::limiter::{CookieBudget, LoadGauge, SourceLimiter};
use crate::message::{Initiation, claimed_sender};
use crate::noise::{Claim, PROLOGUE};
use crate::tunnel::{Refusal, wrong_length};
use crate::{Endpoint, Message, Now, Tunnel};

/// Stands before a tunnel and decides which handshake messages get in.
pub struct Doorkeeper {
    identity: Option<Arc<Identity>>,
    /// Checks the macs of messages to us; there as long as an identity is.
    checker: Option<Checker>,
    gauge: LoadGauge,
    limiter: SourceLimiter,
    budget: CookieBudget,
    rng: ChaCha20Rng,
}

/// What a message with a right `mac1` gets.
pub enum Admission<'a> {
    /// It may go on to the tunnel.
    Granted(Entrant<'a>),
    /// We are under load: send this cookie reply back instead.
    Cookie(Vec<u8>),
}

/// A handshake message that may go on to [`Tunnel::handle_entrant`].
pub struct Entrant<'a> {
    pub(crate) source: Endpoint,
    pub(crate) length: usize,
    pub(crate) content: Content<'a>,
}

pub(crate) enum Content<'a> {
    Initiation { sender: u32, claim: Claim<'a> },
    Response(&'a [u8]),
    CookieReply(&'a [u8]),
}

impl Doorkeeper {
    /// A doorkeeper without a key, who refuses everybody. All its randomness comes from `seed`: give it 32 bytes nobody
    /// else knows.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            identity: None,
            checker: None,
            gauge: LoadGauge::default(),
            limiter: SourceLimiter::default(),
            budget: CookieBudget::default(),
            rng: ChaCha20Rng::from_seed(hash(&[b"doorkeeper", &seed])),
        }
    }

    /// Stands before `tunnel` from now on: takes over its key, or its lack of one.
    pub fn follow(&mut self, tunnel: &Tunnel) {
        self.set_identity(tunnel.identity());
    }

    pub(crate) fn set_identity(&mut self, identity: Option<&Arc<Identity>>) {
        let public = |identity: Option<&Arc<Identity>>| identity.map(|known| known.public);
        if public(identity) == public(self.identity.as_ref()) {
            return;
        }
        self.identity = identity.cloned();
        self.checker = identity.map(|identity| Checker::new(&identity.public));
    }

    /// Demands a cookie of everybody. Without being told, the doorkeeper does so while more than 512 handshake messages
    /// that are not authentic arrive within a second.
    pub const fn set_under_load(&mut self, under_load: bool) {
        self.gauge.force(under_load);
    }

    /// The message admitted last was authentic, and from here: it is no load, and while there is load, forged sources
    /// do not spend the cookies of this one.
    pub fn remember(&mut self, source: IpAddr) {
        self.gauge.forgive();
        self.budget.remember(source);
    }

    /// Judges an initiation, a response or a cookie reply.
    ///
    /// # Errors
    /// Why it is dropped. [`Refusal::Forged`] and [`Refusal::ZeroSecret`] cost a key agreement; all others, some
    /// hashing.
    pub fn admit<'a>(
        &mut self,
        source: Endpoint,
        datagram: &'a [u8],
        now: Now,
    ) -> Result<Admission<'a>, Refusal> {
        let content = match Message::classify(datagram)? {
            Message::Initiation => {
                if let Some(cookie) = self.check(source.remote, datagram, now)? {
                    return Ok(Admission::Cookie(cookie));
                }
                self.read(datagram)?
            }
            Message::Response => {
                if let Some(cookie) = self.check(source.remote, datagram, now)? {
                    return Ok(Admission::Cookie(cookie));
                }
                Content::Response(datagram)
            }
            Message::CookieReply => Content::CookieReply(datagram),
            Message::Data { .. } => return Err(Refusal::Data),
        };
        Ok(Admission::Granted(Entrant {
            source,
            length: datagram.len(),
            content,
        }))
    }

    /// Checks the macs: the first always, the second under load. The cookie to send, if one is demanded.
    fn check(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let checker = self.checker.as_mut().ok_or(Refusal::NoPrivateKey)?;
        if !checker.mac1_is_right(datagram) {
            return Err(Refusal::Mac1);
        }
        if !self.gauge.record(now.instant) {
            return Ok(None);
        }
        if checker.mac2_is_right(datagram, source, &mut self.rng, now) {
            let bucket = self.budget.bucket(source.ip());
            return if self.limiter.allow(bucket, now.instant) {
                Ok(None)
            } else {
                Err(Refusal::RateLimited)
            };
        }
        if !self.budget.allow(source.ip(), now.instant) {
            return Err(Refusal::NoCookie);
        }
        let sender = claimed_sender(datagram).ok_or(wrong_length(datagram))?;
        Ok(Some(checker.reply(
            datagram,
            sender,
            source,
            &mut self.rng,
            now,
        )))
    }

    /// Reads who an initiation says it is from: one key agreement.
    fn read<'a>(&self, datagram: &'a [u8]) -> Result<Content<'a>, Refusal> {
        let initiation = Initiation::decode(datagram).ok_or(wrong_length(datagram))?;
        let identity = self.identity.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let claim = Claim::read(
            &identity.secret,
            &identity.public,
            PROLOGUE,
            initiation.noise,
        )?;
        Ok(Content::Initiation {
            sender: initiation.sender,
            claim,
        })
    }
}
