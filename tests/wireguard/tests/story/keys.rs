//! Keys that change while a connection is in use.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wireguard::wait::PATIENCE;
use wireguard::{Keys, Make, Space, run, stories, until};

use crate::topology::Cable;

stories! {
    keys_change_under_traffic;
}

/// A TCP connection on which numbers go back and forth until somebody says enough.
fn talk(client: &Space, server: &Space, to: &str, said: &AtomicU64, enough: &AtomicBool) {
    let listener = server.inside(|| TcpListener::bind((to, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut number = [0; 8];
            while stream.read_exact(&mut number).is_ok() {
                stream.write_all(&number).unwrap();
            }
        });
        let mut stream = client.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while !enough.load(Ordering::Relaxed) {
            let number = said.load(Ordering::Relaxed) + 1;
            stream.write_all(&number.to_le_bytes()).unwrap();
            let mut back = [0; 8];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(u64::from_le_bytes(back), number);
            said.store(number, Ordering::Relaxed);
        }
    });
}

fn keys_change_under_traffic(a: Make, b: Make) {
    let mut lab = Cable::new(a, b);
    lab.b_goes_to("192.0.2.1:6001");
    let (said, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let (left, right) = (&lab.left, &lab.right);
    let (device_a, device_b) = (&mut lab.a, &mut lab.b);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| talk(left, right, "10.7.0.2", &said, &enough));
        let goes_on = || {
            let before = said.load(Ordering::Relaxed);
            until("the connection goes on", || {
                talking.is_finished() || said.load(Ordering::Relaxed) > before + 20
            });
            assert!(!talking.is_finished(), "the connection broke");
        };
        goes_on();

        // A preshared key comes, changes, and goes, on one end a moment before the other.
        for _ in 0..2 {
            let secret = run("wg genpsk");
            device_a.wg_with(
                &format!("peer {} preshared-key /dev/stdin", device_b.keys.public),
                &secret,
            );
            device_b.wg_with(
                &format!("peer {} preshared-key /dev/stdin", device_a.keys.public),
                &secret,
            );
            goes_on();
        }
        device_a.wg_with(
            &format!("peer {} preshared-key /dev/null", device_b.keys.public),
            "",
        );
        device_b.wg_with(
            &format!("peer {} preshared-key /dev/null", device_a.keys.public),
            "",
        );
        goes_on();

        // The private key of one end, which the other learns first.
        let (old, new) = (device_a.keys.clone(), Keys::generate());
        let peer = "endpoint 192.0.2.1:6001 allowed-ips 10.7.0.1/32,fd07::1/128";
        device_b.wg(&format!("peer {} {peer}", new.public));
        device_a.set_keys(&new);
        device_b.wg(&format!("peer {} remove", old.public));
        goes_on();
        assert!(device_b.handshake(device_a) > 0);
        enough.store(true, Ordering::Relaxed);
    });
}
