//! One-time tokens that admit a host to the mesh.
//!
//! `meshd1.ID.SECRET.FINGERPRINT`: ID and FINGERPRINT in lower-case hex, SECRET in unpadded
//! URL-safe base64 (RFC 4648 §5). The fingerprint is the SHA-256 of the mesh's CA certificate, so
//! that the host knows whom it gives the secret to. The server keeps only the secret's SHA-256: the
//! secret has 256 random bits, which no guessing shortens, so a slow hash would add nothing.

use std::{str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use model::NodeName;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longest time a token may live: 30 days.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Length of every token's text.
const TEXT_LENGTH: usize = PREFIX.len() + 16 + 1 + 43 + 1 + 64;

const PREFIX: &str = "meshd1.";

/// A token: whoever has it joins. Has neither `Debug` nor `Display`.
pub struct Token {
    id: String,
    secret: Zeroizing<[u8; 32]>,
    fingerprint: [u8; 32],
}

/// What an administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The only name that may join with it; `None` admits any name that is not in use.
    pub node: Option<NodeName>,
    /// How long it may be used; at most 30 days.
    pub ttl: Duration,
    /// Admit a name that is in use: the certificates and claims of the present holder end.
    pub replace: bool,
}

/// A token as the server knows it: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// What it is called.
    pub id: String,
    /// The only name that may join with it.
    pub node: Option<NodeName>,
    /// Whether it admits a name that is in use.
    pub replace: bool,
    /// When it ends.
    pub expires: jiff::Timestamp,
    /// Who joined with it.
    pub used_by: Option<NodeName>,
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token (meshd1.ID.SECRET.FINGERPRINT); was all of it copied?")]
pub struct TokenError;

impl Token {
    /// Makes a token for the mesh of this CA.
    pub(crate) fn generate(fingerprint: [u8; 32]) -> Result<Self, ring::error::Unspecified> {
        let random = SystemRandom::new();
        let mut id = [0; 8];
        random.fill(&mut id)?;
        let mut secret = Zeroizing::new([0; 32]);
        random.fill(secret.as_mut())?;

        Ok(Self {
            id: hex::encode(id),
            secret,
            fingerprint,
        })
    }

    /// Returns its public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the SHA-256 of the mesh's CA certificate.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Returns the text that the host is given. It is a secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LENGTH));
        text.push_str(PREFIX);
        text.push_str(&self.id);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(self.secret.as_ref(), &mut text);
        text.push('.');
        text.push_str(&hex::encode(self.fingerprint));

        text
    }

    /// Returns what the server keeps of the secret.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_ref()).into()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() != TEXT_LENGTH {
            return Err(TokenError);
        }
        let mut parts = text.strip_prefix(PREFIX).ok_or(TokenError)?.split('.');
        let mut part = || parts.next().ok_or(TokenError);
        let (id, secret, fingerprint) = (part()?, part()?, part()?);
        let mut id_bytes = [0_u8; 8];
        hex::decode_to_slice(id, &mut id_bytes).map_err(|_| TokenError)?;
        let mut token = Self {
            id: hex::encode(id_bytes),
            secret: Zeroizing::new([0; 32]),
            fingerprint: [0; 32],
        };
        let decoded = URL_SAFE_NO_PAD.decode_slice(secret, token.secret.as_mut());
        let whole = decoded.is_ok_and(|length| length == 32) && parts.next().is_none();
        hex::decode_to_slice(fingerprint, &mut token.fingerprint).map_err(|_| TokenError)?;

        if whole { Ok(token) } else { Err(TokenError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let token = Token::generate([7; 32]).unwrap();

        let read: Token = token.reveal().parse().unwrap();

        assert_eq!(
            (read.id(), read.hash(), *read.fingerprint()),
            (token.id(), token.hash(), [7; 32])
        );
    }

    #[test]
    fn a_cut_or_spoilt_token_is_refused() {
        let text = Token::generate([7; 32]).unwrap().reveal();

        for cut in 0..text.len() {
            assert!(text[..cut].parse::<Token>().is_err(), "{cut}");
            let mut spoilt = text.to_string();
            spoilt.replace_range(cut..=cut, "!");
            assert!(spoilt.parse::<Token>().is_err(), "{cut}");
        }
    }

    #[test]
    fn two_tokens_are_never_alike() {
        let [a, b] = [
            Token::generate([7; 32]).unwrap(),
            Token::generate([7; 32]).unwrap(),
        ];

        assert_ne!(a.id(), b.id());
        assert_ne!(a.hash(), b.hash());
    }
}
