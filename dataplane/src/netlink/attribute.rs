//! Attributes as the kernel sends them.

use std::net::IpAddr;

/// Bits of an attribute's type that are its number (`NLA_TYPE_MASK` of linux/netlink.h).
const TYPE_MASK: u16 = 0x3fff;

/// Bytes of an attribute's own header: length and type.
const HEADER: usize = 4;

/// The attributes of a message or of a nest, in order. Ends at the first malformed one.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads attributes from the bytes behind a family's own header.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns the value of the first attribute of this number.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;

        attributes.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// Returns the attributes inside the first nest of this number; none where it is missing.
    pub(crate) fn nest(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..HEADER)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();

        Some((kind, value))
    }
}

/// Reads a short number in the machine's byte order.
pub(crate) fn u16_ne(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

/// Reads a long number in the machine's byte order.
pub(crate) fn u64_ne(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

/// Reads a number in the machine's byte order.
pub(crate) fn u32_ne(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Reads a number in network byte order.
pub(crate) fn u32_be(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Reads a text that may end in NUL.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());

    str::from_utf8(&bytes[..end]).ok()
}

/// Reads 4 or 16 bytes as an address.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_at_the_first_that_lies_about_its_length() {
        let bytes = [8, 0, 1, 0, 1, 2, 3, 4, 200, 0, 2, 0, 9];

        let read: Vec<_> = Attributes::new(&bytes).collect();

        assert_eq!(read, [(1, &[1, 2, 3, 4][..])]);
    }

    #[test]
    fn an_attribute_shorter_than_its_header_ends_the_list() {
        assert_eq!(Attributes::new(&[0, 0, 1, 0, 8, 0, 2, 0]).count(), 0);
    }
}
