//! What stored objects say of a cluster: pods, profiles, services.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::{
    ObjectKey,
    policy::{Action, Profile, Rule},
    resource::{
        EndpointSlice, Namespace, Service, ServiceAccount, WorkloadEndpoint,
        endpoint_slice::EndpointPort, service::ServicePort,
    },
};

use super::{Backend, Pod, PodNetwork};

/// The service account of pods that name none; Kubernetes makes it in every namespace.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";

/// The label that Kubernetes sets on every namespace, whatever people write.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Calico's built-in profile that allows everything.
const ALLOW_ALL: &str = "projectcalico-default-allow";

/// Where a profile comes from. Of several of one name the last counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Every cluster has it.
    BuiltIn,
    /// It is an object.
    Object,
    /// It is a namespace.
    Namespace,
    /// It is the service account that every namespace has.
    DefaultAccount,
    /// It is this service account.
    Account(ObjectKey),
}

/// Returns the pod of an endpoint.
pub(crate) fn pod(endpoint: &WorkloadEndpoint) -> Pod {
    let prefix = ServiceAccount::profile_name(&endpoint.pod.namespace, "");
    let mut profiles = endpoint.profiles.iter();
    let account = profiles.find_map(|profile| profile.strip_prefix(&prefix));

    Pod {
        name: endpoint.pod.clone(),
        node: endpoint.node.clone(),
        service_account: account.unwrap_or_default().to_owned(),
        labels: endpoint.labels.clone(),
        addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
        ports: endpoint.ports.clone(),
        network: PodNetwork::Own,
    }
}

/// Returns the profiles that a namespace is and has: its own, and its default service account's.
pub(crate) fn of_namespace(namespace: &Namespace) -> [(Origin, Profile); 2] {
    let mut labels = namespace.labels.clone();
    labels.insert(NAME_LABEL.to_owned(), namespace.name.clone());
    let named = Namespace {
        name: namespace.name.clone(),
        labels,
    };
    let account = ServiceAccount {
        namespace: namespace.name.clone(),
        name: DEFAULT_ACCOUNT.to_owned(),
        labels: BTreeMap::new(),
    };

    [
        (Origin::Namespace, named.profile()),
        (Origin::DefaultAccount, account.profile()),
    ]
}

/// Returns the profile that every cluster has.
pub(crate) fn built_in() -> (Origin, Profile) {
    let allow = || vec![Rule::new(Action::Allow)];
    let profile = Profile {
        name: ALLOW_ALL.to_owned(),
        ingress: allow(),
        egress: allow(),
        labels: BTreeMap::new(),
        invalid: BTreeMap::new(),
    };

    (Origin::BuiltIn, profile)
}

/// Returns who answers for a service, as one of its slices says.
pub(crate) fn backends(service: &Service, slice: &EndpointSlice) -> Vec<Backend> {
    let mut backends = Vec::new();
    for port in &service.ports {
        let numbers = slice.ports.iter().filter(|target| is_same(port, target));
        for number in numbers.filter_map(|target| target.port) {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            backends.extend(
                ready
                    .flat_map(|endpoint| &endpoint.addresses)
                    .map(|address| Backend {
                        protocol: port.protocol,
                        service_port: port.port,
                        address: *address,
                        port: number,
                    }),
            );
        }
    }

    backends
}

fn is_same(port: &ServicePort, target: &EndpointPort) -> bool {
    port.name == target.name && port.protocol == target.protocol
}
