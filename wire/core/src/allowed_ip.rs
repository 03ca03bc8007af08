//! Allowed IPs: which peer owns which network. Outgoing packets go to the owner of the longest
//! network that holds their destination; incoming ones must come from the owner of the longest
//! network that holds their source, over all peers, so that a peer with a wide network cannot
//! speak for one with a narrow network inside it.
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::PeerId;

/// The owners of all networks.
#[derive(Default)]
pub(crate) struct AllowedIps {
    v4: PrefixMap<Ipv4Net, PeerId>,
    v6: PrefixMap<Ipv6Net, PeerId>,
}

impl AllowedIps {
    /// Gives a network to a peer and returns who had it before.
    pub(crate) fn insert(&mut self, network: IpNet, peer: PeerId) -> Option<PeerId> {
        match network {
            IpNet::V4(network) => self.v4.insert(network.trunc(), peer),
            IpNet::V6(network) => self.v6.insert(network.trunc(), peer),
        }
    }

    /// Takes a network away from whoever has it.
    pub(crate) fn remove(&mut self, network: IpNet) {
        match network {
            IpNet::V4(network) => self.v4.remove(&network.trunc()),
            IpNet::V6(network) => self.v6.remove(&network.trunc()),
        };
    }

    /// The owner of the longest network that holds `address`.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<PeerId> {
        let found = match address {
            IpAddr::V4(ip) => self.v4.get_lpm(&Ipv4Net::from(ip)).map(|(_, peer)| peer),
            IpAddr::V6(ip) => self.v6.get_lpm(&Ipv6Net::from(ip)).map(|(_, peer)| peer),
        };
        found.copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// The obvious twin: a list that is read from end to end.
    #[derive(Default)]
    struct List(Vec<(IpNet, PeerId)>);

    impl List {
        fn insert(&mut self, network: IpNet, peer: PeerId) {
            self.remove(network);
            self.0.push((network.trunc(), peer));
        }

        fn remove(&mut self, network: IpNet) {
            self.0.retain(|(other, _)| *other != network.trunc());
        }

        fn owner(&self, address: IpAddr) -> Option<PeerId> {
            let holding = self
                .0
                .iter()
                .filter(|(network, _)| network.contains(&address));
            holding
                .max_by_key(|(network, _)| network.prefix_len())
                .map(|(_, peer)| *peer)
        }
    }

    /// Few distinct bits, so that networks nest.
    fn address() -> impl Strategy<Value = IpAddr> {
        let bits = prop_oneof![
            proptest::collection::vec(0_u8..3, 4),
            proptest::collection::vec(prop_oneof![Just(0_u8), Just(0x80), Just(0xff)], 16),
        ];
        bits.prop_map(|bytes| match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
            Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap())),
        })
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0_u8..=128).prop_map(|(address, length)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(most)).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_a_list_read_from_end_to_end(
            changes in proptest::collection::vec((network(), 0_u32..6), 0..60),
            asked in proptest::collection::vec(address(), 40),
        ) {
            let (mut trie, mut list) = (AllowedIps::default(), List::default());
            for (network, slot) in changes {
                if slot == 0 {
                    trie.remove(network);
                    list.remove(network);
                } else {
                    let peer = PeerId { slot, generation: 0 };
                    trie.insert(network, peer);
                    list.insert(network, peer);
                }
            }
            for address in asked {
                prop_assert_eq!(trie.owner(address), list.owner(address), "{}", address);
            }
        }
    }
}
