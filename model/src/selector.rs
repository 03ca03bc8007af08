//! Calico's selector language: which labels an expression selects.
//!
//! ```text
//! selector := "" | or                     empty selects everything
//! or       := and ("||" and)*
//! and      := op ("&&" op)*
//! op       := "!"* prim
//! prim     := "(" or ")" | "all()" | "global()" | "has(" label ")"
//!           | label ("==" | "!=" | "contains" | "starts with" | "ends with") string
//!           | label ("in" | "not in") "{" [string ("," string)* [","]] "}"
//! string   := '"' [^"]* '"' | "'" [^']* "'"
//! label    := [A-Za-z0-9_./-]{1,512}
//! ```
//!
//! A label that is absent makes `==`, `in`, `contains`, `starts with`, `ends
//! with` and `has` false, and `!=` and `not in` true.

mod composition;
mod parser;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::composition::{
    NAMESPACE_LABEL, NAMESPACE_PREFIX, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
};

/// A selector that could be read. Two are equal when their canonical forms are; clones share the expression.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Arc<Expression>);

/// An expression, as parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expression {
    /// `all()`, and the empty text.
    All,
    /// `global()`: true here; who asks with a namespace in mind looks for it first.
    Global,
    /// `has(label)`.
    Has(String),
    /// A label beside a value.
    Compare {
        /// The label's key.
        label: String,
        /// How the two compare.
        relation: Relation,
        /// The value.
        value: String,
    },
    /// `label in {…}`.
    In(String, BTreeSet<String>),
    /// `label not in {…}`.
    NotIn(String, BTreeSet<String>),
    /// `!…`.
    Not(Box<Self>),
    /// `… && …`: two or more.
    And(Vec<Self>),
    /// `… || …`: two or more.
    Or(Vec<Self>),
}

/// How a label compares with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// `==`.
    Equal,
    /// `!=`; also true of an absent label.
    NotEqual,
    /// `contains`.
    Contains,
    /// `starts with`.
    StartsWith,
    /// `ends with`.
    EndsWith,
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: expected {expected}")]
pub struct SelectorError {
    /// Where, counted in bytes from 1.
    pub position: usize,
    /// What would have been right there.
    pub expected: &'static str,
}

impl Selector {
    /// Returns the selector that selects everything.
    pub fn all() -> Self {
        Self::composed(Expression::All)
    }

    /// Returns whether it selects something that carries these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }

    /// Returns the expression.
    pub fn expression(&self) -> &Expression {
        &self.0
    }
}

impl Expression {
    /// Returns whether the expression is true of these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Compare {
                label,
                relation,
                value,
            } => relation.holds(labels.get(label), value),
            Self::In(label, values) => labels
                .get(label)
                .is_some_and(|value| values.contains(value)),
            Self::NotIn(label, values) => labels
                .get(label)
                .is_none_or(|value| !values.contains(value)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }

    /// Returns whether `global()` stands anywhere in the expression.
    pub fn names_global(&self) -> bool {
        match self {
            Self::Global => true,
            Self::Not(inner) => inner.names_global(),
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::names_global),
            Self::All | Self::Has(_) | Self::Compare { .. } | Self::In(..) | Self::NotIn(..) => {
                false
            }
        }
    }
}

impl Relation {
    fn holds(self, label: Option<&String>, value: &str) -> bool {
        match self {
            Self::Equal => label.is_some_and(|label| label == value),
            Self::NotEqual => label.is_none_or(|label| label != value),
            Self::Contains => label.is_some_and(|label| label.contains(value)),
            Self::StartsWith => label.is_some_and(|label| label.starts_with(value)),
            Self::EndsWith => label.is_some_and(|label| label.ends_with(value)),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        parser::parse(text, &parser::WRITTEN_BY_PEOPLE).map(Self::composed)
    }
}

/// Reads what was written by [`Display`](fmt::Display): it may be longer and deeper than what people may write.
impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        parser::parse(&text, &parser::COMPOSED).map(Self::composed)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

/// Writes the canonical form, which Calico hashes.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Compare {
                label,
                relation,
                value,
            } => {
                write!(f, "{label} {} {}", relation.as_str(), Quoted(value))
            }
            Self::In(label, values) => write!(f, "{label} in {}", Set(values)),
            Self::NotIn(label, values) => write!(f, "{label} not in {}", Set(values)),
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) => write_joined(f, parts, " && "),
            Self::Or(parts) => write_joined(f, parts, " || "),
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, parts: &[Expression], sign: &str) -> fmt::Result {
    f.write_str("(")?;
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(sign)?;
        }
        write!(f, "{part}")?;
    }
    f.write_str(")")
}

/// A string between the quotes that it does not contain.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };

        write!(f, "{quote}{}{quote}", self.0)
    }
}

/// Strings between braces, in order.
struct Set<'a>(&'a BTreeSet<String>);

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, value) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            Quoted(value).fmt(f)?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests;
