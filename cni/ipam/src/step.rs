//! An operation, one store access at a time.
//!
//! ```text
//! Operation ──poll_step──▶ Step ──▶ whoever talks to the store
//!           ◀─handle_answer── Answer ◀──┘
//! ```
//!
//! The sequences of IPAM are written as plain asynchronous functions, which
//! wait for nothing but the next answer: no runtime, no waker, no clock. To
//! drop an operation between two steps is to crash there.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use model::{Kind, NodeName, Object, ObjectKey, Revision};

/// How long an operation may take. Whoever drives it drops it then: garbage that is older is collected, and what an
/// operation is at work on must not look like that.
pub const LIFETIME: Duration = Duration::from_secs(90);

/// What is to be read or written next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Read one object.
    Get(ObjectKey),
    /// Read every object of a kind, or at least those that belong to a node.
    ///
    /// A cache may answer: a stale answer costs another turn, never an address.
    List(Kind, Option<NodeName>),
    /// Store an object that must not exist yet.
    Create(Box<Object>),
    /// Replace an object that has exactly the revision that this one carries.
    Update(Box<Object>),
    /// Remove an object that has exactly this revision.
    Delete(ObjectKey, Revision),
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The object as it is stored now, with its revision.
    Object(Box<Object>),
    /// What was listed.
    Objects(Vec<Object>),
    /// Removed.
    Deleted,
    /// There is no such object.
    NotFound,
    /// Not created: there is one of that name.
    AlreadyExists,
    /// Not replaced, not removed: it has another revision.
    Conflict,
    /// Refused, or nobody knows what became of it. The operation ends; the same one may be begun again.
    Failed(String),
}

/// What an operation wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn<T> {
    /// This step, and then its answer.
    Step(Step),
    /// Nothing: it has ended.
    Done(T),
}

/// A sequence of steps in progress; `T` is what it comes to.
#[must_use = "an operation does nothing until its steps are taken"]
pub struct Operation<T> {
    line: Line,
    state: State<T>,
}

enum State<T> {
    Running(Pin<Box<dyn Future<Output = T> + Send>>),
    Done(T),
}

/// The wire between an operation and whoever takes its steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line(Arc<Mutex<Slot>>);

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Idle,
    Asked(Step),
    Answered(Answer),
}

impl Step {
    /// Returns whether the step writes.
    pub const fn is_write(&self) -> bool {
        match self {
            Self::Create(_) | Self::Update(_) | Self::Delete(..) => true,
            Self::Get(_) | Self::List(..) => false,
        }
    }
}

impl Answer {
    /// Returns the object that was answered, or the answer that is none.
    pub(crate) fn object(self) -> Result<Object, Self> {
        match self {
            Self::Object(object) => Ok(*object),
            Self::Objects(_)
            | Self::Deleted
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Conflict
            | Self::Failed(_) => Err(self),
        }
    }

    /// Returns whether somebody else was faster.
    pub(crate) const fn is_outrun(&self) -> bool {
        matches!(self, Self::Conflict | Self::NotFound)
    }
}

impl<T: Clone> Operation<T> {
    /// Begins an operation; `start` gets the line on which it asks.
    pub(crate) fn new<F>(start: impl FnOnce(Line) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let line = Line::default();
        let future = start(line.clone());

        Self {
            line,
            state: State::Running(Box::pin(future)),
        }
    }

    /// Returns what is wanted; the same again until it was [answered](Self::handle_answer).
    pub fn poll_step(&mut self) -> Turn<T> {
        let State::Running(future) = &mut self.state else {
            return self.wanted();
        };
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            self.state = State::Done(result);
        }

        self.wanted()
    }

    /// Takes in how the step ended. Without a step that was asked for it changes nothing.
    pub fn handle_answer(&mut self, answer: Answer) {
        self.line.answer(answer);
    }

    /// Takes every step with `perform`, and returns what the operation comes to.
    pub fn run(mut self, mut perform: impl FnMut(Step) -> Answer) -> T {
        loop {
            match self.poll_step() {
                Turn::Step(step) => self.handle_answer(perform(step)),
                Turn::Done(result) => return result,
            }
        }
    }

    fn wanted(&self) -> Turn<T> {
        match &self.state {
            State::Done(result) => Turn::Done(result.clone()),
            State::Running(_) => match self.line.asked() {
                Some(step) => Turn::Step(step),
                None => unreachable!("an operation waits for nothing but answers"),
            },
        }
    }
}

impl Line {
    /// Asks for a step and waits for its answer.
    pub(crate) async fn ask(&self, step: Step) -> Answer {
        self.set(Slot::Asked(step));
        std::future::poll_fn(|_| match self.take_answer() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    fn answer(&self, answer: Answer) {
        if self.asked().is_some() {
            self.set(Slot::Answered(answer));
        }
    }

    fn asked(&self) -> Option<Step> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Slot::Asked(step) => Some(step.clone()),
            Slot::Idle | Slot::Answered(_) => None,
        }
    }

    fn take_answer(&self) -> Option<Answer> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match mem::take(&mut *slot) {
            Slot::Answered(answer) => Some(answer),
            waiting @ (Slot::Idle | Slot::Asked(_)) => {
                *slot = waiting;
                None
            }
        }
    }

    fn set(&self, slot: Slot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = slot;
    }
}
