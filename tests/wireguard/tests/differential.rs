//! The same UAPI requests, put to meshwire and to wireguard-go: the same answers.
//!
//! Scripts (`script/*.txt`, requests divided by empty lines) and random ones from a seed are put to both, each request
//! on a connection of its own; then both are asked for their state. Compared are error numbers and states; peers have
//! no order, times and counters are left out. Both devices stay down, so that nothing but the requests acts on them.
//!
//! Where the two differ on purpose, [`DIFFERENCES`] says so, and each is seen to be still one.

#![expect(
    clippy::unwrap_used,
    reason = "a comparison that cannot go on has failed"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use wireguard::command::command;
use wireguard::space::unique;
use wireguard::{Device, Make, Space, attempt, until};

/// What meshwire does otherwise, by the request that shows it, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    (
        "set=1\nfwmark=7\nnonsense=1\n\n",
        "a refused request changes nothing; wireguard-go keeps the lines before the bad one",
    ),
    (
        "set=1\npublic_key=K1\nendpoint=192.0.2.1:0\n\n",
        "an endpoint with port 0 can never be reached; `wg` refuses it too",
    ),
    (
        "set=1\npublic_key=K1\nendpoint=0.0.0.0:1\n\n",
        "an unspecified address is nobody's",
    ),
    (
        "set=1\npublic_key=K1\nendpoint=[ff02::1]:1\n\n",
        "a multicast address is no peer's",
    ),
    (
        "set=1\npublic_key=K1\nallowed_ip=10.0.0.0/8\n\nset=1\npublic_key=K1\nallowed_ip=-10.0.0.0/8\n\n",
        "the protocol has grown this word since wireguard-go of Debian 12",
    ),
    (
        "set=1\npublic_key=K1\nallowed_ip=10.0.0.0/8\n\nset=1\npublic_key=K2\nallowed_ip=10.0.0.0/8\nremove=true\n\n",
        "a peer that is removed takes nothing from the others on its way; wireguard-go acts line by line",
    ),
    (
        "set=1\npublic_key=K1\nallowed_ip=10.0.0.0/8\n\nset=1\npublic_key=K2\nallowed_ip=10.0.0.0/8\nupdate_only=true\n\n",
        "nor does one that is not there to be updated",
    ),
    (
        "set=1\npublic_key=K1\nallowed_ip=10.0.0.0/8\n\nset=1\npublic_key=K2\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\n\n",
        "nor does one whose allowed IPs are replaced in the same breath",
    ),
    (
        "set=1\nlisten_port=0\n\n",
        "a device that is down holds no port, and tells none",
    ),
    (
        "nonsense\n\n",
        "what is neither get nor set is answered with an error; wireguard-go hangs up",
    ),
    (
        "get=1\nfwmark=1\n\n",
        "a get with more lines is a bad protocol (EPROTO); for wireguard-go a bad value (EINVAL)",
    ),
];

/// Scripts of random requests.
const RANDOM: u64 = 40;
/// Requests of each.
const REQUESTS: usize = 25;

/// Whether a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
}

/// Both programs.
struct Both {
    ours: Device,
    theirs: Theirs,
    space: Space,
}

struct Theirs {
    name: String,
    child: Child,
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok() {
            let _: std::io::Result<_> = self.child.wait();
        }
        let _: std::io::Result<()> = fs::remove_file(socket(&self.name));
    }
}

impl Both {
    fn new() -> Self {
        let space = Space::new();
        let ours = Device::bare(Make::Meshwire, &space);
        let name = unique("wsg");
        let mut theirs = Theirs {
            child: wireguard_go(&space, &name),
            name,
        };
        until("wg can talk to wireguard-go", || {
            // It ends where the machine is short of inotify instances for the moment.
            if matches!(theirs.child.try_wait(), Ok(Some(_))) {
                theirs.child = wireguard_go(&space, &theirs.name);
            }
            attempt(&format!("wg show {}", theirs.name), "").is_ok()
        });
        Self {
            ours,
            theirs,
            space,
        }
    }

    /// The answers to one request: ours, theirs.
    fn ask(&self, request: &str) -> [String; 2] {
        [&self.ours.name, &self.theirs.name].map(|name| ask(name, request))
    }

    /// Puts a request to both; says whether they took it, or how they differ.
    fn compare(&self, request: &str) -> Result<Taken, String> {
        let [ours, theirs] = self.ask(request).map(|answer| normal(&answer));
        if ours != theirs {
            return Err(format!("{request:?}\nours {ours:#?}\ntheirs {theirs:#?}"));
        }
        if ours.errno != "errno=0" {
            // What a refused request leaves behind differs on purpose.
            self.reset();
            return Ok(Taken::No);
        }
        let [ours, theirs] = self.ask("get=1\n\n").map(|answer| normal(&answer));
        if ours == theirs {
            Ok(Taken::Yes)
        } else {
            Err(format!(
                "after {request:?}\nours {ours:#?}\ntheirs {theirs:#?}"
            ))
        }
    }

    fn reset(&self) {
        let nothing = format!(
            "set=1\nprivate_key={}\nlisten_port=1\nfwmark=0\nreplace_peers=true\n\n",
            "0".repeat(64)
        );
        let [ours, theirs] = self.ask(&nothing).map(|answer| normal(&answer).errno);
        assert_eq!((&*ours, &*theirs), ("errno=0", "errno=0"));
    }
}

fn wireguard_go(space: &Space, name: &str) -> Child {
    command("ip")
        .args([
            "netns",
            "exec",
            space.name(),
            "wireguard-go",
            "--foreground",
            name,
        ])
        .env("LOG_LEVEL", "silent")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("wireguard-go is installed")
}

fn socket(name: &str) -> String {
    format!("/var/run/wireguard/{name}.sock")
}

fn ask(name: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(name)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // Who hangs up in the middle does not read the rest.
    let _: std::io::Result<()> = stream.write_all(request.as_bytes());
    let _: std::io::Result<()> = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    // wireguard-go may reset the connection after its answer.
    let _: std::io::Result<usize> = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// An answer without order, times and counters.
#[derive(Debug, PartialEq, Eq)]
struct Normal {
    device: BTreeSet<String>,
    peers: BTreeSet<BTreeSet<String>>,
    errno: String,
}

fn normal(answer: &str) -> Normal {
    let first = answer.split("\n\n").next().unwrap_or_default();
    let (mut device, mut peers, mut errno) = (BTreeSet::new(), Vec::new(), String::new());
    for line in first.lines() {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let value = match key {
            "last_handshake_time_sec" | "last_handshake_time_nsec" | "tx_bytes" | "rx_bytes" => "…",
            _ => value,
        };
        let line = format!("{key}={value}");
        match key {
            "errno" => errno = line,
            "public_key" => peers.push(BTreeSet::from([line])),
            _ => drop(peers.last_mut().unwrap_or(&mut device).insert(line)),
        }
    }
    Normal {
        device,
        peers: peers.into_iter().collect(),
        errno,
    }
}

/// The requests of a script.
fn requests(script: &str) -> Vec<String> {
    let whole = script
        .split("\n\n")
        .filter(|request| !request.trim().is_empty());
    whole
        .map(|request| format!("{}\n\n", request.trim_matches('\n')))
        .collect()
}

fn with_keys(text: &str) -> String {
    text.replace("K1", &"01".repeat(32))
        .replace("K2", &"02".repeat(32))
}

#[test]
fn scripts_get_the_same_answers() {
    let both = Both::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("script");
    let mut told = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        both.reset();
        for request in requests(&fs::read_to_string(&path).unwrap()) {
            both.compare(&request)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            told += 1;
        }
    }
    assert!(told > 80, "{told} requests");
    drop(both.space.ip("link show"));
}

#[test]
fn random_scripts_get_the_same_answers() {
    let both = Both::new();
    let (mut taken_in_all, mut refused) = (0, 0);
    for seed in 1..=RANDOM {
        both.reset();
        let mut dice = Dice(seed);
        for _ in 0..REQUESTS {
            let request = random(&mut dice);
            let taken = both.compare(&request);
            match taken.unwrap_or_else(|error| panic!("seed {seed}: {error}")) {
                Taken::Yes => taken_in_all += 1,
                Taken::No => refused += 1,
            }
        }
    }
    assert!(
        refused > 50 && taken_in_all > 500,
        "{taken_in_all} taken, {refused} refused"
    );
}

#[test]
fn where_they_differ_it_is_on_purpose() {
    let both = Both::new();
    for (script, reason) in DIFFERENCES {
        both.reset();
        let script = with_keys(script);
        let requests = requests(&script);
        let differs = requests.iter().any(|request| {
            let [ours, theirs] = both.ask(request).map(|answer| normal(&answer));
            let states = both.ask("get=1\n\n").map(|answer| normal(&answer));
            ours != theirs || states[0] != states[1]
        });
        assert!(differs, "no difference any more: {reason}: {script:?}");
    }
}

/// Marsaglia's xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// A request that is mostly good, of a few keys and networks, so that they meet.
fn random(dice: &mut Dice) -> String {
    let mut text = String::from("set=1\n");
    let mut line = |line: String| text = format!("{text}{line}\n");
    match dice.roll(8) {
        0 => line(format!("private_key={}", key(dice))),
        1 => line(format!("listen_port={}", 1 + dice.roll(70_000))),
        2 => line(format!("fwmark={}", dice.roll(1 << 32) << dice.roll(2))),
        3 => line("replace_peers=true".into()),
        _ => (),
    }
    for _ in 0..dice.roll(4) {
        line(format!("public_key={}", key(dice)));
        match dice.roll(6) {
            0 => line("remove=true".into()),
            1 => line("update_only=true".into()),
            2 => line("replace_allowed_ips=true".into()),
            _ => (),
        }
        for _ in 0..dice.roll(5) {
            line(peer_line(dice));
        }
    }
    text + "\n"
}

fn key(dice: &mut Dice) -> String {
    match dice.roll(40) {
        0 => "0".repeat(64),
        1 => "f".repeat(63),
        // The public key of the private key 0101…
        2..=4 => "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209".into(),
        _ => format!("{:02X}", 1 + dice.roll(4)).repeat(32),
    }
}

fn peer_line(dice: &mut Dice) -> String {
    match dice.roll(24) {
        0..=9 => {
            let (length, bits) = (dice.roll(33), dice.roll(1 << 24));
            format!(
                "allowed_ip=10.{}.{}.{}/{length}",
                bits >> 22,
                (bits >> 8) & 3,
                bits & 3
            )
        }
        10..=15 => format!(
            "allowed_ip=fd00:{:x}::{:x}/{}",
            dice.roll(3),
            dice.roll(3),
            dice.roll(131)
        ),
        16 => format!("preshared_key={}", key(dice)),
        17 => format!(
            "endpoint=192.0.2.{}:{}",
            dice.roll(260),
            1 + dice.roll(66_000)
        ),
        18 => format!(
            "endpoint=[2001:db8::{:x}]:{}",
            dice.roll(70_000),
            1 + dice.roll(65_535)
        ),
        19 => format!("persistent_keepalive_interval={}", dice.roll(70_000)),
        20 => "protocol_version=1".into(),
        21 => format!("endpoint=[::ffff:192.0.2.1]:{}", 1 + dice.roll(9)),
        22 => ["remove=false", "nonsense=1", "key", "allowed_ip=10.0.0.0"][dice.roll(4) as usize]
            .into(),
        _ => "allowed_ip=0.0.0.0/0".into(),
    }
}
