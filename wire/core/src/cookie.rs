//! The two MACs at the end of a handshake message, and cookies (§5.4.4 and §5.4.7 of the paper).
//!
//! `mac1` proves that the sender knows whom it writes to. Under load we also want `mac2`: proof
//! that it receives at the address it writes from, by means of a cookie that we hand out and
//! forget.
use std::net::SocketAddr;
use std::time::Instant;

use chacha20poly1305::aead::{Aead as _, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::hash::{Secret, hash, mac};
use crate::limit::{COOKIE_AGE, COOKIE_SECRET_AGE};
use crate::message::CookieReply;
use crate::{Now, PublicKey};

/// Length of `mac1`, of `mac2` and of a cookie.
const MAC: usize = 16;

/// Signs our handshake messages to one peer.
pub(crate) struct Signer {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    cookie: Option<(Zeroizing<[u8; MAC]>, Instant)>,
    /// `mac1` of the last message, until a cookie has come for it.
    unanswered: Option<[u8; MAC]>,
}

impl Signer {
    pub(crate) fn new(peer: &PublicKey) -> Self {
        Self {
            mac1_key: hash(&[b"mac1----", peer.as_bytes()]),
            cookie_key: hash(&[b"cookie--", peer.as_bytes()]),
            cookie: None,
            unanswered: None,
        }
    }

    /// Fills the last 32 bytes of a message.
    pub(crate) fn sign(&mut self, message: &mut [u8], now: Now) {
        let at = message.len() - 2 * MAC;
        let (body, macs) = message.split_at_mut(at);
        let mac1 = mac(&self.mac1_key, &[body]);
        let mac2 = match &self.cookie {
            Some((cookie, received)) if now.instant < *received + COOKIE_AGE => {
                mac(cookie.as_slice(), &[body, &mac1])
            }
            Some(_) | None => [0; MAC],
        };
        macs[..MAC].copy_from_slice(&mac1);
        macs[MAC..].copy_from_slice(&mac2);
        self.unanswered = Some(mac1);
    }

    /// Keeps the cookie of a reply to our last message; false if it is a forgery.
    pub(crate) fn accept(&mut self, reply: &CookieReply<'_>, now: Now) -> bool {
        let Some(mac1) = &self.unanswered else {
            return false;
        };
        let aead = XChaCha20Poly1305::new(&self.cookie_key.into());
        let payload = Payload {
            msg: reply.sealed,
            aad: mac1,
        };
        let Ok(plain) = aead.decrypt(XNonce::from_slice(reply.nonce), payload) else {
            return false;
        };
        let Ok(cookie) = <[u8; MAC]>::try_from(Zeroizing::new(plain).as_slice()) else {
            return false;
        };
        self.cookie = Some((Zeroizing::new(cookie), now.instant));
        self.unanswered = None;
        true
    }
}

/// Checks handshake messages sent to us.
pub(crate) struct Checker {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    secret: Option<(Secret, Instant)>,
}

impl Checker {
    pub(crate) fn new(ours: &PublicKey) -> Self {
        Self {
            mac1_key: hash(&[b"mac1----", ours.as_bytes()]),
            cookie_key: hash(&[b"cookie--", ours.as_bytes()]),
            secret: None,
        }
    }

    /// Whether the sender knows our public key.
    pub(crate) fn mac1_is_right(&self, message: &[u8]) -> bool {
        let (body, mac1, _) = split(message);
        mac(&self.mac1_key, &[body]).ct_eq(mac1).into()
    }

    /// Whether the sender has our cookie for its address and port.
    pub(crate) fn mac2_is_right(
        &mut self,
        message: &[u8],
        source: SocketAddr,
        rng: &mut ChaCha20Rng,
        now: Now,
    ) -> bool {
        let (body, mac1, mac2) = split(message);
        if mac2 == [0; MAC] {
            return false;
        }
        let cookie = self.cookie(source, rng, now);
        mac(cookie.as_slice(), &[body, mac1]).ct_eq(mac2).into()
    }

    /// The cookie reply to a message.
    pub(crate) fn reply(
        &mut self,
        message: &[u8],
        receiver: u32,
        source: SocketAddr,
        rng: &mut ChaCha20Rng,
        now: Now,
    ) -> Vec<u8> {
        let (_, mac1, _) = split(message);
        let cookie = self.cookie(source, rng, now);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let sealed = XChaCha20Poly1305::new(&self.cookie_key.into())
            .encrypt(
                &nonce.into(),
                Payload {
                    msg: cookie.as_slice(),
                    aad: mac1,
                },
            )
            .expect("16 bytes are not too long for the cipher");
        CookieReply {
            receiver,
            nonce: &nonce,
            sealed: &sealed,
        }
        .encode()
    }

    fn cookie(
        &mut self,
        source: SocketAddr,
        rng: &mut ChaCha20Rng,
        now: Now,
    ) -> Zeroizing<[u8; MAC]> {
        let port = source.port().to_be_bytes();
        let secret = self.secret(rng, now);
        Zeroizing::new(match source.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => mac(secret, &[&ip.octets(), &port]),
            std::net::IpAddr::V6(ip) => mac(secret, &[&ip.octets(), &port]),
        })
    }

    fn secret(&mut self, rng: &mut ChaCha20Rng, now: Now) -> &[u8] {
        let fresh =
            matches!(&self.secret, Some((_, born)) if now.instant < *born + COOKIE_SECRET_AGE);
        if !fresh {
            self.secret = None;
        }
        let (secret, _) = self.secret.get_or_insert_with(|| {
            let mut secret = Zeroizing::new([0; 32]);
            rng.fill_bytes(secret.as_mut_slice());
            (secret, now.instant)
        });
        secret.as_slice()
    }
}

fn split(message: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (rest, mac2) = message.split_at(message.len() - MAC);
    let (body, mac1) = rest.split_at(rest.len() - MAC);
    (body, mac1, mac2)
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;
    use crate::test_clock::at;

    const KEY: PublicKey = PublicKey([9; 32]);

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A signed message, and the reply to it, at the given second.
    fn exchange(checker: &mut Checker, signer: &mut Signer, from: &str, second: u64) -> Vec<u8> {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let mut message = vec![7; 148];
        signer.sign(&mut message, at(second));
        let reply = checker.reply(&message, 5, source(from), &mut rng, at(second));
        assert!(signer.accept(&CookieReply::decode(&reply).unwrap(), at(second)));
        signer.sign(&mut message, at(second));
        message
    }

    /// Appendix A.3.1 of draft-irtf-cfrg-xchacha-03.
    #[test]
    fn the_cookie_cipher_agrees_with_the_xchacha_draft() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let aad = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
        let msg = b"Ladies and Gentlemen of the class of '99: If I could offer you only one \
            tip for the future, sunscreen would be it.";
        let sealed = XChaCha20Poly1305::new(&key.into())
            .encrypt(&nonce.into(), Payload { msg, aad: &aad })
            .unwrap();
        assert_eq!(
            hex::encode(&sealed[..16]),
            "bd6d179d3e83d43b9576579493c0e939"
        );
        assert_eq!(
            hex::encode(&sealed[114..]),
            "c0875924c1c7987947deafd8780acf49"
        );
    }

    #[test]
    fn only_who_knows_the_responders_key_makes_mac1() {
        let checker = Checker::new(&KEY);
        let mut message = vec![7; 148];
        Signer::new(&KEY).sign(&mut message, at(0));
        assert!(checker.mac1_is_right(&message));
        Signer::new(&PublicKey([8; 32])).sign(&mut message, at(0));
        assert!(!checker.mac1_is_right(&message));
    }

    #[test]
    fn a_cookie_serves_only_the_address_and_port_it_was_sent_to() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (mut checker, mut signer) = (Checker::new(&KEY), Signer::new(&KEY));
        let message = exchange(&mut checker, &mut signer, "192.0.2.1:1", 0);
        let mut right = |from| checker.mac2_is_right(&message, source(from), &mut rng, at(0));
        assert!(right("192.0.2.1:1"));
        assert!(right("[::ffff:192.0.2.1]:1"));
        assert!(!right("192.0.2.1:2"));
        assert!(!right("192.0.2.2:1"));
        assert!(!right("[2001:db8::1]:1"));
    }

    #[test]
    fn a_cookie_dies_with_its_secret_after_120_seconds() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (mut checker, mut signer) = (Checker::new(&KEY), Signer::new(&KEY));
        let from = "192.0.2.1:1";
        let message = exchange(&mut checker, &mut signer, from, 0);
        assert!(checker.mac2_is_right(&message, source(from), &mut rng, at(119)));
        assert!(!checker.mac2_is_right(&message, source(from), &mut rng, at(120)));
    }

    #[test]
    fn the_initiator_stops_using_a_cookie_after_115_seconds() {
        let (mut checker, mut signer) = (Checker::new(&KEY), Signer::new(&KEY));
        let mut message = exchange(&mut checker, &mut signer, "192.0.2.1:1", 0);
        signer.sign(&mut message, at(114));
        assert_ne!(message[132..], [0; 16]);
        signer.sign(&mut message, at(115));
        assert_eq!(message[132..], [0; 16]);
    }

    #[test]
    fn a_reply_to_another_message_or_a_second_reply_is_ignored() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (mut checker, mut signer) = (Checker::new(&KEY), Signer::new(&KEY));
        let mut message = vec![7; 148];
        signer.sign(&mut message, at(0));
        let reply = checker.reply(&message, 5, source("192.0.2.1:1"), &mut rng, at(0));
        let mut other = vec![8; 148];
        signer.sign(&mut other, at(0));
        assert!(!signer.accept(&CookieReply::decode(&reply).unwrap(), at(0)));
        signer.sign(&mut message, at(0));
        assert!(signer.accept(&CookieReply::decode(&reply).unwrap(), at(0)));
        assert!(!signer.accept(&CookieReply::decode(&reply).unwrap(), at(0)));
    }
}
