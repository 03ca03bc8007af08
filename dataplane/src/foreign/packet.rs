//! What is known of the packets of one course.

use model::{Family, InterfaceName, firewall::Course};

/// UDP and TCP (IANA protocol numbers).
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A kind of packet of ours, as a rule may look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) course: Course,
    pub(super) family: Family,
    input: Interface,
    output: Interface,
    /// Its source or destination port, where it is a tunnel's own.
    port: u16,
}

/// A device that a packet came by or leaves by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interface {
    /// None.
    Missing,
    /// This one.
    Named(InterfaceName),
    /// One whose name begins so.
    Prefixed(&'static str),
}

impl Packet {
    /// Returns the packets of a course on these devices. `port` is the tunnel's.
    pub(super) fn new(
        course: Course,
        family: Family,
        tunnel: &InterfaceName,
        underlay: &InterfaceName,
        port: u16,
    ) -> Self {
        use Interface::{Missing, Named, Prefixed};
        let pod = Prefixed(model::constant::WORKLOAD_PREFIX);
        let (input, output) = match course {
            Course::TunnelIn => (Named(underlay.clone()), Missing),
            Course::TunnelOut => (Missing, Named(underlay.clone())),
            Course::TunnelToPod => (Named(tunnel.clone()), pod),
            Course::PodToTunnel => (pod, Named(tunnel.clone())),
        };

        Self {
            course,
            family,
            input,
            output,
            port,
        }
    }

    /// Returns the hooks that it passes (`enum nf_inet_hooks`), in order.
    pub(super) fn hooks(&self) -> &'static [u32] {
        match self.course {
            Course::TunnelIn => &[0, 1],
            Course::TunnelOut => &[3, 4],
            Course::TunnelToPod | Course::PodToTunnel => &[0, 2, 4],
        }
    }

    /// Returns what `meta` loads at a hook that knows both devices (`NFT_META_*` of nf_tables.h).
    pub(super) fn meta(&self, key: u32) -> Option<Vec<u8>> {
        const PROTOCOL: u32 = 1;
        const INPUT_NAME: u32 = 6;
        const OUTPUT_NAME: u32 = 7;
        const FAMILY: u32 = 15;
        const LAYER_4: u32 = 16;

        match key {
            PROTOCOL => Some(match self.family {
                Family::V4 => vec![0x08, 0x00],
                Family::V6 => vec![0x86, 0xdd],
            }),
            INPUT_NAME => self.input.bytes(),
            OUTPUT_NAME => self.output.bytes(),
            FAMILY => Some(vec![crate::address::family_number(self.family)]),
            LAYER_4 => Some(vec![self.protocol()]),
            _ => None,
        }
    }

    /// Returns what `ct` loads (`NFT_CT_*`): it is the first of its connection, and nobody translated it.
    pub(super) fn ct(&self, key: u32) -> Option<Vec<u8>> {
        const STATE: u32 = 0;
        const DIRECTION: u32 = 1;
        const STATUS: u32 = 2;
        /// `NF_CT_STATE_BIT(IP_CT_NEW)`.
        const NEW: u32 = 1 << 3;

        match key {
            STATE => Some(NEW.to_ne_bytes().to_vec()),
            DIRECTION => Some(vec![0]),
            STATUS => Some(vec![0; 4]),
            _ => None,
        }
    }

    /// Returns bytes of the packet (`NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`).
    pub(super) fn payload(&self, base: u32, offset: u32, length: u32) -> Option<Vec<u8>> {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;

        let port = Some(self.port.to_be_bytes().to_vec());
        match (base, offset, length) {
            (NETWORK, 9, 1) if self.family == Family::V4 => Some(vec![self.protocol()]),
            (NETWORK, 6, 1) if self.family == Family::V6 => Some(vec![self.protocol()]),
            (TRANSPORT, 0, 2) if self.course == Course::TunnelOut => port,
            (TRANSPORT, 2, 2) if self.course == Course::TunnelIn => port,
            _ => None,
        }
    }

    fn protocol(&self) -> u8 {
        if self.course.is_outer() { UDP } else { TCP }
    }
}

impl Interface {
    /// Returns a name as registers hold it; of a prefix nothing but itself is known.
    fn bytes(&self) -> Option<Vec<u8>> {
        let text = match self {
            Self::Missing => "",
            Self::Named(name) => name.as_str(),
            Self::Prefixed(prefix) => return Some(prefix.as_bytes().to_vec()),
        };
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(16, 0);

        Some(bytes)
    }
}
