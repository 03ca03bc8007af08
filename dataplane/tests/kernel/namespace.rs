//! A network namespace per test, and the programs that see into it.

mod sys;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    panic::resume_unwind,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Runs a test in a network namespace of its own, which goes with its thread.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        sys::leave_network().expect("tests of the kernel need root");
        ip("link set lo up");
        test();
    };

    if let Err(panic) = thread::spawn(run).join() {
        resume_unwind(panic);
    }
}

/// As [`alone`], with a `/run/wireguard` of its own too: `wg` looks nowhere else.
pub(crate) fn alone_with_wireguard(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        sys::leave_network_and_mounts().expect("tests of the kernel need root");
        run("mount", "--make-rprivate /");
        run("mkdir", "-p /run/wireguard");
        run("mount", "-t tmpfs none /run/wireguard");
        ip("link set lo up");
        test();
    };

    if let Err(panic) = thread::spawn(run).join() {
        resume_unwind(panic);
    }
}

/// Another network namespace, in which a thread waits for work.
pub(crate) struct Namespace {
    path: String,
    work: mpsc::Sender<Work>,
    thread: Option<thread::JoinHandle<()>>,
}

type Work = Box<dyn FnOnce() + Send>;

impl Namespace {
    pub(crate) fn new() -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (ready, path) = mpsc::channel();
        let thread = thread::spawn(move || {
            sys::leave_network().expect("tests of the kernel need root");
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            ready
                .send(format!("/proc/{}/ns/net", thread.display()))
                .unwrap();
            todo.into_iter().for_each(|work| work());
        });

        Self {
            path: path.recv().unwrap(),
            work,
            thread: Some(thread),
        }
    }

    /// Returns the path by which others enter it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Takes a device of the calling thread's namespace.
    pub(crate) fn adopt(&self, device: &str) {
        let thread = self
            .path
            .split('/')
            .nth(4)
            .expect("/proc/PROCESS/task/THREAD/ns/net");
        ip(&format!("link set {device} netns {thread}"));
    }

    /// Runs something inside and returns what it returns.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let work = Box::new(move || drop(done.send(work())));
        self.work.send(work).unwrap();

        result.recv().expect("the work inside did not panic")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel();
        self.work = closed;
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// Runs `ip` and returns what it says.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs `ip -j` and returns its array.
pub(crate) fn ip_json(arguments: &str) -> Vec<Value> {
    let text = run("ip", &format!("-j {arguments}"));
    if text.trim().is_empty() {
        return Vec::new();
    }

    serde_json::from_str(&text).unwrap()
}

/// Runs `nft` and returns what it says, one line a rule.
pub(crate) fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = attempt(program, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {errors}");

    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that may fail.
#[expect(
    clippy::disallowed_methods,
    reason = "the oracle of these tests are other programs"
)]
pub(crate) fn attempt(program: &str, arguments: &str) -> Output {
    Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

/// Returns a routing table, which may not be there at all.
pub(crate) fn table(number: u32) -> String {
    let output = attempt("ip", &format!("route show table {number}"));

    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that a connection to this address, from here, is answered by `there`.
pub(crate) fn reaches(address: &str, there: &Namespace) {
    let socket = SocketAddr::new(address.parse().unwrap(), 7000);
    let listener = there.run(move || TcpListener::bind(socket).unwrap());
    TcpStream::connect_timeout(&socket, Duration::from_secs(2)).unwrap();
    listener.accept().unwrap();
}

/// Says a figure, for who runs with `--nocapture`.
#[expect(
    clippy::print_stderr,
    reason = "figures belong to whoever runs the test"
)]
pub(crate) fn tell(figure: &str) {
    eprintln!("{figure}");
}

/// Makes a pair of devices, both up.
pub(crate) fn veth(name: &str, other: &str) {
    ip(&format!("link add {name} type veth peer name {other}"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {other} up"));
}

/// Waits until a condition holds, at most five seconds; returns how long it took.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "waited in vain: {what}"
        );
        thread::park_timeout(Duration::from_millis(5));
    }

    started.elapsed()
}
