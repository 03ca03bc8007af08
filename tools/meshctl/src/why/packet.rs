//! A packet as people type it.

use std::net::IpAddr;

use model::policy::Protocol;
use serde_json::{Map, Value, json};

use crate::selection::Usage;

/// What people put between the two ends.
const ARROWS: [&str; 4] = ["->", "→", "=>", "to"];

/// Reads `FROM [->] TO[:PORT][/PROTOCOL]` into a probe.
pub(super) fn read(
    words: &[String],
    source_port: Option<u16>,
    icmp: Option<&str>,
) -> anyhow::Result<Value> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (from, to) = match words[..] {
        [from, arrow, to] if ARROWS.contains(&arrow) => (from, to),
        [from, to] => (from, to),
        _ => {
            return Err(usage(
                "expected FROM and TO, with an arrow between them at most",
            ));
        }
    };
    let (to, target) = end(to)?;
    let mut probe = Map::from_iter([
        ("from".to_owned(), json!(from)),
        ("to".to_owned(), json!(to)),
    ]);
    probe.extend(target);
    if let Some(port) = source_port {
        probe.insert("sourcePort".into(), json!(port));
    }
    if let Some(text) = icmp {
        let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
        let (Ok(kind), Ok(code)) = (kind.parse::<u8>(), code.parse::<u8>()) else {
            return Err(usage("--icmp: expected TYPE or TYPE/CODE, such as 8/0"));
        };
        probe.insert("icmp".into(), json!({"type": kind, "code": code}));
    }

    Ok(Value::Object(probe))
}

/// Takes the port and the protocol off the receiver's name.
fn end(text: &str) -> anyhow::Result<(&str, Map<String, Value>)> {
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return Ok((address, target(address, rest)?));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, target(text, "")?));
    }
    if let Some((name, _)) = text.rsplit_once(':') {
        return Ok((name, target(name, &text[name.len()..])?));
    }
    // A pod may not be called like a protocol for the last part to be one.
    if let Some((name, last)) = text.rsplit_once('/')
        && last.parse::<Protocol>().is_ok()
    {
        return Ok((name, target(name, &text[name.len()..])?));
    }

    Ok((text, target(text, "")?))
}

/// Reads `:PORT/PROTOCOL`, of which either may be missing. Without both it is an echo request.
fn target(name: &str, text: &str) -> anyhow::Result<Map<String, Value>> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, Some(protocol)),
        None => (text, None),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => {
            let number = port.parse::<u16>();
            Some(number.map_err(|_| usage(&format!("expected a port, found {port:?}")))?)
        }
        None if port.is_empty() => None,
        None => return Err(usage(&format!("expected :PORT/PROTOCOL, found {text:?}"))),
    };
    let protocol = match protocol {
        Some(text) => text.parse().map_err(|_| {
            usage(&format!(
                "expected a protocol such as tcp, udp, sctp, icmp or a number, found {text:?}"
            ))
        })?,
        None if port.is_some() => Protocol::TCP,
        None if name.parse::<std::net::Ipv6Addr>().is_ok() => Protocol::ICMPV6,
        None => Protocol::ICMP,
    };
    let mut fields = Map::from_iter([("protocol".to_owned(), json!(protocol.to_string()))]);
    if let Some(port) = port {
        fields.insert("port".into(), json!(port));
    }

    Ok(fields)
}

fn usage(message: &str) -> anyhow::Error {
    Usage(message.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(words: &[&str]) -> Value {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();

        read(&words, None, None).unwrap()
    }

    #[test]
    fn a_packet_is_read_as_people_write_it() {
        let tcp = json!({"from": "shop/web", "to": "shop/api", "protocol": "TCP", "port": 8080});
        for to in ["shop/api:8080", "shop/api:8080/tcp", "shop/api:8080/TCP"] {
            assert_eq!(packet(&["shop/web", to]), tcp);
            assert_eq!(packet(&["shop/web", "→", to]), tcp);
        }
        let to = |text: &str| {
            let packet = packet(&["a/b", "to", text]);
            (
                packet["to"].as_str().unwrap().to_owned(),
                packet["protocol"].as_str().unwrap().to_owned(),
                packet["port"].as_u64(),
            )
        };
        let read = |to: &str, protocol: &str, port| (to.to_owned(), protocol.to_owned(), port);
        assert_eq!(to("10.0.0.1"), read("10.0.0.1", "ICMP", None));
        assert_eq!(to("fd00::1"), read("fd00::1", "ICMPv6", None));
        assert_eq!(to("[fd00::1]:53/udp"), read("fd00::1", "UDP", Some(53)));
        assert_eq!(to("10.0.0.1:53/udp"), read("10.0.0.1", "UDP", Some(53)));
        assert_eq!(to("shop/api/icmp"), read("shop/api", "ICMP", None));
        assert_eq!(
            to("service/a/b:5/sctp"),
            read("service/a/b", "SCTP", Some(5))
        );
        assert_eq!(to("node/n1:22"), read("node/n1", "TCP", Some(22)));
    }

    #[test]
    fn what_is_no_packet_is_refused_with_what_was_expected() {
        for words in [
            &["a/b"][..],
            &["a/b", "c/d", "e/f"],
            &["a/b", "c/d:http"],
            &["a/b", "c/d:80/x"],
            &["a/b", "[fd00::1]80"],
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let error = read(&words, None, None).unwrap_err();
            assert!(error.is::<Usage>(), "{words:?}");
            assert!(error.to_string().contains("expected"), "{error}");
        }
    }
}
