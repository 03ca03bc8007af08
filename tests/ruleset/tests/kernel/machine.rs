//! A node whose every device ends in this process: what we write to one has come in by it, and what we read from one
//! has left by it.
//!
//! ```text
//!            ┌ node, a network namespace ───────────────┐
//! TUN cali…──┤                                          ├──TUN eth0
//! TUN cali…──┤  inet meshd: the ruleset                 ├──TUN wireguard.cali
//!            │  raw sockets: what its processes send    │
//!            │  and get                                 │
//!            └──────────────────────────────────────────┘
//! ```
//!
//! The kernel takes a packet that is written to a TUN device through all its hooks before the write returns, so that
//! nobody has to wait for what is dropped.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr},
};

use dataplane::{NftTarget, Ownership};
use model::{Family, constant::TUNNEL_DEVICE, policy::Protocol};
use policy::{cluster::Node, compile::Ruleset};
use socket2::{Domain, Socket, Type};

use crate::{fed, namespace::Namespace, program, sys, through_kernel};

/// Marks what our sockets send. Whatever else the node says (resets, echo replies, errors) is dropped before it can
/// change a connection.
const OURS: u32 = 1;

/// The raw protocol of which packets are sent with a header of ours (`IPPROTO_RAW`).
const RAW: i32 = 255;

/// The routing table of what pods send to members' nodes.
pub(super) const TO_MEMBERS: u32 = 100;

/// More than any packet of ours.
const PACKET_MAX: usize = 2048;

/// A node whose every device ends in this process.
pub(super) struct Machine {
    namespace: Namespace,
    devices: BTreeMap<String, File>,
    senders: BTreeMap<Family, Socket>,
    receivers: Vec<Socket>,
}

impl Machine {
    /// Makes a node with TUN devices of these names besides the underlay's and the tunnel's.
    pub(super) fn new(node: &Node, pods: &[String]) -> Self {
        let namespace = Namespace::new();
        let interface = &node.interfaces[0];
        let uplink = interface.name.to_string();
        let addresses = interface.addresses.clone();
        let mut names = vec![uplink.clone(), TUNNEL_DEVICE.to_owned()];
        names.extend_from_slice(pods);
        let (devices, senders, receivers) = namespace.run(move || {
            for setting in SETTINGS {
                program("sysctl", &format!("-qw {setting}"));
            }
            let devices: BTreeMap<_, _> = names
                .into_iter()
                .map(|name| (name.clone(), sys::tun(&name).unwrap()))
                .collect();
            fed(
                "ip",
                "-batch -",
                &plumbing(&devices, &uplink, &addresses, Family::V4),
            );
            fed(
                "ip",
                "-6 -batch -",
                &plumbing(&devices, &uplink, &addresses, Family::V6),
            );
            fed("nft", "-f -", SURROUNDINGS);

            (devices, senders(), receivers())
        });

        Self {
            namespace,
            devices,
            senders,
            receivers,
        }
    }

    /// Makes the node hold a ruleset, and know no connection.
    pub(super) fn load(&self, rows: &Ruleset) {
        let rows = rows.clone();
        self.namespace.run(move || {
            let mut target = NftTarget::open(Ownership::Shared).unwrap();
            target.set_in_sync(true);
            through_kernel(&mut target, &rows);
        });
        self.forget();
    }

    /// Forgets every connection.
    pub(super) fn forget(&self) {
        self.namespace.run(|| program("conntrack", "-F"));
    }

    /// Gives the node routes: commands of `ip`, one a line.
    pub(super) fn route(&self, v4: String, v6: String) {
        self.namespace.run(move || {
            fed("ip", "-batch -", &v4);
            fed("ip", "-6 -batch -", &v6);
        });
    }

    /// Gives commands to `nft`.
    pub(super) fn nft(&self, commands: String) {
        self.namespace.run(move || fed("nft", "-f -", &commands));
    }

    /// Lets a packet come in by a device, or be sent by a process.
    pub(super) fn send(&self, device: Option<&str>, destination: IpAddr, packet: &[u8]) {
        match device {
            Some(device) => {
                let mut device = &self.devices[device];
                assert_eq!(device.write(packet).unwrap(), packet.len());
            }
            None => {
                let sender = &self.senders[&Family::of(destination)];
                match sender.send_to(packet, &SocketAddr::new(destination, 0).into()) {
                    Ok(sent) => assert_eq!(sent, packet.len()),
                    // What a hook of output drops is told its sender.
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                    Err(error) => panic!("to {destination}: {error}"),
                }
            }
        }
    }

    /// Returns the packets that have left by a device, or come to processes, since this was last asked. IPv6 shows
    /// processes no header.
    pub(super) fn receive(&self, device: Option<&str>) -> Vec<Vec<u8>> {
        match device {
            Some(device) => {
                let mut device = &self.devices[device];

                drained(|buffer| device.read(buffer))
            }
            None => self.receivers.iter().flat_map(received).collect(),
        }
    }
}

/// It forwards, and looks at no packet's origin.
const SETTINGS: [&str; 6] = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.router_solicitations=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
];

/// What is beside the ruleset: nobody but us speaks, and what a map says is translated (as kube-proxy does).
const SURROUNDINGS: &str = "
table inet surroundings {
  chain output { type filter hook output priority -400; meta mark != 1 drop; }
}
table ip surroundings {
  map sent { type ipv4_addr . inet_proto . inet_service . inet_service : ipv4_addr . inet_service; }
  chain prerouting {
    type nat hook prerouting priority -100;
    ip daddr 192.0.2.1 dnat ip to ip saddr . meta l4proto . th sport . th dport map @sent;
  }
}
table ip6 surroundings {
  map sent { type ipv6_addr . inet_proto . inet_service . inet_service : ipv6_addr . inet_service; }
  chain prerouting {
    type nat hook prerouting priority -100;
    ip6 daddr 2001:db8::1 dnat ip6 to ip6 saddr . meta l4proto . th sport . th dport map @sent;
  }
}";

/// Returns the commands of `ip` that give the node its addresses of a family, and routes to all that is no pod.
fn plumbing(
    devices: &BTreeMap<String, File>,
    uplink: &str,
    addresses: &[IpAddr],
    family: Family,
) -> String {
    let mut commands = String::new();
    for name in devices.keys() {
        commands += &format!("link set {name} up\n");
    }
    for address in addresses.iter().filter(|each| Family::of(**each) == family) {
        let flag = match family {
            Family::V4 => "",
            Family::V6 => " nodad",
        };
        commands += &format!("addr add {address} dev {uplink}{flag}\n");
    }
    let pods = match family {
        Family::V4 => "10.65.0.0/16",
        Family::V6 => "fd00:65::/64",
    };

    commands
        + &format!("route add default dev {uplink}\nrule add from {pods} lookup {TO_MEMBERS}\n")
}

fn senders() -> BTreeMap<Family, Socket> {
    [(Family::V4, Domain::IPV4), (Family::V6, Domain::IPV6)]
        .into_iter()
        .map(|(family, domain)| {
            let socket = Socket::new(domain, Type::RAW, Some(RAW.into())).unwrap();
            socket.set_mark(OURS).unwrap();

            (family, socket)
        })
        .collect()
}

/// Sockets that see what comes to the node's processes, behind every hook.
fn receivers() -> Vec<Socket> {
    let both = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    let of = |domain, icmp| {
        let protocols = both.into_iter().chain([icmp]);
        protocols.map(move |protocol: Protocol| {
            let number = i32::from(protocol.0).into();
            let socket = Socket::new(domain, Type::RAW, Some(number)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
    };

    of(Domain::IPV4, Protocol::ICMP)
        .chain(of(Domain::IPV6, Protocol::ICMPV6))
        .collect()
}

fn received(socket: &Socket) -> Vec<Vec<u8>> {
    let mut socket = socket;

    drained(|buffer| socket.read(buffer))
}

fn drained(mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = [0; PACKET_MAX];
    loop {
        match read(&mut buffer) {
            Ok(length) => packets.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return packets,
            Err(error) => panic!("{error}"),
        }
    }
}
