//! What the store says of a pod, and what the kernel has of it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use model::{
    Kind, Object, ObjectKey, PodName,
    cni::{Code, Failure},
    resource::mesh_configuration::UnknownPods,
};
use store::{Client, Store, StoreError};

/// What the store has of a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The pod itself; absent where the configuration admits pods that the store does not have.
    pub(super) pod: Option<Object>,
    /// Its namespace.
    pub(super) namespace: Option<Object>,
}

/// What an attachment came to.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    /// The pod.
    pub(crate) pod: PodName,
    /// Its addresses, as they should be.
    pub(crate) addresses: Vec<IpNet>,
    /// What the kernel has otherwise, in words.
    pub(crate) differences: Vec<String>,
}

impl Known {
    /// Asks the store.
    pub(crate) async fn ask(
        client: &Client,
        pod: &PodName,
        unknown: UnknownPods,
    ) -> Result<Self, Failure> {
        let pod_key = ObjectKey::namespaced(Kind::Pod, &pod.namespace, pod.name.clone());
        let namespace_key = ObjectKey::cluster(Kind::Namespace, pod.namespace.clone());
        let (stored, namespace) = tokio::join!(client.get(pod_key), client.get(namespace_key));
        let known = Self {
            pod: present(stored)?,
            namespace: present(namespace)?,
        };

        match (&known.pod, unknown) {
            (None, UnknownPods::Refuse) => Err(Failure::new(
                Code::Refused,
                format!(
                    "the store has no pod {pod}, so nobody said what its labels are; apply it, or set \
                     spec.cni.unknownPods of MeshConfiguration/default to NamespaceOnly"
                ),
            )),
            (Some(_), UnknownPods::Refuse) | (_, UnknownPods::NamespaceOnly) => Ok(known),
        }
    }
}

impl Examined {
    /// Returns its addresses without their prefix lengths.
    pub(super) fn hosts(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(IpNet::addr).collect()
    }
}

fn present(answer: Result<Object, StoreError>) -> Result<Option<Object>, Failure> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(Failure::new(
            Code::TryLater,
            format!("the store cannot say what the pod is: {error}"),
        )),
    }
}
