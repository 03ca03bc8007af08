//! The kernel's own word for it: every transaction of nftables, and when it took effect.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use lab::Netns;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The group of nftables' notifications (`NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// The type of the message that ends a transaction: subsystem 10, `NFT_MSG_NEWGEN` of
/// linux/netfilter/nf_tables.h.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Room for the notifications of a whole ruleset.
const BUFFER: usize = 256 << 20;

/// Bytes in front of a message's own (`struct nlmsghdr`).
const HEADER: usize = 16;

/// How long the listener sleeps before it looks whether it is still wanted.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Listens to nftables in one network namespace until it is dropped.
pub(crate) struct Monitor {
    seen: Arc<Mutex<Seen>>,
    ends: Arc<AtomicBool>,
    listener: Option<thread::JoinHandle<()>>,
}

/// What was heard since it was last forgotten.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// When the last transaction took effect.
    pub(crate) last: Option<Instant>,
    pub(crate) transactions: usize,
    /// Objects that came or went.
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Notifications that the socket had no room for.
    pub(crate) is_lossy: bool,
}

impl Monitor {
    /// Begins to listen; returns once everything that follows is heard.
    pub(crate) fn start(netns: Arc<Netns>) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ends = Arc::new(AtomicBool::new(false));
        let socket = netns.run(open)??;
        let (notes, stop) = (Arc::clone(&seen), Arc::clone(&ends));
        let listener = thread::spawn(move || listen(&socket, &notes, &stop));

        Ok(Self {
            seen,
            ends,
            listener: Some(listener),
        })
    }

    /// Forgets what was heard.
    pub(crate) fn forget(&self) {
        *self.lock() = Seen::default();
    }

    /// Returns what was heard.
    pub(crate) fn seen(&self) -> Seen {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take()
            && listener.join().is_err()
        {
            panic!("the listener failed");
        }
    }
}

fn open() -> anyhow::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("no netlink socket")?;
    socket.set_rx_buf_sz(BUFFER).context("no room")?;
    socket.bind_auto().context("the socket cannot be bound")?;
    socket
        .add_membership(GROUP)
        .context("nftables says nothing")?;
    socket.set_non_blocking(true)?;

    Ok(socket)
}

fn listen(socket: &Socket, seen: &Mutex<Seen>, ends: &AtomicBool) {
    let mut buffer = Vec::with_capacity(1 << 20);
    while !ends.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(socket, PollFlags::IN)];
        if !matches!(poll(&mut wanted, Some(&PATIENCE)), Ok(1..)) {
            continue;
        }
        buffer.clear();
        let received = socket.recv(&mut buffer, 0);
        let now = Instant::now();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Ok(_) => note(&mut seen, &buffer, now),
            Err(_) => seen.is_lossy = true,
        }
    }
}

fn note(seen: &mut Seen, mut messages: &[u8], now: Instant) {
    while let Some((header, _)) = messages.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NEW_GENERATION {
            seen.last = Some(now);
            seen.transactions += 1;
        } else {
            seen.messages += 1;
        }
        seen.bytes += length;
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
