//! How a host becomes a member: it checks the server by the token's fingerprint, then shows the token.

use std::sync::Arc;

use jiff::Timestamp;
use model::NodeName;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    Credential, CredentialError, StoreError, Token,
    certificate::{PrivateKey, provider},
    client::{Connector, Target},
    message::{MESSAGE_MAX, proto},
};

/// What a host asks for.
pub struct Enrolment<'a> {
    /// The server's URL, as in `https://192.0.2.1:7443`.
    pub server: &'a str,
    /// The token.
    pub token: &'a Token,
    /// The wished name; `None` takes the one that the token names.
    pub name: Option<NodeName>,
    /// The host's private key in PEM form; from [`Enrolment::generate_key`].
    ///
    /// Whoever repeats an enrolment that broke off shows the same key: a used token is answered
    /// again to the key that used it.
    pub key: &'a Zeroizing<String>,
}

/// Why a host did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The private key cannot be made or read.
    #[error("cannot use the host's private key: {0}")]
    Key(String),
    /// The URL cannot be used.
    #[error("{0}")]
    Url(String),
    /// Nobody answers, or not with TLS 1.3.
    #[error("cannot reach {server}: {reason}")]
    Unreachable {
        /// The server.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The server belongs to another mesh than the token.
    #[error(
        "the server at {0} is not of the mesh that the token is for: its CA has another fingerprint"
    )]
    WrongServer(String),
    /// The clocks of the two hosts differ by more than the certificates bear.
    #[error("the clocks of this host and of the server differ too much: {0}")]
    ClockSkew(String),
    /// The server refused: the token is expired, used or unknown, or the name is taken.
    #[error("the server refused: {0}")]
    Refused(StoreError),
    /// The server's answer cannot be used.
    #[error("the server's answer cannot be used")]
    Answer(#[from] CredentialError),
}

impl EnrolError {
    /// Returns whether the token admits any name, and none was wished.
    pub fn needs_name(&self) -> bool {
        matches!(self, Self::Refused(StoreError::Invalid(error)) if error.field == NAME_FIELD)
    }
}

impl Enrolment<'_> {
    /// Makes a private key, in PEM form. It never leaves the host.
    ///
    /// # Errors
    ///
    /// [`EnrolError::Key`] where the system has no randomness.
    pub fn generate_key() -> Result<Zeroizing<String>, EnrolError> {
        let key = PrivateKey::generate().map_err(|error| EnrolError::Key(error.to_string()))?;

        Ok(key.reveal())
    }

    /// Returns whether a text is a private key as [`generate_key`](Self::generate_key) makes it.
    pub fn is_key(text: &str) -> bool {
        PrivateKey::parse(text).is_ok()
    }
}

/// Asks the server to make this host a member, and returns its credential.
///
/// # Errors
///
/// [`EnrolError`]; nothing was sent to a server of another mesh.
pub async fn enrol(enrolment: Enrolment<'_>, now: Timestamp) -> Result<Credential, EnrolError> {
    let key = PrivateKey::parse(enrolment.key)
        .and_then(|key| key.signing_request())
        .map_err(|error| EnrolError::Key(error.to_string()))?;
    let target = Target::parse(enrolment.server).map_err(EnrolError::Url)?;
    let reached = target.url();
    let channel = Connector::new(vec![target], pinned(*enrolment.token.fingerprint()))
        .channel()
        .map_err(EnrolError::Url)?;
    let request = proto::EnrolRequest {
        token: enrolment.token.reveal().to_string(),
        name: enrolment.name.map(String::from).unwrap_or_default(),
        signing_request: key.into(),
    };
    let reply = proto::join_client::JoinClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .enrol(request)
        .await
        .map_err(|status| refusal(enrolment.server, status.into()))?
        .into_inner();

    let mut servers = vec![reached.clone()];
    servers.extend(reply.servers.into_iter().filter(|url| *url != reached));
    let credential = Credential::new(servers, reply.ca, reply.certificate, enrolment.key.clone())?;
    check_clock(&credential, reply.time, now)?;

    Ok(credential)
}

fn refusal(server: &str, error: StoreError) -> EnrolError {
    let StoreError::Unavailable(reason) = error else {
        return EnrolError::Refused(error);
    };
    if reason.contains(WRONG_MESH) {
        return EnrolError::WrongServer(server.to_owned());
    }
    if reason.contains("certificate expired") || reason.contains("not valid yet") {
        return EnrolError::ClockSkew(reason);
    }

    EnrolError::Unreachable {
        server: server.to_owned(),
        reason,
    }
}

fn check_clock(credential: &Credential, theirs: i64, now: Timestamp) -> Result<(), EnrolError> {
    let (from, until) = credential.validity();
    if from <= now && now < until {
        return Ok(());
    }
    let seconds = now.as_second().saturating_sub(theirs);

    Err(EnrolError::ClockSkew(format!(
        "this host's clock is {seconds} s ahead of the server's"
    )))
}

/// The field that the server names when a token needs a name beside it.
pub(crate) const NAME_FIELD: &str = "nameNeeded";

const WRONG_MESH: &str = "no certificate in the chain has the fingerprint that the token names";

#[cfg(test)]
impl crate::server::tests::Served {
    /// Returns a client of the store that shows no certificate.
    pub(crate) fn stranger(
        &self,
        token: &Token,
    ) -> proto::store_client::StoreClient<tonic::transport::Channel> {
        let target = Target::parse(&self.url()).unwrap();
        let connector = Connector::new(vec![target], pinned(*token.fingerprint()));

        proto::store_client::StoreClient::new(connector.channel().unwrap())
    }
}

/// Returns a TLS client that takes only the CA of this fingerprint, and shows no certificate.
fn pinned(fingerprint: [u8; 32]) -> Arc<ClientConfig> {
    let provider = provider();
    let verifier = PinnedAuthority {
        fingerprint,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has the suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];

    Arc::new(config)
}

/// Takes a server whose chain leads to the CA of one fingerprint; all else is checked as usual.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let named = |der: &&CertificateDer<'_>| Sha256::digest(der)[..] == self.fingerprint;
        let authority = intermediates
            .iter()
            .find(named)
            .ok_or_else(|| rustls::Error::General(WRONG_MESH.to_owned()))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|_| rustls::Error::from(TlsCertificateError::UnknownIssuer))?;

        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
