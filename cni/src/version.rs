//! The versions of the specification.

use model::cni::{Code, Failure};

use crate::environment::Command;

/// A version of the CNI specification that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: results of interfaces, addresses and routes.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: `CHECK`.
    V0_4_0,
    /// 1.0.0: addresses no longer name their family.
    V1_0_0,
    /// 1.1.0: `GC`, `STATUS`, and MTUs in results.
    V1_1_0,
}

impl Version {
    /// Every version, the oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// Returns how a configuration writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a configuration's `cniVersion`.
    ///
    /// # Errors
    /// [`Code::Version`]: it is none of ours, or there is none (which means 0.1.0).
    pub fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let wanted = text.unwrap_or("0.1.0");
        let found = Self::ALL
            .into_iter()
            .find(|version| version.as_str() == wanted);

        found.ok_or_else(|| {
            let ours: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            let missing = if text.is_none() {
                " (cniVersion is missing)"
            } else {
                ""
            };
            let known = ours.join(", ");
            Failure {
                code: Code::Version,
                msg: format!(
                    "CNI {wanted:.20}{missing} is not supported; set cniVersion to one of {known}"
                ),
                details: String::new(),
            }
        })
    }

    /// Checks that the version has a command.
    ///
    /// # Errors
    /// [`Code::Version`]: it came later.
    pub fn has(self, command: Command) -> Result<(), Failure> {
        let since = match command {
            Command::Add | Command::Del | Command::Version => Self::V0_3_0,
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
        };
        if self >= since {
            return Ok(());
        }

        Err(Failure::new(
            Code::Version,
            format!(
                "{command} came with CNI {}, the configuration is of {}",
                since.as_str(),
                self.as_str()
            ),
        ))
    }
}
