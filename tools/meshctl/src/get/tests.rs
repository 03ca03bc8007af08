//! Against the embedded store, in this process.

use clap::Parser;
use model::ObjectKey;
use store::{Caller, Embedded, Options};

use super::*;

#[derive(Parser)]
struct Line {
    kind: String,
    names: Vec<String>,
    #[command(flatten)]
    view: View,
}

#[tokio::test]
async fn tables_show_what_was_asked_for() {
    let lab = Lab::new().await;

    assert_eq!(
        lab.get("ippools").await,
        "NAME  CIDR          BLOCKS  NAT  STATE\n\
         old   10.66.0.0/16  /26     no   disabled\n\
         pods  10.65.0.0/16  /26     yes  enabled"
    );
    assert_eq!(lab.get("pods -A").await.lines().count(), 3);
    assert!(lab.get("pods -A").await.starts_with("NAMESPACE"));
    assert!(lab.get("pods -n shop").await.contains("web-0"));
    assert_eq!(lab.get("pods").await, "nothing");
    assert!(
        lab.get("ippools,namespaces")
            .await
            .contains("\n\nnamespaces\nNAME")
    );
    assert!(lab.get("all -A").await.contains("web-1"));
    assert!(lab.get("pods -A -l app=='b'").await.contains("web-1"));
    assert!(!lab.get("pods -A -l app=='b'").await.contains("web-0"));
    assert_eq!(
        lab.get("ippools -o name").await,
        "ippools/old\nippools/pods"
    );
}

#[tokio::test]
async fn what_is_printed_for_programs_can_be_applied_again() {
    let lab = Lab::new().await;

    for format in ["yaml", "json"] {
        let text = lab.get(&format!("ippools -o {format}")).await;
        let documents = model::manifest::parse("f", &text).unwrap();
        let names: Vec<_> = documents
            .iter()
            .map(|d| d.object.metadata.name.as_str())
            .collect();
        assert_eq!(names, ["old", "pods"]);
    }
    let one: Object = serde_json::from_str(&lab.get("ippools pods -o json").await).unwrap();
    assert_eq!(one.metadata.name, "pods");
}

#[tokio::test]
async fn a_name_that_is_not_there_is_an_error() {
    let lab = Lab::new().await;

    let error = lab
        .try_get("ippools nowhere")
        .await
        .unwrap_err()
        .to_string();

    assert_eq!(error, "IPPool nowhere does not exist");
}

struct Lab {
    store: store::Session,
    _folder: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.db"), Options::default()).unwrap();
        let store = store.session(Caller::local_admin());
        let pool = |name: &str, spec| Object::new(&ObjectKey::cluster(Kind::IPPool, name), spec);
        let pod = |name: &str, app: &str| {
            let mut pod = Object::new(&ObjectKey::namespaced(Kind::Pod, "shop", name), json!({}));
            pod.metadata.labels.insert("app".into(), app.into());
            pod
        };
        for object in [
            pool("pods", json!({"cidr": "10.65.0.0/16", "natOutgoing": true})),
            pool("old", json!({"cidr": "10.66.0.0/16", "disabled": true})),
            Object::new(&ObjectKey::cluster(Kind::Namespace, "shop"), json!({})),
            pod("web-0", "a"),
            pod("web-1", "b"),
        ] {
            store.create(object).await.unwrap();
        }
        Self {
            store,
            _folder: folder,
        }
    }

    async fn try_get(&self, line: &str) -> anyhow::Result<String> {
        let line = Line::parse_from(std::iter::once("get").chain(line.split(' ')));
        let selection = Selection::parse(&line.kind, &line.names)?;
        let objects = find(&self.store, &selection, &line.view).await?;
        let text = render(&objects, &selection, &line.view, Timestamp::UNIX_EPOCH)?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    async fn get(&self, line: &str) -> String {
        self.try_get(line).await.unwrap()
    }
}
