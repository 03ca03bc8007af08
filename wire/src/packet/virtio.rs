//! The virtio network header that precedes every frame of a TUN device opened with `IFF_VNET_HDR`.
//!
//! Layout and constants: `struct virtio_net_hdr` (`linux/virtio_net.h`), 10 bytes, host byte order (the TUN driver's
//! default). It carries what the kernel left undone: a checksum to finish, a super-frame to cut.

/// Bytes of the header.
pub(crate) const SIZE: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What kind of super-frame follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One packet, at most the MTU long.
    Single,
    /// Many TCP segments over IPv4.
    TcpV4,
    /// Many TCP segments over IPv6.
    TcpV6,
    /// Many UDP datagrams over either family.
    Udp,
}

/// A decoded header. Offsets and sizes are in bytes from the start of the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// What follows.
    pub(crate) kind: Kind,
    /// Where the checksummed part begins and where in it the checksum is stored; `None`: already complete.
    pub(crate) checksum: Option<Checksum>,
    /// Length of all headers (IP and transport) of a super-frame.
    pub(crate) header_length: u16,
    /// Payload bytes of each segment but the last.
    pub(crate) segment_size: u16,
}

/// A transport checksum that is still to be computed over `start..`, to be stored at `start + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub(crate) start: u16,
    pub(crate) offset: u16,
}

impl Header {
    /// The header of a complete, ordinary packet.
    pub(crate) const SINGLE: Self = Self {
        kind: Kind::Single,
        checksum: None,
        header_length: 0,
        segment_size: 0,
    };

    /// Decodes the first [`SIZE`] bytes of a frame; `None`: a kind of frame that was never asked for.
    pub(crate) fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => Kind::Single,
            GSO_TCP_V4 => Kind::TcpV4,
            GSO_TCP_V6 => Kind::TcpV6,
            GSO_UDP_L4 => Kind::Udp,
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CHECKSUM != 0).then(|| Checksum {
            start: word(6),
            offset: word(8),
        });
        Some(Self {
            kind,
            checksum,
            header_length: word(2),
            segment_size: word(4),
        })
    }

    /// The header's bytes.
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[1] = match self.kind {
            Kind::Single => GSO_NONE,
            Kind::TcpV4 => GSO_TCP_V4,
            Kind::TcpV6 => GSO_TCP_V6,
            Kind::Udp => GSO_UDP_L4,
        };
        bytes[2..4].copy_from_slice(&self.header_length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment_size.to_ne_bytes());
        if let Some(checksum) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&checksum.start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&checksum.offset.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_own_encoding() {
        let header = Header {
            kind: Kind::TcpV6,
            checksum: Some(Checksum {
                start: 40,
                offset: 16,
            }),
            header_length: 72,
            segment_size: 1348,
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        assert_eq!(Header::SINGLE.encode(), [0; SIZE]);
    }

    #[test]
    fn an_unknown_kind_of_super_frame_is_refused() {
        assert_eq!(Header::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
