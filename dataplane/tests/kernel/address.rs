//! Addresses against `ip addr`.

use dataplane::{AddressTarget, Target};
use model::{Change, InterfaceName};

use crate::{
    contract::{Case, check},
    namespace::{alone, ip, veth},
};

#[test]
fn addresses_keep_the_contract() {
    alone(|| {
        veth("wg0", "peer0");
        check(Case::<AddressTarget> {
            make: Box::new(target),
            rows: ["10.0.0.1/32", "fd00::1/128"]
                .map(|address| (key(address), ()))
                .into(),
            changed: None,
            spoil: Box::new(|| {
                ip("addr del 10.0.0.1/32 dev wg0");
            }),
            recognises: true,
            removes: true,
            print: Box::new(|| ip("addr show dev wg0")),
        });
    });
}

#[test]
fn addresses_bring_no_routes_of_their_own_and_are_usable_at_once() {
    alone(|| {
        veth("wg0", "peer0");
        // Link-local ones are the kernel's own, and come in their own time.
        let routes = || {
            let v6 = ip("-6 route show table main");
            let v6: Vec<_> = v6
                .lines()
                .filter(|line| !line.starts_with("fe80"))
                .collect();

            ip("route show table main") + &v6.concat()
        };
        let before = routes();
        let mut target = target();

        target
            .apply(&["10.0.0.1/26", "fd00::1/122"].map(|net| Change::Set(key(net), ())))
            .unwrap();

        assert_eq!(routes(), before);
        assert!(!ip("-6 addr show dev wg0").contains("fd00::1/122 scope global tentative"));
    });
}

#[test]
fn addresses_of_other_devices_are_not_ours() {
    alone(|| {
        veth("eth0", "peer0");
        ip("addr add 192.0.2.1/24 dev eth0");

        assert!(target().observe().unwrap().is_empty());
    });
}

#[test]
fn an_address_whose_device_is_missing_waits() {
    alone(|| {
        let absent = target()
            .apply(&[Change::Set(key("10.0.0.1/32"), ())])
            .unwrap();

        assert_eq!(absent.len(), 1);
        assert_eq!(absent[0].reason, "device wg0 is not there");
    });
}

fn target() -> AddressTarget {
    let mut target = AddressTarget::open().unwrap();
    target.own([device()]);

    target
}

fn device() -> InterfaceName {
    "wg0".parse().unwrap()
}

fn key(address: &str) -> (InterfaceName, ipnet::IpNet) {
    (device(), address.parse().unwrap())
}
