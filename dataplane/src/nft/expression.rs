//! A rule's words as the kernel's expressions.
//!
//! Each condition loads something into register 1 and compares it there; a condition on an address
//! first asks for the family, as `nft` does, so that a rule never reads the wrong header; once in a rule is enough.

use std::net::IpAddr;

use ipnet::IpNet;
use model::{
    Family, InterfaceName,
    nft::{CtState, Detour, End, Match, Nflog, NftFamily, Rule, Sense, Statement},
};

use super::code::{
    DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, LIST_ELEMENT, REGISTER_1,
    REGISTER_2, REGISTER_3, REGISTER_32, REGISTER_VERDICT, VERDICT_CHAIN, VERDICT_CODE,
};
use crate::{address::family_number, netlink::Message};

/// Bytes of an interface name in a register (`IFNAMSIZ`).
pub(super) const NAME_LENGTH: usize = 16;

/// `NFT_META_*`.
#[derive(Clone, Copy)]
enum Meta {
    Protocol = 1,
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Layer4 = 16,
}

/// `NFT_CT_*`.
#[derive(Clone, Copy)]
enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    DestinationV4 = 20,
    DestinationV6 = 22,
}

/// Payload bases (`NFT_PAYLOAD_*_HEADER`).
#[derive(Clone, Copy)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// Comparisons (`NFT_CMP_EQ`, `NFT_CMP_NEQ`, `NFT_CMP_LTE`, `NFT_CMP_GTE`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// `IPS_DST_NAT` of linux/netfilter/nf_conntrack_common.h.
const STATUS_DNAT: u32 = 1 << 5;

/// Conntrack states as the `ct state` expression has them (`NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT`).
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED: u32 = 1 << 1;
const STATE_RELATED: u32 = 1 << 2;
const STATE_NEW: u32 = 1 << 3;
const STATE_UNTRACKED: u32 = 1 << 6;

/// `NFT_NAT_SNAT` and `NFT_NAT_DNAT` of linux/netfilter/nf_tables.h.
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;

/// `NF_NAT_RANGE_PROTO_SPECIFIED` of linux/netfilter/nf_nat.h.
const NAT_PORTS: u32 = 1 << 1;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of linux/netfilter/nf_nat.h.
const NAT_FULLY_RANDOM: u32 = 1 << 4;

/// Appends a rule's expressions to the list in `message`.
pub(super) fn put_rule(message: &mut Message, table: NftFamily, rule: &Rule) {
    let mut list = List {
        message,
        table,
        family: None,
    };
    for condition in &rule.matches {
        list.put_match(condition);
    }
    if rule.counter {
        list.put("counter", |data| {
            data.put(1, &[0; 8]);
            data.put(2, &[0; 8]);
        });
    }
    list.put_statement(&rule.statement);
}

/// A list of expressions under construction.
struct List<'a> {
    message: &'a mut Message,
    table: NftFamily,
    /// The family that the conditions so far have made sure of.
    family: Option<Family>,
}

impl List<'_> {
    fn put_match(&mut self, condition: &Match) {
        match condition {
            Match::Iif(sense, name) => self.name(Meta::InputName, *sense, name),
            Match::IifPrefix(sense, prefix) => self.prefix(Meta::InputName, *sense, prefix),
            Match::IifSet(sense, set) => {
                self.load_meta(Meta::InputName);
                self.lookup(*sense, set);
            }
            Match::Oif(sense, name) => self.name(Meta::OutputName, *sense, name),
            Match::OifPrefix(sense, prefix) => self.prefix(Meta::OutputName, *sense, prefix),
            Match::OifSet(sense, set) => {
                self.load_meta(Meta::OutputName);
                self.lookup(*sense, set);
            }
            Match::Family(family) => self.family(*family),
            Match::Source(sense, family, set) => {
                self.address_set(Side::Source, *sense, *family, set)
            }
            Match::Destination(sense, family, set) => {
                self.address_set(Side::Destination, *sense, *family, set);
            }
            Match::SourceOnInterface(sense, family, set) => {
                self.family(*family);
                self.load_meta(Meta::InputName);
                self.load_address(Side::Source, *family, REGISTER_2);
                self.lookup(*sense, set);
            }
            Match::SourceNet(sense, net) => self.net(Side::Source, *sense, net),
            Match::DestinationNet(sense, net) => self.net(Side::Destination, *sense, net),
            Match::Protocol(sense, number) => {
                self.load_meta(Meta::Layer4);
                self.compare(compare(*sense), &[*number]);
            }
            Match::DestinationPort(port) => {
                self.load_payload(Base::Transport, 2, 2, REGISTER_1);
                self.compare(Compare::Equal, &port.to_be_bytes());
            }
            Match::Icmpv6Type(kind) => {
                self.load_payload(Base::Transport, 0, 1, REGISTER_1);
                self.compare(Compare::Equal, &[*kind]);
            }
            Match::Icmp(sense, kind, code) => self.icmp(*sense, *kind, *code),
            Match::Port(end, sense, first, last) => self.port(*end, *sense, *first, *last),
            Match::PortSet(end, sense, set) => {
                self.load_port(*end, REGISTER_1);
                self.lookup(*sense, set);
            }
            Match::AddressPort(end, sense, family, set) => {
                self.address_port(*end, *sense, *family, set);
            }
            Match::CtMark { sense, mask, value } => {
                self.load_ct(Ct::Mark, None);
                self.mask(&mask.to_ne_bytes(), &[0; 4]);
                self.compare(compare(*sense), &value.to_ne_bytes());
            }
            Match::Mark { sense, mask, value } => {
                self.load_meta(Meta::Mark);
                self.mask(&mask.to_ne_bytes(), &[0; 4]);
                self.compare(compare(*sense), &value.to_ne_bytes());
            }
            Match::CtState(state) => self.any_bit(Ct::State, state_bits(*state)),
            Match::CtReply => {
                self.load_ct(Ct::Direction, None);
                self.compare(Compare::Equal, &[1]);
            }
            Match::CtDnat => self.any_bit(Ct::Status, STATUS_DNAT),
            Match::CtOriginalDestination(sense, family, set) => {
                self.family(*family);
                let key = match family {
                    Family::V4 => Ct::DestinationV4,
                    Family::V6 => Ct::DestinationV6,
                };
                self.load_ct(key, Some(0));
                self.lookup(*sense, set);
            }
            Match::DestinationLocal => self.local(Side::Destination),
            Match::DestinationElsewhere(sense) => self.elsewhere(*sense),
            Match::Detour(detour) => self.detour(*detour),
            Match::SourceLocal => self.local(Side::Source),
        }
    }

    fn put_statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Accept => self.verdict(libc::NF_ACCEPT, None),
            Statement::Drop => self.verdict(libc::NF_DROP, None),
            Statement::Return => self.verdict(libc::NFT_RETURN, None),
            Statement::Jump(chain) => self.verdict(libc::NFT_JUMP, Some(chain.as_str())),
            Statement::Goto(chain) => self.verdict(libc::NFT_GOTO, Some(chain.as_str())),
            Statement::InputVerdict(map) => self.map(Meta::InputName, map),
            Statement::OutputVerdict(map) => self.map(Meta::OutputName, map),
            Statement::AcceptUntracked => {
                self.put("notrack", |_| {});
                self.verdict(libc::NF_ACCEPT, None);
            }
            Statement::Log(nflog) => self.log(nflog),
            Statement::LogAndDrop(nflog) => {
                self.log(nflog);
                self.verdict(libc::NF_DROP, None);
            }
            Statement::Snat(address) => self.nat(NAT_SOURCE, *address, None, NAT_FULLY_RANDOM),
            Statement::SnatPorts(address, ports) => {
                self.nat(NAT_SOURCE, *address, Some(*ports), NAT_FULLY_RANDOM);
            }
            Statement::Masquerade => self.masquerade(None),
            Statement::MasqueradePorts(ports) => self.masquerade(Some(*ports)),
            Statement::Dnat(address, port) => {
                self.nat(NAT_DESTINATION, *address, port.map(|port| (port, port)), 0);
            }
            Statement::SetMark { mask, value } => {
                self.load_meta(Meta::Mark);
                self.mask(&(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
                self.put("meta", |data| {
                    data.put_be32(2, Meta::Mark as u32);
                    data.put_be32(3, REGISTER_1);
                });
            }
            Statement::Continue => {}
        }
    }

    fn put(&mut self, name: &str, fill: impl FnOnce(&mut Message)) {
        self.message.nest(LIST_ELEMENT, |expression| {
            expression.put_text(EXPRESSION_NAME, name);
            expression.nest(EXPRESSION_DATA, fill);
        });
    }

    fn load_meta(&mut self, key: Meta) {
        self.put("meta", |data| {
            data.put_be32(1, REGISTER_1);
            data.put_be32(2, key as u32);
        });
    }

    fn load_ct(&mut self, key: Ct, direction: Option<u8>) {
        self.put("ct", |data| {
            data.put_be32(1, REGISTER_1);
            data.put_be32(2, key as u32);
            if let Some(direction) = direction {
                data.put(3, &[direction]);
            }
        });
    }

    fn load_payload(&mut self, base: Base, offset: u32, length: u32, register: u32) {
        self.put("payload", |data| {
            data.put_be32(1, register);
            data.put_be32(2, base as u32);
            data.put_be32(3, offset);
            data.put_be32(4, length);
        });
    }

    fn compare(&mut self, operation: Compare, value: &[u8]) {
        self.put("cmp", |data| {
            data.put_be32(1, REGISTER_1);
            data.put_be32(2, operation as u32);
            data.nest(3, |nest| nest.put(DATA_VALUE, value));
        });
    }

    /// `register = (register & mask) ^ xor`.
    fn mask(&mut self, mask: &[u8], xor: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.put("bitwise", |data| {
            data.put_be32(1, REGISTER_1);
            data.put_be32(2, REGISTER_1);
            data.put_be32(3, length);
            data.nest(4, |nest| nest.put(DATA_VALUE, mask));
            data.nest(5, |nest| nest.put(DATA_VALUE, xor));
        });
    }

    fn lookup(&mut self, sense: Sense, set: &str) {
        /// `NFT_LOOKUP_F_INV`.
        const INVERTED: u32 = 1;

        self.put("lookup", |data| {
            data.put_text(1, set);
            data.put_be32(2, REGISTER_1);
            if sense == Sense::Not {
                data.put_be32(5, INVERTED);
            }
        });
    }

    fn map(&mut self, key: Meta, map: &str) {
        self.load_meta(key);
        self.put("lookup", |data| {
            data.put_text(1, map);
            data.put_be32(2, REGISTER_1);
            data.put_be32(3, REGISTER_VERDICT);
        });
    }

    fn log(&mut self, nflog: &Nflog) {
        self.put("log", |data| {
            data.put(1, &nflog.group.to_be_bytes());
            data.put_text(2, &nflog.prefix);
        });
    }

    fn icmp(&mut self, sense: Sense, kind: u8, code: Option<u8>) {
        let header = match code {
            None => vec![kind],
            Some(code) => vec![kind, code],
        };
        let length = u32::from(code.is_some()) + 1;
        self.load_payload(Base::Transport, 0, length, REGISTER_1);
        self.compare(compare(sense), &header);
    }

    fn load_port(&mut self, end: End, register: u32) {
        let offset = match end {
            End::Source => 0,
            End::Destination => 2,
        };
        self.load_payload(Base::Transport, offset, 2, register);
    }

    fn port(&mut self, end: End, sense: Sense, first: u16, last: u16) {
        let (first, last) = (first.to_be_bytes(), last.to_be_bytes());
        self.load_port(end, REGISTER_1);
        match sense {
            _ if first == last => self.compare(compare(sense), &first),
            Sense::Is => {
                self.compare(Compare::AtLeast, &first);
                self.compare(Compare::AtMost, &last);
            }
            Sense::Not => self.put("range", |data| {
                data.put_be32(1, REGISTER_1);
                data.put_be32(2, Compare::NotEqual as u32);
                data.nest(3, |nest| nest.put(DATA_VALUE, &first));
                data.nest(4, |nest| nest.put(DATA_VALUE, &last));
            }),
        }
    }

    fn address_port(&mut self, end: End, sense: Sense, family: Family, set: &str) {
        let (side, words) = match (end, family) {
            (End::Source, Family::V4) => (Side::Source, 1),
            (End::Source, Family::V6) => (Side::Source, 4),
            (End::Destination, Family::V4) => (Side::Destination, 1),
            (End::Destination, Family::V6) => (Side::Destination, 4),
        };
        self.family(family);
        self.load_address(side, family, REGISTER_1);
        self.put("meta", |data| {
            data.put_be32(1, REGISTER_32 + words);
            data.put_be32(2, Meta::Layer4 as u32);
        });
        self.load_port(end, REGISTER_32 + words + 1);
        self.lookup(sense, set);
    }

    fn name(&mut self, key: Meta, sense: Sense, name: &InterfaceName) {
        self.load_meta(key);
        self.compare(compare(sense), &padded(name));
    }

    fn prefix(&mut self, key: Meta, sense: Sense, prefix: &str) {
        self.load_meta(key);
        self.compare(compare(sense), prefix.as_bytes());
    }

    fn family(&mut self, family: Family) {
        if self.family.replace(family) == Some(family) {
            return;
        }
        match self.table {
            NftFamily::Inet => {
                self.load_meta(Meta::Family);
                self.compare(Compare::Equal, &[family_number(family)]);
            }
            NftFamily::Netdev => {
                self.load_meta(Meta::Protocol);
                self.compare(Compare::Equal, &ethertype(family).to_be_bytes());
            }
        }
    }

    fn load_address(&mut self, side: Side, family: Family, register: u32) {
        let (offset, length) = match (family, side) {
            (Family::V4, Side::Source) => (12, 4),
            (Family::V4, Side::Destination) => (16, 4),
            (Family::V6, Side::Source) => (8, 16),
            (Family::V6, Side::Destination) => (24, 16),
        };
        self.load_payload(Base::Network, offset, length, register);
    }

    fn address_set(&mut self, side: Side, sense: Sense, family: Family, set: &str) {
        self.family(family);
        self.load_address(side, family, REGISTER_1);
        self.lookup(sense, set);
    }

    fn net(&mut self, side: Side, sense: Sense, net: &IpNet) {
        let family = Family::of_net(net);
        self.family(family);
        self.load_address(side, family, REGISTER_1);
        let (mask, zero) = (octets(net.netmask()), octets(net.hostmask()));
        if net.prefix_len() < family.bits() {
            self.mask(&mask, &vec![0; zero.len()]);
        }
        self.compare(compare(sense), &octets(net.network()));
    }

    fn any_bit(&mut self, key: Ct, bits: u32) {
        self.load_ct(key, None);
        self.mask(&bits.to_ne_bytes(), &[0; 4]);
        self.compare(Compare::NotEqual, &[0; 4]);
    }

    fn elsewhere(&mut self, sense: Sense) {
        self.load_address_type(Side::Destination);
        self.compare(compare(sense), &u32::from(libc::RTN_UNICAST).to_ne_bytes());
    }

    /// `fib saddr|daddr type local`.
    fn local(&mut self, side: Side) {
        self.load_address_type(side);
        self.compare(Compare::Equal, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
    }

    fn load_address_type(&mut self, side: Side) {
        /// `NFT_FIB_RESULT_ADDRTYPE`.
        const ADDRESS_TYPE: u32 = 3;

        self.put("fib", |data| {
            data.put_be32(1, REGISTER_1);
            data.put_be32(2, ADDRESS_TYPE);
            data.put_be32(
                3,
                match side {
                    Side::Source => 1,
                    Side::Destination => 2,
                },
            );
        });
    }

    /// `ip option lsrr|ssrr exists`, `exthdr rt exists`.
    fn detour(&mut self, detour: Detour) {
        /// `NFT_EXTHDR_F_PRESENT`, `NFT_EXTHDR_OP_IPV6` and `NFT_EXTHDR_OP_IPV4` of linux/netfilter/nf_tables.h.
        const PRESENT: u32 = 1;
        const OF_IPV6: u32 = 0;
        const OF_IPV4: u32 = 2;

        // `IPOPT_LSRR` and `IPOPT_SSRR` of linux/ip.h, `NEXTHDR_ROUTING` of net/ipv6.h.
        let (family, kind, operation) = match detour {
            Detour::Loose => (Family::V4, 131, OF_IPV4),
            Detour::Strict => (Family::V4, 137, OF_IPV4),
            Detour::Header => (Family::V6, 43, OF_IPV6),
        };
        self.family(family);
        self.put("exthdr", |data| {
            data.put_be32(1, REGISTER_1);
            data.put(2, &[kind]);
            data.put_be32(3, 0);
            data.put_be32(4, 1);
            data.put_be32(5, PRESENT);
            data.put_be32(6, operation);
        });
        self.compare(Compare::Equal, &[1]);
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.put("immediate", |data| {
            data.put_be32(1, REGISTER_VERDICT);
            data.nest(2, |nest| {
                nest.nest(DATA_VERDICT, |verdict| {
                    verdict.put(VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.put_text(VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    fn load_value(&mut self, register: u32, value: &[u8]) {
        self.put("immediate", |data| {
            data.put_be32(1, register);
            data.nest(2, |nest| nest.put(DATA_VALUE, value));
        });
    }

    /// Loads a range of ports into the second and the third register.
    fn load_ports(&mut self, ports: Option<(u16, u16)>) {
        if let Some((first, last)) = ports {
            self.load_value(REGISTER_2, &first.to_be_bytes());
            self.load_value(REGISTER_3, &last.to_be_bytes());
        }
    }

    fn nat(&mut self, kind: u32, address: IpAddr, ports: Option<(u16, u16)>, flags: u32) {
        let family = Family::of(address);
        self.family(family);
        self.load_value(REGISTER_1, &octets(address));
        self.load_ports(ports);
        self.put("nat", |data| {
            data.put_be32(1, kind);
            data.put_be32(2, u32::from(family_number(family)));
            data.put_be32(3, REGISTER_1);
            if let Some((first, last)) = ports {
                data.put_be32(5, REGISTER_2);
                if first != last {
                    data.put_be32(6, REGISTER_3);
                }
            }
            if flags != 0 {
                data.put_be32(7, flags);
            }
        });
    }

    fn masquerade(&mut self, ports: Option<(u16, u16)>) {
        self.load_ports(ports);
        self.put("masq", |data| {
            // The kernel does not set this by itself, as it does in `nat`.
            let with_ports = if ports.is_some() { NAT_PORTS } else { 0 };
            data.put_be32(1, NAT_FULLY_RANDOM | with_ports);
            if ports.is_some() {
                data.put_be32(2, REGISTER_2);
                data.put_be32(3, REGISTER_3);
            }
        });
    }
}

/// Which address of a packet.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn compare(sense: Sense) -> Compare {
    match sense {
        Sense::Is => Compare::Equal,
        Sense::Not => Compare::NotEqual,
    }
}

fn state_bits(state: CtState) -> u32 {
    [
        (state.new, STATE_NEW),
        (state.established, STATE_ESTABLISHED),
        (state.related, STATE_RELATED),
        (state.invalid, STATE_INVALID),
        (state.untracked, STATE_UNTRACKED),
    ]
    .into_iter()
    .filter_map(|(wanted, bit)| wanted.then_some(bit))
    .sum()
}

/// Returns an interface name as registers and set keys hold it.
pub(super) fn padded(name: &InterfaceName) -> [u8; NAME_LENGTH] {
    let mut bytes = [0; NAME_LENGTH];
    for (to, from) in bytes.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }

    bytes
}

/// Returns an address's bytes in network order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// IEEE 802 numbers (`ETH_P_IP`, `ETH_P_IPV6`).
fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}
