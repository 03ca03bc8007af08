//! Streams that the server carries: a client asks once, and then only listens.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{End, Family, poll_until, spec::Protocol};

/// Time between two records.
const PACE: Duration = Duration::from_millis(4);

/// What a server sends, and a client asks with.
const RECORD: [u8; 64] = [0x6d; 64];

/// A stream that has said nothing for so long stands still.
const SILENCE: Duration = Duration::from_secs(1);

/// How long a client asks before it gives up.
const ASKING: Duration = Duration::from_secs(3);

/// How often a client asks anew that has no answer.
const AGAIN: Duration = Duration::from_millis(50);

/// Sends to everybody who has asked, until it is dropped.
#[derive(Debug)]
pub struct Server {
    protocol: Protocol,
    address: SocketAddr,
    shared: Arc<Heard>,
    thread: Option<JoinHandle<()>>,
}

/// What a server's threads see.
#[derive(Debug, Default)]
struct Heard {
    stop: AtomicBool,
    /// Bytes that clients have sent.
    bytes: AtomicU64,
}

/// A stream from a server.
#[derive(Debug)]
pub struct Download {
    name: String,
    server: Arc<Server>,
    client: Client,
    shared: Arc<Came>,
    thread: Option<JoinHandle<()>>,
}

/// What came to a client.
#[derive(Debug, Default)]
struct Came {
    stop: AtomicBool,
    /// Clients of a crowd that have asked.
    asked: AtomicU64,
    bytes: AtomicU64,
    breaks: AtomicU32,
    last: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Client {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Came {
    fn note(&self, length: usize) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Instant::now());
        self.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }

    fn await_silence(&self, who: &str, patience: Duration) -> Duration {
        let start = Instant::now();
        let last = || {
            let last = self.last.lock();
            (*last.unwrap_or_else(PoisonError::into_inner)).unwrap_or(start)
        };
        let silent = poll_until(start + patience, || last().elapsed() >= SILENCE);
        assert!(silent, "{who} still flows after {patience:?}");

        last().saturating_duration_since(start)
    }
}

impl Server {
    /// Starts a server on an address; panics where it cannot.
    pub fn start(end: &dyn End, protocol: Protocol, address: SocketAddr) -> Arc<Self> {
        let shared = Arc::new(Heard::default());
        let theirs = Arc::clone(&shared);
        let started = end.netns().run(|| match protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(address).expect("the server's address is free");
                let address = socket.local_addr().expect("a bound socket has an address");
                (
                    address,
                    thread::spawn(move || serve_datagrams(&socket, &theirs)),
                )
            }
            Protocol::Tcp | Protocol::Sctp => {
                let listener = TcpListener::bind(address).expect("the server's address is free");
                let address = listener
                    .local_addr()
                    .expect("a bound socket has an address");
                (
                    address,
                    thread::spawn(move || serve_segments(&listener, &theirs)),
                )
            }
        });
        let (address, thread) = started.expect("the server's namespace is there");

        Arc::new(Self {
            protocol,
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// Starts servers of TCP and UDP, on an end's addresses of both families.
    pub fn all(end: &dyn End) -> Vec<Arc<Self>> {
        let families = [Family::V4, Family::V6].map(|family| end.address(family));
        let protocols = [Protocol::Tcp, Protocol::Udp];

        families
            .into_iter()
            .flat_map(|address| protocols.map(|protocol| (protocol, address)))
            .map(|(protocol, address)| Self::start(end, protocol, SocketAddr::new(address, 0)))
            .collect()
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn heard(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        end(&mut self.thread);
    }
}

impl Download {
    /// Asks a server by one of its addresses, or by somebody else's who translates; `None` where no answer comes.
    pub fn attempt(client: &dyn End, server: &Arc<Server>, to: SocketAddr) -> Option<Self> {
        let shared = Arc::new(Came::default());
        let theirs = Arc::clone(&shared);
        let opened = client.netns().run(|| open(server.protocol, to));
        let near = opened.expect("the client's namespace is there")?;
        let far = near.clone();
        let mut download = Self {
            name: format!("{} from {to} ({})", client.label(), server.protocol),
            server: Arc::clone(server),
            client: near,
            shared,
            thread: Some(thread::spawn(move || listen(far, &theirs))),
        };
        let start = Instant::now();
        while download.received() == 0 {
            if start.elapsed() > ASKING {
                return None;
            }
            download.ask();
            thread::park_timeout(AGAIN);
        }

        Some(download)
    }

    /// Asks a server; panics where no answer comes.
    pub fn start(client: &dyn End, server: &Arc<Server>, to: SocketAddr) -> Self {
        let started = Self::attempt(client, server, to);
        started.unwrap_or_else(|| panic!("{} gets nothing from {to}", client.label()))
    }

    /// Asks each of these servers by its own address.
    pub fn each(client: &dyn End, servers: &[Arc<Server>]) -> Vec<Self> {
        let servers = servers.iter();

        servers
            .map(|server| Self::start(client, server, server.address()))
            .collect()
    }

    /// Returns whether something comes in time.
    pub fn flows(&self, patience: Duration) -> bool {
        let before = self.received();

        poll_until(Instant::now() + patience, || self.received() > before)
    }

    /// Waits until nothing comes any more; returns how long from now on something came.
    pub fn await_silence(&self, patience: Duration) -> Duration {
        self.shared.await_silence(&self.name, patience)
    }

    /// Asserts that nothing passes in either direction on any of these, although both ends of each send.
    pub fn assert_all_dead(downloads: &mut [Self]) {
        let count = |downloads: &[Self]| -> Vec<_> {
            let each = downloads.iter();
            each.map(|download| (download.received(), download.server.heard()))
                .collect()
        };
        let before = count(downloads);
        let start = Instant::now();
        while start.elapsed() < SILENCE {
            for download in &mut *downloads {
                download.ask();
            }
            thread::park_timeout(AGAIN);
        }
        for ((download, before), now) in downloads.iter().zip(before).zip(count(downloads)) {
            assert_eq!(
                now, before,
                "{download} was revived (bytes at client, at server)"
            );
        }
    }

    /// Returns how often the connection broke.
    pub fn breaks(&self) -> u32 {
        self.shared.breaks.load(Ordering::Relaxed)
    }

    /// What cannot be sent now need not be.
    fn ask(&mut self) {
        drop(match &mut self.client {
            Client::Tcp(stream) => stream.write(&RECORD),
            Client::Udp(socket) => socket.send(&RECORD),
        });
    }

    fn received(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        end(&mut self.thread);
    }
}

impl Clone for Client {
    fn clone(&self) -> Self {
        let cloned = match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Udp(socket) => socket.try_clone().map(Self::Udp),
        };
        cloned.expect("a process has room for a descriptor more")
    }
}

/// Clients of one server that come one after the other, and only listen then.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Came>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Has clients ask a server of UDP, one every few milliseconds, until the crowd is complete.
    pub fn gather(client: &dyn End, server: &Server, count: usize) -> Self {
        let shared = Arc::new(Came::default());
        let (theirs, to) = (Arc::clone(&shared), server.address);
        let opened = client.netns().run(|| {
            let sockets = (0..count).map(|_| open(Protocol::Udp, to).expect("a port is free"));
            sockets.collect::<Vec<_>>()
        });
        let sockets = opened.expect("the client's namespace is there");

        Self {
            shared,
            thread: Some(thread::spawn(move || come_and_listen(&sockets, &theirs))),
        }
    }

    /// Returns how many have asked.
    pub fn size(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Returns how many bytes came to all of them.
    pub fn received(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Waits until nothing comes to any of them any more.
    pub fn await_silence(&self, patience: Duration) -> Duration {
        self.shared.await_silence("the crowd", patience)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        end(&mut self.thread);
    }
}

fn come_and_listen(clients: &[Client], shared: &Came) {
    let mut buffer = [0; 4096];
    let mut coming = clients.iter();
    for client in clients {
        let Client::Udp(socket) = client else {
            continue;
        };
        socket.set_nonblocking(true).expect("a socket may be so");
    }
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(Client::Udp(socket)) = coming.next() {
            drop(socket.send(&RECORD));
            shared.asked.fetch_add(1, Ordering::Relaxed);
        }
        for client in clients {
            let Client::Udp(socket) = client else {
                continue;
            };
            while let Ok(length) = socket.recv(&mut buffer) {
                shared.note(length);
            }
        }
        thread::park_timeout(PACE);
    }
}

/// Opens so many connections of UDP from one end to another; nobody answers.
pub fn sprinkle(from: &dyn End, to: &dyn End, count: u32) {
    let addresses = [Family::V4, Family::V6].map(|family| to.address(family));
    let opened = from.netns().run(|| {
        for (address, first) in addresses.into_iter().zip([0, 60_000]) {
            let any: SocketAddr = if address.is_ipv4() {
                "0.0.0.0:0".parse().expect("an address")
            } else {
                "[::]:0".parse().expect("an address")
            };
            let socket = UdpSocket::bind(any).expect("a port is free");
            for number in first..count.min(first + 60_000) {
                let port = u16::try_from(1024 + number - first).expect("a port");
                // A queue that is full for a moment, or a complaint about an earlier one.
                while socket
                    .send_to(&[0], SocketAddr::new(address, port))
                    .is_err()
                {
                    thread::park_timeout(PACE);
                }
            }
        }
    });
    opened.expect("the namespace is there");
}

/// Connects, if that is possible in time.
fn open(protocol: Protocol, to: SocketAddr) -> Option<Client> {
    let client = match protocol {
        Protocol::Udp => {
            let any: SocketAddr = if to.is_ipv4() {
                "0.0.0.0:0".parse().ok()?
            } else {
                "[::]:0".parse().ok()?
            };
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(to).ok()?;
            socket.set_read_timeout(Some(AGAIN)).ok()?;
            Client::Udp(socket)
        }
        Protocol::Tcp | Protocol::Sctp => {
            let stream = TcpStream::connect_timeout(&to, ASKING).ok()?;
            stream.set_read_timeout(Some(AGAIN)).ok()?;
            stream.set_write_timeout(Some(PACE)).ok()?;
            stream.set_nodelay(true).ok()?;
            Client::Tcp(stream)
        }
    };

    Some(client)
}

/// Counts what comes.
fn listen(mut client: Client, shared: &Came) {
    let mut buffer = [0; 4096];
    while !shared.stop.load(Ordering::Relaxed) {
        let read = match &mut client {
            Client::Tcp(stream) => stream.read(&mut buffer),
            Client::Udp(socket) => socket.recv(&mut buffer),
        };
        match read {
            Ok(0) => break,
            Ok(length) => shared.note(length),
            Err(error) if is_passing(error.kind()) => {}
            Err(_) => {
                shared.breaks.fetch_add(1, Ordering::Relaxed);
                if matches!(client, Client::Tcp(_)) {
                    break;
                }
            }
        }
    }
}

fn serve_datagrams(socket: &UdpSocket, shared: &Heard) {
    socket
        .set_read_timeout(Some(PACE))
        .expect("a time to wait for");
    let mut clients = Vec::new();
    let mut buffer = [0; 4096];
    while !shared.stop.load(Ordering::Relaxed) {
        let due = Instant::now() + PACE;
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            shared.bytes.fetch_add(length as u64, Ordering::Relaxed);
            if !clients.contains(&from) {
                clients.push(from);
            }
            if Instant::now() >= due {
                break;
            }
        }
        for client in &clients {
            // A client that is gone, or a packet that is refused, is what the story is about.
            drop(socket.send_to(&RECORD, client));
        }
    }
}

fn serve_segments(listener: &TcpListener, shared: &Heard) {
    listener
        .set_nonblocking(true)
        .expect("a listener may be so");
    let mut clients: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; 4096];
    while !shared.stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).expect("a stream may be so");
            stream.set_nodelay(true).expect("a stream may be so");
            clients.push(stream);
        }
        for client in &mut clients {
            if let Ok(length) = client.read(&mut buffer) {
                shared.bytes.fetch_add(length as u64, Ordering::Relaxed);
            }
            // A full buffer is what becomes of a stream that is cut.
            drop(client.write(&RECORD));
        }
        thread::park_timeout(PACE);
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn end(thread: &mut Option<JoinHandle<()>>) {
    let ended = thread.take().map(JoinHandle::join);
    assert!(
        thread::panicking() || ended.is_none_or(|ended| ended.is_ok()),
        "a thread of a download panicked"
    );
}
