//! ```text
//!  a ───┐
//!  b ───┼── bridge      every one of three is the others' peer
//!  c ───┘
//! ```

use std::time::Duration;

use crate::namespace::Namespace;
use crate::pair::{End, Outside};
use crate::traffic::{bulk, echo, reaches};
use crate::tunnel::{Make, Tunnel};

/// Three members on one LAN, all sessions to be had.
fn three() -> (Namespace, [End; 3]) {
    let lan = Namespace::new();
    lan.ip("link add br0 type bridge");
    lan.ip("link set br0 up");
    let ends = [1, 2, 3].map(|number| {
        let namespace = Namespace::new();
        namespace.ip(&format!(
            "link add eth0 type veth peer name p{number} netns {}",
            lan.name
        ));
        lan.ip(&format!("link set p{number} master br0 up"));
        namespace.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        End::on(namespace, Make::Meshwire, number)
    });
    for end in &ends {
        for peer in ends.iter().filter(|peer| peer.v4() != end.v4()) {
            end.add_peer(peer, Some(Outside::V4));
        }
        end.up(1420);
    }
    (lan, ends)
}

#[test]
fn each_of_three_reaches_both_others_at_the_same_time() {
    let (_lan, ends) = three();
    std::thread::scope(|scope| {
        for from in &ends {
            for to in ends.iter().filter(|to| to.v4() != from.v4()) {
                scope.spawn(|| {
                    echo(&from.namespace, &to.namespace, to.v4(), [10, 1000, 1392]);
                    bulk(&from.namespace, &to.namespace, to.v6(), 1 << 20);
                });
            }
        }
    });
}

#[test]
fn a_member_cannot_speak_for_another() {
    let (_lan, [a, b, c]) = three();
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    echo(&c.namespace, &b.namespace, b.v4(), [100]);

    // c loses its address to a, which has no right to it.
    let address = c.v4();
    c.namespace
        .ip(&format!("addr del {address}/24 dev {}", c.tunnel.name));
    a.namespace
        .ip(&format!("addr add {address}/32 dev {}", a.tunnel.name));
    a.namespace.ip(&format!(
        "route replace {}/32 dev {} src {address}",
        b.v4(),
        a.tunnel.name
    ));
    let span = Duration::from_millis(500);
    assert!(!reaches(&a.namespace, &b.namespace, b.v4(), span));

    a.namespace
        .ip(&format!("route del {}/32 dev {}", b.v4(), a.tunnel.name));
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
}

#[test]
fn allowed_ips_that_move_to_another_peer_take_the_traffic_with_them() {
    let (_lan, [a, b, c]) = three();
    echo(&a.namespace, &b.namespace, b.v4(), [100]);
    let moved = b.v4();
    b.namespace
        .ip(&format!("addr del {moved}/24 dev {}", b.tunnel.name));
    c.namespace
        .ip(&format!("addr add {moved}/32 dev {}", c.tunnel.name));
    let key = |end: &Tunnel| end.public_key.clone();
    a.tunnel.wg(&format!(
        "peer {} allowed-ips {},{moved}/32",
        key(&c.tunnel),
        c.v4()
    ));
    echo(&a.namespace, &c.namespace, moved, [100]);
}
