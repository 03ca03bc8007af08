//! What we told firewalld, so that what an administrator told it is never taken for ours.
//!
//! firewalld keeps no word on who told it something. So a file says it, written before firewalld is
//! told: a line that names the run of firewalld, then a line for each thing. What an earlier run was
//! told is gone with it. The file lives as long as the machine runs, like firewalld's memory.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use model::{
    constant::WORKLOAD_PREFIX,
    firewall::{Opening, ZoneMember},
};

/// The file's first line.
const HEADER: &str = "meshd-firewalld 1";

/// Bytes of a file that are read; ours has a line for each device and port.
const MAX: u64 = 64 * 1024;

/// The file, and what it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notes {
    path: PathBuf,
    run: String,
    ours: BTreeSet<Opening>,
}

impl Notes {
    /// Reads what was told to this run of firewalld. Where the file cannot be read, nothing is ours.
    pub(super) fn open(path: &Path, run: &str) -> Self {
        let ours = match read(path) {
            Ok(text) => parse(&text, run),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, %path, "What is ours in firewalld is not known; it stays there");
                BTreeSet::new()
            }
        };

        Self {
            path: path.to_owned(),
            run: run.to_owned(),
            ours,
        }
    }

    /// The run of firewalld that this is about.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// What is ours.
    pub(super) fn ours(&self) -> &BTreeSet<Opening> {
        &self.ours
    }

    /// Notes that something becomes ours.
    ///
    /// # Errors
    /// As the file system's; then nothing is noted.
    pub(super) fn add(&mut self, opening: &Opening) -> io::Result<()> {
        let mut ours = self.ours.clone();
        ours.insert(opening.clone());

        self.replace(ours)
    }

    /// Notes that only what `holds` is still ours.
    ///
    /// # Errors
    /// As the file system's; then all stays noted.
    pub(super) fn retain(&mut self, holds: impl Fn(&Opening) -> bool) -> io::Result<()> {
        let ours = self
            .ours
            .iter()
            .filter(|each| holds(each))
            .cloned()
            .collect();

        self.replace(ours)
    }

    fn replace(&mut self, ours: BTreeSet<Opening>) -> io::Result<()> {
        if ours == self.ours {
            return Ok(());
        }
        if ours.is_empty() {
            remove(&self.path)?;
        } else {
            let beside = self.path.with_extension("new");
            fs::write(&beside, render(&self.run, &ours))?;
            fs::rename(&beside, &self.path)?;
        }
        self.ours = ours;

        Ok(())
    }
}

/// Removes the file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;

    let mut text = String::new();
    fs::File::open(path)?.take(MAX).read_to_string(&mut text)?;

    Ok(text)
}

fn render(run: &str, ours: &BTreeSet<Opening>) -> String {
    let lines = ours.iter().filter_map(|opening| match opening {
        Opening::DockerUser(_) => None,
        Opening::FirewalldMember(member) => Some(format!("member {member}")),
        Opening::FirewalldPort { zone, port } => Some(format!("port {zone} {port}")),
    });
    let lines = [HEADER.to_owned(), run.to_owned()].into_iter().chain(lines);

    lines.map(|line| line + "\n").collect()
}

/// Takes in what was told to this run; what cannot be understood is not ours.
fn parse(text: &str, run: &str) -> BTreeSet<Opening> {
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) || lines.next() != Some(run) {
        return BTreeSet::new();
    }

    lines.filter_map(opening).collect()
}

fn opening(line: &str) -> Option<Opening> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["member", name] if name.strip_suffix('+') == Some(WORKLOAD_PREFIX) => {
            Some(Opening::FirewalldMember(ZoneMember::Pods))
        }
        ["member", name] => {
            let device = ZoneMember::Device(name.parse().ok()?);
            Some(Opening::FirewalldMember(device))
        }
        ["port", zone, port] => Some(Opening::FirewalldPort {
            zone: zone.parse().ok()?,
            port: port.parse().ok()?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openings() -> [Opening; 3] {
        [
            Opening::FirewalldMember(ZoneMember::Pods),
            Opening::FirewalldMember(ZoneMember::Device("wireguard.cali".parse().unwrap())),
            Opening::FirewalldPort {
                zone: "public".parse().unwrap(),
                port: 51820,
            },
        ]
    }

    #[test]
    fn what_was_told_to_this_run_of_firewalld_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("firewalld");
        let mut notes = Notes::open(&path, "a :1.7");
        for opening in &openings() {
            notes.add(opening).unwrap();
        }
        assert_eq!(Notes::open(&path, "a :1.7"), notes);
        assert_eq!(notes.ours(), &BTreeSet::from(openings()));
    }

    #[test]
    fn what_an_earlier_run_was_told_is_not_ours_in_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("firewalld");
        Notes::open(&path, "a :1.7").add(&openings()[0]).unwrap();
        assert_eq!(Notes::open(&path, "a :1.8").ours(), &BTreeSet::new());
    }

    #[test]
    fn where_nothing_is_ours_there_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("firewalld");
        let mut notes = Notes::open(&path, "a :1.7");
        notes.add(&openings()[0]).unwrap();
        assert!(path.exists());
        notes.retain(|_| false).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_line_makes_nothing_ours() {
        let text = format!("{HEADER}\nrun\nmember a/b\nport public x\nport public\nrule 7\n");
        assert_eq!(parse(&text, "run"), BTreeSet::new());
        assert_eq!(
            parse("something else\nrun\nmember cali+\n", "run"),
            BTreeSet::new()
        );
    }
}
