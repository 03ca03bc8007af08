//! How an input becomes another: by lines, by trees, by bytes.

use serde_json::{Map, Number, Value};

use crate::Dice;

/// Deepest tree that is made.
const DEEPEST: usize = 6;

/// Words that texts of ours give a meaning.
const WORDS: &[&str] = &[
    "",
    "0",
    "1",
    "true",
    "false",
    "null",
    "~",
    "-1",
    "65535",
    "65536",
    "4294967296",
    "1e400",
    "0x7fffffff",
    "10.0.0.0/8",
    "10.65.0.0/16",
    "10.65.0.0/33",
    "0.0.0.0/0",
    "192.0.2.1",
    "192.0.2.1/24",
    "255.255.255.255",
    "::/0",
    "::",
    "::1",
    "fd00::/8",
    "2001:db8::1",
    "2001:db8::1/64",
    "::ffff:192.0.2.1",
    "192.0.2.1:51820",
    "[2001:db8::1]:51820",
    "[fe80::1%lo]:7",
    "n1",
    "n2",
    "default",
    "default.n1.pod-eth0",
    "host:n1",
    "host:n2",
    "a.b-c",
    "UPPER",
    "wireguard.cali",
    "0123456789abcdef",
    "all()",
    "has(zone)",
    "zone == 'a'",
    "!has(x) && y in {'1', '2'}",
    "!!!!!!!!!!!!!!!!",
    "((((((((((((((((",
    "1h2m3s",
    "90s",
    "1e9h",
    "Strict",
    "Permissive",
    "Always",
    "Never",
    "CrossSubnet",
    "Enabled",
    "*a",
    "&a",
    "<<",
    "|",
    ">",
    "---",
    "...",
    "%",
    "\t",
    "\u{0}",
    "\u{feff}",
    "é",
    "💥",
    "\r",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
];

/// Another text with the lines of one or two of them: lines removed, doubled, moved, mixed, with other numbers
/// and words in them. `line` makes a whole new one.
pub fn lines(
    dice: &mut Dice,
    corpus: &[Vec<u8>],
    mut line: impl FnMut(&mut Dice) -> String,
) -> Vec<u8> {
    let take = |dice: &mut Dice| -> Vec<String> {
        let text = dice
            .pick(corpus)
            .map_or("".into(), |text| String::from_utf8_lossy(text));
        text.lines().map(str::to_owned).collect()
    };
    let mut lines = if dice.one_in(8) {
        Vec::new()
    } else {
        take(dice)
    };
    for _ in 0..=dice.roll(8) {
        let at = dice.roll(lines.len() + 1);
        match dice.roll(8) {
            0..=2 => lines.insert(at, line(dice)),
            3 => {
                let other = take(dice);
                let from = dice.roll(other.len() + 1);
                let to = (from + dice.roll(8)).min(other.len());
                lines.splice(at..at, other[from..to].iter().cloned());
            }
            4 if at < lines.len() => drop(lines.remove(at)),
            5 if at < lines.len() => {
                let copy = lines[at].clone();
                let copies = 1 + if dice.one_in(8) {
                    dice.roll(200)
                } else {
                    dice.roll(3)
                };
                let to = dice.roll(lines.len());
                lines.splice(to..to, std::iter::repeat_n(copy, copies));
            }
            6 if at < lines.len() => {
                let to = dice.roll(lines.len());
                lines.swap(at, to);
            }
            _ if at < lines.len() => lines[at] = word_changed(dice, &lines[at]),
            _ => lines.push(line(dice)),
        }
    }
    let mut text = lines.join("\n").into_bytes();
    text.push(b'\n');
    if dice.one_in(16) {
        bytes(dice, text)
    } else {
        text
    }
}

/// A line with one of its words, or a part of one, replaced.
fn word_changed(dice: &mut Dice, line: &str) -> String {
    let borders: Vec<usize> = line
        .char_indices()
        .filter(|(_, letter)| !letter.is_alphanumeric())
        .map(|(at, _)| at)
        .collect();
    let start = dice.pick(&borders).map_or(0, |at| {
        at + line[*at..].chars().next().map_or(0, char::len_utf8)
    });
    let end = borders
        .iter()
        .copied()
        .find(|at| *at > start)
        .unwrap_or(line.len());
    let word = if dice.one_in(2) {
        dice.edge().to_string()
    } else {
        word(dice).to_owned()
    };
    format!("{}{word}{}", &line[..start], &line[end..])
}

/// A word with a meaning.
pub fn word(dice: &mut Dice) -> &'static str {
    dice.pick(WORDS).copied().unwrap_or("")
}

/// Bytes with some of them flipped, cut, doubled, or replaced.
pub fn bytes(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(bytes.len());
        match dice.roll(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.roll(8),
            1 if !bytes.is_empty() => bytes[at] = dice.number() as u8,
            2 => bytes.truncate(at),
            3 => {
                let length = dice.roll(20);
                let new = dice.bytes(length);
                bytes.splice(at..at, new);
            }
            4 => {
                let end = (at + dice.roll(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let word = word(dice).as_bytes().to_vec();
                bytes.splice(at..at, word);
            }
        }
    }
    bytes
}

/// How a tree is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
}

/// A document (JSON or YAML) out of the corpus with parts of its tree changed; now and then with bytes changed,
/// so that it is no tree any more.
pub fn tree(dice: &mut Dice, corpus: &[Vec<u8>], form: Form) -> Vec<u8> {
    let take = |dice: &mut Dice| -> Option<Value> {
        let text = dice.pick(corpus)?;
        serde_yaml_ng::from_slice(text).ok()
    };
    if dice.one_in(8) {
        let text = dice.pick(corpus).cloned().unwrap_or_default();
        return bytes(dice, text);
    }
    let mut tree = take(dice).unwrap_or_else(|| value(dice, 0));
    let other = take(dice).unwrap_or_default();
    for _ in 0..=dice.roll(4) {
        change(dice, &mut tree, &other);
    }
    let text = match form {
        Form::Json => tree.to_string(),
        Form::Yaml if dice.one_in(4) => tree.to_string(),
        Form::Yaml => serde_yaml_ng::to_string(&tree).unwrap_or_default(),
    };
    if dice.one_in(16) {
        bytes(dice, text.into_bytes())
    } else {
        text.into_bytes()
    }
}

/// Changes one place of a tree; some of it may come from another tree.
pub fn change(dice: &mut Dice, tree: &mut Value, other: &Value) {
    let deeper = !dice.one_in(5);
    match tree {
        Value::Object(members) if deeper && !members.is_empty() => {
            change_member(dice, members, other);
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = dice.roll(items.len());
            match dice.roll(6) {
                0 => drop(items.remove(at)),
                1 => {
                    let copies = 1 + if dice.one_in(8) { dice.roll(300) } else { 1 };
                    let copy = items[at].clone();
                    items.splice(at..at, std::iter::repeat_n(copy, copies));
                }
                _ => change(dice, &mut items[at], other),
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            *tree = match (dice.roll(4), &*tree) {
                (0, _) => part(dice, other).clone(),
                (1, Value::String(text)) => word_changed(dice, text).into(),
                (_, _) => value(dice, 3),
            }
        }
    }
}

fn change_member(dice: &mut Dice, members: &mut Map<String, Value>, other: &Value) {
    let names: Vec<String> = members.keys().cloned().collect();
    let Some(name) = dice.pick(&names) else {
        return;
    };
    match dice.roll(10) {
        0 => drop(members.remove(name)),
        1 => {
            let new = word(dice).to_owned();
            members.insert(new, part(dice, other).clone());
        }
        2 => {
            if let Some(value) = members.remove(name) {
                members.insert(word_changed(dice, name), value);
            }
        }
        3 => {
            if let (Value::Object(others), Some(target)) = (part(dice, other), Some(&mut *members))
            {
                target.extend(others.clone());
            }
        }
        _ => {
            if let Some(member) = members.get_mut(name) {
                change(dice, member, other);
            }
        }
    }
}

/// Any part of a tree.
fn part<'a>(dice: &mut Dice, tree: &'a Value) -> &'a Value {
    let mut at = tree;
    while !dice.one_in(3) {
        let next = match at {
            Value::Array(items) => dice.pick(items),
            Value::Object(members) => members.values().nth(dice.roll(members.len())),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        };
        match next {
            Some(next) => at = next,
            None => return at,
        }
    }
    at
}

/// Any value.
pub fn value(dice: &mut Dice, depth: usize) -> Value {
    match dice.roll(if depth < DEEPEST { 9 } else { 7 }) {
        0 => Value::Null,
        1 => Value::Bool(dice.one_in(2)),
        2 => dice.edge().into(),
        3 => (dice.edge() as i64).wrapping_neg().into(),
        4 => Number::from_f64(f64::from_bits(dice.number())).map_or(Value::Null, Value::Number),
        5 if dice.one_in(8) => {
            let length = dice.roll(5000);
            word(dice).repeat(length % 3000 + 1).into()
        }
        5 | 6 => word(dice).into(),
        7 => (0..dice.roll(4)).map(|_| value(dice, depth + 1)).collect(),
        _ => (0..dice.roll(4))
            .map(|_| (word(dice).to_owned(), value(dice, depth + 1)))
            .collect::<Map<_, _>>()
            .into(),
    }
}
