//! Limits on a pod's traffic: token buckets of the kernel's traffic control.
//!
//! ```text
//! to the pod     host end ── tbf ──────────────────────────▶ inner end
//! from the pod   host end ── u32, mirred ──▶ ifb ── tbf ──▶ host end, as if just received
//! ```
//!
//! A device only shapes what it sends: what comes from the pod is sent through a device of its own, an `ifb`, and goes
//! on from there as if nothing had happened. It has the host end's name with an `i` behind the prefix, which no
//! pod's host end has.

use model::{
    InterfaceName, PodName,
    constant::WORKLOAD_PREFIX,
    pod::{Limit, Limits},
};

use super::{PodError, alias};
use crate::{
    link::{self, Link},
    netlink::{Attributes, Message, Socket, flag, text, u32_ne},
};

/// Bytes of `struct tcmsg` (linux/rtnetlink.h).
const HEADER: usize = 20;

/// Where a queueing discipline hangs (linux/pkt_sched.h): `TC_H_ROOT`, `TC_H_CLSACT`, and the half of the latter that
/// sees what comes in.
const ROOT: u32 = 0xffff_ffff;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_INGRESS: u32 = 0xffff_fff2;

/// Handles of ours: `1:` for the bucket, `ffff:` as `clsact` must have it.
const BUCKET_HANDLE: u32 = 0x0001_0000;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// Attributes of every discipline and filter (`TCA_KIND`, `TCA_OPTIONS`).
const KIND: u16 = 1;
const OPTIONS: u16 = 2;

/// Attributes of a token bucket (`TCA_TBF_*`).
const BUCKET_SETTINGS: u16 = 1;
const BUCKET_RATE: u16 = 4;
const BUCKET_PEAK: u16 = 5;
const BUCKET_BURST: u16 = 6;
const BUCKET_PEAK_BURST: u16 = 7;

/// Attributes of a filter and of its action (`TCA_U32_SEL`, `TCA_U32_ACT`, `TCA_ACT_*`, `TCA_MIRRED_PARMS`).
const FILTER_SELECTOR: u16 = 5;
const FILTER_ACTIONS: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const REDIRECT_SETTINGS: u16 = 2;

/// `TC_ACT_STOLEN`, `TCA_EGRESS_REDIR` and `TC_U32_TERMINAL`.
const STOLEN: u32 = 4;
const REDIRECT: u32 = 1;
const TERMINAL: u8 = 1;

/// Every protocol (`ETH_P_ALL`), and the one priority.
const ALL_PROTOCOLS: u16 = 3;
const PRIORITY: u32 = 1;

/// How long a packet may wait for its turn, in milliseconds: as the `bandwidth` plugin has it.
const LATENCY_MS: u64 = 25;

/// The shortest queue, in packets of the device's MTU.
const QUEUE_PACKETS: u64 = 16;

/// Bytes of a link's header that count beside the MTU (Ethernet, IEEE 802.3).
const ETHERNET: u32 = 14;

/// Returns the name of the device through which a host end's packets are shaped.
pub(super) fn device(host: &InterfaceName) -> Option<InterfaceName> {
    let digits = host.as_str().strip_prefix(WORKLOAD_PREFIX)?;
    let digits: String = digits.chars().take(10).collect();

    format!("{WORKLOAD_PREFIX}i{digits}").parse().ok()
}

/// Returns whether a link is a shaper's.
pub(super) fn is_shaper(link: &Link) -> bool {
    link.kind.as_deref() == Some("ifb") && link.name.as_str().starts_with(WORKLOAD_PREFIX)
}

/// Makes the limits of a host end what they should be; a new one has none yet.
pub(super) fn set(
    socket: &mut Socket,
    pod: &PodName,
    host: &Link,
    limits: Limits,
    is_new: bool,
) -> Result<(), PodError> {
    match limits.ingress {
        Some(limit) => bucket(socket, host, limit)?,
        None if is_new => {}
        None => remove_discipline(socket, host, ROOT)?,
    }
    let Some(limit) = limits.egress else {
        return if is_new {
            Ok(())
        } else {
            remove_discipline(socket, host, CLSACT)?;
            device(&host.name).map_or(Ok(()), |device| remove(socket, &device))
        };
    };
    let shaper = make(socket, pod, host)?;
    bucket(socket, &shaper, limit)?;
    remove_discipline(socket, host, CLSACT)?;
    let requests = vec![clsact(host.index), redirection(host.index, shaper.index)];

    send(socket, "shape packets of", &host.name, requests)
}

/// Removes a device through which a host end's packets were shaped, if it is there.
pub(super) fn remove(socket: &mut Socket, device: &InterfaceName) -> Result<(), PodError> {
    let Some(link) = get(socket, device)?.filter(is_shaper) else {
        return Ok(());
    };
    let request = Message::new(libc::RTM_DELLINK, 0, &link::header(link.index, 0, 0));

    send(socket, "delete", device, vec![request])
}

fn make(socket: &mut Socket, pod: &PodName, host: &Link) -> Result<Link, PodError> {
    let name = device(&host.name).ok_or_else(|| PodError::Taken(host.name.clone()))?;
    if get(socket, &name)?.is_none() {
        send(socket, "create", &name, vec![creation(&name, host.mtu)])?;
    }
    let link = get(socket, &name)?
        .filter(is_shaper)
        .ok_or_else(|| PodError::Taken(name.clone()))?;
    let header = link::header(link.index, link::up_flag(), link::up_flag());
    let mut request = Message::new(libc::RTM_NEWLINK, 0, &header);
    request.put_u32(link::attribute::MTU, host.mtu);
    if let Some(alias) = alias(pod) {
        request.put(link::attribute::ALIAS, alias.as_bytes());
    }
    send(socket, "bring up", &name, vec![request])?;

    Ok(link)
}

fn get(socket: &mut Socket, name: &InterfaceName) -> Result<Option<Link>, PodError> {
    link::get(socket, name).map_err(|error| PodError::Links(Box::new(error)))
}

fn creation(name: &InterfaceName, mtu: u32) -> Message {
    use link::attribute;

    let flags = flag::CREATE | flag::EXCLUSIVE;
    let mut request = Message::new(libc::RTM_NEWLINK, flags, &link::header(0, 0, 0));
    request.put_text(attribute::NAME, name.as_str());
    request.put_u32(attribute::MTU, mtu);
    request.nest(attribute::INFO, |info| {
        info.put_text(attribute::INFO_KIND, "ifb")
    });

    request
}

/// Returns the kinds of the disciplines of a link.
pub(super) fn kinds(socket: &mut Socket, index: u32) -> Result<Vec<String>, PodError> {
    let request = Message::new(libc::RTM_GETQDISC, 0, &header(index, 0, 0, 0));
    let found = socket.dump(request, |message| {
        let owner = u32_ne(message.payload.get(4..8)?)?;
        let attributes = Attributes::new(message.payload.get(HEADER..)?);
        let kind = attributes.find(KIND).and_then(text)?;

        (owner == index).then(|| kind.to_owned())
    });

    found.map_err(|error| PodError::Links(Box::new(error)))
}

/// Builds a `struct tcmsg` (linux/rtnetlink.h).
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());

    header
}

fn bucket(socket: &mut Socket, link: &Link, limit: Limit) -> Result<(), PodError> {
    let flags = flag::CREATE | flag::REPLACE;
    let header = header(link.index, BUCKET_HANDLE, ROOT, 0);
    let mut request = Message::new(libc::RTM_NEWQDISC, flags, &header);
    request.put_text(KIND, "tbf");
    request.nest(OPTIONS, |options| put_bucket(options, limit, link.mtu));

    send(socket, "limit", &link.name, vec![request])
}

/// Settings as `struct tc_tbf_qopt` (linux/pkt_sched.h): two rates, then the queue's length, and two numbers that the
/// attributes behind it say better. All in bytes.
fn put_bucket(options: &mut Message, limit: Limit, mtu: u32) {
    let rate = limit.rate / 8;
    let frame = mtu.saturating_add(ETHERNET);
    let queue = (rate.saturating_mul(LATENCY_MS) / 1000).max(u64::from(frame) * QUEUE_PACKETS);
    let burst = narrow(limit.burst / 8).max(frame);
    let peak = limit.peak.map(|peak| peak / 8);
    let mut settings = [0; 36];
    settings[8..12].copy_from_slice(&narrow(rate).to_ne_bytes());
    settings[20..24].copy_from_slice(&narrow(peak.unwrap_or(0)).to_ne_bytes());
    settings[24..28].copy_from_slice(&narrow(queue).to_ne_bytes());
    options.put(BUCKET_SETTINGS, &settings);
    options.put(BUCKET_RATE, &rate.to_ne_bytes());
    options.put(BUCKET_BURST, &burst.to_ne_bytes());
    if let Some(peak) = peak {
        let at_once = limit.peak_burst.unwrap_or(frame).max(frame);
        options.put(BUCKET_PEAK, &peak.to_ne_bytes());
        options.put(BUCKET_PEAK_BURST, &at_once.to_ne_bytes());
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn clsact(index: u32) -> Message {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    let header = header(index, CLSACT_HANDLE, CLSACT, 0);
    let mut request = Message::new(libc::RTM_NEWQDISC, flags, &header);
    request.put_text(KIND, "clsact");

    request
}

/// Builds the filter that sends every packet to the shaper: a `u32` whose one key matches all.
fn redirection(index: u32, shaper: u32) -> Message {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    let info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let header = header(index, 0, CLSACT_INGRESS, info);
    let mut request = Message::new(libc::RTM_NEWTFILTER, flags, &header);
    request.put_text(KIND, "u32");
    request.nest(OPTIONS, |options| {
        let mut selector = [0; 32];
        selector[0] = TERMINAL;
        selector[2] = 1;
        options.put(FILTER_SELECTOR, &selector);
        options.nest(FILTER_ACTIONS, |actions| {
            actions.nest(1, |action| {
                action.put_text(ACTION_KIND, "mirred");
                action.nest(ACTION_OPTIONS, |options| {
                    let mut settings = [0; 28];
                    settings[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
                    settings[20..24].copy_from_slice(&REDIRECT.to_ne_bytes());
                    settings[24..28].copy_from_slice(&shaper.to_ne_bytes());
                    options.put(REDIRECT_SETTINGS, &settings);
                });
            });
        });
    });

    request
}

/// Removes what hangs there, if it is ours to remove: the kernel's own disciplines cannot be.
fn remove_discipline(socket: &mut Socket, link: &Link, parent: u32) -> Result<(), PodError> {
    let request = Message::new(libc::RTM_DELQDISC, 0, &header(link.index, 0, parent, 0));
    let refusals = socket
        .exchange(vec![request])
        .map_err(|error| PodError::Send("a limit", Box::new(error)))?;
    let is_absence = |errno| [libc::ENOENT, libc::EINVAL].contains(&errno);

    match refusals.iter().find(|refusal| !is_absence(refusal.errno)) {
        None => Ok(()),
        Some(refusal) => Err(super::refused("lift the limit of", &link.name, refusal)),
    }
}

fn send(
    socket: &mut Socket,
    step: &'static str,
    device: &InterfaceName,
    requests: Vec<Message>,
) -> Result<(), PodError> {
    let refusals = socket
        .exchange(requests)
        .map_err(|error| PodError::Send("a limit", Box::new(error)))?;

    match refusals.into_iter().next() {
        None => Ok(()),
        Some(refusal) => Err(super::refused(step, device, &refusal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shaper_has_a_name_that_no_host_end_has() {
        let name = device(&"calia4fc3c48bd8".parse().unwrap()).unwrap();

        assert_eq!(name.as_str(), "caliia4fc3c48bd");
    }
}
