//! What single texts and numbers must look like.

use serde_json::Value;

use crate::{InterfaceName, name::is_dns_label, policy::PortMatch};

pub(super) fn in_range(value: &Value, least: i64, most: u64) -> bool {
    match (value.as_u64(), value.as_i64()) {
        (Some(number), _) => number <= most && i128::from(number) >= i128::from(least),
        (None, Some(number)) => number >= least,
        (None, None) => false,
    }
}

pub(super) fn network(text: &str) -> Option<ipnet::IpNet> {
    let net: ipnet::IpNet = text.parse().ok()?;

    (net.addr() == net.network()).then_some(net)
}

pub(super) fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();

    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

pub(super) fn is_port_range(text: &str) -> bool {
    let Some((first, last)) = text.split_once(':') else {
        return text.parse::<u16>().is_ok();
    };
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => first <= last,
        (Ok(_) | Err(_), _) => false,
    }
}

pub(super) fn is_rule_port(text: &str) -> bool {
    match text.parse() {
        Ok(PortMatch::Range(first, _)) => first > 0,
        Ok(PortMatch::Named(_)) => true,
        Err(_) => false,
    }
}

/// Returns whether a text is a service name (RFC 6335, section 5.1).
pub(super) fn is_service_name(text: &str) -> bool {
    let bytes = text.as_bytes();

    bytes.len() <= 15
        && is_dns_label(text)
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !text.contains("--")
}

pub(super) fn is_host_interface(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);

    text.parse::<InterfaceName>().is_ok() && text.bytes().all(allowed)
}

pub(super) fn is_as_number(text: &str) -> bool {
    match text.split_once('.') {
        Some((high, low)) => high.parse::<u16>().is_ok() && low.parse::<u16>().is_ok(),
        None => text.parse::<u32>().is_ok(),
    }
}
