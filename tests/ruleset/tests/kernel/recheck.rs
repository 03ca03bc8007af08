//! How long it takes to judge every connection of a machine: the kernel's table, a large policy, every mark written.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use dataplane::{Among, Conntrack, Entry, Mark};
use model::{
    InterfaceName, Kind, ObjectKey,
    constant::REVOKED_MARK,
    policy::{Action, Directions, Policy, PortMatch, Protocol, Rule, Side, Stage},
};
use policy::{
    Header, Judge, Verdict,
    compile::{Member, Ruleset, Scene, Workload, compile},
    judge::{Connection, Station},
    packet::Ports,
};

use crate::sys;

/// How many connections there are; without optimisation each takes twenty times as long.
const CONNECTIONS: u32 = if cfg!(debug_assertions) {
    5_000
} else {
    100_000
};

/// A node as large installations have it: its pods, the policies of the cluster, those of one pod, the rules of one.
const PODS: usize = 110;
const POLICIES: usize = 1_000;
const OF_A_POD: usize = 50;
const RULES: u16 = 11;

/// What takes how long is told; asserted is that every mark is right, and no other order of magnitude.
#[test]
fn very_many_connections_are_judged_by_a_large_policy_in_a_moment() {
    let run = || {
        sys::leave_network().expect("tests of the kernel need root");
        open_connections();
        let (first, last) = (judge(Some(0)), judge(Some(OF_A_POD - 1)));
        recheck("the first policy allows all", &first, 0, 0);
        recheck(
            "no policy allows any",
            &judge(None),
            u64::from(CONNECTIONS),
            0,
        );
        recheck(
            "the last policy allows all",
            &last,
            0,
            u64::from(CONNECTIONS),
        );
    };

    thread::spawn(run).join().unwrap();
}

#[expect(
    clippy::print_stderr,
    reason = "figures belong to whoever runs the test"
)]
fn recheck(what: &str, judge: &Judge, revoked: u64, restored: u64) {
    let interfaces: Vec<InterfaceName> = (0..PODS).map(interface).collect();
    let mut conntrack = Conntrack::open().unwrap();
    let (started, before) = (Instant::now(), processor_time());
    conntrack.settle();
    let tally = conntrack.mark(REVOKED_MARK, Among::All, |entry| {
        let receiver = &interfaces[usize::from(octets(entry)[3]) % PODS];
        match judge.judge(&connection(entry, receiver)) {
            Verdict::Allow => Mark::Clear,
            Verdict::Deny => Mark::Set,
        }
    });
    let (taken, worked) = (started.elapsed(), processor_time() - before);

    eprintln!("{what}: {taken:?}, {worked:?} of them at work, {tally:?}");
    let tally = tally.unwrap();
    assert!(tally.seen >= u64::from(CONNECTIONS));
    assert_eq!((tally.set, tally.cleared), (revoked, restored));
    assert!(taken.as_secs() < 60, "{taken:?}");
}

/// Returns how long this thread has run, here and in the kernel (the first figure of `schedstat`, proc(5)).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split(' ').next().unwrap();

    Duration::from_nanos(nanoseconds.parse().unwrap())
}

/// Every connection is taken for one to a pod.
fn connection<'a>(entry: &Entry, receiver: &'a InterfaceName) -> Connection<'a> {
    let (source, destination) = entry.original.ports.unwrap();
    let header = Header {
        source: entry.original.source,
        destination: entry.reply.source,
        protocol: Protocol(entry.original.protocol),
        ports: Some(Ports {
            source,
            destination,
        }),
        icmp: None,
    };

    Connection {
        from: Station::Elsewhere,
        to: Station::Interface(receiver),
        before: header,
        header,
        translated: false,
    }
}

fn octets(entry: &Entry) -> [u8; 4] {
    match entry.original.destination {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => panic!("{address} is none of these connections'"),
    }
}

fn open_connections() {
    for line in ["ip link set lo up", "nft add table inet watch"] {
        run(line);
    }
    run("nft add chain inet watch out { type filter hook output priority 0 ; }");
    run("nft add rule inet watch out ct state new counter");
    // They outlive the test.
    run("sysctl -q -w net.netfilter.nf_conntrack_udp_timeout=600");
    let _server = UdpSocket::bind("0.0.0.0:7000").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..CONNECTIONS {
        let [_, a, b, c] = number.to_be_bytes();
        let there = IpAddr::from(Ipv4Addr::new(127, 1 + a, b, c));
        client.send_to(b"?", SocketAddr::new(there, 7000)).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel is prepared by its own programs"
)]
fn run(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status();

    assert!(status.unwrap().success(), "{line}");
}

/// Returns the judge of a node in which one of each pod's policies, or none, allows what is there.
fn judge(allowing: Option<usize>) -> Judge {
    let policies: Vec<Policy> = (0..POLICIES)
        .map(|number| policy(number, allowing))
        .collect();
    let workloads = (0..PODS).map(|pod| Workload {
        interface: interface(pod),
        labels: (0..OF_A_POD)
            .map(|each| (format!("p{}", of_pod(pod, each)), String::new()))
            .collect(),
        profiles: Vec::new(),
    });
    let members = (0..5_000_u32).map(|pod| Member {
        labels: [("group".to_owned(), (pod % 100).to_string())].into(),
        nets: vec![IpAddr::from(Ipv4Addr::from_bits(0x0a41_0000 + pod)).into()],
        ports: Vec::new(),
    });
    let scene = Scene {
        workloads: workloads.collect(),
        hosts: Vec::new(),
        members: members.collect(),
        services: Default::default(),
        tiers: Vec::new(),
        policies,
        profiles: Default::default(),
        options: Default::default(),
    };
    let Ruleset {
        elements, chains, ..
    } = compile(&scene).rows;
    let mut judge = Judge::new();
    for (set, element) in &elements {
        judge.set_element(set, element, true);
    }
    for (key, chain) in &chains {
        judge.set_chain(key, Some(chain));
    }

    judge
}

/// Rules of which none matches, and a last one that allows what is there if it is this policy's turn.
fn policy(number: usize, allowing: Option<usize>) -> Policy {
    let rule = |index: u16| Rule {
        protocol: Some(Protocol::UDP),
        source: Side {
            selector: Some(format!("group == '{}'", number % 100).parse().unwrap()),
            ..Side::default()
        },
        destination: Side {
            ports: vec![PortMatch::single(8000 + index)],
            ..Side::default()
        },
        ..Rule::new(Action::Allow)
    };
    let mut ingress: Vec<Rule> = (1..RULES).map(rule).collect();
    let is_its_turn = allowing.is_some_and(|turn| number % OF_A_POD == turn);
    ingress.push(Rule {
        destination: Side {
            ports: vec![PortMatch::single(if is_its_turn { 7000 } else { 7999 })],
            ..Side::default()
        },
        protocol: Some(Protocol::UDP),
        ..Rule::new(Action::Allow)
    });

    Policy {
        key: ObjectKey::namespaced(Kind::NetworkPolicy, "shop", format!("p{number:04}")),
        tier: "default".into(),
        order: Some((number % OF_A_POD) as f64),
        selector: format!("has(p{number})").parse().unwrap(),
        types: Directions {
            ingress: true,
            egress: false,
        },
        ingress,
        egress: Vec::new(),
        stage: Stage::Normal,
        apply_on_forward: false,
        staged: None,
        invalid: Default::default(),
    }
}

/// Returns the number of one of a pod's policies; each pod has one of each order.
fn of_pod(pod: usize, each: usize) -> usize {
    (pod % (POLICIES / OF_A_POD)) * OF_A_POD + each
}

fn interface(pod: usize) -> InterfaceName {
    format!("cali{pod}").parse().unwrap()
}
