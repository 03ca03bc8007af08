//! Encryption is switched on and off over an underlay that the kernel itself makes slow and lossy.
//!
//! ```text
//! n1 ─ netem ─┬─ netem ─ n2
//!             └─ netem ─ n3
//! ```

#![expect(
    clippy::print_stdout,
    reason = "the times of each switch are figures that people read"
)]

use kernel::{Line, Need, need};
use netns::{Mesh, Traffic};

/// Makes the line of every node such, by `netem`'s words.
fn impair(mesh: &Mesh, how: &str) {
    for node in mesh.members() {
        Line::of(&node).impair(how);
    }
}

#[test]
#[ignore = "needs a kernel with WireGuard and netem: make test-kernel"]
fn on_a_slow_underlay_no_stream_waits_longer_than_for_its_round_trip() {
    need(&[Need::WireGuard, Need::Netem]);
    let mesh = Mesh::builtin("dual-stack");
    impair(&mesh, "delay 40ms");
    let traffic = Traffic::between_two(&mesh);
    traffic.forget();
    mesh.enable();
    traffic.assert_unbroken();
    mesh.disable();
    traffic.assert_unbroken();
}

#[test]
#[ignore = "needs a kernel with WireGuard and netem: make test-kernel"]
fn on_an_underlay_that_loses_and_reorders_no_connection_breaks() {
    need(&[Need::WireGuard, Need::Netem]);
    let mesh = Mesh::builtin("dual-stack");
    impair(&mesh, "delay 20ms 10ms loss 2% reorder 5%");
    let traffic = Traffic::between_two(&mesh);
    let on = mesh.enable();
    traffic.assert_alive();
    mesh.assert_no_plaintext();
    let off = mesh.disable();
    traffic.assert_alive();
    println!("on after {on:?}, off after {off:?}");
}

#[test]
#[ignore = "needs a kernel with WireGuard and netem: make test-kernel"]
fn a_mesh_that_loses_every_fifth_packet_still_becomes_enforced() {
    need(&[Need::WireGuard, Need::Netem]);
    let mesh = Mesh::builtin("three-nodes");
    impair(&mesh, "loss 20%");
    let taken = mesh.enable();
    Traffic::between_two(&mesh).assert_alive();
    println!("on after {taken:?}");
}
