//! How long the machine kept the tunnels' programs from running, by the kernel's own count.
//!
//! The second number of `/proc/PID/task/TID/schedstat` is the time, in nanoseconds, that a thread was ready
//! and did not run (Documentation/scheduler/sched-stats.rst of Linux). A packet waits as long as the program
//! that carries it does, and no rule of ours shortens that.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The spell within which time spent waiting adds up.
const SPELL: Duration = Duration::from_millis(500);

/// The nanoseconds that each thread of a process has waited so far.
type Waited = HashMap<u32, u64>;

/// Watches processes until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    desk: Mutex<Desk>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Desk {
    worst: Duration,
    stop: bool,
}

impl Waiting {
    /// Watches these processes.
    pub(crate) fn of(processes: Vec<u32>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || watch(&processes, &theirs));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The longest that packets can have waited for the processes together, within any half second.
    pub(crate) fn worst(&self) -> Duration {
        self.shared.desk().worst
    }

    /// Forgets the past.
    pub(crate) fn forget(&self) {
        self.shared.desk().worst = Duration::ZERO;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.desk().stop = true;
        self.shared.wake.notify_all();
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || joined.is_some_and(|joined| joined.is_ok()),
            "the watch panicked"
        );
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch(processes: &[u32], shared: &Shared) {
    let mut past: VecDeque<(Instant, Vec<Waited>)> = VecDeque::new();
    loop {
        let seen: Vec<Waited> = processes.iter().map(|process| waited(*process)).collect();
        let now = Instant::now();
        let waited = past.front().map(|(_, before)| since(before, &seen));
        while past.len() > 1 && past.front().is_some_and(|(at, _)| now - *at > SPELL) {
            past.pop_front();
        }
        past.push_back((now, seen));
        let mut desk = shared.desk();
        desk.worst = desk.worst.max(waited.unwrap_or_default());
        let slept = shared.wake.wait_timeout(desk, LOOK);
        if slept.unwrap_or_else(PoisonError::into_inner).0.stop {
            return;
        }
    }
}

/// What each thread of a process has waited; nothing once it has ended.
fn waited(process: u32) -> Waited {
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let waited = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let number = thread.file_name().to_str()?.parse().ok()?;
        Some((number, text.split(' ').nth(1)?.parse().ok()?))
    });
    waited.collect()
}

/// What was waited between two looks: of each process its slowest thread, for a packet passes them all.
fn since(before: &[Waited], now: &[Waited]) -> Duration {
    let of_process = |(before, now): (&Waited, &Waited)| {
        let grown = now.iter().map(|(thread, waited)| {
            let before = before.get(thread).unwrap_or(waited);
            waited.saturating_sub(*before)
        });
        grown.max().unwrap_or_default()
    };
    Duration::from_nanos(before.iter().zip(now).map(of_process).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_process_the_slowest_thread_counts() {
        let before = [
            HashMap::from([(1, 100), (2, 100)]),
            HashMap::from([(7, 5)]),
            HashMap::new(),
        ];
        let now = [
            HashMap::from([(1, 150), (2, 400)]),
            HashMap::from([(7, 6), (8, 900)]),
            HashMap::new(),
        ];
        assert_eq!(since(&before, &now), Duration::from_nanos(301));
    }

    #[test]
    fn a_process_that_runs_is_seen() {
        assert!(!waited(std::process::id()).is_empty());
        assert!(waited(u32::MAX).is_empty());
    }
}
