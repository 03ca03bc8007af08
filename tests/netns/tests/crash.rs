//! meshd is killed at each write, and finds damaged files: the next start takes up what is there, or says
//! exactly what it refuses. It never makes a key anew where one was, and never starts open.
//!
//! ```text
//! strace ── SIGKILL at the k-th fsync, rename, write, … of the real program ──▶ start again ──▶ the same node
//! ```
//!
//! A kill shows every state between two system calls. What a loss of power adds, content that was
//! renamed before it was on disk, is asked of the order of the calls themselves.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    time::{Duration, Instant},
};

use lab::{End, Family, Node, Program, Service, poll_until};
use netns::{Kernel, Mesh, Traffic, await_fact, await_settled, await_summary, lan, programs};

/// How long a program may take to do its work.
const PATIENCE: Duration = Duration::from_secs(30);

/// The calls between which a file or a folder is another: what `write` wrote is there before `fsync`, what
/// was there before it at `ftruncate`.
const WRITES: [&str; 6] = [
    "mkdir",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
];

/// Two members, and a third node that stands aside.
fn two_and_one() -> Mesh {
    let members = lan(&[("n1", "default/a"), ("n2", "default/b")]);
    let topology = members.node("n4", &["lan"]).aside();
    Mesh::of(topology.document())
}

fn meshd() -> String {
    programs().join("meshd").display().to_string()
}

/// Runs a script on a node, `$0` being meshd; returns whether it succeeded, and all that it said.
fn try_run(node: &Node, script: &str) -> (bool, String) {
    let script = format!("if {{ {script}\n}} 2>&1; then echo DONE; else echo REFUSED; fi");
    let said = node.run("sh", &["-c", &script, &meshd()]);

    (said.trim_end().ends_with("DONE"), said)
}

fn sh(node: &Node, script: &str) -> String {
    node.run("sh", &["-e", "-c", script, &meshd()])
}

/// How a program that was to be killed at a write came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// It was killed there.
    Killed,
    /// It never made that many such calls.
    Through,
}

/// Starts meshd on a node, to be killed before its `number`-th call of that name; ends it once it is
/// `ready`, which is told what it said so far, if it gets so far.
fn run_until_killed(
    node: &Node,
    arguments: &[&str],
    (call, number): (&str, u32),
    mut ready: impl FnMut(&str) -> bool,
) -> Came {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=KILL:when={number}");
    let program = meshd();
    // Every thread counts its own calls; only the calls asked for are stopped at.
    let strace = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &trace,
        "-e",
        &inject,
        &program,
    ];
    let all: Vec<&str> = strace.iter().chain(arguments).copied().collect();
    let program = Program::new("strace".as_ref(), all);
    let thread = format!("{:?}", std::thread::current().id());
    let log = format!(
        "crash{}{}.log",
        std::process::id(),
        thread.replace(['(', ')'], "")
    );
    let log = std::env::temp_dir().join(log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let started = program.start(&node.place(), &log);
    let mut child = started.expect("strace is there: tools/setup installs it");
    let mut came = None;
    let ended = poll_until(Instant::now() + PATIENCE, || {
        if let Ok(Some(status)) = child.try_wait() {
            let killed = status.signal() == Some(9);
            assert!(
                killed || status.success(),
                "{arguments:?}: {status}\n{}",
                said()
            );
            came = Some(if killed { Came::Killed } else { Came::Through });
        } else if ready(&said()) {
            came = Some(Came::Through);
        }
        came.is_some()
    });
    assert!(
        ended,
        "meshd {arguments:?} neither ended nor got ready:\n{}",
        said()
    );
    let ended = poll_until(Instant::now() + PATIENCE, || {
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        if !ended {
            end_children(node, child.id());
        }
        ended
    });
    assert!(ended, "the tracer of meshd {arguments:?} does not end");
    std::fs::remove_file(log).expect("the log was written");

    came.expect("it ended")
}

/// Ends the program that a tracer runs.
fn end_children(node: &Node, tracer: u32) {
    let file = format!("/proc/{tracer}/task/{tracer}/children");
    let children = std::fs::read_to_string(file).unwrap_or_default();
    for child in children.split_whitespace() {
        // It may be ending by itself.
        node.run("sh", &["-c", "kill -9 $0 || true", child]);
    }
}

/// Calls `attempt` for every write of a program, until it makes no more of that call; returns how many
/// times the program was killed.
fn at_each_write(attempt: impl FnMut((&str, u32)) -> Came) -> u32 {
    at_each_call(&WRITES, attempt)
}

fn at_each_call(calls: &[&str], mut attempt: impl FnMut((&str, u32)) -> Came) -> u32 {
    let mut killed = 0;
    for call in calls {
        for number in 1..500 {
            match attempt((call, number)) {
                Came::Killed => killed += 1,
                Came::Through => break,
            }
        }
    }

    killed
}

/// The hashes of files that must never change once they are there.
fn hashes(node: &Node, files: &str) -> Vec<String> {
    let script = format!("for file in {files}; do if [ -e $file ]; then sha256sum $file; fi; done");

    sh(node, &script).lines().map(str::to_owned).collect()
}

#[test]
fn a_server_that_is_killed_at_any_write_of_its_first_start_is_the_same_mesh_at_the_next() {
    const DATA: &str = "/var/lib/meshd/server";
    let mesh = two_and_one();
    let n4 = mesh.node("n4");
    let arguments = [
        "serve",
        "--data",
        DATA,
        "--listen",
        "127.0.0.1:7443",
        "--no-user-config",
    ];
    let files = format!("{DATA}/ca.key {DATA}/ca.crt");
    let meshctl = programs().join("meshctl").display().to_string();

    let killed = at_each_write(|at| {
        sh(&n4, &format!("rm -rf {DATA}"));
        let serves = |said: &str| said.contains("serving");
        let came = run_until_killed(&n4, &arguments, at, serves);
        let before = hashes(&n4, &files);

        let never = ("rmdir", 1);
        let works = |said: &str| {
            let ask = format!("{meshctl} get --config {DATA}/admin.yaml ippools");
            serves(said) && try_run(&n4, &ask).0
        };
        assert_eq!(
            run_until_killed(&n4, &arguments, never, works),
            Came::Through
        );
        let after = hashes(&n4, &files);
        assert_eq!(after.len(), 2);
        let kept = before.iter().all(|hash| after.contains(hash));
        assert!(kept, "{at:?}: another CA: {before:?}, {after:?}");
        came
    });

    assert!(killed >= 18, "only {killed} writes");
}

#[test]
fn a_join_that_is_killed_at_any_write_goes_on_with_the_same_token_and_key() {
    let mesh = two_and_one();
    let n4 = mesh.node("n4");
    let server = mesh.outside("server").address(Family::V4);
    let url = format!("https://{server}:7443");
    let mut tries = 0;

    let killed = at_each_write(|at| {
        tries += 1;
        let name = format!("try{tries}");
        let token = mesh.meshctl(&["token", "create", "--node", &name, "--ttl", "1h"]);
        let token = token.lines().last().unwrap_or_default().trim();
        let folder = format!("/var/lib/meshd/{name}");
        let (identity, config) = (
            format!("{folder}/identity"),
            format!("{folder}/config.yaml"),
        );
        let arguments = [
            "join",
            &url,
            "--token",
            token,
            "--name",
            &name,
            "--identity",
            &identity,
            "--config",
            &config,
            "--no-services",
        ];
        let came = run_until_killed(&n4, &arguments, at, |_| false);
        let key = sh(
            &n4,
            &format!("cat {identity}/joining.key 2>/dev/null || true"),
        );

        let (done, said) = try_run(&n4, &format!("$0 {}", arguments.join(" ")));
        assert!(done, "{at:?}: {said}");
        let written = sh(&n4, &format!("cat {config}"));
        // PEM's lines are indented in the credential.
        let kept = key.lines().all(|line| written.contains(line));
        assert!(kept, "{at:?}: another key than the one that was there");
        assert_eq!(sh(&n4, &format!("ls {identity}")), "", "{at:?}");
        came
    });

    assert!(killed >= 12, "only {killed} writes");
}

#[test]
fn an_agent_that_is_killed_at_any_write_is_the_same_node_at_the_next_start() {
    let mesh = two_and_one();
    mesh.enable();
    let n4 = mesh.node("n4");
    mesh.admit(&n4);
    n4.restart(Service::Agent);
    await_summary(&n4, "Enforced", PATIENCE);
    n4.kill(Service::Agent);
    let key = hashes(&n4, "/var/lib/meshd/keys/wireguard.key");
    let settled = |_: &str| {
        let files = "cd /var/lib/meshd && test -e guard.json -a -e networks -a -e settings.json";
        let status = n4.try_ask("/v1/status").unwrap_or_default();
        status["encryption"]["summary"] == "Enforced"
            && status["converged"] == true
            && try_run(&n4, files).0
    };

    // What other calls change, keys and folders, is there already.
    let killed = at_each_call(&["ftruncate", "fsync", "rename"], |at| {
        sh(
            &n4,
            "cd /var/lib/meshd; rm -f guard.json* networks* settings.json* pods.json*",
        );
        let came = run_until_killed(&n4, &["agent"], at, settled);
        n4.restart(Service::Agent);
        let again = poll_until(Instant::now() + PATIENCE, || settled(""));
        assert!(again, "{at:?}: {}", n4.status());
        n4.kill(Service::Agent);
        let key_now = hashes(&n4, "/var/lib/meshd/keys/wireguard.key");
        assert_eq!(key_now, key, "{at:?}");
        assert_eq!(sh(&n4, "find /var/lib/meshd -name '*.new'"), "", "{at:?}");
        came
    });

    assert!(killed >= 9, "only {killed} writes");
    mesh.assert_no_plaintext();
}

#[test]
fn keys_that_are_being_made_when_the_agent_is_killed_are_whole_or_not_there() {
    const KEYS: &str = "/var/lib/meshd/keys/wireguard.key /var/lib/meshd/keys/wireguard-second.key";
    let mesh = two_and_one();
    let n4 = mesh.node("n4");
    mesh.admit(&n4);
    // Nobody answers: the agent makes its keys and gets no further.
    mesh.node("n1").kill(Service::Server);
    let made = |_: &str| hashes(&n4, KEYS).len() == 2;

    let killed = at_each_write(|at| {
        sh(&n4, "rm -rf /var/lib/meshd/keys");
        let came = run_until_killed(&n4, &["agent"], at, made);
        let before = hashes(&n4, KEYS);
        assert_eq!(
            run_until_killed(&n4, &["agent"], ("rmdir", 1), made),
            Came::Through
        );
        let after = hashes(&n4, KEYS);
        assert!(
            before.iter().all(|key| after.contains(key)),
            "{at:?}: a key was made anew"
        );
        let forms = sh(
            &n4,
            &format!("cat {KEYS} | grep -c '^meshd-wireguard-key 1$'"),
        );
        assert_eq!(forms.trim(), "2", "{at:?}");
        came
    });

    assert!(killed >= 8, "only {killed} writes");
}

/// A file is on disk before it gets its name, and the name before anybody hears of it: what a loss of power
/// would show. Asked of the system calls of the real programs, whatever code makes them.
#[test]
fn no_file_gets_its_name_before_its_content_is_on_disk() {
    let mesh = two_and_one();
    mesh.enable();
    let n4 = mesh.node("n4");
    let server = mesh.outside("server").address(Family::V4);
    let token = mesh.meshctl(&["token", "create", "--node", "traced", "--ttl", "1h"]);
    let token = token.lines().last().unwrap_or_default().trim().to_owned();
    let trace = "strace -f -qq -y -s 0 -e trace=openat,creat,write,fsync,fdatasync,rename,renameat,renameat2,link";
    sh(
        &n4,
        &format!(
            "{trace} -o /etc/meshd/join $0 join https://{server}:7443 --token {token} --no-services"
        ),
    );
    sh(
        &n4,
        &format!(
            "{trace} -o /etc/meshd/agent timeout -s KILL 20 $0 agent >/dev/null 2>&1 & tracer=$!
         until [ -e /var/lib/meshd/guard.json ]; do kill -0 $tracer; sleep 0.1; done
         kill -9 $(pgrep -P $(pgrep -P $tracer)) || true; wait $tracer || true"
        ),
    );
    sh(&n4, &format!(
        "{trace} -o /etc/meshd/server timeout -s KILL 20 $0 serve --listen 127.0.0.1:7443 --no-user-config >/etc/meshd/said 2>&1 & tracer=$!
         until grep -q serving /etc/meshd/said; do kill -0 $tracer; sleep 0.1; done
         kill -9 $(pgrep -P $(pgrep -P $tracer)) || true; wait $tracer || true"
    ));

    let mut named = 0;
    for program in ["join", "agent", "server"] {
        let calls = sh(&n4, &format!("cat /etc/meshd/{program}"));
        named += assert_ordered(program, &calls);
    }
    assert!(named >= 10, "only {named} files");
}

/// Asserts the order of a trace; returns how many files got a name.
fn assert_ordered(program: &str, trace: &str) -> usize {
    let ours = |path: &str| path.starts_with("/var/lib/meshd/");
    let lines: Vec<&str> = trace
        .lines()
        .filter(|line| !line.contains(" = -1 "))
        .collect();
    let mut named = 0;
    for (at, line) in lines.iter().enumerate() {
        let path = |number: usize| line.split('"').nth(2 * number + 1).unwrap_or_default();
        if line.contains(" openat(") && line.contains("O_CREAT") && ours(path(0)) {
            let file = path(0);
            let by_rename = file.ends_with(".new") || file.contains("/store.db");
            assert!(by_rename, "{program} makes {file} in place: {line}");
        }
        if !line.contains(" rename") || !ours(path(0)) {
            continue;
        }
        named += 1;
        let (from, to) = (path(0), path(1));
        let synced =
            |call: &str, path: &str| call.contains("sync(") && call.contains(&format!("<{path}>"));
        let written = |call: &&str| call.contains(" write(") && call.contains(&format!("<{from}>"));
        let last = lines[..at].iter().rposition(written);
        let last = last.unwrap_or_else(|| panic!("{program} never wrote {from}"));
        let content = lines[last..at].iter().any(|call| synced(call, from));
        assert!(
            content,
            "{program}: {to} gets its name before its content is on disk"
        );
        let folder = Path::new(to)
            .parent()
            .unwrap_or(Path::new("/"))
            .display()
            .to_string();
        let name = lines[at..].iter().any(|call| synced(call, &folder));
        assert!(name, "{program}: the name of {to} is not put on disk");
    }

    named
}

/// What may have become of a file: cut off, emptied, something else, of a version that is to come.
const DAMAGES: [(&str, &str); 4] = [
    (
        "cut",
        "head -c 20 $file > $file.cut; cat $file.cut > $file; rm $file.cut",
    ),
    ("empty", ": > $file"),
    ("garbage", "head -c 300 /dev/zero > $file"),
    (
        "newer",
        "sed -i -e 's/\"version\":1/\"version\":99/' -e 's/^meshd-wireguard-key 1/meshd-wireguard-key 99/' -e 's/^meshd-networks 1/meshd-networks 99/' -e 's,meshd.dev/v1,meshd.dev/v99,' $file",
    ),
];

#[test]
fn an_agent_refuses_a_damaged_file_by_its_name_leaves_it_alone_and_opens_nothing() {
    let mesh = Mesh::enforced("dual-stack");
    let n1 = mesh.node("n1");
    let traffic = Traffic::between_two(&mesh);
    n1.kill(Service::Agent);
    let kernel = Kernel::of(&n1);
    for file in [
        "config.yaml",
        "keys/wireguard.key",
        "keys/wireguard-second.key",
        "pods.json",
    ] {
        let path = format!("/var/lib/meshd/{file}");
        for (damage, script) in DAMAGES {
            sh(
                &n1,
                &format!("file={path}; cp -a $file /etc/meshd/kept; {script}"),
            );
            let before = hashes(&n1, &path);

            let (started, said) = try_run(&n1, "timeout 20 $0 agent");

            assert!(!started && said.contains(&path), "{damage} {file}: {said}");
            assert!(
                damage != "newer" || said.contains("99"),
                "{damage} {file}: {said}"
            );
            let advice = ["restore it", "move it away", "join"]
                .iter()
                .any(|word| said.contains(word));
            assert!(
                advice,
                "{damage} {file}: it does not say what to do: {said}"
            );
            assert_eq!(hashes(&n1, &path), before, "{damage} {file}");
            sh(&n1, &format!("mv /etc/meshd/kept {path}"));
        }
    }
    assert_eq!(kernel.difference(&Kernel::of(&n1)), "");
    traffic.assert_alive();

    // What only repeats the kernel is taken for nothing, and written anew.
    for file in ["guard.json", "networks"] {
        for (damage, script) in DAMAGES {
            let file = format!("/var/lib/meshd/{file}");
            sh(&n1, &format!("file={file}; {script}"));
            let before = hashes(&n1, &file);
            n1.restart(Service::Agent);
            await_summary(&n1, "Enforced", PATIENCE);
            await_settled(&n1, PATIENCE);
            if file.ends_with("guard.json") {
                await_fact(&format!("{damage} {file} is whole again"), PATIENCE, || {
                    let after = hashes(&n1, &file);
                    (after != before).then_some(()).ok_or(format!("{after:?}"))
                });
            }
            n1.kill(Service::Agent);
        }
    }
    assert_eq!(kernel.difference(&Kernel::of(&n1)), "");
    traffic.assert_alive();
}

/// What a reboot takes with it: tables, rules, routes and the tunnel, but not what is on disk.
const REBOOT: &str = "
sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1
ip link set eth0 down
nft delete table inet meshd || true
nft delete table netdev meshd || true
for family in -4 -6; do
    ip $family rule del priority 99 || true
    for each in $(ip $family rule | sed -n 's/^100:.*/100/p'); do ip $family rule del priority $each; done
    ip $family route flush table 1 || true
    ip $family route flush table 2 || true
done
ip link del wireguard.cali 2>/dev/null || true
";

#[test]
fn a_machine_whose_guard_is_damaged_boots_shut_and_not_open() {
    const GUARD: &str = "/var/lib/meshd/guard.json";
    let mesh = Mesh::enforced("dual-stack");
    let (n1, n2) = (mesh.node("n1"), mesh.node("n2"));
    let traffic = Traffic::between_two(&mesh);
    n1.kill(Service::Agent);
    for (damage, script) in DAMAGES {
        sh(&n1, REBOOT);
        if damage == DAMAGES[0].0 {
            n1.kill(Service::Wire);
        }
        sh(
            &n1,
            &format!("file={GUARD}; cp -a $file /etc/meshd/kept; {script}"),
        );

        let (restored, said) = try_run(&n1, "$0 guard");

        assert!(!restored && said.contains(GUARD), "{damage}: {said}");
        assert!(
            said.contains("reaches none of 2 networks"),
            "{damage}: {said}"
        );
        sh(&n1, "ip link set eth0 up");
        for family in [Family::V4, Family::V6] {
            let pod = n2.pod().address(family);
            assert!(n1.pod().try_ping(pod).is_err(), "{damage}");
            assert!(n1.try_ping(pod).is_err(), "{damage}: from the host");
        }
        mesh.assert_no_plaintext();
        sh(&n1, &format!("mv /etc/meshd/kept {GUARD}"));
    }
    let (_, said) = try_run(
        &n1,
        "file=/var/lib/meshd/networks; : > $file; : > /var/lib/meshd/guard.json; $0 guard",
    );
    assert!(
        said.contains("what it sends to pods itself is not closed"),
        "{said}"
    );

    n1.restart(Service::Wire);
    n1.restart(Service::Agent);
    await_summary(&n1, "Enforced", PATIENCE);
    await_settled(&n1, PATIENCE);
    // Its connections wait for their next attempts; new packets do not.
    await_fact("the pods reach each other again", PATIENCE, || {
        let said = n1.pod().try_ping(n2.pod().address(Family::V4));
        said.map(drop).map_err(|error| error.to_string())
    });
    drop(traffic);
    let rules = n1.run("nft", &["list", "table", "inet", "meshd"]);
    assert!(!rules.contains("chain shut"), "{rules}");
}
