//! The labs that come with the program.

use crate::spec::{Document, ReadError};

/// A lab that comes with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// Its file.
    pub text: &'static str,
}

/// Declares built-in labs by the names of their files.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(Builtin { name: $name, text: include_str!(concat!("../topology/", $name, ".yaml")) }),*]
    };
}

/// Every lab that comes with the program.
const BUILTINS: &[Builtin] = files![
    "three-nodes",
    "two-subnets",
    "dual-stack",
    "ipv6-only",
    "two-networks",
    "small-mtu",
    "lossy",
    "behind-nat",
];

/// Every lab that comes with the program.
pub fn builtins() -> &'static [Builtin] {
    BUILTINS
}

impl Builtin {
    /// The built-in lab of that name.
    pub fn named(name: &str) -> Option<Self> {
        BUILTINS
            .iter()
            .copied()
            .find(|builtin| builtin.name == name)
    }

    /// Its file, read.
    ///
    /// # Errors
    /// [`ReadError`], which a test of this module rules out.
    pub fn document(self) -> Result<Document, ReadError> {
        Document::parse(self.name, self.text)
    }

    /// What it is, in its own first words.
    pub fn description(self) -> &'static str {
        self.text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("# ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn every_built_in_lab_can_be_read_and_laid_out() {
        for builtin in builtins() {
            let document = builtin.document().unwrap();
            assert_eq!(document.metadata.name.as_str(), builtin.name);
            assert!(!builtin.description().is_empty());
            Layout::plan(&document.spec).unwrap();
        }
    }
}
