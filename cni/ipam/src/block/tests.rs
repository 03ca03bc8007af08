//! Single steps, and random ones beside a model that keeps a plain list.

use std::collections::BTreeSet;

use model::Object;
use proptest::prelude::*;

use super::*;

#[test]
fn addresses_are_handed_out_in_the_order_in_which_they_became_free() {
    let mut block = empty("10.65.4.0/30");
    for (handle, address) in [("a", "10.65.4.0"), ("b", "10.65.4.1"), ("c", "10.65.4.2")] {
        block = given(&block, handle, address);
    }
    (block, _) = release(&block, "b").unwrap();
    (block, _) = release(&block, "a").unwrap();

    block = given(&block, "d", "10.65.4.3");
    block = given(&block, "e", "10.65.4.1");
    block = given(&block, "f", "10.65.4.0");

    assert_eq!(
        assign(&block, &request("g", None)),
        Err(AssignError::Full(block.cidr))
    );
}

#[test]
fn asking_twice_is_asking_once() {
    let block = given(&empty("10.65.4.0/30"), "a", "10.65.4.0");
    let held = "10.65.4.0".parse().unwrap();

    assert_eq!(
        assign(&block, &request("a", None)),
        Ok(Assigned::Held(held))
    );
    assert_eq!(
        assign(&block, &request("a", Some("10.65.4.0"))),
        Ok(Assigned::Held(held))
    );
    let other = assign(&block, &request("a", Some("10.65.4.1"))).unwrap_err();
    assert_eq!(other.to_string(), "a holds 10.65.4.0, not 10.65.4.1");
}

#[test]
fn a_certain_address_is_given_unless_somebody_has_it() {
    let block = empty("10.65.4.0/30");
    let Ok(Assigned::New(block, _)) = assign(&block, &request("a", Some("10.65.4.2"))) else {
        panic!("10.65.4.2 is free")
    };

    let address = "10.65.4.2".parse().unwrap();
    assert_eq!(
        assign(&block, &request("b", Some("10.65.4.2"))),
        Err(AssignError::Taken {
            address,
            holder: Some("a".into())
        })
    );
    let outside = assign(&block, &request("b", Some("10.65.5.0"))).unwrap_err();
    assert_eq!(
        outside.to_string(),
        "10.65.5.0 is not in block 10.65.4.0/30"
    );
    given(&block, "b", "10.65.4.0");
}

#[test]
fn sequence_numbers_rise_with_each_write_and_note_when_an_address_was_given() {
    let block = given(
        &given(&empty("10.65.4.0/30"), "a", "10.65.4.0"),
        "b",
        "10.65.4.1",
    );

    assert_eq!(block.sequence_number, 1002);
    assert_eq!(
        block.sequence_number_for_allocation,
        BTreeMap::from([(0, 1000), (1, 1001)])
    );
    let (block, _) = release(&block, "a").unwrap();
    assert_eq!(block.sequence_number, 1003);
    assert_eq!(
        block.sequence_number_for_allocation,
        BTreeMap::from([(1, 1001)])
    );
}

#[test]
fn a_deleted_block_or_another_one_gives_nothing() {
    let mut block = empty("10.65.4.4/30");
    assert!(matches!(
        assign(&block, &request("a", None)),
        Err(AssignError::WrongBlock { .. })
    ));

    block = empty("10.65.4.0/30");
    block.deleted = true;
    assert!(matches!(
        assign(&block, &request("a", None)),
        Err(AssignError::WrongBlock { .. })
    ));
}

/// A request or a release.
#[derive(Clone, Debug)]
enum Step {
    Assign {
        handle: u8,
        attributes: u8,
        ordinal: Option<u32>,
    },
    Release {
        handle: u8,
    },
}

/// A handle, what is noted about it, and the block's sequence number when it got its address.
type Holder = (String, BTreeMap<String, String>, u64);

/// The stupid twin: one entry for each address, and a queue of free ones.
struct Twin {
    holders: Vec<Option<Holder>>,
    free: Vec<u32>,
    sequence: u64,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..6, 0u8..2, prop::option::of(0u32..10))
            .prop_map(|(handle, attributes, ordinal)| Step::Assign { handle, attributes, ordinal }),
        1 => (0u8..6).prop_map(|handle| Step::Release { handle }),
    ]
}

proptest! {
    #[test]
    fn a_block_does_what_its_stupid_twin_does(steps in prop::collection::vec(step(), 0..60)) {
        let mut block = empty("10.65.4.0/29");
        let mut twin = Twin { holders: vec![None; 8], free: (0..8).collect(), sequence: 1000 };
        for step in steps {
            match step {
                Step::Assign { handle, attributes, ordinal } => {
                    let mut request = request(&format!("h{handle}"), None);
                    request.block = block.cidr;
                    request.attributes = BTreeMap::from([("pod".into(), attributes.to_string())]);
                    request.address = ordinal.map(|n| format!("10.65.4.{n}").parse().unwrap());
                    let result = assign(&block, &request);
                    prop_assert_eq!(result.as_ref().ok().map(Assigned::address), twin.assign(&request));
                    if let Ok(Assigned::New(written, _)) = result {
                        block = *written;
                    }
                }
                Step::Release { handle } => {
                    let handle = format!("h{handle}");
                    let result = release(&block, &handle);
                    let freed = result.as_ref().map(|(_, freed)| freed.len()).unwrap_or(0);
                    prop_assert_eq!(freed, twin.release(&handle));
                    if let Some((written, _)) = result {
                        block = written;
                    }
                }
            }
            twin.check(&block)?;
        }
    }
}

impl Twin {
    fn assign(&mut self, request: &AddressRequest) -> Option<IpAddr> {
        let address = |ordinal: usize| format!("10.65.4.{ordinal}").parse().unwrap();
        let mine = |holder: &Option<(String, _, _)>| {
            holder
                .as_ref()
                .is_some_and(|(handle, _, _)| *handle == request.handle)
        };
        if let Some(held) = self.holders.iter().position(mine) {
            let held = address(held);
            return request
                .address
                .is_none_or(|wanted| wanted == held)
                .then_some(held);
        }
        let place = match request.address {
            Some(wanted) => self
                .free
                .iter()
                .position(|free| address(*free as usize) == wanted)?,
            None => 0,
        };
        let ordinal = *self.free.get(place)?;
        self.free.retain(|free| *free != ordinal);
        self.holders[ordinal as usize] = Some((
            request.handle.clone(),
            request.attributes.clone(),
            self.sequence,
        ));
        self.sequence += 1;

        Some(address(ordinal as usize))
    }

    fn release(&mut self, handle: &str) -> usize {
        let mut freed = 0;
        for ordinal in 0..self.holders.len() {
            if self.holders[ordinal]
                .as_ref()
                .is_some_and(|(holder, _, _)| holder == handle)
            {
                self.holders[ordinal] = None;
                self.free.push(ordinal as u32);
                freed += 1;
            }
        }
        self.sequence += u64::from(freed > 0);

        freed
    }

    /// Compares with the block, which must also survive being stored.
    fn check(&self, block: &IpamBlock) -> Result<(), TestCaseError> {
        prop_assert_eq!(&self.free, &block.unallocated);
        prop_assert_eq!(self.sequence, block.sequence_number);
        for (ordinal, holder) in (0u32..).zip(&self.holders) {
            let attribute = block
                .allocations
                .get(&ordinal)
                .map(|index| &block.attributes[*index]);
            prop_assert_eq!(
                holder
                    .as_ref()
                    .map(|(handle, facts, _)| (Some(handle.clone()), facts.clone())),
                attribute.map(|a| (a.handle_id.clone(), a.secondary.clone()))
            );
            prop_assert_eq!(
                holder.as_ref().map(|(_, _, number)| *number),
                block.sequence_number_for_allocation.get(&ordinal).copied()
            );
        }
        let used: BTreeSet<_> = block.allocations.values().copied().collect();
        prop_assert_eq!(used, (0..block.attributes.len()).collect());
        for (index, attribute) in block.attributes.iter().enumerate() {
            prop_assert!(
                !block.attributes[..index].contains(attribute),
                "attributes stand twice"
            );
        }
        let object: Object = block.to_object();
        let again =
            IpamBlock::try_from(&object).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&again, block);

        Ok(())
    }
}

fn empty(cidr: &str) -> IpamBlock {
    new_block(cidr.parse().unwrap(), "n1".parse().unwrap(), 1000, None)
}

fn request(handle: &str, address: Option<&str>) -> AddressRequest {
    AddressRequest {
        block: "10.65.4.0/30".parse().unwrap(),
        handle: handle.into(),
        attributes: BTreeMap::new(),
        address: address.map(|text| text.parse().unwrap()),
    }
}

fn given(block: &IpamBlock, handle: &str, address: &str) -> IpamBlock {
    match assign(block, &request(handle, None)) {
        Ok(Assigned::New(block, given)) if given.to_string() == address => *block,
        other => panic!("{handle} was to get {address}: {other:?}"),
    }
}
