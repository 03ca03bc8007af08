//! The units of `deploy/systemd`, as systemd itself reads them.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a repository that cannot be read fails its tests; systemd's own tool is asked"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// What `systemd-analyze security` may say at most, in tenths: how much a service could do if somebody
/// took it over. The agent enters pods' namespaces and changes the machine's settings.
const EXPOSURES: [(&str, u32); 4] = [
    ("meshd.service", 55),
    ("meshwire.service", 45),
    ("meshd-guard.service", 42),
    ("meshd-server.service", 25),
];

/// A root folder of a machine with the units, stand-ins of the programs, and systemd's own units.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("units{}-{name}", std::process::id()));
        let units = root.join("etc/systemd/system");
        let programs = root.join("usr/local/bin");
        for folder in [&units, &programs, &root.join("usr/lib/systemd")] {
            fs::create_dir_all(folder).unwrap();
        }
        for program in ["meshd", "meshwire"] {
            fs::write(programs.join(program), "").unwrap();
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(programs.join(program), mode).unwrap();
        }
        for (unit, _) in EXPOSURES {
            fs::copy(folder().join(unit), units.join(unit)).unwrap();
        }
        copy_folder(
            Path::new("/usr/lib/systemd/system"),
            &root.join("usr/lib/systemd/system"),
        );

        Self(root)
    }

    /// Asks systemd about a unit; returns whether it is content, and what it says.
    fn analyze(&self, arguments: &[&str], unit: &str) -> (bool, String) {
        let asked = Command::new("systemd-analyze")
            .args(arguments)
            .arg(format!("--root={}", self.0.display()))
            .arg(unit)
            .output()
            .expect("systemd-analyze is there: tools/setup installs it");
        let said = [asked.stdout, asked.stderr].concat();

        (
            asked.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in
        fs::read_dir(from).expect("systemd's own units are there: tools/setup installs them")
    {
        let file = entry.unwrap().path();
        if file.is_file() {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn systemd_understands_every_unit() {
    let root = Root::new("verify");
    for (unit, _) in EXPOSURES {
        let (content, said) = root.analyze(&["verify", "--man=no"], unit);

        assert!(content && !said.contains(unit), "{said}");
    }
}

#[test]
fn a_unit_that_systemd_does_not_understand_is_noticed() {
    let root = Root::new("broken");
    let unit = root.0.join("etc/systemd/system/meshd.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("NoNewPrivileges=", "NoNewPrivilege=")).unwrap();

    let (_, said) = root.analyze(&["verify", "--man=no"], "meshd.service");

    assert!(said.contains("meshd.service"), "{said}");
}

#[test]
fn no_service_can_do_more_than_it_must() {
    let root = Root::new("security");
    for (unit, most) in EXPOSURES {
        let threshold = format!("--threshold={most}");
        let (content, said) = root.analyze(&["security", "--offline=true", &threshold], unit);

        let last = said.lines().last().unwrap_or_default();
        assert!(content, "more than {most} tenths: {last}");
    }
}

#[test]
fn every_unit_is_checked_and_started_again_however_often_it_fails() {
    let mut units: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".service"))
        .collect();
    units.sort();
    let mut checked = EXPOSURES.map(|(unit, _)| unit.to_owned());
    checked.sort();
    assert_eq!(units, checked);
    for unit in units {
        let text = fs::read_to_string(folder().join(&unit)).unwrap();
        // Five failures within ten seconds would otherwise be the end of it.
        let again = !text.contains("Restart=always") || text.contains("StartLimitIntervalSec=0");
        assert!(again, "{unit}");
    }
}
