//! A network namespace, in which a thread waits for work.

use std::{sync::mpsc, thread};

use crate::{program, sys};

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace, in which a thread waits for work. It goes with its thread, and with the sockets opened there.
pub(super) struct Namespace {
    /// The thread, as `ip` finds its namespace.
    pub(super) thread: String,
    work: mpsc::Sender<Work>,
}

impl Namespace {
    /// Makes a namespace with nothing but `lo`.
    pub(super) fn new() -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (ready, name) = mpsc::channel();
        thread::spawn(move || {
            sys::leave_network().expect("tests of the kernel need root");
            let path = std::fs::read_link("/proc/thread-self").unwrap();
            let id = path.file_name().unwrap().to_str().unwrap().to_owned();
            program("ip", "link set lo up");
            ready.send(id).unwrap();
            for work in todo {
                work();
            }
        });

        Self {
            thread: name.recv().unwrap(),
            work,
        }
    }

    /// Does something there, and returns what came of it.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let work = move || done.send(work()).unwrap();
        self.work.send(Box::new(work)).unwrap();

        result.recv().unwrap()
    }
}
