//! Operations of IPAM carried out against a store, one step at a time.

use cni_ipam::{Answer, Operation, Step, Turn, step::LIFETIME};
use futures::future::BoxFuture;
use model::Object;
use tokio::time::timeout;

use crate::{Precondition, Store, StoreError};

/// Whoever takes the steps of operations.
pub trait Perform: Sync {
    /// Takes one step.
    ///
    /// # Errors
    ///
    /// Where the store refused, or nobody knows whether it did what was asked. That somebody else was faster is an
    /// answer, not an error.
    fn perform(&self, step: Step) -> BoxFuture<'_, Result<Answer, StoreError>>;
}

/// Takes the steps of an operation, one after the other, and returns what it comes to.
///
/// # Errors
///
/// The first error of a step, which ends the operation; [`StoreError::Unavailable`] where it takes longer than any
/// operation may, for then others may think that nobody is at work.
pub async fn drive<T: Clone>(
    performer: &dyn Perform,
    mut operation: Operation<T>,
) -> Result<T, StoreError> {
    let steps = async {
        loop {
            match operation.poll_step() {
                Turn::Step(step) => operation.handle_answer(performer.perform(step).await?),
                Turn::Done(outcome) => return Ok(outcome),
            }
        }
    };
    let late = |_| StoreError::Unavailable(format!("no end in {} s", LIFETIME.as_secs()));

    timeout(LIFETIME, steps).await.map_err(late)?
}

/// Takes a step in a store.
///
/// # Errors
///
/// As [`Perform::perform`].
pub async fn perform(store: &dyn Store, step: Step) -> Result<Answer, StoreError> {
    let outcome = match step {
        Step::Get(key) => store.get(key).await.map(found),
        Step::List(kind, _) => {
            let list = store.list(kind).await;
            list.map(|list| Answer::Objects(list.objects))
        }
        Step::Create(object) => store.create(*object).await.map(found),
        Step::Update(object) => store.update(*object).await.map(found),
        Step::Delete(key, revision) => {
            let expected = Precondition::Revision(revision);
            store.delete(key, expected).await.map(|()| Answer::Deleted)
        }
    };

    match outcome {
        Ok(answer) => Ok(answer),
        Err(StoreError::AlreadyExists(_)) => Ok(Answer::AlreadyExists),
        Err(StoreError::Conflict(_)) => Ok(Answer::Conflict),
        Err(StoreError::NotFound(_)) => Ok(Answer::NotFound),
        Err(error) => Err(error),
    }
}

fn found(object: Object) -> Answer {
    Answer::Object(Box::new(object))
}
