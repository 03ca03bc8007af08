//! What one input costs: processor time and memory of the thread that works on it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::sys;

/// What an input cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Time on the processor, so that a busy machine does not count.
    pub time: Duration,
    /// Bytes held at once at most, beyond what was held before.
    pub memory: usize,
}

/// Measures what `work` costs on this thread.
pub fn measure<R>(work: impl FnOnce() -> R) -> (R, Cost) {
    let before = processor_time();
    let held = sys::reset_peak();
    let result = work();
    let memory = usize::try_from(sys::peak() - held).unwrap_or(0);
    let time = processor_time().saturating_sub(before);
    (result, Cost { time, memory })
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_and_let_go_again_is_counted() {
        let (length, cost) = measure(|| vec![7_u8; 5 << 20].len() + vec![7_u8; 3 << 20].len());

        assert_eq!(length, 8 << 20);
        assert!((5 << 20..9 << 20).contains(&cost.memory), "{cost:?}");
    }

    #[test]
    fn waiting_costs_no_time() {
        let (_, cost) = measure(|| std::thread::park_timeout(Duration::from_millis(200)));

        assert!(cost.time < Duration::from_millis(100), "{cost:?}");
    }
}
