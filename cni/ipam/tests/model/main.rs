//! Nodes beside each other, dying between any two steps, against a store that compares and swaps.
//!
//! A choice is a worker and what befalls it: it begins something, takes a step, dies before the step, dies behind it,
//! or takes it without hearing the answer. After every write the promises are checked; in the end everybody is let
//! finish, what died is collected, and nothing may be left that nobody holds.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on dies")]

mod exhaustive;
mod world;

use proptest::prelude::*;
use world::{Shape, Tally, World};

/// Every interleaving is replayed from its seed: `PROPTEST_RNG_SEED`, printed with a failure, and the shrunk choices.
fn cases(many: u32) -> ProptestConfig {
    ProptestConfig {
        cases: many,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn eight_nodes_share_four_blocks_and_nobody_gets_anothers_address(
        choices in prop::collection::vec((0u8..18, any::<u8>()), 0..500),
    ) {
        let mut world = World::new(Shape { nodes: 8, cooldown: 0, strict: false, collects: false });
        for (worker, fate) in choices {
            world.take_turn(worker, fate);
        }
        world.finish();
    }

    #[test]
    fn garbage_is_collected_while_everybody_is_at_work_and_nobody_loses_anything(
        choices in prop::collection::vec((0u8..10, any::<u8>()), 0..600),
    ) {
        let mut world = World::new(Shape { nodes: 4, cooldown: 0, strict: false, collects: true });
        for (worker, fate) in choices {
            world.take_turn(worker, fate);
        }
        world.finish();
    }

    #[test]
    fn two_nodes_with_a_cool_down_hand_nothing_out_too_early(
        choices in prop::collection::vec((0u8..6, any::<u8>()), 0..400),
    ) {
        let mut world = World::new(Shape { nodes: 2, cooldown: 30, strict: false, collects: false });
        for (worker, fate) in choices {
            world.take_turn(worker, fate);
        }
        world.finish();
    }

    #[test]
    fn with_strict_affinity_nobody_holds_an_address_of_anothers_block(
        choices in prop::collection::vec((0u8..10, any::<u8>()), 0..300),
    ) {
        let mut world = World::new(Shape { nodes: 4, cooldown: 0, strict: true, collects: false });
        for (worker, fate) in choices {
            world.take_turn(worker, fate);
        }
        world.finish();
    }
}

/// The interleavings above are worth what happens in them. A seed that fails is printed, and is its own reproduction.
#[test]
fn what_can_happen_happens() {
    let mut sum = Tally::default();
    for seed in 1..=40u64 {
        let shape = Shape {
            nodes: 8,
            cooldown: 0,
            strict: false,
            collects: seed % 2 == 0,
        };
        let tally = std::panic::catch_unwind(|| random(shape, seed, 1500))
            .unwrap_or_else(|_| panic!("seed {seed}"));
        sum.add(&tally);
    }

    assert!(
        sum.assigned > 500 && sum.borrowed > 100 && sum.lacking > 100,
        "{sum:?}"
    );
    assert!(
        sum.released > 500 && sum.crashes > 1000 && sum.conflicts > 500,
        "{sum:?}"
    );
    assert!(sum.repairs > 40 && sum.outdated > 0, "{sum:?}");
}

fn random(shape: Shape, seed: u64, turns: u32) -> Tally {
    let mut state = seed;
    // Knuth's MMIX congruence; the upper bits are the good ones.
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let mut world = World::new(shape);
    for _ in 0..turns {
        let choice = next();
        world.take_turn((choice >> 8) as u8 % 18, choice as u8);
    }
    world.finish();

    world.tally
}
