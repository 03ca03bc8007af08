//! The TUN device: where inner packets come from and go to.
//!
//! Opened with `IFF_VNET_HDR`, so that every frame carries a virtio header, and with as much
//! segmentation offload as the kernel grants: TCP and UDP, TCP alone, none. The device is not persistent: it lives as
//! long as its file descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use serde::{Deserialize, Serialize};

mod sys;

/// Longest frame the device hands out: virtio header and 64 KiB of packet.
pub(crate) const FRAME: usize = crate::packet::virtio::SIZE + 65_536;

/// MTU of a device nobody gave another: 1500 less 80 bytes of IPv6, UDP and WireGuard headers.
pub const DEFAULT_MTU: u32 = 1420;

/// Smallest and largest MTU that the TUN driver takes for IP traffic over both families, in bytes.
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_535;

/// Packets that the device's queue holds. Each may be a super-frame of 64 KiB, so the kernel's default of 500 is up to
/// 32 MB of delay; but a queue that is short in packets drops bursts of small datagrams while we wait for a CPU.
const QUEUE_LENGTH: u32 = 256;

/// Segmentation offload of a TUN device, from most to least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// TCP and UDP segmentation (Linux 6.2 and later).
    #[default]
    Udp,
    /// TCP segmentation.
    Tcp,
    /// Packet by packet.
    None,
}

impl Offload {
    /// This and everything less, in the order in which to try.
    fn ladder(self) -> impl Iterator<Item = Self> {
        [Self::Udp, Self::Tcp, Self::None]
            .into_iter()
            .skip_while(move |level| *level != self)
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is empty, longer than 15 bytes, or has a character the kernel refuses.
    #[error("{0:?} is no name for a network interface")]
    Name(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun")]
    Open(#[source] io::Error),
    /// The kernel refused the device: no privilege, or the name is taken.
    #[error("cannot create interface {name}")]
    Attach {
        /// The device's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// MTU, queue length or offload could not be set.
    #[error("cannot set {what} of {name}")]
    Configure {
        /// The device's name.
        name: String,
        /// The property.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// An open TUN device.
pub struct Tun {
    file: File,
    name: String,
    index: u32,
    offload: Offload,
}

impl Tun {
    /// Creates the device `name` in the current network namespace with `mtu` bytes, and at most `offload`.
    ///
    /// # Errors
    /// See [`CreateError`]; nothing stays behind.
    pub fn create(name: &str, mtu: u32, offload: Offload) -> Result<Self, CreateError> {
        if !is_interface_name(name) {
            return Err(CreateError::Name(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(CreateError::Open)?;
        sys::attach(&file, name).map_err(|source| CreateError::Attach {
            name: name.to_owned(),
            source,
        })?;
        let failed = |what| {
            move |source| CreateError::Configure {
                name: name.to_owned(),
                what,
                source,
            }
        };
        let offload = grant(&file, offload).map_err(failed("the offload"))?;
        let control = control_socket().map_err(failed("the properties"))?;
        sys::set_mtu(&control, name, mtu).map_err(failed("the MTU"))?;
        sys::set_queue_length(&control, name, QUEUE_LENGTH).map_err(failed("the queue length"))?;
        let index = rustix::net::netdevice::name_to_index(&control, name)
            .map_err(|errno| failed("the index")(errno.into()))?;
        Ok(Self {
            file,
            name: name.to_owned(),
            index,
            offload,
        })
    }

    /// The name it was created with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface index, in the namespace it was created in.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The offload that the kernel granted.
    #[must_use]
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// Whether the device still exists, in whatever namespace.
    pub(crate) fn is_attached(&self) -> bool {
        sys::is_attached(&self.file)
    }

    /// Reads one frame into `buffer` ([`FRAME`] bytes); `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.file, buffer)?)
    }

    /// Writes one frame that lies scattered over `parts`.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(&self.file, parts)?)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The kernel's rule for names (`dev_valid_name`), without `%`, which it would expand.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(valid)
}

/// Takes as much offload as the kernel grants.
fn grant(file: &File, wanted: Offload) -> io::Result<Offload> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for level in wanted.ladder() {
        match sys::set_offload(file, level) {
            Ok(()) => return Ok(level),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Any socket will do for device requests.
pub(crate) fn control_socket() -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes() {
        for good in ["wg0", "wireguard.cali", "wg-v6.cali", "a23456789012345"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "wg%d",
            "a b",
            "a234567890123456",
            "wg\u{e9}",
            "wg\n",
        ] {
            assert!(!is_interface_name(bad), "{bad}");
        }
    }

    #[test]
    fn offload_falls_back_step_by_step() {
        assert_eq!(
            Offload::Udp.ladder().collect::<Vec<_>>(),
            [Offload::Udp, Offload::Tcp, Offload::None]
        );
        assert_eq!(Offload::None.ladder().collect::<Vec<_>>(), [Offload::None]);
    }
}
