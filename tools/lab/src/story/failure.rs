//! A panic that says what should have happened, and the whole chain of why it did not.

use std::{error::Error, fmt::Write};

/// The value, or a panic that says what should have happened and the whole chain of why it did not.
pub(super) fn or_fail<T>(what: &str, result: Result<T, impl Error + 'static>) -> T {
    or_fail_boxed(what, result.map_err(Box::from))
}

pub(super) fn or_fail_boxed<T>(what: &str, result: Result<T, Box<dyn Error>>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {}", chain(&*error)),
    }
}

pub(super) fn or_fail_text<T>(what: &str, result: Result<T, String>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// An error and its causes, on one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let added = write!(text, ": {error}");
        added.expect("writing to a string does not fail");
        cause = error.source();
    }
    text
}
