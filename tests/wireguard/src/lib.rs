//! One story, any WireGuard: what must hold for every implementation, ours and the kernel's.
//!
//! ```text
//!  stories! { name; … }  ──▶  meshwire::name        ours at both ends
//!                             kernel::name          the kernel's at both ends
//!                             mixed::name           the kernel's here, ours there
//! ```
//!
//! The last two need a kernel with WireGuard. Where a machine has none they are listed as ignored, with the reason, and
//! run under User-Mode Linux: `tools/uml/run target/debug/deps/story-… --include-ignored kernel:: mixed::`.
//!
//! Needs root, `ip`, `nft`, `wg`, `ping`, `conntrack`. Every story happens in namespaces of its own, which its end
//! removes; assertions ask `wg`, the kernel or the wire.

pub mod command;
pub mod device;
pub mod space;
pub mod traffic;
pub mod wait;

pub use command::{attempt, run, run_with};
pub use device::{Device, Keys, Make};
pub use space::Space;
pub use wait::{until, until_within};

/// Tells stories (functions of a [`Make`] for each end) with every implementation.
/// With `alone:`, stories of one device: functions of its [`Make`].
#[macro_export]
macro_rules! stories {
    (alone: $($name:ident;)*) => {
        mod meshwire {
            $(#[test]
            fn $name() {
                super::$name($crate::Make::Meshwire);
            })*
        }
        mod kernel {
            $(#[test]
            #[ignore = "needs the kernel's WireGuard: make test-kernel"]
            fn $name() {
                super::$name($crate::Make::Kernel);
            })*
        }
    };
    ($($name:ident;)*) => {
        mod meshwire {
            $(#[test]
            fn $name() {
                super::$name($crate::Make::Meshwire, $crate::Make::Meshwire);
            })*
        }
        mod kernel {
            $(#[test]
            #[ignore = "needs the kernel's WireGuard: make test-kernel"]
            fn $name() {
                super::$name($crate::Make::Kernel, $crate::Make::Kernel);
            })*
        }
        mod mixed {
            $(#[test]
            #[ignore = "needs the kernel's WireGuard: make test-kernel"]
            fn $name() {
                super::$name($crate::Make::Kernel, $crate::Make::Meshwire);
            })*
        }
    };
}
