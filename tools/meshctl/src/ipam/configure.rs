//! `meshctl ipam configure`: how blocks and addresses are handed out.

use std::process::ExitCode;

use model::{Kind, Object, ObjectKey};
use serde_json::{Map, Value, json};
use store::{Precondition, Store, StoreError};

use super::records;

/// Changes IPAMConfiguration/default; without an option it only shows it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Nodes use only addresses of their own blocks: nobody borrows.
    #[arg(long, visible_alias = "strictaffinity", value_name = "BOOL")]
    strict_affinity: Option<bool>,

    /// Most blocks of a family that a node may have; 0: Calico's own cap of 20.
    #[arg(long, value_name = "N")]
    max_blocks_per_host: Option<u32>,

    /// Nodes claim blocks when theirs are full. Only with strict affinity may this be false.
    #[arg(long, value_name = "BOOL")]
    auto_allocate_blocks: Option<bool>,

    /// How long a released address rests; at most 1200.
    #[arg(long, value_name = "SECONDS")]
    cooldown: Option<u32>,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
pub(super) async fn run(store: &dyn Store, args: Args) -> anyhow::Result<ExitCode> {
    let spec = args.spec();
    if !spec.is_empty() {
        write(store, Value::Object(spec)).await?;
    }
    let configuration = records::configuration(store).await?;
    let blocks = configuration.max_blocks_per_host;
    println!("StrictAffinity      {}", configuration.strict_affinity);
    println!("MaxBlocksPerHost    {}", blocks.unwrap_or(0));
    println!("AutoAllocateBlocks  {}", configuration.auto_allocate_blocks);
    println!("IPCooldownSeconds   {}", configuration.cooldown.as_secs());

    Ok(ExitCode::SUCCESS)
}

async fn write(store: &dyn Store, spec: Value) -> Result<(), StoreError> {
    let key = ObjectKey::cluster(Kind::IPAMConfiguration, "default");
    let patch = json!({"spec": spec});
    match store.patch(key.clone(), patch, Precondition::Any).await {
        Ok(_) => Ok(()),
        Err(StoreError::NotFound(_)) => store.create(Object::new(&key, spec)).await.map(drop),
        Err(error) => Err(error),
    }
}

impl Args {
    fn spec(&self) -> Map<String, Value> {
        let fields = [
            ("strictAffinity", self.strict_affinity.map(Value::from)),
            (
                "maxBlocksPerHost",
                self.max_blocks_per_host.map(Value::from),
            ),
            (
                "autoAllocateBlocks",
                self.auto_allocate_blocks.map(Value::from),
            ),
            ("ipCooldownSeconds", self.cooldown.map(Value::from)),
        ];

        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}
