//! The mesh's certificates: its CA, the server's, administrators' and nodes'.
//!
//! | who | name in the certificate | usage | lives |
//! |---|---|---|---|
//! | CA | `meshd CA …` | signs, path length 0 | 10 years |
//! | server | DNS [`SERVER_NAME`], and its addresses | server | 90 days |
//! | administrator | URI `meshd:admin:NAME` | client | 1 year |
//! | node | URI `meshd:node:NAME` | client | 24 hours |
//!
//! The URI alone says who a client is; the common name repeats the name for people. Clients check
//! the server's certificate against [`SERVER_NAME`], which this CA gives to servers only, so that a
//! server may change its addresses.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use model::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::{extensions::GeneralName, prelude::FromDer};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    caller::Identity,
    file::{create_private_folder, read_bounded, write_private},
};

/// The name that every server's certificate carries and every client asks for.
pub(crate) const SERVER_NAME: &str = "meshd-server";

/// How long a node's certificate is good.
pub(crate) const NODE_LIFE: Duration = Duration::from_hours(24);

/// How long an administrator's certificate is good.
pub(crate) const ADMIN_LIFE: Duration = Duration::from_hours(365 * 24);

/// How long the server's own certificate is good.
pub(crate) const SERVER_LIFE: Duration = Duration::from_hours(90 * 24);

const CA_LIFE: Duration = Duration::from_hours(3650 * 24);

/// How far a client's clock may be behind the server's.
const BACKDATED: Duration = Duration::from_mins(5);

/// Largest signing request that is read, in bytes.
const REQUEST_MAX: usize = 4096;

const FILE_MAX: u64 = 16 * 1024;

/// The CA: signs every certificate of the mesh.
pub(crate) struct CertificateAuthority {
    issuer: Issuer<'static, PrivateKey>,
    pem: String,
    fingerprint: [u8; 32],
}

/// A private key that is wiped when it goes.
pub(crate) struct PrivateKey(KeyPair);

/// What a mesh's CA has done so far, as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Nothing: the first start of the server has not come to its end.
    Blank,
    /// It has signed certificates.
    Signed,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    /// PEM.
    pub(crate) pem: String,
    /// Serial number, lower-case hex.
    pub(crate) serial: String,
    /// When it ends.
    pub(crate) not_after: Timestamp,
}

/// What a client's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) identity: Identity,
    pub(crate) serial: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

/// Why a certificate does not say who its holder is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not a certificate.
    #[error("not an X.509 certificate")]
    Malformed,
    /// It has no `meshd:ROLE:NAME`, or more than one.
    #[error("it names no role and name of this mesh")]
    NoIdentity,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file of the CA cannot be read or written.
    #[error("the CA's file {path}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// One of certificate and key is there without the other.
    #[error(
        "{present} is there, {missing} is not: restore it, or move both away to start a new mesh"
    )]
    Half {
        /// The file that is there.
        present: String,
        /// The file that is missing.
        missing: String,
    },
    /// Certificate and key are both gone, and members hold certificates that they signed.
    #[error(
        "{missing} is gone, and this mesh's members are known by it: restore it from a backup, or move the whole folder away to start a new mesh"
    )]
    Gone {
        /// The key's file.
        missing: String,
    },
    /// A file of the CA does not hold what it should.
    #[error(
        "the CA's file {path} is damaged: restore it from a backup; without it every member must join anew"
    )]
    Damaged {
        /// The file.
        path: String,
    },
    /// The signing request cannot be used.
    #[error("the signing request is malformed or not signed by its own key")]
    Request,
    /// Signing failed.
    #[error("cannot sign")]
    Sign(#[from] rcgen::Error),
    /// The system has no randomness, or a date is out of range.
    #[error("the system gave no {0}")]
    System(&'static str),
}

/// Returns the cryptography that all of our TLS uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl PrivateKey {
    /// Makes a key (ECDSA, P-256).
    pub(crate) fn generate() -> Result<Self, rcgen::Error> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads a key from its PEM form.
    pub(crate) fn parse(pem: &str) -> Result<Self, rcgen::Error> {
        Ok(Self(KeyPair::from_pem(pem)?))
    }

    /// Returns the PEM form (PKCS #8). It is a secret.
    pub(crate) fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// Returns a signing request for this key (PKCS #10, DER), which says nothing but the key.
    pub(crate) fn signing_request(&self) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();

        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl CertificateAuthority {
    /// Reads the CA in a directory. Makes one where there is none, and goes on with making it where
    /// that was cut off, as long as it has signed nothing.
    pub(crate) fn open(
        directory: &Path,
        past: Past,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let [certificate, key] = files(directory);
        match (certificate.exists(), key.exists(), past) {
            (true, true, _) => Self::load(&certificate, &key),
            (false, false, Past::Signed) => Err(CertificateError::Gone {
                missing: key.display().to_string(),
            }),
            (false, false, Past::Blank) => {
                create_private_folder(directory).map_err(CertificateError::file(directory))?;
                let private = PrivateKey::generate()?;
                write_private(&key, private.reveal().as_bytes())
                    .map_err(CertificateError::file(&key))?;
                Self::certify(&certificate, private, now)
            }
            // Killed between its two files.
            (false, true, Past::Blank) => Self::certify(&certificate, read_key(&key)?, now),
            (false, true, Past::Signed) => Err(CertificateError::half(&key, &certificate)),
            (true, false, _) => Err(CertificateError::half(&certificate, &key)),
        }
    }

    /// Returns whether a directory holds a whole CA.
    pub(crate) fn is_in(directory: &Path) -> bool {
        files(directory).iter().all(|file| file.exists())
    }

    fn load(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let pem =
            read_bounded(certificate, FILE_MAX).map_err(CertificateError::file(certificate))?;
        let private = read_key(key)?;

        Self::from_pem(pem, private).map_err(|_| CertificateError::Damaged {
            path: certificate.display().to_string(),
        })
    }

    /// Makes the certificate of a key that has signed nothing yet.
    fn certify(
        certificate: &Path,
        private: PrivateKey,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let mut params = lived(CertificateParams::default(), now, CA_LIFE)?;
        params.distinguished_name = common_name(&format!("meshd CA {}", now.as_second()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        let pem = params.self_signed(&private)?.pem();
        write_private(certificate, pem.as_bytes()).map_err(CertificateError::file(certificate))?;

        Self::from_pem(pem, private)
    }

    fn from_pem(pem: String, key: PrivateKey) -> Result<Self, CertificateError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let fingerprint = Sha256::digest(&der).into();

        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            pem,
            fingerprint,
        })
    }

    /// Returns the CA's certificate in PEM form.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the SHA-256 of the CA's certificate.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Signs a certificate for a client with the key of its signing request.
    ///
    /// Nothing else of the request is used: who it is for is decided by the caller.
    pub(crate) fn sign_request(
        &self,
        identity: &Identity,
        request: &RequestedKey,
        now: Timestamp,
    ) -> Result<Signed, CertificateError> {
        self.sign_client(identity, &request.0.public_key, now)
    }

    /// Signs a certificate for a client.
    pub(crate) fn sign_client(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<Signed, CertificateError> {
        let life = match identity {
            Identity::Admin(_) => ADMIN_LIFE,
            Identity::Node(_) => NODE_LIFE,
        };
        let mut params = lived(CertificateParams::default(), now, life)?;
        params.distinguished_name = common_name(identity.name());
        params.subject_alt_names = vec![SanType::URI(uri(identity).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];

        self.sign(params, key)
    }

    /// Signs the server's own certificate.
    pub(crate) fn sign_server(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
        key: &PrivateKey,
        now: Timestamp,
    ) -> Result<Signed, CertificateError> {
        let mut params = lived(CertificateParams::default(), now, SERVER_LIFE)?;
        params.distinguished_name = common_name(SERVER_NAME);
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into()?)];
        params
            .subject_alt_names
            .extend(addresses.into_iter().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];

        self.sign(params, key)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Signed, CertificateError> {
        let number = serial()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let not_after = params.not_after.unix_timestamp();
        params.serial_number = Some(number.clone());

        Ok(Signed {
            pem: params.signed_by(key, &self.issuer)?.pem(),
            serial: hex::encode(number.to_bytes()),
            not_after: Timestamp::from_second(not_after)
                .map_err(|_| CertificateError::System("date"))?,
        })
    }
}

/// A key that its holder has proved to have.
pub(crate) struct RequestedKey(CertificateSigningRequestParams);

impl RequestedKey {
    /// Reads a signing request (PKCS #10, DER) and checks that its own key signed it.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > REQUEST_MAX {
            return Err(CertificateError::Request);
        }
        let request = CertificateSigningRequestDer::from(der.to_vec());

        CertificateSigningRequestParams::from_der(&request)
            .map(Self)
            .map_err(|_| CertificateError::Request)
    }

    /// Returns the SHA-256 of the public key, lower-case hex.
    pub(crate) fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.0.public_key.subject_public_key_info()))
    }
}

impl Leaf {
    /// Reads a client's certificate. Whether the CA signed it is checked elsewhere, by TLS.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|_| LeafError::Malformed)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| LeafError::Malformed)?
            .ok_or(LeafError::NoIdentity)?;
        let [GeneralName::URI(uri)] = names.value.general_names[..] else {
            return Err(LeafError::NoIdentity);
        };
        let time = |at: x509_parser::time::ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|_| LeafError::Malformed)
        };

        Ok(Self {
            identity: identity(uri).ok_or(LeafError::NoIdentity)?,
            serial: hex::encode(trim(certificate.raw_serial())),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        })
    }
}

impl CertificateError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { path, source }
    }

    fn half(present: &Path, missing: &Path) -> Self {
        Self::Half {
            present: present.display().to_string(),
            missing: missing.display().to_string(),
        }
    }
}

/// The files of a CA: its certificate, and its key.
fn files(directory: &Path) -> [PathBuf; 2] {
    ["ca.crt", "ca.key"].map(|name| directory.join(name))
}

fn read_key(path: &Path) -> Result<PrivateKey, CertificateError> {
    let text = read_bounded(path, FILE_MAX).map_err(CertificateError::file(path))?;

    PrivateKey::parse(&Zeroizing::new(text)).map_err(|_| CertificateError::Damaged {
        path: path.display().to_string(),
    })
}

fn uri(identity: &Identity) -> String {
    format!("meshd:{}:{}", identity.role(), identity.name())
}

fn identity(uri: &str) -> Option<Identity> {
    let (role, name) = uri.strip_prefix("meshd:")?.split_once(':')?;
    let name: NodeName = name.parse().ok()?;

    match role {
        "admin" => Some(Identity::Admin(name.to_string())),
        "node" => Some(Identity::Node(name)),
        _ => None,
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // X.520 ends a common name at 64 characters; the whole name is in the URI.
    let short: String = name.chars().take(64).collect();
    distinguished.push(DnType::CommonName, short);

    distinguished
}

fn lived(
    mut params: CertificateParams,
    now: Timestamp,
    life: Duration,
) -> Result<CertificateParams, CertificateError> {
    let at = |offset: i64| {
        time::OffsetDateTime::from_unix_timestamp(now.as_second().saturating_add(offset))
            .map_err(|_| CertificateError::System("date"))
    };
    params.not_before = at(-(BACKDATED.as_secs() as i64))?;
    params.not_after = at(life.as_secs() as i64)?;

    Ok(params)
}

/// Returns a random positive serial number whose first byte is not zero, so that it has one form.
fn serial() -> Result<SerialNumber, CertificateError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CertificateError::System("randomness"))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;

    Ok(SerialNumber::from_slice(&bytes))
}

fn trim(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();

    &serial[zeros..]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_certificate_says_who_its_holder_is_whatever_the_request_said() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let ca = CertificateAuthority::open(directory.path(), Past::Blank, now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut boast = CertificateParams::default();
        boast.subject_alt_names = vec![SanType::URI("meshd:admin:me".try_into().unwrap())];
        let request = boast.serialize_request(&key.0).unwrap();
        let request = RequestedKey::parse(request.der()).unwrap();
        let n1 = Identity::Node("n1".parse().unwrap());

        let signed = ca.sign_request(&n1, &request, now).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let leaf = Leaf::parse(&der).unwrap();

        assert_eq!((leaf.identity, leaf.serial), (n1, signed.serial));
        assert_eq!(leaf.not_after.as_second() - now.as_second(), 24 * 3600);
    }

    #[test]
    fn a_signing_request_signed_by_another_key_is_refused() {
        let key = PrivateKey::generate().unwrap();
        let mut request = key.signing_request().unwrap();
        assert!(RequestedKey::parse(&request).is_ok());

        let last = request.len() - 1;
        request[last] ^= 1;

        assert!(RequestedKey::parse(&request).is_err());
    }

    #[test]
    fn the_ca_survives_a_restart_and_half_of_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = |past| CertificateAuthority::open(directory.path(), past, Timestamp::now());
        let first = open(Past::Blank).unwrap();
        let again = open(Past::Signed).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());

        fs::remove_file(directory.path().join("ca.key")).unwrap();

        for past in [Past::Blank, Past::Signed] {
            assert!(matches!(open(past), Err(CertificateError::Half { .. })));
        }
    }

    #[test]
    fn a_ca_that_signed_is_never_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let open = |past| CertificateAuthority::open(directory.path(), past, Timestamp::now());

        assert!(matches!(
            open(Past::Signed),
            Err(CertificateError::Gone { .. })
        ));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn making_a_ca_goes_on_with_the_key_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let open = |past| CertificateAuthority::open(directory.path(), past, Timestamp::now());
        open(Past::Blank).unwrap();
        let key = || fs::read(directory.path().join("ca.key")).unwrap();
        let before = key();
        fs::remove_file(directory.path().join("ca.crt")).unwrap();

        assert!(matches!(
            open(Past::Signed),
            Err(CertificateError::Half { .. })
        ));
        open(Past::Blank).unwrap();

        assert_eq!(key(), before);
        open(Past::Signed).unwrap();
    }

    #[test]
    fn a_damaged_ca_is_named_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let open = || CertificateAuthority::open(directory.path(), Past::Signed, Timestamp::now());
        CertificateAuthority::open(directory.path(), Past::Blank, Timestamp::now()).unwrap();
        for file in files(directory.path()) {
            let whole = fs::read(&file).unwrap();
            for text in [&whole[..0], &whole[..whole.len() / 2], b"garbage"] {
                fs::write(&file, text).unwrap();
                let Err(error) = open() else {
                    panic!("a damaged CA was used")
                };
                assert!(
                    error.to_string().contains(&*file.to_string_lossy()),
                    "{error}"
                );
                assert_eq!(fs::read(&file).unwrap(), text);
            }
            fs::write(&file, whole).unwrap();
        }
        open().unwrap();
    }

    #[test]
    fn a_uri_of_no_role_or_no_name_is_nobody() {
        for text in [
            "meshd:root:n1",
            "meshd:node:",
            "meshd:node:A B",
            "node:n1",
            "meshd:node",
        ] {
            assert_eq!(identity(text), None, "{text}");
        }
    }
}
