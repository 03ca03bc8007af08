//! Handshakes of a peer: when one begins, what is answered, what comes of it.
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::device::Device;
use crate::event::Role;
use crate::keypair::Keypair;
use crate::limit::{
    INITIATION_INTERVAL, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, YIELD,
};
use crate::message::{CookieReply, Initiation, Response};
use crate::noise::{Claim, Initiator, NoiseError, PROLOGUE, SessionKeys, Statics};
use crate::peer::{Peer, Pending};
use crate::replay::ReplayWindow;
use crate::session::{ReceiveSession, SendSession};
use crate::timer::Timer;
use crate::tunnel::Refusal;
use crate::{Endpoint, Now};

/// Who wants a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Something new: attempts are made for 90 s from now.
    New,
    /// The timer of an unanswered initiation.
    Retry,
}

impl Peer {
    /// Sends an initiation, unless the last handshake message is less than 5 s old: then the
    /// retransmission timer does it.
    pub(super) fn request_handshake(&mut self, demand: Demand, device: &mut Device, now: Now) {
        if self.endpoint.is_none() || self.shared.is_none() {
            return;
        }
        if demand == Demand::New {
            self.attempts_until = Some(now.instant + REKEY_ATTEMPT_TIME);
        }
        if self
            .handshake_sent
            .is_none_or(|sent| now.instant >= sent + REKEY_TIMEOUT)
        {
            self.initiate(device, now);
        } else if !self.timers.is_set(Timer::Retransmit) {
            self.await_response(device, now);
        }
    }

    /// A packet wants a session: sends an initiation at once, or when it is this one's turn.
    pub(super) fn prompt_handshake(&mut self, device: &mut Device, now: Now) {
        if self.prompted && self.timers.is_set(Timer::Greeting) {
            return;
        }
        let costs = self
            .handshake_sent
            .is_none_or(|sent| now.instant >= sent + REKEY_TIMEOUT);
        if !costs {
            return self.request_handshake(Demand::New, device, now);
        }
        match device.take_prompt(now) {
            Ok(()) => self.request_handshake(Demand::New, device, now),
            Err(turn) => {
                self.prompted = true;
                self.timers.hasten(Timer::Greeting, turn);
            }
        }
    }

    fn initiate(&mut self, device: &mut Device, now: Now) {
        let (Some(endpoint), Some(shared)) = (self.endpoint, self.shared.clone()) else {
            return;
        };
        let ephemeral = device.ephemeral();
        let Some(identity) = &device.identity else {
            return;
        };
        let statics = Statics {
            public: &identity.public,
            remote: &self.public_key,
            shared: &shared,
        };
        let timestamp = Timestamp::after(self.sent_timestamp, now);
        let begun = Initiator::begin(&statics, ephemeral, PROLOGUE, &timestamp.0);
        // The only error is a key of low order, and that has no shared secret.
        let Ok((state, noise)) = begun else { return };
        self.abort_initiation(device);
        let index = device.reserve_index(self.id);
        self.initiation = Some(Box::new(Pending { state, index }));
        self.sent_timestamp = Some(timestamp);
        self.send_handshake(
            Initiation {
                sender: index,
                noise: &noise,
            }
            .encode(),
            endpoint,
            device,
            now,
        );
        self.await_response(device, now);
    }

    fn send_handshake(
        &mut self,
        mut message: Vec<u8>,
        endpoint: Endpoint,
        device: &mut Device,
        now: Now,
    ) {
        self.signer.sign(&mut message, now);
        self.handshake_sent = Some(now.instant);
        self.sent_bytes += message.len() as u64;
        self.sent_any();
        self.traversed(now);
        device.transmit(Some(self.id), endpoint, message);
    }

    /// Answers an initiation. Our own that may be under way stays: if both sides began at once,
    /// whichever response comes first is used.
    pub(crate) fn answer(
        &mut self,
        sender: u32,
        claim: Claim<'_>,
        source: Endpoint,
        device: &mut Device,
        now: Now,
    ) -> Result<(), Refusal> {
        let shared = self.shared.as_ref().ok_or(NoiseError::ZeroSecret)?;
        let (responder, payload) = claim.verify(shared)?;
        let timestamp = Timestamp(
            payload
                .try_into()
                .map_err(|_wrong_length| Refusal::Forged)?,
        );
        if self.seen_timestamp.is_some_and(|seen| timestamp <= seen) {
            return Err(Refusal::Replayed);
        }
        if self
            .initiation_taken
            .is_some_and(|taken| now.instant < taken + INITIATION_INTERVAL)
        {
            return Err(Refusal::TooFast);
        }
        let (noise, keys) = responder.respond(&device.ephemeral(), &self.preshared_key, &[])?;
        self.seen_timestamp = Some(timestamp);
        self.initiation_taken = Some(now.instant);

        let index = device.reserve_index(self.id);
        let message = Response {
            sender: index,
            receiver: sender,
            noise: &noise,
        }
        .encode();
        self.roam(device, source);
        self.send_handshake(message, source, device, now);
        self.begin_session(Role::Responder, &keys, index, sender, device, now);
        self.received_any();
        Ok(())
    }

    /// Takes the response to our initiation.
    pub(crate) fn take_response(
        &mut self,
        response: &Response<'_>,
        source: Endpoint,
        device: &mut Device,
        now: Now,
    ) -> Result<(), Refusal> {
        let pending = self
            .initiation
            .as_ref()
            .filter(|p| p.index == response.receiver);
        let pending = pending.ok_or(Refusal::UnknownIndex)?;
        let identity = device.identity.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let (_, keys) =
            pending
                .state
                .finish(&identity.secret, &self.preshared_key, response.noise)?;

        self.initiation = None;
        self.roam(device, source);
        self.begin_session(
            Role::Initiator,
            &keys,
            response.receiver,
            response.sender,
            device,
            now,
        );
        self.handshake_completed(Role::Initiator, device, now);
        self.received_any();
        self.traversed(now);
        self.send_keepalive(device, now);
        Ok(())
    }

    /// Keeps a cookie for the next handshake message.
    pub(crate) fn take_cookie(&mut self, reply: &CookieReply<'_>, now: Now) -> Result<(), Refusal> {
        if self.signer.accept(reply, now) {
            Ok(())
        } else {
            Err(Refusal::Forged)
        }
    }

    /// Counts a handshake message that was taken.
    pub(crate) fn count_received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
    }

    fn begin_session(
        &mut self,
        role: Role,
        keys: &SessionKeys,
        index: u32,
        remote_index: u32,
        device: &mut Device,
        now: Now,
    ) {
        let collided = role == Role::Initiator && self.keypairs.awaits_confirmation();
        let keypair = Keypair {
            send: Arc::new(SendSession::new(device.aead(&keys.send), remote_index)),
            receive: Arc::new(ReceiveSession::new(
                device.aead(&keys.receive),
                index,
                self.id,
            )),
            window: ReplayWindow::new(),
            role,
            born: now.instant,
            rekey_after: if collided && self.yields(device) {
                REKEY_AFTER_TIME + YIELD
            } else {
                REKEY_AFTER_TIME
            },
            counter: 0,
            sends: true,
        };
        device.release_indices(self.keypairs.install(keypair));
        self.session_derived(now);
    }

    /// Of two who initiated at once, and both think that they are to rekey, the one with the
    /// greater key lets the other be first; else they would collide again and again.
    fn yields(&self, device: &Device) -> bool {
        device
            .identity
            .as_ref()
            .is_some_and(|identity| identity.public > self.public_key)
    }

    /// The first packet of a session that we answered has come: the initiator has it. Our own
    /// initiation is not needed any more.
    pub(super) fn confirm(&mut self, device: &mut Device, now: Now) {
        device.release_indices(self.keypairs.confirm());
        self.abort_initiation(device);
        self.handshake_completed(Role::Responder, device, now);
        self.flush(device, now);
    }
}

impl From<NoiseError> for Refusal {
    fn from(error: NoiseError) -> Self {
        match error {
            NoiseError::ZeroSecret => Self::ZeroSecret,
            NoiseError::Forged => Self::Forged,
        }
    }
}
