//! A thousand peers that answer handshakes, each a boringtun with a socket of its own.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, bail};
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::hub::{PORT, address, own_key, secret};

/// How often the crowd looks whether it shall go home.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// The longest datagram.
const LONGEST: usize = 2048;

/// Peers that answer until they are dropped.
pub(crate) struct Crowd {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

struct Member {
    socket: UdpSocket,
    tunnel: Tunn,
}

impl Crowd {
    /// Gathers so many, each at its address of this machine.
    pub(crate) fn gather(count: u32) -> anyhow::Result<Self> {
        let hub = x25519::PublicKey::from(*own_key()?.as_bytes());
        let members = (0..count).map(|index| Member::new(index, hub));
        let mut members: Vec<Member> = members.collect::<anyhow::Result<_>>()?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                answer(&mut members)?;
            }

            Ok(())
        });

        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }

    /// Sends them home; tells what went wrong meanwhile.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => bail!("the crowd panicked"),
        }
    }
}

impl Member {
    fn new(index: u32, hub: x25519::PublicKey) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((address(index), PORT))
            .with_context(|| format!("socket {index}; is `ulimit -n` high enough?"))?;
        socket.set_nonblocking(true)?;
        let key = x25519::StaticSecret::from(secret(index));

        Ok(Self {
            socket,
            tunnel: Tunn::new(key, hub, None, None, index, None),
        })
    }

    /// Answers everything that waits.
    fn answer(&mut self) -> anyhow::Result<()> {
        let (mut received, mut said) = ([0; LONGEST], [0; LONGEST]);
        while let Ok((length, from)) = self.socket.recv_from(&mut received) {
            let heard = self
                .tunnel
                .decapsulate(Some(from.ip()), &received[..length], &mut said);
            if let TunnResult::WriteToNetwork(answer) = heard {
                self.socket.send_to(answer, from)?;
            }
        }

        Ok(())
    }
}

fn answer(members: &mut [Member]) -> anyhow::Result<()> {
    let mut waiting: Vec<_> = members
        .iter()
        .map(|member| PollFd::new(&member.socket, PollFlags::IN))
        .collect();
    poll(&mut waiting, Some(&LOOK))?;
    let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(waiting);
    for (member, _) in members.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        member.answer()?;
    }

    Ok(())
}
