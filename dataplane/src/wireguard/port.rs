//! Who has a UDP port that a device of ours should listen on.
//!
//! Looked for in what the kernel says under `/proc` (proc(5)): the sockets of the network namespace, and
//! the process that holds one of them. Only to be named; nothing here changes anything.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use model::{Family, InterfaceName};

/// Where a thread's namespace lists its UDP sockets.
const TABLES: [(Family, &str); 2] = [
    (Family::V4, "/proc/thread-self/net/udp"),
    (Family::V6, "/proc/thread-self/net/udp6"),
];

/// The device by which programs make TUN devices.
const TUN: &str = "/dev/net/tun";

/// The longest name of a program that is repeated (`TASK_COMM_LEN`).
const NAME: usize = 15;

/// Who has a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The families in which a socket is bound to it.
    pub(super) families: Vec<Family>,
    /// Who that is, in words.
    pub(super) holder: Option<String>,
}

/// Looks for whoever has a port. `device` says which WireGuard device of the kernel's listens on it.
pub(super) fn find(port: u16, device: impl FnOnce() -> Option<InterfaceName>) -> Found {
    let (mut families, mut inodes) = (Vec::new(), BTreeSet::new());
    for (family, path) in TABLES {
        let sockets = fs::read_to_string(path)
            .map(|table| sockets(&table, port))
            .unwrap_or_default();
        if !sockets.is_empty() {
            families.push(family);
        }
        inodes.extend(sockets);
    }
    let holder = match device() {
        Some(device) => Some(format!("the WireGuard device {device}")),
        None => process_with(&inodes),
    };

    Found { families, holder }
}

/// Returns the inodes of the sockets that are bound to a port, in a table as `/proc/net/udp` is written.
fn sockets(table: &str, port: u16) -> BTreeSet<u64> {
    let lines = table.lines().skip(1);

    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, bound) = fields.nth(1)?.rsplit_once(':')?;
            let inode = fields.nth(7)?.parse().ok()?;

            (u16::from_str_radix(bound, 16) == Ok(port)).then_some(inode)
        })
        .collect()
}

/// Returns the process that holds one of these sockets, as far as it can be seen from here.
fn process_with(inodes: &BTreeSet<u64>) -> Option<String> {
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter(|entry| {
        let name = entry.file_name();
        let mut letters = name.as_encoded_bytes().iter();
        letters.all(u8::is_ascii_digit)
    });

    processes.find_map(|process| describe(&process.path(), inodes))
}

/// Returns a process in words, where it holds one of these sockets.
fn describe(process: &Path, inodes: &BTreeSet<u64>) -> Option<String> {
    let descriptors = fs::read_dir(process.join("fd")).ok()?.flatten();
    let open: Vec<(PathBuf, PathBuf)> = descriptors
        .filter_map(|entry| Some((entry.path(), fs::read_link(entry.path()).ok()?)))
        .collect();
    if !open.iter().any(|(_, target)| is_one_of(target, inodes)) {
        return None;
    }
    let mut devices = open
        .iter()
        .filter(|(_, target)| target.as_os_str() == TUN)
        .filter_map(|(descriptor, _)| tun_device(process, descriptor))
        .collect::<BTreeSet<_>>();
    let id = process.file_name()?.to_string_lossy().into_owned();
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let name = format!("process {} ({id})", printable(&name));

    Some(match (devices.pop_first(), devices.is_empty()) {
        (Some(device), true) => format!("{device} of {name}"),
        (Some(_), false) | (None, _) => name,
    })
}

fn is_one_of(target: &Path, inodes: &BTreeSet<u64>) -> bool {
    let text = target.to_string_lossy();
    let inode = text.strip_prefix("socket:[");
    let inode = inode.and_then(|text| text.strip_suffix(']')?.parse().ok());

    inode.is_some_and(|inode: u64| inodes.contains(&inode))
}

/// Returns the TUN device behind a descriptor (`iff` in its `fdinfo`).
fn tun_device(process: &Path, descriptor: &Path) -> Option<InterfaceName> {
    let path = process.join("fdinfo").join(descriptor.file_name()?);
    let text: io::Result<String> = fs::read_to_string(path);
    let text = text.ok()?;
    let mut lines = text.lines();

    lines.find_map(|line| line.strip_prefix("iff:")?.trim().parse().ok())
}

/// Returns what of a name can be printed; a process chooses its own.
fn printable(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_graphic);

    letters.take(NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_is_found_by_its_port_and_not_by_another() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n  510: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n  511: 00000000000000000000000000000000:CA6D 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0\n";

        assert_eq!(sockets(table, 51820), BTreeSet::from([4711]));
        assert_eq!(sockets(table, 51821), BTreeSet::from([4712]));
        assert_eq!(sockets(table, 51822), BTreeSet::new());
        assert_eq!(sockets("", 1), BTreeSet::new());
        assert_eq!(sockets("x\ny z\n1: :CA6C", 51820), BTreeSet::new());
    }

    #[test]
    fn whoever_has_a_port_is_named_with_his_family() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();

        let found = find(port, || None);

        assert_eq!(found.families, [Family::V4]);
        let holder = found.holder.unwrap();
        assert!(
            holder.contains(&format!("({})", std::process::id())),
            "{holder}"
        );
    }

    #[test]
    fn a_device_of_the_kernels_is_named_rather_than_a_process() {
        let found = find(1, || "wg0".parse().ok());

        assert_eq!(found.holder.as_deref(), Some("the WireGuard device wg0"));
    }

    #[test]
    fn a_process_cannot_write_into_our_sentences() {
        assert_eq!(
            printable("wg\n\u{1b}[2Jx; all is well, believe me"),
            "wg[2Jx;alliswel"
        );
    }
}
