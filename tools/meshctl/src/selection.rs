//! Which objects a command is about: `ippools`, `ippool/pods`, `nodes,pods`, `all`.

use std::fmt;

use model::{Kind, NodeName, Object, ObjectKey, kind::Scope};

/// The command line cannot be meant as it stands: exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::error::Error for Usage {}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The namespace of who names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Which namespaces a command looks into.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Namespaces {
    /// The namespace of namespaced objects.
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,

    /// Every namespace.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// Kinds, and the names asked for; no names are all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) names: Vec<String>,
}

impl Selection {
    /// Reads `KIND[,KIND] [NAME…]`, `KIND/NAME`, or `all`.
    pub(crate) fn parse(kinds: &str, names: &[String]) -> Result<Self, Usage> {
        if let Some((kind, name)) = kinds.split_once('/') {
            if let Some(other) = names.first() {
                let message = format!("{kinds} names an object already; {other} is too much");
                return Err(Usage(message));
            }
            return Ok(Self {
                kinds: vec![one_kind(kind)?],
                names: vec![name.to_owned()],
            });
        }
        let kinds = if kinds.eq_ignore_ascii_case("all") {
            Kind::ALL.to_vec()
        } else {
            kinds.split(',').map(one_kind).collect::<Result<_, _>>()?
        };
        if kinds.len() > 1 && !names.is_empty() {
            return Err(Usage("names go with one kind".to_owned()));
        }

        Ok(Self {
            kinds,
            names: names.to_vec(),
        })
    }

    /// Reads a selection that must name objects.
    pub(crate) fn of_names(kinds: &str, names: &[String]) -> Result<Self, Usage> {
        let selection = Self::parse(kinds, names)?;
        if selection.names.is_empty() {
            return Err(Usage(format!("which {kinds}? Name one or more")));
        }

        Ok(selection)
    }
}

impl Namespaces {
    /// Returns the key of an object by kind and name.
    pub(crate) fn key(&self, kind: Kind, name: &str) -> Result<ObjectKey, Usage> {
        match kind.scope() {
            Scope::Cluster => Ok(ObjectKey::cluster(kind, name)),
            Scope::Namespaced if self.all_namespaces => {
                let message =
                    format!("which {kind} {name}? A name needs a namespace: -n NAMESPACE");
                Err(Usage(message))
            }
            Scope::Namespaced => Ok(ObjectKey::namespaced(kind, &self.namespace, name)),
        }
    }

    /// Returns whether an object lies in these namespaces, or in none.
    pub(crate) fn contain(&self, object: &Object) -> bool {
        self.contain_namespace(object.metadata.namespace.as_deref())
    }

    /// Returns whether these are, or contain, the namespace.
    pub(crate) fn contain_namespace(&self, namespace: Option<&str>) -> bool {
        self.all_namespaces || namespace.is_none_or(|namespace| namespace == self.namespace)
    }

    /// Returns whether every namespace is asked for, so that each is to be shown.
    pub(crate) const fn are_all(&self) -> bool {
        self.all_namespaces
    }
}

/// Returns a node's name, or says what is wrong with it.
pub(crate) fn node_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn one_kind(text: &str) -> Result<Kind, Usage> {
    Kind::from_user(text).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
        Usage(format!(
            "no kind is called {text:?}; there are {}",
            known.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_in_kubectl_and_calicoctl() {
        for (text, kinds) in [
            ("ippools", vec![Kind::IPPool]),
            ("IPPool", vec![Kind::IPPool]),
            ("no,wep", vec![Kind::Node, Kind::WorkloadEndpoint]),
            ("all", Kind::ALL.to_vec()),
        ] {
            assert_eq!(
                Selection::parse(text, &[]).unwrap(),
                Selection {
                    kinds,
                    names: Vec::new()
                }
            );
        }
        let named = Selection {
            kinds: vec![Kind::IPPool],
            names: vec!["pods".into()],
        };
        assert_eq!(Selection::parse("pool/pods", &[]).unwrap(), named);
        assert_eq!(Selection::parse("pool", &["pods".into()]).unwrap(), named);
    }

    #[test]
    fn what_names_nothing_is_refused_in_words() {
        for (kinds, names, message) in [
            (
                "widgets",
                vec![],
                "no kind is called \"widgets\"; there are nodes, ",
            ),
            ("all", vec!["x".to_owned()], "names go with one kind"),
            ("no,po", vec!["x".to_owned()], "names go with one kind"),
            (
                "no/n1",
                vec!["x".to_owned()],
                "no/n1 names an object already",
            ),
        ] {
            let error = Selection::parse(kinds, &names).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
