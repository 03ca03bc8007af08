//! NetworkManager itself, on a system bus of one node's own.
//!
//! The program is never installed: an installed one would take this machine's interfaces. `tools/setup` unpacks
//! it. It runs in the node's network namespace, with its configuration and state in folders of the node's own,
//! and in a mount namespace of its own where `/sys` cannot be written: so it knows that nobody waits for udev.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::{End as _, Node, poll_until};

/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its files on the node.
const FOLDER: &str = "/run/meshd/nm";

/// Where the agent looks for it, and it for what it was told.
const RUN: &str = "/run/NetworkManager";

/// Makes its folders; prints whether that of its state is new on the machine. `$0` is its folder, `$1` that of
/// its state.
const PREPARE: &str = r#"
new=no; [ -d "$1" ] || { mkdir "$1"; new=yes; }
mount -t tmpfs none "$1"
mkdir -p "$0/connections" "$1/conf.d"
cat > "$0/main.conf" <<END
[main]
plugins=keyfile
dns=none
auth-polkit=false
[keyfile]
path=$0/connections
unmanaged-devices+=interface-name:eth*
END
cat > "$0/connections/plug.nmconnection" <<END
[connection]
id=plug
uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8
type=ethernet
interface-name=plug0
[ipv4]
method=manual
address1=198.51.100.1/24
[ipv6]
method=disabled
END
chmod 600 "$0/connections/plug.nmconnection"
cat > "$0/bus.conf" <<END
<busconfig>
  <type>system</type>
  <listen>unix:path=$0/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_type="method_call"/> <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/> <allow receive_type="method_return"/>
    <allow receive_type="error"/> <allow receive_type="signal"/>
  </policy>
</busconfig>
END
echo $new
"#;

/// Starts the bus and prints its process. `$0` is the folder.
const START_BUS: &str = r#"
setsid dbus-daemon --config-file="$0/bus.conf" --nofork --nopidfile </dev/null >"$0/bus.log" 2>&1 &
echo $!
"#;

/// Starts it and prints its process. `$0` is the folder, `$1` where the program is.
const START: &str = r#"
setsid unshare -m sh -e -c '
  mount -t tmpfs none /var/lib
  mount -t sysfs none /sys 2>/dev/null || true  # it may be there already
  mount -o remount,bind,ro /sys
  export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$0/bus"
  export LD_LIBRARY_PATH="$(echo "$1"/usr/lib/*-linux-gnu)"
  exec "$1/usr/sbin/NetworkManager" --no-daemon --config "$0/main.conf" --config-dir "$0/none"
' "$0" "$1" </dev/null >"$0/log" 2>&1 &
echo $!
"#;

/// Runs its command: `$0` is the folder, `$1` where the program is, the rest its arguments.
const COMMAND: &str = r#"
program=$1; shift
export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$0/bus" LD_LIBRARY_PATH="$(echo "$program"/usr/lib/*-linux-gnu)"
"$program/usr/bin/nmcli" "$@" 2>/dev/null || true
"#;

/// A running NetworkManager; it ends when this is dropped, and its folders go with it.
#[derive(Debug)]
pub struct NetworkManager {
    node: Node,
    program: String,
    bus: String,
    process: String,
    is_new: bool,
}

impl NetworkManager {
    /// Starts it as the distribution configures it, but for the underlay, which is not its to configure, and a
    /// NIC `plug0`, should there be one.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(node: &Node) -> Self {
        let program = program();
        assert!(
            program.exists(),
            "{} is not there; tools/setup makes it",
            program.display()
        );
        let sh = |script: &str| node.run("sh", &["-e", "-c", script, FOLDER, RUN]);
        let is_new = sh(PREPARE).trim() == "yes";
        let bus = sh(START_BUS).trim().to_owned();
        let mut manager = Self {
            node: node.clone(),
            program: program.display().to_string(),
            bus,
            process: String::new(),
            is_new,
        };
        manager.begin();

        manager
    }

    /// Starts it again.
    ///
    /// # Panics
    /// Where it does not answer in time.
    pub fn begin(&mut self) {
        let program = &self.program;
        let process = self.node.run("sh", &["-e", "-c", START, FOLDER, program]);
        self.process = process.trim().to_owned();
        let answers = || self.cmd(&["-t", "-f", "RUNNING", "general"]) == "running";
        if !poll_until(Instant::now() + PATIENCE, answers) {
            let log = format!("tail -n 30 {FOLDER}/log {FOLDER}/bus.log");
            let said = self.node.run("sh", &["-c", &log]);
            panic!("NetworkManager does not answer: {said}");
        }
    }

    /// Ends it as its service manager would.
    pub fn end(&self) {
        let process = &self.process;
        let wait = format!(
            "kill {process}; while kill -0 {process} 2>/dev/null; do tail --pid={process} -f /dev/null; done"
        );
        self.node.run("sh", &["-c", &wait]);
    }

    /// Gives it one more file of configuration, to be read when it begins.
    pub fn tell(&self, name: &str, text: &str) {
        let script = r#"printf '%s' "$2" > "$0/conf.d/$1""#;
        self.node.run("sh", &["-e", "-c", script, RUN, name, text]);
    }

    /// Runs its command with these arguments and returns what it printed; nothing while it does not answer.
    pub fn cmd(&self, arguments: &[&str]) -> String {
        let before = ["-c", COMMAND, FOLDER, &self.program];
        let said = self.node.run("sh", &[&before[..], arguments].concat());

        said.trim().to_owned()
    }

    /// What it makes of each device, as `DEVICE:STATE` lines.
    pub fn devices(&self) -> String {
        self.cmd(&["-t", "-f", "DEVICE,STATE", "device"])
    }
}

impl Drop for NetworkManager {
    fn drop(&mut self) {
        let (process, bus) = (&self.process, &self.bus);
        let remove = if self.is_new { "rmdir" } else { "test -d" };
        let script = format!(
            "kill -KILL {process} {bus} 2>/dev/null || true; umount -l {RUN}; {remove} {RUN}"
        );
        self.node.run("sh", &["-c", &script]);
    }
}

/// Where `tools/setup` unpacks it.
fn program() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);

    cache
        .or_else(home)
        .unwrap_or_default()
        .join("meshd/tools/networkmanager")
}
