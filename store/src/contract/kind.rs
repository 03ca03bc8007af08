//! Kinds are told apart, also where YAML writes them alike.

use model::{Kind, Object, ObjectKey};
use serde_json::json;

use super::{Factory, Log};
use crate::Precondition;

/// Calico's and Kubernetes' NetworkPolicy of one name are two objects, in lists and by key.
pub async fn two_kinds_that_are_written_alike_are_kept_apart(factory: &dyn Factory) {
    let subject = factory.subject(Log::Long).await;
    let store = &subject.store;
    let policy = |kind, spec| Object::new(&ObjectKey::namespaced(kind, "shop", "web"), spec);
    let calico = policy(Kind::NetworkPolicy, json!({"order": 10}));
    let kubernetes = policy(Kind::KubernetesNetworkPolicy, json!({"podSelector": {}}));

    let calico = store.create(calico).await.unwrap();
    let kubernetes = store.create(kubernetes).await.unwrap();

    for object in [&calico, &kubernetes] {
        assert_eq!(&store.get(object.key()).await.unwrap(), object);
        let listed = store.list(object.kind).await.unwrap().objects;
        assert_eq!(&listed, std::slice::from_ref(object));
    }
    store.delete(calico.key(), Precondition::Any).await.unwrap();
    assert_eq!(store.get(kubernetes.key()).await.unwrap(), kubernetes);
}
