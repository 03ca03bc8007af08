//! Figures, and how they are shown.

use std::time::Duration;

/// What was measured, in order.
#[derive(Default)]
pub(crate) struct Figures(Vec<[String; 4]>);

impl Figures {
    /// Notes a single value.
    pub(crate) fn plain(&mut self, what: &str, value: String) {
        self.0
            .push([what.to_owned(), value, String::new(), String::new()]);
    }

    /// Notes memory, given in KiB.
    pub(crate) fn memory(&mut self, what: &str, kib: u64) {
        self.plain(what, format!("{:.1} MiB", kib as f64 / 1024.0));
    }

    /// Notes how long something took each time.
    pub(crate) fn times(&mut self, what: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len() as f64 * share).ceil() as usize;
            let time = times
                .get(index.saturating_sub(1))
                .copied()
                .unwrap_or_default();
            format!("{:.2} ms", time.as_secs_f64() * 1000.0)
        };
        self.0
            .push([what.to_owned(), at(0.5), at(0.99), times.len().to_string()]);
    }

    /// Returns a Markdown table.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("| what | value or p50 | p99 | n |\n|---|---|---|---|\n");
        for [what, value, p99, count] in &self.0 {
            text.push_str(&format!("| {what} | {value} | {p99} | {count} |\n"));
        }

        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_smallest_value_that_covers_its_share() {
        let mut figures = Figures::default();
        figures.times("x", (1..=200).rev().map(Duration::from_millis).collect());

        assert_eq!(
            figures.0,
            [["x", "100.00 ms", "198.00 ms", "200"].map(str::to_owned)]
        );
    }
}
