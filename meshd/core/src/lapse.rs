//! Handshakes of peers that are not in the plan just now.
//!
//! A handshake proves that a peer has us; it counts as long as the machine has the peer's session. Whoever
//! leaves the plan and is back before a pass saw the plan without it never left the machine, and nothing
//! would tell of a new handshake until the next one is due, two minutes later.

use std::collections::BTreeMap;

use model::{InterfaceName, NodeName, PublicKey};

/// A peer of a device.
pub(crate) type Way = (InterfaceName, PublicKey);

/// Peers with a handshake that left the plan, until a pass tells whether they left the machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lapses(BTreeMap<Way, Lapse>);

/// The plan is without the peer in the generations behind `from`, up to and with `until`.
#[derive(Clone, Debug)]
struct Lapse {
    node: NodeName,
    from: u64,
    until: Option<u64>,
}

impl Lapses {
    /// Notes that a node's peer leaves the plan with the generation behind this one.
    pub(crate) fn leave(&mut self, node: &NodeName, way: Way, generation: u64) {
        let lapse = self.0.entry(way).or_insert_with(|| Lapse {
            node: node.clone(),
            from: generation,
            until: None,
        });
        lapse.until = None;
    }

    /// Notes that a node has this peer from the generation behind this one on; returns whether the
    /// handshake was another node's.
    pub(crate) fn return_to(&mut self, node: &NodeName, way: &Way, generation: u64) -> bool {
        let Some(lapse) = self.0.get_mut(way) else {
            return false;
        };
        if lapse.node != *node {
            self.0.remove(way);
            return true;
        }
        lapse.until.get_or_insert(generation);

        false
    }

    /// Takes in that the machine holds this generation of the plan; returns the peers that it lost.
    pub(crate) fn pass(&mut self, generation: u64) -> Vec<Way> {
        let mut lost = Vec::new();
        self.0.retain(|way, lapse| {
            if generation <= lapse.from {
                return true;
            }
            if lapse.until.is_none_or(|until| generation <= until) {
                lost.push(way.clone());
            }

            false
        });

        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        ("wg0".parse().unwrap(), PublicKey::new([7; 32]).unwrap())
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn gone_at(generation: u64) -> Lapses {
        let mut lapses = Lapses::default();
        lapses.leave(&name("n2"), way(), generation);
        lapses
    }

    #[test]
    fn who_is_back_before_a_pass_lost_nothing() {
        let mut lapses = gone_at(5);
        assert!(!lapses.return_to(&name("n2"), &way(), 7));

        assert_eq!(lapses.pass(5), [], "the plan had it");
        assert_eq!(lapses.pass(8), [], "the plan has it again");
        assert!(lapses.0.is_empty());
    }

    #[test]
    fn a_pass_that_saw_the_plan_without_it_takes_the_session_whenever_it_is_told() {
        assert_eq!(gone_at(5).pass(6), [way()]);
        let mut back = gone_at(5);
        back.return_to(&name("n2"), &way(), 7);

        assert_eq!(back.pass(6), [way()]);
        assert!(back.0.is_empty());
    }

    #[test]
    fn who_goes_twice_is_gone_from_the_first_time_on() {
        let mut lapses = gone_at(5);
        lapses.return_to(&name("n2"), &way(), 7);
        lapses.leave(&name("n2"), way(), 9);

        assert_eq!(lapses.pass(10), [way()]);
    }

    #[test]
    fn a_handshake_is_not_handed_on_with_the_key() {
        let mut lapses = gone_at(5);

        assert!(lapses.return_to(&name("n3"), &way(), 7));
        assert_eq!(lapses.pass(6), []);
    }
}
