//! Echo servers: one thread that sends back whatever comes to its sockets.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, read, write},
    net::{
        AddressFamily, Protocol as IpProtocol, RecvFlags, SendFlags, SocketFlags, SocketType,
        accept_with, bind, getsockname, ipproto, listen, recvfrom, sendto, socket_with, sockopt,
    },
};

use crate::{
    netns::{Netns, NetnsError},
    spec::{Listen, Protocol},
};

/// The most connections one server holds; more wait.
const MAX_CONNECTIONS: usize = 512;

/// The most bytes that wait to be sent back on one connection.
const MAX_PENDING: usize = 256 << 10;

/// Echo servers of one namespace; dropping it ends them.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<OwnedFd>,
    addresses: Vec<(Protocol, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

/// Why an echo server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    /// The namespace could not be entered.
    #[error("the namespace of the echo server")]
    Netns(#[from] NetnsError),
    /// The kernel lacks the protocol.
    #[error("this kernel has no {0}")]
    Unsupported(Protocol),
    /// The port cannot be listened on.
    #[error("{protocol} {address} cannot be listened on")]
    Listen {
        /// The protocol.
        protocol: Protocol,
        /// The address and port.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("the echo server's thread")]
    Thread(#[source] io::Error),
}

impl Echo {
    /// Listens in a namespace: TCP and SCTP on whatever address is asked, UDP on `addresses`, each
    /// with a socket of its own, so that the answer leaves from the address that was asked.
    /// A protocol that the kernel lacks is left out with a warning.
    ///
    /// # Errors
    /// [`EchoError`].
    pub fn start(
        netns: &Netns,
        addresses: &[IpAddr],
        listens: &[Listen],
    ) -> Result<Self, EchoError> {
        netns.run(|| Self::start_here(addresses, listens))?
    }

    /// As [`Echo::start`], in the calling thread's namespace.
    ///
    /// # Errors
    /// [`EchoError`].
    pub fn start_here(addresses: &[IpAddr], listens: &[Listen]) -> Result<Self, EchoError> {
        let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let mut sockets = Vec::new();
        for Listen { protocol, port } in listens {
            let addresses = match protocol {
                Protocol::Udp => addresses,
                Protocol::Tcp | Protocol::Sctp => &any,
            };
            for address in addresses {
                match Server::open(*protocol, SocketAddr::new(*address, *port)) {
                    Err(EchoError::Unsupported(protocol)) => {
                        tracing::warn!(%protocol, "this kernel lacks the protocol");
                    }
                    other => sockets.push(other?),
                }
            }
        }
        Self::serve(sockets)
    }

    /// Listens on one address, on a port that the kernel chooses.
    ///
    /// # Errors
    /// [`EchoError`].
    pub fn on(netns: &Netns, protocol: Protocol, address: IpAddr) -> Result<Self, EchoError> {
        let any_port = SocketAddr::new(address, 0);
        let server = netns.run(|| Server::open(protocol, any_port))??;
        Self::serve(vec![server])
    }

    fn serve(servers: Vec<Server>) -> Result<Self, EchoError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| EchoError::Thread(error.into()))?);
        let addresses = servers
            .iter()
            .map(|server| (server.protocol, server.address))
            .collect();
        let theirs = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || echo(&servers, &theirs))
            .map_err(EchoError::Thread)?;
        Ok(Self {
            stop,
            addresses,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[(Protocol, SocketAddr)] {
        &self.addresses
    }

    /// Waits for its end, which comes only by a failure.
    pub fn join(mut self) {
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("an echo server's thread panicked");
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Err(error) = write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "an echo server cannot be stopped");
            return;
        }
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("an echo server's thread panicked");
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
struct Server {
    protocol: Protocol,
    address: SocketAddr,
    socket: OwnedFd,
}

impl Server {
    /// Opens a socket; `::` takes IPv4 as well, and falls back to it where there is no IPv6.
    fn open(protocol: Protocol, address: SocketAddr) -> Result<Self, EchoError> {
        match Self::bind(protocol, address) {
            Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) => {
                Err(EchoError::Unsupported(protocol))
            }
            Err(Errno::AFNOSUPPORT) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
                Self::open(protocol, v4)
            }
            other => other.map_err(|error| EchoError::Listen {
                protocol,
                address,
                source: error.into(),
            }),
        }
    }

    fn bind(protocol: Protocol, address: SocketAddr) -> Result<Self, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let (kind, number): (_, IpProtocol) = match protocol {
            Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
            Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
            Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, kind, flags, Some(number))?;
        match protocol {
            Protocol::Tcp | Protocol::Sctp => {
                sockopt::set_socket_reuseaddr(&socket, true)?;
                bind(&socket, &address)?;
                listen(&socket, 128)?;
            }
            Protocol::Udp => {
                bind(&socket, &address)?;
            }
        }
        let address = SocketAddr::try_from(getsockname(&socket)?)?;
        Ok(Self {
            protocol,
            address,
            socket,
        })
    }
}

/// A connection, and what waits to be sent back on it.
struct Connection {
    socket: OwnedFd,
    pending: VecDeque<u8>,
    /// The other side has said all; what is pending is still sent.
    ended: bool,
}

/// The thread: accepts, reads, and sends back, until it is told to stop.
fn echo(servers: &[Server], stop: &OwnedFd) {
    let mut connections: Vec<Connection> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let ready = match wait(servers, stop, &connections) {
            Ok(ready) => ready,
            Err(error) => return tracing::error!(%error, "an echo server cannot wait"),
        };
        let (stopped, rest) = ready.split_at(1);
        let (for_servers, for_connections) = rest.split_at(servers.len());
        if stopped[0] {
            return;
        }
        let mut index = 0;
        connections.retain_mut(|connection| {
            index += 1;
            !for_connections[index - 1] || connection.pump(&mut buffer)
        });
        for (server, _) in servers.iter().zip(for_servers).filter(|(_, ready)| **ready) {
            match server.protocol {
                Protocol::Udp => answer(&server.socket, &mut buffer),
                Protocol::Tcp | Protocol::Sctp => accept(server, &mut connections),
            }
        }
    }
}

/// Which of stop, servers and connections have something to do, in this order.
fn wait(
    servers: &[Server],
    stop: &OwnedFd,
    connections: &[Connection],
) -> Result<Vec<bool>, Errno> {
    fn entry(fd: BorrowedFd<'_>, flags: PollFlags) -> PollFd<'_> {
        PollFd::from_borrowed_fd(fd, flags)
    }
    let mut waiting = vec![entry(stop.as_fd(), PollFlags::IN)];
    let full = connections.len() >= MAX_CONNECTIONS;
    let accepting = if full {
        PollFlags::empty()
    } else {
        PollFlags::IN
    };
    waiting.extend(
        servers
            .iter()
            .map(|server| entry(server.socket.as_fd(), accepting)),
    );
    waiting.extend(connections.iter().map(|connection| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, !connection.pending.is_empty());
        let room = connection.pending.len() < MAX_PENDING;
        flags.set(PollFlags::IN, room && !connection.ended);
        entry(connection.socket.as_fd(), flags)
    }));
    match poll(&mut waiting, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    Ok(waiting.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn accept(server: &Server, connections: &mut Vec<Connection>) {
    while connections.len() < MAX_CONNECTIONS {
        match accept_with(&server.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                if server.protocol == Protocol::Tcp
                    && let Err(error) = sockopt::set_tcp_nodelay(&socket, true)
                {
                    tracing::debug!(%error, "an echo server's connection keeps its delay");
                }
                connections.push(Connection {
                    socket,
                    pending: VecDeque::new(),
                    ended: false,
                });
            }
            Err(Errno::AGAIN) => return,
            Err(error) => return tracing::debug!(%error, "an echo server accepts nobody"),
        }
    }
}

/// Sends every datagram back that waits.
fn answer(socket: &OwnedFd, buffer: &mut [u8]) {
    loop {
        let (length, from) = match recvfrom(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, length, Some(from))) => (length, from),
            Ok((_, _, None)) | Err(Errno::INTR | Errno::CONNREFUSED) => continue,
            Err(Errno::AGAIN) => return,
            Err(error) => return tracing::debug!(%error, "an echo server hears nothing"),
        };
        let sent = sendto(
            socket,
            &buffer[..length.min(buffer.len())],
            SendFlags::NOSIGNAL,
            &from,
        );
        if let Err(error) = sent {
            tracing::debug!(%error, "an echo is lost");
        }
    }
}

impl Connection {
    /// Moves what can be moved; false once the connection is over.
    fn pump(&mut self, buffer: &mut [u8]) -> bool {
        while !self.ended && self.pending.len() < MAX_PENDING {
            match read(&self.socket, &mut *buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => self.pending.extend(&buffer[..length]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
            if !self.flush() {
                return false;
            }
        }
        self.flush() && !(self.ended && self.pending.is_empty())
    }

    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match write(&self.socket, self.pending.as_slices().0) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}
