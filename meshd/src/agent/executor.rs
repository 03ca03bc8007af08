//! Carries out actions against the store, each once, and says how it ended.

use std::net::IpAddr;

use model::{
    ActionKind, ActionResult, Kind, NodeName, Object, ObjectKey, PublicKey,
    action::NodePublication,
    resource::{AddressClaim, KeyClaim, WorkloadEndpoint},
};
use store::{Client, Precondition, Store, StoreError};

use super::ipam::{Ipam, view::View};

/// Writes to the store on behalf of one node.
#[derive(Clone)]
pub(crate) struct Executor {
    node: NodeName,
    client: Client,
    ipam: Ipam,
}

type Outcome = Result<ActionResult, StoreError>;

impl Executor {
    /// Creates an executor for a node.
    pub(crate) fn new(node: NodeName, client: Client) -> Self {
        let ipam = Ipam::new(node.clone(), client.clone());

        Self { node, client, ipam }
    }

    /// Returns what is known of IPAM without asking; the loop feeds it.
    pub(crate) const fn view(&self) -> &View {
        self.ipam.view()
    }

    /// Does what the action says.
    pub(crate) async fn execute(&self, action: ActionKind) -> ActionResult {
        let outcome = match action {
            ActionKind::ClaimKey(key) => self.claim_key(key).await,
            ActionKind::ClaimAddress(address) => self.claim_address(address).await,
            ActionKind::PublishNode(publication) => self.publish_node(&publication).await,
            ActionKind::ClaimBlock { pool, .. } => self.ipam.claim_block(pool).await,
            ActionKind::AssignAddress(request) => self.ipam.assign(&request).await,
            ActionKind::ReleaseHandle(handle) => self.ipam.release(&handle).await,
            ActionKind::PublishEndpoint(endpoint) => self.publish_endpoint(&endpoint).await,
            ActionKind::RemoveEndpoint { pod, name } => {
                let key = ObjectKey::namespaced(Kind::WorkloadEndpoint, pod.namespace, name);
                match self.client.delete(key, Precondition::Any).await {
                    Ok(()) | Err(StoreError::NotFound(_)) => Ok(ActionResult::Done),
                    Err(error) => Err(error),
                }
            }
            ActionKind::AnswerPod(..) => Ok(ActionResult::Done),
        };

        outcome.unwrap_or_else(told)
    }

    async fn claim_key(&self, key: PublicKey) -> Outcome {
        let claim = KeyClaim::new(key, self.node.clone());

        created(self.client.create(claim.to_object()).await)
    }

    async fn claim_address(&self, address: IpAddr) -> Outcome {
        let claim = AddressClaim {
            address,
            node: self.node.clone(),
        };
        let object = claim.to_object();
        match self.client.create_from(address, object.clone()).await {
            // The server cannot be reached from there; an administrator may have granted the network.
            Err(StoreError::Unavailable(_)) => created(self.client.create(object).await),
            outcome => created(outcome),
        }
    }

    async fn publish_node(&self, publication: &NodePublication) -> Outcome {
        let key = ObjectKey::cluster(Kind::Node, publication.node.as_str());
        let patch = match publication.merge_patch() {
            Ok(patch) => patch,
            Err(error) => return Ok(ActionResult::Refused(error.to_string())),
        };

        done(self.client.patch(key, patch, Precondition::Any).await)
    }

    async fn publish_endpoint(&self, endpoint: &WorkloadEndpoint) -> Outcome {
        let mut object = endpoint.to_object();
        match self.client.create(object.clone()).await {
            Err(StoreError::AlreadyExists(key)) => {
                let stored = self.client.get(key).await?;
                object.metadata.resource_version = stored.metadata.resource_version;
                done(self.client.update(object).await)
            }
            outcome => done(outcome),
        }
    }
}

fn done<T>(outcome: Result<T, StoreError>) -> Outcome {
    outcome.map(|_| ActionResult::Done)
}

/// A claim that is there already is a success: the brain reads whose it is.
fn created(outcome: Result<Object, StoreError>) -> Outcome {
    match outcome {
        Ok(_) | Err(StoreError::AlreadyExists(_)) => Ok(ActionResult::Done),
        Err(error) => Err(error),
    }
}

/// Returns what the brain makes of an error: what may pass is tried again, what will not is refused.
fn told(error: StoreError) -> ActionResult {
    let reason = error.to_string();
    match error {
        StoreError::Forbidden { .. }
        | StoreError::Invalid(_)
        | StoreError::TooLarge { .. }
        | StoreError::AlreadyExists(_) => ActionResult::Refused(reason),
        StoreError::NotFound(_)
        | StoreError::Conflict(_)
        | StoreError::Compacted(_)
        | StoreError::Unauthenticated(_)
        | StoreError::TooMany { .. }
        | StoreError::Unavailable(_)
        | StoreError::Internal(_) => ActionResult::Retry(reason),
    }
}
