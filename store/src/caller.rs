//! Who asks.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use model::NodeName;

/// Who asks, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// The serial number of the certificate it showed; `None` inside the server's own process.
    pub certificate: Option<String>,
    /// From where; `None` inside the server's own process.
    pub origin: Option<Origin>,
}

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// May do everything.
    Admin(String),
    /// A member: speaks only for itself.
    Node(NodeName),
}

/// The connection that a caller asks over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address it comes from, as the server saw it.
    pub source: IpAddr,
    /// The server's address that it reached.
    pub local: IpAddr,
    /// Every address of the server's host, loopback left out.
    pub server_addresses: Arc<BTreeSet<IpAddr>>,
}

impl Caller {
    /// Returns the server itself, or an administrator on its host.
    pub fn local_admin() -> Self {
        Self {
            identity: Identity::Admin("local".to_owned()),
            certificate: None,
            origin: None,
        }
    }
}

impl Identity {
    /// Returns `admin` or `node`.
    pub const fn role(&self) -> &'static str {
        match self {
            Self::Admin(_) => "admin",
            Self::Node(_) => "node",
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        match self {
            Self::Admin(name) => name,
            Self::Node(name) => name.as_str(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role(), self.name())
    }
}
