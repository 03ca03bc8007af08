//! `wg-quick`, as people use it: addresses, routes, DNS, hooks, SaveConfig; and nothing is left when it is down.
//!
//! ```text
//!  ┌─ here ───────────────────┐           ┌─ there ──────────────────────┐
//!  │ wg-quick's device        │           │ the other end 10.7.0.2       │
//!  │ 10.7.0.1, fd07::1        │           │ and the world: 198.51.100.7, │
//!  │ eth0 192.0.2.1           │───────────│ 2001:db8:7::7 · eth0 .2      │
//!  └──────────────────────────┘           └──────────────────────────────┘
//! ```
//!
//! `wg-quick` makes a kernel device where the kernel can, else it starts `$WG_QUICK_USERSPACE_IMPLEMENTATION`: on a
//! machine without kernel WireGuard the stories of `meshwire` are told, under a kernel that has it those of `kernel`.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use wireguard::device::program;
use wireguard::space::unique;
use wireguard::traffic::{echo, tcp};
use wireguard::{Device, Keys, Make, Space, attempt, stories, until};

stories! { alone:
    up_makes_the_device_that_its_file_describes_and_down_leaves_nothing;
    a_default_route_goes_through_the_tunnel_and_nothing_beside;
    names_are_asked_inside_as_long_as_the_device_is_up;
    hooks_run_at_their_moments_with_the_device_s_name;
    what_was_changed_is_saved;
    a_new_file_is_taken_over_without_a_new_session;
    up_twice_is_refused_and_harms_nothing;
}

/// Somebody who uses `wg-quick`.
struct User {
    make: Make,
    here: Space,
    there: Space,
    other: Device,
    keys: Keys,
    name: String,
    /// Holds the configuration, a `resolvconf` that notes what it is told, and what hooks write.
    folder: PathBuf,
}

impl User {
    fn new(make: Make) -> Self {
        let (here, there) = (Space::new(), Space::new());
        here.cable("eth0", &there, "eth0");
        for (space, number) in [(&here, 1), (&there, 2)] {
            space.address("eth0", &format!("192.0.2.{number}/24"));
            space.address("eth0", &format!("2001:db8::{number}/64"));
        }
        until("the addresses are settled", || {
            [&here, &there]
                .iter()
                .all(|space| !space.ip("addr show").contains("tentative"))
        });
        let keys = Keys::generate();
        let other = Device::new(make, &there, 6002);
        other.wg(&format!(
            "peer {} allowed-ips 10.7.0.1/32,fd07::1/128",
            keys.public
        ));
        other.up(&[
            "10.7.0.2/24",
            "fd07::2/64",
            "198.51.100.7/32",
            "2001:db8:7::7/128",
        ]);
        let name = unique("wsq");
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir(&folder).unwrap();
        let resolvconf = folder.join("resolvconf");
        let noted = folder.join("noted");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >>{0}\n[ \"$1\" != -a ] || cat >>{0}\n",
            noted.display()
        );
        fs::write(&resolvconf, script).unwrap();
        fs::set_permissions(&resolvconf, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            make,
            here,
            there,
            other,
            keys,
            name,
            folder,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.conf", self.name))
    }

    /// Writes the configuration: more lines for the interface, and the networks of the other end.
    fn write(&self, interface: &str, allowed_ips: &str) {
        let mut text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 6001\nAddress = 10.7.0.1/24, fd07::1/64\n{interface}\n",
            self.keys.private
        );
        let public = &self.other.keys.public;
        writeln!(
            text,
            "[Peer]\nPublicKey = {public}\nEndpoint = 192.0.2.2:6002\nAllowedIPs = {allowed_ips}"
        )
        .unwrap();
        fs::write(self.file(), text).unwrap();
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn quick(&self, verb: &str) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap();
        let implementation = program("meshwire");
        let line = format!(
            "ip netns exec {} env PATH={}:{path} WG_QUICK_USERSPACE_IMPLEMENTATION={} wg-quick {verb} {}",
            self.here.name(),
            self.folder.display(),
            implementation.display(),
            self.file().display(),
        );
        attempt(&line, "")
    }

    fn up(&self) {
        self.quick("up").unwrap_or_else(|error| panic!("{error}"));
        let kind = self.here.ip(&format!("-d link show {}", self.name));
        let is_kernel = kind.contains(" wireguard ");
        assert_eq!(
            is_kernel,
            self.make == Make::Kernel,
            "wg-quick chose another make: {kind}"
        );
    }

    fn down(&self) {
        self.quick("down").unwrap_or_else(|error| panic!("{error}"));
        until("the process has ended", || {
            attempt(&format!("ip netns pids {}", self.here.name()), "")
                .unwrap()
                .is_empty()
        });
    }

    /// All that a device of `wg-quick` could leave behind.
    fn machine(&self) -> String {
        let looks = [
            "-o addr show",
            "-4 rule show",
            "-6 rule show",
            "-4 route show table all",
            "-6 route show table all",
        ];
        let mut text = String::new();
        for look in looks {
            writeln!(text, "{}", self.here.ip(look)).unwrap();
        }
        let socket = format!("/var/run/wireguard/{}.sock", self.name);
        writeln!(text, "{}", self.here.exec("nft list ruleset")).unwrap();
        writeln!(text, "socket: {}", fs::exists(socket).unwrap()).unwrap();
        // Lifetimes and hop limits of what the kernel learns by itself come and go.
        text.lines()
            .filter(|line| !line.contains("proto ra"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn noted(&self) -> String {
        fs::read_to_string(self.folder.join("noted")).unwrap_or_default()
    }

    fn wg(&self, line: &str) -> String {
        self.here.exec(&format!("wg {line}"))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.here.has_link(&self.name) {
            // A story that failed half-way; its failure is told already.
            let _: Result<String, String> = self.quick("down");
        }
        let _: std::io::Result<()> = fs::remove_dir_all(&self.folder);
    }
}

fn up_makes_the_device_that_its_file_describes_and_down_leaves_nothing(make: Make) {
    let user = User::new(make);
    let before = user.machine();
    user.write("", "10.7.0.2/32, fd07::2/128, 198.51.100.0/24");
    user.up();
    let link = user.here.ip(&format!("link show {}", user.name));
    assert!(link.contains("mtu 1420"), "80 less than the way: {link}");
    let addresses = user.here.ip(&format!("addr show {}", user.name));
    assert!(addresses.contains("10.7.0.1/24") && addresses.contains("fd07::1/64"));
    let routes = user.here.ip(&format!("route show dev {}", user.name));
    assert!(routes.contains("198.51.100.0/24"), "{routes}");
    assert_eq!(
        user.wg(&format!("show {} listen-port", user.name)).trim(),
        "6001"
    );
    echo(&user.here, &user.there, "10.7.0.2", [100, 1392]);
    echo(&user.here, &user.there, "198.51.100.7", [100]);
    tcp(&user.here, &user.there, "fd07::2", 2, 128 << 10);
    user.down();
    assert_eq!(user.machine(), before);
}

fn a_default_route_goes_through_the_tunnel_and_nothing_beside(make: Make) {
    let user = User::new(make);
    user.here.ip("route add default via 192.0.2.2");
    user.here.ip("-6 route add default via 2001:db8::2");
    let before = user.machine();
    user.write("MTU = 1380", "0.0.0.0/0, ::/0");
    user.up();
    assert!(
        user.here
            .ip(&format!("link show {}", user.name))
            .contains("mtu 1380")
    );
    for family in ["-4", "-6"] {
        let rules = user.here.ip(&format!("{family} rule show"));
        assert!(
            rules.contains("not from all fwmark 0xca6c lookup 51820"),
            "{rules}"
        );
        let routes = user.here.ip(&format!("{family} route show table 51820"));
        assert!(
            routes.contains(&format!("default dev {}", user.name)),
            "{routes}"
        );
    }
    assert_eq!(
        user.wg(&format!("show {} fwmark", user.name)).trim(),
        "0xca6c"
    );
    // Nothing but the tunnel's own packets leaves beside it.
    user.here.nft(
        "table inet watch { chain out { type filter hook postrouting priority 300
           oifname eth0 udp dport 6002 accept
           oifname eth0 meta l4proto { tcp, udp, icmp } counter drop
         }
         }",
    );
    echo(&user.here, &user.there, "198.51.100.7", [100, 1300]);
    echo(&user.here, &user.there, "2001:db8:7::7", [100, 1300]);
    tcp(&user.here, &user.there, "198.51.100.7", 2, 128 << 10);
    let watched = user.here.exec("nft list table inet watch");
    assert!(watched.contains("counter packets 0 bytes 0"), "{watched}");
    user.here.exec("nft delete table inet watch");
    user.down();
    assert_eq!(user.machine(), before);
}

fn names_are_asked_inside_as_long_as_the_device_is_up(make: Make) {
    let user = User::new(make);
    user.write("DNS = 10.7.0.53, fd07::53, example.org", "10.7.0.0/24");
    user.up();
    let name = &user.name;
    let noted = user.noted();
    assert!(
        noted.contains(&format!("-a {name} -m 0 -x"))
            || noted.contains(&format!("-a tun.{name} -m 0 -x")),
        "{noted}"
    );
    for line in [
        "nameserver 10.7.0.53",
        "nameserver fd07::53",
        "search example.org",
    ] {
        assert!(noted.contains(line), "{noted}");
    }
    user.down();
    let noted = user.noted();
    assert!(
        noted
            .lines()
            .any(|line| line.starts_with("-d ") && line.contains(&**name)),
        "{noted}"
    );
}

fn hooks_run_at_their_moments_with_the_device_s_name(make: Make) {
    let user = User::new(make);
    let noted = user.folder.join("noted");
    let hook = |moment: &str| {
        format!(
            "{moment} = echo {moment} %i $(cat /sys/class/net/%i/operstate) >>{}\n",
            noted.display()
        )
    };
    let hooks: String = ["PreUp", "PostUp", "PreDown", "PostDown"]
        .map(hook)
        .concat();
    user.write(&hooks, "10.7.0.0/24");
    user.up();
    user.down();
    let noted = user.noted();
    let lines: Vec<Vec<&str>> = noted
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    let moments: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(moments, ["PreUp", "PostUp", "PreDown", "PostDown"]);
    assert!(lines.iter().all(|line| line[1] == user.name));
    // It is there between the first and the last.
    let states: Vec<&str> = lines
        .iter()
        .map(|line| line.get(2).copied().unwrap_or(""))
        .collect();
    assert_eq!((states[0], states[3]), ("", ""), "{noted}");
    assert!(["unknown", "up"].contains(&states[1]), "{noted}");
}

fn what_was_changed_is_saved(make: Make) {
    let user = User::new(make);
    user.write("SaveConfig = true", "10.7.0.2/32, fd07::2/128");
    user.up();
    echo(&user.here, &user.there, "10.7.0.2", [100]);
    let added = Keys::generate().public;
    user.wg(&format!(
        "set {} peer {added} allowed-ips 10.66.0.0/16 persistent-keepalive 25",
        user.name
    ));
    user.quick("save").unwrap();
    assert!(fs::read_to_string(user.file()).unwrap().contains(&added));
    user.wg(&format!(
        "set {} peer {added} allowed-ips 10.67.0.0/16",
        user.name
    ));
    user.down();
    let saved = fs::read_to_string(user.file()).unwrap();
    assert!(
        saved.contains("10.67.0.0/16") && saved.contains(&user.keys.private),
        "{saved}"
    );
    user.up();
    let told = user.wg(&format!("show {} dump", user.name));
    assert!(
        told.contains(&added) && told.contains("10.67.0.0/16"),
        "{told}"
    );
    echo(&user.here, &user.there, "10.7.0.2", [100]);
    user.down();
}

fn a_new_file_is_taken_over_without_a_new_session(make: Make) {
    let user = User::new(make);
    user.write("", "10.7.0.2/32");
    user.up();
    echo(&user.here, &user.there, "10.7.0.2", [100]);
    let handshakes = || user.wg(&format!("show {} latest-handshakes", user.name));
    let before = handshakes();
    user.write("DNS = 10.7.0.53", "10.7.0.2/32, fd07::2/128");
    let stripped = user.quick("strip").unwrap();
    assert!(
        !stripped.contains("DNS") && !stripped.contains("Address"),
        "{stripped}"
    );
    user.here
        .exec_with(&format!("wg syncconf {} /dev/stdin", user.name), &stripped);
    echo(&user.here, &user.there, "fd07::2", [100]);
    assert_eq!(handshakes(), before);
    user.down();
}

fn up_twice_is_refused_and_harms_nothing(make: Make) {
    let user = User::new(make);
    user.write("", "10.7.0.2/32");
    user.up();
    let error = user.quick("up").unwrap_err();
    assert!(error.contains("already exists"), "{error}");
    echo(&user.here, &user.there, "10.7.0.2", [100]);
    user.down();
    assert!(user.quick("down").is_err());
}
