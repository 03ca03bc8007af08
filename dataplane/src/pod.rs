//! Pods' veth pairs.
//!
//! The host end stands in our namespace, with a MAC address that every host end shares, and answers
//! for the pod's gateways: by proxy ARP for 169.254.1.1, by its own link-local address for IPv6. The
//! inner end holds the pod's addresses, each as a single address, with one default route per family.
//! Routes to the pod and its policy are other targets'; nftables comes first in every pass, so that
//! an interface never passes anything before its policy is there.
//!
//! The host end carries the pod's name as its alias: that is how a restarted agent knows it again.

mod examination;
mod inside;
mod shaper;

pub use inside::InsideError;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
};

use model::{
    Change, InterfaceName, PodName,
    constant::{WORKLOAD_MAC, WORKLOAD_PREFIX},
    plan::PodInterface,
    pod::Limits,
};

use crate::{
    Absent, OpenError, Target,
    link::{self, Link, Links},
    netlink::{Message, Protocol, Refusal, Socket, flag},
    sysctl::{self, SysctlError},
};

/// What stands in front of the pod's name in the host end's alias.
const ALIAS_PREFIX: &str = "meshd pod ";

/// Longest alias the kernel takes (`IFALIASZ` of linux/if.h, less its NUL).
const ALIAS_MAX: usize = 255;

/// Settings of a host end: `net/FAMILY/…/DEVICE/NAME` and the value.
///
/// Proxy ARP answers for the gateway at once; packets are forwarded; a pod may talk to 127/8 services
/// that were translated to it; its source address is checked; it cannot advertise routes.
const HOST_SETTINGS: [(&str, &str, &str); 7] = [
    ("ipv4/conf", "proxy_arp", "1"),
    ("ipv4/neigh", "proxy_delay", "0"),
    ("ipv4/conf", "forwarding", "1"),
    ("ipv4/conf", "route_localnet", "1"),
    ("ipv4/conf", "rp_filter", "1"),
    ("ipv6/conf", "accept_ra", "0"),
    ("ipv6/conf", "forwarding", "1"),
];

/// Keeps pods' interfaces.
pub struct PodTarget {
    socket: Socket,
    /// The rows as last set. What is inside the pods is looked at when it is set, not each time.
    set: BTreeMap<PodName, PodInterface>,
    /// The host ends that carried each pod's alias at the last look.
    seen: BTreeMap<PodName, BTreeSet<InterfaceName>>,
    /// The devices that shaped each pod's packets at the last look.
    shapers: BTreeMap<PodName, InterfaceName>,
}

/// Why a pod's interface could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The kernel's links could not be listed.
    #[error("could not list links")]
    Links(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The pod's namespace could not be opened.
    #[error("could not open the namespace {0}")]
    Namespace(String, #[source] io::Error),
    /// The path leads to the machine's own namespace: setting it up as a pod's would cut the machine off.
    #[error("{0} is the machine's own namespace")]
    OwnNamespace(String),
    /// Something else has the host end's name.
    #[error("{0} is there and is no pod's interface")]
    Taken(InterfaceName),
    /// The kernel could not be told.
    #[error("could not send {0}")]
    Send(
        &'static str,
        #[source] Box<dyn std::error::Error + Send + Sync>,
    ),
    /// The kernel refused a step.
    #[error("could not {step} {device}: {reason}")]
    Refused {
        /// What was to be done.
        step: &'static str,
        /// The interface.
        device: InterfaceName,
        /// The kernel's reason.
        reason: String,
    },
    /// A setting of the host end could not be made.
    #[error("could not set up {0}")]
    Setting(InterfaceName, #[source] SysctlError),
    /// The host end has no link-local address to be the pod's gateway.
    #[error("{0} has no link-local address")]
    NoGateway(InterfaceName),
    /// Something went wrong inside the pod's namespace.
    #[error("inside the pod")]
    Inside(#[source] InsideError),
}

impl PodTarget {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route)?,
            set: BTreeMap::new(),
            seen: BTreeMap::new(),
            shapers: BTreeMap::new(),
        })
    }

    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes or mends a pod's interface. Each step looks first; all of them may be there already.
    fn set(&mut self, pod: &PodName, row: &PodInterface) -> Result<(), PodError> {
        let namespace = open(&row.netns)?;
        self.remove_others(pod, row)?;
        let is_new = self.make_pair(row, &namespace)?;
        self.host_settings(&row.host)?;
        let link = self.link(&row.host)?.ok_or_else(|| gone(&row.host))?;
        self.host_link(&link, pod, row)?;
        let gateway = self.gateway_v6(&link, row)?;

        let link = Link {
            mtu: row.mtu,
            ..link
        };
        shaper::set(&mut self.socket, pod, &link, row.limits, is_new)?;
        inside::enter(&namespace, || inside::set_up(row, gateway, is_new))
            .map_err(PodError::Inside)?;
        self.set.insert(pod.clone(), row.clone());

        Ok(())
    }

    /// Removes host ends that the pod had under other names: those of an earlier sandbox.
    fn remove_others(&mut self, pod: &PodName, row: &PodInterface) -> Result<(), PodError> {
        for link in self.host_ends(pod)? {
            if link.name != row.host {
                self.remove(&link)?;
            }
        }

        Ok(())
    }

    /// Makes the pair where it is missing, or where the pod has a new namespace under an old name; returns whether
    /// it did.
    fn make_pair(&mut self, row: &PodInterface, namespace: &File) -> Result<bool, PodError> {
        let Some(link) = self.link(&row.host)? else {
            return self.create(row, namespace).map(|()| true);
        };
        if !is_workload(&link) {
            return Err(PodError::Taken(row.host.clone()));
        }
        let other = inside::enter(namespace, || inside::other_end(&row.inside))
            .map_err(PodError::Inside)?;
        if other == Some(link.index) {
            return Ok(false);
        }

        self.remove(&link)?;

        self.create(row, namespace).map(|()| true)
    }

    /// Makes the pair: the host end down, the other in the pod's namespace from its first moment.
    fn create(&mut self, row: &PodInterface, namespace: &File) -> Result<(), PodError> {
        use link::attribute;

        let flags = flag::CREATE | flag::EXCLUSIVE;
        let mut request = Message::new(libc::RTM_NEWLINK, flags, &link::header(0, 0, 0));
        request.put_text(attribute::NAME, row.host.as_str());
        request.put_u32(attribute::MTU, row.mtu);
        request.put(attribute::ADDRESS, &WORKLOAD_MAC);
        request.nest(attribute::INFO, |info| {
            info.put_text(attribute::INFO_KIND, "veth");
            info.nest(attribute::INFO_DATA, |data| {
                data.nest(attribute::VETH_PEER, |peer| {
                    peer.raw(&link::header(0, 0, 0));
                    peer.put_text(attribute::NAME, row.inside.as_str());
                    peer.put_u32(attribute::MTU, row.mtu);
                    if let Some(mac) = row.mac {
                        peer.put(attribute::ADDRESS, &mac);
                    }
                    let descriptor = namespace.as_fd().as_raw_fd();
                    peer.put(attribute::NAMESPACE_FD, &descriptor.to_ne_bytes());
                });
            });
        });

        self.send("create", &row.host, request)
    }

    fn host_settings(&self, host: &InterfaceName) -> Result<(), PodError> {
        for (family, name, value) in HOST_SETTINGS {
            let key = format!("net/{family}/{host}/{name}");
            // A kernel without IPv6 has none of its settings.
            let is_there = sysctl::write(&key, value)
                .map_err(|error| PodError::Setting(host.clone(), error))?;
            tracing::trace!(key, is_there, "Setting of a workload interface");
        }

        Ok(())
    }

    /// MAC address, MTU and alias where they differ, then up.
    fn host_link(
        &mut self,
        link: &Link,
        pod: &PodName,
        row: &PodInterface,
    ) -> Result<(), PodError> {
        use link::attribute;

        let alias = alias(pod);
        let is_right = link.mac == Some(WORKLOAD_MAC)
            && link.mtu == row.mtu
            && link.alias == alias
            && link.is_up();
        if is_right {
            return Ok(());
        }

        let header = link::header(link.index, link::up_flag(), link::up_flag());
        let mut request = Message::new(libc::RTM_NEWLINK, 0, &header);
        request.put_u32(attribute::MTU, row.mtu);
        request.put(attribute::ADDRESS, &WORKLOAD_MAC);
        if let Some(alias) = alias {
            request.put(attribute::ALIAS, alias.as_bytes());
        }

        self.send("bring up", &row.host, request)
    }

    /// Gives the host end the link-local address that is the pod's IPv6 gateway, where it needs one.
    fn gateway_v6(
        &mut self,
        link: &Link,
        row: &PodInterface,
    ) -> Result<Option<std::net::Ipv6Addr>, PodError> {
        if !row.addresses.iter().any(|net| net.addr().is_ipv6()) {
            return Ok(None);
        }
        let refusals = self
            .socket
            .exchange(vec![inside::link_local_request(link.index)])
            .map_err(|error| PodError::Send("the gateway's address", Box::new(error)))?;

        match refusals
            .into_iter()
            .find(|refusal| refusal.errno != libc::EEXIST)
        {
            None => Ok(Some(model::constant::POD_GATEWAY_V6)),
            Some(_) => Err(PodError::NoGateway(row.host.clone())),
        }
    }

    fn unset(&mut self, pod: &PodName) -> Result<(), PodError> {
        for link in self.host_ends(pod)? {
            self.remove(&link)?;
        }
        let made = self.set.get(pod).and_then(|row| shaper::device(&row.host));
        for device in self.shapers.remove(pod).into_iter().chain(made) {
            shaper::remove(&mut self.socket, &device)?;
        }
        self.set.remove(pod);
        self.seen.remove(pod);

        Ok(())
    }

    /// Returns the host ends of a pod: those seen with its alias, and the one that this run has made.
    fn host_ends(&mut self, pod: &PodName) -> Result<Vec<Link>, PodError> {
        let mut names = self.seen.get(pod).cloned().unwrap_or_default();
        names.extend(self.set.get(pod).map(|row| row.host.clone()));
        let mut ends = Vec::new();
        for name in names {
            let link = self.link(&name)?.filter(is_workload);
            ends.extend(link.filter(|link| {
                // Its name may have become another pod's.
                link.alias
                    .as_deref()
                    .and_then(pod_of)
                    .is_none_or(|found| found == *pod)
            }));
        }

        Ok(ends)
    }

    /// Removes a pair. It may go by itself, with its pod.
    fn remove(&mut self, link: &Link) -> Result<(), PodError> {
        let request = Message::new(libc::RTM_DELLINK, 0, &link::header(link.index, 0, 0));
        match self.send("delete", &link.name, request) {
            Err(PodError::Refused { .. }) if self.link(&link.name)?.is_none() => Ok(()),
            result => result,
        }
    }

    fn send(
        &mut self,
        step: &'static str,
        device: &InterfaceName,
        request: Message,
    ) -> Result<(), PodError> {
        let refusals = self
            .socket
            .exchange(vec![request])
            .map_err(|error| PodError::Send("a link", Box::new(error)))?;

        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) => Err(refused(step, device, &refusal)),
        }
    }

    fn links(&mut self) -> Result<Links, PodError> {
        Links::list(&mut self.socket).map_err(|error| PodError::Links(Box::new(error)))
    }

    fn link(&mut self, name: &InterfaceName) -> Result<Option<Link>, PodError> {
        link::get(&mut self.socket, name).map_err(|error| PodError::Links(Box::new(error)))
    }
}

impl Target for PodTarget {
    type Key = PodName;
    type Row = PodInterface;
    type Error = PodError;

    /// What an earlier run made is reported as it can be seen from outside, which is never equal to a
    /// row: it is then set again, which changes only what differs.
    fn observe(&mut self) -> Result<BTreeMap<PodName, PodInterface>, PodError> {
        let links = self.links()?;
        let mut found = BTreeMap::new();
        self.seen.clear();
        self.shapers.clear();
        for link in links.iter().filter(|link| is_workload(link)) {
            if let Some(pod) = link.alias.as_deref().and_then(pod_of) {
                self.seen
                    .entry(pod.clone())
                    .or_default()
                    .insert(link.name.clone());
                found.insert(pod, seen(link));
            }
        }
        for link in links.iter().filter(|link| shaper::is_shaper(link)) {
            if let Some(pod) = link.alias.as_deref().and_then(pod_of) {
                // One whose pod is gone has no host end to be found by.
                found.entry(pod.clone()).or_insert_with(|| seen(link));
                self.shapers.insert(pod, link.name.clone());
            }
        }
        self.set.retain(|pod, row| {
            let stands = links.by_name(&row.host).is_some_and(|link| {
                link.is_up() && link.mtu == row.mtu && link.mac == Some(WORKLOAD_MAC)
            });
            if stands && settings_hold(&row.host) {
                found.insert(pod.clone(), row.clone());
            }

            stands
        });

        Ok(found)
    }

    /// A pod whose interface cannot be made harms no other.
    fn apply(
        &mut self,
        changes: &[Change<PodName, PodInterface>],
    ) -> Result<Vec<Absent<PodName>>, PodError> {
        let mut absent = Vec::new();
        for change in changes {
            let (pod, result) = match change {
                Change::Set(pod, row) => (pod, self.set(pod, row)),
                Change::Unset(pod) => (pod, self.unset(pod)),
            };
            if let Err(error) = result {
                let reason = format!("{pod}: {}", crate::reconciler::chain(&error));
                absent.push(Absent {
                    key: pod.clone(),
                    reason,
                });
            }
        }

        Ok(absent)
    }
}

pub(crate) fn is_workload(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && link.name.as_str().starts_with(WORKLOAD_PREFIX)
}

/// Returns whether nobody has changed the host end's settings.
pub(crate) fn settings_hold(host: &InterfaceName) -> bool {
    HOST_SETTINGS.iter().all(|(family, name, value)| {
        match sysctl::read(&format!("net/{family}/{host}/{name}")) {
            Ok(found) => found.is_none_or(|found| found == *value),
            Err(_) => false,
        }
    })
}

/// Returns a host end's alias; `None` for a name that is too long to be one.
fn alias(pod: &PodName) -> Option<String> {
    let alias = format!("{ALIAS_PREFIX}{pod}");

    (alias.len() <= ALIAS_MAX).then_some(alias)
}

fn pod_of(alias: &str) -> Option<PodName> {
    PodName::parse(alias.strip_prefix(ALIAS_PREFIX)?).ok()
}

fn seen(link: &Link) -> PodInterface {
    PodInterface {
        host: link.name.clone(),
        inside: link.name.clone(),
        netns: String::new(),
        addresses: Vec::new(),
        mtu: link.mtu,
        mac: None,
        forwards: false,
        limits: Limits::default(),
    }
}

/// Opens a pod's namespace, which may be anything that a path can name.
fn open(path: &str) -> Result<File, PodError> {
    let wrong = |error| PodError::Namespace(path.to_owned(), error);
    // Without waiting: a named pipe would keep us for ever.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(wrong)?;
    let theirs = file.metadata().map_err(wrong)?;
    let ours = fs::metadata("/proc/thread-self/ns/net").map_err(wrong)?;
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Err(PodError::OwnNamespace(path.to_owned()));
    }

    Ok(file)
}

fn gone(device: &InterfaceName) -> PodError {
    PodError::Refused {
        step: "find",
        device: device.clone(),
        reason: "it has just gone".to_owned(),
    }
}

fn refused(step: &'static str, device: &InterfaceName, refusal: &Refusal) -> PodError {
    PodError::Refused {
        step,
        device: device.clone(),
        reason: refusal.to_string(),
    }
}
