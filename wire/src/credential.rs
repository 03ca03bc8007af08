//! Who is on the other end of a Unix socket.

use std::io;
use std::os::unix::net::UnixStream;

/// Whether the other end is root or runs as the same user as we do (`SO_PEERCRED`, told by the kernel).
pub(crate) fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
