//! What a pass of the dataplane over the plan came to, as the brain is told.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{InterfaceName, conflict::Conflict, plan::RowKey};

/// What a pass over the plan came to. Neither failures nor incomplete rows: the machine matches the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// The newest [`Plan::generation`](crate::Plan::generation) that the pass saw.
    pub generation: u64,
    /// What was refused: target and reason. Nothing that stands behind it in the plan's order was applied.
    pub failures: BTreeMap<String, String>,
    /// Rows that wait for what they stand on; everything else was applied. In order, each once.
    #[serde(default)]
    pub incomplete: Vec<IncompleteRow>,
    /// What carries each tunnel device that is there.
    #[serde(default)]
    pub backends: BTreeMap<InterfaceName, DeviceBackend>,
    /// What somebody else has where it belongs to us. In order, each once.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
}

/// A row that could not be set, or unset, because what it stands on is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncompleteRow {
    /// The row.
    pub row: RowKey,
    /// What is missing.
    pub reason: String,
}

/// What carries a tunnel device, and why that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBackend {
    /// The implementation.
    pub implementation: Implementation,
    /// Why this one.
    pub chosen: Chosen,
}

/// An implementation of WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Implementation {
    /// The kernel's own.
    Kernel,
    /// The tunnel service.
    Meshwire,
}

/// Why a device has the implementation that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Chosen {
    /// `Auto`: the kernel was asked, and has WireGuard.
    KernelHasIt,
    /// `Auto`: the kernel was asked, and has no WireGuard.
    KernelLacksIt,
    /// `Auto`: the device was there already and stays as it is.
    Adopted,
    /// MeshConfiguration, or whoever started the agent, asks for this one.
    Forced,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Meshwire => "meshwire",
        })
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelHasIt => "the kernel has WireGuard",
            Self::KernelLacksIt => "the kernel has no WireGuard",
            Self::Adopted => "the device was there already",
            Self::Forced => "asked for by name",
        })
    }
}
