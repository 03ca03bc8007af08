//! A process of a host that sends to remote pods, whatever becomes of it.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::Netns;

/// Time between two rounds of datagrams.
const PAUSE: Duration = Duration::from_millis(2);

/// The port that it sends to: nobody listens there.
const PORT: u16 = 9;

/// A process that sends a datagram to each of some addresses, again and again, until it is dropped.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    tried: AtomicU64,
}

impl Sender {
    /// Starts in a namespace; panics where that is gone.
    pub fn start(netns: &Netns, targets: Vec<IpAddr>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // The thread is born inside the namespace, as its sockets must be.
        let thread = netns
            .run(|| thread::spawn(move || send_all(&targets, &theirs)))
            .expect("the namespace was just made");
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// How many datagrams it has tried to send, those that the kernel refused included.
    pub fn tried(&self) -> u64 {
        self.shared.tried.load(Ordering::Relaxed)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        let failed = matches!(ended, Some(Err(_) | Ok(Err(_))));
        assert!(!failed || thread::panicking(), "the sender fails");
    }
}

fn send_all(targets: &[IpAddr], shared: &Shared) -> io::Result<()> {
    let (v4, v6) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?);
    for socket in [&v4, &v6] {
        socket.set_nonblocking(true)?;
    }
    while !shared.stop.load(Ordering::Relaxed) {
        for target in targets {
            let socket = if target.is_ipv4() { &v4 } else { &v6 };
            // A refusal (no route, a drop in the output path) is what is hoped for.
            drop(socket.send_to(b"from the first moment", SocketAddr::new(*target, PORT)));
            shared.tried.fetch_add(1, Ordering::Relaxed);
        }
        thread::park_timeout(PAUSE);
    }
    Ok(())
}
