//! Policy routing rules as anybody may have made them.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use model::Family;

use super::{
    Way,
    packet::{Asks, Packet},
    vrf::Domain,
};
use crate::{
    address::family_number,
    netlink::{self, Attributes, Message, NetlinkError, Received, Socket, text, u32_ne},
};

/// Bytes of `struct fib_rule_hdr` (linux/fib_rules.h).
const HEADER: usize = 12;

/// `FIB_RULE_INVERT`: `not`.
const INVERT: u32 = 2;

/// `RTPROT_KERNEL`: the rules that every namespace begins with.
const KERNEL: u8 = 2;

/// No suppression (`suppress_prefixlength` unset).
const UNSET: u32 = u32::MAX;

/// Actions (`FR_ACT_*`): look in a table, and the three that refuse.
const LOOKUP: u8 = 1;
const REFUSALS: [(u8, &str); 3] = [(6, "blackhole"), (7, "unreachable"), (8, "prohibit")];

/// Attributes of a rule (`FRA_*` of linux/fib_rules.h).
mod attribute {
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const SOURCE: u16 = 2;
    pub(super) const IIF: u16 = 3;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const MARK: u16 = 10;
    pub(super) const SUPPRESS_PREFIX: u16 = 14;
    pub(super) const TABLE: u16 = 15;
    pub(super) const MARK_MASK: u16 = 16;
    pub(super) const OIF: u16 = 17;
    pub(super) const L3MDEV: u16 = 19;
    pub(super) const PROTOCOL: u16 = 21;
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Looks in this table.
    Lookup(u32),
    /// Looks in the table of the VRF to which the packet's device belongs (`l3mdev`).
    LookupDomain,
    /// Refuses, in this word.
    Refuse(&'static str),
    /// Goes elsewhere, or nothing.
    Other,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) priority: u32,
    pub(super) protocol: u8,
    pub(super) action: Action,
    family: Family,
    inverted: bool,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    iif: Option<String>,
    oif: Option<String>,
    /// Value and mask.
    mark: Option<(u32, u32)>,
    pub(super) suppress: Option<u32>,
    /// What it asks of single packets.
    pub(super) asks: Asks,
}

/// Lists the rules of a family in the order in which they are asked.
pub(super) fn list(socket: &mut Socket, family: Family) -> Result<Vec<Rule>, NetlinkError> {
    let mut header = [0; HEADER];
    header[0] = family_number(family);
    let request = Message::new(libc::RTM_GETRULE, 0, &header);

    socket.dump(request, |message| read(message, family))
}

fn read(message: &Received<'_>, family: Family) -> Option<Rule> {
    let header = message.payload.get(..HEADER)?;
    // A kernel without a family answers with every family's rules.
    if header[0] != family_number(family) {
        return None;
    }
    let attributes = Attributes::new(message.payload.get(HEADER..)?);
    let number = |kind| attributes.find(kind).and_then(u32_ne);
    let net = |kind, length| {
        let address = attributes.find(kind).and_then(netlink::address)?;
        IpNet::new(address, length).ok()
    };
    let name = |kind| attributes.find(kind).and_then(text).map(str::to_owned);
    let protocol = attributes.find(attribute::PROTOCOL);
    let domain = attributes.find(attribute::L3MDEV);
    let has_domain = domain.is_some_and(|value| value != [0]);
    let mark = number(attribute::MARK).unwrap_or(0);
    let mask = number(attribute::MARK_MASK).unwrap_or(if mark == 0 { 0 } else { u32::MAX });

    Some(Rule {
        priority: number(attribute::PRIORITY).unwrap_or(0),
        protocol: protocol
            .and_then(|bytes| bytes.first().copied())
            .unwrap_or(0),
        action: match header[7] {
            LOOKUP if has_domain => Action::LookupDomain,
            LOOKUP => Action::Lookup(number(attribute::TABLE).unwrap_or(u32::from(header[4]))),
            code => REFUSALS
                .iter()
                .find(|(number, _)| *number == code)
                .map_or(Action::Other, |(_, word)| Action::Refuse(word)),
        },
        family,
        inverted: u32_ne(&header[8..])? & INVERT != 0,
        source: net(attribute::SOURCE, header[2]),
        destination: net(attribute::DESTINATION, header[1]),
        iif: name(attribute::IIF),
        oif: name(attribute::OIF),
        mark: (mask != 0).then_some((mark, mask)),
        suppress: number(attribute::SUPPRESS_PREFIX).filter(|length| *length != UNSET),
        asks: Asks::read(attributes, header[3], family),
    })
}

impl Rule {
    /// Returns whether the kernel made it when the namespace began; that for VRFs comes with the first
    /// of them.
    pub(super) fn is_kernels(&self) -> bool {
        self.protocol == KERNEL && self.action != Action::LookupDomain
    }

    /// Returns whether it looks for a mark that has any of these bits.
    pub(super) fn looks_for(&self, bits: u32) -> bool {
        self.mark
            .is_some_and(|(value, mask)| value & mask & bits != 0)
    }

    /// Returns whether it takes a packet of a way; `domain` is the VRF of the device by which it comes in.
    pub(super) fn takes(&self, way: &Way, packet: &Packet, domain: Option<&Domain>) -> bool {
        let source = way.from.as_ref().map(|(address, _)| *address);
        let within = |net: &Option<IpNet>, address: Option<IpAddr>| match net {
            None => true,
            Some(net) => net.prefix_len() == 0 || address.is_some_and(|a| net.contains(&a)),
        };
        let fits = within(&self.source, source)
            && within(&self.destination, Some(way.to))
            && self.comes_in_by(way, domain)
            && self.oif.is_none()
            && (self.action != Action::LookupDomain || domain.is_some())
            && self.asks.fit(packet)
            && self
                .mark
                .is_none_or(|(value, mask)| way.mark & mask == value & mask);

        fits != self.inverted
    }

    /// Returns whether it takes only packets of a certain kind.
    pub(super) fn is_partial(&self) -> bool {
        !self.inverted && self.asks != Asks::default()
    }

    /// A rule may name the device, or the VRF that it belongs to.
    fn comes_in_by(&self, way: &Way, domain: Option<&Domain>) -> bool {
        let device = way.from.as_ref().and_then(|(_, device)| device.as_ref());
        let device = device.map_or("lo", |device| device.as_str());
        let asked = self.iif.as_ref();

        asked.is_none_or(|name| name == device || domain.is_some_and(|d| d.vrf.as_str() == name))
    }
}

/// As `ip rule` prints it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.inverted {
            write!(f, " not")?;
        }
        match &self.source {
            Some(net) => write!(f, " from {}", bare(net))?,
            None => write!(f, " from all")?,
        }
        if let Some(net) = &self.destination {
            write!(f, " to {}", bare(net))?;
        }
        match self.mark {
            Some((value, u32::MAX)) => write!(f, " fwmark {value:#x}")?,
            Some((value, mask)) => write!(f, " fwmark {value:#x}/{mask:#x}")?,
            None => {}
        }
        if let Some(name) = &self.iif {
            write!(f, " iif {name}")?;
        }
        if let Some(name) = &self.oif {
            write!(f, " oif {name}")?;
        }
        write!(f, "{}", self.asks)?;
        match self.action {
            Action::LookupDomain => write!(f, " lookup [l3mdev-table]")?,
            Action::Lookup(table) => write!(f, " lookup {}", table_name(table))?,
            Action::Refuse(word) => write!(f, " {word}")?,
            Action::Other => write!(f, " (goto or nop)")?,
        }
        if let Some(length) = self.suppress {
            write!(f, " suppress_prefixlength {length}")?;
        }
        if self.protocol > 3 {
            write!(f, " proto {}", protocol_name(self.protocol))?;
        }

        Ok(())
    }
}

/// A single address is written without its length.
fn bare(net: &IpNet) -> String {
    if net.prefix_len() == Family::of_net(net).bits() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Returns a table's name (`RT_TABLE_*` of linux/rtnetlink.h).
fn table_name(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}

/// Returns the name of whoever made a rule or a route (`RTPROT_*` of linux/rtnetlink.h).
pub(super) fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        number => return number.to_string(),
    };

    name.to_owned()
}

#[cfg(test)]
mod tests {
    use model::conflict::Traffic;

    use super::*;

    #[test]
    fn a_rule_is_written_as_ip_writes_it() {
        let quick = Rule {
            inverted: true,
            mark: Some((0xca6c, u32::MAX)),
            ..rule(98, 51820)
        };
        let narrow = Rule {
            source: Some("10.65.0.0/16".parse().unwrap()),
            destination: Some("192.0.2.7/32".parse().unwrap()),
            iif: Some("eth0".to_owned()),
            suppress: Some(0),
            protocol: 4,
            ..rule(7, 254)
        };

        assert_eq!(
            quick.to_string(),
            "98: not from all fwmark 0xca6c lookup 51820"
        );
        assert_eq!(
            narrow.to_string(),
            "7: from 10.65.0.0/16 to 192.0.2.7 iif eth0 lookup main suppress_prefixlength 0 proto static"
        );
    }

    #[test]
    fn a_rule_takes_what_fits_all_of_it_and_its_inverse_all_else() {
        let marked = Rule {
            mark: Some((0x20_0000, 0x20_0000)),
            ..rule(1, 1)
        };
        let others = Rule {
            inverted: true,
            ..marked.clone()
        };
        let from = Rule {
            source: Some("10.65.1.0/26".parse().unwrap()),
            ..rule(1, 1)
        };
        let domain = Domain::example("blue", 10);
        let in_domain = Rule {
            action: Action::LookupDomain,
            ..rule(1000, 0)
        };
        let (plain, tunnel, pod) = (
            way(None, 0),
            way(None, 0x20_0000),
            way(Some("10.65.1.7"), 0),
        );

        assert_eq!(
            [&plain, &tunnel].map(|way| takes(&marked, way)),
            [false, true]
        );
        assert_eq!(
            [&plain, &tunnel].map(|way| takes(&others, way)),
            [true, false]
        );
        assert_eq!([&plain, &pod].map(|way| takes(&from, way)), [false, true]);
        assert!(!takes(&in_domain, &pod));
        assert!(in_domain.takes(&pod, &pod.packet, Some(&domain)));
        assert!(marked.looks_for(0x20_0000) && others.looks_for(0x20_0000));
        assert!(!from.looks_for(0x20_0000));
    }

    fn takes(rule: &Rule, way: &Way) -> bool {
        rule.takes(way, &way.packet, None)
    }

    fn rule(priority: u32, table: u32) -> Rule {
        Rule {
            priority,
            protocol: 3,
            action: Action::Lookup(table),
            family: Family::V4,
            inverted: false,
            source: None,
            destination: None,
            iif: None,
            oif: None,
            mark: None,
            suppress: None,
            asks: Asks::default(),
        }
    }

    fn way(source: Option<&str>, mark: u32) -> Way {
        Way {
            traffic: Traffic::ToPods,
            from: source.map(|text| (text.parse().unwrap(), None)),
            to: "10.65.2.1".parse().unwrap(),
            mark,
            planned: None,
            packet: Packet::any(Family::V4),
            tunnel: None,
        }
    }
}
