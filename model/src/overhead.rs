//! How many bytes each encapsulation takes: the one table behind every MTU.

use crate::Family;

/// Smallest MTU that carries IPv4 (RFC 791) with room for our own minimum.
pub const MIN_MTU: u32 = 576;

/// Returns the smallest MTU of a device that carries this family: RFC 791 §3.2, RFC 8200 §5. Linux takes
/// IPv6 away from a device whose MTU is less.
pub const fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// WireGuard pads its payload to a multiple of this many bytes (§5.4.6 of its paper).
pub const WIREGUARD_PADDING: u32 = 16;

/// One layer around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// WireGuard over an underlay of this family: outer IP + UDP 8 + header 16 + tag 16.
    WireGuard(Family),
    /// VXLAN over this family: outer IP + UDP 8 + VXLAN 8 + inner Ethernet 14.
    Vxlan(Family),
    /// IPv4 in IPv4 (RFC 2003): one more IPv4 header.
    Ipip,
}

impl Encapsulation {
    /// Returns the bytes that this layer adds, without padding.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::WireGuard(family) => ip_header(family) + 8 + 32,
            Self::Vxlan(family) => ip_header(family) + 8 + 8 + 14,
            Self::Ipip => 20,
        }
    }
}

/// Returns the largest packet that fits when `layers` are put around it, outermost first.
///
/// Padding never enlarges a packet past the tunnel's MTU, so it costs nothing here. Where a route carries
/// less than its tunnel's device, it does: see [`WIREGUARD_PADDING`].
pub fn inner_mtu(underlay: u32, layers: &[Encapsulation]) -> u32 {
    layers
        .iter()
        .fold(underlay, |mtu, layer| mtu.saturating_sub(layer.bytes()))
}

const fn ip_header(family: Family) -> u32 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_felixs_figures() {
        assert_eq!(
            inner_mtu(1500, &[Encapsulation::WireGuard(Family::V4)]),
            1440
        );
        assert_eq!(
            inner_mtu(1500, &[Encapsulation::WireGuard(Family::V6)]),
            1420
        );
        assert_eq!(inner_mtu(1500, &[Encapsulation::Vxlan(Family::V4)]), 1450);
        assert_eq!(inner_mtu(1500, &[Encapsulation::Vxlan(Family::V6)]), 1430);
        assert_eq!(inner_mtu(1500, &[Encapsulation::Ipip]), 1480);
    }

    #[test]
    fn stacked_layers_add_up() {
        let stack = [
            Encapsulation::WireGuard(Family::V4),
            Encapsulation::Vxlan(Family::V4),
        ];

        assert_eq!(inner_mtu(1500, &stack), 1390);
    }
}
