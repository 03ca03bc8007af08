//! `meshd agent --record FILE`: every event with its moment, one JSON text a line.
//!
//! The first line says what the file is, its version and whose brain it was, so that
//! `meshctl replay FILE` can rebuild the same brain.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context;
use meshd_core::Config;
use model::{
    Event, Moment,
    event::{EVENT_VERSION, Recorded},
};
use serde::{Deserialize, Serialize};

/// The first line of a recording.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    recording: String,
    version: u32,
    config: Config,
}

/// Writes events to a file as they are applied.
#[derive(Debug)]
pub(crate) struct Recorder {
    file: BufWriter<File>,
}

impl Recorder {
    /// Starts a recording in a new file, which only its owner reads.
    pub(crate) fn create(path: &Path, config: &Config) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("could not write the recording {}", path.display()))?;
        let mut recorder = Self {
            file: BufWriter::new(file),
        };
        recorder.line(&Header {
            recording: "meshd".to_owned(),
            version: EVENT_VERSION,
            config: config.clone(),
        })?;

        Ok(recorder)
    }

    /// Adds an event.
    pub(crate) fn record(&mut self, event: &Event, at: Moment) -> anyhow::Result<()> {
        self.line(&Recorded {
            at,
            event: event.clone(),
        })
    }

    /// Writes a line whole, so that a killed agent leaves a readable recording.
    fn line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.file, value).context("could not write the recording")?;
        self.file
            .write_all(b"\n")
            .context("could not write the recording")?;

        self.file.flush().context("could not write the recording")
    }
}
