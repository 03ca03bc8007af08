//! Handshake messages that arrive: to which peer they belong.
use crate::doorkeeper::Content;
use crate::message::{CookieReply, Response};
use crate::noise::Claim;
use crate::tunnel::{HandshakeOutcome, Link, Refusal, Tunnel, wrong_length};
use crate::{Admission, Endpoint, Entrant, Now};

impl Tunnel {
    /// Takes an initiation, a response or a cookie reply, judged by a doorkeeper of the tunnel's own.
    pub fn handle_handshake(
        &mut self,
        source: Endpoint,
        datagram: &[u8],
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        if self.link == Link::Down {
            return Err(Refusal::Down);
        }
        match self.doorkeeper.admit(source, datagram, now)? {
            Admission::Granted(entrant) => {
                let outcome = self.handle_entrant(entrant, now)?;
                if outcome.is_authentic() {
                    self.doorkeeper.remember(source.remote.ip());
                }
                Ok(outcome)
            }
            Admission::Cookie(reply) => {
                self.device.transmit(None, source, reply);
                Ok(HandshakeOutcome::CookieSent)
            }
        }
    }

    /// Takes a handshake message that a [`crate::Doorkeeper`] who follows this tunnel has let in. One that was let in
    /// under a key that has changed since does not verify.
    ///
    /// # Errors
    /// Why it is dropped; nothing has changed then.
    pub fn handle_entrant(
        &mut self,
        entrant: Entrant<'_>,
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        if self.link == Link::Down {
            return Err(Refusal::Down);
        }
        let Entrant {
            source,
            length,
            content,
        } = entrant;
        match content {
            Content::Initiation { sender, claim } => {
                self.take_initiation(source, length, sender, claim, now)
            }
            Content::Response(datagram) => self.take_response(source, datagram, now),
            Content::CookieReply(datagram) => self.take_cookie(datagram, now),
        }
    }

    fn take_initiation(
        &mut self,
        source: Endpoint,
        length: usize,
        sender: u32,
        claim: Claim<'_>,
        now: Now,
    ) -> Result<HandshakeOutcome, Refusal> {
        let id = self
            .roster
            .find(claim.remote())
            .ok_or(Refusal::UnknownPeer)?;
        self.with_peer(id, |peer, device| {
            peer.answer(sender, claim, source, device, now)?;
            peer.count_received(length);
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
