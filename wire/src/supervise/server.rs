//! The service itself: a listening socket, a thread per client, and the devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::hub::{Hub, Interest};
use super::{Code, Created, Hello, LONGEST_LINE, Refusal, Request, Response, VERSION};
use crate::device::{Device, Options, Report, SocketLoss};
use crate::event::Event;
use crate::tun::{DEFAULT_MTU, MTU_RANGE, Offload, is_interface_name};
use crate::waker::Waker;

/// Most clients at a time.
const CLIENTS: usize = 64;
/// Most devices.
const DEVICES: usize = 64;
/// Stack of a client's thread.
const STACK: usize = 128 << 10;
/// How long a client may take to read an answer or an event.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client waits for a device to be gone. The kernel may take many seconds to close a TUN.
const CLOSE: Duration = Duration::from_millis(200);

/// What the service is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub socket: PathBuf,
    /// Where its devices' UAPI sockets are made.
    pub uapi_directory: PathBuf,
    /// The most segmentation offload its devices use.
    pub offload: Offload,
}

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another process serves the socket.
    #[error("{0} is served by another process")]
    Busy(PathBuf),
    /// The socket, or its directory, cannot be made.
    #[error("cannot make {path}")]
    Make {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Waiting for clients failed.
    #[error("cannot wait for clients")]
    Wait(#[source] io::Error),
}

/// A service that listens. Dropping it ends its devices and removes the socket.
pub struct Service {
    listener: UnixListener,
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    devices: Mutex<BTreeMap<String, Device>>,
    /// Names of deleted devices that the kernel is still taking apart.
    closing: Arc<Mutex<BTreeSet<String>>>,
    hub: Arc<Hub>,
    /// Raised when a device ended by itself.
    ended: Arc<Waker>,
    clients: AtomicUsize,
}

impl Service {
    /// Makes the socket, readable and writable by its owner alone.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn bind(settings: Settings) -> Result<Self, ServiceError> {
        let path = settings.socket.clone();
        if UnixStream::connect(&path).is_ok() {
            return Err(ServiceError::Busy(path));
        }
        let make = || {
            let listener = listen(&path)?;
            let shared = Arc::new(Shared {
                settings,
                devices: Mutex::default(),
                closing: Arc::default(),
                hub: Arc::default(),
                ended: Arc::new(Waker::new()?),
                clients: AtomicUsize::new(0),
            });
            Ok(Self { listener, shared })
        };
        make().map_err(|source| ServiceError::Make {
            path: path.clone(),
            source,
        })
    }

    /// Serves until `stop` becomes readable.
    ///
    /// # Errors
    /// [`ServiceError::Wait`].
    pub fn run(&self, stop: BorrowedFd<'_>) -> Result<(), ServiceError> {
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&*self.shared.ended, PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => (),
                Err(errno) => return Err(ServiceError::Wait(errno.into())),
            }
            let [stop, client, ended] = ready.map(|fd| !fd.revents().is_empty());
            if stop {
                return Ok(());
            }
            if ended {
                self.shared.reap();
            }
            if client {
                self.accept();
            }
        }
    }

    fn accept(&self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = welcome(&self.shared, stream) {
                    tracing::warn!(%error, "a client was turned away");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            Err(error) => tracing::warn!(%error, "cannot accept a client"),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.devices().clear();
        if let Err(error) = fs::remove_file(&self.shared.settings.socket) {
            tracing::warn!(%error, "cannot remove the service's socket");
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => (),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Gives the client a thread of its own, if it may have one.
fn welcome(shared: &Arc<Shared>, mut stream: UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    if !crate::credential::is_trusted(&stream)? {
        return Err(ErrorKind::PermissionDenied.into());
    }
    if shared.clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS {
        shared.clients.fetch_sub(1, Ordering::SeqCst);
        let refusal = refuse(Code::Busy, "too many clients");
        return send(&mut stream, &Response::Error(refusal));
    }
    let held = Arc::clone(shared);
    let thread = std::thread::Builder::new()
        .name("client".into())
        .stack_size(STACK)
        .spawn(move || {
            if let Err(error) = held.serve(stream) {
                tracing::debug!(%error, "a client's connection broke");
            }
            held.clients.fetch_sub(1, Ordering::SeqCst);
        });
    thread.map(|_| ()).inspect_err(|_| {
        shared.clients.fetch_sub(1, Ordering::SeqCst);
    })
}

impl Shared {
    fn devices(&self) -> MutexGuard<'_, BTreeMap<String, Device>> {
        lock(&self.devices)
    }

    /// Buries devices that ended by themselves; their own report has told the subscribers.
    fn reap(&self) {
        self.ended.clear();
        let dead: Vec<Device> = self
            .devices()
            .extract_if(.., |_, device| device.has_ended())
            .map(|(_, device)| device)
            .collect();
        // Dropped here, outside the lock: this waits for their threads.
        drop(dead);
    }

    /// One client, until it leaves.
    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            Read::take(&mut reader, LONGEST_LINE).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            if !line.ends_with(b"\n") {
                return send(
                    reader.get_mut(),
                    &Response::Error(refuse(Code::BadRequest, "the line is too long")),
                );
            }
            match serde_json::from_slice(&line) {
                Ok(Request::Events) => {
                    return self.stream_events(reader.into_inner(), Interest::Events);
                }
                Ok(Request::Watch) => {
                    return self.stream_events(reader.into_inner(), Interest::Configuration);
                }
                Ok(request) => {
                    let response = self.answer(request).unwrap_or_else(Response::Error);
                    send(reader.get_mut(), &response)?;
                }
                Err(error) => {
                    let refusal = refuse(Code::BadRequest, &error);
                    send(reader.get_mut(), &Response::Error(refusal))?;
                }
            }
        }
    }

    fn answer(&self, request: Request) -> Result<Response, Refusal> {
        match request {
            Request::Hello { version: _ } => Ok(Response::Hello(Hello {
                version: VERSION,
                pid: std::process::id(),
                uapi_directory: self.settings.uapi_directory.clone(),
            })),
            Request::Create { name, mtu } => self
                .create(name, mtu.unwrap_or(DEFAULT_MTU))
                .map(Response::Created),
            Request::Delete { name } => self.delete(&name).map(|()| Response::Deleted),
            Request::List => Ok(Response::Devices {
                devices: self.devices().values().map(Device::status).collect(),
            }),
            Request::Events | Request::Watch => {
                Err(refuse(Code::BadRequest, "asked for elsewhere"))
            }
        }
    }

    fn create(&self, name: String, mtu: u32) -> Result<Created, Refusal> {
        if !is_interface_name(&name) {
            return Err(refuse(
                Code::BadRequest,
                &format_args!("{name:?} is no interface name"),
            ));
        }
        if !MTU_RANGE.contains(&mtu) {
            return Err(refuse(
                Code::BadRequest,
                &format_args!("an MTU of {mtu} cannot be"),
            ));
        }
        self.reap();
        let mut devices = self.devices();
        if let Some(device) = devices.get(&name) {
            let (existing, device) = (true, device.status());
            return Ok(Created { existing, device });
        }
        if lock(&self.closing).contains(&name) {
            return Err(refuse(
                Code::Busy,
                &format_args!("the former device {name:?} is still being closed"),
            ));
        }
        if devices.len() == DEVICES {
            return Err(refuse(Code::Busy, "too many devices"));
        }
        let device = self.start(name.clone(), mtu)?;
        let status = device.status();
        devices.insert(name.clone(), device);
        drop(devices);
        self.hub.publish(&Event::DeviceCreated { interface: name });
        let (existing, device) = (false, status);
        Ok(Created { existing, device })
    }

    fn start(&self, name: String, mtu: u32) -> Result<Device, Refusal> {
        let options = Options {
            name,
            mtu,
            offload: self.settings.offload,
            uapi_directory: self.settings.uapi_directory.clone(),
            socket_loss: SocketLoss::Rebind,
        };
        Device::start(&options, self.report()).map_err(|error| {
            let message = chain(&error);
            tracing::warn!(interface = options.name, message, "cannot create a device");
            refuse(Code::Failed, &message)
        })
    }

    /// What devices call: publishes, and has the dead buried.
    fn report(&self) -> Report {
        let (hub, ended) = (Arc::clone(&self.hub), Arc::clone(&self.ended));
        Arc::new(move |event| {
            hub.publish(&event);
            if matches!(event, Event::DeviceEnded { .. }) {
                ended.wake();
            }
        })
    }

    /// Lets go of a device. A thread of its own closes it, so that nobody waits for the kernel.
    fn delete(&self, name: &str) -> Result<(), Refusal> {
        let mut devices = self.devices();
        let Some(device) = devices.remove(name) else {
            return Err(refuse(
                Code::NotFound,
                &format_args!("there is no device {name:?}"),
            ));
        };
        lock(&self.closing).insert(name.to_owned());
        drop(devices);
        let (closing, name) = (Arc::clone(&self.closing), name.to_owned());
        let (ended, end) = mpsc::sync_channel(1);
        thread::spawn(move || {
            drop(device);
            lock(&closing).remove(&name);
            if ended.send(()).is_err() {
                tracing::debug!(interface = name, "closed after its deletion was answered");
            }
        });
        match end.recv_timeout(CLOSE) {
            Ok(()) | Err(mpsc::RecvTimeoutError::Timeout) => Ok(()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(refuse(Code::Failed, "the device could not be closed"))
            }
        }
    }

    /// Sends events until the client leaves, or is too slow.
    fn stream_events(&self, mut stream: UnixStream, interest: Interest) -> io::Result<()> {
        let subscription = self.hub.subscribe(interest)?;
        send(&mut stream, &Response::Subscribed)?;
        loop {
            let mut ready = [
                PollFd::new(&*subscription, PollFlags::IN),
                PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN | PollFlags::RDHUP),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => (),
                Err(errno) => return Err(errno.into()),
            }
            // Whatever else a subscriber says ends its subscription.
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            for event in subscription.take() {
                send(&mut stream, &event)?;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(stream: &mut UnixStream, message: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    stream.write_all(&text)
}

fn refuse(code: Code, message: &(impl std::fmt::Display + ?Sized)) -> Refusal {
    Refusal {
        code,
        message: message.to_string(),
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
