//! A client's certificate is renewed at two thirds of its life, with a new key.

use std::{path::Path, time::Duration};

use jiff::Timestamp;

use super::{Client, call};
use crate::{Credential, StoreError, certificate::PrivateKey, message::proto, source::jittered};

/// How soon a renewal that failed is tried again, at first.
const RETRY_FIRST: Duration = Duration::from_secs(15);

/// How soon at last.
const RETRY_LAST: Duration = Duration::from_mins(10);

impl Client {
    /// Returns the credential in use.
    pub async fn credential(&self) -> Credential {
        self.credential.read().await.clone()
    }

    /// Gets a certificate for a new key, and uses it from the next connection on.
    ///
    /// # Errors
    ///
    /// As the server says; the present credential stays in use.
    pub async fn renew(&self) -> Result<Credential, StoreError> {
        let internal = |error: rcgen::Error| StoreError::Internal(error.to_string());
        let key = PrivateKey::generate().map_err(internal)?;
        let request = proto::RenewRequest {
            signing_request: key.signing_request().map_err(internal)?.into(),
        };
        let reply = call(self.service.clone().renew(request)).await?;
        let unusable = |error: crate::CredentialError| StoreError::Internal(error.to_string());
        let present = self.credential().await;
        let servers = merged(present.servers(), reply.servers);
        // The CA is the one we hold: a server does not replace what we know it by.
        let renewed = Credential::new(
            servers,
            present.ca().to_owned(),
            reply.certificate,
            key.reveal(),
        )
        .map_err(unusable)?;
        self.connector.set_tls(renewed.tls().map_err(unusable)?);
        *self.credential.write().await = renewed.clone();

        Ok(renewed)
    }

    /// Renews the certificate whenever two thirds of its life are over, and writes each to `path`.
    ///
    /// Never returns. A renewal that fails is a warning: it is tried again, and what already runs
    /// goes on.
    pub async fn keep_renewed(&self, path: &Path) {
        let mut retry = RETRY_FIRST;
        loop {
            tokio::time::sleep(self.until_renewal(Timestamp::now()).await).await;
            match self.renew().await {
                Ok(renewed) => {
                    retry = RETRY_FIRST;
                    if let Err(error) = renewed.save(path) {
                        tracing::warn!(%error, "the renewed certificate could not be written");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate could not be renewed");
                    tokio::time::sleep(jittered(retry)).await;
                    retry = (retry * 2).min(RETRY_LAST);
                }
            }
        }
    }

    async fn until_renewal(&self, now: Timestamp) -> Duration {
        let (from, until) = self.credential().await.validity();
        let life = until.as_second().saturating_sub(from.as_second());
        let due = from.as_second().saturating_add(life / 3 * 2);

        Duration::from_secs(due.saturating_sub(now.as_second()).max(0).unsigned_abs())
    }
}

/// Returns the known servers, then the new ones.
fn merged(known: &[String], announced: Vec<String>) -> Vec<String> {
    let fresh = announced.into_iter().filter(|url| !known.contains(url));

    known
        .iter()
        .cloned()
        .chain(fresh.collect::<Vec<_>>())
        .take(16)
        .collect()
}
