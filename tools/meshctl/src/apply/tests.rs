//! Against the embedded store, in this process.

use store::{Caller, Embedded, Options};

use super::*;

#[tokio::test]
async fn what_is_applied_is_created_then_changed_then_left_alone() {
    let lab = Lab::new();

    assert_eq!(
        lab.apply(&pool("nodeSelector: has(a)")).await.unwrap(),
        ["created"]
    );
    assert_eq!(
        lab.apply(&pool("nodeSelector: has(a)")).await.unwrap(),
        ["unchanged"]
    );
    assert_eq!(
        lab.apply(&pool("natOutgoing: true")).await.unwrap(),
        ["configured"]
    );

    let stored = lab
        .store
        .get(ObjectKey::cluster(Kind::IPPool, "pods"))
        .await
        .unwrap();
    assert_eq!(stored.body["spec"]["nodeSelector"], "all()");
    assert_eq!(stored.body["spec"]["natOutgoing"], true);
}

#[tokio::test]
async fn one_wrong_document_keeps_the_others_out() {
    let lab = Lab::new();
    lab.apply(&pool("natOutgoing: true")).await.unwrap();
    let text = format!(
        "{}---\n{}",
        pool("natOutgoing: false")
            .replace("pods", "other")
            .replace("10.65", "10.66"),
        pool("natOutgoing: true")
            .replace("pods", "clash")
            .replace("10.65.0.0/16", "10.65.3.0/24"),
    );

    let error = lab.apply(&text).await.unwrap_err().to_string();

    assert!(
        error.contains(
            "f, document 2: spec.cidr: expected a network that does not overlap pool pods"
        ),
        "{error}"
    );
    let pools = lab.store.list(Kind::IPPool).await.unwrap().objects;
    assert_eq!(pools.len(), 1);
}

#[tokio::test]
async fn a_document_read_at_an_older_revision_is_refused() {
    let lab = Lab::new();
    lab.apply(&pool("natOutgoing: true")).await.unwrap();
    let old = lab
        .store
        .get(ObjectKey::cluster(Kind::IPPool, "pods"))
        .await
        .unwrap();
    lab.apply(&pool("natOutgoing: false")).await.unwrap();

    let stale = pool("disabled: true").replace(
        "{name: pods}",
        &format!("{{name: pods, resourceVersion: '{}'}}", old.revision().0),
    );
    let error = format!("{:#}", lab.apply(&stale).await.unwrap_err());

    assert!(error.contains("changed by somebody else"), "{error}");
}

struct Lab {
    store: store::Session,
    _folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.db"), Options::default()).unwrap();
        Self {
            store: store.session(Caller::local_admin()),
            _folder: folder,
        }
    }

    async fn apply(&self, text: &str) -> anyhow::Result<Vec<&'static str>> {
        let documents = manifest::parse("f", text)
            .map_err(|errors| anyhow::anyhow!(input::together(&errors)))?;
        let mut words = Vec::new();
        for step in plan(&self.store, documents).await? {
            words.push(step.change.word());
            carry_out(&self.store, step).await?;
        }
        Ok(words)
    }
}

fn pool(rest: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pods}}\n\
         spec: {{cidr: 10.65.0.0/16, {rest}}}\n"
    )
}
