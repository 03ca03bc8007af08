//! Policy tests: a topology, objects, and packets that are to pass or not.
//!
//! ```text
//! document ──parse──▶ PolicyTest ──State──▶ Cluster ──▶ Evaluator ─┐
//!                        └─ probes ──expand──▶ Packet ─────────────┴─▶ Report
//! ```
//!
//! The format is described in `docs/policy-test.md`. Objects are refused as on apply: a bad one is reported and takes
//! no effect. Whatever else is wrong with a document makes it unusable.

mod probe;
mod reference;
mod report;
mod service;
mod stage;
mod state;
mod step;
mod topology;

use model::resource::FieldError;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use self::state::State;
pub use self::{
    probe::{Difference, Probe},
    report::{DecisionEntry, Entry, ProbeVerdict, Report, ResourceError},
    stage::{Stage, Trial},
    step::{Deletion, Relabel, Step},
    topology::{
        NamedPortEntry, NamespaceEntry, NodeEntry, OutsideEntry, PodEntry, ServiceAccountEntry,
        ServiceEntry, ServicePortEntry, Topology,
    },
};
pub(crate) use self::{
    probe::{Flow, Prober},
    reference::place,
    report::object_name,
};
use crate::{
    Cluster, Evaluator,
    explain::{self, Explanation},
};

/// The group, version and kind of a policy test.
pub const API_VERSION: &str = "meshd.dev/v1";

/// The kind of a policy test.
pub const KIND: &str = "PolicyTest";

/// Most verdicts of one document: products of wildcards grow fast.
pub const VERDICTS_MAX: usize = 1_000_000;

/// A policy test, as written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyTest {
    api_version: String,
    kind: String,
    /// Its name.
    #[serde(default)]
    pub metadata: Metadata,
    /// The machines, pods and others.
    #[serde(default, deserialize_with = "or_default")]
    pub topology: Topology,
    /// Kubernetes' and Calico's objects, as they would be applied.
    #[serde(default, deserialize_with = "or_default")]
    pub resources: Vec<Value>,
    /// Patterns of files with more of them, relative to the document's file.
    #[serde(default, deserialize_with = "or_default")]
    pub resource_files: Vec<String>,
    /// The packets.
    #[serde(default, deserialize_with = "or_default")]
    pub probes: Vec<Probe>,
    /// Later states.
    #[serde(default, deserialize_with = "or_default")]
    pub steps: Vec<Step>,
}

/// A policy test's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The name.
    #[serde(default)]
    pub name: String,
}

/// An object of a policy test and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The object, or what is wrong with the text.
    pub value: Result<Value, String>,
    /// The file and the place in it.
    pub position: String,
}

impl PolicyTest {
    /// Reads a document.
    pub fn parse(value: &Value) -> Result<Self, FieldError> {
        let test: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            FieldError::new(path, error.into_inner().to_string())
        })?;
        if test.api_version != API_VERSION {
            return Err(expected("apiVersion", API_VERSION, &test.api_version));
        }
        if test.kind != KIND {
            return Err(expected("kind", KIND, &test.kind));
        }

        Ok(test)
    }

    /// Checks that it tests something: it has probes, and each says what is to become of its packets.
    pub fn check(&self) -> Result<(), FieldError> {
        let steps = self.steps.iter().enumerate();
        let later = steps.map(|(index, step)| (format!("steps[{index}].probes"), &step.probes));
        let mut is_empty = true;
        for (path, probes) in std::iter::once(("probes".to_owned(), &self.probes)).chain(later) {
            for (index, probe) in probes.iter().enumerate() {
                is_empty = false;
                if !probe.expects() {
                    let path = format!("{path}[{index}].expect");
                    return Err(FieldError::new(
                        path,
                        "expected Allow or Deny, found nothing",
                    ));
                }
            }
        }
        if is_empty {
            return Err(FieldError::new("probes", "expected a probe, found none"));
        }

        Ok(())
    }

    /// Gives the verdict on every probe. `files` are the objects that the files of `resourceFiles` hold.
    ///
    /// Fails where the document speaks of what is not there: a pod on no node, a probe from nobody.
    pub fn run(&self, files: &[Source]) -> Result<Report, FieldError> {
        let mut state = State::new(&self.topology)?;
        let mut report = Report {
            errors: state.apply(&self.sources(files)),
            ..Report::default()
        };
        probe_all(&state, &self.probes, 0, &mut report)?;
        for (index, step) in self.steps.iter().enumerate() {
            report.errors.extend(step.take(&mut state, index)?);
            probe_all(&state, &step.probes, index + 1, &mut report)?;
        }

        Ok(report)
    }

    /// Returns what is there before the steps, as the evaluator takes it.
    pub fn cluster(&self, files: &[Source]) -> Result<Cluster, FieldError> {
        let mut state = State::new(&self.topology)?;
        // Whoever asks for verdicts hears of objects that were refused.
        let _ = state.apply(&self.sources(files));

        Ok(state.cluster())
    }

    /// Says why the packets of a probe pass or not before the steps.
    ///
    /// Fails where the document or the probe speaks of what is not there.
    pub fn why(&self, files: &[Source], probe: &Probe) -> Result<Vec<Explanation>, FieldError> {
        let mut state = State::new(&self.topology)?;
        // Whoever asks for verdicts hears of objects that were refused.
        let _ = state.apply(&self.sources(files));
        let mut found = explain_all(&state, std::slice::from_ref(probe), 0)?;

        Ok(found.pop().map(|(_, _, found)| found).unwrap_or_default())
    }

    /// Says why the packets of every probe of every state pass or not: step, place of the probe, and what it is about.
    ///
    /// Fails where [`run`](Self::run) does, and where a probe is about too many packets to be explained.
    pub fn explain(
        &self,
        files: &[Source],
    ) -> Result<Vec<(usize, usize, Vec<Explanation>)>, FieldError> {
        let mut state = State::new(&self.topology)?;
        // Whoever asks for verdicts hears of objects that were refused.
        let _ = state.apply(&self.sources(files));
        let mut found = explain_all(&state, &self.probes, 0)?;
        for (index, step) in self.steps.iter().enumerate() {
            let _ = step.take(&mut state, index)?;
            found.extend(explain_all(&state, &step.probes, index + 1)?);
        }

        Ok(found)
    }

    fn sources(&self, files: &[Source]) -> Vec<Source> {
        let own = self.resources.iter().enumerate();
        let own = own.map(|(index, value)| Source {
            value: Ok(value.clone()),
            position: format!("resources[{index}]"),
        });

        own.chain(files.iter().cloned()).collect()
    }
}

fn explain_all(
    state: &State,
    probes: &[Probe],
    step: usize,
) -> Result<Vec<(usize, usize, Vec<Explanation>)>, FieldError> {
    let cluster = state.cluster();
    let evaluator = Evaluator::new(&cluster);
    let prober = Prober {
        cluster: &cluster,
        evaluator: &evaluator,
        outside: state.outside(),
        path: "probe".to_owned(),
    };
    let probes = probes.iter().enumerate();

    probes
        .map(|(index, probe)| {
            Ok((
                step,
                index,
                explain::of_probe(&prober, probe, VERDICTS_MAX)?,
            ))
        })
        .collect()
}

fn probe_all(
    state: &State,
    probes: &[Probe],
    step: usize,
    report: &mut Report,
) -> Result<(), FieldError> {
    let cluster = state.cluster();
    let evaluator = Evaluator::new(&cluster);
    let path = match step {
        0 => "probes".to_owned(),
        step => format!("steps[{}].probes", step - 1),
    };
    for (index, probe) in probes.iter().enumerate() {
        let prober = Prober {
            cluster: &cluster,
            evaluator: &evaluator,
            outside: state.outside(),
            path: format!("{path}[{index}]"),
        };
        for mut entry in prober.ask(probe)? {
            entry.step = step;
            entry.probe = index;
            report.verdicts.push(entry);
            if report.verdicts.len() > VERDICTS_MAX {
                let message = format!("more than {VERDICTS_MAX} verdicts in one document");
                return Err(FieldError::new(prober.path, message));
            }
        }
    }

    Ok(())
}

/// Reads a value that may be left empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Says what was expected instead of a text, which is cut to a readable length.
fn expected(field: &str, expected: &str, found: &str) -> FieldError {
    let cut: String = found.chars().take(64).collect();

    FieldError::new(field, format!("expected {expected}, found {cut:?}"))
}

#[cfg(test)]
mod tests;
