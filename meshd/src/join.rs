//! `meshd join`: makes this host a member.
//!
//! Its order makes a broken-off join repeatable: the host's key is on disk before the server hears
//! of it, and a used token is answered again to the key that used it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use jiff::Timestamp;
use keyring::{create_private_folder, remove_private, write_private};
use model::NodeName;
use store::{Client, Credential, Enrolment, Identity, Token, enrol};
use zeroize::Zeroizing;

use crate::service;

/// Makes this host a member of a mesh.
///
/// Makes the host's key, gets a certificate for it, writes the agent's configuration, and starts
/// the services where systemd runs. Running it again is harmless.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  meshd join https://192.0.2.1:7443 --token T\n  meshd join https://192.0.2.1:7443 --token T --name edge-7\n\nThe token comes from: meshctl token create"
)]
pub(crate) struct Args {
    /// The server.
    url: String,

    /// The token; - reads it from standard input.
    #[arg(long, env = "MESHD_TOKEN", hide_env_values = true)]
    token: String,

    /// This node's name [default: the token's, else the host's].
    #[arg(long, alias = "node")]
    name: Option<NodeName>,

    /// Where the host's key is kept.
    #[arg(long, default_value = "/var/lib/meshd/identity")]
    identity: PathBuf,

    /// The agent's configuration, which this writes.
    #[arg(
        long,
        env = "MESHD_CONFIG",
        default_value = "/var/lib/meshd/config.yaml"
    )]
    config: PathBuf,

    /// Do not touch systemd.
    #[arg(long)]
    no_services: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let token = read_token(&args.token)?;
    let credential = match member(&args, &token, Timestamp::now())? {
        Some(present) => runtime.block_on(confirmed(&args, &token, present))?,
        None => runtime.block_on(become_member(&args, &token))?,
    };
    say(&format!(
        "{} is a member of mesh {:.12}",
        credential.identity().name(),
        credential.mesh()?
    ));

    if args.no_services {
        Ok(())
    } else {
        service::start()
    }
}

/// Returns the credential of a host that is a member of the token's mesh already.
fn member(args: &Args, token: &Token, now: Timestamp) -> anyhow::Result<Option<Credential>> {
    if !args.config.exists() {
        return Ok(None);
    }
    let present = Credential::load(&args.config).context(
        "no usable credential; restore it, or move it away and join with a --replace token",
    )?;
    if present.mesh()? != hex(token.fingerprint()) {
        bail!(
            "{} belongs to another mesh; to leave that one, stop meshd and move the file away",
            args.config.display()
        );
    }
    let named = args
        .name
        .as_ref()
        .is_none_or(|name| *present.identity() == node(name));
    if !named {
        bail!(
            "this host is {} already; a host has one name",
            present.identity().name()
        );
    }
    let (_, until) = present.validity();

    Ok((now < until).then_some(present))
}

/// Asks the server whether it still takes the host for a member; one that was removed joins anew.
async fn confirmed(args: &Args, token: &Token, present: Credential) -> anyhow::Result<Credential> {
    let hello = Client::new(present.clone())?.hello().await;
    let Err(refusal) = hello else {
        // An earlier join may have been killed just before its last step.
        remove_key(args)?;
        return Ok(present);
    };

    // A server that is there but does not talk to this certificate has removed the node.
    become_member(args, token).await.with_context(|| {
        format!(
            "the server does not answer to this host's credential as {} ({refusal}), and the host could not join anew",
            present.identity().name()
        )
    })
}

async fn become_member(args: &Args, token: &Token) -> anyhow::Result<Credential> {
    let key = host_key(&args.identity)?;
    let enrolment = |name| Enrolment {
        server: &args.url,
        token,
        name,
        key: &key,
    };
    let enrolled = enrol(enrolment(args.name.clone()), Timestamp::now()).await;
    let credential = match enrolled {
        // A token for any name needs one: the host's.
        Err(error) if error.needs_name() => {
            let name = host_name()?;
            enrol(enrolment(Some(name)), Timestamp::now()).await?
        }
        enrolled => enrolled?,
    };
    create_private_parent(&args.config)?;
    credential.save(&args.config)?;
    // The key is in the configuration now; the next join makes another.
    remove_key(args)?;

    Ok(credential)
}

fn remove_key(args: &Args) -> anyhow::Result<()> {
    remove_private(&args.identity.join(KEY)).context("the key's file cannot be removed")
}

const KEY: &str = "joining.key";

/// Largest key that is read, in bytes.
const KEY_MAX: u64 = 16 * 1024;

/// Returns the host's key; makes it where an earlier join left none.
fn host_key(directory: &Path) -> anyhow::Result<Zeroizing<String>> {
    let path = directory.join(KEY);
    if path.exists() {
        return read_key(&path);
    }
    create_private_parent(&path)?;
    let key = Enrolment::generate_key()?;
    write_private(&path, key.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;

    Ok(key)
}

/// Reads the key that an earlier join left. A damaged one is not replaced: a token may be bound to it.
fn read_key(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new(String::with_capacity(KEY_MAX as usize));
    File::open(path)
        .and_then(|file| file.take(KEY_MAX).read_to_string(&mut key))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if !Enrolment::is_key(&key) {
        bail!(
            "{} is damaged: remove it, and join again with a token that was not used yet",
            path.display()
        );
    }

    Ok(key)
}

fn create_private_parent(path: &Path) -> anyhow::Result<()> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    create_private_folder(directory).with_context(|| format!("cannot make {}", directory.display()))
}

fn read_token(text: &str) -> anyhow::Result<Token> {
    if text != "-" {
        return Ok(text.trim().parse()?);
    }
    let mut line = Zeroizing::new(String::new());
    std::io::stdin()
        .read_line(&mut line)
        .context("the token cannot be read")?;

    Ok(line.trim().parse()?)
}

fn host_name() -> anyhow::Result<NodeName> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();

    name.parse()
        .with_context(|| "this host's name is no node name: give one with --name")
}

fn node(name: &NodeName) -> Identity {
    Identity::Node(name.clone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn say(line: &str) {
    println!("{line}");
}
