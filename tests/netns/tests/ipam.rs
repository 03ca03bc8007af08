//! Addresses that one node lends another: they answer through the borrower's tunnel, and the lender's block goes on.
//!
//! ```text
//! ┌─ n1 ──────────────┐        ┌─ n2 ──────────────┐
//! │ 4 addresses: full │────────│ 4 addresses       │      a pool of one block for each node
//! │ borrows of n2     │        │ lends             │
//! └───────────────────┘        └───────────────────┘
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{net::IpAddr, time::Duration};

use lab::{End as _, Family};
use netns::{Container, Mesh, await_fact, lan};
use serde_json::{Value, json};

/// How long the agents may take to do what they were asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Two blocks of four addresses: of each, a tunnel's and a pod's are taken.
fn mesh() -> Mesh {
    let mut document = lan(&[("n1", "default/a"), ("n2", "default/b")]).document();
    for resource in &mut document.spec.resources {
        if resource["kind"] == "IPPool" && resource["spec"]["cidr"] == "10.65.0.0/16" {
            resource["spec"]["cidr"] = json!("10.65.0.0/29");
            resource["spec"]["blockSize"] = json!(30);
        }
    }
    let mesh = Mesh::of(document);
    mesh.enable();

    mesh
}

/// What is borrowed just now, as an operator sees it.
fn borrowed(mesh: &Mesh) -> Vec<Value> {
    let shown = mesh.meshctl(&["ipam", "show", "--show-borrowed", "-o", "json"]);

    serde_json::from_str(&shown).unwrap()
}

fn await_borrowed(mesh: &Mesh, count: usize) {
    await_fact("so many addresses are borrowed", PATIENCE, || {
        let found = borrowed(mesh);
        (found.len() == count)
            .then_some(())
            .ok_or(format!("{found:?}"))
    });
}

#[test]
fn a_borrowed_address_answers_through_its_borrower_and_the_lenders_block_goes_on() {
    let mesh = mesh();
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let stream = n1.connect(&n2);
    for pod in ["default/second", "default/third"] {
        mesh.add_pod("n1", pod);
    }
    assert_eq!(borrowed(&mesh), [] as [Value; 0]);

    let guest = mesh.add_pod("n1", "default/guest");

    let lent = borrowed(&mesh);
    assert_eq!(lent.len(), 1, "{lent:?}");
    let address: IpAddr = lent[0]["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(guest.address(Family::V4), address);
    assert_eq!(lent[0]["owner"], "n2");
    assert_eq!(lent[0]["attributes"]["node"], "n1");
    n2.pod().ping(&guest);
    guest.ping(&n2.pod());
    n2.pod().connect(&guest).assert_carries(20);
    n1.pod().ping(&guest);
    n1.pod().ping(&n2.pod());
    stream.assert_carries(20);
    stream.assert_alive();

    mesh.delete_pod(&guest);
    await_borrowed(&mesh, 0);
    n1.pod().ping(&n2.pod());
    stream.assert_alive();
}

#[test]
fn strict_affinity_refuses_the_address_that_could_only_be_borrowed() {
    let mesh = mesh();
    mesh.meshctl(&["ipam", "configure", "--strict-affinity", "true"]);
    for pod in ["default/second", "default/third"] {
        mesh.add_pod("n1", pod);
    }
    let guest = Container::new(&mesh, &mesh.node("n1"), "guest");

    let refused = guest.call("ADD", &Container::network());

    assert!(refused.is_error, "{}", refused.printed);
    let why = refused.printed["msg"].as_str().unwrap();
    assert!(why.contains("no block is left"), "{why}");
    assert_eq!(borrowed(&mesh), [] as [Value; 0]);
    let checked = mesh.meshctl(&["ipam", "check", "-o", "json"]);
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["findings"], json!([]), "{checked}");
}
