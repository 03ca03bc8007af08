//! `meshd agent --record FILE`: what the brain was told and what it decided, one JSON text a line.
//!
//! A run begins with a line that says what the file is, its version and whose brain it was, so that
//! `meshctl replay FILE` can rebuild the same brain. A restarted agent adds its run to the file.
//! The format is `model::recording`'s.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, bail};
use meshd_core::Config;
use model::{
    Action, Event, Moment, Plan,
    recording::{PlanDigest, RECORDING_VERSION, Recorded},
};
use serde::Serialize;

/// How every recording begins.
const BEGINNING: &[u8] = br#"{"recording":"meshd","#;

/// The first line of a run.
#[derive(Debug, Serialize)]
struct Header {
    recording: &'static str,
    version: u32,
    config: Config,
}

/// Writes down what happens, as it happens.
#[derive(Debug)]
pub(crate) struct Recorder {
    file: BufWriter<File>,
    /// The generation of the plan that was written last.
    planned: Option<u64>,
}

impl Recorder {
    /// Begins a run, in a new file that only its owner reads or at the end of a recording.
    pub(crate) fn open(path: &Path, config: &Config) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("could not write the recording {}", path.display()))?;
        let is_torn = is_torn(&mut file)
            .with_context(|| format!("could not go on with the recording {}", path.display()))?;
        let mut recorder = Self {
            file: BufWriter::new(file),
            planned: None,
        };
        if is_torn {
            recorder.end_line()?;
        }
        recorder.line(&Header {
            recording: "meshd",
            version: RECORDING_VERSION,
            config: config.clone(),
        })?;

        Ok(recorder)
    }

    /// Adds an event.
    pub(crate) fn event(&mut self, event: &Event, at: Moment) -> anyhow::Result<()> {
        self.line(&Recorded::event(at, event.clone()))
    }

    /// Adds an action that the brain asked for.
    pub(crate) fn action(&mut self, action: &Action, at: Moment) -> anyhow::Result<()> {
        self.line(&Recorded::action(at, action.clone()))
    }

    /// Adds the digest of a plan that is about to be applied, once for each generation.
    pub(crate) fn plan(&mut self, plan: &Plan, at: Moment) -> anyhow::Result<()> {
        if self.planned == Some(plan.generation) {
            return Ok(());
        }
        self.planned = Some(plan.generation);

        self.line(&Recorded::plan(at, PlanDigest::of(plan)))
    }

    /// Writes a line whole, so that a killed agent leaves a readable recording.
    fn line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.file, value).context("could not write the recording")?;

        self.end_line()
    }

    fn end_line(&mut self) -> anyhow::Result<()> {
        self.file
            .write_all(b"\n")
            .and_then(|()| self.file.flush())
            .context("could not write the recording")
    }
}

/// Returns whether the last line of a recording was not written to its end; refuses any other file.
fn is_torn(file: &mut File) -> anyhow::Result<bool> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(false);
    }
    let mut beginning = vec![0; BEGINNING.len()];
    file.seek(SeekFrom::Start(0))?;
    let is_recording = file.read_exact(&mut beginning).is_ok() && beginning == BEGINNING;
    if !is_recording {
        bail!("it is something else");
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;

    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_restarted_agent_adds_its_run_and_begins_a_line_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.jsonl");
        let config = Config::new("n1".parse().unwrap());
        let mut first = Recorder::open(&path, &config).unwrap();
        first.event(&Event::Tick, Moment::START).unwrap();
        drop(first);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"at":7,"ev"#);
        fs::write(&path, &text).unwrap();

        Recorder::open(&path, &config).unwrap();

        let lines = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], lines[3]);
        assert_eq!(lines[1], r#"{"at":0,"event":"Tick"}"#);
    }

    #[test]
    fn no_other_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        fs::write(&path, "root:x:0:0\n").unwrap();

        let refused = Recorder::open(&path, &Config::new("n1".parse().unwrap()));

        assert!(refused.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "root:x:0:0\n");
    }

    #[test]
    fn a_plan_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.jsonl");
        let mut recorder = Recorder::open(&path, &Config::new("n1".parse().unwrap())).unwrap();

        for generation in [1, 1, 2] {
            let plan = Plan {
                generation,
                ..Plan::default()
            };
            recorder.plan(&plan, Moment::START).unwrap();
        }

        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
