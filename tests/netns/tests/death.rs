//! The mesh's programs die and come back under traffic.
//!
//! ```text
//! ┌─ n1 ────────────────┐            ┌─ n2 ────────────────┐
//! │ default/a     agent │            │ default/c     agent │     dual-stack, encrypted
//! │            meshwire │══ streams ═│            meshwire │
//! └─────────────────────┘            └─────────────────────┘
//!                       server
//! ```

use std::time::Duration;

use lab::{Family, Service, spec::Protocol};
use netns::{Kernel, Mesh, Sessions, Traffic, await_fact, await_summary};

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_agent_that_is_killed_and_comes_back_is_not_noticed() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let (kernel, sessions) = (Kernel::of(&n1), Sessions::of(&n1));

    n1.kill(Service::Agent);
    traffic.assert_unbroken();
    assert_eq!(
        kernel.difference(&Kernel::of(&n1)),
        "",
        "its death opened or closed something"
    );

    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    traffic.assert_unbroken();
    assert_eq!(
        kernel.difference(&Kernel::of(&n1)),
        "",
        "the next agent changed something"
    );
    assert_eq!(sessions, Sessions::of(&n1));
}

#[test]
fn an_agent_that_is_killed_again_and_again_breaks_nothing() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let sessions = Sessions::of(&n1);
    for _ in 0..5 {
        n1.kill(Service::Agent);
        n1.restart(Service::Agent);
    }
    await_summary(&n1, "Enforced", PATIENCE);
    traffic.assert_unbroken();
    assert_eq!(sessions, Sessions::of(&n1));
}

#[test]
fn all_agents_and_the_server_may_be_gone_at_once() {
    let mesh = Mesh::enforced("dual-stack");
    let traffic = Traffic::between_two(&mesh);
    let sessions: Vec<Sessions> = mesh.members().iter().map(Sessions::of).collect();
    mesh.node("n1").kill(Service::Server);
    for node in mesh.members() {
        node.kill(Service::Agent);
    }
    traffic.assert_unbroken();
    for node in mesh.members() {
        node.restart(Service::Agent);
    }
    traffic.assert_unbroken();
    mesh.node("n1").restart(Service::Server);
    mesh.await_summary("Enforced");
    traffic.assert_unbroken();
    let after: Vec<Sessions> = mesh.members().iter().map(Sessions::of).collect();
    assert_eq!(sessions, after);
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_not_noticed() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let (kernel, sessions) = (Kernel::of(&n1), Sessions::of(&n1));
    n1.kill(Service::Server);
    await_fact("n1 misses the server", PATIENCE, || {
        let connected = n1.ask("/v1/status")["storeConnected"].clone();
        (connected == false)
            .then_some(())
            .ok_or(connected.to_string())
    });
    traffic.assert_unbroken();
    n1.restart(Service::Server);
    await_fact("n1 finds the server", PATIENCE, || {
        let connected = n1.ask("/v1/status")["storeConnected"].clone();
        (connected == true)
            .then_some(())
            .ok_or(connected.to_string())
    });
    mesh.await_summary("Enforced");
    traffic.assert_unbroken();
    assert_eq!(kernel.difference(&Kernel::of(&n1)), "");
    assert_eq!(sessions, Sessions::of(&n1));
}

#[test]
fn a_tunnel_service_that_is_killed_stops_traffic_and_opens_nothing() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    n1.kill(Service::Wire);
    traffic.assert_silent();
    mesh.assert_no_plaintext();
    n1.restart(Service::Wire);
    await_summary(&n1, "Enforced", PATIENCE);
    traffic.assert_alive();
}

#[test]
fn a_tunnel_service_that_dies_with_its_agent_opens_nothing_either() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    n1.kill(Service::Agent);
    n1.kill(Service::Wire);
    traffic.assert_silent();
    mesh.assert_no_plaintext();
    n1.restart(Service::Wire);
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    traffic.assert_alive();
}

#[test]
fn a_mesh_that_is_switched_while_an_agent_is_dead_waits_for_it_and_breaks_nothing() {
    let mesh = Mesh::builtin("dual-stack");
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let stream = n1.pod().stream(&n2.pod(), Protocol::Tcp, Family::V4);
    n2.kill(Service::Agent);
    mesh.ask_for(netns::Encryption::On);
    await_fact("n1 accepts", PATIENCE, || {
        let status = n1.ask("/v1/status");
        let accepts = status["encryption"]["phase"] == "Accepting";
        accepts.then_some(()).ok_or(status.to_string())
    });
    stream.assert_no_gap(netns::MOST_GAP);
    n2.restart(Service::Agent);
    mesh.await_summary("Enforced");
    mesh.forbid_plaintext();
    stream.assert_alive();
}
