//! Other people's programs.

use std::io::Write;
use std::process::{Command, Stdio};

/// A command, to be run by a story.
#[expect(
    clippy::disallowed_methods,
    reason = "the stories drive the programs that users drive"
)]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// What `line` (program and arguments, split at blanks) says; it must succeed.
pub fn run(line: &str) -> String {
    run_with(line, "")
}

/// The same, with `input` on its standard input.
pub fn run_with(line: &str, input: &str) -> String {
    match attempt(line, input) {
        Ok(output) => output,
        Err(error) => panic!("{line}: {error}"),
    }
}

/// What `line` says, or everything that it complains of.
///
/// # Errors
/// Its outputs, where it fails.
pub fn attempt(line: &str, input: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let mut child = command(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // Who does not read its input may be gone already.
    let _: std::io::Result<()> = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(text + &String::from_utf8_lossy(&output.stderr))
    }
}
