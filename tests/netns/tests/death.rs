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

use lab::{End as _, Family, Node, Service, spec::Protocol};
use netns::{Kernel, Mesh, Sessions, Traffic, await_fact, await_settled, await_summary};
use serde_json::json;

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

#[test]
fn a_pod_whose_namespace_vanishes_is_named_and_holds_up_nobody() {
    let mesh = Mesh::builtin("dual-stack");
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let space = format!("{}-dead", mesh.name());
    n1.run("ip", &["netns", "add", &space]);
    let request = json!({
        "pod": { "namespace": "default", "name": "dead" },
        "sandbox": space, "netns": format!("/run/netns/{space}"), "interface": "eth0",
    });
    ask(&mesh, &n1, "POST", "/v1/pods", &request.to_string());

    n1.run("ip", &["netns", "del", &space]);
    await_fact("n1 names the dead pod", PATIENCE, || {
        let rows = n1.ask("/v1/status")["incomplete"].to_string();
        rows.contains("pod default/dead").then_some(()).ok_or(rows)
    });
    mesh.ask_for(netns::Encryption::On);
    mesh.await_summary("Enforced");
    mesh.forbid_plaintext();
    let late = mesh.add_pod("n1", "default/late");

    late.ping(&n2.pod());
    let said = n1.run(&built("meshctl"), &["status"]);
    assert!(said.contains("but for "), "{said}");
    assert!(said.contains("Incomplete   pod default/dead: "), "{said}");

    ask(&mesh, &n1, "DELETE", "/v1/pods/default/dead", "");
    await_settled(&n1, PATIENCE);
    let said = n1.run(&built("meshctl"), &["status"]);
    assert!(said.contains("Machine      matches the plan\n"), "{said}");
}

/// Asks the agent of a node for something.
fn ask(mesh: &Mesh, node: &Node, method: &'static str, path: &str, body: &str) {
    let name = node.name().parse().expect("a node's name is a label");
    let agent = mesh.site(|site| site.agent(&name));
    let answer = agent.ask(method, path, body.as_bytes());
    assert!(answer.is_ok(), "{method} {path}: {answer:?}");
}

/// The program beside this test's, as cargo lays them out.
fn built(name: &str) -> String {
    let own = std::env::current_exe().expect("a test knows its own file");
    let folder = own.ancestors().nth(2).expect("a test lies in deps");

    folder.join(name).display().to_string()
}
