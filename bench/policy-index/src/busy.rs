//! A busy node: 110 pods, each selected by 50 of 1,000 policies, of which 500 select somebody; 5,000 pods elsewhere,
//! each in ten of 100 sets.

use policy::Compiler;

use crate::{
    Figures, changes, measured,
    object::{label, namespace, pod, policy},
};

const LOCAL: u32 = 110;
const REMOTE: u32 = 5_000;
const POLICIES: u32 = 1_000;
const ACTIVE: u32 = 500;
const SETS: u32 = 100;
const CHANGES: u32 = 300;

pub(crate) fn print() {
    let mut compiler = Compiler::new("own".parse().expect("three letters name a node"));
    let (rows, taken, memory) = measured(|| {
        fill(&mut compiler);
        compiler.update().len()
    });
    println!(
        "110 pods, each selected by 50 of 1,000 policies; 5,000 pods elsewhere, each in ten sets:"
    );
    println!(
        "objects to first plan {taken:.0} ms, {rows} rows, {:.1} MiB",
        memory as f64 / 1024.0
    );
    println!();
    println!("change                                   p50 µs    p99 µs   rows  effort");
    let row = |name: &str, figures: &Figures| {
        println!(
            "{name:38}  {:8.1}  {:8.1}  {:5}  {:6}",
            figures.p50, figures.p99, figures.rows, figures.effort
        );
    };
    let figures = changes(&mut compiler, CHANGES, |compiler, n| {
        let selector = if n % 2 == 0 {
            "name == 'local-3'"
        } else {
            "name == 'nobody'"
        };
        compiler.insert(&policy("one", selector, &sources(3), 80));
    });
    row("a policy for one pod", &figures);
    let figures = changes(&mut compiler, 40, |compiler, n| {
        let selector = if n % 2 == 0 {
            "where == 'here'"
        } else {
            "where == 'nowhere'"
        };
        compiler.insert(&policy("all", selector, &sources(3), 80));
    });
    row("a policy for all 110 pods", &figures);
    let figures = changes(&mut compiler, CHANGES, |compiler, n| {
        compiler.insert(&remote(REMOTE + n));
    });
    row("a pod elsewhere into ten sets", &figures);
    let figures = changes(&mut compiler, CHANGES, |compiler, n| {
        compiler.insert(&local(5, n % 2 * 10));
    });
    row("a pod's labels: 10 policies out, 10 in", &figures);
    let figures = changes(&mut compiler, CHANGES, |compiler, n| {
        let port = if n % 2 == 0 { 81 } else { 80 };
        compiler.insert(&active(7, port));
    });
    row("a policy's rules", &figures);
}

fn fill(compiler: &mut Compiler) {
    compiler.insert(&namespace("big"));
    for number in 0..POLICIES {
        compiler.insert(&active(number, 80));
    }
    for number in 0..REMOTE {
        compiler.insert(&remote(number));
    }
    for number in 0..LOCAL {
        compiler.insert(&local(number, 0));
    }
}

/// The policy of a number; those from `ACTIVE` on select nobody here.
fn active(number: u32, port: u16) -> model::Resource {
    policy(
        &format!("p{number}"),
        &format!("has(p{number})"),
        &sources(number),
        port,
    )
}

/// Ten rules, each from another set.
fn sources(number: u32) -> Vec<String> {
    (0..10)
        .map(|rule| format!("has(s{})", (number * 7 + rule * 13) % SETS))
        .collect()
}

fn remote(number: u32) -> model::Resource {
    let labels = (0..10).map(|set| label(format!("s{}", (number + set * 10) % SETS), ""));
    let name = format!("remote-{number}");

    pod("big", &name, "other", number + 256, labels)
}

fn local(number: u32, shift: u32) -> model::Resource {
    let name = format!("local-{number}");
    let policies = (0..50).map(|place| {
        label(
            format!("p{}", (number * 3 + (place + shift) * 9) % ACTIVE),
            "",
        )
    });
    let others = [label("name", name.clone()), label("where", "here")];

    pod(
        "big",
        &name,
        "own",
        number,
        policies.chain(others).collect::<Vec<_>>(),
    )
}
