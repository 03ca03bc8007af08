//! Names of chains and sets: what means the same has the same name.

use model::{InterfaceName, ObjectKey, policy::Direction};
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a hash in a name. 128 bits: nobody finds two selectors of one name.
const DIGITS: usize = 32;

/// Longest name that is written out. The kernel's end at 255 bytes (`NFT_NAME_MAXLEN` of
/// linux/netfilter/nf_tables.h).
const NAME_MAX: usize = 200;

/// Longest comment on a rule that `nft` shows (`NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl, less the NUL).
const COMMENT_MAX: usize = 127;

/// Returns `PREFIX_HASH`, the hash being that of a text.
pub(super) fn hashed(prefix: &str, text: &str) -> String {
    let hash = hex::encode(Sha256::digest(text));

    format!("{prefix}_{}", &hash[..DIGITS])
}

/// Returns the name of a chain that holds what an object says of one direction: the object's own, where it is short.
pub(super) fn of_object(sort: &str, direction: Direction, object: &str) -> String {
    let way = word(direction);
    let name = format!("{sort}_{way}/{object}");
    if is_plain(&name) {
        return name;
    }

    hashed(&format!("{sort}_{way}"), object)
}

/// Returns the name of the chain of a group, of which this is the least interface; `None` is each that has no endpoint
/// of its own.
pub(crate) fn of_group(
    prefix: &str,
    direction: Direction,
    least: Option<&InterfaceName>,
) -> String {
    // Longer than an interface's name can be.
    let least = least.map_or("every_other_interface", InterfaceName::as_str);

    of_object(prefix, direction, least)
}

/// Returns the name of a group's chain behind a tier that a policy may leave.
pub(super) fn behind(group: &str, tier: &str) -> String {
    let name = format!("{group}/{tier}");
    if is_plain(&name) {
        return name;
    }

    hashed(group, tier)
}

/// Returns whether `nft` reads a name.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);

    name.len() <= NAME_MAX && name.bytes().all(plain)
}

/// Returns a policy's name inside a chain's.
pub(super) fn path(key: &ObjectKey) -> String {
    match &key.namespace {
        Some(namespace) => format!("{}/{namespace}/{}", key.kind.as_str(), key.name),
        None => format!("{}/{}", key.kind.as_str(), key.name),
    }
}

/// Returns a comment: what is said of an object, whose name is cut where both are too long.
pub(super) fn comment(object: &str, said: &str) -> String {
    let room = COMMENT_MAX.saturating_sub(said.len() + 1);
    let mut end = object.len().min(room);
    while !object.is_char_boundary(end) {
        end -= 1;
    }

    format!("{} {said}", &object[..end])
}

/// Returns a direction's word.
pub(super) const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

/// Returns a direction's word in a comment.
pub(super) const fn long_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nft_would_not_read_is_hashed() {
        let odd = of_object("policy", Direction::Ingress, "NetworkPolicy/a b;drop/c");
        let long = of_object("policy", Direction::Ingress, &"x".repeat(300));

        assert!(odd.starts_with("policy_in_") && odd.len() == 42, "{odd}");
        assert!(long.starts_with("policy_in_") && long.len() == 42, "{long}");
        assert_eq!(
            of_object("policy", Direction::Egress, "NetworkPolicy/shop/api"),
            "policy_out/NetworkPolicy/shop/api"
        );
    }

    #[test]
    fn a_long_name_does_not_push_the_rules_number_out_of_the_comment() {
        let comment = comment(&"ü".repeat(200), "ingress 17");

        assert!(
            comment.len() <= 127 && comment.ends_with("ü ingress 17"),
            "{comment}"
        );
    }
}
