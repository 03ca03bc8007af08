//! How blocks and addresses are handed out: Calico's IPAMConfiguration.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FieldError, field};
use crate::Object;

/// The only name that the object may have.
const NAME: &str = "default";

/// Most blocks that `maxBlocksPerHost` may name.
const BLOCKS_MAX: u32 = 1_000_000;

/// Settings for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfiguration {
    /// A node uses only addresses of its own blocks: nobody borrows.
    pub strict_affinity: bool,
    /// Most blocks of one family that a node may have; `None`: Calico's own cap.
    pub max_blocks_per_host: Option<u32>,
    /// Nodes claim blocks when theirs are full.
    pub auto_allocate_blocks: bool,
    /// How long a released address rests; at most 20 minutes.
    pub cooldown: Duration,
}

/// The form in which a store keeps the `spec`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    strict_affinity: Option<bool>,
    max_blocks_per_host: Option<u32>,
    auto_allocate_blocks: Option<bool>,
    ip_cooldown_seconds: Option<u32>,
}

impl IpamConfiguration {
    /// Longest cool-down, in seconds.
    pub const COOLDOWN_MAX: u32 = 1200;
}

impl Default for IpamConfiguration {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            max_blocks_per_host: None,
            auto_allocate_blocks: true,
            cooldown: Duration::ZERO,
        }
    }
}

impl TryFrom<&Object> for IpamConfiguration {
    type Error = FieldError;

    fn try_from(object: &Object) -> Result<Self, FieldError> {
        if object.metadata.name != NAME {
            let found = object.metadata.name.as_str();
            return Err(field::expected("metadata.name", "\"default\"", found));
        }
        let stored: Stored = field::part(object, "spec")?;
        let strict_affinity = stored.strict_affinity.unwrap_or(false);
        let auto_allocate_blocks = stored.auto_allocate_blocks.unwrap_or(true);
        if !strict_affinity && !auto_allocate_blocks {
            let expected = "true, because spec.strictAffinity is not";
            return Err(field::expected("spec.autoAllocateBlocks", expected, false));
        }
        let blocks = stored.max_blocks_per_host.unwrap_or(0);
        if blocks > BLOCKS_MAX {
            let range = format!("a number up to {BLOCKS_MAX}");
            return Err(field::expected("spec.maxBlocksPerHost", &range, blocks));
        }
        let seconds = stored.ip_cooldown_seconds.unwrap_or(0);
        if seconds > Self::COOLDOWN_MAX {
            let range = format!("a number up to {}", Self::COOLDOWN_MAX);
            return Err(field::expected("spec.ipCooldownSeconds", &range, seconds));
        }

        Ok(Self {
            strict_affinity,
            max_blocks_per_host: (blocks > 0).then_some(blocks),
            auto_allocate_blocks,
            cooldown: Duration::from_secs(seconds.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Kind, ObjectKey};

    #[test]
    fn an_empty_configuration_has_calicos_defaults() {
        assert_eq!(
            IpamConfiguration::try_from(&object(json!({}))),
            Ok(IpamConfiguration::default())
        );
    }

    #[test]
    fn every_field_is_read() {
        let spec = json!({
            "strictAffinity": true, "maxBlocksPerHost": 4,
            "autoAllocateBlocks": false, "ipCooldownSeconds": 90,
        });

        assert_eq!(
            IpamConfiguration::try_from(&object(spec)),
            Ok(IpamConfiguration {
                strict_affinity: true,
                max_blocks_per_host: Some(4),
                auto_allocate_blocks: false,
                cooldown: Duration::from_secs(90),
            })
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (spec, field) in [
            (
                json!({"autoAllocateBlocks": false}),
                "spec.autoAllocateBlocks",
            ),
            (
                json!({"maxBlocksPerHost": 1_000_001}),
                "spec.maxBlocksPerHost",
            ),
            (json!({"ipCooldownSeconds": 1201}), "spec.ipCooldownSeconds"),
        ] {
            let error = IpamConfiguration::try_from(&object(spec)).unwrap_err();

            assert_eq!(error.field, field);
        }
    }

    fn object(spec: Value) -> Object {
        Object::new(
            &ObjectKey::cluster(Kind::IPAMConfiguration, "default"),
            spec,
        )
    }
}
