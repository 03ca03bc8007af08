//! What the plugin does with each command.

use std::{path::Path, time::Duration};

use model::cni::{Attached, Attachment, Code, Examination, Failure, Survivors};
use serde_json::Value;

use crate::{
    Agent, Environment, Network, Tombstones, Version, agent::AgentError, answer,
    environment::Command, network,
};

/// How long policy may take to be live where the configuration does not say.
const POLICY: Duration = Duration::from_secs(30);

/// How much longer than that the agent may take to answer.
const MARGIN: Duration = Duration::from_secs(2);

/// How long undoing an `ADD` may take before it is noted for later: the agent was slow already.
const UNDO: Duration = Duration::from_secs(2);

/// How long everything but an `ADD` may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The plugin, between a runtime and the agent.
#[derive(Clone, Debug)]
pub struct Plugin {
    agent: Agent,
    tombstones: Tombstones,
}

/// What the runtime gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is printed; nothing, where the command has no result.
    pub printed: Option<Value>,
    /// Whether it is an error.
    pub is_error: bool,
}

impl Plugin {
    /// The plugin for the agent behind `socket`, which keeps its tombstones in `folder`.
    pub fn new(socket: &Path, folder: &Path) -> Self {
        Self {
            agent: Agent::at(socket),
            tombstones: Tombstones::at(folder),
        }
    }

    /// Does what the runtime said in its variables and on standard input.
    pub async fn run(
        &self,
        environment: Result<Environment, Failure>,
        configuration: &[u8],
    ) -> Outcome {
        let mut version = None;
        match self.obey(environment, configuration, &mut version).await {
            Ok(printed) => Outcome {
                printed,
                is_error: false,
            },
            Err(failure) => Outcome {
                printed: Some(answer::error(version, &failure)),
                is_error: true,
            },
        }
    }

    /// Notes the runtime's version as soon as it is known: errors are written in it.
    async fn obey(
        &self,
        environment: Result<Environment, Failure>,
        configuration: &[u8],
        version: &mut Option<Version>,
    ) -> Result<Option<Value>, Failure> {
        let environment = environment?;
        if configuration.len() > network::SIZE_MAX {
            return Err(Failure::new(
                Code::Decoding,
                format!(
                    "the network configuration has more than {} bytes",
                    network::SIZE_MAX
                ),
            ));
        }
        let claimed = network::claimed_version(configuration)?;
        if environment.command == Command::Version {
            return Ok(Some(answer::versions(claimed.as_deref())));
        }
        let spoken = Version::parse(claimed.as_deref())?;
        *version = Some(spoken);
        spoken.has(environment.command)?;
        let network = Network::read(spoken, configuration)?;

        match environment.command {
            Command::Add => {
                let attached = self.add(&attachment(environment, &network)?).await?;
                Ok(Some(answer::result(spoken, &attached)))
            }
            Command::Del => {
                self.del(&attachment(environment, &network)?, PATIENCE)
                    .await
            }
            Command::Check => self.check(environment, network).await,
            Command::Gc => self.gc(network).await,
            Command::Status => self.status(&network).await,
            Command::Version => Ok(None),
        }
    }

    /// An attachment that was not answered in time is undone: the runtime takes a failed `ADD` for none.
    async fn add(&self, attachment: &Attachment) -> Result<Attached, Failure> {
        let policy = attachment
            .wishes
            .policy_seconds
            .map_or(POLICY, |seconds| Duration::from_secs(seconds.into()));
        let answered = self
            .agent
            .ask("/v1/cni/add", attachment, policy + MARGIN)
            .await;
        let error = match answered {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        match &error {
            AgentError::Away { .. } | AgentError::Refused(_) => {}
            AgentError::Lost(_) | AgentError::Slow(_) | AgentError::Answer(_) => {
                self.del(attachment, UNDO).await?;
            }
        }

        Err(error.failure())
    }

    /// A removal counts although no agent hears it.
    async fn del(
        &self,
        attachment: &Attachment,
        patience: Duration,
    ) -> Result<Option<Value>, Failure> {
        let answered = self.agent.ask("/v1/cni/del", attachment, patience).await;
        let error = match answered {
            Ok(()) => return Ok(None),
            Err(error) => error,
        };
        match error {
            AgentError::Away { .. } | AgentError::Lost(_) | AgentError::Slow(_) => {
                self.tombstones.bury(attachment).map_err(|source| Failure {
                    code: Code::Io,
                    msg: format!("{error}; and its removal cannot be noted for later"),
                    details: source.to_string(),
                })?;
                Ok(None)
            }
            AgentError::Refused(_) | AgentError::Answer(_) => Err(error.failure()),
        }
    }

    async fn check(
        &self,
        environment: Environment,
        mut network: Network,
    ) -> Result<Option<Value>, Failure> {
        let result = network.previous.take().ok_or_else(|| {
            Failure::new(
                Code::Configuration,
                "prevResult is missing: CHECK compares with it",
            )
        })?;
        let examination = Examination {
            attachment: attachment(environment, &network)?,
            result,
        };
        self.ask("/v1/cni/check", &examination).await
    }

    /// A runtime that does not say what it still has (as `cnitool gc`, which has detached what it knew by then) leaves
    /// nothing to be collected: guessing would take everything.
    async fn gc(&self, network: Network) -> Result<Option<Value>, Failure> {
        let Some(valid) = network.valid else {
            return Ok(None);
        };
        let survivors = Survivors {
            network: network.name,
            valid,
        };
        self.ask("/v1/cni/gc", &survivors).await
    }

    /// The specification has codes of its own for a plugin that cannot attach.
    async fn status(&self, network: &Network) -> Result<Option<Value>, Failure> {
        match self
            .agent
            .ask("/v1/cni/status", &network.name, PATIENCE)
            .await
        {
            Ok(()) => Ok(None),
            Err(error @ AgentError::Refused(_)) => Err(error.failure()),
            Err(error) => Err(Failure {
                code: Code::Unavailable,
                ..error.failure()
            }),
        }
    }

    async fn ask(
        &self,
        path: &'static str,
        subject: &impl serde::Serialize,
    ) -> Result<Option<Value>, Failure> {
        match self.agent.ask(path, subject, PATIENCE).await {
            Ok(()) => Ok(None),
            Err(error) => Err(error.failure()),
        }
    }
}

fn attachment(environment: Environment, network: &Network) -> Result<Attachment, Failure> {
    let key = environment
        .attachment
        .ok_or_else(|| Failure::new(Code::Environment, "no container is named"))?;

    Ok(Attachment {
        key,
        network: network.name.clone(),
        netns: environment.netns,
        pod: environment.pod,
        pod_uid: environment.pod_uid,
        wishes: network.wishes.clone(),
    })
}
