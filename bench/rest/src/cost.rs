//! What a process cost between two looks, as the kernel counts it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context;

/// A look at a process: all of its threads together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    at: Instant,
    /// Time on a CPU (`/proc/PID/task/TID/schedstat`, first field, nanoseconds).
    busy: Duration,
    /// How often a thread went to sleep of its own will, and was thus woken
    /// (`voluntary_ctxt_switches` of `/proc/PID/task/TID/status`).
    sleeps: u64,
}

/// What happened between two looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Per cent of one core.
    pub(crate) cpu: f64,
    /// Wake-ups per second.
    pub(crate) wakeups: f64,
}

impl Look {
    /// Looks at a process.
    pub(crate) fn at(pid: u32) -> anyhow::Result<Self> {
        let mut look = Self {
            at: Instant::now(),
            busy: Duration::ZERO,
            sleeps: 0,
        };
        for thread in fs::read_dir(format!("/proc/{pid}/task")).context("it does not run")? {
            let folder = thread?.path();
            // A thread may end between the two.
            let Ok(schedule) = fs::read_to_string(folder.join("schedstat")) else {
                continue;
            };
            let Ok(status) = fs::read_to_string(folder.join("status")) else {
                continue;
            };
            let nanoseconds = schedule.split(' ').next().unwrap_or_default();
            look.busy += Duration::from_nanos(nanoseconds.parse().context("schedstat")?);
            look.sleeps += field(&status, "voluntary_ctxt_switches:")?;
        }

        Ok(look)
    }

    /// Returns what the process cost since an earlier look.
    pub(crate) fn since(self, earlier: Self) -> Cost {
        let seconds = (self.at - earlier.at).as_secs_f64();

        Cost {
            cpu: (self.busy.saturating_sub(earlier.busy)).as_secs_f64() / seconds * 100.0,
            wakeups: self.sleeps.saturating_sub(earlier.sleeps) as f64 / seconds,
        }
    }
}

/// Returns the resident memory of a process in MiB (`VmRSS`, and none of it shared with its file).
pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("it does not run")?;

    Ok(field(&status, "VmRSS:")? as f64 / 1024.0)
}

fn field(status: &str, name: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());

    value
        .with_context(|| format!("no {name}"))?
        .parse()
        .with_context(|| name.to_owned())
}
