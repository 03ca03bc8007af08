//! `meshctl config`: every setting of a node, and where it came from.

use std::process::ExitCode;

use anyhow::{Context, bail};
use comfy_table::{ContentArrangement, Table, presets};
use model::{
    Kind, NodeName, ObjectKey,
    resource::{FelixConfiguration, MeshConfiguration, Node},
    settings::{Settings, Source},
};
use serde_json::{Value, json};
use store::{Identity, Store, StoreError};

use crate::{
    connection::Connection,
    get::trimmed,
    say,
    selection::{Usage, node_name},
    status::Output,
    warn,
};

/// How the command is used.
const EXAMPLES: &str = "\
Examples:
  meshctl config n1
  meshctl config n1 -o json | jq .wireguardEnabled

Exit status: 0 shown, 1 no such node or no store answers, 3 some settings cannot be used.";

/// Shows what holds on a node: each setting, its value, and which object set it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// The node [default: the one that the credential is for].
    #[arg(value_parser = node_name)]
    node: Option<NodeName>,

    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A setting as it is shown.
#[derive(Debug, PartialEq)]
struct Line {
    name: String,
    value: Value,
    from: String,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let node = match (args.node.clone(), args.connection.credential()?.identity()) {
        (Some(node), _) => node,
        (None, Identity::Node(node)) => node.clone(),
        (None, Identity::Admin(_)) => bail!(Usage("which node? Name it".to_owned())),
    };
    let store = args.connection.store()?;
    let (lines, warnings) = read(store.as_ref(), &node).await?;
    match args.output {
        Output::Table => say(&table(&lines)),
        Output::Json => say(&to_json(&lines)),
    }
    for warning in &warnings {
        warn(warning);
    }

    Ok(if warnings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// Works out the settings of a node, and what cannot be used.
async fn read(store: &dyn Store, node: &NodeName) -> anyhow::Result<(Vec<Line>, Vec<String>)> {
    let object = store
        .get(ObjectKey::cluster(Kind::Node, node.as_str()))
        .await?;
    let parsed = Node::try_from(&object)?;
    let mut warnings = Vec::new();
    let mut configurations = Vec::new();
    for object in store.list(Kind::FelixConfiguration).await?.objects {
        match FelixConfiguration::try_from(&object) {
            Ok(configuration) => configurations.push(configuration),
            Err(error) => warnings.push(format!("{} is not used: {error}", object.key())),
        }
    }
    let settings = Settings::effective(node, &parsed.labels, &configurations);
    warnings.extend(settings.warnings.iter().cloned());
    let mut lines = felix(&settings)?;
    lines.extend(mesh(store, &mut warnings).await?);

    Ok((lines, warnings))
}

fn felix(settings: &Settings) -> anyhow::Result<Vec<Line>> {
    let value = serde_json::to_value(settings)?;
    let typed = value.as_object().context("settings are fields")?;
    let others = value["other"].as_object();
    let mut lines = Vec::new();
    for (name, setting) in typed.iter().chain(others.into_iter().flatten()) {
        let Some(value) = setting.get("value") else {
            continue;
        };
        let source: Source = serde_json::from_value(setting["source"].clone())?;
        let from = match source {
            Source::BuiltIn => "built in".to_owned(),
            Source::FelixConfiguration(name) => format!("FelixConfiguration {name}"),
        };
        lines.push(Line {
            name: field(name).to_owned(),
            value: value.clone(),
            from,
        });
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));

    Ok(lines)
}

/// Returns the name that YAML uses, where it differs.
fn field(name: &str) -> &str {
    match name {
        "wireguardMtu" => "wireguardMTU",
        "wireguardMtuV6" => "wireguardMTUV6",
        "wireguardKeepAliveSeconds" => "wireguardKeepAlive (seconds)",
        other => other,
    }
}

async fn mesh(store: &dyn Store, warnings: &mut Vec<String>) -> anyhow::Result<Vec<Line>> {
    let key = ObjectKey::cluster(Kind::MeshConfiguration, "default");
    let stored = match store.get(key.clone()).await {
        Ok(object) => Some(object),
        Err(StoreError::NotFound(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let settings = match stored.as_ref().map(MeshConfiguration::try_from) {
        Some(Ok(settings)) => settings,
        Some(Err(error)) => {
            warnings.push(format!("{key} is not used: {error}"));
            MeshConfiguration::default()
        }
        None => MeshConfiguration::default(),
    };
    let line = |path: [&str; 2], value: Value| {
        let spec = stored.as_ref().and_then(|object| object.body.get("spec"));
        let set = spec
            .and_then(|spec| spec.get(path[0])?.get(path[1]))
            .is_some();
        let from = if set {
            "MeshConfiguration default"
        } else {
            "built in"
        };
        Line {
            name: path.join("."),
            value,
            from: from.to_owned(),
        }
    };

    Ok(vec![
        line(["encryption", "backend"], json!(settings.backend)),
        line(["encryption", "mode"], json!(settings.mode)),
        line(["underlay", "networks"], json!(settings.underlay_networks)),
    ])
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["SETTING", "VALUE", "FROM"]);
    table.add_rows(lines.iter().map(|line| {
        let value = match &line.value {
            Value::Null => "not set".to_owned(),
            Value::String(text) => text.clone(),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        };
        [line.name.clone(), value, line.from.clone()]
    }));

    trimmed(&table)
}

fn to_json(lines: &[Line]) -> String {
    let members = lines.iter().map(|line| {
        (
            line.name.clone(),
            json!({"value": line.value, "from": line.from}),
        )
    });

    Value::Object(members.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use model::Object;
    use store::{Caller, Embedded, Options};

    use super::*;

    #[tokio::test]
    async fn each_setting_says_where_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.db"), Options::default()).unwrap();
        let store = store.session(Caller::local_admin());
        for (kind, name, spec) in [
            (Kind::Node, "n1", json!({})),
            (
                Kind::FelixConfiguration,
                "default",
                json!({"wireguardEnabled": true, "wireguardMTU": 1400, "bpfLogLevel": "Info"}),
            ),
            (
                Kind::FelixConfiguration,
                "node.n1",
                json!({"wireguardEnabled": false}),
            ),
            (
                Kind::MeshConfiguration,
                "default",
                json!({"encryption": {"mode": "Permissive"}}),
            ),
        ] {
            store
                .create(Object::new(&ObjectKey::cluster(kind, name), spec))
                .await
                .unwrap();
        }

        let (lines, warnings) = read(&store, &"n1".parse().unwrap()).await.unwrap();

        let find = |name: &str| {
            let line = lines.iter().find(|line| line.name == name).unwrap();
            (line.value.clone(), line.from.as_str())
        };
        assert_eq!(
            find("wireguardEnabled"),
            (json!(false), "FelixConfiguration node.n1")
        );
        assert_eq!(
            find("wireguardMTU"),
            (json!(1400), "FelixConfiguration default")
        );
        assert_eq!(find("wireguardListeningPort"), (json!(51820), "built in"));
        assert_eq!(
            find("bpfLogLevel"),
            (json!("Info"), "FelixConfiguration default")
        );
        assert_eq!(
            find("encryption.mode"),
            (json!("Permissive"), "MeshConfiguration default")
        );
        assert_eq!(find("encryption.backend"), (json!("Auto"), "built in"));
        assert_eq!(warnings, [""; 0]);
    }
}
