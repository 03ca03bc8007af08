//! A packet's way across one node, hook by hook.

use model::{
    InterfaceName, PodName,
    policy::{Direction, Protocol},
    settings::{Setting, Settings},
};
use serde_json::Value;

use super::{
    Evaluator,
    hook::{Denied, Hooks},
    is_neighbour_discovery,
    question::Record,
    tier::Chain,
};
use crate::{
    cluster::Node,
    decision::{Cause, Verdict},
    packet::Header,
};

/// A packet's way across one node.
#[derive(Clone, Debug)]
pub(super) struct Crossing<'a> {
    pub(super) node: &'a Node,
    /// The device by which it comes; `None` if a process of the node sends it.
    pub(super) input: Option<Device>,
    /// The device by which it leaves; `None` if a process of the node is to get it.
    pub(super) output: Option<Device>,
    /// What it says before the node translates its destination.
    pub(super) before: Header,
    /// What it says afterwards.
    pub(super) header: Header,
}

/// A network device of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: InterfaceName,
    /// The pod at its other end.
    pub(super) pod: Option<PodName>,
}

/// What connection tracking knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It may open a connection.
    New,
    /// It belongs to one.
    Established,
    /// It answers what was never seen.
    Invalid,
}

/// Whether a node tracks the connection of a packet that it let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracking {
    Tracked,
    Untracked,
}

impl Device {
    /// Returns a device of the host's own.
    pub(super) const fn host(name: InterfaceName) -> Self {
        Self { name, pod: None }
    }

    /// Returns the host end of a pod's interface.
    pub(super) const fn workload(name: InterfaceName, pod: PodName) -> Self {
        Self {
            name,
            pod: Some(pod),
        }
    }
}

impl Tracking {
    /// Returns the state of an answer.
    pub(super) const fn of_answer(self, has_memory: bool) -> State {
        match (self, has_memory) {
            (Self::Tracked, _) => State::Established,
            (Self::Untracked, true) => State::Invalid,
            (Self::Untracked, false) => State::New,
        }
    }
}

impl Crossing<'_> {
    /// Returns the way of an answer. What was translated is translated back behind every hook.
    pub(super) fn answered(&self) -> Self {
        let header = self.header.reversed();

        Self {
            node: self.node,
            input: self.output.clone(),
            output: self.input.clone(),
            before: header,
            header,
        }
    }

    /// Asks every hook in order.
    pub(super) fn pass(
        &self,
        evaluator: &Evaluator<'_>,
        state: State,
        record: &mut Record,
    ) -> Result<Tracking, Denied> {
        let settings = evaluator.settings(self.node);
        let mut hooks = Hooks {
            evaluator,
            crossing: self,
            settings: &settings,
            state,
            record,
        };
        let untracked = hooks.untracked()?;
        if untracked {
            // Nobody knows it further on, not even if it answers.
            hooks.state = State::New;
        }
        if hooks.state == State::Established {
            return Ok(Tracking::Tracked);
        }
        let excused = untracked || hooks.pre_dnat()?;
        match (&self.input, &self.output) {
            (Some(input), None) => self.arrive(&mut hooks, input, excused)?,
            (Some(input), Some(output)) => self.forward(&mut hooks, input, output, excused)?,
            (None, Some(output)) => self.leave(&mut hooks, output, excused)?,
            (None, None) => {}
        }

        Ok(if untracked {
            Tracking::Untracked
        } else {
            Tracking::Tracked
        })
    }

    /// To a process of the node: from a pod by the pod's egress policy and then by a setting, else by the host's
    /// ingress policy.
    fn arrive(
        &self,
        hooks: &mut Hooks<'_, '_>,
        input: &Device,
        excused: bool,
    ) -> Result<(), Denied> {
        if let Some(pod) = &input.pod {
            if is_neighbour_discovery(&self.header) {
                return Ok(());
            }
            hooks.ask_pod(pod, Direction::Egress)?;
            return hooks.endpoint_to_host();
        }
        if excused || hooks.is_tunnels_own() {
            return Ok(());
        }

        hooks.ask_host(input, Chain::Normal, Direction::Ingress)
    }

    /// From one device to another. A pod's own policy comes first: it is asked wherever the packet goes.
    fn forward(
        &self,
        hooks: &mut Hooks<'_, '_>,
        input: &Device,
        output: &Device,
        excused: bool,
    ) -> Result<(), Denied> {
        if let Some(pod) = &input.pod {
            hooks.ask_pod(pod, Direction::Egress)?;
        }
        if !excused {
            hooks.ask_host(input, Chain::Forward, Direction::Ingress)?;
        }
        if let Some(pod) = &output.pod {
            hooks.ask_pod(pod, Direction::Ingress)?;
        }

        hooks.ask_host(output, Chain::Forward, Direction::Egress)
    }

    /// From a process of the node. What it says to the node's own pods nobody is asked about.
    fn leave(
        &self,
        hooks: &mut Hooks<'_, '_>,
        output: &Device,
        excused: bool,
    ) -> Result<(), Denied> {
        if output.pod.is_some() || excused || hooks.is_tunnels_own() {
            return Ok(());
        }

        hooks.ask_host(output, Chain::Normal, Direction::Egress)
    }
}

/// What a setting of a node does with a packet from a pod to the node (`defaultEndpointToHostAction`): only dropped, or
/// let through, by us or by whatever else filters there.
pub(super) fn endpoint_to_host(settings: &Settings) -> Verdict {
    let action = text(settings, "defaultEndpointToHostAction");
    let lets = ["Accept", "Return"]
        .iter()
        .any(|open| action.is_some_and(|action| action.eq_ignore_ascii_case(open)));
    if lets { Verdict::Allow } else { Verdict::Deny }
}

/// Returns the setting that keeps a pod from sending another overlay's packets, where it does.
pub(super) fn forbidden_overlay(settings: &Settings, header: &Header) -> Option<Cause> {
    let vxlan = number(settings, "vxlanPort").unwrap_or(u64::from(model::constant::VXLAN_PORT));
    let is_vxlan = header.protocol == Protocol::UDP
        && header
            .ports
            .is_some_and(|ports| u64::from(ports.destination) == vxlan);
    let fields = [
        (is_vxlan, "allowVXLANPacketsFromWorkloads"),
        (
            header.protocol == Protocol(4),
            "allowIPIPPacketsFromWorkloads",
        ),
    ];

    fields
        .into_iter()
        .find(|(is_overlay, field)| *is_overlay && !is_set(settings, field))
        .map(|(_, field)| Cause::Setting(field))
}

fn value<'a>(settings: &'a Settings, field: &str) -> Option<&'a Value> {
    settings.other.get(field).map(|Setting { value, .. }| value)
}

fn text<'a>(settings: &'a Settings, field: &str) -> Option<&'a str> {
    value(settings, field).and_then(Value::as_str)
}

fn number(settings: &Settings, field: &str) -> Option<u64> {
    value(settings, field).and_then(Value::as_u64)
}

pub(super) fn is_set(settings: &Settings, field: &str) -> bool {
    value(settings, field).and_then(Value::as_bool) == Some(true)
}
