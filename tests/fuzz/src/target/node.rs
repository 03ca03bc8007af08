//! Nodes as stores hold them: annotations, and what Calico writes beside them.

use model::{Object, resource::Node};

use super::{Broken, Fate, Target, promise};
use crate::{
    Dice,
    mutation::{self, Form},
};

/// Node objects in JSON.
///
/// Promises: only a bad name disables a node; any other bad field disables itself and is named with a reason;
/// what was read can be recorded and replayed as the same; what it says of a family is of that family.
#[derive(Clone, Copy, Debug)]
pub struct NodeObject;

impl Target for NodeObject {
    fn name(&self) -> &'static str {
        "node"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::tree(dice, corpus, Form::Json)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let object: Object = match serde_json::from_slice(input) {
            Ok(object) => object,
            Err(_) => return Ok(Fate::of("refused: no object")),
        };
        let text = serde_json::to_string(&object)
            .map_err(|error| Broken(format!("an object cannot be written: {error}")))?;
        let again: Object = serde_json::from_str(&text)
            .map_err(|error| Broken(format!("a written object cannot be read: {error}: {text}")))?;
        promise(again == object, || {
            format!("{object:?} was read back as {again:?}")
        })?;
        let node = match Node::try_from(&object) {
            Ok(node) => node,
            Err(error) => {
                promise(error.field == "metadata.name", || {
                    format!("a node was disabled for {error}")
                })?;
                return Ok(Fate::of("refused: bad name"));
            }
        };
        replays(&node)?;
        Ok(fate(&node))
    }
}

/// An event that carries it is written and read as the same.
fn replays(node: &Node) -> Result<(), Broken> {
    let text = serde_json::to_string(node)
        .map_err(|error| Broken(format!("a node cannot be recorded: {error}")))?;
    let again: Node = serde_json::from_str(&text).map_err(|error| {
        Broken(format!(
            "a recorded node cannot be replayed: {error}: {text}"
        ))
    })?;
    promise(again == *node, || {
        format!("{node:?} is replayed as {again:?}")
    })?;
    let families = |addresses: Vec<bool>| addresses.len() < 2 || addresses == [true, false];
    promise(
        families(
            node.addresses
                .iter()
                .map(|net| net.addr().is_ipv4())
                .collect(),
        ) && families(
            node.tunnel_addresses
                .iter()
                .map(|ip| ip.is_ipv4())
                .collect(),
        ),
        || format!("more than one address of a family, or out of order: {node:?}"),
    )
}

fn fate(node: &Node) -> Fate {
    let mut fate = Fate::of("taken");
    for field in node.invalid.keys() {
        fate.note(format!("taken without {field}"));
    }
    let keys = [("V4", &node.key_v4), ("V6", &node.key_v6)];
    for (family, key) in keys {
        match key {
            Some(Ok(_)) => fate.note(format!("a key of {family}")),
            Some(Err(_)) => fate.note(format!("an unusable key of {family}")),
            None => (),
        }
    }
    match &node.record {
        Some(Ok(_)) => fate.note("a record"),
        Some(Err(reason)) => {
            let words: Vec<&str> = reason.split(' ').take(4).collect();
            let words: String = words
                .join(" ")
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .collect();
            fate.note(format!("a disabled record: {words}"));
        }
        None => (),
    }
    fate
}
