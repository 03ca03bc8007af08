//! What a lab makes it also removes, however it ends.
//!
//! ```text
//! up ─▶ (crash of the lab, lost memory, foreign processes inside) ─▶ down ─▶ nothing
//! ```
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, os::unix::process::CommandExt, path::Path, process::Stdio};

use lab::{Builtin, Document, Hands, Owner, Process, Program, Site, SiteError, State};

fn document(name: &str) -> Document {
    let mut document = Builtin::named("three-nodes").unwrap().document().unwrap();
    document.metadata.name = format!("{name}{}", std::process::id()).parse().unwrap();
    document.spec.mesh = false;
    document
}

fn up(document: &Document, owner: Owner) -> Site {
    Site::up(document.clone(), owner, Hands::Threads, &mut |_| {}).unwrap()
}

/// Namespaces, folder and mounts that bear the lab's name.
fn traces(name: &str) -> Vec<String> {
    let spaces = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let mut traces: Vec<String> = spaces
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|space| {
            space.starts_with(&format!("{name}-")) || space.starts_with(&format!("{name}."))
        })
        .collect();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    traces.extend(
        mounts
            .lines()
            .filter(|l| l.contains(&format!("/{name}")))
            .map(str::to_owned),
    );
    let folder = format!("/run/meshd-lab/{name}");
    traces.extend(Path::new(&folder).exists().then_some(folder));
    traces
}

#[test]
fn a_lab_that_is_up_is_not_built_twice() {
    let document = document("twice");
    let name = document.metadata.name.to_string();
    let site = up(&document, Owner::Process);
    let again = Site::up(document, Owner::Process, Hands::Threads, &mut |_| {});
    assert!(
        matches!(again, Err(SiteError::Exists(ref it)) if *it == name),
        "{again:?}"
    );
    site.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_lab_without_memory_is_taken_down_by_its_name() {
    let document = document("amnesia");
    let name = document.metadata.name.to_string();
    drop(up(&document, Owner::Process));
    std::fs::remove_file(format!("/run/meshd-lab/{name}/state.json")).unwrap();
    assert!(traces(&name).len() > 10);
    lab::remove(&name).unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(
        lab::remove(&name).is_err(),
        "what is gone cannot be removed"
    );
}

#[test]
fn a_lab_whose_name_begins_another_s_takes_only_itself_down() {
    let (short, mut long) = (document("prefix"), document("prefix"));
    long.metadata.name = format!("{}-n1", short.metadata.name).parse().unwrap();
    let (short, long) = (up(&short, Owner::Process), up(&long, Owner::Process));
    let theirs = long.state().namespaces.clone();
    short.down().unwrap();
    for space in &theirs {
        assert!(
            Path::new("/run/netns").join(space).exists(),
            "{space} is gone"
        );
    }
    long.down().unwrap();
}

#[test]
fn whatever_runs_inside_is_ended_even_if_it_will_not() {
    let document = document("inside");
    let name = document.metadata.name.to_string();
    let site = up(&document, Owner::Process);
    let stubborn = Program::new(
        "sh".as_ref(),
        ["-c", "trap '' TERM; while :; do read x < /dev/zero; done"],
    );
    let place = site.state().place(&"n1".parse().unwrap());
    let log = std::env::temp_dir().join(format!("{name}.log"));
    let mut child = stubborn.start(&place, &log).unwrap();
    let process = Process::of(child.id()).unwrap();
    site.down().unwrap();
    child.wait().unwrap();
    assert!(!process.is_alive());
    std::fs::remove_file(log).unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn each_host_has_folders_of_its_own() {
    let document = document("folders");
    let site = up(&document, Owner::Process);
    let run = |host: &str, script: &str| {
        let place = site.state().place(&host.parse().unwrap());
        let said = Program::new("sh".as_ref(), ["-c", script])
            .output(&place, b"")
            .unwrap();
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    for folder in [
        "/run/meshd",
        "/run/wireguard",
        "/var/lib/meshd",
        "/etc/cni",
        "/etc/meshd",
    ] {
        run("n1", &format!("echo mine > {folder}/who"));
        assert_eq!(run("n2", &format!("ls {folder}")), "", "{folder}");
        assert_eq!(run("n1", &format!("cat {folder}/who")), "mine", "{folder}");
        assert!(
            !Path::new(folder).join("who").exists(),
            "{folder} of the machine was written to"
        );
    }
    assert_eq!(run("n1", "ls /sys/class/net | grep -c eth"), "1");
    site.down().unwrap();
}

#[test]
fn pods_that_are_added_at_the_same_time_are_all_remembered() {
    let document = document("turns");
    let name = document.metadata.name.to_string();
    let site = up(&document, Owner::Process);
    let before = site.state().pods.len();
    let add = |number: u32| {
        let mut site = Site::attach_alone(&name, Hands::Threads).unwrap();
        let pod = lab::spec::Pod::bare(format!("many/p{number}").parse().unwrap());
        site.add_pod("n1", pod).unwrap()
    };
    let addresses: BTreeSet<_> = std::thread::scope(|scope| {
        let added: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn({
                    let add = &add;
                    move || add(number)
                })
            })
            .collect();
        added.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    assert_eq!(
        addresses.len(),
        8,
        "two pods have the same address: {addresses:?}"
    );
    assert_eq!(State::read(&name).unwrap().pods.len(), before + 8);
    site.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}

/// A lab's owner that dies: the next lab of anybody clears up after it. The owner is this test's own
/// program, started once more for [`dies_with_a_lab`] alone.
#[test]
fn a_lab_whose_owner_died_is_removed_by_the_next_one() {
    #[expect(clippy::disallowed_methods, reason = "a process that can be killed")]
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "dies_with_a_lab"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let name = format!("orphan{}", owner.id());
    owner.wait().unwrap();
    assert!(traces(&name).len() > 10, "the owner left nothing behind");
    let next = up(&document("next"), Owner::Process);
    assert_eq!(traces(&name), Vec::<String>::new());
    next.down().unwrap();
}

#[test]
#[ignore = "run by another test, as a process of its own, to die"]
fn dies_with_a_lab() {
    let site = up(&document("orphan"), Owner::Process);
    std::mem::forget(site);
    std::process::abort();
}
