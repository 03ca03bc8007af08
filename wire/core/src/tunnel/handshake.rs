//! Handshake messages that arrive: who may cost us a handshake, and to which peer they belong.
use crate::message::{CookieReply, Initiation, Response, claimed_sender};
use crate::noise::{Claim, PROLOGUE};
use crate::tunnel::{HandshakeOutcome, Link, Refusal, Tunnel};
use crate::{Endpoint, Malformed, Message, Now};

impl Tunnel {
    /// Takes an initiation, a response or a cookie reply.
    pub fn handle_handshake(
        &mut self,
        source: Endpoint,
        datagram: &[u8],
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        if self.link == Link::Down {
            return Err(Refusal::Down);
        }
        match Message::classify(datagram)? {
            Message::Initiation => match self.admit(source, datagram, now)? {
                Admission::Granted => self.take_initiation(source, datagram, now),
                Admission::CookieSent => Ok(HandshakeOutcome::CookieSent),
            },
            Message::Response => match self.admit(source, datagram, now)? {
                Admission::Granted => self.take_response(source, datagram, now),
                Admission::CookieSent => Ok(HandshakeOutcome::CookieSent),
            },
            Message::CookieReply => self.take_cookie(datagram, now),
            Message::Data { .. } => Err(Refusal::Data),
        }
    }

    /// Checks the macs: the first always, the second under load.
    fn admit(&mut self, source: Endpoint, datagram: &[u8], now: Now) -> Result<Admission, Refusal> {
        let device = &mut self.device;
        let checker = device.checker.as_mut().ok_or(Refusal::NoPrivateKey)?;
        if !checker.mac1_is_right(datagram) {
            return Err(Refusal::Mac1);
        }
        if !self.gauge.record(now.instant) {
            return Ok(Admission::Granted);
        }
        if checker.mac2_is_right(datagram, source.remote, &mut device.rng, now) {
            return if self.limiter.allow(source.remote.ip(), now.instant) {
                Ok(Admission::Granted)
            } else {
                Err(Refusal::RateLimited)
            };
        }
        let sender = claimed_sender(datagram).ok_or(wrong_length(datagram))?;
        let reply = checker.reply(datagram, sender, source.remote, &mut device.rng, now);
        device.transmit(None, source, reply);
        Ok(Admission::CookieSent)
    }

    fn take_initiation(
        &mut self,
        source: Endpoint,
        datagram: &[u8],
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        let initiation = Initiation::decode(datagram).ok_or(wrong_length(datagram))?;
        let identity = self.device.identity.as_ref().ok_or(Refusal::NoPrivateKey)?;
        let claim = Claim::read(
            &identity.secret,
            &identity.public,
            PROLOGUE,
            initiation.noise,
        )?;
        let id = self
            .roster
            .find(claim.remote())
            .ok_or(Refusal::UnknownPeer)?;
        self.with_peer(id, |peer, device| {
            peer.answer(initiation.sender, claim, source, device, now)?;
            peer.count_received(datagram.len());
            Ok(HandshakeOutcome::Responded(id))
        })
        .unwrap_or(Err(Refusal::UnknownPeer))
    }

    fn take_response(
        &mut self,
        source: Endpoint,
        datagram: &[u8],
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        let response = Response::decode(datagram).ok_or(wrong_length(datagram))?;
        let id = self
            .device
            .holder(response.receiver)
            .ok_or(Refusal::UnknownIndex)?;
        self.with_peer(id, |peer, device| {
            peer.take_response(&response, source, device, now)?;
            peer.count_received(datagram.len());
            Ok(HandshakeOutcome::Completed(id))
        })
        .unwrap_or(Err(Refusal::UnknownIndex))
    }

    fn take_cookie(&mut self, datagram: &[u8], now: Now) -> Result<HandshakeOutcome, Refusal> {
        let reply = CookieReply::decode(datagram).ok_or(wrong_length(datagram))?;
        let id = self
            .device
            .holder(reply.receiver)
            .ok_or(Refusal::UnknownIndex)?;
        self.with_peer(id, |peer, _| peer.take_cookie(&reply, now).map(|()| id))
            .unwrap_or(Err(Refusal::UnknownIndex))
            .map(HandshakeOutcome::CookieStored)
    }
}

/// What a message with a right `mac1` gets.
enum Admission {
    /// It is processed.
    Granted,
    /// We are under load and have sent a cookie instead.
    CookieSent,
}

fn wrong_length(datagram: &[u8]) -> Refusal {
    Refusal::Malformed(Malformed::WrongLength {
        length: datagram.len(),
    })
}
