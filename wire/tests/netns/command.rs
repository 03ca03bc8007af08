//! Other people's programs.

use std::io::Write;
use std::process::{Command, Stdio};

/// A command, to be run by a test.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests drive the programs that users drive"
)]
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
}

/// What `line` (program and arguments, split at spaces) says; it must succeed.
pub(crate) fn run(line: &str) -> String {
    run_with(line, "")
}

/// The same, with `input` on its standard input.
pub(crate) fn run_with(line: &str, input: &str) -> String {
    match attempt(line, input) {
        Ok(output) => output,
        Err(error) => panic!("{line}: {error}"),
    }
}

/// What `line` says, or what it complains of.
pub(crate) fn attempt(line: &str, input: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let mut child = command(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(input.as_bytes())
        .map_err(|error| error.to_string())?;
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
