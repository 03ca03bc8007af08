//! firewalld itself, on a system bus of one node's own.
//!
//! The program is never installed: an installed one would filter the machine's own packets. `tools/setup`
//! unpacks it, and the distribution's Python runs it in the node's network namespace, with a configuration
//! that begins as the distribution's and lies in a folder of the node's own.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::{End as _, Node, poll_until};

/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its files on the node.
const FOLDER: &str = "/run/meshd/bus";

/// Starts the bus and prints its process. `$0` is the folder, `$1` the policy by which firewalld may be on it.
const START_BUS: &str = r#"
mkdir -p "$0/etc"; rm -f /run/meshd/system_bus_socket
cat > "$0/bus.conf" <<END
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/meshd/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>$1</include>
</busconfig>
END
setsid dbus-daemon --config-file="$0/bus.conf" --nofork --nopidfile </dev/null >"$0/bus.log" 2>&1 &
echo $!
"#;

/// Starts firewalld and prints its process. `$0` is the folder, `$1` where the program is.
const START: &str = r#"
PYTHONPATH="$1/usr/lib/python3/dist-packages" PYTHONDONTWRITEBYTECODE=1 \
setsid /usr/bin/python3 "$1/usr/sbin/firewalld" --nofork --nopid --log-file "$0/log" \
  --default-config "$1/usr/lib/firewalld" --system-config "$0/etc" </dev/null >"$0/out" 2>&1 &
echo $!
"#;

/// A running firewalld; it ends when this is dropped.
#[derive(Debug)]
pub struct Firewalld {
    node: Node,
    program: PathBuf,
    policy: String,
    bus: String,
    process: String,
}

impl Firewalld {
    /// Starts the bus, and firewalld as the distribution configures it.
    ///
    /// # Panics
    /// Where one of them cannot be started.
    pub fn start(node: &Node) -> Self {
        let program = program();
        let policy = program.join("usr/share/dbus-1/system.d/FirewallD.conf");
        assert!(
            policy.exists(),
            "{} is not there; tools/setup makes it",
            program.display()
        );
        let mut firewalld = Self {
            node: node.clone(),
            program,
            policy: policy.display().to_string(),
            bus: String::new(),
            process: String::new(),
        };
        firewalld.begin_bus();
        firewalld.begin();

        firewalld
    }

    /// Ends the bus at once, as a crash would; firewalld ends with it, and leaves its rules.
    pub fn kill_bus(&self) {
        self.signal("KILL", &self.bus);
        self.await_end();
    }

    /// Starts a bus again.
    pub fn begin_bus(&mut self) {
        let bus = self
            .node
            .run("sh", &["-e", "-c", START_BUS, FOLDER, &self.policy]);
        self.bus = bus.trim().to_owned();
    }

    /// Starts it again on the bus that is there.
    ///
    /// # Panics
    /// Where it does not answer in time.
    pub fn begin(&mut self) {
        let program = self.program.display().to_string();
        let process = self.node.run("sh", &["-e", "-c", START, FOLDER, &program]);
        self.process = process.trim().to_owned();
        let answers = || {
            let state = "if \"$@\" --state >/dev/null 2>&1; then echo running; fi";
            self.run(state, &[]).trim() == "running"
        };
        if !poll_until(Instant::now() + PATIENCE, answers) {
            let log = format!("tail -n 20 {FOLDER}/log {FOLDER}/out {FOLDER}/bus.log");
            let said = self.node.run("sh", &["-c", &log]);
            panic!("firewalld does not answer: {said}");
        }
    }

    /// Ends it as its service manager would: its rules go with it.
    pub fn end(&self) {
        self.signal("TERM", &self.process);
        self.await_end();
    }

    fn await_end(&self) {
        let process = &self.process;
        let wait = format!(
            "while kill -0 {process} 2>/dev/null; do tail --pid={process} -f /dev/null; done"
        );
        self.node.run("sh", &["-c", &wait]);
    }

    /// Stops it where it is: it answers nobody.
    pub fn freeze(&self) {
        self.signal("STOP", &self.process);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT", &self.process);
    }

    /// Runs its command with these arguments and returns what it printed.
    ///
    /// # Panics
    /// Where the command fails.
    pub fn cmd(&self, arguments: &[&str]) -> String {
        self.run("\"$@\"", arguments).trim().to_owned()
    }

    /// What a zone says of one of its fields: `interfaces`, `ports`.
    ///
    /// # Panics
    /// Where there is no such zone.
    pub fn list(&self, zone: &str, field: &str) -> String {
        self.cmd(&[&format!("--zone={zone}"), &format!("--list-{field}")])
    }

    /// All its zones, and all its rules: what it has at run time, and what it will have after a reload.
    pub fn all(&self) -> String {
        let zones = self.cmd(&["--list-all-zones"]);
        let permanent = self.cmd(&["--permanent", "--list-all-zones"]);
        let rules = self
            .node
            .run("nft", &["-s", "list", "table", "inet", "firewalld"]);

        [zones, permanent, rules].join("\n")
    }

    /// Runs a script in which `"$@"` is its command.
    fn run(&self, script: &str, arguments: &[&str]) -> String {
        let command = self.program.join("usr/bin/firewall-cmd");
        let command = command.display().to_string();
        let modules = self.program.join("usr/lib/python3/dist-packages");
        let modules = format!("PYTHONPATH={}", modules.display());
        let before = [&modules, "PYTHONDONTWRITEBYTECODE=1", "sh", "-c", script];
        let command = ["sh", "/usr/bin/python3", &command];
        let all = [&before, &command[..], arguments].concat();

        self.node.run("env", &all)
    }

    fn signal(&self, signal: &str, process: &str) {
        let kill = format!("kill -{signal} {process} 2>/dev/null || true");
        self.node.run("sh", &["-c", &kill]);
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        self.thaw();
        self.signal("KILL", &self.process);
        self.signal("KILL", &self.bus);
    }
}

/// Where `tools/setup` unpacks it.
fn program() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);

    cache
        .or_else(home)
        .unwrap_or_default()
        .join("meshd/tools/firewalld")
}
