//! Others understand us, and we them: both ways of beginning, both families outside and inside.

use crate::namespace::Namespace;
use crate::pair::{End, Outside, pair};
use crate::traffic::{bulk, echo};
use crate::tunnel::Make;

const MIB: usize = 1 << 20;

/// Datagrams around every border: the padding's 16 bytes, the MTU, and beyond it (IP fragments inside).
fn sizes(header: usize) -> impl Iterator<Item = usize> {
    let padding = 0..=33;
    let mtu = 1420 - header - 18..=1420 - header + 2;
    padding.chain(mtu).chain([4000, 20_000])
}

fn everything_passes(a: &Namespace, b: &Namespace, to: &End, bytes: usize) {
    echo(a, b, to.v4(), sizes(28));
    echo(a, b, to.v6(), sizes(48));
    bulk(a, b, to.v4(), bytes);
    bulk(a, b, to.v6(), bytes);
}

/// `a` initiates.
fn understand_each_other(a: Make, b: Make, outside: Outside) {
    let (a, b) = pair(a, b, outside);
    everything_passes(&a.namespace, &b.namespace, &b, 4 * MIB);
    for (ours, theirs) in [(&a, &b), (&b, &a)] {
        // boringtun tells the age of a handshake in place of its time.
        if ours.make != Make::Boringtun {
            assert!(ours.tunnel.last_handshake(&theirs.tunnel.public_key) > 0);
        }
        let (received, sent) = ours.tunnel.transfer(&theirs.tunnel.public_key);
        assert!(received > 8 * MIB as u64 && sent > 8 * MIB as u64);
    }
}

macro_rules! understand_each_other {
    ($($name:ident: $a:ident -> $b:ident over $outside:ident;)*) => {
        $(#[test]
        fn $name() {
            understand_each_other(Make::$a, Make::$b, Outside::$outside);
        })*
    };
}

understand_each_other! {
    we_reach_ourselves_over_ipv4: Meshwire -> Meshwire over V4;
    we_reach_ourselves_over_ipv6: Meshwire -> Meshwire over V6;
    without_offload_we_reach_ourselves: MeshwirePlain -> MeshwirePlain over V4;
    with_offload_we_reach_one_without: Meshwire -> MeshwirePlain over V6;
    without_offload_we_reach_one_with: MeshwirePlain -> Meshwire over V4;
    we_reach_wireguard_go_over_ipv4: Meshwire -> WireguardGo over V4;
    we_reach_wireguard_go_over_ipv6: Meshwire -> WireguardGo over V6;
    wireguard_go_reaches_us_over_ipv4: WireguardGo -> Meshwire over V4;
    wireguard_go_reaches_us_over_ipv6: WireguardGo -> Meshwire over V6;
    we_reach_boringtun_over_ipv4: Meshwire -> Boringtun over V4;
    we_reach_boringtun_over_ipv6: Meshwire -> Boringtun over V6;
    boringtun_reaches_us_over_ipv4: Boringtun -> Meshwire over V4;
    boringtun_reaches_us_over_ipv6: Boringtun -> Meshwire over V6;
}

#[test]
fn a_path_with_a_smaller_mtu_gets_fragments_and_loses_nothing() {
    let (a, b) = crate::pair::ours(Outside::V4);
    for end in [&a, &b] {
        end.namespace.ip("link set eth0 mtu 1300");
    }
    everything_passes(&a.namespace, &b.namespace, &b, MIB);
}

#[test]
fn a_large_mtu_carries_large_packets() {
    let (a, b) = crate::pair::strangers(Make::Meshwire, Make::Meshwire);
    for end in [&a, &b] {
        end.namespace.ip("link set eth0 mtu 9000");
    }
    b.add_peer(&a, None);
    a.add_peer(&b, Some(Outside::V4));
    b.up(8920);
    a.up(8920);
    echo(&a.namespace, &b.namespace, b.v4(), [8892, 8893, 30_000]);
    bulk(&a.namespace, &b.namespace, b.v6(), 4 * MIB);
}

#[test]
fn a_session_begins_before_anybody_has_something_to_say() {
    let (a, b) = crate::pair::ours(Outside::V6);
    a.await_handshake(&b);
}

#[test]
fn a_machine_without_ipv6_has_a_tunnel_over_ipv4() {
    let (a, b) = crate::pair::strangers(Make::Meshwire, Make::Meshwire);
    for end in [&a, &b] {
        end.namespace
            .exec("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        end.namespace
            .ip(&format!("addr add {}/24 dev {}", end.v4(), end.tunnel.name));
        end.namespace
            .ip(&format!("link set {} up", end.tunnel.name));
    }
    b.add_peer(&a, None);
    a.add_peer(&b, Some(Outside::V4));
    echo(&a.namespace, &b.namespace, b.v4(), [100, 1392]);
}
