//! What is asked at one hook.

use model::{
    PodName,
    policy::{Direction, Protocol},
    settings::Settings,
};

use super::{
    Evaluator,
    crossing::{Crossing, Device, State, endpoint_to_host, forbidden_overlay, is_set},
    failsafe,
    question::Record,
    tier::{Answer, Chain},
};
use crate::{
    cluster::Endpoint,
    decision::{Cause, Decision, Point, Verdict},
    packet::Header,
};

/// The decision that a packet died of.
pub(super) type Denied = Box<Decision>;

/// The setting that lets answers pass of which nobody saw the question.
const INVALID_CHECK: &str = "disableConntrackInvalidCheck";

/// A packet at the hooks of one node.
pub(super) struct Hooks<'a, 'b> {
    pub(super) evaluator: &'a Evaluator<'a>,
    pub(super) crossing: &'a Crossing<'a>,
    pub(super) settings: &'a Settings,
    pub(super) state: State,
    pub(super) record: &'b mut Record,
}

impl Hooks<'_, '_> {
    /// Asks `doNotTrack` policy; returns whether it lets the packet through, untracked. It sees what was sent, and
    /// holds for interfaces with a host endpoint of their own.
    pub(super) fn untracked(&mut self) -> Result<bool, Denied> {
        let (device, direction) = match (&self.crossing.input, &self.crossing.output) {
            (Some(input), _) => (input, Direction::Ingress),
            (None, Some(output)) => (output, Direction::Egress),
            (None, None) => return Ok(false),
        };
        let host = self
            .evaluator
            .host_endpoint(self.crossing.node, &device.name);
        let Some(host) = host.filter(|host| !host.is_wildcard && device.pod.is_none()) else {
            return Ok(false);
        };
        let header = self.crossing.before;
        let answer = self.ask(
            host.endpoint,
            self.name(device),
            Chain::Untracked,
            direction,
            &header,
        );
        if answer == Answer::NotAsked {
            return Ok(false);
        }
        let by_failsafe = failsafe::lets_through(self.settings, direction, &header)
            || failsafe::lets_answer_through(self.settings, direction, &header);
        if by_failsafe {
            self.allowed(Point::Untracked, device, Cause::Failsafe);
            return Ok(false);
        }

        self.settle(Point::Untracked, device, answer)
    }

    /// Asks `preDNAT` policy; returns whether it lets the packet through. It sees what was sent.
    pub(super) fn pre_dnat(&mut self) -> Result<bool, Denied> {
        let Some(device) = &self.crossing.input else {
            return Ok(false);
        };
        let Some(host) = self
            .evaluator
            .host_endpoint(self.crossing.node, &device.name)
        else {
            return Ok(false);
        };
        let header = self.crossing.before;
        let answer = self.ask(
            host.endpoint,
            self.name(device),
            Chain::PreDnat,
            Direction::Ingress,
            &header,
        );
        if answer == Answer::NotAsked {
            return Ok(false);
        }
        self.refuse_invalid(Point::PreDnat, device)?;
        if failsafe::lets_through(self.settings, Direction::Ingress, &header) {
            self.allowed(Point::PreDnat, device, Cause::Failsafe);
            return Ok(false);
        }

        self.settle(Point::PreDnat, device, answer)
    }

    /// Asks a host's policy about what it sends, gets or forwards.
    pub(super) fn ask_host(
        &mut self,
        device: &Device,
        chain: Chain,
        direction: Direction,
    ) -> Result<(), Denied> {
        let Some(host) = self
            .evaluator
            .host_endpoint(self.crossing.node, &device.name)
        else {
            return Ok(());
        };
        let header = self.crossing.header;
        if chain == Chain::Forward {
            self.refuse_invalid(Point::Forward, device)?;
            let answer = self.ask(host.endpoint, self.name(device), chain, direction, &header);
            self.settle(Point::Forward, device, answer)?;
            return Ok(());
        }
        let point = Point::from(direction);
        self.refuse_invalid(point, device)?;
        if failsafe::lets_through(self.settings, direction, &header) {
            self.allowed(point, device, Cause::Failsafe);
            return Ok(());
        }

        self.ask_endpoint(host.endpoint, point, self.name(device), direction)
    }

    /// Asks a pod's policy.
    pub(super) fn ask_pod(&mut self, pod: &PodName, direction: Direction) -> Result<(), Denied> {
        let point = Point::from(direction);
        let found = self
            .evaluator
            .workloads
            .iter()
            .find(|(workload, _)| workload.name == *pod);
        let Some((_, endpoint)) = found else {
            return Err(denial(point, pod.to_string(), Cause::Nobody));
        };
        if self.state == State::Invalid && !is_set(self.settings, INVALID_CHECK) {
            return Err(denial(
                point,
                pod.to_string(),
                Cause::Setting(INVALID_CHECK),
            ));
        }
        let overlay = forbidden_overlay(self.settings, &self.crossing.header);
        if let Some(cause) = overlay.filter(|_| direction == Direction::Egress) {
            return Err(denial(point, pod.to_string(), cause));
        }

        self.ask_endpoint(endpoint, point, pod.to_string(), direction)
    }

    /// Applies what is set for packets from pods to their node.
    pub(super) fn endpoint_to_host(&self) -> Result<(), Denied> {
        match endpoint_to_host(self.settings) {
            Verdict::Allow => Ok(()),
            Verdict::Deny => Err(denial(
                Point::Ingress,
                format!("node/{}", self.crossing.node.name),
                Cause::Setting("defaultEndpointToHostAction"),
            )),
        }
    }

    /// Returns whether the packet carries an encrypted one: no host policy keeps the tunnel's own packets.
    pub(super) fn is_tunnels_own(&self) -> bool {
        let header = &self.crossing.header;
        let settings = self.settings;
        let tunnels = [
            (
                settings.wireguard_enabled.value,
                settings.wireguard_listening_port.value,
            ),
            (
                settings.wireguard_enabled_v6.value,
                settings.wireguard_listening_port_v6.value,
            ),
        ];

        header.protocol == Protocol::UDP
            && tunnels.iter().any(|(enabled, port)| {
                *enabled == Some(true)
                    && header.ports.is_some_and(|ports| ports.destination == *port)
            })
    }

    /// Asks an endpoint's tiers, then its profiles.
    fn ask_endpoint(
        &mut self,
        endpoint: &Endpoint,
        point: Point,
        name: String,
        direction: Direction,
    ) -> Result<(), Denied> {
        let header: &Header = &self.crossing.header;
        let answer = self.ask(endpoint, name.clone(), Chain::Normal, direction, header);
        let (verdict, cause) = match answer {
            Answer::Decided(verdict, cause) => (verdict, cause),
            Answer::Passed | Answer::NotAsked => {
                self.evaluator.ask_profiles(endpoint, direction, header)
            }
        };
        let decision = Decision {
            point,
            endpoint: name,
            verdict,
            cause,
        };
        match verdict {
            Verdict::Allow => {
                self.record.decisions.push(decision);
                Ok(())
            }
            Verdict::Deny => Err(Box::new(decision)),
        }
    }

    /// Asks an endpoint's tiers, and notes that they were asked.
    fn ask(
        &mut self,
        endpoint: &Endpoint,
        name: String,
        chain: Chain,
        direction: Direction,
        header: &Header,
    ) -> Answer {
        self.record.note(endpoint, name, chain, direction, header);

        self.evaluator.ask_tiers(endpoint, chain, direction, header)
    }

    /// Takes the answer of tiers behind which no profile stands: what they leave open goes on. Returns whether they
    /// let the packet through.
    fn settle(&mut self, point: Point, device: &Device, answer: Answer) -> Result<bool, Denied> {
        match answer {
            Answer::Decided(Verdict::Allow, cause) => {
                self.allowed(point, device, cause);
                Ok(true)
            }
            Answer::Decided(Verdict::Deny, cause) => Err(denial(point, self.name(device), cause)),
            Answer::Passed | Answer::NotAsked => Ok(false),
        }
    }

    fn refuse_invalid(&self, point: Point, device: &Device) -> Result<(), Denied> {
        if self.state != State::Invalid || is_set(self.settings, INVALID_CHECK) {
            return Ok(());
        }

        Err(denial(
            point,
            self.name(device),
            Cause::Setting(INVALID_CHECK),
        ))
    }

    fn allowed(&mut self, point: Point, device: &Device, cause: Cause) {
        self.record.decisions.push(Decision {
            point,
            endpoint: self.name(device),
            verdict: Verdict::Allow,
            cause,
        });
    }

    fn name(&self, device: &Device) -> String {
        format!("node/{} {}", self.crossing.node.name, device.name.as_str())
    }
}

fn denial(point: Point, endpoint: String, cause: Cause) -> Denied {
    Box::new(Decision {
        point,
        endpoint,
        verdict: Verdict::Deny,
        cause,
    })
}
