//! The tunnel service, as the service manager would run it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use dataplane::{PrivateKey, Userspace};
use model::PublicKey;
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::namespace::eventually;

/// Where `wg` looks.
pub(crate) const UAPI: &str = "/var/run/wireguard";

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

    pub(crate) fn backend(&self) -> Box<Userspace> {
        Box::new(Userspace::new(self.socket(), UAPI.into()))
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
