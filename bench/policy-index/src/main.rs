//! Prints what the policy compiler costs: memory, the first plan, one change.
//!
//! ```text
//! cargo run --release -p bench-policy-index
//! ```

#![expect(clippy::print_stdout, reason = "the figures are the product")]

mod busy;
mod large;
mod object;

use std::{env, fs, process::Command};

use anyhow::{Context, Result, ensure};
use policy::Compiler;

use self::large::Cluster;

/// Sizes of the large cluster: pods, of which so many look the same, and pods of the node.
const LARGE: [[u32; 3]; 5] = [
    [1_000, 10, 110],
    [10_000, 10, 110],
    [100_000, 10, 110],
    [100_000, 1, 110],
    [100_000, 10, 1_000],
];

/// What an argument asks for: memory, or changes.
const MEMORY: &str = "memory";
const CHANGES: &str = "changes";

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => everything(),
        ["busy"] => {
            busy::print();
            Ok(())
        }
        [table, endpoints, alike, local] => {
            let cluster = Cluster {
                endpoints: endpoints.parse()?,
                alike: alike.parse()?,
                local: local.parse()?,
            };
            match table {
                MEMORY => cluster.print_memory(),
                _ => cluster.print_changes(),
            }
            Ok(())
        }
        _ => anyhow::bail!("expected no argument, `busy`, or a table and three numbers"),
    }
}

/// Prints all tables. Each cluster has a process of its own: memory that was given back is not counted twice.
fn everything() -> Result<()> {
    println!("{}", large::MEMORY_HEAD);
    for size in LARGE {
        run(MEMORY, &size)?;
    }
    println!("\n{}", large::CHANGES_HEAD);
    for size in LARGE {
        run(CHANGES, &size)?;
    }
    println!();

    run("busy", &[])
}

#[expect(clippy::disallowed_methods, reason = "it runs itself")]
fn run(table: &str, size: &[u32]) -> Result<()> {
    let program = env::current_exe()?;
    let numbers = size.iter().map(u32::to_string);
    let status = Command::new(program)
        .arg(table)
        .args(numbers)
        .status()
        .with_context(|| format!("running the table {table}"))?;
    ensure!(status.success(), "the table {table} ended with {status}");

    Ok(())
}

/// Times of the processor in microseconds and rows of one sort of change.
struct Figures {
    p50: f64,
    p99: f64,
    /// Rows that the largest change wrote.
    rows: usize,
    /// The most work that one change took, as the compiler counts it.
    effort: u64,
}

/// Makes so many changes one by one and times each, until its rows are there.
fn changes(
    compiler: &mut Compiler,
    times: u32,
    mut change: impl FnMut(&mut Compiler, u32),
) -> Figures {
    let mut taken = Vec::new();
    let (mut rows, mut effort) = (0, 0);
    for time in 0..times {
        let before = compiler.effort();
        let begin = cpu_seconds();
        change(compiler, time);
        let changes = compiler.update();
        taken.push((cpu_seconds() - begin) * 1e6);
        rows = rows.max(changes.len());
        effort = effort.max(compiler.effort() - before);
    }
    taken.sort_by(f64::total_cmp);

    Figures {
        p50: taken[taken.len() / 2],
        p99: taken[taken.len() * 99 / 100],
        rows,
        effort,
    }
}

/// Returns the memory that is in use, in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));

    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

/// Returns how long the program has kept a processor busy: nothing here waits, and others use the machine too.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);

    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs something; returns its result, the milliseconds that it took, and the KiB that stayed.
fn measured<T>(run: impl FnOnce() -> T) -> (T, f64, u64) {
    let before = resident_kib();
    let begin = cpu_seconds();
    let result = run();
    let taken = (cpu_seconds() - begin) * 1e3;

    (result, taken, resident_kib().saturating_sub(before))
}
