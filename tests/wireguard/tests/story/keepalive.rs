//! A keepalive that was asked for before the device could send it.

use wireguard::{Device, Keys, Make, Space, stories, until};

stories! { alone:
    a_device_that_comes_up_sends_its_keepalives;
    a_device_that_gets_its_key_late_sends_its_keepalives;
}

/// A device with a peer that nobody is, at an address that the machine has a way to.
fn waiting(make: Make, space: &Space) -> (Device, String) {
    space.ip("link add eth0 type veth peer name eth1");
    space.ip("link set eth0 up");
    space.ip("link set eth1 up");
    space.address("eth0", "192.0.2.1/24");
    let device = Device::bare(make, space);
    let peer = Keys::generate().public;
    device.wg(&format!(
        "peer {peer} endpoint 192.0.2.2:1 persistent-keepalive 1"
    ));
    (device, peer)
}

fn sent(device: &Device, peer: &str) -> u64 {
    let text = device.of_peer("transfer", peer).unwrap();
    text.split('\t').nth(1).unwrap().parse().unwrap()
}

fn a_device_that_comes_up_sends_its_keepalives(make: Make) {
    let space = Space::new();
    let (mut device, peer) = waiting(make, &space);
    device.set_keys(&Keys::generate());
    assert_eq!(sent(&device, &peer), 0);
    device.up(&[]);
    // The keepalive needs a session first: what is sent is the handshake.
    until("something is sent", || sent(&device, &peer) >= 148);
}

fn a_device_that_gets_its_key_late_sends_its_keepalives(make: Make) {
    let space = Space::new();
    let (mut device, peer) = waiting(make, &space);
    device.up(&[]);
    assert_eq!(sent(&device, &peer), 0);
    device.set_keys(&Keys::generate());
    until("something is sent", || sent(&device, &peer) >= 148);
}
