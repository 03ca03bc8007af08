//! What the units in `deploy/systemd` leave to meshd is enough for its work.
//!
//! ```text
//! deploy/systemd/*.service ── CapabilityBoundingSet, NoNewPrivileges ──▶ setpriv ──▶ the real programs
//! ```
//!
//! The rest of the sandbox is the service manager's; `tools/tidy` has it read the units.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use lab::{End as _, Service};
use netns::{Mesh, Traffic, await_fact, await_settled, await_summary};

/// How long a program may take to do its work again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The capabilities that a unit leaves, as `setpriv` wants them.
fn capabilities(unit: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy/systemd")
        .join(unit);
    let text = fs::read_to_string(file).expect("the repository has the unit");
    assert!(text.contains("\nNoNewPrivileges=yes\n"), "{unit}");
    let mut sets = text
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set = sets.next().expect("the unit names its capabilities");
    let added = set.split_whitespace().map(|name| {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        format!(",+{}", name.to_lowercase())
    });

    format!("-all{}", added.collect::<String>())
}

/// A folder of programs that give up what a unit does not leave them, and become the real ones.
fn confined(unit: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    let near = own.ancestors().nth(2).map(Path::to_owned);
    let real: PathBuf = std::env::var_os("MESHD_BIN_DIR")
        .map(Into::into)
        .or(near)
        .unwrap_or_default();
    let folder = std::env::temp_dir().join(format!("confined{}-{unit}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the programs");
    for program in ["meshd", "meshwire", "meshctl"] {
        let text = format!(
            "#!/bin/sh\nexec setpriv --no-new-privs --inh-caps=-all --bounding-set={} {} \"$@\"\n",
            capabilities(unit),
            real.join(program).display()
        );
        let file = folder.join(program);
        fs::write(&file, text).expect("a program");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    folder
}

#[test]
fn what_the_units_leave_is_enough_for_an_encrypted_mesh() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    let services = [
        (Service::Server, "meshd-server.service"),
        (Service::Wire, "meshwire.service"),
        (Service::Agent, "meshd.service"),
    ];
    for (service, unit) in services {
        let folder = confined(unit);
        n1.kill(service);
        n1.restart_from(service, &folder);
        fs::remove_dir_all(folder).expect("the programs are not needed any more");
    }
    await_fact("n1 has its tunnel again", PATIENCE, || {
        let said = n1.run(
            "sh",
            &["-c", "wg show wireguard.cali latest-handshakes 2>&1; true"],
        );
        let shaken = said
            .lines()
            .filter(|line| !line.ends_with("\t0") && line.contains('\t'));
        (shaken.count() == 2).then_some(()).ok_or(said)
    });
    await_summary(&n1, "Enforced", PATIENCE);
    await_settled(&n1, PATIENCE);
    traffic.assert_alive();

    // A pod's interface is made in another network namespace, under settings of its own.
    let pod = mesh.add_pod("n1", "default/late");
    pod.ping(&mesh.node("n2").pod());
    mesh.delete_pod(&pod);
}

#[test]
fn what_its_unit_leaves_is_enough_for_the_guard() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    n1.kill(Service::Agent);
    let guard = || {
        n1.run("nft", &["list", "ruleset"])
            .contains("chain barrier")
    };
    n1.run("nft", &["delete", "table", "inet", "meshd"]);
    n1.run("ip", &["route", "flush", "table", "1"]);
    assert!(!guard());
    let folder = confined("meshd-guard.service");

    n1.run(&folder.join("meshd").display().to_string(), &["guard"]);

    fs::remove_dir_all(folder).expect("the programs are not needed any more");
    assert!(guard());
    let routes = n1.run("ip", &["route", "show", "table", "1"]);
    assert!(routes.contains("unreachable"), "{routes}");
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
}
