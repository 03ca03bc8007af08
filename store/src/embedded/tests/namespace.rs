use model::resource::WorkloadEndpoint;

use super::*;

#[tokio::test]
async fn a_namespace_comes_with_its_first_endpoint_and_goes_with_its_last() {
    let (_directory, session) = fresh();
    for pod in ["a", "b"] {
        session.create(endpoint(pod)).await.unwrap();
    }
    assert!(session.get(shop()).await.is_ok());

    session
        .delete(endpoint("a").key(), Precondition::Any)
        .await
        .unwrap();
    assert!(session.get(shop()).await.is_ok());
    session
        .delete(endpoint("b").key(), Precondition::Any)
        .await
        .unwrap();

    assert_eq!(session.get(shop()).await, Err(StoreError::NotFound(shop())));
}

#[tokio::test]
async fn a_namespace_that_somebody_wrote_or_uses_stays() {
    let (_directory, session) = fresh();
    session.create(endpoint("a")).await.unwrap();
    let labels = json!({"metadata": {"labels": {"team": "a"}}});
    session
        .patch(shop(), labels, Precondition::Any)
        .await
        .unwrap();
    session
        .delete(endpoint("a").key(), Precondition::Any)
        .await
        .unwrap();
    assert!(session.get(shop()).await.is_ok());

    let (_directory, session) = fresh();
    session.create(endpoint("a")).await.unwrap();
    let key = ObjectKey::namespaced(Kind::Service, "shop", "web");
    session
        .create(Object::new(&key, json!({"n": 1})))
        .await
        .unwrap();
    session
        .delete(endpoint("a").key(), Precondition::Any)
        .await
        .unwrap();
    assert!(session.get(shop()).await.is_ok());
}

#[tokio::test]
async fn a_store_of_an_earlier_version_gets_the_namespaces_of_its_endpoints() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let store = Embedded::open(&path, Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    session.create(endpoint("a")).await.unwrap();
    session.delete(shop(), Precondition::Any).await.unwrap();
    drop((session, store));

    let store = Embedded::open(&path, Options::default()).unwrap();
    let session = store.session(Caller::local_admin());
    // Whatever is written next finds it done.
    session.create(service("next")).await.unwrap();

    assert!(session.get(shop()).await.is_ok());
}

fn fresh() -> (tempfile::TempDir, Session) {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("store.db"), Options::default()).unwrap();

    (directory, store.session(Caller::local_admin()))
}

fn shop() -> ObjectKey {
    ObjectKey::cluster(Kind::Namespace, "shop")
}

fn endpoint(pod: &str) -> Object {
    let node = "n1".parse().unwrap();
    let pod = model::PodName::parse(&format!("shop/{pod}")).unwrap();

    WorkloadEndpoint {
        name: WorkloadEndpoint::object_name(&node, &pod),
        interface: WorkloadEndpoint::host_interface(&pod),
        pod,
        node,
        addresses: Vec::new(),
        labels: Default::default(),
        profiles: Vec::new(),
        ports: Vec::new(),
    }
    .to_object()
}
