//! Vectors of Calico's behaviour, and a generator whose meaning is computed without the parser.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn calicos_vectors_hold() {
    let full = labels(&[
        ("app", "web"),
        ("tier", "front-end"),
        ("env", "prod"),
        ("k8s.io/x", "1"),
        ("e", ""),
    ]);
    for (text, on_full, on_empty) in [
        ("", true, true),
        (" \t", true, true),
        ("all()", true, true),
        ("all(  )", true, true),
        ("global()", true, true),
        ("app == \"web\"", true, false),
        ("app=='web'", true, false),
        ("app != 'web'", false, true),
        ("missing != 'x'", true, true),
        ("!(missing == 'x')", true, true),
        ("has(e)", true, false),
        ("has( e )", true, false),
        ("!has(e)", false, true),
        ("!!has(app)", true, false),
        ("e == ''", true, false),
        ("app in {'web', \"db\"}", true, false),
        ("app not in {'web'}", false, true),
        ("app notin{'db'}", true, true),
        ("app in {}", false, false),
        ("app not in {}", true, true),
        ("app in {'web',}", true, false),
        ("tier contains 'nt-e'", true, false),
        ("tier contains ''", true, false),
        ("tier contains'nt-e'", true, false),
        ("tier starts with 'front'", true, false),
        ("tier startswith 'front'", true, false),
        ("tier ends with \"end\"", true, false),
        ("tier ends with 'front'", false, false),
        ("k8s.io/x == '1'", true, false),
        ("app == 'web' && env == 'dev' || has(e)", true, false),
        ("app == 'db' || env == 'prod' && has(e)", true, false),
        ("(app == 'db' || env == 'prod') && !has(e)", false, false),
        ("! app == 'web'", false, true),
        ("has(app) && all()", true, false),
    ] {
        let selector: Selector = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(selector.matches(&full), on_full, "{text}");
        assert_eq!(selector.matches(&BTreeMap::new()), on_empty, "{text}");
    }
}

#[test]
fn keywords_are_labels_where_an_operand_is_expected() {
    for (text, label, value) in [
        ("in == 'x'", "in", "x"),
        ("has != 'y'", "has", "x"),
        ("a == \"it's\"", "a", "it's"),
    ] {
        assert!(
            text.parse::<Selector>()
                .unwrap()
                .matches(&labels(&[(label, value)])),
            "{text}"
        );
    }
}

#[test]
fn what_calico_refuses_is_refused() {
    let long = format!("{} == 'x'", "a".repeat(513));
    let deep = format!("{}a == 'x'{}", "(".repeat(65), ")".repeat(65));
    let huge = format!("a in {{{}}}", "'x',".repeat(5000));
    for text in [
        "a = 'b'",
        "a == b",
        "a == 'b",
        "has(a",
        "has ()",
        "all",
        "a",
        "a in 'b'",
        "a in {b}",
        "a == 'x' &",
        "a == 'x' b == 'y'",
        "(a == 'x'",
        "a == 'x')",
        "&& a == 'x'",
        "a$b == 'x'",
        "all ()",
        "! ",
        "a starts 'x'",
        "a\n== 'x'",
        "a == 'x'\n",
        "()",
        "a in {'x' 'y'}",
        "a in {,}",
        "ä == 'x'",
        "has()",
        "a inx {'b'}",
        &long,
        &deep,
        &huge,
    ] {
        assert!(text.parse::<Selector>().is_err(), "{text}");
    }
}

#[test]
fn an_error_says_where_and_what_was_expected() {
    let error = "app == 'web' && tier = 'x'"
        .parse::<Selector>()
        .unwrap_err();

    assert_eq!(
        error.to_string(),
        "at character 22: expected `==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`"
    );
}

#[test]
fn the_canonical_form_is_calicos() {
    for (text, canonical) in [
        ("a=='b'&&c in{'y','x'}", r#"(a == "b" && c in {"x", "y"})"#),
        ("", "all()"),
        ("!(a == 'b')", r#"!a == "b""#),
        ("a == 'say \"x\"'", r#"a == 'say "x"'"#),
        (
            "(a=='1' && b=='2') && c=='3'",
            r#"((a == "1" && b == "2") && c == "3")"#,
        ),
        (
            "a notin {'x','x'} || has(b)",
            r#"(a not in {"x"} || has(b))"#,
        ),
        (
            "a startswith 'x' && b endswith 'y'",
            r#"(a starts with "x" && b ends with "y")"#,
        ),
    ] {
        assert_eq!(text.parse::<Selector>().unwrap().to_string(), canonical);
    }
}

proptest! {
    #[test]
    fn a_selector_means_what_was_written(tree in tree(), labels in labels_of_few_words(), style in any::<u64>()) {
        let text = write(&tree, &mut Style(style));

        let selector: Selector = text.parse().map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;

        prop_assert_eq!(selector.matches(&labels), meaning(&tree, &labels), "{}", text);
        let again: Selector = selector.to_string().parse().unwrap();
        prop_assert_eq!(again.matches(&labels), selector.matches(&labels), "{}", selector);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[ahs!&|()={}'\", \u{e4}notingl]{0,40}") {
        let _ = text.parse::<Selector>();
    }
}

/// What a selector is to mean, apart from how it is written.
#[derive(Clone, Debug)]
enum Tree {
    All,
    Has(&'static str),
    Relation(&'static str, &'static str, &'static str),
    Set(&'static str, bool, Vec<&'static str>),
    Not(Box<Tree>),
    Both(Box<Tree>, Box<Tree>),
    Either(Box<Tree>, Box<Tree>),
}

const LABELS: [&str; 4] = ["in", "a", "has", "k8s.io/x"];
const VALUES: [&str; 5] = ["", "x", "xy", "it's", "yx"];
const RELATIONS: [&str; 5] = ["==", "!=", "contains", "starts with", "ends with"];

fn tree() -> impl Strategy<Value = Tree> {
    let label = || prop::sample::select(LABELS.to_vec());
    let value = || prop::sample::select(VALUES.to_vec());
    let leaf = prop_oneof![
        Just(Tree::All),
        label().prop_map(Tree::Has),
        (label(), prop::sample::select(RELATIONS.to_vec()), value())
            .prop_map(|(label, relation, value)| Tree::Relation(label, relation, value)),
        (label(), any::<bool>(), prop::collection::vec(value(), 0..3))
            .prop_map(|(label, within, values)| Tree::Set(label, within, values)),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::Both(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Tree::Either(Box::new(a), Box::new(b))),
        ]
    })
}

fn labels_of_few_words() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop::sample::select(LABELS.to_vec()).prop_map(str::to_owned),
        prop::sample::select(VALUES.to_vec()).prop_map(str::to_owned),
        0..4,
    )
}

fn meaning(tree: &Tree, labels: &BTreeMap<String, String>) -> bool {
    match tree {
        Tree::All => true,
        Tree::Has(label) => labels.contains_key(*label),
        Tree::Relation(label, relation, value) => match (labels.get(*label), *relation) {
            (None, relation) => relation == "!=",
            (Some(found), "==") => found == value,
            (Some(found), "!=") => found != value,
            (Some(found), "contains") => found.contains(value),
            (Some(found), "starts with") => found.starts_with(value),
            (Some(found), _) => found.ends_with(value),
        },
        Tree::Set(label, within, values) => {
            labels
                .get(*label)
                .is_some_and(|found| values.contains(&found.as_str()))
                == *within
        }
        Tree::Not(inner) => !meaning(inner, labels),
        Tree::Both(a, b) => meaning(a, labels) && meaning(b, labels),
        Tree::Either(a, b) => meaning(a, labels) || meaning(b, labels),
    }
}

/// Chooses among ways to write the same thing.
struct Style(u64);

impl Style {
    fn choose(&mut self) -> bool {
        self.0 = self.0.rotate_left(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 >> 63 == 1
    }

    fn blank(&mut self) -> &'static str {
        if self.choose() { " \t" } else { "" }
    }

    fn quoted(&mut self, value: &str) -> String {
        if value.contains('\'') || self.choose() {
            format!("\"{value}\"")
        } else {
            format!("'{value}'")
        }
    }
}

fn write(tree: &Tree, style: &mut Style) -> String {
    let blank = style.blank();
    match tree {
        Tree::All => "all()".into(),
        Tree::Has(label) => format!("has({blank}{label}{blank})"),
        Tree::Relation(label, relation, value) => {
            let relation = if style.choose() {
                relation.replace(' ', "")
            } else {
                (*relation).into()
            };
            format!("{label} {relation}{blank}{}", style.quoted(value))
        }
        Tree::Set(label, within, values) => {
            let word = match (within, style.choose()) {
                (true, _) => "in",
                (false, true) => "not  in",
                (false, false) => "notin",
            };
            let values: Vec<_> = values.iter().map(|value| style.quoted(value)).collect();
            let comma = if !values.is_empty() && style.choose() {
                ","
            } else {
                ""
            };
            format!("{label} {word}{blank}{{{}{comma}}}", values.join(", "))
        }
        Tree::Not(inner) => format!("!{blank}({})", write(inner, style)),
        Tree::Both(a, b) => format!("({}){blank}&&({})", write(a, style), write(b, style)),
        Tree::Either(a, b) => format!("({})||{blank}({})", write(a, style), write(b, style)),
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}
