//! Every target, its corpus whole and random input for `MESHD_FUZZ_SECONDS` (3 by default) with the seed
//! `MESHD_FUZZ_SEED` (1 by default). `tools/fuzz` runs them longer, with another seed each time.

use std::{collections::BTreeSet, time::Duration};

use fuzz::{Budget, driver, target};
use wire_core::{DropReason, Refusal, Verdict};

#[expect(
    clippy::print_stdout,
    reason = "what was reached belongs to the result"
)]
fn holds(name: &str) {
    let target = target::named(name).expect("it is one of ours");
    let budget = Budget::from_environment();
    match driver::run(&*target, budget) {
        Ok(run) => {
            println!("{name}, seed {}: {}", budget.seed, run.table());
            assert!(run.random > 0, "no random input in {:?}", budget.time);
        }
        Err(failure) => panic!("{failure}"),
    }
}

macro_rules! targets {
    ($($test:ident: $name:literal;)*) => {
        $(#[test]
        fn $test() {
            holds($name);
        })*

        #[test]
        fn every_target_is_tried() {
            let tried = [$($name),*];
            let all: Vec<_> = target::all().iter().map(|target| target.name()).collect();
            assert_eq!(all, tried);
        }
    };
}

targets! {
    no_stranger_s_handshake_changes_a_peer: "handshake";
    only_what_the_peer_sealed_is_delivered_and_once: "data";
    a_uapi_request_means_what_its_lines_say_or_nothing: "uapi";
    a_record_is_kept_whole_or_refused: "record";
    a_bad_field_of_a_node_disables_itself: "node";
    a_caller_of_the_store_changes_only_what_is_its_own: "request";
    what_is_applied_is_read_back_as_itself: "manifest";
    settings_do_not_depend_on_their_order_and_secrets_are_not_quoted: "configuration";
    a_lab_file_is_laid_out_or_refused: "lab";
}

/// What the corpora alone come to, by target.
fn reached(targets: &[&str]) -> BTreeSet<String> {
    let nothing_random = Budget {
        time: Duration::ZERO,
        seed: 1,
    };
    let fates = targets.iter().flat_map(|name| {
        let target = target::named(name).expect("it is one of ours");
        let run = driver::run(&*target, nothing_random);
        run.unwrap_or_else(|failure| panic!("{failure}"))
            .fates
            .into_keys()
    });
    fates.collect()
}

fn missing<'a>(targets: &[&str], wanted: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let reached = reached(targets);
    wanted
        .into_iter()
        .filter(|fate| !reached.contains(*fate))
        .collect()
}

#[test]
fn the_corpora_reach_every_refusal_and_verdict_of_the_protocol() {
    let refusals = [
        Refusal::Down,
        Refusal::NoPrivateKey,
        Refusal::Mac1,
        Refusal::RateLimited,
        Refusal::ZeroSecret,
        Refusal::Forged,
        Refusal::UnknownPeer,
        Refusal::Replayed,
        Refusal::TooFast,
        Refusal::UnknownIndex,
    ];
    let verdicts = [
        Verdict::Deliver,
        Verdict::Keepalive,
        Verdict::Replayed,
        Verdict::WrongSource,
        Verdict::BadPacket,
    ];
    let mut wanted: Vec<String> = [
        "CookieSent",
        "Responded",
        "Completed",
        "no message: unknown message type",
    ]
    .map(str::to_owned)
    .into();
    wanted.extend(refusals.map(|refusal| format!("refused: {refusal}")));
    wanted.extend(verdicts.map(|verdict| format!("data: {verdict:?}")));
    wanted.push("data: no such session".into());
    wanted.push("data: authentication failed".into());

    let missing = missing(&["handshake", "data"], wanted.iter().map(String::as_str));

    assert!(missing.is_empty(), "no input of the corpora is {missing:?}");
}

#[test]
fn the_corpora_reach_what_is_asked_of_a_tunnel_and_said_to_it() {
    let reasons = [
        (DropReason::Down, "ask: down"),
        (DropReason::NoEndpoint, "ask: no endpoint"),
        (DropReason::NoPrivateKey, "ask: no private key"),
    ];
    let asked = reasons.iter().map(|(_, word)| *word).chain([
        "ask: sealed",
        "ask: queued",
        "ask: no route",
    ]);
    assert_eq!(missing(&["handshake", "data"], asked), [""; 0]);
    let said = [
        "get",
        "refused: errno 22",
        "refused: errno 71",
        "set, 0 peers",
        "set, 3 peers",
    ];
    assert_eq!(missing(&["uapi"], said), [""; 0]);
}

#[test]
fn the_corpora_reach_what_a_store_and_its_readers_say() {
    let calls = [
        "node create: Ok",
        "node patch: Ok",
        "node update: Ok",
        "node delete: Ok",
        "node create: PermissionDenied",
        "node patch: PermissionDenied",
        "node delete: PermissionDenied",
        "node raw: PermissionDenied",
        "node get: Ok",
        "node list: Ok",
        "nobody create: Unauthenticated",
        "admin create: Ok",
        "admin create: InvalidArgument",
        "admin delete: Ok",
    ];
    assert_eq!(missing(&["request"], calls), [""; 0]);
    let records = [
        "refused: too long",
        "refused: malformed",
        "refused: unknown version",
        "refused: names another node",
        "taken, with fields of a later version",
    ];
    assert_eq!(missing(&["record"], records), [""; 0]);
    let kinds = [
        "taken: IPAMBlock",
        "taken: IPPool",
        "taken: Node",
        "taken: WorkloadEndpoint",
        "taken: KeyClaim",
    ];
    assert_eq!(missing(&["manifest"], kinds), [""; 0]);
}
