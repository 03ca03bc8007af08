//! Which CNI versions this machine's container runtimes understand: their programs are looked into, none is run.
//!
//! Every runtime carries the CNI project's own library, whose parts tell the version:
//!
//! | in the program | since | understands |
//! |---|---|---|
//! | the configuration's field `cniVersions` | library 1.2 | 1.1.0 |
//! | the package `pkg/types/100` | library 1.0 | 1.0.0 |
//! | the package `pkg/types/040` | library 0.8 | 0.4.0 |

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Programs that attach containers by CNI.
const RUNTIMES: [&str; 4] = ["containerd", "crio", "podman", "nerdctl"];

/// Where programs are, whatever the caller's path says.
const FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// What tells that the library is in a program, and what tells each version, the newest first.
const LIBRARY: &[u8] = b"containernetworking/cni/libcni";
const SIGNS: [(&[u8], &str); 3] = [
    (b"cniVersions", "1.1.0"),
    (b"pkg/types/100", "1.0.0"),
    (b"pkg/types/040", "0.4.0"),
];

/// What every runtime of these days understands.
const USUAL: &str = "1.0.0";

/// The oldest that the library was ever written for.
const OLDEST: &str = "0.3.1";

/// How much of a program is looked at together, and the most that two pieces share: longer than any sign.
const PIECE: usize = 1 << 20;
const OVERLAP: usize = 64;

/// A version, and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) version: &'static str,
    pub(super) why: String,
}

/// Returns the newest version that every one of these programs understands; of those on this machine, where none is
/// named.
pub(super) fn newest_common(named: &[PathBuf]) -> anyhow::Result<Found> {
    let programs = if named.is_empty() {
        on_this_machine()
    } else {
        named.to_vec()
    };
    let mut oldest: Option<Found> = None;
    for program in programs {
        let version = understood(&program)
            .with_context(|| format!("cannot look into {}", program.display()))?;
        let Some(version) = version else {
            continue;
        };
        let found = Found {
            version,
            why: format!("the newest that {} understands", program.display()),
        };
        if oldest
            .as_ref()
            .is_none_or(|other| found.version < other.version)
        {
            oldest = Some(found);
        }
    }

    Ok(oldest.unwrap_or_else(|| Found {
        version: USUAL,
        why: "no container runtime was found to look into; say where it is: --runtime FILE"
            .to_owned(),
    }))
}

fn on_this_machine() -> Vec<PathBuf> {
    let files = RUNTIMES.iter().flat_map(|name| {
        FOLDERS
            .iter()
            .map(move |folder| Path::new(folder).join(name))
    });
    let mut found: Vec<PathBuf> = files.filter_map(|file| file.canonicalize().ok()).collect();
    found.sort();
    found.dedup();

    found
}

/// Returns the newest version that a program understands; `None` where it has no CNI in it.
fn understood(program: &Path) -> io::Result<Option<&'static str>> {
    let mut file = File::open(program)?;
    let mut has_library = false;
    let mut signs = [false; SIGNS.len()];
    let mut piece = Vec::with_capacity(PIECE + OVERLAP);
    loop {
        let kept = piece.len().min(OVERLAP);
        piece.drain(..piece.len() - kept);
        let read = Read::by_ref(&mut file)
            .take(PIECE as u64)
            .read_to_end(&mut piece)?;
        if read == 0 {
            break;
        }
        has_library |= contains(&piece, LIBRARY);
        for (seen, (sign, _)) in signs.iter_mut().zip(SIGNS) {
            *seen |= contains(&piece, sign);
        }
    }
    let newest = signs.iter().zip(SIGNS).find(|(seen, _)| **seen);

    Ok(has_library.then(|| newest.map_or(OLDEST, |(_, (_, version))| version)))
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    let first = wanted.first().copied();
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| Some(*byte) == first) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return true;
        }
        rest = &rest[1..];
    }

    false
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_oldest_runtime_decides_and_one_without_cni_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, parts: &[&str]| {
            let path = folder.path().join(name);
            // A sign may lie across two pieces.
            let filler = "x".repeat(PIECE - 20);
            fs::write(&path, format!("{filler}{}", parts.join("|"))).unwrap();
            path
        };
        let library = "github.com/containernetworking/cni/libcni.x";
        let new = program("new", &[library, "cniVersions", "cni/pkg/types/100"]);
        let middle = program(
            "middle",
            &[library, "cni/pkg/types/100", "cni/pkg/types/040"],
        );
        let old = program("old", &[library, "cni/pkg/types/040"]);
        let ancient = program("ancient", &[library]);
        let none = program("none", &["cniVersions"]);

        let version = |of: &[&PathBuf]| {
            let named: Vec<PathBuf> = of.iter().map(|path| (*path).clone()).collect();
            newest_common(&named).unwrap().version
        };
        assert_eq!(version(&[&new]), "1.1.0");
        assert_eq!(version(&[&new, &middle, &none]), "1.0.0");
        assert_eq!(version(&[&old, &new]), "0.4.0");
        assert_eq!(version(&[&ancient]), "0.3.1");
        assert_eq!(version(&[&none]), "1.0.0");
    }
}
