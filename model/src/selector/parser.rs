//! Text → expression, by recursive descent with a bounded depth.

use std::collections::BTreeSet;

use super::{Expression, Relation, SelectorError, composition::negation};

/// How large a selector may be.
pub(super) struct Limits {
    /// Of the whole text, in bytes.
    text: usize,
    /// Of a label's key, in bytes.
    label: usize,
    /// Of the nesting of parentheses.
    depth: usize,
}

/// What people may write.
pub(super) const WRITTEN_BY_PEOPLE: Limits = Limits {
    text: 16 * 1024,
    label: 512,
    depth: 64,
};

/// What is composed of what people write: several texts, each label with a prefix, each part in parentheses of its own.
pub(super) const COMPOSED: Limits = Limits {
    text: 1024 * 1024,
    label: 640,
    depth: 80,
};

pub(super) fn parse(text: &str, limits: &Limits) -> Result<Expression, SelectorError> {
    let mut parser = Parser {
        limits,
        text,
        position: 0,
        depth: 0,
    };
    if text.len() > limits.text {
        return Err(parser.expected("a shorter text (at most 16384 characters)"));
    }
    parser.skip_blanks();
    if parser.rest().is_empty() {
        return Ok(Expression::All);
    }
    let expression = parser.or()?;
    if !parser.rest().is_empty() {
        return Err(parser.expected("`&&`, `||` or the end"));
    }

    Ok(expression)
}

struct Parser<'a> {
    limits: &'a Limits,
    text: &'a str,
    position: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.and()?];
        while self.take("||") {
            parts.push(self.and()?);
        }

        Ok(only(parts, Expression::Or))
    }

    fn and(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.operation()?];
        while self.take("&&") {
            parts.push(self.operation()?);
        }

        Ok(only(parts, Expression::And))
    }

    fn operation(&mut self) -> Result<Expression, SelectorError> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let primary = self.primary()?;

        Ok(if negated { negation(primary) } else { primary })
    }

    fn primary(&mut self) -> Result<Expression, SelectorError> {
        if self.take("(") {
            return self.parenthesised();
        }
        for (name, expression) in [("all(", Expression::All), ("global(", Expression::Global)] {
            if self.take(name) {
                self.demand(")", "`)`")?;
                return Ok(expression);
            }
        }
        if self.take("has(") {
            let label = self.label()?;
            self.demand(")", "`)`")?;
            return Ok(Expression::Has(label));
        }
        let label = self.label()?;

        self.test(label)
    }

    fn parenthesised(&mut self) -> Result<Expression, SelectorError> {
        if self.depth == self.limits.depth {
            return Err(self.expected("at most 64 nested parentheses"));
        }
        self.depth += 1;
        let expression = self.or()?;
        self.demand(")", "`&&`, `||` or `)`")?;
        self.depth -= 1;

        Ok(expression)
    }

    /// Reads what follows a label: an operator and its operand.
    fn test(&mut self, label: String) -> Result<Expression, SelectorError> {
        let relation = if self.take("==") {
            Relation::Equal
        } else if self.take("!=") {
            Relation::NotEqual
        } else if self.take_words(&["contains"]) {
            Relation::Contains
        } else if self.take_words(&["starts", "with"]) {
            Relation::StartsWith
        } else if self.take_words(&["ends", "with"]) {
            Relation::EndsWith
        } else if self.take_words(&["in"]) {
            return Ok(Expression::In(label, self.set()?));
        } else if self.take_words(&["not", "in"]) {
            return Ok(Expression::NotIn(label, self.set()?));
        } else {
            return Err(self
                .expected("`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`"));
        };
        let value = self.string()?;

        Ok(Expression::Compare {
            label,
            relation,
            value,
        })
    }

    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.demand("{", "`{`")?;
        let mut values = BTreeSet::new();
        while !self.take("}") {
            values.insert(self.string()?);
            if self.take(",") {
                continue;
            }
            self.demand("}", "`,` or `}`")?;
            break;
        }

        Ok(values)
    }

    fn string(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let quote = quote.ok_or_else(|| self.expected("a value in quotes"))?;
        let (value, _) = rest[1..]
            .split_once(quote)
            .ok_or_else(|| self.expected("a closing quote"))?;
        self.advance(value.len() + 2);

        Ok(value.to_owned())
    }

    fn label(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let end = rest
            .bytes()
            .position(|byte| !is_label_byte(byte))
            .unwrap_or(rest.len());
        if !(1..=self.limits.label).contains(&end) {
            return Err(self.expected("a label of 1 to 512 letters, digits, `_`, `.`, `/` or `-`"));
        }
        self.advance(end);

        Ok(rest[..end].to_owned())
    }

    /// Takes a sign and the blanks behind it, if it stands here.
    fn take(&mut self, sign: &str) -> bool {
        let here = self.rest().starts_with(sign);
        if here {
            self.advance(sign.len());
        }

        here
    }

    /// Takes words with any blanks between them, if they stand here and no letter follows.
    fn take_words(&mut self, words: &[&str]) -> bool {
        let mut rest = self.rest();
        for word in words {
            let Some(tail) = rest.trim_start_matches(is_blank).strip_prefix(word) else {
                return false;
            };
            rest = tail;
        }
        if rest.bytes().next().is_some_and(is_label_byte) {
            return false;
        }
        self.advance(self.rest().len() - rest.len());

        true
    }

    fn demand(&mut self, sign: &str, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(sign) {
            Ok(())
        } else {
            Err(self.expected(expected))
        }
    }

    fn advance(&mut self, length: usize) {
        self.position += length;
        self.skip_blanks();
    }

    fn skip_blanks(&mut self) {
        self.position = self.text.len() - self.rest().trim_start_matches(is_blank).len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        SelectorError {
            position: self.position + 1,
            expected,
        }
    }
}

/// Joins parts; one part alone stays itself.
fn only(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.len() {
        1 => parts.remove(0),
        _ => join(parts),
    }
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

const fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}
