//! Somebody who writes into the store what he may not: with the administrator's credential while the
//! server runs, or with the database in his hands while it does not.
//!
//! The server cannot tell him from the administrator, so what is promised is this: nothing leaks, only
//! the node that he writes about is cut off, and it is back as soon as it has said again what is true.
//! Whoever holds the grant that he puts in doubt notices nothing.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use lab::{End as _, Lab, Node};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

/// The annotation that holds a node's record.
const RECORD: &str = "meshd.dev/record";

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Takes a node's key out of the store, in one of several ways.
pub(crate) fn clear_key(lab: &Lab, node: &Node, variant: u32) {
    match variant % 4 {
        _ if deletes_claim(variant) => delete_claim(lab, node),
        0 => write_record(lab, node, |record| record["tunnels"] = json!([])),
        1 => write_annotation(lab, node, "no record at all", ""),
        _ => write_record(lab, node, |record| record["phase"] = json!("Off")),
    }
}

/// Whether the grant itself goes in that way of clearing a key.
pub(crate) fn deletes_claim(variant: u32) -> bool {
    variant % 4 == 3
}

/// Writes another node's key into a node's record.
pub(crate) fn duplicate_key(lab: &Lab, node: &Node, holder: &Node) {
    let stolen = record(&get(lab, holder))["tunnels"][0]["key"].clone();
    write_record(lab, node, |record| record["tunnels"][0]["key"] = stolen);
}

/// Takes a node's key out of the database of a server that does not run, as a change like any other.
pub(crate) fn clear_in_database(lab: &Lab, node: &Node) {
    let folder = lab.site(|site| {
        let credential = site.credential();
        credential.parent().map(std::path::Path::to_owned)
    });
    let folder = folder.expect("the credential lies in the server's folder");
    let files = std::fs::read_dir(folder).expect("the server's folder can be read");
    let files = files.flatten().map(|entry| entry.path());
    let mut databases = files.filter(|path| path.extension().is_some_and(|end| end == "db"));
    let database = databases.next().expect("the server has a database");
    let done = Connection::open(database).and_then(|mut connection| tamper(&mut connection, node));
    if let Err(error) = done {
        panic!("the database cannot be tampered with: {error}");
    }
}

fn tamper(connection: &mut Connection, node: &Node) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let name = node.name();
    let find = "SELECT json FROM object WHERE kind = 'Node' AND name = ?";
    let stored: Option<String> = transaction
        .query_row(find, [name], |row| row.get(0))
        .optional()?;
    let mut object: Value = serde_json::from_str(&stored.unwrap_or_default()).unwrap_or_default();
    let next = "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value";
    let revision: i64 = transaction.query_row(next, (), |row| row.get(0))?;
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove(RECORD);
    }
    object["status"] = json!({});
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    let text = object.to_string();
    let replace = "UPDATE object SET json = ?, revision = ? WHERE kind = 'Node' AND name = ?";
    transaction.execute(replace, params![text, revision, name])?;
    let log =
        "INSERT INTO log (revision, kind, namespace, name, json) VALUES (?, 'Node', '', ?, ?)";
    transaction.execute(log, params![revision, name, text])?;
    transaction.commit()
}

/// Waits until the store says of every node what is true: a record that shows its tunnel, with a key that
/// is granted to it, and its addresses.
///
/// # Errors
/// The first node of which it does not.
pub(crate) fn await_truth(lab: &Lab, nodes: &[Node], deadline: Instant) -> Result<(), String> {
    loop {
        let lie = nodes.iter().find(|node| !is_true(lab, node));
        let Some(node) = lie else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(format!(
                "what the store says of {} is not true",
                node.name()
            ));
        }
        thread::park_timeout(LOOK);
    }
}

fn is_true(lab: &Lab, node: &Node) -> bool {
    let object = get(lab, node);
    let record = record(&object);
    let key = record["tunnels"][0]["key"].as_str().unwrap_or_default();
    // Where the tunnel is not back yet there is no key either.
    let own = node.run("sh", &["-c", "wg show wireguard.cali public-key || true"]);
    let is_granted = claims(lab, node).len() == 1;
    let addresses = record["addresses"].to_string();
    let has = |address: &IpAddr| addresses.contains(&format!("\"{address}\""));
    record["phase"] == "Enforced"
        && !key.is_empty()
        && key == own.trim()
        && object["status"]["wireguardPublicKey"] == key
        && is_granted
        && node.addresses().iter().all(has)
}

/// Changes a node's record and keeps the rest of it.
fn write_record(lab: &Lab, node: &Node, change: impl FnOnce(&mut Value)) {
    let mut record = record(&get(lab, node));
    change(&mut record);
    let key = record["tunnels"][0]["key"].as_str().unwrap_or_default();
    write_annotation(lab, node, &record.to_string(), key);
}

/// Writes a node's record and the key in Calico's field.
fn write_annotation(lab: &Lab, node: &Node, text: &str, key: &str) {
    let wish = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": { "name": node.name(), "annotations": { RECORD: text } },
        "status": { "wireguardPublicKey": key },
    });
    lab.apply(&wish.to_string());
}

fn delete_claim(lab: &Lab, node: &Node) {
    for name in claims(lab, node) {
        lab.meshctl(&["delete", "keyclaim", &name]);
    }
}

/// The names of the keys that are granted to a node.
fn claims(lab: &Lab, node: &Node) -> Vec<String> {
    let claims = lab.meshctl(&["get", "keyclaims", "-o", "json"]);
    let claims: Value = serde_json::from_str(&claims).expect("meshctl prints JSON");
    let claims = claims["items"].as_array().into_iter().flatten();
    let own = claims.filter(|claim| claim["spec"]["node"] == node.name());
    own.filter_map(|claim| Some(claim["metadata"]["name"].as_str()?.to_owned()))
        .collect()
}

fn get(lab: &Lab, node: &Node) -> Value {
    let text = lab.meshctl(&["get", "node", node.name(), "-o", "json"]);
    serde_json::from_str(&text).expect("meshctl prints JSON")
}

/// The record of a Node object; a node that has just lost it has none.
fn record(node: &Value) -> Value {
    let text = node["metadata"]["annotations"][RECORD].as_str();
    serde_json::from_str(text.unwrap_or_default()).unwrap_or_default()
}
