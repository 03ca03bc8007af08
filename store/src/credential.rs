//! What a caller shows the server: its certificate and key, and how to know the server.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    caller::Identity,
    certificate::{Leaf, LeafError},
    file::{create_private_folder, read_bounded, write_private},
};

/// Largest credential file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// The administrator's credential on the server's own host.
const SERVER_CREDENTIAL: &str = "/var/lib/meshd/server/admin.yaml";

const API_VERSION: &str = "meshd.dev/v1";
const KIND: &str = "Credential";

/// A certificate with its key, the CA that signed it, and the servers it is good for.
///
/// Its file is YAML with mode 0600; the administrator's is `admin.yaml`. Has no `Debug`: it holds
/// a private key.
#[derive(Clone)]
pub struct Credential {
    servers: Vec<String>,
    ca: String,
    certificate: String,
    key: Zeroizing<String>,
    leaf: Leaf,
}

/// How [`Credential::install`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The file holds the credential.
    Written,
    /// The file holds another mesh's, or something else, and was left alone.
    OtherMesh,
}

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there, and is no credential that can be used.
    #[error("the credential in {path} cannot be used: {reason}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: Box<CredentialError>,
    },
    /// The text is not a credential.
    #[error("not a credential file: {0}")]
    Parse(String),
    /// A PEM text inside holds no certificate or key.
    #[error("{field} holds no {expected} in PEM form")]
    Pem {
        /// Which.
        field: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// The certificate is not one of ours.
    #[error("the certificate cannot be used")]
    Certificate(#[from] LeafError),
    /// Certificate and key do not fit, or the CA cannot be used.
    #[error("certificate, key and CA do not fit together")]
    Tls(#[from] rustls::Error),
}

/// What every version of the file has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CredentialFile {
    api_version: String,
    kind: String,
    servers: Vec<String>,
    ca: String,
    certificate: String,
    key: Zeroizing<String>,
}

impl Credential {
    /// Puts a credential together and checks that its parts fit.
    pub(crate) fn new(
        servers: Vec<String>,
        ca: String,
        certificate: String,
        key: Zeroizing<String>,
    ) -> Result<Self, CredentialError> {
        let leaf = Leaf::parse(&first_certificate(&certificate, "certificate")?)?;
        let credential = Self {
            servers,
            ca,
            certificate,
            key,
            leaf,
        };
        credential.tls()?;

        Ok(credential)
    }

    /// Reads a credential file.
    ///
    /// # Errors
    ///
    /// [`CredentialError`] names what is wrong with which part; never the key's content.
    pub fn load(path: &Path) -> Result<Self, CredentialError> {
        let text = read_bounded(path, FILE_MAX).map(Zeroizing::new);
        let text = text.map_err(|source| CredentialError::Read {
            path: path.display().to_string(),
            source,
        })?;

        Self::parse(&text).map_err(|reason| CredentialError::Unusable {
            path: path.display().to_string(),
            reason: Box::new(reason),
        })
    }

    /// Parses the text of a credential file.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        // A parser's message may quote the line it stumbled over, and that may be the key.
        let parse = |error: serde_yaml_ng::Error| {
            let place = error.location().map(|at| format!("line {}", at.line()));
            CredentialError::Parse(place.unwrap_or_else(|| "malformed YAML".to_owned()))
        };
        let head: Head = serde_yaml_ng::from_str(text).map_err(parse)?;
        if head.api_version != API_VERSION || head.kind != KIND {
            let expected = format!("expected apiVersion {API_VERSION} and kind {KIND}");
            // Another version of ours is named; anything else in its place may be the key.
            let expected = match version_of_ours(&head.api_version) {
                Some(version) => format!("{expected}, found {version}"),
                None => expected,
            };
            return Err(CredentialError::Parse(expected));
        }
        let file: CredentialFile = serde_yaml_ng::from_str(text).map_err(parse)?;
        if file.servers.is_empty() {
            return Err(CredentialError::Parse(
                "servers: expected at least one URL".to_owned(),
            ));
        }

        Self::new(file.servers, file.ca, file.certificate, file.key)
    }

    /// Writes the credential's file, mode 0600, by rename.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        let file = CredentialFile {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            servers: self.servers.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
        };
        let text = serde_yaml_ng::to_string(&file).map(Zeroizing::new);
        let text = text.map_err(|error| CredentialError::Parse(error.to_string()))?;

        write_private(path, text.as_bytes()).map_err(|source| CredentialError::Write {
            path: path.display().to_string(),
            source,
        })
    }

    /// Returns where a user's credential is kept: `~/.config/meshd/config.yaml`.
    pub fn user_path() -> Option<PathBuf> {
        let home = env::var_os("HOME").filter(|home| !home.is_empty())?;

        Some(Path::new(&home).join(".config/meshd/config.yaml"))
    }

    /// Returns the credential that a client uses unless it is told another: on the server's own host
    /// the administrator's, elsewhere the user's.
    pub fn default_path() -> PathBuf {
        let server = PathBuf::from(SERVER_CREDENTIAL);
        let is_there = fs::exists(&server).unwrap_or(false);

        Self::user_path().filter(|_| !is_there).unwrap_or(server)
    }

    /// Writes the credential to a file, unless that holds another mesh's.
    ///
    /// # Errors
    ///
    /// [`CredentialError::Write`].
    pub fn install(&self, path: &Path) -> Result<Installed, CredentialError> {
        let failed = |source| CredentialError::Write {
            path: path.display().to_string(),
            source,
        };
        if fs::exists(path).map_err(failed)? {
            let same = Self::load(path).is_ok_and(|other| other.ca == self.ca);
            if !same {
                return Ok(Installed::OtherMesh);
            }
        }
        create_private_folder(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        self.save(path)?;

        Ok(Installed::Written)
    }

    /// Returns who the credential is for.
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// Returns the servers' URLs, best first.
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    /// Returns the same credential for other servers.
    pub fn with_servers(mut self, servers: Vec<String>) -> Self {
        self.servers = servers;
        self
    }

    /// Returns from when and until when the server takes it.
    pub fn validity(&self) -> (Timestamp, Timestamp) {
        (self.leaf.not_before, self.leaf.not_after)
    }

    /// Returns the mesh it belongs to: the lower-case hex SHA-256 of the CA certificate.
    pub fn mesh(&self) -> Result<String, CredentialError> {
        Ok(hex::encode(Sha256::digest(first_certificate(
            &self.ca, "ca",
        )?)))
    }

    /// Returns the certificate's serial number, lower-case hex.
    pub(crate) fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// Returns the CA certificate in PEM form.
    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }

    /// Returns the TLS client of this credential: TLS 1.3 only, one CA.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>, CredentialError> {
        let mut roots = RootCertStore::empty();
        roots.add(first_certificate(&self.ca, "ca")?)?;
        let chain = vec![first_certificate(&self.certificate, "certificate")?];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| {
            CredentialError::Pem {
                field: "key",
                expected: "private key",
            }
        })?;
        let mut config = ClientConfig::builder_with_provider(crate::certificate::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];

        Ok(Arc::new(config))
    }
}

fn first_certificate(
    pem: &str,
    field: &'static str,
) -> Result<CertificateDer<'static>, CredentialError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CredentialError::Pem {
        field,
        expected: "certificate",
    })
}

/// Returns an API version that is one of ours, of whatever number.
fn version_of_ours(text: &str) -> Option<&str> {
    const LONGEST: usize = 16;

    let number = text.strip_prefix("meshd.dev/v")?;
    let is_plain = number.bytes().all(|byte| byte.is_ascii_alphanumeric());

    (is_plain && number.len() <= LONGEST).then_some(text)
}

#[cfg(test)]
impl Credential {
    /// Trusts the CA of another credential.
    pub(crate) fn with_ca_of(mut self, other: &Self) -> Self {
        self.ca.clone_from(&other.ca);
        self
    }

    /// Returns a TLS server that shows this client's certificate.
    pub(crate) fn as_server(&self) -> Arc<rustls::ServerConfig> {
        let chain = vec![first_certificate(&self.certificate, "certificate").unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(crate::certificate::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();

        Arc::new(config)
    }
}
