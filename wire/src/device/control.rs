//! The slow side of a device: timers, UAPI requests, and what happens to the interface.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire_core::{PeerOutcome, Transmit, Tunnel};
use zeroize::Zeroizing;

use super::{Shared, SocketLoss};
use crate::event::End;
use crate::link::{Change, Monitor};
use crate::socket::{BindError, Closing, SocketPair};
use crate::uapi::{Answer, Configuration, Connection, Errno, Life, Listener, Request};

/// Most UAPI connections at a time; the oldest gives way.
const CONNECTIONS: usize = 16;
/// How long the other threads may take to let go of old sockets.
const LEAVING: Duration = Duration::from_secs(1);

/// The thread's state.
pub(super) struct Control {
    shared: Arc<Shared>,
    uapi: Listener,
    socket_loss: SocketLoss,
    connections: Vec<Connection>,
    monitor: Monitor,
    outbox: Vec<Transmit>,
    /// As configured; 0 is any.
    port: u16,
    mark: u32,
    up: bool,
    /// The port that was last refused: said once, however often it is tried.
    refused: Option<u16>,
    /// The sockets in use, and those we left last.
    current: Option<Closing>,
    left: Option<Closing>,
}

/// Who has something for us.
struct Ready {
    wake: bool,
    link: bool,
    uapi: bool,
    watch: bool,
    connections: Vec<bool>,
}

impl Control {
    pub(super) fn new(
        shared: Arc<Shared>,
        uapi: Listener,
        socket_loss: SocketLoss,
    ) -> io::Result<Self> {
        let monitor = Monitor::new(shared.tun.index())?;
        Ok(Self {
            shared,
            uapi,
            socket_loss,
            connections: Vec::new(),
            monitor,
            outbox: Vec::new(),
            port: 0,
            mark: 0,
            up: false,
            refused: None,
            current: None,
            left: None,
        })
    }

    /// Serves until the device ends.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            if let Err(error) = self.turn() {
                tracing::error!(%error, "the control thread cannot go on");
                self.shared.stop(End::Failed);
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        if ready.wake {
            self.shared.control.clear();
        }
        self.handle_timeout();
        if ready.link {
            self.follow_link()?;
        }
        if ready.watch && !self.uapi.is_there() {
            self.lose_socket();
        }
        self.serve(&ready.connections);
        if ready.uapi {
            self.accept();
        }
        Ok(())
    }

    /// Sleeps until the next deadline or until somebody has something for us.
    fn wait(&self) -> io::Result<Ready> {
        let armed = self.shared.tunnel().poll_timeout();
        self.shared.control.arm(armed);
        // Another thread's deadline from before `arm` is seen here; a later one, if nearer than `armed`, wakes us.
        let deadline = self.shared.tunnel().poll_timeout();
        let timeout = armed.into_iter().chain(deadline).min().map(until);
        let mut fds = vec![
            PollFd::new(&self.shared.control, PollFlags::IN),
            PollFd::new(&self.monitor, PollFlags::IN),
            PollFd::from_borrowed_fd(self.uapi.socket(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.uapi.watch(), PollFlags::IN),
        ];
        fds.extend(
            self.connections.iter().map(|connection| {
                PollFd::from_borrowed_fd(connection.as_fd(), connection.interest())
            }),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        Ok(Ready {
            wake: ready[0],
            link: ready[1],
            uapi: ready[2],
            watch: ready[3],
            connections: ready[4..].to_vec(),
        })
    }

    fn handle_timeout(&mut self) {
        let handle = |tunnel: &mut Tunnel, now| tunnel.handle_one_timeout(now);
        while self.shared.with_tunnel(&mut self.outbox, handle) {}
    }

    // ── the interface ──

    fn follow_link(&mut self) -> io::Result<()> {
        let mut changes = Vec::new();
        self.monitor.drain(|change| changes.push(change))?;
        for change in changes {
            match change {
                Change::Is { up, mtu } => {
                    self.set_mtu(mtu);
                    self.set_up(up);
                }
                Change::Gone if self.shared.tun.is_attached() => {
                    tracing::info!("the interface moved to another namespace; taken as up there");
                    self.set_up(true);
                }
                Change::Gone => self.shared.stop(End::InterfaceDeleted),
                Change::Other { index, usable } => self.set_lost(index, !usable),
                Change::OtherGone { index } => self.set_lost(index, false),
            }
        }
        Ok(())
    }

    /// Remembers the devices that are there and carry nothing.
    fn set_lost(&self, index: u32, lost: bool) {
        let before = self.shared.lost.load();
        if before.contains(&index) == lost {
            return;
        }
        let mut after = BTreeSet::clone(&before);
        if lost {
            after.insert(index);
        } else {
            after.remove(&index);
        }
        self.shared.lost.store(Arc::new(after));
    }

    fn set_mtu(&mut self, mtu: u32) {
        if self.shared.mtu.swap(mtu, Ordering::Relaxed) != mtu {
            tracing::info!(mtu, "MTU changed");
        }
        let mtu = usize::try_from(mtu).unwrap_or(0);
        self.shared.tunnel().set_mtu(mtu);
    }

    fn set_up(&mut self, up: bool) {
        if std::mem::replace(&mut self.up, up) == up {
            return;
        }
        tracing::info!(up, "interface went up or down");
        if up {
            if let Err(error) = self.open(self.port) {
                tracing::warn!(%error, port = self.port, "cannot open the sockets");
                self.refused = Some(self.port);
                // Whoever configured the device looks at it, and sees that it has no port.
                self.shared.say_configured();
            }
        } else {
            self.close();
        }
    }

    /// Listens on `port` in place of whatever was listened on.
    fn open(&mut self, port: u16) -> Result<(), BindError> {
        let current = self.shared.sockets.load().as_ref().map(|pair| pair.port());
        if current == Some(port) && port != 0 {
            return Ok(());
        }
        let pair = self.bind(port)?;
        tracing::info!(port = pair.port(), "listening");
        self.refused = None;
        self.shared.sockets.store(Some(Arc::new(pair)));
        self.shared.inbound.wake();
        self.shared
            .with_tunnel(&mut self.outbox, |tunnel, now| tunnel.set_up(now));
        Ok(())
    }

    /// A port in use may be one that we have just left: the other threads hold its sockets until they look up.
    fn bind(&mut self, port: u16) -> Result<SocketPair, BindError> {
        let joining = self.shared.joining();
        let bound = match SocketPair::bind(port, self.mark, joining) {
            Err(error) if error.errno() == libc::EADDRINUSE && self.has_closed() => {
                SocketPair::bind(port, self.mark, joining)
            }
            done => done,
        };
        let (pair, closing) = bound?;
        self.left = self.current.replace(closing).or(self.left.take());
        Ok(pair)
    }

    /// Whether the sockets that we left last are closed by all threads.
    fn has_closed(&self) -> bool {
        let left = self.left.as_ref();
        left.is_some_and(|closing| closing.wait(LEAVING))
    }

    fn close(&mut self) {
        self.shared.tunnel().set_down();
        self.shared.sockets.store(None);
        self.left = self.current.take().or(self.left.take());
        self.shared.inbound.wake();
    }

    // ── UAPI ──

    /// The tunnel carries on without its UAPI socket, if need be.
    fn lose_socket(&mut self) {
        match self.socket_loss {
            SocketLoss::End => self.shared.stop(End::SocketRemoved),
            SocketLoss::Rebind => {
                tracing::warn!("the UAPI socket was removed and is made again");
                if let Err(error) = self.uapi.rebind() {
                    tracing::error!(%error, "cannot make the UAPI socket again");
                }
            }
        }
    }

    fn accept(&mut self) {
        match self.uapi.accept() {
            Ok(Some(connection)) => {
                if self.connections.len() == CONNECTIONS {
                    self.connections.remove(0);
                }
                self.connections.push(connection);
            }
            Ok(None) => (),
            Err(error) => tracing::warn!(%error, "cannot accept a UAPI connection"),
        }
    }

    fn serve(&mut self, ready: &[bool]) {
        let connections = std::mem::take(&mut self.connections);
        let mut open = Vec::with_capacity(connections.len() + 1);
        for (mut connection, ready) in connections.into_iter().zip(ready) {
            if !ready || connection.serve(|request| self.answer(request)) == Life::Open {
                open.push(connection);
            }
        }
        self.connections = open;
    }

    fn answer(&mut self, request: Request) -> Result<Zeroizing<String>, Errno> {
        match request {
            Request::Get => Ok(self.describe()),
            Request::Set(configuration) => {
                self.apply(*configuration)?;
                Ok(Zeroizing::default())
            }
        }
    }

    fn describe(&self) -> Zeroizing<String> {
        let bound = self.shared.sockets.load().as_ref().map(|pair| pair.port());
        let tunnel = self.shared.tunnel();
        let size = tunnel.peers().fold((0, 0), |(n, ips), peer| {
            (n + 1, ips + peer.allowed_ips.len())
        });
        // A device that is up and could not open its sockets listens on no port.
        let port = bound.unwrap_or(if self.up { 0 } else { self.port });
        let mut answer = Answer::new(tunnel.private_key(), port, self.mark, size);
        for peer in tunnel.peers() {
            answer.push(&peer);
        }
        answer.finish()
    }

    /// Applies a whole request. What may be refused, the sockets, comes first: after that nothing fails.
    fn apply(&mut self, configuration: Configuration) -> Result<(), Errno> {
        if configuration.listen_port.is_some() || configuration.fwmark.is_some() {
            self.apply_sockets(configuration.listen_port, configuration.fwmark)?;
        }
        let shared = Arc::clone(&self.shared);
        let mut result = Ok(());
        shared.with_tunnel(&mut self.outbox, |tunnel, now| {
            if let Some(key) = configuration.private_key {
                tunnel.set_private_key(key, now);
            }
            if configuration.replace_peers {
                tunnel.remove_peers();
            }
            for (key, change) in configuration.peers {
                match tunnel.configure_peer(key, change, now) {
                    PeerOutcome::Configured(_)
                    | PeerOutcome::Removed
                    | PeerOutcome::Absent
                    | PeerOutcome::OwnKey => (),
                    PeerOutcome::TooMany => result = Err(Errno(libc::ENOMEM)),
                }
            }
            shared.generation.fetch_add(1, Ordering::Release);
        });
        tracing::debug!("configured");
        self.shared.say_configured();
        result
    }

    /// Changes port and mark, both or neither.
    fn apply_sockets(&mut self, port: Option<u16>, mark: Option<u32>) -> Result<(), Errno> {
        let before = self.mark;
        self.mark = mark.unwrap_or(before);
        if let Some(port) = port.filter(|_| self.up)
            && let Err(error) = self.open(port)
        {
            if self.refused.replace(port) != Some(port) {
                tracing::warn!(%error, port, "cannot change the port");
            }
            self.mark = before;
            return Err(Errno(error.errno()));
        }
        if let Some(pair) = &*self.shared.sockets.load()
            && let Err(error) = pair.set_mark(self.mark)
        {
            tracing::warn!(%error, mark = self.mark, "cannot mark the sockets");
            self.mark = before;
            return Err(Errno(error.raw_os_error().unwrap_or(libc::EIO)));
        }
        self.port = port.unwrap_or(self.port);
        Ok(())
    }
}

/// Time from now on until `deadline`, rounded up to what `poll` can wait for exactly.
fn until(deadline: Instant) -> Timespec {
    let rest = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: rest.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: rest.subsec_nanos().into(),
    }
}
