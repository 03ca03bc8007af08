//! Carries out actions against the store, each once, and says how it ended.

use std::net::IpAddr;

use cni_ipam::{Assigned, Claim, ClaimStep, StepResult};
use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    ActionKind, ActionResult, Kind, NodeName, Object, ObjectKey, PublicKey,
    action::{AddressRequest, NodePublication},
    resource::{AddressClaim, IpamBlock, KeyClaim, WorkloadEndpoint},
};
use store::{Client, Precondition, Store, StoreError};

/// How often a compare-and-swap is tried before the brain is told to come back later.
const TRIES: usize = 16;

/// How many steps a claim may take: enough to lose a race for dozens of blocks.
const CLAIM_STEPS: usize = 256;

/// Writes to the store on behalf of one node.
#[derive(Clone)]
pub(crate) struct Executor {
    node: NodeName,
    client: Client,
}

/// When an action is carried out, for what it writes.
#[derive(Clone, Debug)]
pub(crate) struct WallTime {
    /// Nanoseconds since 1970: numbers new blocks, as Calico's do.
    pub(crate) unix_nanos: u64,
    /// RFC 3339: dates claims.
    pub(crate) timestamp: String,
}

type Outcome = Result<ActionResult, StoreError>;

impl Executor {
    /// Creates an executor for a node.
    pub(crate) fn new(node: NodeName, client: Client) -> Self {
        Self { node, client }
    }

    /// Does what the action says.
    pub(crate) async fn execute(&self, action: ActionKind, time: WallTime) -> ActionResult {
        let outcome = match action {
            ActionKind::ClaimKey(key) => self.claim_key(key).await,
            ActionKind::ClaimAddress(address) => self.claim_address(address).await,
            ActionKind::PublishNode(publication) => self.publish_node(&publication).await,
            ActionKind::ClaimBlock { pool, block_size } => {
                self.claim_block(pool, block_size, &time).await
            }
            ActionKind::AssignAddress(request) => self.assign(&request).await,
            ActionKind::ReleaseHandle { handle, blocks } => self.release(&handle, &blocks).await,
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

    /// Walks through Calico's sequence, one store operation at a time.
    async fn claim_block(&self, pool: IpNet, block_size: u8, time: &WallTime) -> Outcome {
        let (number, date) = (time.unix_nanos, Some(time.timestamp.clone()));
        let mut claim = Claim::new(self.node.clone(), pool, block_size, number, date);
        for _ in 0..CLAIM_STEPS {
            let result = match claim.next() {
                ClaimStep::List => self.listed().await,
                ClaimStep::CreateAffinity(object) | ClaimStep::CreateBlock(object) => {
                    self.client.create(object).await.map(stored)
                }
                ClaimStep::UpdateAffinity(object) | ClaimStep::UpdateBlock(object) => {
                    self.client.update(object).await.map(stored)
                }
                ClaimStep::DeleteAffinity(key, revision) => {
                    let expected = Precondition::Revision(revision);
                    self.client
                        .delete(key, expected)
                        .await
                        .map(|()| StepResult::Deleted)
                }
                ClaimStep::Done(_) => return Ok(ActionResult::Done),
                ClaimStep::Exhausted => {
                    let reason = format!("no block of /{block_size} is left in pool {pool}");
                    return Ok(ActionResult::Retry(reason));
                }
            };
            claim.told(step_result(result)?);
        }

        Ok(ActionResult::Retry(format!(
            "others are claiming blocks of pool {pool} just now"
        )))
    }

    async fn listed(&self) -> Result<StepResult, StoreError> {
        let mut objects = self.client.list(Kind::IPAMBlock).await?.objects;
        objects.extend(self.client.list(Kind::BlockAffinity).await?.objects);

        Ok(StepResult::Listed(objects))
    }

    async fn assign(&self, request: &AddressRequest) -> Outcome {
        for _ in 0..TRIES {
            let (object, block) = match self.block(request.block).await? {
                Ok(read) => read,
                Err(reason) => return Ok(ActionResult::Refused(reason)),
            };
            let (address, changed) = match cni_ipam::assign(&block, request) {
                Ok(Assigned::Held(address)) => return Ok(ActionResult::Address(address)),
                Ok(Assigned::New(changed, address)) => (address, changed),
                Err(error) => return Ok(ActionResult::Refused(error.to_string())),
            };
            match self.client.update(replacing(&object, &changed)).await {
                Err(StoreError::Conflict(_)) => {}
                outcome => return outcome.map(|_| ActionResult::Address(address)),
            }
        }

        Ok(ActionResult::Retry(format!(
            "block {} changes all the time",
            request.block
        )))
    }

    async fn release(&self, handle: &str, blocks: &[IpNet]) -> Outcome {
        for cidr in blocks {
            if !self.release_in(handle, *cidr).await? {
                return Ok(ActionResult::Retry(format!(
                    "block {cidr} changes all the time"
                )));
            }
        }

        Ok(ActionResult::Done)
    }

    /// Returns whether nothing of the handle is left in the block.
    async fn release_in(&self, handle: &str, cidr: IpNet) -> Result<bool, StoreError> {
        for _ in 0..TRIES {
            let (object, block) = match self.block(cidr).await {
                Ok(Ok(read)) => read,
                Ok(Err(_)) | Err(StoreError::NotFound(_)) => return Ok(true),
                Err(error) => return Err(error),
            };
            let Some((changed, _)) = cni_ipam::release(&block, handle) else {
                return Ok(true);
            };
            match self.client.update(replacing(&object, &changed)).await {
                Ok(_) => return Ok(true),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }

        Ok(false)
    }

    /// Reads a block from the store; the inner error says why it cannot be used.
    async fn block(&self, cidr: IpNet) -> Result<Result<(Object, IpamBlock), String>, StoreError> {
        let key = ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));
        let object = self.client.get(key).await?;
        let block = IpamBlock::try_from(&object).map_err(|error| error.to_string());

        Ok(block.map(|block| (object, block)))
    }
}

impl WallTime {
    /// Reads the clock.
    pub(crate) fn now() -> Self {
        let now = Timestamp::now();

        Self {
            unix_nanos: u64::try_from(now.as_nanosecond()).unwrap_or(0),
            timestamp: now.to_string(),
        }
    }
}

/// Returns the block as an object that replaces exactly the version that was read.
fn replacing(read: &Object, block: &IpamBlock) -> Object {
    let mut object = block.to_object();
    object.metadata = read.metadata.clone();

    object
}

fn stored(object: Object) -> StepResult {
    StepResult::Stored(Box::new(object))
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

/// Returns how a step of a claim ended; an error that says nothing about the step ends the claim.
fn step_result(outcome: Result<StepResult, StoreError>) -> Result<StepResult, StoreError> {
    match outcome {
        Ok(result) => Ok(result),
        Err(StoreError::AlreadyExists(_)) => Ok(StepResult::AlreadyExists),
        Err(StoreError::Conflict(_)) => Ok(StepResult::Conflict),
        Err(StoreError::NotFound(_)) => Ok(StepResult::NotFound),
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
