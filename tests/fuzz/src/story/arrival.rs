//! A datagram arrives at `a`, and what must be true afterwards.

use super::*;

impl Story {
    /// Hands `a` a datagram, and compares what became of it with what may.
    pub(super) fn arrive(&mut self, source: SocketAddr, datagram: &[u8]) -> Result<(), Broken> {
        self.exchange()?;
        let essence = essence(datagram);
        let is_genuine = self.genuine.contains(&essence);
        let before = self.portrait();
        let was_taken = self.receive(source, datagram)?;
        if !is_genuine || self.taken.contains(&essence) {
            promise(!was_taken && self.portrait() == before, || {
                let what = if is_genuine { "a replay" } else { "a forgery" };
                format!("{what} changed the peers' state: {}", hex::encode(datagram))
            })?;
            self.answers_no_more_than_a_cookie(source, datagram)?;
        }
        if was_taken {
            self.taken.insert(essence);
        }
        Ok(())
    }

    fn portrait(&self) -> Portrait {
        let peers = self.a.peers().map(|peer| {
            let (received, sent) = (peer.received_bytes, peer.sent_bytes);
            (
                peer.public_key,
                peer.endpoint,
                peer.last_handshake,
                received,
                sent,
            )
        });
        (peers.collect(), self.a.poll_timeout())
    }

    /// Returns whether it was taken for authentic.
    fn receive(&mut self, source: SocketAddr, datagram: &[u8]) -> Result<bool, Broken> {
        let now = self.now();
        match Message::classify(datagram) {
            Ok(Message::Data { receiver, .. }) => self.open(source, receiver, datagram),
            Ok(Message::Initiation | Message::Response | Message::CookieReply) => {
                let outcome = self.a.handle_handshake(source.into(), datagram, now);
                let (word, taken) = match outcome {
                    Ok(outcome) => {
                        let word = format!("{outcome:?}");
                        let word = word.split('(').next().unwrap_or_default().to_owned();
                        (word.clone(), word != "CookieSent")
                    }
                    Err(refusal) => (format!("refused: {refusal}"), false),
                };
                self.fate.note(word);
                Ok(taken)
            }
            Err(malformed) => {
                let word = malformed.to_string();
                let word: String = word.chars().filter(|c| !c.is_ascii_digit()).collect();
                self.fate.note(format!("no message: {word}"));
                Ok(false)
            }
        }
    }

    fn open(&mut self, source: SocketAddr, receiver: u32, datagram: &[u8]) -> Result<bool, Broken> {
        let now = self.now();
        let Some(session) = self.a.session(receiver, now) else {
            self.fate.note("data: no such session");
            return Ok(false);
        };
        let mut buffer = datagram.to_vec();
        let opened = match session.open(&mut buffer) {
            Ok(opened) => opened,
            Err(error) => {
                self.fate.note(format!("data: {error}"));
                return Ok(false);
            }
        };
        let payload = match &opened.payload {
            Payload::Packet { range, .. } => buffer[range.clone()].to_vec(),
            Payload::Keepalive | Payload::Bad(_) => Vec::new(),
        };
        let mut verdicts = Vec::new();
        self.a
            .received(&session, source.into(), &[opened], &mut verdicts, now);
        let [verdict] = verdicts[..] else {
            return Err(Broken(format!(
                "one packet got {} verdicts",
                verdicts.len()
            )));
        };
        self.fate.note(format!("data: {verdict:?}"));
        if verdict == Verdict::Deliver {
            self.check_delivered(payload)?;
        }
        Ok(!matches!(verdict, Verdict::Replayed | Verdict::SessionGone))
    }

    fn check_delivered(&mut self, packet: Vec<u8>) -> Result<(), Broken> {
        promise(self.sealed.get(&packet) == Some(&Sealed::Own), || {
            format!(
                "delivered what b did not send from its own address: {}",
                hex::encode(&packet)
            )
        })?;
        let text = hex::encode(&packet);
        promise(self.delivered.insert(packet), || {
            format!("delivered twice: {text}")
        })
    }

    /// Whoever is no peer gets no more bytes than it sent, and only a cookie, where it sent from.
    fn answers_no_more_than_a_cookie(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), Broken> {
        let Some(answer) = self.a.poll_transmit() else {
            return Ok(());
        };
        let is_cookie = Message::classify(&answer.datagram) == Ok(Message::CookieReply);
        let is_there = answer.destination.remote == source && answer.peer.is_none();
        promise(
            is_cookie && is_there && answer.datagram.len() <= datagram.len(),
            || {
                format!(
                    "a stranger's {} bytes got the answer {answer:?}",
                    datagram.len()
                )
            },
        )?;
        promise(self.a.poll_transmit().is_none(), || {
            "a stranger got two answers".into()
        })
    }

    /// `a` has a packet for one of its peers.
    pub(super) fn ask(&mut self, number: u64) -> Result<(), Broken> {
        let now = self.now();
        let to = if number % 2 == 1 { C } else { B };
        let Some(peer) = self.a.route(inner(to)) else {
            self.fate.note("ask: no route");
            return Ok(());
        };
        let size = 20 + number as usize % 1400;
        let word = match self.a.send(peer, 1, (size + DATA_OVERHEAD) as u64, now) {
            Outbound::Seal(mut batch) => {
                let mut datagram = vec![0; size + DATA_OVERHEAD];
                let sealed = batch.seal(&mut datagram);
                promise(sealed.is_ok(), || {
                    format!("a granted packet is not sealed: {sealed:?}")
                })?;
                if batch.endpoint().remote == outer(B) && !self.is_deaf {
                    receive_quietly(&mut self.b, &datagram, now);
                }
                "ask: sealed"
            }
            Outbound::Queue => {
                self.a.queue(peer, &vec![0x45; size]);
                "ask: queued"
            }
            Outbound::Drop(DropReason::NoEndpoint) => "ask: no endpoint",
            Outbound::Drop(DropReason::Down) => "ask: down",
            Outbound::Drop(DropReason::NoPeer) => "ask: no peer",
            Outbound::Drop(DropReason::NoPrivateKey) => "ask: no private key",
        };
        self.fate.note(word);
        Ok(())
    }
}
