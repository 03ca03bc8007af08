//! firewalld's zones, by its own interface on the system bus.
//!
//! ```text
//! pass ──▶ OpeningTarget ──▶ orders ─┐            ┌─▶ addInterface, addPort, …
//!                                    ├─▶ courier ─┤
//! watch ◀── wake ◀── view, ours ─────┘            └─◀ zones, Reloaded, NameOwnerChanged
//! ```
//!
//! One thread speaks with the bus, and only where there is one; nobody waits for it but an uninstall. A pass
//! reads what that thread saw last, and leaves orders: such a row is absent until the thread has seen it done,
//! says so, and the next pass looks again. So a firewalld that hangs holds up nothing, and the reconciler
//! stays the one who tries again.
//!
//! **Invariants:** a device is only ever added to a zone, never moved from one that somebody chose; only what
//! was noted as ours beforehand (see [`note`]) is taken out; all of it is firewalld's run-time configuration,
//! nothing its permanent one; a firewalld of another network namespace is left alone.

mod bus;
mod courier;
mod note;
mod service;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use model::{
    InterfaceName,
    firewall::{ExtensionPoint, Opening},
};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use self::view::{Judgement, View};

/// What is known of firewalld, and what it is to be told.
#[derive(Clone)]
pub(crate) struct Firewalld {
    shared: Arc<Shared>,
    _user: Arc<User>,
}

/// Ends the thread when nobody is interested any more.
struct User(Arc<Shared>);

struct Shared {
    /// The file of what is ours.
    notes: PathBuf,
    state: Mutex<State>,
    /// Wakes who waits for the thread.
    done: Condvar,
    /// Wakes the thread.
    ordered: Notify,
    /// Wakes the watching thread.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    thread: Thread,
    view: Option<View>,
    ours: BTreeSet<Opening>,
    orders: BTreeMap<Opening, Order>,
    refusals: BTreeMap<Opening, String>,
    /// Rises with each change of the view or of what is ours.
    generation: u64,
    /// Nobody is interested any more.
    is_over: bool,
}

/// How far the thread is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Thread {
    /// There is none.
    #[default]
    Absent,
    /// It has not seen firewalld yet, nor that there is none; why not, as far as that is known.
    Begins(Option<String>),
    /// It has seen firewalld, or that there is none.
    Looked,
}

/// What firewalld is to be told of an opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Make,
    TakeBack,
}

/// Why firewalld did not do as it was told, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Firewalld {
    /// Knows nothing yet, and starts nothing. `notes` is the file of what is ours.
    pub(crate) fn new(notes: PathBuf) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            notes,
            state: Mutex::default(),
            done: Condvar::new(),
            ordered: Notify::new(),
            wake,
        });

        Ok(Self {
            _user: Arc::new(User(shared.clone())),
            shared,
        })
    }

    /// Starts the thread where there is a system bus and none runs yet. Cheap: asked again and again.
    pub(crate) fn begin(&self) {
        let Some(address) = bus::address().filter(|address| address.is_there()) else {
            return;
        };
        let mut state = self.shared.lock();
        if state.thread != Thread::Absent {
            return;
        }
        let shared = self.shared.clone();
        let started = thread::Builder::new()
            .name("firewalld".to_owned())
            .spawn(move || courier::run(&shared, &address));
        match started {
            Ok(_) => state.thread = Thread::Begins(None),
            Err(error) => tracing::warn!(%error, "Could not start the thread for firewalld"),
        }
    }

    /// What becomes readable when something changed; see [`generation`](Self::generation).
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Returns a number that rises when firewalld or what is ours in it changed.
    pub(crate) fn generation(&self) -> u64 {
        let mut count = [0; 8];
        // Only ever readable or not; what was counted does not matter.
        let _nothing_to_read = rustix::io::read(&self.shared.wake, &mut count);

        self.shared.lock().generation
    }

    /// Returns the places that concern packets of ours on these devices to the other machines.
    pub(crate) fn points(&self, underlay: &BTreeSet<InterfaceName>) -> BTreeSet<ExtensionPoint> {
        let state = self.shared.lock();

        state
            .view
            .iter()
            .flat_map(|view| view.points(underlay))
            .collect()
    }

    /// Returns what is there and ours.
    pub(super) fn ours(&self) -> BTreeSet<Opening> {
        self.shared.lock().ours.clone()
    }

    /// Returns whether our packets pass there, by whoever's word.
    pub(super) fn passes(&self, opening: &Opening) -> bool {
        let state = self.shared.lock();
        let view = state.view.as_ref();

        view.is_some_and(|view| view.judge(opening) == Judgement::Passes)
    }

    /// Returns `None` where our packets pass already, else has it made and returns what stands against it.
    pub(super) fn make(&self, opening: &Opening) -> Option<Refusal> {
        let mut state = self.shared.lock();
        let judgement = match &state.view {
            None => Judgement::Taken("firewalld does not run or does not answer".to_owned()),
            Some(view) => view.judge(opening),
        };

        match judgement {
            Judgement::Passes => None,
            Judgement::Taken(reason) => Some(Refusal(reason)),
            Judgement::Free => Some(self.order(&mut state, opening, Order::Make)),
        }
    }

    /// Returns `None` where there is nothing of ours, else has it taken back.
    pub(super) fn take_back(&self, opening: &Opening) -> Option<Refusal> {
        let mut state = self.shared.lock();
        let is_there = state.ours.contains(opening);

        is_there.then(|| self.order(&mut state, opening, Order::TakeBack))
    }

    /// Returns whether something was noted as ours, by this or an earlier run of ours.
    pub(crate) fn has_notes(&self) -> bool {
        self.shared.notes.exists()
    }

    /// Waits until it is known what is ours. Where there is no bus, nothing is.
    pub(crate) fn await_look(&self, patience: Duration) -> Result<(), String> {
        self.begin();
        let state = self.await_state(patience, |state| {
            matches!(state.thread, Thread::Absent | Thread::Looked)
        });

        match &state.thread {
            Thread::Absent | Thread::Looked => Ok(()),
            Thread::Begins(reason) => Err(reason
                .clone()
                .unwrap_or_else(|| "firewalld does not answer".to_owned())),
        }
    }

    /// Takes back all that is ours, and waits until that is done.
    pub(crate) fn take_back_all(&self, patience: Duration) -> Result<(), String> {
        for opening in self.ours() {
            drop(self.take_back(&opening));
        }
        let state = self.await_state(patience, |state| {
            state.orders.is_empty() || state.thread == Thread::Absent
        });
        if let Some(reason) = state.refusals.values().next() {
            return Err(reason.clone());
        }
        match state.orders.is_empty() {
            true => Ok(()),
            false => Err("firewalld does not answer".to_owned()),
        }
    }

    /// Forgets what was noted, once nothing of it is left.
    pub(crate) fn forget(&self) -> io::Result<()> {
        note::remove(&self.shared.notes)
    }

    fn await_state(
        &self,
        patience: Duration,
        holds: impl Fn(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !holds(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }

        state
    }

    fn order(&self, state: &mut State, opening: &Opening, order: Order) -> Refusal {
        let before = state.refusals.remove(opening);
        state.orders.insert(opening.clone(), order);
        self.shared.ordered.notify_one();

        Refusal(before.unwrap_or_else(|| "firewalld is being asked".to_owned()))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.ordered.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in there is whole at every moment, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what the thread saw.
    fn publish(&self, thread: Thread, view: Option<View>, ours: BTreeSet<Opening>) {
        let mut state = self.lock();
        state.thread = thread;
        if state.view != view || state.ours != ours {
            state.view = view;
            state.ours = ours;
            state.generation += 1;
            self.wake();
        }
        self.done.notify_all();
    }

    /// Tells what the thread saw: firewalld, or that none runs.
    fn look(&self, view: Option<View>, ours: BTreeSet<Opening>) {
        self.publish(Thread::Looked, view, ours);
    }

    /// Tells that the bus is not reached; what was there with it is not known any more.
    fn lose(&self, reason: String) {
        self.publish(Thread::Begins(Some(reason)), None, BTreeSet::new());
    }

    /// Tells that firewalld did not answer; what was known of it still is.
    fn complain(&self, reason: String) {
        let mut state = self.lock();
        if let Thread::Begins(known) = &mut state.thread {
            *known = Some(reason);
        }
    }

    /// Tells that the thread ends.
    fn end(&self) {
        self.lock().orders.clear();
        self.publish(Thread::Absent, None, BTreeSet::new());
    }

    /// Returns what firewalld is to be told.
    fn orders(&self) -> BTreeMap<Opening, Order> {
        self.lock().orders.clone()
    }

    /// Strikes orders out, each with what came of it.
    fn settle(&self, outcomes: BTreeMap<Opening, Result<(), String>>) {
        let mut state = self.lock();
        for (opening, outcome) in outcomes {
            state.orders.remove(&opening);
            match outcome {
                Ok(()) => state.refusals.remove(&opening),
                Err(reason) => state.refusals.insert(opening, reason),
            };
        }
        drop(state);
        self.done.notify_all();
    }

    fn is_over(&self) -> bool {
        self.lock().is_over
    }

    fn wake(&self) {
        // It is full only where nobody has looked since: then it is readable.
        let _full = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}
