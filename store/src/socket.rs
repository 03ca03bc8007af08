//! The TCP sockets of the control connection: short segments, so that a black hole does not stop it.
//!
//! A path that carries less than its ends believe, and whose routers keep silent about it, swallows
//! full-size segments for ever: the connection stands and TLS hangs. Both ends ask for short segments
//! before they connect or listen, and either alone is enough: TCP takes the smaller of what it was told
//! and what it told itself, in each direction.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Largest TCP segment of the control connection, options included, in bytes.
///
/// The packets around it are 1240 bytes (IPv4) and 1260 bytes (IPv6) long: below the 1280 bytes that
/// every IPv6 path carries (§5 of RFC 8200), and small enough for a 1300 byte path inside somebody
/// else's WireGuard over IPv4 (60 bytes).
pub(crate) const MAX_SEGMENT: u32 = 1200;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Connects, from `source` where one is given.
pub(crate) async fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = open(address)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;

    Ok(stream)
}

/// Listens; connections inherit the length of segments.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address)?;
    // A server that starts again takes its port from connections of the last one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;

    socket.listen(BACKLOG)
}

/// Returns whether this machine has an address; in doubt it has.
pub(crate) fn is_here(address: IpAddr) -> bool {
    let bound = UdpSocket::bind(SocketAddr::new(address, 0));

    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

fn open(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    SockRef::from(&socket).set_tcp_mss(MAX_SEGMENT)?;

    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    /// The loopback carries 65536 bytes; what a segment may have there is only what was asked for.
    fn segment(stream: &TcpStream) -> u32 {
        SockRef::from(stream).tcp_mss().unwrap()
    }

    #[tokio::test]
    async fn a_server_alone_keeps_the_segments_of_both_directions_short() {
        for host in HOSTS {
            let listener = listen(host.parse().unwrap()).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap());

            let (client, accepted) = tokio::join!(client, listener.accept());

            assert!(segment(&client.unwrap()) <= MAX_SEGMENT, "{host}");
            assert!(segment(&accepted.unwrap().0) <= MAX_SEGMENT, "{host}");
        }
    }

    #[tokio::test]
    async fn a_client_alone_keeps_the_segments_of_both_directions_short() {
        for host in HOSTS {
            let listener = TcpListener::bind(host).await.unwrap();
            let address = listener.local_addr().unwrap();

            let (client, accepted) = tokio::join!(connect(address, None), listener.accept());

            assert!(segment(&client.unwrap()) <= MAX_SEGMENT, "{host}");
            assert!(segment(&accepted.unwrap().0) <= MAX_SEGMENT, "{host}");
        }
    }

    #[tokio::test]
    async fn without_either_the_segments_are_as_long_as_the_link_carries() {
        for host in HOSTS {
            let listener = TcpListener::bind(host).await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap());

            let (client, accepted) = tokio::join!(client, listener.accept());

            assert!(segment(&client.unwrap()) > MAX_SEGMENT, "{host}");
            assert!(segment(&accepted.unwrap().0) > MAX_SEGMENT, "{host}");
        }
    }
}
