//! `meshwire` as a service: devices through its socket, keys and peers through each device's own.

use std::{io, path::PathBuf};

use model::InterfaceName;
use wire::{
    supervise,
    uapi::{self, Configuration, Errno, Status},
};
use wire_core::PublicKey;

use super::{Backend, BackendError};
use crate::reconciler::chain;

/// Devices of the tunnel service.
#[derive(Clone, Debug)]
pub struct Userspace {
    supervisor: PathBuf,
    uapi: PathBuf,
}

impl Userspace {
    /// Takes the service's socket and the folder of the devices' sockets. Connects for each request.
    pub fn new(supervisor: PathBuf, uapi: PathBuf) -> Self {
        Self { supervisor, uapi }
    }

    fn service(&self) -> Result<supervise::Client, BackendError> {
        supervise::Client::connect(&self.supervisor).map_err(away)
    }
}

impl Backend for Userspace {
    fn is_there(&mut self) -> Result<bool, BackendError> {
        Ok(self.service().is_ok())
    }

    fn list(&mut self) -> Result<Vec<InterfaceName>, BackendError> {
        let devices = self.service()?.list().map_err(refused)?;

        Ok(devices
            .into_iter()
            .filter_map(|device| device.name.parse().ok())
            .collect())
    }

    /// A socket that nobody serves is what is left of a device.
    fn holds(&mut self, device: &InterfaceName) -> Result<bool, BackendError> {
        match uapi::Client::connect(&self.uapi, device.as_str()) {
            Ok(_) => Ok(true),
            Err(uapi::ClientError::Connect(error)) if is_absence(&error) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    fn create(&mut self, device: &InterfaceName, mtu: u32) -> Result<(), BackendError> {
        self.service()?
            .create(device.as_str(), Some(mtu))
            .map_err(refused)?;

        Ok(())
    }

    fn delete(&mut self, device: &InterfaceName) -> Result<(), BackendError> {
        match self.service()?.delete(device.as_str()) {
            Err(supervise::ClientError::Refused(refusal))
                if refusal.code == supervise::Code::NotFound =>
            {
                Ok(())
            }
            result => result.map_err(refused),
        }
    }

    fn read(&mut self, device: &InterfaceName) -> Result<Option<Status>, BackendError> {
        match uapi::Client::connect(&self.uapi, device.as_str()) {
            Ok(mut client) => client.get().map(Some).map_err(failed),
            Err(uapi::ClientError::Connect(error)) if is_absence(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn write(
        &mut self,
        device: &InterfaceName,
        configuration: &Configuration,
    ) -> Result<(), BackendError> {
        let mut client = uapi::Client::connect(&self.uapi, device.as_str()).map_err(failed)?;

        client.set(configuration).map_err(failed)
    }

    /// `meshwire` greets its peers by itself: when they are added, and when the device comes up.
    fn greet(&mut self, _: &InterfaceName, _: &[(PublicKey, u16)]) -> Result<(), BackendError> {
        Ok(())
    }
}

/// Returns whether nobody serves a device's socket.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn away(error: supervise::ClientError) -> BackendError {
    gone(&error)
}

fn refused(error: supervise::ClientError) -> BackendError {
    match error {
        supervise::ClientError::Refused(refusal) => {
            BackendError::Refused(format!("tunnel service: {}", refusal.message))
        }
        supervise::ClientError::Connect(_)
        | supervise::ClientError::Exchange(_)
        | supervise::ClientError::HungUp
        | supervise::ClientError::Answer
        | supervise::ClientError::Version(_) => away(error),
    }
}

fn failed(error: uapi::ClientError) -> BackendError {
    match error {
        uapi::ClientError::Refused(Errno(libc::EADDRINUSE)) => BackendError::PortTaken,
        uapi::ClientError::Refused(_) => BackendError::Refused(error.to_string()),
        uapi::ClientError::Connect(_)
        | uapi::ClientError::Exchange(_)
        | uapi::ClientError::Answer => gone(&error),
    }
}

fn gone(error: &dyn std::error::Error) -> BackendError {
    let reason = chain(error);

    BackendError::Away(format!("the tunnel service is not there: {reason}"))
}
