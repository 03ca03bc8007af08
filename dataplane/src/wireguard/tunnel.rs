//! WireGuard devices: there, up, with the right key, port, mark and MTU.

use std::collections::BTreeMap;

use model::{
    Change, InterfaceName, PublicKey, plan::Tunnel, resource::mesh_configuration::Backend as Choice,
};
use wire::uapi::{Configuration, Status};

use super::{Backend, BackendError};
use crate::{
    Absent, KeySource, OpenError, Target,
    link::{self, Link, Links},
    netlink::{Message, NetlinkError, Protocol, Refusal, Socket},
};

/// Keeps WireGuard devices.
pub struct TunnelTarget {
    socket: Socket,
    backend: Box<dyn Backend>,
    keys: Box<dyn KeySource>,
    /// The rows as last set: what cannot be read back is taken from here.
    set: BTreeMap<InterfaceName, Tunnel>,
    /// A device was made since this was last asked.
    created: bool,
}

/// Why devices or peers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The kernel's links could not be listed.
    #[error("could not list links")]
    Links(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The devices could not be listed or read.
    #[error("could not read device {0}")]
    Read(String, #[source] BackendError),
    /// A device could not be made, changed or ended.
    #[error("could not change device {0}")]
    Write(InterfaceName, #[source] BackendError),
    /// The plan names a key whose private half is not ours.
    #[error("the private half of {0} is not in the keyring")]
    Key(PublicKey),
    /// The kernel refused to set MTU or state.
    #[error("could not bring up device {0}: {1}")]
    Link(InterfaceName, String),
}

impl TunnelTarget {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(backend: Box<dyn Backend>, keys: Box<dyn KeySource>) -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            backend,
            keys,
            set: BTreeMap::new(),
            created: false,
        })
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Returns whether a device was made since the last call: whatever stood on an earlier one of its
    /// name is gone.
    pub fn take_created(&mut self) -> bool {
        std::mem::take(&mut self.created)
    }

    /// Makes a device as it should be, touching only what differs.
    fn set(&mut self, name: &InterfaceName, tunnel: &Tunnel) -> Result<(), SetError> {
        if tunnel.backend == Choice::Kernel {
            return Err(SetError::Absent(
                "the kernel's WireGuard cannot be used yet".to_owned(),
            ));
        }
        if self.link(name)?.is_none() || self.read(name)?.is_none() {
            self.backend
                .create(name, tunnel.mtu)
                .map_err(|error| write(name, error))?;
            self.created = true;
        }
        let status = self
            .read(name)?
            .ok_or_else(|| SetError::Absent(format!("device {name} did not come up")))?;
        let configuration = self.difference(&status, tunnel)?;
        if let Some(configuration) = configuration {
            self.backend
                .write(name, &configuration)
                .map_err(|error| write(name, error))?;
        }
        self.bring_up(name, tunnel.mtu)?;
        self.set.insert(name.clone(), tunnel.clone());

        Ok(())
    }

    /// Returns what must be said to a device; `None` where nothing must.
    fn difference(
        &self,
        status: &Status,
        tunnel: &Tunnel,
    ) -> Result<Option<Configuration>, SetError> {
        let mut configuration = Configuration::default();
        if status.public_key.map(|key| key.0) != Some(*tunnel.key.as_bytes()) {
            let key = self
                .keys
                .private_key(&tunnel.key)
                .ok_or(TunnelError::Key(tunnel.key))?;
            configuration.private_key = Some(Some(key.to_wire()));
        }
        configuration.listen_port = (status.listen_port != tunnel.port).then_some(tunnel.port);
        configuration.fwmark = (status.fwmark != tunnel.mark).then_some(tunnel.mark);
        let differs = configuration.private_key.is_some()
            || configuration.listen_port.is_some()
            || configuration.fwmark.is_some();

        Ok(differs.then_some(configuration))
    }

    fn bring_up(&mut self, name: &InterfaceName, mtu: u32) -> Result<(), SetError> {
        let link = self
            .link(name)?
            .ok_or_else(|| SetError::Absent(format!("device {name} is gone")))?;
        if link.mtu == mtu && link.is_up() {
            return Ok(());
        }

        let header = link::header(link.index, link::up_flag(), link::up_flag());
        let mut request = Message::new(libc::RTM_NEWLINK, 0, &header);
        request.put_u32(link::attribute::MTU, mtu);
        let refusals = self.socket.exchange(vec![request]).map_err(links)?;

        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) => Err(link_refused(name, &refusal)),
        }
    }

    fn unset(&mut self, name: &InterfaceName) -> Result<(), SetError> {
        match self.backend.delete(name) {
            // The service's devices end with it.
            Err(BackendError::Away(_)) if self.link(name)?.is_none() => {}
            result => result.map_err(|error| write(name, error))?,
        }
        self.set.remove(name);

        Ok(())
    }

    fn link(&mut self, name: &InterfaceName) -> Result<Option<Link>, SetError> {
        link::get(&mut self.socket, name).map_err(links)
    }

    fn read(&mut self, name: &InterfaceName) -> Result<Option<Status>, SetError> {
        self.backend.read(name).map_err(|error| match error {
            BackendError::Away(reason) => SetError::Absent(reason),
            BackendError::Refused(_) => {
                SetError::Failed(TunnelError::Read(name.to_string(), error))
            }
        })
    }

    /// Returns a device as a row; what is not as any row would have it is zero.
    fn row(&self, name: &InterfaceName, status: &Status, link: &Link) -> Option<Tunnel> {
        let key = status
            .public_key
            .and_then(|key| PublicKey::new(key.0).ok())?;

        Some(Tunnel {
            key,
            port: status.listen_port,
            mark: status.fwmark,
            mtu: if link.is_up() { link.mtu } else { 0 },
            backend: self
                .set
                .get(name)
                .map_or(Choice::Auto, |tunnel| tunnel.backend),
        })
    }
}

impl Target for TunnelTarget {
    type Key = InterfaceName;
    type Row = Tunnel;
    type Error = TunnelError;

    /// While the service is away nothing is reported: every row is then set, and found absent.
    fn observe(&mut self) -> Result<BTreeMap<InterfaceName, Tunnel>, TunnelError> {
        let names = match self.backend.list() {
            Ok(names) => names,
            Err(BackendError::Away(_)) => return Ok(BTreeMap::new()),
            Err(error) => return Err(TunnelError::Read("list".to_owned(), error)),
        };
        let links =
            Links::list(&mut self.socket).map_err(|error| TunnelError::Links(Box::new(error)))?;
        let mut found = BTreeMap::new();
        for name in names {
            let status = match self.backend.read(&name) {
                Ok(status) => status,
                Err(BackendError::Away(_)) => None,
                Err(error) => return Err(TunnelError::Read(name.to_string(), error)),
            };
            let row = match (&status, links.by_name(&name)) {
                (Some(status), Some(link)) => self.row(&name, status, link),
                (None, _) | (_, None) => None,
            };
            found.insert(name, row.unwrap_or_else(unfinished));
        }

        Ok(found)
    }

    fn apply(
        &mut self,
        changes: &[Change<InterfaceName, Tunnel>],
    ) -> Result<Vec<Absent<InterfaceName>>, TunnelError> {
        let mut absent = Vec::new();
        for change in changes {
            let (name, result) = match change {
                Change::Set(name, tunnel) => (name, self.set(name, tunnel)),
                Change::Unset(name) => (name, self.unset(name)),
            };
            match result {
                Ok(()) => {}
                Err(SetError::Absent(reason)) => absent.push(Absent {
                    key: name.clone(),
                    reason,
                }),
                Err(SetError::Failed(error)) => return Err(error),
            }
        }

        Ok(absent)
    }
}

/// A device that cannot be set now, or not at all.
enum SetError {
    Absent(String),
    Failed(TunnelError),
}

impl From<TunnelError> for SetError {
    fn from(error: TunnelError) -> Self {
        Self::Failed(error)
    }
}

fn write(name: &InterfaceName, error: BackendError) -> SetError {
    match error {
        BackendError::Away(reason) => SetError::Absent(reason),
        BackendError::Refused(_) => SetError::Failed(TunnelError::Write(name.clone(), error)),
    }
}

fn links(error: NetlinkError) -> SetError {
    SetError::Failed(TunnelError::Links(Box::new(error)))
}

fn link_refused(name: &InterfaceName, refusal: &Refusal) -> SetError {
    if refusal.is_absence() {
        return SetError::Absent(format!("device {name} is gone"));
    }

    SetError::Failed(TunnelError::Link(name.clone(), refusal.to_string()))
}

/// A device that exists and is like no row: it will be set, or removed.
fn unfinished() -> Tunnel {
    /// The point of order one: no keyring holds its private half.
    const NOBODY: [u8; 32] = {
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    };

    Tunnel {
        key: PublicKey::new(NOBODY).expect("not all bytes are zero"),
        port: 0,
        mark: 0,
        mtu: 0,
        backend: Choice::Auto,
    }
}
