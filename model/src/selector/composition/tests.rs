//! What composed selectors mean, against texts that are put together without any of this code.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn words_inside_values_are_left_alone() {
    let selector: Selector = "a == 'all()' || b == 'global()'".parse().unwrap();

    assert_eq!(
        selector.of_namespaces().to_string(),
        r#"(pcns.a == "all()" || pcns.b == "global()")"#
    );
}

#[test]
fn every_namespace_leaves_out_what_is_in_none() {
    for (text, composed) in [
        ("all()", "has(projectcalico.org/namespace)"),
        ("global()", "!has(projectcalico.org/namespace)"),
        ("!all()", "!has(projectcalico.org/namespace)"),
        ("!global()", "has(projectcalico.org/namespace)"),
        ("a in {'x'}", r#"pcns.a in {"x"}"#),
        (
            "!has(a) && all()",
            "(!has(pcns.a) && has(projectcalico.org/namespace))",
        ),
    ] {
        let selector: Selector = text.parse().unwrap();
        assert_eq!(selector.of_namespaces().to_string(), composed, "{text}");
    }
    let every: Selector = "all()".parse().unwrap();
    assert_eq!(every.of_service_accounts(), Selector::all());
    assert_eq!(
        every.of_any_service_account().to_string(),
        "has(projectcalico.org/serviceaccount)"
    );
}

#[test]
fn the_largest_selector_that_people_write_survives_being_composed_and_stored() {
    let label = "a".repeat(512);
    let deep = format!(
        "{}has({label}){}",
        "(".repeat(64),
        " && b == 'x')".repeat(64)
    );
    let selector: Selector = deep.parse().unwrap();
    let composed = Selector::intersection([Selector::in_namespace("n"), selector.of_namespaces()]);

    let stored = serde_json::to_string(&composed.complement()).unwrap();

    let read: Selector = serde_json::from_str(&stored).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), stored);
    assert!(format!("({deep})").parse::<Selector>().is_err());
}

proptest! {
    #[test]
    fn a_composed_selector_means_what_its_text_means(
        parts in prop::collection::vec((tree(), 0usize..4), 0..4),
        not in prop::option::of(tree()),
        labels in labels(),
    ) {
        let mut texts: Vec<String> = parts.iter().map(|(tree, how)| tree.text(*how)).collect();
        let composed = parts.iter().map(|(tree, how)| {
            let own: Selector = tree.text(OWN).parse().unwrap();
            match *how {
                NAMESPACES => own.of_namespaces(),
                ACCOUNTS => own.of_service_accounts(),
                ANY_ACCOUNT => own.of_any_service_account(),
                _ => own,
            }
        });
        let negated = not.iter().map(|tree| tree.text(OWN).parse::<Selector>().unwrap().complement());
        texts.extend(not.iter().map(|tree| format!("!({})", tree.text(OWN))));
        let composed = Selector::intersection(composed.chain(negated));

        let text = texts.iter().map(|text| format!("({text})")).collect::<Vec<_>>().join(" && ");
        let oracle: Selector = text.parse().unwrap();
        prop_assert_eq!(composed.matches(&labels), oracle.matches(&labels), "{} for {}", composed, text);
        let read = Selector::try_from(composed.to_string()).unwrap();
        prop_assert_eq!(read, composed);
    }
}

const OWN: usize = 0;
const NAMESPACES: usize = 1;
const ACCOUNTS: usize = 2;
const ANY_ACCOUNT: usize = 3;

/// An expression of few words, which is written in each of the four ways without being parsed.
#[derive(Clone, Debug)]
enum Tree {
    All,
    Global,
    Has(&'static str),
    Equal(&'static str, &'static str),
    NotIn(&'static str, &'static str),
    Not(Box<Tree>),
    Both(Box<Tree>, Box<Tree>),
    Either(Box<Tree>, Box<Tree>),
}

impl Tree {
    fn text(&self, how: usize) -> String {
        let prefix = ["", "pcns.", "pcsa.", "pcsa."][how];
        let every = [
            "all()",
            "has(projectcalico.org/namespace)",
            "all()",
            "has(projectcalico.org/serviceaccount)",
        ][how];
        match self {
            Self::All => every.to_owned(),
            Self::Global if every == "all()" => "global()".to_owned(),
            Self::Global => format!("!{every}"),
            Self::Has(label) => format!("has({prefix}{label})"),
            Self::Equal(label, value) => format!("{prefix}{label} == '{value}'"),
            Self::NotIn(label, value) => format!("{prefix}{label} not in {{'{value}'}}"),
            Self::Not(inner) => format!("!({})", inner.text(how)),
            Self::Both(a, b) => format!("({}) && ({})", a.text(how), b.text(how)),
            Self::Either(a, b) => format!("({}) || ({})", a.text(how), b.text(how)),
        }
    }
}

const LABELS: [&str; 2] = ["a", "b"];
const VALUES: [&str; 3] = ["x", "all()", "global()"];

fn tree() -> impl Strategy<Value = Tree> {
    let label = || prop::sample::select(LABELS.to_vec());
    let value = || prop::sample::select(VALUES.to_vec());
    let leaf = prop_oneof![
        Just(Tree::All),
        Just(Tree::Global),
        label().prop_map(Tree::Has),
        (label(), value()).prop_map(|(label, value)| Tree::Equal(label, value)),
        (label(), value()).prop_map(|(label, value)| Tree::NotIn(label, value)),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::Both(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Tree::Either(Box::new(a), Box::new(b))),
        ]
    })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let keys = [
        "a",
        "b",
        "pcns.a",
        "pcns.b",
        "pcsa.a",
        "pcsa.b",
        NAMESPACE_LABEL,
        SERVICE_ACCOUNT_LABEL,
    ];
    prop::collection::btree_map(
        prop::sample::select(keys.to_vec()).prop_map(str::to_owned),
        prop::sample::select(VALUES.to_vec()).prop_map(str::to_owned),
        0..7,
    )
}
