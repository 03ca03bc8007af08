//! What the kernel's settings were before us, so that `meshd uninstall` can put them back.
//!
//! A setting is noted before it is changed for the first time in a life of the machine: after a
//! reboot its value is the boot's again, and noted anew. It is put back only where it still has the
//! value that we gave it: whoever changed it since has the last word.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use dataplane::{read_sysctl, write_sysctl};
use serde::{Deserialize, Serialize};

use crate::stored::{self, Unreadable};

/// The version of the file.
const VERSION: u32 = 1;

/// What to do about a file that cannot be read.
const REMEDY: &str = "restore it, or move it away: the settings under /proc/sys then stay as they are when meshd is uninstalled";

/// The settings as they were.
#[derive(Debug)]
pub(crate) struct FormerSettings {
    path: PathBuf,
    noted: Noted,
}

/// What a setting was, and what we made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Setting {
    former: String,
    ours: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    life: String,
    settings: BTreeMap<String, Setting>,
}

impl FormerSettings {
    /// Reads the file; what was noted in an earlier life of the machine is forgotten.
    pub(crate) fn open(state: &Path) -> Result<Self, Unreadable> {
        let path = state.join("settings.json");
        let life = life().map_err(|source| Unreadable::Read {
            path: path.clone(),
            source,
        })?;
        let noted: Option<Noted> = stored::read(&path, VERSION, REMEDY)?;
        let noted = noted.filter(|noted| noted.life == life);

        Ok(Self {
            noted: noted.unwrap_or(Noted {
                life,
                settings: BTreeMap::new(),
            }),
            path,
        })
    }

    /// Notes what these settings are now, before they are made what they should be.
    pub(crate) fn note(&mut self, wanted: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let mut is_new = false;
        for (key, ours) in wanted {
            if let Some(noted) = self.noted.settings.get_mut(key) {
                is_new |= noted.ours != *ours;
                noted.ours.clone_from(ours);
                continue;
            }
            // A device that is not there yet has nothing to be put back.
            let Some(former) = read_sysctl(key)? else {
                continue;
            };
            let ours = ours.clone();
            self.noted
                .settings
                .insert(key.clone(), Setting { former, ours });
            is_new = true;
        }
        if !is_new {
            return Ok(());
        }

        stored::write(&self.path, VERSION, &self.noted)
            .with_context(|| format!("could not write {}", self.path.display()))
    }

    /// Returns what would be put back: the setting, its value now, and its value then.
    pub(crate) fn changed(&self) -> anyhow::Result<Vec<(String, String, String)>> {
        let mut changed = Vec::new();
        for (key, Setting { former, ours }) in &self.noted.settings {
            let now = read_sysctl(key)?;
            if now.as_ref() == Some(ours) && former != ours {
                changed.push((key.clone(), ours.clone(), former.clone()));
            }
        }

        Ok(changed)
    }

    /// Puts them back.
    pub(crate) fn restore(&self) -> anyhow::Result<()> {
        for (key, _, former) in self.changed()? {
            write_sysctl(&key, &former)?;
        }

        Ok(())
    }
}

/// Tells lives of a machine apart, and network namespaces: each has settings of its own.
fn life() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let network = fs::metadata("/proc/thread-self/ns/net")?.ino();

    Ok(format!("{} {network}", boot.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readable by anyone, and nothing that a test would change.
    const SETTING: &str = "kernel/ostype";

    #[test]
    fn a_setting_is_noted_once_and_kept_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = BTreeMap::from([(SETTING.to_owned(), "Other".to_owned())]);
        let mut former = FormerSettings::open(folder.path()).unwrap();

        former.note(&wanted).unwrap();

        let again = FormerSettings::open(folder.path()).unwrap();
        let expected = Setting {
            former: "Linux".to_owned(),
            ours: "Other".to_owned(),
        };
        assert_eq!(again.noted.settings.get(SETTING), Some(&expected));
        assert_eq!(again.changed().unwrap(), [], "it is not what we made it");
    }

    #[test]
    fn what_another_life_noted_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            r#"{"version": 1, "life": "another", "settings": {"a": {"former": "1", "ours": "2"}}}"#;
        fs::write(folder.path().join("settings.json"), text).unwrap();

        let former = FormerSettings::open(folder.path()).unwrap();

        assert!(former.noted.settings.is_empty());
    }
}
