//! Programs that manage the machine's network, and whether they were told to leave ours alone.
//!
//! They are known by the state that they keep under `/run` (which may outlive them) and by their process;
//! what they were told, by the name of the file that this project ships in `deploy/`.

use std::{collections::BTreeSet, fs, path::Path};

use model::conflict::NetworkManager;

/// A word in the name of the file that tells them.
const MARK: &str = "meshd";

/// Returns those that run on the machine whose files are under `root`, and were not told.
pub(super) fn find(root: &Path) -> BTreeSet<NetworkManager> {
    let managers = NetworkManager::ALL.into_iter();

    managers
        .filter(|manager| root.join(state(*manager)).exists() && runs(root, *manager))
        .filter(|manager| {
            !folders(*manager)
                .iter()
                .any(|folder| is_told(&root.join(folder)))
        })
        .collect()
}

/// Returns whether a process bears its name, as far as processes can be seen from here.
fn runs(root: &Path, manager: NetworkManager) -> bool {
    let name = match manager {
        NetworkManager::NetworkManager => "NetworkManager",
        // The kernel keeps fifteen letters of it.
        NetworkManager::Networkd => "systemd-network",
    };
    let Ok(processes) = fs::read_dir(root.join("proc")) else {
        return false;
    };
    let mut names = processes
        .flatten()
        .filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());

    names.any(|found| found.trim_end() == name)
}

/// Returns where it keeps what it knows of links while it runs.
fn state(manager: NetworkManager) -> &'static str {
    match manager {
        NetworkManager::NetworkManager => "run/NetworkManager/devices",
        NetworkManager::Networkd => "run/systemd/netif/state",
    }
}

/// Returns where its configuration may be.
fn folders(manager: NetworkManager) -> [&'static str; 3] {
    match manager {
        NetworkManager::NetworkManager => [
            "etc/NetworkManager/conf.d",
            "run/NetworkManager/conf.d",
            "usr/lib/NetworkManager/conf.d",
        ],
        NetworkManager::Networkd => [
            "etc/systemd/networkd.conf.d",
            "run/systemd/networkd.conf.d",
            "usr/lib/systemd/networkd.conf.d",
        ],
    }
}

fn is_told(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    let mut names = entries.flatten().map(|entry| entry.file_name());

    names.any(|name| {
        let name = name.to_string_lossy();
        name.contains(MARK) && name.ends_with(".conf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_named_while_it_runs_without_its_file() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(find(root), BTreeSet::new());

        for manager in NetworkManager::ALL {
            fs::create_dir_all(root.join(state(manager))).unwrap();
        }
        assert_eq!(find(root), BTreeSet::new(), "the state of one that ended");

        process(root, "7", "NetworkManager");
        process(root, "8", "systemd-network");
        assert_eq!(find(root), NetworkManager::ALL.into());

        for manager in NetworkManager::ALL {
            let file = root.join(manager.drop_in().trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        assert_eq!(find(root), BTreeSet::new());
    }

    #[test]
    fn a_file_of_others_tells_nobody() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/systemd/networkd.conf.d");
        fs::create_dir_all(root.path().join("run/systemd/netif/state")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        process(root.path(), "8", "systemd-network");
        for name in ["10-other.conf", "90-meshd.conf.off"] {
            fs::write(folder.join(name), "").unwrap();
        }

        assert_eq!(find(root.path()), [NetworkManager::Networkd].into());
    }

    fn process(root: &Path, id: &str, name: &str) {
        let folder = root.join("proc").join(id);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
    }
}
