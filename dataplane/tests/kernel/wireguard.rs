//! The tunnel service, as the service manager would run it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use dataplane::{Implementations, Kernel, PrivateKey, Userspace};
use model::{PublicKey, resource::mesh_configuration::Backend};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::namespace::eventually;

/// Where `wg` looks.
pub(crate) const UAPI: &str = "/var/run/wireguard";

/// Which implementation a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The kernel's; where it has none, these tests are ignored and say so.
    Kernel,
    /// The tunnel service's.
    Meshwire,
}

/// Makes each of these functions a test of both implementations.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_meshwire {
            $(#[test]
            fn $name() {
                $crate::namespace::alone_with_wireguard(|| {
                    super::$name($crate::wireguard::Which::Meshwire)
                });
            })*
        }
        mod on_the_kernel {
            $(#[test]
            #[ignore = "needs a kernel with WireGuard: make test-kernel"]
            fn $name() {
                $crate::namespace::alone_with_wireguard(|| {
                    super::$name($crate::wireguard::Which::Kernel)
                });
            })*
        }
    };
}

pub(crate) use on_both;

/// The machine's implementations, of which one is preferred; the service runs in either case.
pub(crate) struct Machine {
    which: Which,
    service: Service,
}

impl Machine {
    pub(crate) fn start(which: Which) -> Self {
        Self {
            which,
            service: Service::start(),
        }
    }

    pub(crate) fn implementations(&self) -> Implementations {
        implementations(self.which, &self.service.socket())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.service.socket()
    }
}

/// What an agent finds that is told to use this implementation.
pub(crate) fn implementations(which: Which, service: &Path) -> Implementations {
    let preference = match which {
        Which::Kernel => Backend::Kernel,
        Which::Meshwire => Backend::Userspace,
    };
    let userspace = Userspace::new(service.to_owned(), UAPI.into());

    Implementations::new(Kernel::open().unwrap(), userspace, preference)
}

/// A running `meshwire --supervise`.
pub(crate) struct Service {
    child: Child,
    folder: TempDir,
}

impl Service {
    /// Starts the service in the calling thread's namespaces.
    pub(crate) fn start() -> Self {
        Self::start_in(TempDir::new().unwrap())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the service is a program of its own"
    )]
    fn start_in(folder: TempDir) -> Self {
        let mut binary = std::env::current_exe().unwrap();
        binary.pop();
        binary.pop();
        binary.push("meshwire");
        assert!(binary.exists(), "build it first: cargo build -p wire");
        let child = Command::new(binary)
            .arg("--supervise")
            .arg(folder.path().join("wire.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self { child, folder };
        eventually("meshwire to answer", || {
            UnixStream::connect(service.socket()).is_ok()
        });

        service
    }

    /// Kills the service; its devices go with it. Starts it again.
    pub(crate) fn restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, TempDir::new().unwrap());

        Self::start_in(folder)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("wire.sock")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have been killed already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A tunnel service without devices that refuses to delete any.
pub(crate) struct Stubborn(TempDir);

impl Stubborn {
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("wire.sock")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || answer(&stream));
            }
        });

        Self(folder)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("wire.sock")
    }
}

fn answer(mut stream: &UnixStream) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let answer = match &line {
            line if line.contains("hello") => {
                r#"{"response":"hello","version":1,"pid":1,"uapi_directory":"/nowhere"}"#
            }
            line if line.contains("list") => r#"{"response":"devices","devices":[]}"#,
            _ => r#"{"response":"error","code":"failed","message":"I will not"}"#,
        };
        stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
}

/// The public half of a test key.
pub(crate) fn public(seed: u8) -> PublicKey {
    PublicKey::new(wire_core::PrivateKey::new([seed; 32]).public_key().0).unwrap()
}

/// Keeps the private halves of [`public`] for all seeds.
pub(crate) fn keyring(wanted: &PublicKey) -> Option<PrivateKey> {
    (1..=255)
        .find(|seed| public(*seed) == *wanted)
        .map(|seed| PrivateKey::new(Zeroizing::new([seed; 32])))
}
