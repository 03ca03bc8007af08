//! Kernels that refuse what makes a tunnel fast. The device runs in the test's own process, on threads that a filter
//! of system calls (`seccomp(2)`) answers in place of an older kernel.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use wire::device::{Device, Options, SocketLoss};
use wire::tun::Offload;
use wire::uapi;

use crate::command::{run, run_with};
use crate::namespace::{Namespace, unique};
use crate::pair::Outside;
use crate::sys::{Filter, intercept_sending, judge, refuse};
use crate::traffic::{bulk, echo};
use crate::tunnel::{Make, Tunnel};
use crate::wait::until;

const MIB: usize = 1 << 20;
/// `TUNSETOFFLOAD` of `linux/if_tun.h`, and its flags for UDP and TCP.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const USO: u32 = 0x20 | 0x40;
const TSO: u32 = 0x02 | 0x04;

/// Starts a device in this process, on a thread that `prepare` has prepared.
fn device<R: Send>(
    namespace: &Namespace,
    name: &str,
    prepare: impl FnOnce() -> R + Send,
) -> (Device, R) {
    let options = Options {
        name: name.to_owned(),
        mtu: 1420,
        offload: Offload::Udp,
        uapi_directory: PathBuf::from(uapi::DIRECTORY),
        socket_loss: SocketLoss::End,
    };
    namespace.inside(|| {
        let prepared = prepare();
        let device = Device::start(&options, Arc::new(|_| ()));
        (device.expect("it starts all the same"), prepared)
    })
}

/// A network device that finds out only when it sends that it cannot cut: `EIO` (`udp(7)`).
struct Clumsy {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Clumsy {
    fn start(listener: OwnedFd) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut refused = 0;
            while !end.load(Ordering::SeqCst) {
                let mut ready = [PollFd::new(&listener, PollFlags::IN)];
                let patience = Timespec {
                    tv_sec: 0,
                    tv_nsec: 10_000_000,
                };
                poll(&mut ready, Some(&patience)).expect("polled");
                if ready[0].revents().contains(PollFlags::IN) {
                    let verdict = |control: &[u8]| {
                        let segments = cuts(control);
                        refused += usize::from(segments);
                        segments.then_some(libc::EIO)
                    };
                    // The caller may be gone again.
                    let _: std::io::Result<()> = judge(&listener, verdict);
                }
            }
            refused
        });
        Self { ended, thread }
    }

    /// How often it was asked to cut.
    fn finish(self) -> usize {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.join().expect("no panic")
    }
}

/// Whether there is a `UDP_SEGMENT` among the control messages.
fn cuts(mut control: &[u8]) -> bool {
    let word = |at: usize, bytes: &[u8]| {
        let bytes = bytes.get(at..at + 4)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    };
    while let Some(length) = word(0, control) {
        if (word(8, control), word(12, control)) == (Some(libc::SOL_UDP), Some(libc::UDP_SEGMENT)) {
            return true;
        }
        let next = usize::try_from(length)
            .expect("a length")
            .next_multiple_of(8);
        control = control.get(next.max(8)..).unwrap_or(&[]);
    }
    false
}

/// Traffic of all kinds passes between an ordinary device and one on a kernel that refuses `filters`; the offload that
/// was granted.
fn works(filters: &[Filter]) -> Offload {
    let prepare = || filters.iter().for_each(refuse);
    passes(prepare, |()| ())
}

/// The same with any preparation of the device's threads; `then` is told what came of it, before there is traffic.
fn passes<R: Send>(prepare: impl FnOnce() -> R + Send, then: impl FnOnce(R)) -> Offload {
    let (left, right) = (Namespace::new(), Namespace::new());
    left.ip(&format!(
        "link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}",
        right.name
    ));
    for (namespace, number) in [(&left, 1), (&right, 2)] {
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip("link set eth0 up");
    }
    let name = unique("mw");
    let (device, prepared) = device(&left, &name, prepare);
    then(prepared);
    let other = Tunnel::start(&right, Make::Meshwire);
    let private = run("wg genkey");
    let public = run_with("wg pubkey", &private);
    run_with(
        &format!(
            "wg set {name} private-key /dev/stdin listen-port 51820 peer {} allowed-ips 10.5.0.2/32 endpoint {}",
            other.public_key,
            Outside::V4.endpoint(2)
        ),
        &private,
    );
    other.wg(&format!("peer {} allowed-ips 10.5.0.1/32", public.trim()));
    for (namespace, name, number) in [(&left, &name, 1), (&right, &other.name, 2)] {
        namespace.ip(&format!("addr add 10.5.0.{number}/24 dev {name}"));
        namespace.ip(&format!("link set {name} up"));
    }
    let [a, b] = [1, 2].map(|number| std::net::IpAddr::from([10, 5, 0, number]));
    echo(&left, &right, b, [0, 100, 1392, 4000, 20_000]);
    bulk(&left, &right, b, 4 * MIB);
    bulk(&right, &left, a, 4 * MIB);
    let granted = device.status().offload;
    let counters = device.status().counters;
    assert_eq!(
        (counters.out_send_failed, counters.in_malformed),
        (0, 0),
        "{counters:?}"
    );
    drop(device);
    until("the device is gone", || !left.has_link(&name));
    granted
}

#[test]
fn nothing_refused_everything_is_granted() {
    assert_eq!(works(&[]), Offload::Udp);
}

#[test]
fn a_kernel_without_udp_segmentation_in_the_device_gets_tcp_alone() {
    let uso = Filter {
        call: libc::SYS_ioctl,
        equal: vec![(1, TUNSETOFFLOAD)],
        any: Some((2, USO)),
        errno: libc::EINVAL,
    };
    assert_eq!(works(&[uso]), Offload::Tcp);
}

#[test]
fn a_kernel_without_any_segmentation_in_the_device_gets_packet_by_packet() {
    let tso = Filter {
        call: libc::SYS_ioctl,
        equal: vec![(1, TUNSETOFFLOAD)],
        any: Some((2, TSO)),
        errno: libc::EINVAL,
    };
    assert_eq!(works(&[tso]), Offload::None);
}

#[test]
fn a_kernel_that_neither_cuts_nor_joins_datagrams_gets_them_one_by_one() {
    let option = |name: i32| Filter {
        call: libc::SYS_setsockopt,
        equal: vec![
            (1, libc::SOL_UDP.cast_unsigned()),
            (2, name.cast_unsigned()),
        ],
        any: None,
        errno: libc::ENOPROTOOPT,
    };
    assert_eq!(
        works(&[option(libc::UDP_SEGMENT), option(libc::UDP_GRO)]),
        Offload::Udp
    );
}

#[test]
fn a_device_that_cannot_cut_after_all_gets_datagrams_one_by_one_from_then_on() {
    let mut clumsy = None;
    let granted = passes(intercept_sending, |listener| {
        clumsy = Some(Clumsy::start(listener));
    });
    assert_eq!(granted, Offload::Udp);
    let asked = clumsy.expect("it was started").finish();
    assert_eq!(asked, 1, "once it is known, nobody asks again");
}
