//! The TLS server: version 1.3 only; a certificate of our CA, or none for a host that wants to join.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::certificate::{
    CertificateAuthority, CertificateError, PrivateKey, SERVER_LIFE, provider,
};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate cannot be signed.
    #[error("cannot sign the server's certificate")]
    Sign(#[from] CertificateError),
    /// The server's certificate or key cannot be read back.
    #[error("the server's certificate is malformed")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS does not take the CA, the certificate or the key.
    #[error("TLS does not take the certificate")]
    Tls(#[from] rustls::Error),
    /// TLS does not take the CA to check clients with.
    #[error("TLS does not take the CA")]
    Verifier(#[from] VerifierBuilderError),
}

/// The server's own certificate, replaced while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerCertificate(Arc<Mutex<Option<Present>>>);

#[derive(Debug)]
struct Present {
    key: Arc<CertifiedKey>,
    addresses: BTreeSet<IpAddr>,
    not_after: Timestamp,
}

impl ServerCertificate {
    /// Signs a certificate for these addresses, with a new key, and shows it from now on.
    pub(super) fn renew(
        &self,
        authority: &CertificateAuthority,
        addresses: BTreeSet<IpAddr>,
        now: Timestamp,
    ) -> Result<(), TlsError> {
        let private = PrivateKey::generate().map_err(CertificateError::from)?;
        let signed = authority.sign_server(addresses.iter().copied(), &private, now)?;
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes());
        // The CA goes along: a host that joins knows it only by its fingerprint.
        let chain = vec![der(&signed.pem)?, der(authority.pem())?];
        let secret = PrivateKeyDer::from_pem_slice(private.reveal().as_bytes())?;
        let key = Arc::new(CertifiedKey::from_der(chain, secret, &provider())?);
        let present = Present {
            key,
            addresses,
            not_after: signed.not_after,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(present);

        Ok(())
    }

    /// Returns whether the certificate names these addresses and a third of its life is left.
    pub(super) fn is_right(&self, addresses: &BTreeSet<IpAddr>, now: Timestamp) -> bool {
        let third = SERVER_LIFE.as_secs() as i64 / 3;
        let present = self.0.lock().unwrap_or_else(PoisonError::into_inner);

        present.as_ref().is_some_and(|present| {
            let left = present
                .not_after
                .as_second()
                .saturating_sub(now.as_second());
            present.addresses == *addresses && left > third
        })
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let present = self.0.lock().unwrap_or_else(PoisonError::into_inner);

        present.as_ref().map(|present| Arc::clone(&present.key))
    }
}

/// Returns the TLS server of a CA.
pub(super) fn config(
    authority: &CertificateAuthority,
    certificate: ServerCertificate,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection shows its certificate anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;

    Ok(Arc::new(config))
}
