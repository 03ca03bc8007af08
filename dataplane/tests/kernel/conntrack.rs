//! Connections and their marks, as `conntrack` shows them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use dataplane::{Among, Conntrack, Entry, Mark, Tally, Tuple, Ways};

use crate::namespace::{alone, attempt, eventually, ip, nft, run, tell, veth};

const BIT: u32 = 0x4_0000;

/// Where connections go that there are many of.
const CROWD: u16 = 6999;

#[test]
fn one_bit_is_written_and_the_others_stay() {
    alone(|| {
        track();
        nft("add rule inet watch out udp dport 7000 ct mark set 5");
        let _socket = talk("127.0.0.1:7000");
        let mut conntrack = Conntrack::open().unwrap();

        let set = conntrack.mark(BIT, Among::All, |_| Mark::Set).unwrap();
        assert_eq!(tally(1, 1, 0, 1), set);
        assert_eq!(marks("ipv4"), [BIT | 5]);
        let again = conntrack.mark(BIT, Among::All, |_| Mark::Set).unwrap();
        assert_eq!(tally(1, 0, 0, 1), again);

        let left = conntrack.mark(BIT, Among::All, |_| Mark::Leave).unwrap();
        assert_eq!(tally(1, 0, 0, 1), left);
        let cleared = conntrack.mark(BIT, Among::All, |_| Mark::Clear).unwrap();
        assert_eq!(tally(1, 0, 1, 0), cleared);
        assert_eq!(marks("ipv4"), [5]);
    });
}

#[test]
fn connections_of_every_protocol_and_family_are_named_as_the_kernel_knows_them() {
    alone(|| {
        track();
        let mut open = Vec::new();
        for address in ["127.0.0.1:7000", "[::1]:7000"] {
            open.push(talk(address));
            let listener = TcpListener::bind(address).unwrap();
            drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        }
        run("ping", "-c 1 127.0.0.1");
        run("ping", "-c 1 ::1");
        let mut conntrack = Conntrack::open().unwrap();
        let mut seen = Vec::new();

        let tally = conntrack.mark(BIT, Among::All, |entry| {
            seen.push(entry.original);
            Mark::Set
        });

        assert_eq!(tally.unwrap().set, 6);
        assert_eq!([marks("ipv4"), marks("ipv6")], [[BIT; 3]; 2]);
        let mut kinds: Vec<_> = seen
            .iter()
            .map(|tuple| (tuple.protocol, tuple.ports.map(|ports| ports.1), tuple.icmp))
            .collect();
        kinds.sort_unstable();
        let with_port = |number| (number, Some(7000), None);
        let echo = |number, kind| (number, None, Some((kind, 0)));
        assert_eq!(
            kinds,
            [
                echo(1, 8),
                with_port(6),
                with_port(6),
                with_port(17),
                with_port(17),
                echo(58, 128)
            ]
        );
    });
}

#[test]
fn a_translated_connection_tells_where_it_went_in_the_end() {
    alone(|| {
        nft("add table ip nat");
        nft("add chain ip nat out { type nat hook output priority -100 ; }");
        nft("add rule ip nat out udp dport 7001 dnat to 127.0.0.1:7002");
        let server = UdpSocket::bind("127.0.0.1:7002").unwrap();
        let client = UdpSocket::bind("127.0.0.1:7003").unwrap();
        client.send_to(b"?", "127.0.0.1:7001").unwrap();
        server.recv_from(&mut [0]).unwrap();

        let entry = &entries()[0];

        assert!(entry.is_translated());
        assert_eq!(entry.original.ports, Some((7003, 7001)));
        assert_eq!(entry.reply.ports, Some((7002, 7003)));
    });
}

#[test]
fn other_zones_are_other_programs() {
    alone(|| {
        nft("add table inet t");
        nft("add chain inet t out { type filter hook output priority -300 ; }");
        nft("add chain inet t in { type filter hook prerouting priority -300 ; }");
        nft("add rule inet t out udp dport 7001 ct zone set 7");
        nft("add rule inet t in udp dport 7001 ct zone set 7");
        track();
        let _sockets = [talk("127.0.0.1:7000"), talk("127.0.0.1:7001")];
        let mut conntrack = Conntrack::open().unwrap();

        let set = conntrack.mark(BIT, Among::All, |_| Mark::Set).unwrap();

        assert_eq!(set, tally(1, 1, 0, 1));
        let listed = run("conntrack", "-L -p udp");
        let zoned = listed.lines().find(|line| line.contains("zone=7")).unwrap();
        assert!(zoned.contains("mark=0 "), "{listed}");

        // Many are listed in another way than few.
        crowd(500);
        let set = conntrack.mark(BIT, Among::All, |_| Mark::Set).unwrap();

        assert_eq!(set, tally(501, 500, 0, 501));
        let listed = run("conntrack", "-L -p udp");
        let zoned = listed.lines().find(|line| line.contains("zone=7")).unwrap();
        assert!(zoned.contains("mark=0 "), "{listed}");
    });
}

#[test]
fn the_kernel_lists_only_what_is_marked_where_nothing_else_is_asked_for() {
    alone(|| {
        track();
        let _sockets = [talk("127.0.0.1:7000"), talk("127.0.0.1:7001")];
        let mut conntrack = Conntrack::open().unwrap();
        let second = |entry: &Entry| match entry.original.ports {
            Some((_, 7001)) => Mark::Set,
            Some(_) | None => Mark::Leave,
        };
        conntrack.mark(BIT, Among::All, second).unwrap();

        let cleared = conntrack.mark(BIT, Among::Marked, |_| Mark::Clear);

        assert_eq!(cleared.unwrap(), tally(1, 0, 1, 0));
        assert_eq!(marks("ipv4"), [0, 0]);
    });
}

/// Few are listed by way of `/proc` and asked for by name, many are dumped.
#[test]
fn few_connections_are_seen_as_many_are() {
    alone(|| {
        track();
        nft("add table ip nat");
        nft("add chain ip nat out { type nat hook output priority -100 ; }");
        nft("add rule ip nat out udp dport 7001 dnat to 127.0.0.1:7002");
        nft("add rule inet watch out udp dport 7000 ct mark set 5");
        let mut open = vec![talk("127.0.0.1:7000"), talk("[::1]:7000")];
        let client = UdpSocket::bind("127.0.0.1:7003").unwrap();
        client.send_to(b"?", "127.0.0.1:7001").unwrap();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        run("ping", "-c 1 127.0.0.1");
        run("ping", "-c 1 ::1");
        let known = |entries: Vec<Entry>| {
            let entries = entries.into_iter();
            let entries =
                entries.filter(|entry| entry.original.ports.map(|to| to.1) != Some(CROWD));
            let mut entries: Vec<_> = entries.map(|entry| format!("{entry:?}")).collect();
            entries.sort();
            entries
        };
        let few = known(entries());

        crowd(500);
        let many = entries();
        open.clear();

        assert!(many.len() > 500, "{}", many.len());
        assert_eq!(few.len(), 6);
        assert_eq!(known(many), few);
    });
}

#[test]
fn a_connection_that_ends_meanwhile_is_passed_over() {
    alone(|| {
        track();
        let _socket = talk("127.0.0.1:7000");
        let mut conntrack = Conntrack::open().unwrap();

        let tally = conntrack.mark(BIT, Among::All, |_| {
            run("conntrack", "-F");
            Mark::Set
        });

        assert_eq!(tally.unwrap().seen, 1);
        assert!(marks("ipv4").is_empty());
    });
}

/// Made as a helper makes them, of whom this kernel has none.
#[test]
fn a_connection_that_another_one_expected_is_what_that_one_is() {
    alone(|| {
        track();
        let _sockets = talk("127.0.0.1:7000");
        let master = entries()[0].original;
        expected_by(&master, 7001);
        let mut conntrack = Conntrack::open().unwrap();

        let port = |entry: &Entry| entry.original.ports.unwrap().1;
        let mut asked = Vec::new();
        let tally = conntrack.mark(BIT, Among::All, |entry| {
            asked.push(port(entry));
            Mark::Set
        });
        assert_eq!(tally.unwrap().set, 2);
        assert_eq!(asked, [7000, 7000]);

        run("conntrack", "-D -p udp --dport 7000");
        let mut asked = Vec::new();
        let tally = conntrack.mark(BIT, Among::All, |entry| {
            asked.push(port(entry));
            Mark::Clear
        });
        assert_eq!((tally.unwrap().cleared, asked), (1, vec![7001]));
    });
}

/// As many as a busy node has.
const MANY: u32 = 100_000;

/// What takes how long is told; asserted is only that it is no other order of magnitude.
#[test]
fn a_hundred_thousand_connections_are_marked_in_a_moment() {
    alone(|| {
        track();
        let room = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
        let room: u32 = room.trim().parse().unwrap();
        // A small machine's kernel, such as the test kernel, has room for less.
        let count = MANY.min(room / 2);
        tell(&format!("{count} connections"));
        let _server = UdpSocket::bind("0.0.0.0:7000").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..count {
            let [_, a, b, c] = number.to_be_bytes();
            let there = IpAddr::from(Ipv4Addr::new(127, 1 + a, b, c));
            client.send_to(b"?", SocketAddr::new(there, 7000)).unwrap();
        }
        let mut conntrack = Conntrack::open().unwrap();

        for (name, mark) in [
            ("left", Mark::Leave),
            ("set", Mark::Set),
            ("cleared", Mark::Clear),
        ] {
            let started = std::time::Instant::now();
            conntrack.settle();
            let settled = started.elapsed();
            let tally = conntrack.mark(BIT, Among::All, |_| mark).unwrap();
            let taken = started.elapsed();
            tell(&format!(
                "{name}: {taken:?} (settled after {settled:?}), {tally:?}"
            ));
            let changed = u64::from(count) * u64::from(mark != Mark::Leave);
            assert!(tally.seen >= count.into(), "{tally:?}");
            assert_eq!(tally.set + tally.cleared, changed);
            assert!(taken.as_secs() < 10, "{taken:?}");
        }
    });
}

#[test]
fn ways_are_those_of_the_kernel() {
    alone(|| {
        veth("eth0", "far");
        veth("cali1", "pod");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("addr add 2001:db8::1/64 dev eth0 nodad");
        ip("route add 10.65.0.5/32 dev cali1");
        ip("route add 198.51.100.0/24 via 192.0.2.254");
        ip("route add 198.51.100.9/32 dev cali1 table 2");
        ip("rule add from 10.65.0.0/24 lookup 2");
        run("sysctl", "-w net.ipv4.ip_forward=1");
        let mut ways = Ways::open().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        eventually("the kernel has noticed that the link is up", || {
            ways.refresh().unwrap();
            let far = ways.toward(address("2001:db8::2"), None).unwrap();
            far.is_some() && ways.is_own(address("2001:db8::1"))
        });

        let own = [
            "127.3.4.5",
            "192.0.2.1",
            "192.0.2.255",
            "2001:db8::1",
            "::1",
        ];
        let foreign = ["192.0.2.2", "10.65.0.5", "2001:db8::2", "8.8.8.8"];
        assert_eq!(own.map(|text| ways.is_own(address(text))), [true; 5]);
        assert_eq!(foreign.map(|text| ways.is_own(address(text))), [false; 4]);

        let pod = "cali1".parse().unwrap();
        let pod = Some((address("10.65.0.5"), &pod));
        let mut toward = |text: &str, pod| {
            let found = ways.toward(address(text), pod).unwrap();
            found.map(|name| name.to_string())
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(toward("198.51.100.9", None), name("eth0"));
        assert_eq!(toward("198.51.100.9", pod), name("cali1"));
        assert_eq!(toward("198.51.100.9", None), name("eth0"));
        assert_eq!(toward("10.65.0.5", None), name("cali1"));
        assert_eq!(toward("2001:db8::2", None), name("eth0"));
        assert_eq!(toward("fe80::2", None), None);
        assert_eq!(toward("203.0.113.1", None), None);
    });
}

/// Makes a connection of UDP to a port of the machine itself that another one has expected.
fn expected_by(master: &Tuple, port: u16) {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    // CTA_TUPLE_IP with CTA_IP_V4_SRC and _DST; CTA_TUPLE_PROTO with CTA_PROTO_NUM, _SRC_PORT and _DST_PORT.
    let tuple = |kind: u16, source: u16, destination: u16| {
        let local = [127, 0, 0, 1];
        let addresses = [attribute(1, &local), attribute(2, &local)].concat();
        let protocol = [
            attribute(1, &[17]),
            attribute(2, &source.to_be_bytes()),
            attribute(3, &destination.to_be_bytes()),
        ];
        let parts = [
            attribute(0x8001, &addresses),
            attribute(0x8002, &protocol.concat()),
        ];
        attribute(0x8000 | kind, &parts.concat())
    };
    let (from, to) = master.ports.unwrap();
    // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_TUPLE_MASTER, CTA_TIMEOUT.
    let said = [
        tuple(1, 7999, port),
        tuple(2, port, 7999),
        tuple(14, from, to),
        attribute(7, &600_u32.to_be_bytes()),
    ];
    let mut body = vec![2, 0, 0, 0];
    body.extend(said.concat());

    // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW; NLM_F_REQUEST, _ACK, _EXCL and _CREATE.
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&0x100_u16.to_ne_bytes());
    message.extend_from_slice(&0x605_u16.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend(body);
    let socket = netlink_sys::Socket::new(netlink_sys::constants::NETLINK_NETFILTER).unwrap();
    socket.send(&message, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    assert_eq!(answer[16..20], [0; 4], "the kernel takes it");
}

/// Has the namespace track its connections; they outlive the test.
fn track() {
    nft("add table inet watch");
    nft("add chain inet watch out { type filter hook output priority 0 ; }");
    nft("add rule inet watch out ct state new counter");
    run("sysctl", "-q -w net.netfilter.nf_conntrack_udp_timeout=600");
}

/// Opens so many connections of UDP, to a port of their own.
fn crowd(count: u16) {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 1..=count {
        let [a, b] = number.to_be_bytes();
        let there = Ipv4Addr::new(127, 1, a, b).into();
        client.send_to(b"?", SocketAddr::new(there, CROWD)).unwrap();
    }
}

/// Opens a connection of UDP to an address, and answers nothing.
fn talk(address: &str) -> [UdpSocket; 2] {
    let server = UdpSocket::bind(address).unwrap();
    let client = UdpSocket::bind((server.local_addr().unwrap().ip(), 0)).unwrap();
    client.send_to(b"?", server.local_addr().unwrap()).unwrap();

    [server, client]
}

fn entries() -> Vec<Entry> {
    let mut found = Vec::new();
    let mut conntrack = Conntrack::open().unwrap();
    let tally = conntrack.mark(BIT, Among::All, |entry| {
        found.push(entry.clone());
        Mark::Leave
    });
    assert_eq!(tally.unwrap().seen, found.len() as u64);

    found
}

/// Returns every connection's mark, as `conntrack` lists them.
fn marks(family: &str) -> Vec<u32> {
    let listed = attempt("conntrack", &format!("-L -f {family}"));
    let listed = String::from_utf8(listed.stdout).unwrap();

    listed
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("mark=")?.parse().ok())
        .collect()
}

const fn tally(seen: u64, set: u64, cleared: u64, marked: u64) -> Tally {
    Tally {
        seen,
        set,
        cleared,
        marked,
    }
}
