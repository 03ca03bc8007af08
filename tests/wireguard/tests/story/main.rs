//! The story that the Linux kernel tells of its WireGuard (`tools/testing/selftests/wireguard/netns.sh`), told again in
//! our own way, for every implementation. Which of its promises is kept where:
//!
//! * counters and handshake times are right: `outside::what_one_end_sends_the_other_counts`
//! * ping, TCP, UDP, many TCP streams; either family inside and outside; usual and huge MTU:
//!   `outside::either_family_carries_either_family`
//! * padding respects the route's MTU: `mtu::padding_stays_within_the_route_s_mtu` (the kernel's alone), else the
//!   device's: `mtu::padding_stays_within_the_device_s_mtu` (a TUN device is not told which route a packet took)
//! * fragments, outside and inside: `mtu::a_packet_larger_than_the_way_arrives_in_fragments`
//! * roaming, both families: `outside::who_moves_is_followed`
//! * a source that belongs to another is dropped, and still shows where the peer is:
//!   `outside::a_source_that_belongs_to_another_is_dropped`
//! * a new private key is used at once: `outside::a_new_private_key_is_used_at_once`; under traffic:
//!   `keys::keys_change_under_traffic`
//! * a tunnel in a tunnel: `nested::a_tunnel_runs_in_a_tunnel`; a loop of tunnels: `nested::a_loop_of_tunnels_ends`
//! * a peer behind a peer of the same device, and behind itself: `nested::a_peer_behind_another_peer_is_reached`,
//!   `nested::a_peer_behind_itself_does_no_harm`
//! * NAT, its time limit, persistent keepalive: `nat::a_keepalive_holds_a_translation_open`; rebinding:
//!   `nat::a_peer_is_followed_to_its_new_translation`
//! * sockets bound to the device, marks that change the route: `nat::bound_sockets_and_marked_packets_pass`
//! * wg-quick's policy routing: `nat::a_default_route_through_the_tunnel_does_not_swallow_the_tunnel`; wg-quick
//!   itself: `tests/quick`
//! * ICMP errors take the way back through a translation:
//!   `nat::who_sends_to_nobody_is_told_so_through_the_translation`; to the machine itself, both families, no
//!   endpoint too: `marks::who_sends_to_nobody_is_told_so`
//! * congestion marks and haste, outside and inside (beyond the kernel's story): `marks`
//! * sticky source address, and not too sticky: `sticky`
//! * keepalives when a device comes up, or gets its key late: `keepalive`
//! * answers that fill many messages, edges of the configuration: `configuration`
//! * points of low order are never spoken to: `configuration::points_of_low_order_are_never_spoken_to`
//! * what a namespace held goes with it: `outside::a_namespace_that_goes_takes_its_tunnels_along`
//!
//! What a device of user space does not have: the kernel's own route of a packet (above); word of a route that gets
//! better while the old one stays (`sticky::a_better_route_takes_over` says what each does); statistics of the
//! device that count encrypted bytes (a TUN device counts those inside, so the counters are asked of `wg`); word of a
//! new MTU or state in a namespace that it was moved to after its birth. It keeps its socket where it was born, as
//! the kernel's does.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod configuration;
mod keepalive;
mod keys;
mod marks;
mod mtu;
mod nat;
mod nested;
mod outside;
mod sticky;
mod topology;
