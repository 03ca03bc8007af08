//! `meshd cni`: gives this machine's container runtimes the plugin, and takes it away again.
//!
//! ```text
//! meshd-cni, beside meshd ──copy, rename──▶ /opt/cni/bin/meshd
//! runtimes' programs ──which versions?──▶ /etc/cni/net.d/10-meshd.conflist
//! ```
//!
//! The plugin comes first: no configuration ever names a program that is not there.

mod runtime;

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// The program's name in the runtimes' folder: what configurations call `type`.
const TYPE: &str = "meshd";

/// The program as it is built.
const PROGRAM: &str = "meshd-cni";

/// The configuration's name: runtimes take the first of their folder.
const CONFIGURATION: &str = "10-meshd.conflist";

/// The network's name, which is Calico's: the handles of addresses begin with it.
const NETWORK: &str = "k8s-pod-network";

/// Whoever may write there may become root by the next container.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// Largest configuration that is looked at, in bytes.
const CONFIGURATION_MAX: u64 = 1024 * 1024;

/// Gives container runtimes the CNI plugin, or takes it away.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Install(Install),
    Uninstall(Places),
}

/// Installs the plugin and its configuration.
///
/// The configuration's cniVersion is the highest that every container runtime found on this machine understands.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshd cni install\n  meshd cni install --runtime /opt/bin/containerd --conf-dir /etc/cni/net.d"
)]
struct Install {
    #[command(flatten)]
    places: Places,

    /// The plugin; by default the meshd-cni beside this program.
    #[arg(long)]
    plugin: Option<PathBuf>,

    /// A container runtime's program, to see which CNI versions it understands; by default each that is found.
    #[arg(long)]
    runtime: Vec<PathBuf>,
}

/// Takes away what `meshd cni install` put there; others' files stay.
#[derive(Debug, clap::Args)]
pub(crate) struct Places {
    /// Where the runtimes look for plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// Where they look for configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Install(install) => install.run(),
        Command::Uninstall(places) => {
            for file in places.remove()? {
                say(&format!("removed {}", file.display()));
            }
            Ok(())
        }
    }
}

impl Install {
    fn run(&self) -> anyhow::Result<()> {
        let plugin = self.plugin.clone().map_or_else(beside, Ok)?;
        let found = runtime::newest_common(&self.runtime)?;
        let program = self.places.program();
        put(&program, &read_program(&plugin)?, 0o755)?;
        let text = serde_json::to_vec_pretty(&configuration(found.version))
            .context("the configuration cannot be written")?;
        put(&self.places.configuration(), &text, 0o600)?;
        say(&format!("{} from {}", program.display(), plugin.display()));
        say(&format!(
            "{} of CNI {} ({})",
            self.places.configuration().display(),
            found.version,
            found.why
        ));

        Ok(())
    }
}

impl Places {
    /// Where runtimes look unless they are told otherwise.
    pub(crate) fn usual() -> Self {
        Self {
            bin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
        }
    }

    fn program(&self) -> PathBuf {
        self.bin_dir.join(TYPE)
    }

    fn configuration(&self) -> PathBuf {
        self.conf_dir.join(CONFIGURATION)
    }

    /// Returns our files where the configuration is installed: without it, the program may be anybody's.
    pub(crate) fn installed(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files = self.files()?;
        let is_installed = files.first() == Some(&self.configuration());

        Ok(if is_installed { files } else { Vec::new() })
    }

    /// Returns which of our files are there: the configuration first, so that nothing names a program that is gone.
    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let configuration = self.configuration();
        let is_ours = match File::open(&configuration) {
            Ok(file) => {
                let mut text = Vec::new();
                file.take(CONFIGURATION_MAX).read_to_end(&mut text)?;
                serde_json::from_slice::<Value>(&text)
                    .is_ok_and(|read| read["plugins"][0]["type"] == TYPE)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read {}", configuration.display()));
            }
        };
        let program = self.program();
        let mut files = Vec::new();
        files.extend(is_ours.then_some(configuration));
        files.extend(program.is_file().then_some(program));

        Ok(files)
    }

    /// Removes our files and returns which those were.
    fn remove(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files = self.files()?;
        for file in &files {
            remove(file)?;
        }

        Ok(files)
    }
}

/// Removes a file.
pub(crate) fn remove(file: &Path) -> anyhow::Result<()> {
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
}

fn beside() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program does not know its own file")?;

    Ok(own.with_file_name(PROGRAM))
}

/// Reads the plugin, which must be what a runtime may safely run as root.
fn read_program(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut file = File::open(path).with_context(|| {
        format!(
            "no plugin at {}; say where it is: --plugin FILE",
            path.display()
        )
    })?;
    let facts = file.metadata()?;
    ensure!(facts.is_file(), "{} is no file", path.display());
    let is_set_id = facts.mode() & SET_ID != 0;
    ensure!(
        !is_set_id,
        "{} is set-user-id, which a plugin must not be",
        path.display()
    );
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    ensure!(
        program.starts_with(b"\x7fELF"),
        "{} is no program",
        path.display()
    );

    Ok(program)
}

fn configuration(version: &str) -> Value {
    let capabilities = json!({"portMappings": true, "bandwidth": true, "ips": true, "mac": true});

    json!({
        "cniVersion": version,
        "name": NETWORK,
        "plugins": [{"type": TYPE, "capabilities": capabilities}],
    })
}

/// Puts a file into place whole: root's own, and only then under its name.
fn put(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    refuse_foreign_folder(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes read every `.conf`, `.conflist` and `.json`: this is none of them.
    let new = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = write(&new, content, mode).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // What is left of it has no name that anybody reads.
        drop(fs::remove_file(&new));
    }
    written.with_context(|| format!("cannot write {}", path.display()))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("cannot write {}", folder.display()))
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    fchown(&file, Some(0), Some(0))?;
    // The mask of whoever runs this does not count.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(content)?;

    file.sync_all()
}

/// A folder in which others can write is one in which they can replace what root runs.
fn refuse_foreign_folder(folder: &Path) -> anyhow::Result<()> {
    let facts = fs::metadata(folder).with_context(|| format!("cannot see {}", folder.display()))?;
    if facts.uid() == 0 && facts.mode() & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }

    bail!(
        "{} must be root's, and writable by nobody else: others could replace what runtimes run as root",
        folder.display()
    )
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn places(root: &Path) -> Places {
        Places {
            bin_dir: root.join("bin"),
            conf_dir: root.join("net.d"),
        }
    }

    fn install(root: &Path, plugin: &Path, runtime: &Path) -> anyhow::Result<()> {
        let install = Install {
            places: places(root),
            plugin: Some(plugin.to_owned()),
            runtime: vec![runtime.to_owned()],
        };
        install.run()
    }

    fn file(path: &Path, content: &[u8]) -> PathBuf {
        fs::write(path, content).unwrap();
        path.to_owned()
    }

    #[test]
    fn a_plugin_is_roots_whole_and_taken_away_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let plugin = file(&root.join("meshd-cni"), b"\x7fELF plugin");
        let runtime = file(
            &root.join("containerd"),
            b"\x7fELF containernetworking/cni/libcni pkg/types/100",
        );
        fs::create_dir(root.join("net.d")).unwrap();
        let other = file(&root.join("net.d/20-other.conf"), b"{}");

        for _ in 0..2 {
            install(root, &plugin, &runtime).unwrap();
        }

        let program = fs::metadata(root.join("bin/meshd")).unwrap();
        assert_eq!((program.uid(), program.mode() & 0o7777), (0, 0o755));
        let text = fs::read(root.join("net.d/10-meshd.conflist")).unwrap();
        let read: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&read["cniVersion"], &read["plugins"][0]["type"]),
            (&json!("1.0.0"), &json!("meshd"))
        );
        assert_eq!(fs::read_dir(root.join("bin")).unwrap().count(), 1);
        assert_eq!(places(root).remove().unwrap().len(), 2);
        assert!(places(root).remove().unwrap().is_empty());
        assert!(other.exists());
    }

    #[test]
    fn a_folder_that_others_can_write_gets_no_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let plugin = file(&root.join("meshd-cni"), b"\x7fELF plugin");
        fs::create_dir(root.join("bin")).unwrap();
        fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o777)).unwrap();

        let refused = install(root, &plugin, &plugin).unwrap_err();

        assert!(refused.to_string().contains("must be root's"), "{refused}");
        assert_eq!(fs::read_dir(root.join("bin")).unwrap().count(), 0);
    }

    #[test]
    fn a_set_user_id_program_is_no_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let plugin = file(&root.join("meshd-cni"), b"\x7fELF plugin");
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o4755)).unwrap();

        let refused = install(root, &plugin, &plugin).unwrap_err();

        assert!(refused.to_string().contains("set-user-id"), "{refused}");
        assert!(!root.join("bin").exists());
    }
}
