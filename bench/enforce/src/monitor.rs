//! The kernel's own word for it: every generation of nftables' rules, and when it took effect.
//!
//! Who listens to nftables' notifications has the kernel write one for each element and rule, and slows down what is
//! measured. So the number of the generation is asked for all the time instead, and [`Listener`] is for rounds of
//! their own that count.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lab::Netns;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

/// The group of nftables' notifications (`NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// Types of messages: subsystem 10, `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` of linux/netfilter/nf_tables.h.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const GET_GENERATION: u16 = 10 << 8 | 16;

/// Room for the notifications of a whole ruleset.
const BUFFER: usize = 256 << 20;

/// Bytes in front of a message's own (`struct nlmsghdr`), and of nftables' (`struct nfgenmsg`).
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// How often the generation is asked for: while something is measured, and else.
const SHARP: Duration = Duration::from_micros(250);
const DULL: Duration = Duration::from_millis(10);

/// Asks for the generation of one network namespace until it is dropped.
pub(crate) struct Monitor {
    netns: Arc<Netns>,
    seen: Arc<Mutex<Seen>>,
    is_measuring: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    asker: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

/// What was seen since it was last forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// When the last transaction had taken effect.
    pub(crate) last: Option<Instant>,
    pub(crate) transactions: u32,
}

/// Hears what the kernel tells of transactions.
pub(crate) struct Listener(Socket);

/// What was heard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard {
    /// Objects that came or went.
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Monitor {
    /// Begins to ask; everything that follows is seen.
    pub(crate) fn start(netns: Arc<Netns>) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let [is_measuring, ends] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let mut socket = netns.run(open)??;
        let first = generation(&mut socket)?;
        let (notes, sharp, stop) = (
            Arc::clone(&seen),
            Arc::clone(&is_measuring),
            Arc::clone(&ends),
        );
        let asker = thread::spawn(move || ask(socket, first, &notes, &sharp, &stop));

        Ok(Self {
            netns,
            seen,
            is_measuring,
            ends,
            asker: Some(asker),
        })
    }

    /// Forgets what was seen, and looks closely from now on.
    pub(crate) fn measure(&self) {
        *self.lock() = Seen::default();
        self.is_measuring.store(true, Ordering::Relaxed);
        // Or it would sleep on, longer than what is measured takes.
        if let Some(asker) = &self.asker {
            asker.thread().unpark();
        }
    }

    /// Looks now and then.
    pub(crate) fn relax(&self) {
        self.is_measuring.store(false, Ordering::Relaxed);
    }

    /// Returns what was seen.
    pub(crate) fn seen(&self) -> Seen {
        *self.lock()
    }

    /// Has the kernel tell everything, until what is returned is dropped.
    pub(crate) fn listen(&self) -> anyhow::Result<Listener> {
        let socket = self.netns.run(open)??;
        socket.set_rx_buf_sz(BUFFER).context("no room")?;
        socket.set_non_blocking(true)?;
        socket
            .add_membership(GROUP)
            .context("nftables says nothing")?;

        Ok(Listener(socket))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(asker) = self.asker.take()
            && !matches!(asker.join(), Ok(Ok(())))
        {
            panic!("nobody asked for the generation");
        }
    }
}

impl Listener {
    /// Returns what was heard since this was called last.
    pub(crate) fn heard(&mut self) -> anyhow::Result<Heard> {
        let mut heard = Heard::default();
        let mut buffer = Vec::with_capacity(1 << 20);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => note(&mut heard, &buffer),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(heard),
                Err(error) => return Err(error).context("notifications were lost"),
            }
        }
    }
}

fn open() -> anyhow::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("no netlink socket")?;
    socket.bind_auto().context("the socket cannot be bound")?;

    Ok(socket)
}

fn ask(
    mut socket: Socket,
    mut last: u32,
    seen: &Mutex<Seen>,
    is_measuring: &AtomicBool,
    ends: &AtomicBool,
) -> anyhow::Result<()> {
    while !ends.load(Ordering::Relaxed) {
        let now = generation(&mut socket)?;
        if now != last {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.last = Some(Instant::now());
            seen.transactions += now.wrapping_sub(last);
            last = now;
        }
        let is_sharp = is_measuring.load(Ordering::Relaxed);
        thread::park_timeout(if is_sharp { SHARP } else { DULL });
    }

    Ok(())
}

/// Asks for the number of the generation.
fn generation(socket: &mut Socket) -> anyhow::Result<u32> {
    const REQUEST: u16 = 1;
    /// `NFTA_GEN_ID`, the first attribute, behind its own header.
    const VALUE: usize = HEADER + FAMILY_HEADER + 4;

    let length = u32::try_from(HEADER + FAMILY_HEADER)?;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend_from_slice(&GET_GENERATION.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    request.resize(HEADER + FAMILY_HEADER, 0);
    socket.send(&request, 0).context("nobody can be asked")?;
    let mut answer = Vec::with_capacity(1 << 12);
    socket.recv(&mut answer, 0).context("no answer")?;
    let kind = answer.get(4..6).unwrap_or_default();
    ensure!(kind == NEW_GENERATION.to_ne_bytes(), "no generation");
    let number = answer.get(VALUE..VALUE + 4).context("a short answer")?;

    Ok(u32::from_be_bytes(number.try_into()?))
}

fn note(heard: &mut Heard, mut messages: &[u8]) {
    while let Some((header, _)) = messages.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        heard.messages += usize::from(kind != NEW_GENERATION);
        heard.bytes += length;
        let Some(rest) = messages.get(length.max(HEADER).next_multiple_of(4)..) else {
            return;
        };
        messages = rest;
    }
}

/// Sleeps.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}
