//! What happens to our network interface: up, down, another MTU, gone; and which others can be used.
//!
//! A netlink socket that listens to the kernel's link notifications. Messages
//! are read as bytes: `nlmsghdr` (`linux/netlink.h`), `ifinfomsg` and its attributes (`linux/rtnetlink.h`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

const HEADER: usize = 16;
const LINK: usize = 16;
const RTMGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;

/// A fact about an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Ours is there, administratively up or not, with an MTU in bytes.
    Is { up: bool, mtu: u32 },
    /// Ours was deleted, or moved to another namespace.
    Gone,
    /// Another one is there, and can carry packets or not.
    Other { index: u32, usable: bool },
    /// Another one was deleted.
    OtherGone { index: u32 },
}

/// Listens on behalf of one interface.
pub(crate) struct Monitor {
    socket: OwnedFd,
    index: u32,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Listens from now on, and asks for the present state, which comes as the first [`Change`].
    pub(crate) fn new(index: u32) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_LINK))?;
        let monitor = Self {
            socket,
            index,
            buffer: vec![0; 32 << 10],
        };
        monitor.ask()?;
        Ok(monitor)
    }

    /// Calls `found` with each change there is; returns when there are no more.
    pub(crate) fn drain(&mut self, mut found: impl FnMut(Change)) -> io::Result<()> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    changes(&self.buffer[..length], self.index).for_each(&mut found);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => (),
                // Notifications were lost: what holds now is all that matters.
                Err(Errno::NOBUFS) => self.ask()?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Asks for the present state.
    fn ask(&self) -> io::Result<()> {
        let length = u32::try_from(HEADER + LINK).unwrap_or(u32::MAX);
        let mut request = [0; HEADER + LINK];
        request[..4].copy_from_slice(&length.to_ne_bytes());
        request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        request[HEADER + 4..HEADER + 8].copy_from_slice(&self.index.to_ne_bytes());
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &request, SendFlags::empty(), &kernel)?;
        Ok(())
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The changes that the netlink messages in `bytes` tell, to one whose interface is `index`.
fn changes(mut bytes: &[u8], index: u32) -> impl Iterator<Item = Change> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(word(bytes, 0)?).ok()?;
            if length < HEADER || length > bytes.len() {
                return None;
            }
            let (message, rest) = bytes.split_at(length);
            let skip = length.next_multiple_of(4) - length;
            bytes = rest.get(skip..).unwrap_or(&[]);
            let change = decode(message, index);
            if change.is_some() {
                return change;
            }
        }
    })
}

fn decode(message: &[u8], index: u32) -> Option<Change> {
    let kind = half(message, 4)?;
    if kind == NLMSG_ERROR {
        // Only `ask` is ever answered so: the interface is not there.
        return Some(Change::Gone).filter(|_| word(message, HEADER) != Some(0));
    }
    let link = message.get(HEADER..)?;
    // A family of its own marks what a bridge says about its ports.
    if link.len() < LINK || link[0] != 0 {
        return None;
    }
    let (about, flags) = (word(link, 4)?, word(link, 8)?);
    match kind {
        RTM_NEWLINK if about == index => Some(Change::Is {
            up: flags & IFF_UP != 0,
            mtu: attribute(&link[LINK..], IFLA_MTU)?,
        }),
        RTM_DELLINK if about == index => Some(Change::Gone),
        RTM_NEWLINK => Some(Change::Other {
            index: about,
            usable: flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        }),
        RTM_DELLINK => Some(Change::OtherGone { index: about }),
        _ => None,
    }
}

/// The 32 bit attribute `wanted`.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<u32> {
    loop {
        let length = usize::from(half(bytes, 0)?);
        if length < 4 {
            return None;
        }
        if half(bytes, 2)? == wanted {
            return word(bytes, 4);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, index: u32, flags: u32, mtu: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + LINK];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
        bytes[HEADER + 8..HEADER + 12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, data) in [(3u16, &b"wg0\0"[..]), (IFLA_MTU, &mtu.to_ne_bytes())] {
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(data);
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn our_own_interface_is_told_from_others() {
        let mut bytes = message(RTM_NEWLINK, 5, IFF_UP | IFF_RUNNING, 1500);
        bytes.extend(message(RTM_NEWLINK, 7, IFF_UP, 1420));
        bytes.extend(message(RTM_NEWLINK, 5, IFF_UP, 1500));
        bytes.extend(message(RTM_NEWLINK, 7, 0, 1280));
        bytes.extend(message(RTM_DELLINK, 5, 0, 1500));
        bytes.extend(message(RTM_DELLINK, 7, 0, 1280));
        let index = 5;
        let mut expected = vec![Change::Other {
            index,
            usable: true,
        }];
        expected.extend([
            Change::Is {
                up: true,
                mtu: 1420,
            },
            Change::Other {
                index,
                usable: false,
            },
            Change::Is {
                up: false,
                mtu: 1280,
            },
            Change::OtherGone { index },
            Change::Gone,
        ]);
        assert_eq!(changes(&bytes, 7).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_loopback_interface_is_up() {
        let mut monitor = Monitor::new(1).unwrap();
        let mut heard = Vec::new();
        while heard.is_empty() {
            monitor.drain(|change| heard.push(change)).unwrap();
            heard.retain(|change| matches!(change, Change::Is { .. } | Change::Gone));
        }
        assert!(
            matches!(heard[0], Change::Is { mtu: 65_536, .. }),
            "{heard:?}"
        );
    }

    #[test]
    fn an_interface_that_is_not_there_is_gone() {
        let mut monitor = Monitor::new(0x7fff_fff0).unwrap();
        let mut heard = Vec::new();
        while heard.is_empty() {
            monitor.drain(|change| heard.push(change)).unwrap();
            heard.retain(|change| matches!(change, Change::Is { .. } | Change::Gone));
        }
        assert_eq!(heard, [Change::Gone]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(changes(&bytes, 0).count() <= bytes.len());
        }
    }
}
