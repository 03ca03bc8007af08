//! What a rule carries for its readers: the comment that `nft list` shows, and a tag of ours.
//!
//! The tag is a checksum of the rule as we sent it. A rule without it, or with another, is not the
//! one we wrote: that is how a restarted agent knows its own rules without parsing expressions, and
//! how an edit by somebody else (whose program writes no such tag) is noticed.

/// A comment (`NFTNL_UDATA_RULE_COMMENT` of libnftnl's udata.h).
const COMMENT: u8 = 0;

/// Our tag: a type that libnftnl leaves free; `nft` skips it.
const TAG: u8 = 0x6d;

/// Longest comment with its NUL (`NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl).
const COMMENT_MAX: usize = 128;

/// Writes a comment, cut where it is too long, and a tag.
pub(crate) fn encode(comment: &str, tag: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut end = comment.len().min(COMMENT_MAX - 1);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    if end > 0 {
        let text = &comment.as_bytes()[..end];
        bytes.extend([COMMENT, length(text.len() + 1)]);
        bytes.extend(text);
        bytes.push(0);
    }
    bytes.extend([TAG, 8]);
    bytes.extend(tag.to_be_bytes());

    bytes
}

/// Writes what `nft list` must know of a set to show its keys (`NFTNL_UDATA_SET_KEYBYTEORDER`).
pub(super) fn byte_order(is_host_order: bool) -> [u8; 6] {
    const KEY_BYTE_ORDER: u8 = 0;
    /// `BYTEORDER_HOST_ENDIAN` and `BYTEORDER_BIG_ENDIAN` of nftables' datatype.h.
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;

    let [a, b, c, d] = if is_host_order { HOST } else { NETWORK }.to_ne_bytes();

    [KEY_BYTE_ORDER, 4, a, b, c, d]
}

/// Reads the tag.
pub(crate) fn tag(bytes: &[u8]) -> Option<u64> {
    find(bytes, TAG)?.try_into().ok().map(u64::from_be_bytes)
}

/// Reads the comment.
pub(super) fn comment(bytes: &[u8]) -> Option<&str> {
    crate::netlink::text(find(bytes, COMMENT)?)
}

/// The FNV-1a hash, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>. Not against malice.
pub(super) fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;

    parts
        .into_iter()
        .flatten()
        .fold(OFFSET_BASIS, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
        })
}

fn find(mut bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = &bytes[2 + length..];
    }
}

fn length(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_and_tag_are_read_back() {
        let bytes = encode("why the rule is there", 7);

        assert_eq!(
            (comment(&bytes), tag(&bytes)),
            (Some("why the rule is there"), Some(7))
        );
    }

    #[test]
    fn a_long_comment_is_cut_between_characters() {
        let bytes = encode(&"ü".repeat(100), 7);

        assert_eq!(
            (comment(&bytes), tag(&bytes)),
            (Some(&*"ü".repeat(63)), Some(7))
        );
    }

    #[test]
    fn foreign_userdata_has_no_tag() {
        assert_eq!(tag(&[0, 3, b'h', b'i', 0]), None);
        assert_eq!(tag(&[TAG, 200, 1]), None);
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(checksum([&b"foo"[..], b"bar"]), 0x8594_4171_f739_67e8);
    }
}
