//! Pods' interfaces against `ip`, and against pings.

use std::{
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use dataplane::{PodTarget, Target};
use model::{Change, PodName, plan::PodInterface};

use crate::{
    contract::{Case, check},
    namespace::{Namespace, alone, attempt, ip, reaches, run, tell, veth},
};

#[test]
fn pods_keep_the_contract() {
    alone(|| {
        let inside = Namespace::new();
        let wanted = row(&inside, "cali1", 1380);
        let path = inside.path().to_owned();
        check(Case::<PodTarget> {
            make: Box::new(|| PodTarget::open().unwrap()),
            rows: vec![(pod("a"), wanted.clone())],
            changed: Some((
                pod("a"),
                PodInterface {
                    mtu: 1280,
                    ..wanted
                },
            )),
            spoil: Box::new(|| {
                ip("link set cali1 mtu 1300");
            }),
            recognises: false,
            removes: true,
            print: Box::new(move || {
                let outside = ip("-d link show cali1") + &ip("addr show cali1");
                let within = |what: &str| run("nsenter", &format!("--net={path} ip {what}"));

                // The kernel's own link-local address takes its time.
                let addresses = within("addr show eth0").replace(" tentative", "");

                outside
                    + &addresses
                    + &within("route")
                    + &within("-6 route")
                    + &within("neigh")
                    + &within("-6 neigh")
            }),
        });
    });
}

#[test]
fn a_pod_reaches_its_host_by_both_families_without_asking_for_a_neighbour() {
    alone(|| {
        veth("eth0", "peer0");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
        let inside = Namespace::new();
        let mut target = PodTarget::open().unwrap();

        set(&mut target, "a", row(&inside, "cali1", 1380));
        ip("route add 10.0.0.5/32 dev cali1");
        ip("-6 route add fd00::5/128 dev cali1");

        reaches("10.0.0.5", &inside);
        reaches("fd00::5", &inside);
        let listeners =
            ["192.0.2.1:7001", "[2001:db8::1]:7001"].map(|at| TcpListener::bind(at).unwrap());
        inside.run(|| {
            for host in ["192.0.2.1:7001", "[2001:db8::1]:7001"] {
                let patience = Duration::from_secs(2);
                TcpStream::connect_timeout(&host.parse().unwrap(), patience).unwrap();
            }
            let link = ip("link show");
            assert!(link.contains("eth0") && link.contains("mtu 1380"), "{link}");
            let neighbours = ip("neigh");
            assert!(neighbours.contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
            assert!(
                neighbours.contains("fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee")
            );
            assert!(ip("route").starts_with("default via 169.254.1.1 dev eth0"));
        });
        drop(listeners);
        assert!(ip("link show cali1").contains("alias meshd pod default/a"));
    });
}

#[test]
fn a_pod_that_has_gone_harms_no_other() {
    alone(|| {
        let gone = Namespace::new();
        let lost = row(&gone, "cali1", 1380);
        drop(gone);
        let inside = Namespace::new();
        let mut target = PodTarget::open().unwrap();
        let changes = [
            Change::Set(pod("gone"), lost),
            Change::Set(pod("here"), row(&inside, "cali2", 1380)),
        ];

        let absent = target.apply(&changes).unwrap();

        assert_eq!(
            absent.iter().map(|each| &each.key).collect::<Vec<_>>(),
            [&pod("gone")]
        );
        assert!(
            absent[0]
                .reason
                .starts_with("default/gone: could not open the namespace")
        );
        assert!(attempt("ip", "link show cali2").status.success());
    });
}

#[test]
fn an_address_that_a_pod_no_longer_has_is_taken_away_and_the_rest_stays() {
    alone(|| {
        let inside = Namespace::new();
        let mut target = PodTarget::open().unwrap();
        set(&mut target, "a", row(&inside, "cali1", 1380));
        let index = ip("-o link show cali1");

        let addresses = ["10.0.0.6/32", "fd00::5/128"]
            .map(|net| net.parse().unwrap())
            .into();
        set(
            &mut target,
            "a",
            PodInterface {
                addresses,
                ..row(&inside, "cali1", 1380)
            },
        );

        assert_eq!(ip("-o link show cali1"), index);
        let addresses = inside.run(|| ip("addr show eth0"));
        assert!(!addresses.contains("10.0.0.5") && addresses.contains("10.0.0.6/32"));
        assert!(addresses.contains("fd00::5/128"));
    });
}

#[test]
fn a_pod_made_again_under_its_name_gets_a_new_pair_in_its_new_namespace() {
    alone(|| {
        let (old, new) = (Namespace::new(), Namespace::new());
        let mut target = PodTarget::open().unwrap();
        set(&mut target, "a", row(&old, "cali1", 1380));

        set(&mut target, "a", row(&new, "cali1", 1380));
        assert!(new.run(|| ip("addr show eth0")).contains("10.0.0.5/32"));
        assert!(!old.run(|| ip("link")).contains("eth0"));

        set(&mut target, "a", row(&new, "cali2", 1380));
        assert!(!ip("link").contains("cali1"), "{}", ip("link"));
        assert!(new.run(|| ip("addr show eth0")).contains("10.0.0.5/32"));
    });
}

#[test]
fn two_hundred_pods_are_made_and_adopted_in_a_moment() {
    alone(|| {
        let inside = Namespace::new();
        let changes: Vec<_> = (0..200)
            .map(|index| {
                let wanted = PodInterface {
                    inside: format!("eth{index}").parse().unwrap(),
                    addresses: vec![format!("10.0.0.{index}/32").parse().unwrap()],
                    ..row(&inside, &format!("cali{index}"), 1380)
                };

                Change::Set(pod(&format!("p{index}")), wanted)
            })
            .collect();

        let started = Instant::now();
        assert_eq!(PodTarget::open().unwrap().apply(&changes).unwrap(), []);
        let (made_in, started) = (started.elapsed(), Instant::now());
        let mut second = PodTarget::open().unwrap();
        assert_eq!(second.observe().unwrap().len(), 200);
        assert_eq!(second.apply(&changes).unwrap(), []);
        tell(&format!(
            "200 pods: made in {made_in:?}, adopted in {:?}",
            started.elapsed()
        ));

        let before = ip("-o link");
        let unsets: Vec<_> = (0..200)
            .map(|index| Change::Unset(pod(&format!("p{index}"))))
            .collect();
        assert!(before.contains("cali199"));
        second.apply(&unsets).unwrap();
        assert!(!ip("-o link").contains("cali"));
    });
}

#[test]
fn paths_that_are_no_pods_namespace_are_refused_and_change_nothing() {
    alone(|| {
        veth("cali7", "peer7");
        let pipe = tempfile::TempDir::new().unwrap();
        let pipe = pipe.path().join("pipe").display().to_string();
        run("mkfifo", &pipe);
        let before = ip("addr") + &ip("route show table all");
        let inside = Namespace::new();

        for (path, reason) in [
            ("/proc/thread-self/ns/net", "is the machine's own namespace"),
            ("/proc/thread-self/ns/mnt", "could not enter the namespace"),
            ("/etc/passwd", "could not enter the namespace"),
            ("/dev/zero", "could not"),
            (&*pipe, "could not"),
        ] {
            let wanted = PodInterface {
                netns: path.into(),
                ..row(&inside, "cali1", 1380)
            };
            let absent = PodTarget::open()
                .unwrap()
                .apply(&[Change::Set(pod("a"), wanted)])
                .unwrap();

            assert_eq!(absent.len(), 1, "{path}");
            tell(&absent[0].reason);
            assert!(absent[0].reason.contains(reason) || path != "/proc/thread-self/ns/net");
            assert_eq!(ip("addr") + &ip("route show table all"), before, "{path}");
        }
    });
}

#[test]
fn devices_that_only_look_like_workloads_are_not_ours() {
    alone(|| {
        veth("cali9", "peer9");
        let mut target = PodTarget::open().unwrap();

        assert!(target.observe().unwrap().is_empty());
    });
}

pub(crate) fn row(inside: &Namespace, host: &str, mtu: u32) -> PodInterface {
    PodInterface {
        host: host.parse().unwrap(),
        inside: "eth0".parse().unwrap(),
        netns: inside.path().to_owned(),
        addresses: ["10.0.0.5/32", "fd00::5/128"]
            .map(|net| net.parse().unwrap())
            .into(),
        mtu,
        mac: None,
        forwards: false,
        limits: model::pod::Limits::default(),
    }
}

pub(crate) fn pod(name: &str) -> PodName {
    PodName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn set(target: &mut PodTarget, name: &str, row: PodInterface) {
    assert_eq!(target.apply(&[Change::Set(pod(name), row)]).unwrap(), []);
}
