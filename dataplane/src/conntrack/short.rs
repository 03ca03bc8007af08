//! A table of few connections, listed by way of `/proc/net/nf_conntrack`.
//!
//! A dump over netlink takes a lock for each bucket of the kernel's table, empty or not: 5 to 10 ms for the usual
//! 262,144. `/proc` walks the same buckets without locks in a fiftieth of that, but its text leaves out half of what
//! has to be known, and an entry that goes while it is read may hide another one. So it only says which connections
//! there are, twice over; each is then asked for by its name.
//!
//! **Nobody is overlooked.** The text comes page by page, and the kernel goes on behind as many entries as it has
//! shown: one that it has shown and that goes before the next page hides one that it has not. Then the next list lacks
//! the former. Two lists in a row that are the same had no such moment.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek},
    net::IpAddr,
};

use model::Family;

use super::{GET, HEADER, attribute, entry, header};
use crate::{
    address::family_number,
    netlink::{Attributes, Message, NetlinkError, Socket, u32_be},
};

/// The table as a text, of the calling thread's network namespace.
const PATH: &str = "/proc/thread-self/net/nf_conntrack";

/// Beyond so many connections a dump is cheaper.
const MOST: u32 = 400;

/// How often the table is listed until two lists in a row are the same.
const LISTS: usize = 4;

/// `IPCTNL_MSG_CT_GET_STATS`, and in its answer how many connections the namespace has
/// (`CTA_STATS_GLOBAL_ENTRIES`).
const GET_STATISTICS: u16 = 0x105;
const ENTRIES: u16 = 1;

/// The table's text, where this kernel has it.
pub(super) struct ShortList(Option<File>);

/// What the kernel knows a connection by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    detail: Detail,
}

/// What tells connections between the same two apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    Nothing,
    Ports(u16, u16),
    Icmp { kind: u8, code: u8, id: u16 },
}

impl ShortList {
    /// Opens the table of the calling thread's network namespace.
    pub(super) fn open() -> Self {
        let file = File::open(PATH);
        if let Err(error) = &file {
            tracing::debug!(%error, "The kernel has no text of its connections");
        }

        Self(file.ok())
    }

    /// Returns every connection, where there are few and the kernel has them as a text.
    pub(super) fn names(
        &mut self,
        socket: &mut Socket,
    ) -> Result<Option<BTreeSet<Name>>, NetlinkError> {
        let Some(file) = &mut self.0 else {
            return Ok(None);
        };
        if count(socket)?.is_none_or(|count| count > MOST) {
            return Ok(None);
        }

        Ok(settled(|| list(file)))
    }
}

/// Returns a list that was the same twice in a row; `None` where there is none.
fn settled(mut list: impl FnMut() -> Option<BTreeSet<Name>>) -> Option<BTreeSet<Name>> {
    let mut last = list()?;
    for _ in 1..LISTS {
        let next = list()?;
        if next == last {
            return Some(next);
        }
        last = next;
    }

    None
}

fn list(file: &mut File) -> Option<BTreeSet<Name>> {
    let text = read(file).inspect_err(|error| {
        tracing::debug!(%error, "The kernel's text of its connections cannot be read");
    });

    text.ok()?.lines().map(Name::read).collect()
}

fn read(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;

    Ok(text)
}

/// Returns how many connections the namespace has, in all zones.
fn count(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    let request = Message::new(GET_STATISTICS, 0, &header(libc::AF_UNSPEC));
    let answer = socket.get(request, |message| {
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        attributes.find(ENTRIES).and_then(u32_be)
    })?;

    Ok(answer.ok().flatten())
}

impl Name {
    /// Reads a line of `/proc/net/nf_conntrack` (`ct_seq_show` of net/netfilter/nf_conntrack_standalone.c); `None`
    /// where it has something that is not known here.
    ///
    /// ```text
    /// ipv4 2 udp 17 29 src=192.0.2.1 dst=192.0.2.2 sport=5000 dport=53 [UNREPLIED] src=192.0.2.2 dst=… mark=0 use=2
    /// ```
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let protocol = words.nth(3)?.parse().ok()?;
        // What comes first is the original direction, and between the two stands no other word of these.
        let value = |name: &str| {
            let mut words = line.split_ascii_whitespace();
            words.find_map(|word| word.strip_prefix(name))
        };
        let number = |name: &str| value(name).map(|text| text.parse().ok());
        let detail = match (number("sport="), number("dport="), number("id=")) {
            (Some(source), Some(destination), None) => Detail::Ports(source?, destination?),
            (None, None, Some(id)) => Detail::Icmp {
                kind: value("type=")?.parse().ok()?,
                code: value("code=")?.parse().ok()?,
                id: id?,
            },
            (None, None, None) if value("srckey=").is_none() => Detail::Nothing,
            _ => return None,
        };

        Some(Self {
            source: value("src=")?.parse().ok()?,
            destination: value("dst=")?.parse().ok()?,
            protocol,
            detail,
        })
    }

    /// Returns the request for this connection.
    pub(super) fn request(&self) -> Message {
        let family = Family::of(self.source);
        let mut request = Message::new(GET, 0, &header(family_number(family).into()));
        request.nest(attribute::ORIGINAL, |tuple| {
            tuple.nest(entry::IN_TUPLE_ADDRESSES, |nest| {
                let (source, destination) = match family {
                    Family::V4 => (entry::V4_SOURCE, entry::V4_DESTINATION),
                    Family::V6 => (entry::V6_SOURCE, entry::V6_DESTINATION),
                };
                put_address(nest, source, self.source);
                put_address(nest, destination, self.destination);
            });
            tuple.nest(entry::IN_TUPLE_PROTOCOL, |nest| {
                nest.put(entry::NUMBER, &[self.protocol]);
                self.detail.put(nest, family);
            });
        });

        request
    }
}

impl Detail {
    fn put(&self, nest: &mut Message, family: Family) {
        match self {
            Self::Nothing => {}
            Self::Ports(source, destination) => {
                nest.put(entry::SOURCE_PORT, &source.to_be_bytes());
                nest.put(entry::DESTINATION_PORT, &destination.to_be_bytes());
            }
            Self::Icmp { kind, code, id } => {
                let [of_kind, of_code, of_id] = match family {
                    Family::V4 => [entry::ICMP_TYPE, entry::ICMP_CODE, entry::ICMP_ID],
                    Family::V6 => [entry::ICMPV6_TYPE, entry::ICMPV6_CODE, entry::ICMPV6_ID],
                };
                nest.put(of_id, &id.to_be_bytes());
                nest.put(of_kind, &[*kind]);
                nest.put(of_code, &[*code]);
            }
        }
    }
}

fn put_address(nest: &mut Message, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => nest.put(kind, &address.octets()),
        IpAddr::V6(address) => nest.put(kind, &address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str = "ipv4     2 udp      17 29 src=192.0.2.1 dst=192.0.2.2 sport=5000 dport=53 [UNREPLIED] src=192.0.2.2 dst=192.0.2.1 sport=53 dport=5000 mark=0 zone=0 use=2";
    const TCP: &str = "ipv6     10 tcp      6 431999 ESTABLISHED src=2001:0db8:0000:0000:0000:0000:0000:0001 dst=2001:0db8:0000:0000:0000:0000:0000:0002 sport=40000 dport=443 src=2001:0db8:0000:0000:0000:0000:0000:0002 dst=2001:0db8:0000:0000:0000:0000:0000:0001 sport=443 dport=40000 [ASSURED] mark=262144 zone=0 use=2";
    const PING: &str = "ipv4     2 icmp     1 29 src=192.0.2.1 dst=192.0.2.2 type=8 code=0 id=7 src=192.0.2.2 dst=192.0.2.1 type=0 code=0 id=7 mark=0 zone=0 use=2";

    fn name(source: &str, destination: &str, protocol: u8, detail: Detail) -> Name {
        Name {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            detail,
        }
    }

    #[test]
    fn a_connection_is_named_by_its_original_direction() {
        let udp = name("192.0.2.1", "192.0.2.2", 17, Detail::Ports(5000, 53));
        let tcp = name("2001:db8::1", "2001:db8::2", 6, Detail::Ports(40000, 443));
        let echo = Detail::Icmp {
            kind: 8,
            code: 0,
            id: 7,
        };

        assert_eq!(Name::read(UDP), Some(udp));
        assert_eq!(Name::read(TCP), Some(tcp));
        assert_eq!(
            Name::read(PING),
            Some(name("192.0.2.1", "192.0.2.2", 1, echo))
        );
    }

    #[test]
    fn what_is_not_known_is_left_to_the_dump() {
        for line in [
            "",
            "ipv4 2 gre 47 29 src=192.0.2.1 dst=192.0.2.2 srckey=0x1 dstkey=0x2 src=192.0.2.2 dst=192.0.2.1",
            "ipv4 2 udp 17 29 src=192.0.2.1 dst=192.0.2.2 sport=70000 dport=53",
            "ipv4 2 udp 17 29 src=somebody dst=192.0.2.2 sport=7000 dport=53",
        ] {
            assert_eq!(Name::read(line), None, "{line}");
        }
    }

    #[test]
    fn a_list_that_differs_from_the_one_before_is_not_believed() {
        let full: BTreeSet<_> = [UDP, TCP].map(|line| Name::read(line).unwrap()).into();
        let short: BTreeSet<_> = [TCP].map(|line| Name::read(line).unwrap()).into();
        let run = |lists: &[&BTreeSet<Name>]| {
            let mut lists = lists.iter();
            settled(|| lists.next().map(|list| (*list).clone()))
        };

        assert_eq!(run(&[&short, &full, &full]), Some(full.clone()));
        assert_eq!(run(&[&short, &full, &short, &full]), None);
    }
}
