//! Settings for which Calico has no word: `MeshConfiguration/default`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Settings of the mesh. Every default is the first value that the design names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfiguration {
    /// What happens to packets that have no usable tunnel.
    pub mode: EncryptionMode,
    /// Which WireGuard is used.
    pub backend: Backend,
    /// Networks inside which every member may claim its addresses, preferred first.
    pub underlay_networks: Vec<IpNet>,
}

/// What happens to packets that have no usable tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionMode {
    /// They are dropped.
    #[default]
    Strict,
    /// They travel in plaintext, as Calico's do.
    Permissive,
}

/// Which WireGuard is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// The kernel's where it has one, else `meshwire`.
    #[default]
    Auto,
    /// The kernel's.
    Kernel,
    /// `meshwire`.
    Userspace,
}
