//! Messages: built for the kernel, and cut out of what it sent.

use zeroize::Zeroize;

/// Bytes of a message's header (`struct nlmsghdr` of linux/netlink.h).
const HEADER: usize = 16;

/// Marks an attribute as a nest (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// Flags of a message (`NLM_F_*` of linux/netlink.h).
pub(crate) mod flag {
    /// It asks for something.
    pub(crate) const REQUEST: u16 = 1;
    /// Answer also when it worked.
    pub(crate) const ACK: u16 = 4;
    /// Tell what listeners are told.
    pub(crate) const ECHO: u16 = 8;
    /// The dump was disturbed: ask again.
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
    /// Everything there is.
    pub(crate) const DUMP: u16 = 0x300;
    /// Replace what is there.
    pub(crate) const REPLACE: u16 = 0x100;
    /// Refuse if it is there.
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    /// Create if it is not there.
    pub(crate) const CREATE: u16 = 0x400;
    /// At the end of its list.
    pub(crate) const APPEND: u16 = 0x800;
}

/// A message to the kernel.
#[derive(Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    /// An attribute was longer than its length field can say.
    oversized: bool,
    /// It carries a key: its bytes are wiped when it is dropped.
    secret: bool,
}

impl Message {
    /// Begins a request of this type with its family's own header.
    pub(crate) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self {
            bytes,
            oversized: false,
            secret: false,
        };
        message.pad();

        message
    }

    /// Begins a request that carries a key, of at most this many bytes: it never grows, so that no copy
    /// of it is left behind, and is wiped when it is dropped.
    pub(crate) fn secret(kind: u16, family_header: &[u8], capacity: usize) -> Self {
        let plain = Self::new(kind, 0, family_header);
        let mut bytes = Vec::with_capacity(capacity.max(plain.bytes.len()));
        bytes.extend_from_slice(&plain.bytes);

        Self {
            bytes,
            oversized: false,
            secret: true,
        }
    }

    /// Returns whether it carries a key.
    pub(crate) fn is_secret(&self) -> bool {
        self.secret
    }

    /// Appends an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes.extend_from_slice(value));
    }

    /// Appends a number in the machine's byte order.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Appends a short number in the machine's byte order.
    pub(crate) fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Appends a number in network byte order.
    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends a text and its NUL.
    pub(crate) fn put_text(&mut self, kind: u16, value: &str) {
        self.nested(kind, |message| {
            message.bytes.extend_from_slice(value.as_bytes());
            message.bytes.push(0);
        });
    }

    /// Appends a nest.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nested(kind | NESTED, fill);
    }

    /// Appends bytes that are no attribute: a header inside a nest.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Adds a flag.
    pub(crate) fn add_flag(&mut self, flag: u16) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flag;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Returns the message's size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the bytes with this sequence number; `None` where the message cannot be said.
    pub(crate) fn finish(&mut self, sequence: u32) -> Option<&[u8]> {
        let length = u32::try_from(self.bytes.len()).ok()?;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());

        (!self.oversized).then_some(&self.bytes)
    }

    /// Returns the message's bytes from `start`: what it says, apart from its header.
    pub(crate) fn bytes_from(&self, start: usize) -> &[u8] {
        &self.bytes[start..]
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);

        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if self.secret {
            self.bytes.zeroize();
        }
    }
}

/// A message from the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Received<'a> {
    /// Its type.
    pub(crate) kind: u16,
    /// Its flags.
    pub(crate) flags: u16,
    /// The number of the request it answers.
    pub(crate) sequence: u32,
    /// The socket that caused it; zero is the kernel itself.
    pub(crate) port: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

/// Cuts a datagram into its messages. Ends at the first malformed one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)?
                .try_into()
                .ok()
                .map(u32::from_ne_bytes)
        };
        let half = |at: usize| {
            bytes
                .get(at..at + 2)?
                .try_into()
                .ok()
                .map(u16::from_ne_bytes)
        };
        let length = usize::try_from(word(0)?).ok()?;
        let (kind, flags, sequence, port) = (half(4)?, half(6)?, word(8)?, word(12)?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();

        Some(Received {
            kind,
            flags,
            sequence,
            port,
            payload,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attributes;

    #[test]
    fn what_was_built_is_read_back() {
        let mut message = Message::new(24, flag::CREATE, &[2, 0, 0]);
        message.put_text(3, "eth0");
        message.nest(4, |nest| nest.put_u32(1, 7));
        let bytes = message.finish(9).unwrap();

        let read = messages(bytes).next().unwrap();
        let attributes = Attributes::new(&read.payload[4..]);

        assert_eq!(
            (read.kind, read.flags, read.sequence),
            (24, flag::CREATE | flag::REQUEST, 9)
        );
        assert_eq!(attributes.find(3), Some(&b"eth0\0"[..]));
        assert_eq!(attributes.nest(4).find(1), Some(&7u32.to_ne_bytes()[..]));
    }

    #[test]
    fn a_nest_that_its_length_field_cannot_say_is_not_sent() {
        let mut message = Message::new(24, 0, &[]);
        message.put(1, &[0; 70_000]);

        assert_eq!(message.finish(1), None);
    }
}
