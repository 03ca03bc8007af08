//! How fast the embedded store is: over TLS, with its server in a process of its own.
//!
//! ```text
//! this process: 200 clients, each its own connection ══ TLS ══ child: the server, its file, its RSS
//! ```
//!
//! Prints one Markdown table; `store.md` beside this package keeps the last one that was committed.
//! Clients decode what they get, so an arrival includes the receiver's share of the two CPUs.

mod figure;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use model::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{Client, Credential, Options, Server, ServerOptions, Store, WatchEvent, watch_all};
use tokio::sync::mpsc;

use self::figure::Figures;

const OBJECTS: usize = 100_000;
const WATCHERS: usize = 200;
const PUTS: usize = 500;
const LISTS: usize = 20;

/// Writes that are under way at once while the store is filled.
const FILLERS: usize = 64;

const KIND: Kind = Kind::WorkloadEndpoint;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("the runtime cannot be started")?;
    let mut arguments = env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("serve"), Some(data)) => runtime.block_on(serve(Path::new(&data))),
        (None, None) => runtime.block_on(measure()),
        _ => bail!("usage: bench-store"),
    }
}

/// The child: serves until it is killed.
async fn serve(data: &Path) -> anyhow::Result<()> {
    let options = ServerOptions {
        data: data.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: Vec::new(),
        store: Options::default(),
    };
    let server = Server::start(options, Timestamp::now()).await?;
    say("ready");

    Ok(server.run(std::future::pending()).await?)
}

async fn measure() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut server = Process::start(directory.path())?;
    let admin = server.client()?;
    let mut figures = Figures::default();

    small_mesh(&server, &mut figures).await?;
    fill(&admin, &mut figures).await?;
    list(&admin, &mut figures).await?;
    figures.memory(
        &format!("server's RSS with {OBJECTS} objects"),
        server.rss()?,
    );
    puts(&server, &admin, &mut figures).await?;
    say(&figures.render());

    server.stop()
}

/// Three members that follow every kind, and a dozen objects.
async fn small_mesh(server: &Process, figures: &mut Figures) -> anyhow::Result<()> {
    let admin = server.client()?;
    let mut members = Vec::new();
    for number in 0..3 {
        members.push(watch_all(Arc::new(server.client()?), Kind::ALL));
        admin.create(endpoint(OBJECTS + number)).await?;
    }
    for member in &mut members {
        let mut in_sync = 0;
        while in_sync < Kind::ALL.len() {
            let event = member.next().await.context("a follower ended")?;
            in_sync += usize::from(matches!(event, store::StoreEvent::InSync(_)));
        }
    }
    figures.memory(
        "server's RSS with 3 members that follow every kind",
        server.rss()?,
    );

    Ok(())
}

async fn fill(admin: &Client, figures: &mut Figures) -> anyhow::Result<()> {
    let start = Instant::now();
    let writes = stream::iter(0..OBJECTS).map(|number| admin.create(endpoint(number)));
    let mut writes = writes.buffer_unordered(FILLERS);
    while let Some(written) = writes.next().await {
        written?;
    }
    let rate = OBJECTS as f64 / start.elapsed().as_secs_f64();
    figures.plain(
        &format!("creates per second, {FILLERS} at once"),
        format!("{rate:.0}"),
    );

    Ok(())
}

async fn list(admin: &Client, figures: &mut Figures) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let start = Instant::now();
        let objects = admin.list(KIND).await?.objects.len();
        times.push(start.elapsed());
        if objects < OBJECTS {
            bail!("{objects} objects were listed");
        }
    }
    figures.times(&format!("list of {OBJECTS} objects, decoded"), times);

    Ok(())
}

/// One change after the other, each awaited until the last watcher has it.
async fn puts(server: &Process, admin: &Client, figures: &mut Figures) -> anyhow::Result<()> {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let revision = admin.list(KIND).await?.revision;
    for _ in 0..WATCHERS {
        let client = server.client()?;
        let mut watch = client.watch(KIND, revision.clone()).await?;
        let arrived = arrived.clone();
        tokio::spawn(async move {
            // The client is kept for as long as its watch.
            let _client = client;
            while let Some(Ok(event)) = watch.next().await {
                if let WatchEvent::Applied(_) = event
                    && arrived.send(Instant::now()).is_err()
                {
                    return;
                }
            }
        });
    }
    let [mut acknowledged, mut each, mut last] = [Vec::new(), Vec::new(), Vec::new()];
    for number in 0..PUTS {
        let mut object = admin.get(endpoint(number * 7).key()).await?;
        object
            .metadata
            .annotations
            .insert("bench.example/put".into(), number.to_string());
        let start = Instant::now();
        admin.update(object).await?;
        acknowledged.push(start.elapsed());
        let mut latest = Duration::ZERO;
        for _ in 0..WATCHERS {
            let at = tokio::time::timeout(Duration::from_secs(10), arrivals.recv()).await;
            let taken = at
                .context("a watcher heard nothing")?
                .context("no watcher is left")?
                - start;
            each.push(taken);
            latest = latest.max(taken);
        }
        last.push(latest);
    }
    figures.times("one put, fsync included, acknowledged", acknowledged);
    figures.times(
        &format!("the put's arrival at each of {WATCHERS} watchers"),
        each,
    );
    figures.times(
        &format!("the put's arrival at the last of {WATCHERS} watchers"),
        last,
    );
    figures.memory(
        &format!("server's RSS with {WATCHERS} watchers beside"),
        server.rss()?,
    );

    Ok(())
}

/// A pod's endpoint of some 600 bytes.
fn endpoint(number: usize) -> Object {
    let node = format!("node-{}", number / 100);
    let name = format!("node--{}-k8s-pod--{number}-eth0", number / 100);
    let address = format!(
        "10.{}.{}.{}/32",
        64 + (number >> 16),
        number >> 8 & 255,
        number & 255
    );
    let mut object = Object::new(
        &ObjectKey::namespaced(KIND, "default", name),
        json!({
            "orchestrator": "k8s", "node": node, "pod": format!("pod-{number}"),
            "endpoint": "eth0", "interfaceName": format!("cali{number:011x}"),
            "ipNetworks": [address], "profiles": ["kns.default", "ksa.default.default"],
        }),
    );
    for (label, value) in [("app", "web"), ("tier", "front"), ("release", "2026-11")] {
        object
            .metadata
            .labels
            .insert(label.to_owned(), value.to_owned());
    }

    object
}

/// The server's process.
struct Process {
    child: Child,
    credential: Credential,
}

impl Process {
    #[expect(
        clippy::disallowed_methods,
        reason = "the server's memory is measured apart"
    )]
    fn start(data: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("serve")
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .context("the server cannot be started")?;
        let stdout = child.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let credential = Credential::load(&data.join("admin.yaml"))?;

        Ok(Self { child, credential })
    }

    /// Returns a client with a connection of its own.
    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.credential.clone())?)
    }

    /// Returns the server's resident memory in KiB.
    fn rss(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.and_then(|line| line.split_whitespace().next());

        words
            .context("the kernel does not say")?
            .parse()
            .context("the kernel's number")
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;

        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Where `stop` was not reached; it fails where it was.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::print_stdout, reason = "the result")]
fn say(text: &str) {
    println!("{text}");
}
