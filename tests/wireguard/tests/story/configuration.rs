//! What `wg` says, and what comes back, at the edges.

use std::fmt::Write;
use std::net::UdpSocket;
use std::time::Duration;

use wireguard::{Device, Keys, Make, Space, run, stories};

stories! { alone:
    one_peer_may_have_very_many_allowed_ips;
    many_peers_keep_their_own_allowed_ips;
    the_last_of_many_peers_is_not_cut;
    a_peer_without_allowed_ips_stands_before_one_with_many;
    keys_are_told_as_they_were_set_and_taken_away;
    a_device_is_never_its_own_peer;
    a_private_key_is_told_in_its_clamped_form;
    networks_within_networks_are_kept_and_replaced;
    points_of_low_order_are_never_spoken_to;
    a_device_that_is_not_there_is_said_not_to_be;
}

fn device(make: Make) -> (Device, Space) {
    let space = Space::new();
    (Device::bare(make, &space), space)
}

fn configure(device: &Device, text: &str) {
    device
        .verb("setconf", "/dev/stdin", text)
        .unwrap_or_else(|error| panic!("{error}"));
}

fn one_peer_may_have_very_many_allowed_ips(make: Make) {
    let (device, _space) = device(make);
    let keys = Keys::generate();
    let mut text = format!(
        "[Interface]\nPrivateKey={}\n[Peer]\nPublicKey={}\n",
        keys.private,
        Keys::generate().public
    );
    for a in 1..=255 {
        for b in 0..=255 {
            writeln!(text, "AllowedIPs={a}.{b}.0.0/16,{a:x}::{b:x}/128").unwrap();
        }
    }
    configure(&device, &text);
    let told = device.show("allowed-ips");
    assert_eq!(told.split_whitespace().count(), 1 + 255 * 256 * 2);
}

fn many_peers_keep_their_own_allowed_ips(make: Make) {
    let (device, _space) = device(make);
    let mut text = String::from("[Interface]\n");
    let mut wanted = std::collections::BTreeMap::new();
    for a in 1..=40 {
        let key = Keys::generate().public;
        writeln!(text, "[Peer]\nPublicKey={key}").unwrap();
        let networks: std::collections::BTreeSet<_> =
            (1..=52).map(|b| format!("{a}.{b}.0.0/16")).collect();
        for network in &networks {
            writeln!(text, "AllowedIPs={network}").unwrap();
        }
        wanted.insert(key, networks);
    }
    configure(&device, &text);
    let told = device.show("allowed-ips");
    let told: std::collections::BTreeMap<_, _> = told
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().unwrap(), words.collect())
        })
        .collect();
    assert_eq!(told, wanted);
}

fn the_last_of_many_peers_is_not_cut(make: Make) {
    let (device, _space) = device(make);
    let mut text = String::new();
    for _ in 0..29 {
        writeln!(text, "[Peer]\nPublicKey={}", Keys::generate().public).unwrap();
    }
    let last = Keys::generate().public;
    writeln!(
        text,
        "[Peer]\nPublicKey={last}\nAllowedIPs=255.2.3.4/32,abcd::255/128"
    )
    .unwrap();
    configure(&device, &text);
    let told = device.verb("showconf", "", "").unwrap();
    assert_eq!(told.matches("[Peer]").count(), 30);
    assert!(told.contains("255.2.3.4/32") && told.contains("abcd::255/128"));
    assert_eq!(
        device.of_peer("allowed-ips", &last).as_deref(),
        Some("255.2.3.4/32 abcd::255/128")
    );
}

fn a_peer_without_allowed_ips_stands_before_one_with_many(make: Make) {
    let (device, _space) = device(make);
    let (none, many) = (Keys::generate().public, Keys::generate().public);
    device.wg(&format!("peer {none}"));
    let networks: Vec<_> = (1..=197)
        .map(|number| format!("abcd::{number:x}"))
        .collect();
    device.wg(&format!("peer {many} allowed-ips {}", networks.join(",")));
    assert_eq!(
        device.of_peer("allowed-ips", &none).as_deref(),
        Some("(none)")
    );
    assert_eq!(
        device
            .of_peer("allowed-ips", &many)
            .unwrap()
            .split_whitespace()
            .count(),
        197
    );
}

fn keys_are_told_as_they_were_set_and_taken_away(make: Make) {
    let (mut device, _space) = device(make);
    let (keys, peer, secret) = (Keys::generate(), Keys::generate().public, run("wg genpsk"));
    device.set_keys(&keys);
    device.wg_with(&format!("peer {peer} preshared-key /dev/stdin"), &secret);
    assert_eq!(device.show("private-key").trim(), keys.private);
    assert_eq!(
        device.of_peer("preshared-keys", &peer).as_deref(),
        Some(secret.trim())
    );
    device.wg(&format!(
        "private-key /dev/null peer {peer} preshared-key /dev/null"
    ));
    assert_eq!(device.show("private-key").trim(), "(none)");
    assert_eq!(
        device.of_peer("preshared-keys", &peer).as_deref(),
        Some("(none)")
    );
}

fn a_device_is_never_its_own_peer(make: Make) {
    let (mut device, _space) = device(make);
    let (one, two) = (Keys::generate(), Keys::generate());
    device.set_keys(&one);
    device.wg(&format!("peer {}", two.public));
    // It becomes whom it knew …
    device.set_keys(&two);
    assert_eq!(device.show("public-key").trim(), two.public);
    assert_eq!(device.show("peers"), "");
    // … and does not take itself for a peer …
    device.wg(&format!("peer {}", two.public));
    assert_eq!(device.show("peers"), "");
    // … until it is somebody else.
    device.set_keys(&one);
    device.wg(&format!("peer {}", two.public));
    assert_eq!(device.show("peers").trim(), two.public);
}

fn a_private_key_is_told_in_its_clamped_form(make: Make) {
    let (device, _space) = device(make);
    // `/` is the digit of 63, `+` that of 62; the lowest bits of the first byte are always 0.
    let keys = Keys::generate();
    let rest = &keys.private[2..];
    device.wg_with("private-key /dev/stdin", &format!("//{rest}"));
    let told = device.show("private-key");
    let digits = decoded(&told);
    assert_eq!(digits[0] & 7, 0, "{told}");
    assert_eq!(digits[0] & 0xf8, 0xf8, "{told}");
    assert_eq!(digits[31] & 0xc0, 0x40);
}

/// Bytes of a key as `wg` writes it.
fn decoded(base64: &str) -> Vec<u8> {
    let value = |digit: u8| -> u32 {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        alphabet
            .iter()
            .position(|known| *known == digit)
            .unwrap_or(0) as u32
    };
    let mut bytes = Vec::new();
    for four in base64.trim().as_bytes().chunks(4) {
        let bits = four.iter().fold(0, |bits, digit| bits << 6 | value(*digit));
        bytes.extend(bits.to_be_bytes()[1..].iter());
    }
    bytes
}

fn networks_within_networks_are_kept_and_replaced(make: Make) {
    let (device, _space) = device(make);
    let peer = Keys::generate().public;
    for (networks, wanted) in [
        (
            "0.0.0.0/0,10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16",
            5,
        ),
        ("0.0.0.0/0", 1),
        ("::/0,1700::/111,5000::/4,e000::/37,9000::/75", 5),
        ("::/0", 1),
    ] {
        device.wg(&format!("peer {peer} allowed-ips {networks}"));
        let told = device.of_peer("allowed-ips", &peer).unwrap();
        assert_eq!(told.split_whitespace().count(), wanted, "{told}");
    }
    device.wg(&format!("peer {peer} remove"));
    assert_eq!(device.show("peers"), "");
}

fn points_of_low_order_are_never_spoken_to(make: Make) {
    let (mut device, space) = device(make);
    let listening = space.inside(|| UdpSocket::bind("127.0.0.1:1111").unwrap());
    listening
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    device.set_keys(&Keys::generate());
    // All of Curve25519's (<https://cr.yp.to/ecdh.html#validate>), those below the prime.
    for point in [
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
        "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
        "7P///////////////////////////////////////38=",
        "7f///////////////////////////////////////38=",
        "7v///////////////////////////////////////38=",
    ] {
        device.wg(&format!(
            "peer {point} endpoint 127.0.0.1:1111 persistent-keepalive 1"
        ));
    }
    device.up(&[]);
    let heard = listening.recv(&mut [0; 256]);
    assert!(heard.is_err(), "{heard:?}");
    // A peer with a key that is one is spoken to at once.
    device.wg(&format!(
        "peer {} endpoint 127.0.0.1:1111 persistent-keepalive 1",
        Keys::generate().public
    ));
    listening
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(listening.recv(&mut [0; 256]).unwrap(), 148);
}

fn a_device_that_is_not_there_is_said_not_to_be(make: Make) {
    let (device, space) = device(make);
    assert!(device.verb("show", "", "").is_ok());
    let name = device.name.clone();
    drop(device);
    let gone = || space.attempt(&format!("wg show {name}")).is_err();
    wireguard::until("it is gone", gone);
    assert!(
        space
            .attempt(&format!("wg set {name} listen-port 1"))
            .is_err()
    );
}
