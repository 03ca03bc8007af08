//! `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`: the two messages of a handshake (§5.4.2 and §5.4.3 of
//! the paper, <https://noiseprotocol.org/noise.html>).
//!
//! ```text
//! ⇐ s                  the initiator knows the responder's static key beforehand
//! → e, es, s, ss       32 ephemeral │ 48 sealed static │ sealed payload (a timestamp)
//! ← e, ee, se, psk     32 ephemeral │ sealed payload (empty)
//! ```
//!
//! Prologue and payloads are arguments. A message that cannot be read changes nothing.
use subtle::ConstantTimeEq;
use thiserror::Error;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::aead::{Aead, Ring, TAG};
use crate::hash::{Secret, derive, hash};
use crate::{PresharedKey, PublicKey};

/// What WireGuard says before the first message.
pub(crate) const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";

/// Why a message could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NoiseError {
    /// A public key of low order; the shared secret would be zero.
    #[error("shared secret is zero")]
    ZeroSecret,
    /// A part is too short, or did not decrypt.
    #[error("authentication failed")]
    Forged,
}

/// The two keys of a finished handshake.
pub(crate) struct SessionKeys {
    pub(crate) send: Secret,
    pub(crate) receive: Secret,
}

/// The shared secret of two keys; refuses zero (§6.1 of RFC 7748).
pub(crate) fn shared_secret(ours: &StaticSecret, theirs: &PublicKey) -> Result<Secret, NoiseError> {
    let shared = ours.diffie_hellman(&x25519_dalek::PublicKey::from(theirs.0));
    let secret = Zeroizing::new(shared.to_bytes());
    if bool::from(secret.ct_eq(&[0; 32])) {
        Err(NoiseError::ZeroSecret)
    } else {
        Ok(secret)
    }
}

/// An initiator that waits for the response.
pub(crate) struct Initiator {
    transcript: Transcript,
    ephemeral: StaticSecret,
}

/// The keys that an initiation rests upon: ours and the responder's.
pub(crate) struct Statics<'a> {
    pub(crate) public: &'a PublicKey,
    pub(crate) remote: &'a PublicKey,
    /// Their shared secret.
    pub(crate) shared: &'a Secret,
}

impl Initiator {
    /// Writes the first message.
    pub(crate) fn begin(
        statics: &Statics<'_>,
        ephemeral: StaticSecret,
        prologue: &[u8],
        payload: &[u8],
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let mut transcript = Transcript::new(prologue, statics.remote);
        let mut message = transcript.mix_ephemeral(&ephemeral);
        let key = transcript.mix_key(&*shared_secret(&ephemeral, statics.remote)?);
        transcript.encrypt(&key, statics.public.as_bytes(), &mut message)?;
        let key = transcript.mix_key(statics.shared.as_slice());
        transcript.encrypt(&key, payload, &mut message)?;
        Ok((
            Self {
                transcript,
                ephemeral,
            },
            message,
        ))
    }

    /// Reads the second message and gives its payload and the session's keys. Nothing is spent on
    /// a forged one: the true one may still come.
    pub(crate) fn finish(
        &self,
        secret: &StaticSecret,
        psk: &PresharedKey,
        message: &[u8],
    ) -> Result<(Vec<u8>, SessionKeys), NoiseError> {
        let (remote, sealed) = message.split_first_chunk().ok_or(NoiseError::Forged)?;
        let remote = PublicKey(*remote);
        let mut transcript = self.transcript.clone();
        transcript.read_ephemeral(&remote);
        transcript.mix_key(&*shared_secret(&self.ephemeral, &remote)?);
        transcript.mix_key(&*shared_secret(secret, &remote)?);
        let key = transcript.mix_psk(psk);
        let payload = transcript.decrypt(&key, sealed)?;
        let [send, receive] = transcript.split();
        Ok((payload, SessionKeys { send, receive }))
    }
}

/// A responder that has read who writes, but not yet believes it.
pub(crate) struct Claim<'a> {
    transcript: Transcript,
    ephemeral: PublicKey,
    remote: PublicKey,
    sealed_payload: &'a [u8],
}

/// A responder that has read the first message.
pub(crate) struct Responder {
    transcript: Transcript,
    remote_ephemeral: PublicKey,
    remote: PublicKey,
}

impl<'a> Claim<'a> {
    /// Reads the first message as far as the initiator's static key.
    pub(crate) fn read(
        secret: &StaticSecret,
        public: &PublicKey,
        prologue: &[u8],
        message: &'a [u8],
    ) -> Result<Self, NoiseError> {
        let (ephemeral, rest) = message.split_first_chunk().ok_or(NoiseError::Forged)?;
        let (sealed_static, sealed_payload) = rest
            .split_first_chunk::<{ 32 + TAG }>()
            .ok_or(NoiseError::Forged)?;
        let ephemeral = PublicKey(*ephemeral);
        let mut transcript = Transcript::new(prologue, public);
        transcript.read_ephemeral(&ephemeral);
        let key = transcript.mix_key(&*shared_secret(secret, &ephemeral)?);
        let remote = transcript.decrypt(&key, sealed_static)?;
        let remote = PublicKey(
            remote
                .try_into()
                .map_err(|_wrong_length| NoiseError::Forged)?,
        );
        Ok(Self {
            transcript,
            ephemeral,
            remote,
            sealed_payload,
        })
    }

    /// Who the initiator says it is.
    pub(crate) const fn remote(&self) -> &PublicKey {
        &self.remote
    }

    /// Reads the rest: the initiator has the claimed key. `shared` is the secret of our static key
    /// and that one.
    pub(crate) fn verify(mut self, shared: &Secret) -> Result<(Responder, Vec<u8>), NoiseError> {
        let key = self.transcript.mix_key(shared.as_slice());
        let payload = self.transcript.decrypt(&key, self.sealed_payload)?;
        let Self {
            transcript,
            ephemeral: remote_ephemeral,
            remote,
            ..
        } = self;
        Ok((
            Responder {
                transcript,
                remote_ephemeral,
                remote,
            },
            payload,
        ))
    }
}

impl Responder {
    /// Writes the second message.
    pub(crate) fn respond(
        mut self,
        ephemeral: &StaticSecret,
        psk: &PresharedKey,
        payload: &[u8],
    ) -> Result<(Vec<u8>, SessionKeys), NoiseError> {
        let transcript = &mut self.transcript;
        let mut message = transcript.mix_ephemeral(ephemeral);
        transcript.mix_key(&*shared_secret(ephemeral, &self.remote_ephemeral)?);
        transcript.mix_key(&*shared_secret(ephemeral, &self.remote)?);
        let key = transcript.mix_psk(psk);
        transcript.encrypt(&key, payload, &mut message)?;
        let [receive, send] = self.transcript.split();
        Ok((message, SessionKeys { send, receive }))
    }
}

/// Everything said so far: a hash of it, and a key made of all shared secrets.
#[derive(Clone)]
struct Transcript {
    hash: [u8; 32],
    chaining: Secret,
}

impl Transcript {
    fn new(prologue: &[u8], responder: &PublicKey) -> Self {
        let chaining = hash(&[CONSTRUCTION]);
        let mut transcript = Self {
            hash: hash(&[&chaining, prologue]),
            chaining: Zeroizing::new(chaining),
        };
        transcript.mix_hash(responder.as_bytes());
        transcript
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    /// `e` on the writer's side: the message begins with the ephemeral public key.
    fn mix_ephemeral(&mut self, ephemeral: &StaticSecret) -> Vec<u8> {
        let public = PublicKey(x25519_dalek::PublicKey::from(ephemeral).to_bytes());
        self.read_ephemeral(&public);
        public.0.to_vec()
    }

    /// `e` on the reader's side. Patterns with a PSK also mix it into the key (§9.2 of Noise).
    fn read_ephemeral(&mut self, public: &PublicKey) {
        self.mix_hash(public.as_bytes());
        let [chaining] = derive(&self.chaining, public.as_bytes());
        self.chaining = chaining;
    }

    fn mix_key(&mut self, input: &[u8]) -> Secret {
        let [chaining, key] = derive(&self.chaining, input);
        self.chaining = chaining;
        key
    }

    fn mix_psk(&mut self, psk: &PresharedKey) -> Secret {
        let [chaining, spice, key] = derive(&self.chaining, psk.expose());
        self.chaining = chaining;
        self.mix_hash(spice.as_slice());
        key
    }

    fn encrypt(&mut self, key: &Secret, text: &[u8], to: &mut Vec<u8>) -> Result<(), NoiseError> {
        let start = to.len();
        to.extend_from_slice(text);
        let sealed = to.get_mut(start..).ok_or(NoiseError::Forged)?;
        let tag = Ring::new(key)
            .seal(0, &self.hash, sealed)
            .map_err(|_too_long| NoiseError::Forged)?;
        to.extend_from_slice(&tag);
        self.mix_hash(&to[start..]);
        Ok(())
    }

    fn decrypt(&mut self, key: &Secret, sealed: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut text = sealed.to_vec();
        Ring::new(key)
            .open(0, &self.hash, &mut text)
            .map_err(|_forged| NoiseError::Forged)?;
        text.truncate(sealed.len() - TAG);
        self.mix_hash(sealed);
        Ok(text)
    }

    /// The initiator's sending key, then the responder's.
    fn split(&self) -> [Secret; 2] {
        derive(&self.chaining, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    fn secret(text: &str) -> StaticSecret {
        StaticSecret::from(<[u8; 32]>::try_from(bytes(text)).unwrap())
    }

    fn public(secret: &StaticSecret) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(secret).to_bytes())
    }

    /// What WireGuard's implementations have as constants.
    #[test]
    fn the_transcript_begins_as_in_every_wireguard() {
        assert_eq!(
            hex::encode(hash(&[CONSTRUCTION])),
            "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
        );
        assert_eq!(
            hex::encode(hash(&[&hash(&[CONSTRUCTION]), PROLOGUE])),
            "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"
        );
    }

    /// The published vector of this pattern from the cacophony test suite
    /// (<https://github.com/haskell-cryptography/cacophony>), with its payloads and prologue.
    #[test]
    fn the_handshake_agrees_with_the_published_vector() {
        let initiator = secret("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
        let responder = secret("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
        let e_i = secret("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
        let e_r = secret("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
        let (i, r) = (public(&initiator), public(&responder));
        let psk = PresharedKey::new(*b"This is my Austrian perspective!");
        let prologue = b"John Galt";
        let shared = shared_secret(&initiator, &r).unwrap();
        let statics = Statics {
            public: &i,
            remote: &r,
            shared: &shared,
        };

        let (state, first) =
            Initiator::begin(&statics, e_i, prologue, b"Ludwig von Mises").unwrap();
        assert_eq!(
            hex::encode(&first),
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
             001e21de9f98ddd8e2ad57527207feb56253c9c94a9e496782ecfcb2a75fbcaf\
             1b52948cc48daefe660c62119ab50009\
             80c84831215f2441eba616548e832985464cf17e51ee93109008399a21f7e13f"
        );
        let claim = Claim::read(&responder, &r, prologue, &first).unwrap();
        assert_eq!(claim.remote(), &i);
        let (reader, payload) = claim.verify(&shared).unwrap();
        assert_eq!(payload, b"Ludwig von Mises");

        let (second, theirs) = reader.respond(&e_r, &psk, b"Murray Rothbard").unwrap();
        assert_eq!(
            hex::encode(&second),
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
             cb765f2caef0751b8f007572dab0322217755c0632f365717edbf34d33e87a"
        );
        let (payload, ours) = state.finish(&initiator, &psk, &second).unwrap();
        assert_eq!(payload, b"Murray Rothbard");

        let seal = |key: &Secret, counter, text: &[u8]| {
            let mut sealed = text.to_vec();
            let tag = Ring::new(key).seal(counter, &[], &mut sealed).unwrap();
            hex::encode([sealed.as_slice(), &tag].concat())
        };
        let transport = [
            (
                &ours.send,
                0,
                "462e20412e20486179656b",
                "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7",
            ),
            (
                &theirs.send,
                0,
                "4361726c204d656e676572",
                "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef",
            ),
            (
                &ours.send,
                1,
                "4a65616e2d426170746973746520536179",
                "6ab1467c0448cc78394494abaaf23afce0e234315d6e2624dcbfa8a21c1c4d073d",
            ),
            (
                &theirs.send,
                1,
                "457567656e2042f6686d20766f6e2042617765726b",
                "dfc346c0d2296ae6cf1acf6f12b8456a1dba228cf8d8b774aacf1c47fc53aa80ebc7a4c292",
            ),
        ];
        for (key, counter, text, sealed) in transport {
            assert_eq!(seal(key, counter, &bytes(text)), sealed);
        }
        assert_eq!((*ours.receive, *theirs.receive), (*theirs.send, *ours.send));
    }

    /// The first vector of §5.2 of RFC 7748.
    #[test]
    fn key_agreement_agrees_with_rfc_7748() {
        let scalar = secret("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
        let point = bytes("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
        let shared = shared_secret(&scalar, &PublicKey(point.try_into().unwrap())).unwrap();
        assert_eq!(
            hex::encode(shared.as_slice()),
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
        );
    }

    #[test]
    fn a_key_of_low_order_is_refused() {
        let ours = secret("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            let refused = shared_secret(&ours, &PublicKey(point)).map(|_secret| ());
            assert_eq!(refused, Err(NoiseError::ZeroSecret));
        }
    }
}
