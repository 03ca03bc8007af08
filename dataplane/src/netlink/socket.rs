//! One netlink socket, blocking, with its requests.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use netlink_sys::{SocketAddr, constants};
use rustix::net::{RecvFlags, sockopt};
use zeroize::Zeroize;

use super::{Attributes, Message, Received, flag, messages, text};

/// How much one transaction may weigh: 10,000 chains are about 30 MB.
const SEND_BUFFER: usize = 128 << 20;

/// How much may wait for us.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Largest datagram the kernel sends in a dump, with room to spare.
const DATAGRAM: usize = 1 << 17;

/// How many bytes of independent requests go in one send.
const BATCH: usize = 1 << 18;

/// How often a disturbed dump is asked for again.
const DUMP_ATTEMPTS: usize = 5;

/// How long the kernel may take for the next part of a dump.
const PATIENCE: Duration = Duration::from_secs(10);

/// Attribute of an extended acknowledgement that says what was wrong (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Links, addresses, routes, rules, neighbours.
    Route,
    /// nftables.
    Netfilter,
    /// Families that are found by name. Answers may carry keys: they are wiped once they are read.
    Generic,
}

/// Why nothing can be said about a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// The socket could not be made.
    #[error("could not open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be sent.
    #[error("could not send to the kernel")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("could not read the kernel's answer")]
    Receive(#[source] io::Error),
    /// The request itself cannot be encoded.
    #[error("a request of {0} bytes does not fit its format")]
    Oversized(usize),
    /// The kernel sent no answer.
    #[error("the kernel left a request without an answer")]
    Unanswered,
    /// A dump was disturbed each time.
    #[error("the kernel's objects changed under each of {DUMP_ATTEMPTS} dumps")]
    Disturbed,
    /// The kernel refused to dump.
    #[error("the kernel refused to list its objects: {0}")]
    Dump(Refusal),
}

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which of the messages, from zero.
    pub(crate) index: usize,
    /// `errno`.
    pub(crate) errno: i32,
    /// The kernel's own words, where it has some.
    pub(crate) reason: Option<String>,
}

/// A socket to the kernel of the network namespace in which it was opened.
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    /// Whether answers may carry keys.
    is_secret: bool,
    /// How much of the buffer the last answer took.
    dirty: usize,
    traffic: Traffic,
}

/// How many bytes a socket sent to the kernel and received from it; each clone sees the same count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic(Arc<[AtomicU64; 2]>);

impl Traffic {
    /// Returns bytes sent and received.
    pub(crate) fn count(&self) -> [u64; 2] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    fn sent(&self, bytes: usize) {
        self.0[0].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn received(&self, bytes: usize) {
        self.0[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        Self::try_open(protocol).map_err(NetlinkError::Open)
    }

    fn try_open(protocol: Protocol) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(match protocol {
            Protocol::Route => constants::NETLINK_ROUTE,
            Protocol::Netfilter => constants::NETLINK_NETFILTER,
            Protocol::Generic => constants::NETLINK_GENERIC,
        })?;
        let address = socket.bind_auto()?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        if protocol == Protocol::Route {
            socket.set_netlink_get_strict_chk(true)?;
        }
        enlarge(&socket);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;

        Ok(Self {
            socket,
            port: address.port_number(),
            sequence: 0,
            buffer: vec![0; DATAGRAM],
            is_secret: protocol == Protocol::Generic,
            dirty: 0,
            traffic: Traffic::default(),
        })
    }

    /// Returns the number by which the kernel names this socket in notifications.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Returns the count of what goes over this socket.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Subscribes to multicast groups.
    pub(crate) fn join(&self, groups: &[u32]) -> Result<(), NetlinkError> {
        for group in groups {
            self.socket
                .add_membership(*group)
                .map_err(NetlinkError::Open)?;
        }

        Ok(())
    }

    /// Returns a datagram that waits, `None` where none does; an error says that some were lost.
    pub(crate) fn hear(&mut self) -> Option<Result<Vec<u8>, NetlinkError>> {
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(None) => None,
            Ok(Some(length)) => Some(Ok(self.buffer[..length].to_vec())),
            Err(error) => Some(Err(error)),
        }
    }

    /// Sends requests that do not depend on each other and returns those that were refused.
    pub(crate) fn batch(&mut self, requests: Vec<Message>) -> Result<Vec<Refusal>, NetlinkError> {
        let mut refusals = Vec::new();
        let mut pending = requests.into_iter().peekable();
        let mut done = 0;

        while pending.peek().is_some() {
            let (mut chunk, mut size) = (Vec::new(), 0);
            while let Some(message) =
                pending.next_if(|next| size == 0 || size + next.size() < BATCH)
            {
                size += message.size();
                chunk.push(message);
            }
            let count = chunk.len();
            let refused = self.exchange(chunk)?;
            refusals.extend(refused.into_iter().map(|each| Refusal {
                index: each.index + done,
                ..each
            }));
            done += count;
        }

        Ok(refusals)
    }

    /// Sends messages in one datagram and reads every answer: the last message asks for one.
    pub(crate) fn exchange(
        &mut self,
        mut requests: Vec<Message>,
    ) -> Result<Vec<Refusal>, NetlinkError> {
        let Some(last) = requests.last_mut() else {
            return Ok(Vec::new());
        };
        last.add_flag(flag::ACK);
        let (first, count) = self.send(requests)?;

        self.acknowledgements(first, count)
    }

    /// Sends messages in one datagram; returns the first's sequence number and their count.
    pub(crate) fn send(&mut self, requests: Vec<Message>) -> Result<(u32, u32), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let secret = requests.iter().any(Message::is_secret);
        let size = requests.iter().map(Message::size).sum();
        let mut datagram = Datagram(Vec::with_capacity(size), secret);
        let mut count = 0;
        for mut message in requests {
            self.sequence = self.sequence.wrapping_add(1);
            count += 1;
            let size = message.size();
            let bytes = message
                .finish(self.sequence)
                .ok_or(NetlinkError::Oversized(size))?;
            datagram.0.extend_from_slice(bytes);
        }

        self.traffic.sent(datagram.0.len());
        self.socket
            .send_to(&datagram.0, &SocketAddr::new(0, 0), 0)
            .map_err(NetlinkError::Send)?;

        Ok((first, count))
    }

    /// Reads what the kernel answered, which it did before the send returned.
    ///
    /// A refusal of the first message may be the only answer (nfnetlink speaks so about a whole batch).
    pub(crate) fn acknowledgements(
        &mut self,
        first: u32,
        count: u32,
    ) -> Result<Vec<Refusal>, NetlinkError> {
        self.answers(first, count, |_| ())
    }

    /// Reads what the kernel answered, as [`acknowledgements`](Self::acknowledgements) does, and what else it said of
    /// these messages.
    pub(crate) fn answers(
        &mut self,
        first: u32,
        count: u32,
        mut note: impl FnMut(&Received<'_>),
    ) -> Result<Vec<Refusal>, NetlinkError> {
        let (mut refusals, mut answered) = (Vec::new(), false);
        while let Some(length) = self.receive(RecvFlags::DONTWAIT)? {
            for message in messages(&self.buffer[..length]) {
                let index = message.sequence.wrapping_sub(first);
                if index >= count {
                    continue;
                }
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    note(&message);
                    continue;
                }
                answered |= index + 1 == count;
                refusals.extend(refusal(&message, index));
            }
        }
        if !answered && refusals.is_empty() {
            return Err(NetlinkError::Unanswered);
        }

        Ok(refusals)
    }

    /// Asks for one object and returns the answer; `None` where there is no such object.
    pub(crate) fn get<T>(
        &mut self,
        request: Message,
        read: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<Result<Option<T>, Refusal>, NetlinkError> {
        let (first, _) = self.send(vec![request])?;
        let (mut found, mut refused) = (None, None);
        while let Some(length) = self.receive(RecvFlags::DONTWAIT)? {
            for message in messages(&self.buffer[..length]) {
                if message.sequence != first {
                    continue;
                }
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    refused = refusal(&message, 0);
                } else {
                    found = read(&message);
                }
            }
        }

        Ok(refused.map_or(Ok(found), Err))
    }

    /// Lists objects; each message that `read` understands becomes an item.
    pub(crate) fn dump<T>(
        &mut self,
        mut request: Message,
        read: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        request.add_flag(flag::DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            let items = self.dump_once(request.clone(), &read);
            self.wipe();
            if let Some(items) = items? {
                return Ok(items);
            }
        }

        Err(NetlinkError::Disturbed)
    }

    fn dump_once<T>(
        &mut self,
        request: Message,
        read: &impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let (sequence, _) = self.send(vec![request])?;
        let (mut items, mut disturbed) = (Vec::new(), false);
        loop {
            let length = self
                .receive(RecvFlags::empty())?
                .ok_or(NetlinkError::Unanswered)?;
            for message in messages(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                disturbed |= message.flags & flag::DUMP_INTERRUPTED != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok((!disturbed).then_some(items)),
                    libc::NLMSG_ERROR => {
                        let refused = refusal(&message, 0).ok_or(NetlinkError::Unanswered)?;
                        return Err(NetlinkError::Dump(refused));
                    }
                    _ => items.extend(read(&message)),
                }
            }
        }
    }

    /// Forgets the last answer, where it may carry keys.
    fn wipe(&mut self) {
        if self.is_secret {
            self.buffer[..self.dirty].zeroize();
            self.dirty = 0;
        }
    }

    /// Reads one datagram over the last one; `None` where none waits.
    fn receive(&mut self, flags: RecvFlags) -> Result<Option<usize>, NetlinkError> {
        self.wipe();
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[..], flags) {
                Ok((length, _)) => {
                    self.traffic.received(length);
                    self.dirty = length;
                    return Ok(Some(length));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(NetlinkError::Receive(error.into())),
            }
        }
    }
}

/// What is sent at once; wiped when it is dropped, where it carries a key.
struct Datagram(Vec<u8>, bool);

impl Drop for Datagram {
    fn drop(&mut self) {
        if self.1 {
            self.0.zeroize();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Makes the buffers large: beyond the machine's limit where we may, else up to it.
pub(super) fn enlarge(socket: &netlink_sys::Socket) {
    if sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER).is_err() {
        let limited = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER);
        tracing::debug!(
            ?limited,
            "The netlink send buffer is limited by net.core.wmem_max"
        );
    }
    if sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err() {
        let limited = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER);
        tracing::debug!(
            ?limited,
            "The netlink receive buffer is limited by net.core.rmem_max"
        );
    }
}

/// Reads an acknowledgement; `None` where it says that all went well.
fn refusal(message: &Received<'_>, index: u32) -> Option<Refusal> {
    /// `errno`, then the header of the refused message (`struct nlmsgerr`).
    const ERROR_HEADER: usize = 20;

    let errno = i32::from_ne_bytes(message.payload.get(..4)?.try_into().ok()?).wrapping_neg();
    if errno == 0 {
        return None;
    }
    let attributes = Attributes::new(message.payload.get(ERROR_HEADER..).unwrap_or_default());
    let reason = attributes
        .find(ERROR_TEXT)
        .and_then(text)
        .map(str::to_owned);

    Some(Refusal {
        index: usize::try_from(index).ok()?,
        errno,
        reason,
    })
}

impl Refusal {
    /// Returns whether the kernel said that what the request names is not there.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(
            self.errno,
            libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL
        )
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.errno).fmt(f)?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
