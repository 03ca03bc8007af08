//! Nodes that let the kernel carry their packets beside nodes where meshwire does.
//!
//! ```text
//! ┌─ n1 ──────────┐          ┌─ n2 ──────────┐          ┌─ n3 ──────────┐
//! │ default/a, b  │          │ default/c     │          │ default/d     │     dual-stack, encrypted
//! │ kernel        │══════════│ meshwire      │══════════│ kernel        │
//! └───────────────┘          └───────────────┘          └───────────────┘
//! ```

use kernel::{Carrier, Need, carrier, mixed, need};
use lab::Service;
use netns::{Mesh, Sessions, Traffic};

/// Streams between each two nodes: the mixed pairs and that of the kernel alone.
fn between_all(mesh: &Mesh) -> Traffic {
    let mut traffic = Traffic::between_two(mesh);
    let [n2, n3] = ["n2", "n3"].map(|name| mesh.node(name));
    traffic.add_pod_to_pod(&n2.pod(), &n3.pod());
    traffic.add_pod_to_pod(&n3.pod(), &mesh.node("n1").pod());
    traffic
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn where_the_kernel_has_wireguard_it_carries_the_packets() {
    need(&[Need::WireGuard]);
    let mesh = Mesh::enforced("dual-stack");
    for node in mesh.members() {
        assert_eq!(carrier(&node), Some(Carrier::Kernel), "{}", node.name());
    }
    between_all(&mesh).assert_unbroken();
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn nodes_of_both_kinds_carry_each_other_s_packets() {
    need(&[Need::WireGuard]);
    let mesh = mixed("dual-stack", &["n2"]);
    let traffic = between_all(&mesh);
    traffic.forget();
    traffic.assert_unbroken();
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn agents_that_come_back_leave_every_device_with_its_carrier() {
    need(&[Need::WireGuard]);
    let mesh = mixed("dual-stack", &["n2"]);
    let traffic = between_all(&mesh);
    let seen = || -> Vec<_> {
        let members = mesh.members();
        let of = |node| (carrier(node), Sessions::of(node));
        members.iter().map(of).collect()
    };
    let before = seen();
    traffic.forget();
    for node in mesh.members() {
        node.kill(Service::Agent);
        node.restart(Service::Agent);
    }
    mesh.await_summary("Enforced");
    mesh.await_settled();
    traffic.assert_unbroken();
    assert_eq!(before, seen());
}

#[test]
#[ignore = "needs a kernel with WireGuard: make test-kernel"]
fn a_mixed_mesh_is_switched_off_and_on_and_no_connection_breaks() {
    need(&[Need::WireGuard]);
    let mesh = mixed("dual-stack", &["n2"]);
    let traffic = between_all(&mesh);
    traffic.forget();
    mesh.disable();
    traffic.assert_unbroken();
    mesh.enable();
    traffic.assert_unbroken();
}
