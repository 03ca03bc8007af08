//! Netlink's multicast groups, and what each message may have spoiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use model::{
    InterfaceName,
    constant::{ROUTE_PROTOCOL, SOURCE_TABLE, TUNNEL_TABLE},
    event::{Link as Underlay, LinkKind},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::ruleset::{self, RulesetWatch};
use crate::{
    Component, address,
    link::{Link, Links},
    netlink::{Attributes, NetlinkError, Protocol, Received, Socket, flag, messages, u32_ne},
    pod,
};

/// `RTNLGRP_*` of linux/rtnetlink.h: link, IPv4 and IPv6 addresses, routes, rules, settings.
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];

/// A setting under `/proc/sys/net/ipv[46]/conf` changed (`RTM_NEWNETCONF`).
const NEW_NETCONF: u16 = 80;

/// Inside it: the device (`NETCONFA_IFINDEX`).
const NETCONF_DEVICE: u16 = 1;

/// The main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// Hears what the kernel says.
pub(super) struct Listener {
    route: Socket,
    ruleset: RulesetWatch,
    /// For asking what is there.
    asking: Socket,
    own_ports: BTreeSet<u32>,
    /// What each link was when we last heard of it.
    seen: BTreeMap<u32, Link>,
}

/// What was heard.
#[derive(Default)]
pub(super) struct Heard {
    /// What may be spoilt.
    pub(super) drift: BTreeSet<Component>,
    /// Links or addresses changed.
    pub(super) links: bool,
    /// A table that is not ours changed.
    pub(super) rules_of_others: bool,
    /// A policy routing rule or a route that is not ours changed.
    pub(super) ways_of_others: bool,
}

impl Listener {
    pub(super) fn open(
        own_ports: BTreeSet<u32>,
        ruleset: RulesetWatch,
    ) -> Result<Self, NetlinkError> {
        let mut asking = Socket::open(Protocol::Route)?;
        let route = Socket::open(Protocol::Route)?;
        route.join(&ROUTE_GROUPS)?;
        let links = Links::list(&mut asking)?;
        let seen = links
            .iter()
            .map(|link| (link.index, link.clone()))
            .collect();

        Ok(Self {
            route,
            ruleset,
            asking,
            own_ports,
            seen,
        })
    }

    /// Waits until something is to be read, on these sockets or on `others`.
    pub(super) fn wait<'a>(
        &mut self,
        others: impl Iterator<Item = BorrowedFd<'a>>,
        patience: Duration,
    ) {
        let others: Vec<_> = others.collect();
        let end = Instant::now() + patience;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if self.wait_for_word(&others, rest.min(ruleset::PERIOD)) {
                return;
            }
            if rest.is_zero() || self.ruleset.look() {
                return;
            }
        }
    }

    /// Waits until something is to be read; returns whether something is.
    fn wait_for_word(&self, others: &[BorrowedFd<'_>], patience: Duration) -> bool {
        let own = [self.route.as_fd(), self.ruleset.descriptor()];
        let descriptors = own.iter().chain(others);
        let mut descriptors: Vec<_> = descriptors
            .map(|one| PollFd::from_borrowed_fd(*one, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: patience.subsec_nanos().into(),
        };
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(0) => false,
            Ok(_) | Err(Errno::INTR) => true,
            Err(error) => {
                tracing::error!(%error, "Could not wait for the kernel");
                false
            }
        }
    }

    /// Reads everything that waits.
    pub(super) fn read(&mut self, tunnels: &BTreeSet<InterfaceName>) -> Heard {
        let mut heard = Heard::default();
        while let Some(datagram) = self.route.hear() {
            let Ok(datagram) = datagram else {
                self.relearn(&mut heard);
                continue;
            };
            for message in messages(&datagram) {
                self.route_message(&message, tunnels, &mut heard);
            }
        }
        let news = self.ruleset.take_news();
        if news.is_lost {
            self.relearn(&mut heard);
        }
        if news.ours {
            heard.drift.insert(Component::Nft);
        }
        heard.rules_of_others |= news.others;

        heard
    }

    /// Something was lost: nothing is certain any more.
    fn relearn(&mut self, heard: &mut Heard) {
        tracing::info!("Notifications of the kernel were lost; looking at everything");
        heard.drift.extend(Component::ALL);
        heard.links = true;
        heard.rules_of_others = true;
        heard.ways_of_others = true;
        match Links::list(&mut self.asking) {
            Ok(links) => {
                self.seen = links
                    .iter()
                    .map(|link| (link.index, link.clone()))
                    .collect();
            }
            Err(error) => tracing::warn!(%error, "Could not list links"),
        }
    }

    fn route_message(
        &mut self,
        message: &Received<'_>,
        tunnels: &BTreeSet<InterfaceName>,
        heard: &mut Heard,
    ) {
        let is_ours = self.own_ports.contains(&message.port);
        match message.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.link_message(message, heard),
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                heard.links = true;
                if !is_ours {
                    self.address_message(message, tunnels, heard);
                }
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE if !is_ours => {
                heard.ways_of_others = true;
                if concerns_us(message) {
                    heard.drift.insert(Component::Routes);
                }
            }
            libc::RTM_NEWRULE | libc::RTM_DELRULE if !is_ours => {
                heard.ways_of_others = true;
                heard.drift.insert(Component::Rules);
            }
            NEW_NETCONF if self.spoils_a_pod(message) => {
                heard.drift.insert(Component::Pods);
            }
            _ => {}
        }
    }

    /// A link that comes, goes or changes takes with it whatever stands on it.
    fn link_message(&mut self, message: &Received<'_>, heard: &mut Heard) {
        let Some(link) = Link::read(message) else {
            return;
        };
        let before = match message.kind {
            libc::RTM_DELLINK => self.seen.remove(&link.index),
            _ => self.seen.insert(link.index, link.clone()),
        };
        if message.kind == libc::RTM_NEWLINK && before.as_ref() == Some(&link) {
            return;
        }

        heard.links = true;
        if pod::is_workload(&link) {
            let is_gone = message.kind == libc::RTM_DELLINK;
            if is_gone || before.is_some_and(|before| loses_something(&before, &link)) {
                heard.drift.extend([Component::Pods, Component::Routes]);
            }
            return;
        }
        heard.drift.extend([
            Component::Nft,
            Component::Sysctls,
            Component::Tunnels,
            Component::Addresses,
            Component::Routes,
        ]);
    }

    /// An address of ours may have gone; so may routes that leave from it, of which the kernel says nothing.
    fn address_message(
        &self,
        message: &Received<'_>,
        tunnels: &BTreeSet<InterfaceName>,
        heard: &mut Heard,
    ) {
        let index = message.payload.get(4..8).and_then(u32_ne);
        let link = index.and_then(|index| self.seen.get(&index));
        if link.is_none_or(|link| tunnels.contains(&link.name)) {
            heard.drift.insert(Component::Addresses);
        }
        if message.kind == libc::RTM_DELADDR {
            heard.drift.insert(Component::Routes);
        }
    }

    /// Returns whether a setting of a workload interface is no longer what we made it.
    fn spoils_a_pod(&self, message: &Received<'_>) -> bool {
        /// Bytes of `struct netconfmsg`, padded.
        const HEADER: usize = 4;

        let attributes = Attributes::new(message.payload.get(HEADER..).unwrap_or_default());
        let index = attributes.find(NETCONF_DEVICE).and_then(u32_ne);
        let link = index.and_then(|index| self.seen.get(&index));

        link.is_some_and(|link| {
            pod::is_workload(link) && link.alias.is_some() && !pod::settings_hold(&link.name)
        })
    }

    /// Reads the machine's links and addresses.
    pub(super) fn underlay(
        &mut self,
        tunnels: &BTreeSet<InterfaceName>,
    ) -> Result<BTreeMap<InterfaceName, Underlay>, NetlinkError> {
        let links = Links::list(&mut self.asking)?;
        let mut found: BTreeMap<u32, (InterfaceName, Underlay)> = links
            .iter()
            .map(|link| (link.index, described(link, tunnels)))
            .collect();
        for address in address::list(&mut self.asking, None)? {
            if let Some((_, link)) = found.get_mut(&address.index)
                && !address::is_link_local(address.address)
                && link.kind != LinkKind::Loopback
            {
                link.addresses.push(address.address);
            }
        }
        for (_, link) in found.values_mut() {
            link.addresses.sort();
        }

        Ok(found.into_values().collect())
    }
}

/// Returns whether a workload interface lost what was made of it. Its way to being up loses nothing,
/// so that a new pod costs no look at everything.
fn loses_something(before: &Link, now: &Link) -> bool {
    before.is_up() && !now.is_up() || before.mtu != now.mtu || before.mac != now.mac
}

fn described(link: &Link, tunnels: &BTreeSet<InterfaceName>) -> (InterfaceName, Underlay) {
    let is_loopback = link.flags & libc::IFF_LOOPBACK.cast_unsigned() != 0;
    let described = Underlay {
        mtu: link.mtu,
        up: link.flowing,
        kind: super::kind(&link.name, is_loopback, tunnels),
        addresses: Vec::new(),
    };

    (link.name.clone(), described)
}

/// Returns whether a route that somebody else changed is or was one of ours, or stands in its place.
fn concerns_us(message: &Received<'_>) -> bool {
    /// Bytes of `struct rtmsg`, and its table attribute (`RTA_TABLE`).
    const HEADER: usize = 12;
    const TABLE: u16 = 15;

    let Some(header) = message.payload.get(..HEADER) else {
        return false;
    };
    let attributes = Attributes::new(&message.payload[HEADER..]);
    let table = attributes
        .find(TABLE)
        .and_then(u32_ne)
        .unwrap_or(u32::from(header[4]));
    let is_mine = header[5] == ROUTE_PROTOCOL || header[5] == libc::RTPROT_BOOT;
    let replaces = message.kind == libc::RTM_NEWROUTE && message.flags & flag::REPLACE != 0;

    [TUNNEL_TABLE, SOURCE_TABLE].contains(&table) || table == MAIN_TABLE && (is_mine || replaces)
}
