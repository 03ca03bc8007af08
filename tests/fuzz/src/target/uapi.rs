//! UAPI text: what `wg` and everybody else says to a tunnel.

use std::time::{Duration, Instant};

use wire::uapi::{Configuration, Parser, Request};
use wire_core::{Now, Tunnel};

use super::{Broken, Fate, Target, promise};
use crate::{Dice, mutation};

mod model;

use model::Model;

/// Texts of UAPI requests, one after the other.
///
/// Promises: what is refused and what is taken, and what every taken request makes of keys, peers and allowed IPs, is
/// what a reader of the protocol's page makes of it, line by line, with lists in place of tries; a refused
/// request changes nothing; a request is the same after it was written and read again.
#[derive(Clone, Copy, Debug)]
pub struct Uapi;

impl Target for Uapi {
    fn name(&self) -> &'static str {
        "uapi"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        mutation::lines(dice, corpus, line)
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        let mut fate = Fate::default();
        let mut tunnel = Tunnel::new([1; 32]);
        let mut model = Model::default();
        let mut parser = Parser::default();
        let mut request = Vec::new();
        for line in input.split(|byte| *byte == b'\n') {
            let outcome = match std::str::from_utf8(line) {
                Ok(text) => parser.line(text),
                Err(_) => {
                    parser.refuse(wire::uapi::Errno::INVALID);
                    None
                }
            };
            if !line.is_empty() {
                request.push(line);
            }
            if let Some(outcome) = outcome {
                let lines = std::mem::take(&mut request);
                fate.note(answer(outcome, &lines, &mut tunnel, &mut model)?);
            }
        }
        Ok(fate)
    }
}

fn answer(
    outcome: Result<Request, wire::uapi::Errno>,
    lines: &[&[u8]],
    tunnel: &mut Tunnel,
    model: &mut Model,
) -> Result<String, Broken> {
    let wanted = model.take(lines);
    let word = match outcome {
        Ok(Request::Get) => {
            promise(wanted == Ok(model::Taken::Get), || {
                format!("taken as a get: {wanted:?}")
            })?;
            "get".to_owned()
        }
        Ok(Request::Set(configuration)) => {
            promise(wanted == Ok(model::Taken::Set), || {
                let text = lines.iter().map(|line| String::from_utf8_lossy(line));
                format!(
                    "taken, but {wanted:?}: {}",
                    text.collect::<Vec<_>>().join("\\n")
                )
            })?;
            is_written_and_read_again(&configuration)?;
            let peers = configuration.peers.len();
            apply(tunnel, *configuration);
            format!(
                "set, {} peers",
                if peers > 3 {
                    "more".to_owned()
                } else {
                    peers.to_string()
                }
            )
        }
        Err(errno) => {
            promise(wanted.is_err(), || {
                format!("refused with {errno}, but the model takes it")
            })?;
            format!("refused: {errno}")
        }
    };
    model.compare(tunnel)?;
    Ok(word)
}

/// In the order of the device: its own key, its peers.
fn apply(tunnel: &mut Tunnel, configuration: Configuration) {
    let now = now();
    if let Some(key) = configuration.private_key {
        tunnel.set_private_key(key, now);
    }
    if configuration.replace_peers {
        tunnel.remove_peers();
    }
    for (key, change) in configuration.peers {
        tunnel.configure_peer(key, change, now);
    }
}

fn is_written_and_read_again(configuration: &Configuration) -> Result<(), Broken> {
    let text = configuration.encode();
    let mut parser = Parser::default();
    let mut outcomes = text.split('\n').filter_map(|line| parser.line(line));
    match (outcomes.next(), outcomes.next()) {
        (Some(Ok(Request::Set(again))), None) => promise(again.encode() == text, || {
            "a request is not the same when read again".into()
        }),
        (_, _) => Err(Broken::new("a written request is not read as one request")),
    }
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: Duration::from_secs(1_767_225_600),
    }
}

fn line(dice: &mut Dice) -> String {
    let key = [
        "01",
        "02",
        "03",
        "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
    ][dice.roll(4)];
    let key = if key.len() == 2 {
        key.repeat(32)
    } else {
        key.to_owned()
    };
    let length = dice.roll(34);
    let network = format!(
        "{}.{}.0.{}/{length}",
        10 + dice.roll(2),
        dice.roll(3),
        dice.roll(3)
    );
    match dice.roll(26) {
        0..=2 => "set=1".into(),
        3 => "get=1".into(),
        4..=6 => String::new(),
        7..=9 => format!("public_key={key}"),
        10 => format!("private_key={key}"),
        11 => format!("private_key={}", "0".repeat(64)),
        12..=14 => format!("allowed_ip={network}"),
        15 => format!("allowed_ip=-{network}"),
        16 => format!("allowed_ip=fd00::{}/{}", dice.roll(3), dice.roll(130)),
        17 => format!("endpoint={}", mutation::word(dice)),
        18 => format!("endpoint=192.0.2.{}:{}", dice.roll(3), dice.roll(3)),
        19 => format!("persistent_keepalive_interval={}", dice.edge()),
        20 => [
            "replace_allowed_ips=true",
            "replace_peers=true",
            "update_only=true",
            "remove=true",
        ][dice.roll(4)]
        .into(),
        21 => format!("preshared_key={key}"),
        22 => [
            "protocol_version=1",
            "protocol_version=2",
            "errno=0",
            "rx_bytes=1",
        ][dice.roll(4)]
        .into(),
        23 => format!("listen_port={}", dice.edge()),
        24 => format!("fwmark={}", dice.edge()),
        _ => format!("{}={}", mutation::word(dice), mutation::word(dice)),
    }
}
