//! What `meshd agent --record FILE` writes and `meshctl replay FILE` reads: one JSON text a line.
//!
//! ```text
//! {"recording":"meshd","version":3,"config":{…}}     a run begins
//! {"at":…,"event":…}                                 the brain was told this
//! {"at":…,"action":…}                                it asked for this
//! {"at":…,"plan":{"generation":…,"sha256":…}}        this plan was applied, all due actions before it
//! ```
//!
//! A replay that feeds the events to a fresh brain must come to the same actions and the same plans.
//! Recordings of version 1 hold events alone. Those of version 2 are of a brain that knew nothing of policy: their
//! events are of use, their plans are not.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Action, Event, Moment, Plan, Table};

/// The version of recordings that is written.
pub const RECORDING_VERSION: u32 = 3;

/// The oldest version that is read.
pub const OLDEST_RECORDING_VERSION: u32 = 1;

/// A line of a recording but the first of a run: exactly one of the three is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// When it happened, after the start of the run.
    pub at: Moment,
    /// What the brain was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// What it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What the dataplane was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanDigest>,
}

/// A plan, recognisable: whoever has the same rows has the same digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDigest {
    /// The plan's generation.
    pub generation: u64,
    /// SHA-256 over every row of every table, in order, in hex.
    pub sha256: String,
}

impl Recorded {
    /// Records an event.
    pub fn event(at: Moment, event: Event) -> Self {
        Self {
            event: Some(event),
            ..Self::nothing(at)
        }
    }

    /// Records an action.
    pub fn action(at: Moment, action: Action) -> Self {
        Self {
            action: Some(action),
            ..Self::nothing(at)
        }
    }

    /// Records a plan that is being applied.
    pub fn plan(at: Moment, plan: PlanDigest) -> Self {
        Self {
            plan: Some(plan),
            ..Self::nothing(at)
        }
    }

    fn nothing(at: Moment) -> Self {
        Self {
            at,
            event: None,
            action: None,
            plan: None,
        }
    }
}

impl PlanDigest {
    /// Digests a plan. Costs a look at every row.
    pub fn of(plan: &Plan) -> Self {
        let mut hash = Sha256::new();
        let Plan {
            generation,
            in_sync,
            nft_sets,
            nft_elements,
            nft_chains,
            sysctls,
            pods,
            tunnels,
            addresses,
            peers,
            routes,
            rules,
            openings,
        } = plan;
        hash.update([u8::from(*in_sync)]);
        feed(&mut hash, "nft_sets", nft_sets);
        feed(&mut hash, "nft_elements", nft_elements);
        feed(&mut hash, "nft_chains", nft_chains);
        feed(&mut hash, "sysctls", sysctls);
        feed(&mut hash, "pods", pods);
        feed(&mut hash, "tunnels", tunnels);
        feed(&mut hash, "addresses", addresses);
        feed(&mut hash, "peers", peers);
        feed(&mut hash, "routes", routes);
        feed(&mut hash, "rules", rules);
        feed(&mut hash, "openings", openings);

        Self {
            generation: *generation,
            sha256: hex::encode(hash.finalize()),
        }
    }
}

fn feed<K, V>(hash: &mut Sha256, name: &str, table: &Table<K, V>)
where
    K: Ord + Clone + Serialize,
    V: Clone + PartialEq + Serialize,
{
    hash.update(name);
    for row in table.rows() {
        let text = serde_json::to_vec(&row).expect("rows are plain data without maps");
        hash.update(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_counts_and_changes_under_way_do_not() {
        let mut plan = Plan::default();
        let empty = PlanDigest::of(&plan);
        plan.sysctls.set("net/ipv4/ip_forward".into(), "1".into());
        let one = PlanDigest::of(&plan);

        assert_ne!(one, empty);
        drop(plan.sysctls.drain_changes());
        assert_eq!(PlanDigest::of(&plan), one);
        plan.sysctls.set("net/ipv4/ip_forward".into(), "0".into());
        assert_ne!(PlanDigest::of(&plan), one);
    }

    #[test]
    fn a_line_of_the_first_version_is_still_an_event() {
        let text = r#"{"at":1500000000,"event":"Tick"}"#;
        let at = serde_json::from_str::<Recorded>(r#"{"at":1500000000}"#);

        assert_eq!(
            serde_json::from_str::<Recorded>(text).unwrap(),
            Recorded::event(at.unwrap().at, Event::Tick)
        );
    }
}
