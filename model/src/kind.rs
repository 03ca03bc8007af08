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

            /// Returns the kind's name, which no other kind has: in stores, on the wire and in recordings.
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

/// The group of Calico's kinds as older clusters store them.
const CALICO_STORED: &str = "crd.projectcalico.org";

const CALICO: &str = "projectcalico.org/v3";
const MESHD: &str = "meshd.dev/v1";
const KUBERNETES_NETWORKING: &str = "networking.k8s.io/v1";
const KUBERNETES_POLICY: &str = "policy.networking.k8s.io/v1alpha2";

kinds! {
    Node: CALICO, Cluster, "nodes", &["no"], "A member of the mesh, in Calico's form.";
    MeshNode: MESHD, Cluster, "meshnodes", &["mn"], "On Kubernetes: a member without a core/v1 Node.";
    IPPool: CALICO, Cluster, "ippools", &["ipp", "ipps", "pool", "pools"], "A range that pods' addresses come from.";
    IPAMBlock: CALICO, Cluster, "ipamblocks", &["block", "blocks"], "A piece of a pool, with who uses which address.";
    BlockAffinity: CALICO, Cluster, "blockaffinities", &["affinity", "affinities"], "Which node a block belongs to.";
    IPAMHandle: CALICO, Cluster, "ipamhandles", &["handle", "handles"], "The addresses that one owner holds.";
    IPAMConfiguration: CALICO, Cluster, "ipamconfigurations", &["ipamconfig", "ipamconfigs"],
        "How blocks and addresses are handed out.";
    IPReservation: CALICO, Cluster, "ipreservations", &[], "Addresses that are never handed out unasked.";
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
    Tier: CALICO, Cluster, "tiers", &[], "A group of policies, asked before or behind others.";
    NetworkPolicy: CALICO, Namespaced, "networkpolicies", &["cnp", "caliconetworkpolicy", "caliconetworkpolicies"],
        "Calico's policy for the pods of a namespace.";
    GlobalNetworkPolicy: CALICO, Cluster, "globalnetworkpolicies", &["gnp", "cgnp"],
        "Calico's policy for pods and host endpoints anywhere.";
    KubernetesNetworkPolicy: KUBERNETES_NETWORKING, Namespaced, "kubernetesnetworkpolicies", &["netpol", "knp"],
        "Kubernetes' NetworkPolicy; YAML writes it with that kind.";
    ClusterNetworkPolicy: KUBERNETES_POLICY, Cluster, "clusternetworkpolicies", &["kcnp"],
        "Kubernetes' policy of the cluster's administrators.";
    StagedNetworkPolicy: CALICO, Namespaced, "stagednetworkpolicies", &["snp", "scnp"],
        "A NetworkPolicy that decides nothing yet.";
    StagedGlobalNetworkPolicy: CALICO, Cluster, "stagedglobalnetworkpolicies", &["sgnp"],
        "A GlobalNetworkPolicy that decides nothing yet.";
    StagedKubernetesNetworkPolicy: CALICO, Namespaced, "stagedkubernetesnetworkpolicies", &["sknp"],
        "A Kubernetes NetworkPolicy that decides nothing yet.";
    NetworkSet: CALICO, Namespaced, "networksets", &["netset", "netsets"], "Networks with labels, of one namespace.";
    GlobalNetworkSet: CALICO, Cluster, "globalnetworksets", &["gns"], "Networks with labels.";
    HostEndpoint: CALICO, Cluster, "hostendpoints", &["hep", "heps"], "A host's own interface.";
    Profile: CALICO, Cluster, "profiles", &[], "Rules behind the last tier, and labels to inherit.";
}

impl Kind {
    /// Returns the kind's name as YAML and JSON write it, beside its [group and version](Self::api_version).
    pub const fn manifest_name(self) -> &'static str {
        if matches!(self, Self::KubernetesNetworkPolicy) {
            return Self::NetworkPolicy.as_str();
        }

        self.as_str()
    }

    /// Returns the group that the kind belongs to; empty for Kubernetes' core.
    pub fn group(self) -> &'static str {
        group_of(self.api_version())
    }

    /// Returns the kind of an object as YAML and JSON write it: by `kind`, and by the group in `apiVersion` where two
    /// kinds are written alike.
    pub fn from_manifest(api_version: &str, kind: &str) -> Result<Self, UnknownKind> {
        let mut named = Self::ALL
            .iter()
            .copied()
            .filter(|known| known.manifest_name() == kind);
        let (first, second) = (named.next(), named.next());
        let (Some(first), Some(second)) = (first, second) else {
            return first.ok_or_else(|| UnknownKind(cut(kind)));
        };
        let group = match group_of(api_version) {
            CALICO_STORED => group_of(CALICO),
            other => other,
        };

        [first, second]
            .into_iter()
            .find(|known| known.group() == group)
            .ok_or_else(|| UnknownKind(cut(&format!("{kind} of {api_version:?}"))))
    }

    /// Returns the kind that a person means, in any case: its name, plural or a short name, or one of these with its
    /// group (`networkpolicies.networking.k8s.io`).
    pub fn from_user(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let known = |kind: &Self| {
            kind.as_str().eq_ignore_ascii_case(text)
                || kind.plural() == lower
                || kind.short_names().contains(&lower.as_str())
        };
        let Some((name, group)) = lower.split_once('.') else {
            return Self::ALL.iter().copied().find(known);
        };

        Self::ALL.iter().copied().find(|kind| {
            let group = if group == CALICO_STORED {
                group_of(CALICO)
            } else {
                group
            };
            let one = kind.manifest_name().to_ascii_lowercase();
            let many = one
                .strip_suffix('y')
                .map_or_else(|| format!("{one}s"), |stem| format!("{stem}ies"));
            let names = [one.as_str(), many.as_str(), kind.plural()];

            kind.group() == group && (names.contains(&name) || kind.short_names().contains(&name))
        })
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
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
            .ok_or_else(|| UnknownKind(cut(text)))
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

    #[test]
    fn every_kind_is_found_again_by_each_of_its_names() {
        for kind in Kind::ALL.iter().copied() {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(
                Kind::from_manifest(kind.api_version(), kind.manifest_name()),
                Ok(kind)
            );
            assert_eq!(Kind::from_user(kind.as_str()), Some(kind));
            assert_eq!(Kind::from_user(kind.plural()), Some(kind));
            let (one, group) = (kind.manifest_name(), kind.group());
            assert_eq!(Kind::from_user(&format!("{one}.{group}")), Some(kind));
            for short in kind.short_names() {
                assert_eq!(Kind::from_user(&short.to_uppercase()), Some(kind));
            }
        }
    }

    #[test]
    fn two_kinds_that_are_written_alike_are_told_apart_by_their_group() {
        for (api_version, kind) in [
            ("projectcalico.org/v3", Some(Kind::NetworkPolicy)),
            ("crd.projectcalico.org/v1", Some(Kind::NetworkPolicy)),
            ("networking.k8s.io/v1", Some(Kind::KubernetesNetworkPolicy)),
            ("extensions/v1beta1", None),
            ("", None),
        ] {
            assert_eq!(Kind::from_manifest(api_version, "NetworkPolicy").ok(), kind);
        }
        for (text, kind) in [
            ("networkpolicies", Kind::NetworkPolicy),
            ("cnp", Kind::NetworkPolicy),
            (
                "networkpolicies.networking.k8s.io",
                Kind::KubernetesNetworkPolicy,
            ),
            (
                "NetworkPolicy.networking.k8s.io",
                Kind::KubernetesNetworkPolicy,
            ),
            ("networkpolicies.projectcalico.org", Kind::NetworkPolicy),
            ("networkpolicies.crd.projectcalico.org", Kind::NetworkPolicy),
            ("netpol", Kind::KubernetesNetworkPolicy),
            ("knp", Kind::KubernetesNetworkPolicy),
        ] {
            assert_eq!(Kind::from_user(text), Some(kind), "{text}");
        }
        assert_eq!(Kind::from_user("nodes.networking.k8s.io"), None);
    }
}
