//! What an implementation of WireGuard must offer.

use model::InterfaceName;
use wire::uapi::{Configuration, Status};

/// An implementation of WireGuard on this machine.
///
/// # Guarantees
///
/// - A device outlives whoever asked for it.
/// - [`create`](Backend::create) of a device that is there, and [`delete`](Backend::delete) of one that is
///   not, succeed and change nothing.
/// - [`write`](Backend::write) changes all that it names, or nothing.
///
/// # Errors
///
/// [`BackendError::Away`] where the implementation itself cannot be reached: it is tried again.
pub trait Backend: Send {
    /// Returns its devices.
    fn list(&mut self) -> Result<Vec<InterfaceName>, BackendError>;

    /// Makes a device, down and without a key. The MTU is in bytes.
    fn create(&mut self, device: &InterfaceName, mtu: u32) -> Result<(), BackendError>;

    /// Ends a device.
    fn delete(&mut self, device: &InterfaceName) -> Result<(), BackendError>;

    /// Reads a device; `None` where it is not there.
    fn read(&mut self, device: &InterfaceName) -> Result<Option<Status>, BackendError>;

    /// Changes a device.
    fn write(
        &mut self,
        device: &InterfaceName,
        configuration: &Configuration,
    ) -> Result<(), BackendError>;
}

/// Why an implementation did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It cannot be reached.
    #[error("the tunnel service is not there: {0}")]
    Away(String),
    /// It refused.
    #[error("the tunnel service refused: {0}")]
    Refused(String),
}
