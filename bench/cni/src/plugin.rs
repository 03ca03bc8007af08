//! A CNI plugin, called as a runtime calls it and timed from its start to its end.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use lab::Place;
use serde_json::Value;

/// A plugin with its network configuration, in the namespaces of the host that it serves.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    /// Its name in the table.
    pub(crate) name: &'static str,
    file: PathBuf,
    folder: PathBuf,
    network: String,
    place: Place,
}

/// A container: a network namespace and a name.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// The pod's name, and the container's id.
    pub(crate) name: String,
    /// The network namespace's name.
    pub(crate) netns: String,
}

/// What a runtime asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

impl Plugin {
    /// A plugin of a folder, which it may call others of.
    pub(crate) fn new(name: &'static str, file: &Path, network: &Value, place: Place) -> Self {
        Self {
            name,
            file: file.to_owned(),
            folder: file.parent().map(Path::to_owned).unwrap_or_default(),
            network: network.to_string(),
            place,
        }
    }

    /// Calls it; returns how long it ran, and what it answered.
    pub(crate) fn call(
        &self,
        verb: Verb,
        container: &Container,
    ) -> anyhow::Result<(Duration, Value)> {
        let (taken, said) = thread::scope(|scope| {
            let ran = scope.spawn(|| {
                self.place.enter()?;
                self.run(verb, container)
            });
            ran.join()
                .unwrap_or_else(|_| bail!("the caller's thread panicked"))
        })?;
        let answer = if said.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&said)?
        };

        Ok((taken, answer))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "runtimes run plugins as programs"
    )]
    fn run(&self, verb: Verb, container: &Container) -> anyhow::Result<(Duration, Vec<u8>)> {
        let mut command = Command::new(&self.file);
        command
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_CONTAINERID", &container.name)
            .env("CNI_NETNS", format!("/run/netns/{}", container.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}",
                    container.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let begin = Instant::now();
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().context("no standard input")?;
        input.write_all(self.network.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        let taken = begin.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            bail!(
                "{} {} of {}: {said}",
                self.name,
                verb.as_str(),
                container.name
            );
        }

        Ok((taken, output.stdout))
    }
}
