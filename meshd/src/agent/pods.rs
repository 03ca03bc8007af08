//! The pods that asked for an interface on this node, kept over restarts of the agent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use model::{
    PodName,
    cni::{AttachmentKey, Survivors},
    event::PodRequest,
};
use serde::{Deserialize, Serialize};

use crate::stored;

/// The version of the file.
const VERSION: u32 = 1;

/// What to do about a file that cannot be read.
const REMEDY: &str = "restore it, or run the meshd that wrote it; moved away, this node's pods lose their interfaces and have to be started again";

/// Which pods live here, on disk.
#[derive(Debug)]
pub(crate) struct PodFile {
    path: PathBuf,
    pods: BTreeMap<PodName, PodRequest>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    pods: Vec<PodRequest>,
}

impl PodFile {
    /// Reads the file; none there means no pods.
    pub(crate) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let stored: Option<Stored> = stored::read(&path, VERSION, REMEDY)?;
        let pods = stored
            .map(|stored| stored.pods)
            .unwrap_or_default()
            .into_iter()
            .map(|pod| (pod.pod.clone(), pod))
            .collect();

        Ok(Self { path, pods })
    }

    /// Returns the pods that still have a network namespace.
    ///
    /// A reboot takes every namespace with it; their pods will ask again under new sandboxes.
    pub(crate) fn alive(&self) -> Vec<PodRequest> {
        self.pods
            .values()
            .filter(|pod| Path::new(&pod.netns).exists())
            .cloned()
            .collect()
    }

    /// Returns the pods whose network namespace is gone.
    pub(crate) fn dead(&self) -> Vec<PodName> {
        let gone = |pod: &&PodRequest| !Path::new(&pod.netns).exists();

        self.pods
            .values()
            .filter(gone)
            .map(|pod| pod.pod.clone())
            .collect()
    }

    /// Returns the pod that an attachment made, unless another container took its place since.
    pub(crate) fn attached(&self, key: &AttachmentKey) -> Option<&PodRequest> {
        self.pods.values().find(|pod| is_of(pod, key))
    }

    /// Returns the pods of a network that none of the attachments `valid` made.
    pub(crate) fn left_over(&self, survivors: &Survivors) -> Vec<PodName> {
        let is_left = |pod: &&PodRequest| {
            pod.network == survivors.network && !survivors.valid.iter().any(|key| is_of(pod, key))
        };

        self.pods
            .values()
            .filter(is_left)
            .map(|pod| pod.pod.clone())
            .collect()
    }

    /// Remembers a pod.
    pub(crate) fn add(&mut self, pod: PodRequest) -> anyhow::Result<()> {
        self.pods.insert(pod.pod.clone(), pod);

        self.save()
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, pod: &PodName) -> anyhow::Result<()> {
        if self.pods.remove(pod).is_none() {
            return Ok(());
        }

        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        let stored = Stored {
            pods: self.pods.values().cloned().collect(),
        };

        stored::write(&self.path, VERSION, &stored).with_context(|| {
            format!(
                "could not write the pods of this node to {}",
                self.path.display()
            )
        })
    }
}

fn is_of(pod: &PodRequest, key: &AttachmentKey) -> bool {
    pod.sandbox == key.container.as_str() && pod.interface == key.interface
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pods_survive_a_restart_and_those_without_a_namespace_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pods.json");
        let mut file = PodFile::open(path.clone()).unwrap();
        file.add(pod("here", "/proc/self/ns/net")).unwrap();
        file.add(pod("gone", "/nonexistent")).unwrap();

        let again = PodFile::open(path).unwrap();

        assert_eq!(again.alive(), [pod("here", "/proc/self/ns/net")]);
        assert_eq!(again.dead(), [PodName::parse("default/gone").unwrap()]);
    }

    #[test]
    fn a_file_of_another_version_is_refused_not_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pods.json");
        fs::write(&path, r#"{"version": 2, "pods": []}"#).unwrap();

        assert!(PodFile::open(path).is_err());
    }

    #[test]
    fn an_attachment_is_a_pod_only_while_its_container_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = PodFile::open(folder.path().join("pods.json")).unwrap();
        let of = |container: &str, network: &str| PodRequest {
            sandbox: container.to_owned(),
            network: network.parse().unwrap(),
            ..pod(container, "/proc/self/ns/net")
        };
        for (container, network) in [("kept", "mesh"), ("lost", "mesh"), ("other", "another")] {
            file.add(of(container, network)).unwrap();
        }
        let key = |container: &str, interface: &str| AttachmentKey {
            container: container.parse().unwrap(),
            interface: interface.parse().unwrap(),
        };

        assert!(file.attached(&key("kept", "eth0")).is_some());
        assert!(file.attached(&key("older", "eth0")).is_none());
        assert!(file.attached(&key("kept", "eth1")).is_none());
        let survivors = Survivors {
            network: "mesh".parse().unwrap(),
            valid: [key("kept", "eth0")].into(),
        };
        assert_eq!(
            file.left_over(&survivors),
            [PodName::parse("default/lost").unwrap()]
        );
    }

    fn pod(name: &str, netns: &str) -> PodRequest {
        PodRequest {
            pod: PodName::parse(&format!("default/{name}")).unwrap(),
            network: PodRequest::usual_network(),
            sandbox: name.to_owned(),
            netns: netns.to_owned(),
            interface: "eth0".parse().unwrap(),
            labels: BTreeMap::new(),
            service_account: None,
            addresses: Vec::new(),
            wish: Box::default(),
        }
    }
}
