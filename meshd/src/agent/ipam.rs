//! This node's addresses: assigned, given back, borrowed where its own blocks have none.
//!
//! ```text
//! request ─▶ own blocks, new ones ─▶ addresses
//!                 └ none left ─▶ the authority: a block becomes free ─▶ again
//!                                               an address is lent  ─▶ addresses
//! ```
//!
//! One operation at a time: the node's own would otherwise outrun each other in the same block.

pub(crate) mod view;

use std::{net::IpAddr, sync::Arc};

use cni_ipam::{
    Answer, Denied, ExactRequest, Failure, Missing, Preference, Request, Rules, Step,
    assign_addresses, assign_exact, ensure_block, release::Kept, release_handle,
};
use futures::{FutureExt, future::BoxFuture};
use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    ActionResult, Kind, NodeName,
    action::AddressRequest,
    ipam::{Plea, Verdict},
    resource::ip_pool::AllowedUse,
};
use store::{Client, Perform, StoreError, drive, perform};
use tokio::sync::Mutex;

use self::view::View;
use crate::ipam::{holder, named_pools, namespace_labels};

/// How often the authority may free a block that somebody else is faster to claim.
const FREED_BLOCKS: usize = 4;

/// This node's part of IPAM.
#[derive(Clone)]
pub(crate) struct Ipam {
    node: NodeName,
    client: Client,
    view: View,
    turn: Arc<Mutex<()>>,
}

type Outcome = Result<ActionResult, StoreError>;

impl Ipam {
    /// Returns the part of a node.
    pub(crate) fn new(node: NodeName, client: Client) -> Self {
        let view = View::new(node.clone());

        Self {
            node,
            client,
            view,
            turn: Arc::default(),
        }
    }

    /// Returns what is known without asking; the loop feeds it.
    pub(crate) const fn view(&self) -> &View {
        &self.view
    }

    /// Sees to it that the node has a block of a pool.
    pub(crate) async fn claim_block(&self, pool: IpNet) -> Outcome {
        let _turn = self.turn.lock().await;
        let rules = match self.view.rules() {
            Ok(rules) => rules,
            Err(why) => return Ok(ActionResult::Retry(why.to_string())),
        };
        let Some(pool) = self.view.pools().into_iter().find(|it| it.cidr == pool) else {
            return Ok(ActionResult::Retry(format!("no IPPool has {pool}")));
        };
        let operation = ensure_block(self.node.clone(), pool, rules, Timestamp::now());

        Ok(match drive(self, operation).await? {
            Ok(Ok(_)) => ActionResult::Done,
            Ok(Err(missing)) => ActionResult::Refused(missing.to_string()),
            Err(failure) => failed(&failure),
        })
    }

    /// Assigns what a request asks for. What is assigned when it fails goes back with its handle.
    pub(crate) async fn assign(&self, request: &AddressRequest) -> Outcome {
        let _turn = self.turn.lock().await;
        let rules = match self.view.rules() {
            Ok(rules) => rules,
            Err(why) => return Ok(ActionResult::Retry(why.to_string())),
        };
        let mut addresses = Vec::new();
        for address in &request.addresses {
            match self.assign_exact(request, *address, &rules).await? {
                Ok(address) => addresses.push(address),
                Err(result) => return Ok(result),
            }
        }
        match self.assign_any(request, &rules).await? {
            Ok(any) => addresses.extend(any),
            Err(result) => return Ok(result),
        }
        addresses.sort();
        addresses.dedup();

        Ok(ActionResult::Addresses(addresses))
    }

    /// Gives back whatever a handle holds.
    pub(crate) async fn release(&self, handle: &str) -> Outcome {
        let _turn = self.turn.lock().await;
        let rules = match self.view.rules() {
            Ok(rules) => rules,
            Err(why) => return Ok(ActionResult::Retry(why.to_string())),
        };
        let operation = release_handle(handle.to_owned(), rules, Timestamp::now());
        let released = match drive(self, operation).await? {
            Ok(released) => released,
            Err(failure) => return Ok(failed(&failure)),
        };
        let is_foreign = |kept: &Kept| matches!(kept, Kept::Foreign(_));
        if !released.kept.values().any(is_foreign) {
            return Ok(ActionResult::Done);
        }
        let handle = handle.to_owned();

        Ok(match self.client.plead(&Plea::TakeBack { handle }).await? {
            Verdict::TakenBack => ActionResult::Done,
            Verdict::Refused(why) => ActionResult::Refused(why),
            Verdict::Lent(_) | Verdict::BlockFreed => unanswered(),
        })
    }

    async fn assign_any(
        &self,
        request: &AddressRequest,
        rules: &Rules,
    ) -> Result<Result<Vec<IpAddr>, ActionResult>, StoreError> {
        if request.families.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let asked = match self.asked(request).await? {
            Ok(asked) => asked,
            Err(why) => return Ok(Err(ActionResult::Refused(why))),
        };
        for _ in 0..FREED_BLOCKS {
            let pools = self.view.pools();
            let operation = assign_addresses(asked.clone(), pools, rules.clone(), Timestamp::now());
            let assigned = match drive(self, operation).await? {
                Ok(assigned) => assigned,
                Err(failure) => return Ok(Err(failed(&failure))),
            };
            let Some((_, missing)) = assigned.missing.first_key_value() else {
                let addresses = assigned.addresses.iter().map(IpNet::addr);
                return Ok(Ok(addresses.collect()));
            };
            if !may_borrow(request, missing, rules) {
                return Ok(Err(ActionResult::Refused(missing.to_string())));
            }
            match self.borrow(request).await? {
                Verdict::Lent(addresses) => return Ok(Ok(addresses)),
                Verdict::BlockFreed => {}
                Verdict::Refused(why) => return Ok(Err(ActionResult::Refused(why))),
                Verdict::TakenBack => return Ok(Err(unanswered())),
            }
        }
        let reason = "others claim every block that becomes free".to_owned();

        Ok(Err(ActionResult::Retry(reason)))
    }

    async fn assign_exact(
        &self,
        request: &AddressRequest,
        address: IpAddr,
        rules: &Rules,
    ) -> Result<Result<IpAddr, ActionResult>, StoreError> {
        let exact = ExactRequest {
            node: self.node.clone(),
            holder: holder(request),
            address,
        };
        let pools = self.view.pools();
        let operation = assign_exact(exact, pools, rules.clone(), Timestamp::now());
        let denied = match drive(self, operation).await? {
            Ok(Ok(assigned)) => return Ok(Ok(assigned.addr())),
            Ok(Err(denied)) => denied,
            Err(failure) => return Ok(Err(failed(&failure))),
        };
        if !matches!(denied, Denied::Foreign { .. }) {
            return Ok(Err(ActionResult::Refused(denied.to_string())));
        }
        let single = AddressRequest {
            families: [].into(),
            addresses: vec![address],
            ..request.clone()
        };

        Ok(match self.borrow(&single).await? {
            Verdict::Lent(addresses) if addresses == [address] => Ok(address),
            Verdict::Refused(why) => Err(ActionResult::Refused(why)),
            Verdict::Lent(_) | Verdict::BlockFreed | Verdict::TakenBack => Err(unanswered()),
        })
    }

    /// Asks the authority. Where it is out of reach nobody borrows.
    async fn borrow(&self, request: &AddressRequest) -> Result<Verdict, StoreError> {
        let verdict = self.client.plead(&Plea::Lend(request.clone())).await?;
        if let Verdict::Lent(addresses) = &verdict {
            tracing::info!(
                count = addresses.len(),
                "Addresses of other nodes' blocks were lent"
            );
        }

        Ok(verdict)
    }

    /// Returns the request in the engine's words.
    async fn asked(&self, request: &AddressRequest) -> Result<Result<Request, String>, StoreError> {
        let pools = self.view.pools();
        let named = match named_pools(request, &pools) {
            Ok(named) => named,
            Err(why) => return Ok(Err(why)),
        };
        let counts = request.families.iter().map(|family| (*family, 1));

        Ok(Ok(Request {
            node: self.node.clone(),
            holder: holder(request),
            counts: counts.collect(),
            preference: Preference {
                purpose: request.purpose,
                named,
                node_labels: self.view.labels(),
                namespace_labels: namespace_labels(&self.client, request, &pools).await?,
            },
            blocks_max: None,
        }))
    }
}

impl Perform for Ipam {
    fn perform(&self, step: Step) -> BoxFuture<'_, Result<Answer, StoreError>> {
        async move {
            if let Some(answer) = self.known(&step) {
                return Ok(answer);
            }
            let key = match &step {
                Step::Get(key) | Step::Delete(key, _) => Some(key.clone()),
                Step::Create(object) | Step::Update(object) => Some(object.key()),
                Step::List(..) => None,
            };
            let answer = perform(&self.client, step).await;
            match (&answer, &key) {
                (Ok(Answer::Object(object)), _) => self.view.applied(object),
                // What is known is not what is stored, or nobody knows.
                (Ok(_) | Err(_), Some(key)) => self.view.forget(key),
                (Ok(_) | Err(_), None) => {}
            }

            answer
        }
        .boxed()
    }
}

impl Ipam {
    /// Returns the answer to a question that the view can answer.
    fn known(&self, step: &Step) -> Option<Answer> {
        match step {
            Step::Get(key) => {
                let object = self.view.record(key)?;
                Some(Answer::Object(Box::new(object)))
            }
            Step::List(Kind::BlockAffinity, Some(node)) if *node == self.node => {
                self.view.affinities().map(Answer::Objects)
            }
            Step::List(..) | Step::Create(_) | Step::Update(_) | Step::Delete(..) => None,
        }
    }
}

/// A tunnel's address must be of the node's own block: peers take no other.
fn may_borrow(request: &AddressRequest, missing: &Missing, rules: &Rules) -> bool {
    request.purpose == AllowedUse::Workload
        && missing.is_lendable()
        && !rules.configuration.strict_affinity
}

fn failed(failure: &Failure) -> ActionResult {
    match failure {
        Failure::Store { .. } | Failure::Contended(_) => ActionResult::Retry(failure.to_string()),
        Failure::Unreadable { .. } | Failure::HandleTaken { .. } => {
            ActionResult::Refused(failure.to_string())
        }
    }
}

fn unanswered() -> ActionResult {
    ActionResult::Retry("the authority answered another question".to_owned())
}
