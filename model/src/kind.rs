//! The kinds of objects a store holds.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($variant:ident: $group:expr, $scope:ident, $plural:literal, $short:expr, $doc:literal;)+) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $(#[doc = $doc] $variant,)+
        }

        impl Kind {
            /// Every kind, in the order in which `meshctl` lists them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the kind's name as YAML writes it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// Returns the group and version that we write.
            pub const fn api_version(self) -> &'static str {
                match self { $(Self::$variant => $group,)+ }
            }

            /// Returns whether objects of the kind live in a namespace.
            pub const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)+ }
            }

            /// Returns the lower-case plural.
            pub const fn plural(self) -> &'static str {
                match self { $(Self::$variant => $plural,)+ }
            }

            /// Returns the short names of kubectl and calicoctl.
            pub const fn short_names(self) -> &'static [&'static str] {
                match self { $(Self::$variant => $short,)+ }
            }
        }
    };
}

/// Whether a kind lives in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One name in the whole cluster.
    Cluster,
    /// One name in each namespace.
    Namespaced,
}

const CALICO: &str = "projectcalico.org/v3";
const MESHD: &str = "meshd.dev/v1";

kinds! {
    Node: CALICO, Cluster, "nodes", &["no"], "A member of the mesh, in Calico's form.";
    MeshNode: MESHD, Cluster, "meshnodes", &["mn"], "On Kubernetes: a member without a core/v1 Node.";
    IPPool: CALICO, Cluster, "ippools", &["ipp", "ipps", "pool", "pools"], "A range that pods' addresses come from.";
    IPAMBlock: CALICO, Cluster, "ipamblocks", &["block", "blocks"], "A piece of a pool, with who uses which address.";
    BlockAffinity: CALICO, Cluster, "blockaffinities", &["affinity", "affinities"], "Which node a block belongs to.";
    IPAMHandle: CALICO, Cluster, "ipamhandles", &["handle", "handles"], "The addresses that one owner holds.";
    WorkloadEndpoint: CALICO, Namespaced, "workloadendpoints", &["wep", "weps"], "One interface of a pod.";
    FelixConfiguration: CALICO, Cluster, "felixconfigurations", &["felixconfig", "felixconfigs"],
        "The agent's settings.";
    ClusterInformation: CALICO, Cluster, "clusterinformations", &["clusterinfo", "clusterinfos"],
        "Facts about the cluster.";
    MeshConfiguration: MESHD, Cluster, "meshconfigurations", &["meshconfig"], "Settings for which Calico has no word.";
    KeyClaim: MESHD, Cluster, "keyclaims", &["kc"], "Grants a WireGuard key to one node.";
    AddressClaim: MESHD, Cluster, "addressclaims", &["ac"], "Grants an underlay address to one node.";
    Namespace: "v1", Cluster, "namespaces", &["ns"], "A Kubernetes namespace.";
    ServiceAccount: "v1", Namespaced, "serviceaccounts", &["sa"], "A Kubernetes service account.";
    Service: "v1", Namespaced, "services", &["svc"], "A Kubernetes service.";
    Pod: "v1", Namespaced, "pods", &["po"], "A Kubernetes pod.";
    EndpointSlice: "discovery.k8s.io/v1", Namespaced, "endpointslices", &["eps"], "The endpoints of a service.";
}

impl Kind {
    /// Returns the kind that a person means: its name, plural or a short name, in any case.
    pub fn from_user(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();

        Self::ALL.iter().copied().find(|kind| {
            kind.as_str().eq_ignore_ascii_case(text)
                || kind.plural() == lower
                || kind.short_names().contains(&lower.as_str())
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a kind")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_word_names_two_kinds() {
        let mut seen = BTreeSet::new();
        for kind in Kind::ALL {
            let name = kind.as_str().to_ascii_lowercase();
            for word in kind
                .short_names()
                .iter()
                .copied()
                .chain([kind.plural(), &name])
            {
                assert!(seen.insert(word.to_owned()), "{word} names two kinds");
            }
        }
    }
}
