//! The kernel's own WireGuard: devices by rtnetlink, keys and peers by generic netlink.
//!
//! ```text
//! create, delete, list   NETLINK_ROUTE     link of kind "wireguard", alias "meshd"
//! read                   WG_CMD_GET_DEVICE dump in parts, joined
//! write, greet           WG_CMD_SET_DEVICE parts below 64 KiB, each whole or refused
//! ```
//!
//! Formats and numbers are those of linux/uapi/linux/wireguard.h.

mod dump;
mod request;

use model::InterfaceName;
use wire::uapi::{Configuration, Status};
use wire_core::PublicKey;

use self::{dump::Part, request::Writer};
use super::{Backend, BackendError};
use crate::{
    OpenError,
    link::{self, Links, attribute},
    netlink::{Family, Message, NetlinkError, Protocol, Refusal, Socket, Traffic, family, flag},
};

/// The family's name and version (`WG_GENL_NAME`, `WG_GENL_VERSION`).
const FAMILY: (&str, u8) = ("wireguard", 1);

/// The kind of its links.
const KIND: &str = "wireguard";

/// What tells our devices from other people's.
const ALIAS: &str = "meshd";

/// The name of a device that is made to see whether it can be, and ended at once.
const TRIAL: &str = "meshd-trial";

/// Devices of the kernel of one network namespace.
pub struct Kernel {
    links: Socket,
    generic: Socket,
    /// The family's number, once the kernel has it.
    family: Option<Family>,
}

/// How many bytes went over a backend's generic netlink socket.
#[derive(Clone, Debug)]
pub struct NetlinkTraffic(Traffic);

impl NetlinkTraffic {
    /// Returns bytes sent to the kernel, and bytes received from it.
    pub fn count(&self) -> [u64; 2] {
        self.0.count()
    }
}

impl Kernel {
    /// Opens sockets in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            links: Socket::open(Protocol::Route)?,
            generic: Socket::open(Protocol::Generic)?,
            family: None,
        })
    }

    /// Returns the count of what goes to the kernel and back.
    pub fn traffic(&self) -> NetlinkTraffic {
        NetlinkTraffic(self.generic.traffic())
    }

    fn find_family(&mut self) -> Result<Option<Family>, BackendError> {
        if self.family.is_none() {
            let (name, version) = FAMILY;
            self.family = family(&mut self.generic, name, version).map_err(failed)?;
        }

        Ok(self.family)
    }

    /// Makes a device and ends it: rtnetlink looks for a module under another name than generic netlink.
    fn can_be_made(&mut self) -> Result<bool, BackendError> {
        let refusals = self
            .links
            .exchange(vec![creation(TRIAL, None)])
            .map_err(failed)?;
        let is_made = match refusals.first().map(|refusal| refusal.errno) {
            None | Some(libc::EEXIST) => true,
            Some(_) => return Ok(false),
        };
        self.end(TRIAL)?;

        Ok(is_made)
    }

    fn end(&mut self, name: &str) -> Result<(), BackendError> {
        let mut request = Message::new(libc::RTM_DELLINK, 0, &link::header(0, 0, 0));
        request.put_text(attribute::NAME, name);
        let refusals = self.links.exchange(vec![request]).map_err(failed)?;

        match refusals.into_iter().next() {
            Some(refusal) if !refusal.is_absence() => Err(refused(&refusal)),
            Some(_) | None => Ok(()),
        }
    }

    fn send(&mut self, requests: Vec<Message>) -> Result<(), BackendError> {
        let refusals = self.generic.batch(requests).map_err(failed)?;

        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) if is_elsewhere(&refusal) => {
                self.family = None;
                Err(BackendError::Away(format!(
                    "the kernel has no such WireGuard device: {refusal}"
                )))
            }
            Some(refusal) if refusal.errno == libc::EADDRINUSE => Err(BackendError::PortTaken),
            Some(refusal) => Err(refused(&refusal)),
        }
    }

    fn writer<'a>(&mut self, device: &InterfaceName) -> Result<Writer<'a>, BackendError> {
        let family = self
            .find_family()?
            .ok_or_else(|| BackendError::Away(MISSING.to_owned()))?;

        Ok(Writer::new(family, device))
    }
}

/// What there is to say where the kernel lacks it.
const MISSING: &str = "the kernel has no WireGuard";

impl Backend for Kernel {
    /// Asking loads the module where there is one.
    fn is_there(&mut self) -> Result<bool, BackendError> {
        if self.find_family()?.is_some() {
            return Ok(true);
        }
        if !self.can_be_made()? {
            return Ok(false);
        }

        Ok(self.find_family()?.is_some())
    }

    /// Only devices that bear our alias: whoever else has WireGuard devices keeps them.
    fn list(&mut self) -> Result<Vec<InterfaceName>, BackendError> {
        let links = Links::list(&mut self.links).map_err(failed)?;
        let ours = links.iter().filter(|link| {
            link.kind.as_deref() == Some(KIND) && link.alias.as_deref() == Some(ALIAS)
        });

        Ok(ours.map(|link| link.name.clone()).collect())
    }

    fn holds(&mut self, device: &InterfaceName) -> Result<bool, BackendError> {
        let link = link::get(&mut self.links, device).map_err(failed)?;

        Ok(link.is_some_and(|link| link.kind.as_deref() == Some(KIND)))
    }

    fn create(&mut self, device: &InterfaceName, mtu: u32) -> Result<(), BackendError> {
        if self.holds(device)? {
            return self.mark(device);
        }
        let request = creation(device.as_str(), Some(mtu));
        let refusals = self.links.exchange(vec![request]).map_err(failed)?;
        if let Some(refusal) = refusals.first() {
            return Err(match refusal.errno {
                libc::EOPNOTSUPP => BackendError::Away(MISSING.to_owned()),
                libc::EEXIST => BackendError::Refused(format!(
                    "there is a device {device} which is not WireGuard's"
                )),
                _ => refused(refusal),
            });
        }

        // A new link takes no alias: it is given afterwards.
        self.mark(device)
    }

    fn delete(&mut self, device: &InterfaceName) -> Result<(), BackendError> {
        if self.holds(device)? {
            self.end(device.as_str())?;
        }

        Ok(())
    }

    fn read(&mut self, device: &InterfaceName) -> Result<Option<Status>, BackendError> {
        let Some(family) = self.find_family()? else {
            return Ok(None);
        };
        let mut request = family.request(request::GET_DEVICE, 0);
        request.put_text(request::device::NAME, device.as_str());

        match self.generic.dump(request, Part::read) {
            Ok(parts) => Ok(Some(dump::join(parts))),
            Err(NetlinkError::Dump(refusal)) if is_elsewhere(&refusal) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn write(
        &mut self,
        device: &InterfaceName,
        configuration: &Configuration,
    ) -> Result<(), BackendError> {
        let mut writer = self.writer(device)?;
        writer.settings(configuration);
        for (key, change) in &configuration.peers {
            writer.peer(key, change);
        }

        self.send(writer.finish())
    }

    fn device_on(&mut self, port: u16) -> Result<Option<InterfaceName>, BackendError> {
        let links = Links::list(&mut self.links).map_err(failed)?;
        let up = links
            .iter()
            .filter(|link| link.kind.as_deref() == Some(KIND) && link.is_up());
        for link in up {
            let status = self.read(&link.name)?;
            if status.is_some_and(|status| status.listen_port == port) {
                return Ok(Some(link.name.clone()));
            }
        }

        Ok(None)
    }

    fn greet(
        &mut self,
        device: &InterfaceName,
        peers: &[(PublicKey, u16)],
    ) -> Result<(), BackendError> {
        let mut writer = self.writer(device)?;
        for (key, keepalive) in peers {
            writer.greet(key, *keepalive);
        }

        self.send(writer.finish())
    }
}

impl Kernel {
    /// Gives a device the alias by which it is known to be ours.
    fn mark(&mut self, device: &InterfaceName) -> Result<(), BackendError> {
        let mut request = Message::new(libc::RTM_NEWLINK, 0, &link::header(0, 0, 0));
        request.put_text(attribute::NAME, device.as_str());
        request.put(attribute::ALIAS, ALIAS.as_bytes());
        let refusals = self.links.exchange(vec![request]).map_err(failed)?;

        match refusals.first() {
            None => Ok(()),
            Some(refusal) => Err(refused(refusal)),
        }
    }
}

fn creation(name: &str, mtu: Option<u32>) -> Message {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    let mut request = Message::new(libc::RTM_NEWLINK, flags, &link::header(0, 0, 0));
    request.put_text(attribute::NAME, name);
    if let Some(mtu) = mtu {
        request.put_u32(attribute::MTU, mtu);
    }
    request.nest(attribute::INFO, |info| {
        info.put_text(attribute::INFO_KIND, KIND);
    });

    request
}

/// Returns whether a refusal says that there is no device of that name, or that it is not WireGuard's.
fn is_elsewhere(refusal: &Refusal) -> bool {
    matches!(
        refusal.errno,
        libc::ENODEV | libc::EOPNOTSUPP | libc::ENOENT
    )
}

fn refused(refusal: &Refusal) -> BackendError {
    BackendError::Refused(format!("kernel: {refusal}"))
}

fn failed(error: NetlinkError) -> BackendError {
    BackendError::Refused(crate::reconciler::chain(&error))
}
