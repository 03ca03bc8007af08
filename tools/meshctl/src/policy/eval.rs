//! `meshctl policy eval`: one policy test as JSON in, verdicts as JSON out.

use std::{
    io::{Read, stdin},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};
use model::manifest::{self, FILE_MAX};
use policy::scenario::PolicyTest;

use super::file;
use crate::say;

/// Runs the command: it succeeds if it could evaluate, whatever the verdicts.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    stdin()
        .lock()
        .take(FILE_MAX as u64 + 1)
        .read_to_string(&mut text)
        .context("cannot read the standard input")?;
    let mut values = manifest::values(&text);
    let (Some(value), true) = (values.pop(), values.is_empty()) else {
        bail!("expected one PolicyTest on the standard input");
    };
    let test = PolicyTest::parse(&value?)?;
    let sources = file::sources(Path::new("."), &test.resource_files)?;
    let report = test.run(&sources)?;
    say(&serde_json::to_string(&report)?);

    Ok(ExitCode::SUCCESS)
}
