//! How commands reach the store.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use store::{Client, Credential, Store};

/// Where the store is and who asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// The credential that names the store [default: the server's on its host, else ~/.config/meshd/config.yaml].
    #[arg(long, env = "MESHD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Connection {
    /// Reads the credential.
    pub(crate) fn credential(&self) -> anyhow::Result<Credential> {
        let path = self.config.clone().unwrap_or_else(Credential::default_path);

        Credential::load(&path).with_context(|| {
            format!(
                "no store to speak to: {} cannot be used (--config names another)",
                path.display()
            )
        })
    }

    /// Returns the store. It is spoken to when first used.
    pub(crate) fn store(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(Arc::new(Client::new(self.credential()?)?))
    }
}
