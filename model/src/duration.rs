//! Durations as Go writes them, which is how Calico's resources hold them: `1m30s`, `250ms`.

use std::time::Duration;

/// Units in nanoseconds, longest first.
const UNITS: [(&str, f64); 8] = [
    ("h", 3_600e9),
    ("ms", 1e6),
    ("m", 60e9),
    ("µs", 1e3),
    ("μs", 1e3),
    ("us", 1e3),
    ("ns", 1.0),
    ("s", 1e9),
];

/// Longest text that is looked at.
const TEXT_MAX: usize = 64;

/// Reads a duration that is not negative: numbers with units, as in `1h`, `1.5s`, `1m30s`, or `0`.
///
/// `None` for anything else, and for more than Go's longest duration (about 292 years).
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > TEXT_MAX {
        return None;
    }
    let mut rest = text;
    let mut nanoseconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        if !number.bytes().any(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (unit, scale) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        nanoseconds += number.parse::<f64>().ok()? * scale;
        rest = &tail[unit.len()..];
    }
    if nanoseconds > i64::MAX as f64 {
        return None;
    }

    Some(Duration::from_nanos(nanoseconds as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("25s", 25_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("1000us", 1),
            (".5s", 500),
        ] {
            assert_eq!(
                parse(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "", "5", "s", ".s", "-1s", "1x", "1.2.3s", "1s5", "9999999h", "1 s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
