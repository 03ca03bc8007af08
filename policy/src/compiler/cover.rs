//! The fewest networks that hold the same addresses, kept so while networks come and go.
//!
//! A network is in the cover where all of it is held and no network around it is. So what is held is found by one
//! look, and a change stays on the way between a network and the one that covers it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// How often each network of a set is there.
pub(super) type Counts = BTreeMap<IpNet, u32>;

/// The fewest networks of one family that hold the same addresses: none overlaps another.
#[derive(Clone, Debug, Default)]
pub(super) struct Cover(BTreeSet<IpNet>);

impl Cover {
    /// Covers networks.
    pub(super) fn of(nets: &Counts) -> Self {
        let mut cover = Self::default();
        for net in nets.keys() {
            cover.add(*net, &mut |_, _| {});
        }

        cover
    }

    pub(super) fn nets(&self) -> &BTreeSet<IpNet> {
        &self.0
    }

    /// Adds a network. `tell` hears of each network of the cover that changes, and whether it was in it.
    pub(super) fn add(&mut self, net: IpNet, tell: &mut dyn FnMut(IpNet, bool)) {
        if self.around(net).is_some() {
            return;
        }
        let inside: Vec<IpNet> = self.0.range(within(net)).copied().collect();
        for other in inside {
            self.take_out(other, tell);
        }
        let mut joined = net;
        while let Some((parent, twin)) = pair(joined) {
            if !self.0.contains(&twin) {
                break;
            }
            self.take_out(twin, tell);
            joined = parent;
        }
        self.put_in(joined, tell);
    }

    /// Removes a network that is no longer among those that are there.
    pub(super) fn remove(&mut self, net: IpNet, there: &Counts, tell: &mut dyn FnMut(IpNet, bool)) {
        let mut ancestors = std::iter::successors(net.supernet(), IpNet::supernet);
        if ancestors.any(|around| there.contains_key(&around)) {
            return;
        }
        let Some(mut left) = self.around(net) else {
            return;
        };
        self.take_out(left, tell);
        while left != net {
            let Ok(halves) = left.subnets(left.prefix_len() + 1) else {
                return;
            };
            for half in halves {
                if half.contains(&net) {
                    left = half;
                } else {
                    self.put_in(half, tell);
                }
            }
        }
        for (inside, _) in there.range(within(net)) {
            self.add(*inside, tell);
        }
    }

    /// Returns the network of the cover that holds a network whole.
    fn around(&self, net: IpNet) -> Option<IpNet> {
        let before = self.0.range(..=net).next_back()?;

        before.contains(&net).then_some(*before)
    }

    fn put_in(&mut self, net: IpNet, tell: &mut dyn FnMut(IpNet, bool)) {
        tell(net, false);
        self.0.insert(net);
    }

    fn take_out(&mut self, net: IpNet, tell: &mut dyn FnMut(IpNet, bool)) {
        tell(net, true);
        self.0.remove(&net);
    }
}

/// Returns the range, in order, of the networks inside one, itself among them; others that begin there are larger and
/// before them.
fn within(net: IpNet) -> std::ops::RangeInclusive<IpNet> {
    net..=IpNet::from(net.broadcast())
}

/// Returns the network around one, and its other half.
fn pair(net: IpNet) -> Option<(IpNet, IpNet)> {
    let parent = net.supernet()?;
    let mut halves = parent.subnets(net.prefix_len()).ok()?;

    halves.find(|half| *half != net).map(|twin| (parent, twin))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compile::set::merged;

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_cover_is_the_smallest_list(
            steps in prop::collection::vec((any::<bool>(), 0u32..40, 0u8..=6, any::<bool>()), 1..80),
        ) {
            let mut there = Counts::new();
            let mut cover = Cover::default();
            let mut told = BTreeSet::new();
            for (comes, place, length, v6) in steps {
                let net = network(place, length, v6);
                let mut tell = |net, was: bool| {
                    assert_eq!(was, told.contains(&net));
                    if was { told.remove(&net); } else { told.insert(net); }
                };
                if comes {
                    there.insert(net, 1);
                    cover.add(net, &mut tell);
                } else if there.remove(&net).is_some() {
                    cover.remove(net, &there, &mut tell);
                }

                let right: BTreeSet<IpNet> = merged(there.keys().copied()).into_iter().collect();
                prop_assert_eq!(cover.nets(), &right);
                prop_assert_eq!(&told, &right);
            }
        }
    }

    #[test]
    fn all_addresses_are_one_network() {
        let [low, high, all] =
            ["0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0"].map(|text| text.parse().unwrap());
        let mut cover = Cover::default();

        cover.add(low, &mut |_, _| {});
        cover.add(high, &mut |_, _| {});

        assert_eq!(cover.nets(), &BTreeSet::from([all]));
        cover.remove(low, &Counts::from([(high, 1)]), &mut |_, _| {});
        assert_eq!(cover.nets(), &BTreeSet::from([high]));
    }

    /// A network of one of the last bits' sizes, so that they meet.
    fn network(place: u32, length: u8, v6: bool) -> IpNet {
        let net: IpNet = if v6 {
            format!("fd00::{place:x}/{}", 122 + length).parse().unwrap()
        } else {
            format!("10.0.0.{place}/{}", 26 + length).parse().unwrap()
        };

        net.trunc()
    }
}
