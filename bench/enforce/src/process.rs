//! What a process has used so far, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::Context;

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    /// Time on a CPU, of all threads that are there (`/proc/PID/task/TID/schedstat`, nanoseconds).
    pub(crate) cpu: Duration,
    /// `VmRSS`.
    pub(crate) resident_mib: f64,
    /// `VmHWM`.
    pub(crate) peak_mib: f64,
}

impl Use {
    /// Looks at a process.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let mut cpu = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).context("it does not run")? {
            // A thread may end between the two.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            let nanoseconds = text.split(' ').next().unwrap_or_default();
            cpu += Duration::from_nanos(nanoseconds.parse().context("schedstat")?);
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            let value: f64 = value.with_context(|| format!("no {name}"))?.parse()?;
            Ok(value / 1024.0)
        };

        Ok(Self {
            cpu,
            resident_mib: mib("VmRSS:")?,
            peak_mib: mib("VmHWM:")?,
        })
    }
}
