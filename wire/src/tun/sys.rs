//! The `ioctl` requests of a TUN device (`linux/if_tun.h`, `netdevice(7)`).
#![expect(
    unsafe_code,
    reason = "these requests have no safe wrapper; each takes one ifreq or one integer"
)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_short, c_ulong, ifreq};

use super::Offload;

/// `_IOW('T', 202, int)`: attach the file to a device.
const TUNSETIFF: c_ulong = 0x4004_54ca;
/// `_IOW('T', 208, unsigned int)`: what super-frames may be handed out.
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
/// `_IOR('T', 210, unsigned int)`: name and flags of the attached device.
const TUNGETIFF: c_ulong = 0x8004_54d2;

const TUN_F_CSUM: c_ulong = 0x01;
const TUN_F_TSO4: c_ulong = 0x02;
const TUN_F_TSO6: c_ulong = 0x04;
const TUN_F_USO4: c_ulong = 0x20;
const TUN_F_USO6: c_ulong = 0x40;

/// Creates the device `name` and attaches `file` to it.
pub(super) fn attach(file: &File, name: &str) -> io::Result<()> {
    let mut request = request(name);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = truncate(flags);
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) })
}

/// Asks for frames of the given kind.
pub(super) fn set_offload(file: &File, offload: Offload) -> io::Result<()> {
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    let flags = match offload {
        Offload::Udp => tcp | TUN_F_USO4 | TUN_F_USO6,
        Offload::Tcp => tcp,
        Offload::None => 0,
    };
    // SAFETY: the argument of this request is an integer, not a pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, flags) })
}

/// Whether the device behind `file` still exists.
pub(super) fn is_attached(file: &File) -> bool {
    let mut request = request("");
    // SAFETY: the kernel writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF as _, &raw mut request) }).is_ok()
}

/// Sets the MTU of the device `name` in bytes.
pub(super) fn set_mtu(socket: impl AsFd, name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one `ifreq`, which outlives the call.
    check(unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFMTU as _,
            &raw mut request,
        )
    })
}

/// Sets how many packets the device `name` queues.
pub(super) fn set_queue_length(socket: impl AsFd, name: &str, packets: u32) -> io::Result<()> {
    let mut request = request(name);
    // `ifr_qlen` shares its place in the union with `ifru_metric`.
    request.ifr_ifru.ifru_metric = i32::try_from(packets).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one `ifreq`, which outlives the call.
    check(unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFTXQLEN as _,
            &raw mut request,
        )
    })
}

/// A request about the device `name`, which is at most 15 bytes long.
fn request(name: &str) -> ifreq {
    // SAFETY: `ifreq` is plain data; all zero is a valid value of it.
    let mut request: ifreq = unsafe { mem::zeroed() };
    let place = &mut request.ifr_name[..libc::IFNAMSIZ - 1];
    for (to, from) in place.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as _;
    }
    request
}

/// The flags of a TUN device all lie in 16 bits.
const fn truncate(flags: libc::c_int) -> c_short {
    (flags & 0xffff) as c_short
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
