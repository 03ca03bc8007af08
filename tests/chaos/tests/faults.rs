//! A hundred random faults under traffic in a mesh of five nodes.
//!
//! ```text
//! ┌─ n1 ──┐ ┌─ n2 ──┐ ┌─ n3 ──┐ ┌─ n4 ──┐ ┌─ n5 ──┐ ┌ server ┐
//! │ p1    │ │ p2    │ │ p3    │ │ p4    │ │ p5    │ └───┬────┘
//! └───┬───┘ └───┬───┘ └───┬───┘ └───┬───┘ └───┬───┘     │
//!  ───┴─────────┴─────────┴── lan ──┴─────────┴─────────┴── r1 ── data ──
//! ```
//!
//! `MESHD_CHAOS_SEED` names another run than the usual one, `MESHD_CHAOS_FAULTS` a longer or shorter one.

use std::path::Path;

use chaos::{Run, Schedule};

/// How many nodes the mesh has.
const NODES: usize = 5;

#[test]
#[expect(clippy::print_stdout, reason = "the figures are for people")]
fn a_mesh_under_a_hundred_faults_leaks_nothing_and_is_whole_again_after_each_wave() {
    let (seed, faults) = (
        number("MESHD_CHAOS_SEED", 4),
        number("MESHD_CHAOS_FAULTS", 100),
    );
    let faults = usize::try_from(faults).expect("a number of faults");
    let schedule = Schedule::new(seed, faults, NODES);
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}.log"));
    let mut run = Run::new(&schedule, NODES, log);
    for wave in &schedule.waves {
        run.carry_out(wave);
    }
    println!("{}", run.summary());
} // The mesh asserts that no plaintext left any node, and that nothing is left behind.

fn number(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else {
        return otherwise;
    };
    match text.parse() {
        Ok(number) => number,
        Err(error) => panic!("{variable} is {text:?}: {error}"),
    }
}
