//! Sessions are renewed and expire as the protocol says, whoever carries the packets; hours pass in seconds.
//!
//! ```text
//! ┌─ n1 ──────────┐          ┌─ n2 ──────────┐          ┌─ n3 ──────────┐
//! │ default/a, b  │          │ default/c     │          │ default/d     │     dual-stack, encrypted
//! │ kernel        │══════════│ meshwire      │══════════│ kernel        │
//! └───────────────┘          └───────────────┘          └───────────────┘
//! ```
//!
//! Times and their names are those of §6.1 of the WireGuard paper.

use std::{collections::BTreeSet, time::Duration};

use kernel::{Line, Need, age, handshakes, key, mixed, need, pass};
use lab::{Family, Node, Stream, spec::Protocol};
use netns::Mesh;

/// After so long whoever began a session begins the next.
const REKEY_AFTER: Duration = Duration::from_secs(120);

/// After so long a session carries nothing any more.
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// Time between two attempts at a handshake.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two records of a stream: sessions are old in minutes, not in milliseconds.
const PACE: Duration = Duration::from_millis(250);

/// What a stream may miss beside its pace.
const MOST_GAP: Duration = Duration::from_millis(200);

fn mesh() -> Mesh {
    need(&[Need::WireGuard, Need::Warp]);
    let mesh = mixed("dual-stack", &["n2"]);
    mesh.pace(PACE);
    mesh
}

/// Streams between each two nodes, a connection the one way and datagrams the other.
fn streams(mesh: &Mesh) -> Vec<Stream> {
    let nodes = mesh.members();
    let mut streams = Vec::new();
    for (number, to) in nodes.iter().enumerate() {
        for from in &nodes[..number] {
            let (here, there) = (from.pod(), to.pod());
            streams.push(here.stream(&there, Protocol::Tcp, Family::V4));
            streams.push(there.stream(&here, Protocol::Udp, Family::V6));
        }
    }
    streams
}

fn assert_unbroken(streams: &[Stream]) {
    for stream in streams {
        stream.assert_no_gap(PACE + lab::patience(MOST_GAP));
    }
}

#[test]
#[ignore = "needs a kernel with WireGuard and a warped clock: make test-kernel"]
fn sessions_are_renewed_every_two_minutes_and_no_stream_notices() {
    let mesh = mesh();
    let streams = streams(&mesh);
    for stream in &streams {
        stream.forget();
    }
    let nodes = mesh.members();
    let mut seen: Vec<BTreeSet<(String, Duration)>> = vec![BTreeSet::new(); nodes.len()];
    let mut oldest = Duration::ZERO;
    for _ in 0..40 {
        pass(Duration::from_secs(10));
        for (node, seen) in nodes.iter().zip(&mut seen) {
            let made = handshakes(node);
            assert_eq!(made.len(), 2, "{} lacks a session", node.name());
            oldest = made.values().map(age).fold(oldest, Duration::max);
            seen.extend(made);
        }
    }
    // 400 s: the first session and at least three more with each of two peers, and not many more than that.
    for (node, seen) in nodes.iter().zip(&seen) {
        let sessions = seen.len();
        assert!((8..=12).contains(&sessions), "{}: {seen:?}", node.name());
    }
    assert!(oldest <= REKEY_AFTER + REKEY_TIMEOUT, "{oldest:?}");
    assert_unbroken(&streams);
}

/// Nothing that `lost` says arrives any more: what its session with `speaker` carries ends with its time, and from then
/// on `speaker` only tries handshakes. Once the line is whole, the stream goes on.
fn a_session_ends_with_its_time(mesh: &Mesh, speaker: &Node, lost: &Node) {
    let stream = speaker.pod().stream(&lost.pod(), Protocol::Udp, Family::V4);
    let age = age(&handshakes(speaker)[&key(lost)]);
    let (line, away) = (Line::of(speaker), Line::of(lost));
    line.count();
    away.mute();

    pass(REJECT_AFTER.saturating_sub(age) / 2);
    let within = line.sent();
    assert!(
        within.data > 50,
        "a session within its time carries: {within:?}"
    );

    pass(REJECT_AFTER);
    let before = line.sent();
    pass(Duration::from_secs(60));
    let since = line.sent().since(&before);
    assert_eq!(since.data, 0, "a session is over: {since:?}");
    let most = 60 / REKEY_TIMEOUT.as_secs() + 1;
    assert!((6..=most).contains(&since.initiations), "{since:?}");
    assert!(!stream.is_alive(Duration::from_secs(1)));

    away.unmute();
    let again = stream.is_alive(REKEY_TIMEOUT * 3);
    assert!(again, "{:?}", stream.report());
    mesh.assert_no_plaintext();
}

#[test]
#[ignore = "needs a kernel with WireGuard and a warped clock: make test-kernel"]
fn a_session_carries_nothing_after_three_minutes_whoever_carries_it() {
    let mesh = mesh();
    let [n1, n2, n3] = ["n1", "n2", "n3"].map(|name| mesh.node(name));
    a_session_ends_with_its_time(&mesh, &n1, &n2);
    a_session_ends_with_its_time(&mesh, &n2, &n3);
    a_session_ends_with_its_time(&mesh, &n3, &n1);
}
