//! Settings against `/proc/sys`.

use std::fs;

use dataplane::{SysctlTarget, Target};
use model::Change;

use crate::{
    contract::{Case, check},
    namespace::{alone, veth},
};

const FORWARD: &str = "net/ipv4/ip_forward";
const LOOSE: &str = "net/ipv4/conf/wg.cali/rp_filter";

#[test]
fn sysctls_keep_the_contract() {
    alone(|| {
        veth("wg.cali", "peer0");
        check(Case::<SysctlTarget> {
            make: Box::new(SysctlTarget::new),
            rows: vec![(FORWARD.into(), "1".into()), (LOOSE.into(), "2".into())],
            changed: Some((LOOSE.into(), "1".into())),
            spoil: Box::new(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()),
            recognises: false,
            removes: true,
            print: Box::new(|| format!("{}{}", read(FORWARD), read(LOOSE))),
        });
    });
}

#[test]
fn a_setting_of_a_device_that_is_missing_waits() {
    alone(|| {
        let mut target = SysctlTarget::new();

        let absent = target
            .apply(&[Change::Set(LOOSE.into(), "2".into())])
            .unwrap();

        assert_eq!(absent.len(), 1);
    });
}

#[test]
fn a_value_that_the_kernel_refuses_is_an_error_that_names_it() {
    alone(|| {
        let mut target = SysctlTarget::new();

        let error = target
            .apply(&[Change::Set(FORWARD.into(), "many".into())])
            .unwrap_err();

        assert_eq!(error.to_string(), "could not write net/ipv4/ip_forward");
    });
}

fn read(key: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{key}")).unwrap()
}
