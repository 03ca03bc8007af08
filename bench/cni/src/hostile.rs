//! A pod that sends from its first microsecond: datagrams as soon as the kernel finds a way, frames with guessed
//! sources as soon as there is an interface. What arrives is counted at other pods, on the node and beyond it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use lab::{Netns, forge};

/// Where the victims listen.
const PORT: u16 = 9;

/// What is sent.
const WORDS: &[u8] = b"before its policy";

/// How long a victim's thread waits before it looks whether all is over.
const LOOK: Duration = Duration::from_millis(100);

/// The node's end of every pod's interface, as Calico has it.
const NODE_MAC: [u8; 6] = [0xee; 6];

/// Somebody to whom nothing must come.
#[derive(Debug)]
pub(crate) struct Victim {
    /// Its address.
    pub(crate) address: IpAddr,
    heard: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

/// What a hostile pod tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tried {
    /// Datagrams that the pod's kernel took.
    pub(crate) datagrams: u64,
    /// Frames that the pod's interface took.
    pub(crate) frames: u64,
}

impl Victim {
    /// Listens at an address of a namespace.
    pub(crate) fn new(netns: &Netns, address: IpAddr) -> anyhow::Result<Self> {
        let socket = netns.run(|| UdpSocket::bind(SocketAddr::new(address, PORT)))??;
        socket.set_read_timeout(Some(LOOK))?;
        let (heard, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let victim = Self {
            address,
            heard: Arc::clone(&heard),
            over: Arc::clone(&over),
        };
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut buffer)
                    && &buffer[..length] == WORDS
                {
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            }
        });

        Ok(victim)
    }

    /// How many packets came.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends from a namespace until `over`; `guesses` are addresses that the pod may get.
pub(crate) fn attack(
    netns: &Netns,
    victims: &[IpAddr],
    guesses: &[Ipv4Addr],
    over: &AtomicBool,
) -> anyhow::Result<Tried> {
    thread::scope(|scope| {
        let datagrams = scope.spawn(|| datagrams(netns, victims, over));
        let frames = scope.spawn(|| frames(netns, victims, guesses, over));
        let panicked = |_| anyhow::anyhow!("the hostile pod panicked");

        Ok(Tried {
            datagrams: datagrams.join().map_err(panicked)??,
            frames: frames.join().map_err(panicked)?,
        })
    })
}

fn datagrams(netns: &Netns, victims: &[IpAddr], over: &AtomicBool) -> anyhow::Result<u64> {
    let socket =
        netns.run(|| UdpSocket::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)))??;
    socket.set_nonblocking(true)?;
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for victim in victims {
            match socket.send_to(WORDS, SocketAddr::new(*victim, PORT)) {
                Ok(_) => sent += 1,
                Err(error) if is_no_way(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    Ok(sent)
}

fn frames(netns: &Netns, victims: &[IpAddr], guesses: &[Ipv4Addr], over: &AtomicBool) -> u64 {
    let datagram = forge::udp(1024, PORT, WORDS);
    let each = guesses
        .iter()
        .flat_map(|guess| victims.iter().map(move |victim| (guess, victim)));
    let frames: Vec<Vec<u8>> = each
        .map(|(guess, victim)| {
            let packet = forge::ip(&guess.to_string(), &victim.to_string(), 17, &datagram);
            forge::to(NODE_MAC, &forge::frame(&packet))
        })
        .collect();
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for frame in &frames {
            // Until the interface is there and up, nothing can be sent.
            sent += u64::from(forge::send(netns, "eth0", frame).is_ok());
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    sent
}

/// The kernel has no way yet, or refuses this one.
fn is_no_way(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::InvalidInput
    ) || error.raw_os_error() == Some(105)
}
