//! Results in the XML that build servers read (JUnit's).

use std::fmt::Write;

use super::test::{Finding, Result};

/// Renders the results: a suite for each policy test, a case for each verdict and each refused object.
pub(super) fn render(results: &[Result]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for result in results {
        let failures = result.findings.iter().filter(|one| one.wrong.is_some());
        let errors = usize::from(result.unusable.is_some());
        line(
            &mut text,
            &format!(
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{errors}\">",
                escaped(&result.name),
                result.findings.len() + errors,
                failures.count(),
            ),
        );
        if let Some(why) = &result.unusable {
            line(
                &mut text,
                &format!(
                    "    <testcase name=\"document\" classname=\"{}\"><error message=\"{}\"/></testcase>",
                    escaped(&result.name),
                    escaped(why),
                ),
            );
        }
        for finding in &result.findings {
            case(&mut text, &result.name, finding);
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");

    text
}

fn case(text: &mut String, suite: &str, finding: &Finding) {
    let head = format!(
        "    <testcase name=\"{}\" classname=\"{}\"",
        escaped(&finding.name),
        escaped(suite)
    );
    match &finding.wrong {
        None => line(text, &format!("{head}/>")),
        Some(wrong) => line(
            text,
            &format!(
                "{head}><failure message=\"{}\"/></testcase>",
                escaped(wrong)
            ),
        ),
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{line}");
}

/// Returns a text that may stand in an attribute; what XML has no way to write becomes a question mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('?');
            }
            letter => escaped.push(letter),
        }
    }

    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_their_attribute() {
        assert_eq!(
            escaped("a\"/><x y='&\n\u{1}"),
            "a&quot;/&gt;&lt;x y='&amp;&#10;?"
        );
    }
}
