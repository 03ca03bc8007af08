//! firewalld itself beside meshd: its zones let our packets pass, and are its administrator's.
//!
//! ```text
//! ┌─ n1 ────────────────┐            ┌─ n2 ────────┐
//! │ default/a           │            │ default/c   │     dual-stack, encrypted
//! │ a bus, firewalld    │════════════│             │
//! └─────────────────────┘            └─────────────┘
//! ```

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lab::{End as _, Family, Node, Plaintext, Service};
use netns::{
    Firewalld, Mesh, Traffic, await_fact, await_firewall, programs, set_foreign_firewalls,
};

/// How long an answer to a change may take, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is in the zone `trusted` after a mesh was let pass.
const OURS: [&str; 2] = ["cali+", "wireguard.cali"];

fn members(firewalld: &Firewalld, zone: &str) -> Vec<String> {
    let members = firewalld.list(zone, "interfaces");
    let mut members: Vec<String> = members.split_whitespace().map(str::to_owned).collect();
    members.sort();
    members
}

/// Waits until both ways are open.
fn await_opened(firewalld: &Firewalld, zone: &str) {
    await_fact("firewalld lets the mesh pass", PATIENCE, || {
        let (members, ports) = (members(firewalld, "trusted"), firewalld.list(zone, "ports"));
        let has = |wanted: &&str| members.iter().any(|member| member == wanted);
        if OURS.iter().all(has) && ports == "51820/udp" {
            Ok(())
        } else {
            Err(format!("trusted: {members:?}, ports of {zone}: {ports:?}"))
        }
    });
}

/// A mesh whose n1 has firewalld, of which it only reports what it drops.
fn beside_firewalld() -> (Mesh, Node, Firewalld) {
    let mesh = Mesh::enforced("dual-stack");
    set_foreign_firewalls(&mesh, "Report");
    let n1 = mesh.node("n1");
    let firewalld = Firewalld::start(&n1);
    await_firewall(&n1, "the drops are named", PATIENCE, |text| {
        text.contains("table inet firewalld chain") && text.contains("WireGuard packets from peers")
    });
    (mesh, n1, firewalld)
}

/// The lines that only one of two texts has, in order.
fn difference(before: &str, after: &str) -> Vec<String> {
    let only = |a: &str, b: &str, mark: &str| -> Vec<String> {
        let lines = a.lines().filter(|line| !b.lines().any(|l| l == *line));
        lines
            .map(|line| format!("{mark} {}", line.trim()))
            .collect()
    };
    let mut lines = [only(before, after, "-"), only(after, before, "+")].concat();
    lines.sort();
    lines
}

#[test]
fn zones_of_firewalld_let_the_mesh_pass_and_are_given_back_as_they_were() {
    let (mesh, n1, firewalld) = beside_firewalld();
    firewalld.cmd(&["--set-default-zone=drop"]);
    // firewalld makes a zone's chains when it gets its first member, and keeps them.
    firewalld.cmd(&["--zone=trusted", "--add-interface=somebody0"]);
    firewalld.cmd(&["--zone=public", "--add-port=9000/udp"]);
    let before = firewalld.all();

    set_foreign_firewalls(&mesh, "Open");
    await_opened(&firewalld, "drop");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    let traffic = Traffic::between_two(&mesh);
    traffic.assert_alive();
    let changed = difference(&before, &firewalld.all());
    let is_ours = |line: &&String| {
        let ours = [
            "cali+",
            "cali*",
            "wireguard.cali",
            "51820",
            "interfaces: somebody0",
        ];
        // Where the zone had no ports.
        ours.iter().any(|word| line.contains(word)) || **line == "- ports:"
    };
    assert!(changed.iter().all(|line| is_ours(&line)), "{changed:#?}");

    set_foreign_firewalls(&mesh, "Report");
    await_fact("firewalld is as it was", PATIENCE, || {
        match difference(&before, &firewalld.all()) {
            lines if lines.is_empty() => Ok(()),
            lines => Err(format!("{lines:#?}")),
        }
    });
    await_firewall(&n1, "the drops are named again", PATIENCE, |text| {
        text.contains(
            "table inet firewalld chain filter_IN_drop drops WireGuard packets from peers",
        )
    });
    drop(traffic);
}

#[test]
fn what_a_reload_or_a_restart_of_firewalld_undid_is_done_again_under_traffic() {
    let (mesh, n1, mut firewalld) = beside_firewalld();
    set_foreign_firewalls(&mesh, "Open");
    await_opened(&firewalld, "public");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    let traffic = Traffic::between_two(&mesh);

    firewalld.cmd(&["--reload"]);
    await_opened(&firewalld, "public");
    Traffic::between_two(&mesh).assert_alive();

    // What an agent did is its successor's.
    n1.kill(Service::Agent);
    n1.restart(Service::Agent);
    firewalld.end();
    firewalld.begin();
    await_opened(&firewalld, "public");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    Traffic::between_two(&mesh).assert_alive();
    traffic.assert_unbroken();

    firewalld.cmd(&["--permanent", "--add-port=51820/udp"]);
    n1.kill(Service::Agent);
    n1.restart(Service::Agent);
    set_foreign_firewalls(&mesh, "Report");
    await_fact("a successor takes it back", PATIENCE, || {
        match members(&firewalld, "trusted") {
            members if members.is_empty() => Ok(()),
            members => Err(format!("{members:?}")),
        }
    });
    await_firewall(&n1, "the drops are named again", PATIENCE, |text| {
        !text.is_empty()
    });
    let ports = firewalld.list("public", "ports");
    assert_eq!(ports, "51820/udp", "what was made permanent stays");
}

#[test]
fn a_bus_that_goes_and_comes_back_is_found_again() {
    let (mesh, n1, mut firewalld) = beside_firewalld();
    set_foreign_firewalls(&mesh, "Open");
    await_opened(&firewalld, "public");
    let traffic = Traffic::between_two(&mesh);

    firewalld.kill_bus();
    let status = n1.ask("/v1/status");
    assert_eq!(status["ready"], true, "{status}");
    traffic.assert_unbroken();
    firewalld.begin_bus();
    firewalld.begin();
    await_opened(&firewalld, "public");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    Traffic::between_two(&mesh).assert_alive();
}

#[test]
fn an_administrator_s_own_choice_is_left_and_named() {
    let (mesh, n1, firewalld) = beside_firewalld();
    firewalld.cmd(&["--zone=dmz", "--add-interface=cali+"]);
    firewalld.cmd(&["--zone=trusted", "--add-interface=wireguard.cali"]);
    firewalld.cmd(&["--zone=public", "--add-port=51800-51900/udp"]);
    let before = firewalld.all();

    set_foreign_firewalls(&mesh, "Open");
    await_fact("the choice is named", PATIENCE, || {
        let status = n1.ask("/v1/status").to_string();
        if status.contains("cali+ belongs to firewalld's zone dmz") {
            Ok(())
        } else {
            Err(status)
        }
    });
    let status = n1.ask("/v1/status");
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(difference(&before, &firewalld.all()), [""; 0]);

    set_foreign_firewalls(&mesh, "Report");
    await_fact("nothing is asked for any more", PATIENCE, || {
        let status = n1.ask("/v1/status").to_string();
        if status.contains("firewalld's zone dmz") {
            Err(status)
        } else {
            Ok(())
        }
    });
    assert_eq!(difference(&before, &firewalld.all()), [""; 0]);
}

#[test]
fn a_firewalld_that_hangs_holds_up_nobody() {
    let (mesh, n1, firewalld) = beside_firewalld();
    firewalld.freeze();
    set_foreign_firewalls(&mesh, "Open");
    await_fact("firewalld is being asked", PATIENCE, || {
        let status = n1.ask("/v1/status").to_string();
        if status.contains("firewalld") && status.contains("being asked") {
            Ok(())
        } else {
            Err(status)
        }
    });
    let start = Instant::now();
    mesh.add_pod("n1", "default/late");
    let taken = start.elapsed();
    // firewalld is given ten seconds for each answer.
    assert!(taken < Duration::from_secs(5), "a pod took {taken:?}");

    firewalld.thaw();
    await_opened(&firewalld, "public");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
}

#[test]
fn a_member_that_is_taken_off_leaves_firewalld_as_it_was() {
    let (mesh, n1, firewalld) = beside_firewalld();
    firewalld.cmd(&["--zone=trusted", "--add-interface=somebody0"]);
    let before = firewalld.all();
    set_foreign_firewalls(&mesh, "Open");
    await_fact("firewalld lets the mesh pass", PATIENCE, || {
        match members(&firewalld, "trusted") {
            members if members.len() == 3 => Ok(()),
            members => Err(format!("{members:?}")),
        }
    });

    let meshd = programs().join("meshd").display().to_string();
    let listed = n1.run(&meshd, &["uninstall", "--dry-run"]);
    for expected in [
        "openings   cali+ in firewalld's zone trusted",
        "openings   wireguard.cali in firewalld's zone trusted",
        "openings   UDP port 51820 in firewalld's zone public",
    ] {
        assert!(
            listed.contains(expected),
            "{expected:?} is not in\n{listed}"
        );
    }
    mesh.plaintext(Plaintext::Allowed);
    n1.run(&meshd, &["uninstall", "--force"]);
    assert_eq!(difference(&before, &firewalld.all()), [""; 0]);
    let left = n1.run("sh", &["-c", "ls /run/meshd"]);
    assert!(!left.lines().any(|file| file == "firewalld"), "{left}");
}

#[test]
fn an_uninstall_waits_for_a_firewalld_that_hangs_so_long_and_no_longer() {
    let (mesh, n1, firewalld) = beside_firewalld();
    // Whose chains it makes with a zone's first member, and keeps.
    firewalld.cmd(&["--zone=trusted", "--add-interface=somebody0"]);
    let before = firewalld.all();
    set_foreign_firewalls(&mesh, "Open");
    await_opened(&firewalld, "public");
    mesh.plaintext(Plaintext::Allowed);
    let meshd = programs().join("meshd").display().to_string();
    let uninstall = |options: &str| {
        let script = format!("{meshd} uninstall {options} 2>&1; echo $?");
        n1.run("sh", &["-c", &script])
    };

    firewalld.freeze();
    let start = Instant::now();
    let said = uninstall("--force");
    let taken = start.elapsed();
    assert!(said.ends_with("\n1\n"), "{said}");
    assert!(
        said.contains("firewalld") && said.contains("run it again"),
        "{said}"
    );
    // Fifteen seconds for a look; what is taken back has thirty.
    assert!(taken < lab::patience(Duration::from_secs(50)), "{taken:?}");
    let guard = n1.run("nft", &["list", "table", "inet", "meshd"]);
    assert!(
        guard.contains("chain barrier"),
        "what still stands is guarded"
    );

    firewalld.thaw();
    let said = uninstall("--force");
    assert!(said.ends_with("\n0\n"), "{said}");
    assert_eq!(difference(&before, &firewalld.all()), [""; 0]);
}

#[test]
fn a_zone_that_goes_by_source_is_the_administrator_s_and_what_it_drops_is_named() {
    let (mesh, n1, firewalld) = beside_firewalld();
    set_foreign_firewalls(&mesh, "Open");
    await_opened(&firewalld, "public");
    await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    let before = firewalld.list("drop", "ports");
    // Within a zone all is forwarded: that of one block alone stands between pods.
    let IpAddr::V4(pod) = mesh.pod("default/c").address(Family::V4) else {
        panic!("an IPv4 address")
    };
    let [a, b, c, d] = pod.octets();
    let block = format!("{a}.{b}.{c}.{}/26", d & 0xc0);

    for (source, packets) in [
        ("192.0.2.0/24", "WireGuard packets from peers"),
        (block.as_str(), "packets"),
    ] {
        firewalld.cmd(&["--zone=drop", &format!("--add-source={source}")]);
        await_firewall(
            &n1,
            &format!("what is dropped from {source} is named"),
            PATIENCE,
            |text| text.contains("table inet firewalld chain") && text.contains(packets),
        );
        assert_eq!(firewalld.list("drop", "ports"), before);
        firewalld.cmd(&["--zone=drop", &format!("--remove-source={source}")]);
        await_firewall(&n1, "nothing is dropped", PATIENCE, str::is_empty);
    }
    Traffic::between_two(&mesh).assert_alive();
}
