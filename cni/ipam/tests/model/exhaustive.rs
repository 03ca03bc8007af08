//! Two nodes and the authority: every interleaving of a few operations, with one death at any point, tried once.
//!
//! A way through is a list of choices and is walked from the start; where two ways meet in one digest, one goes on.

use std::collections::BTreeSet;

use crate::world::{Shape, World};

/// Workers: 0 and 1 are n0's, 2 and 3 n1's, 4 and 5 the authority's.
const ASSIGN: u8 = 0;
const RELEASE: u8 = 4;
const GIVE_UP: u8 = 6;
const GIVE_UP_ALWAYS: u8 = 70;
const RECLAIM: u8 = 6;

/// Longest way.
const WAY_MAX: usize = 18;

/// What happens first, what happens beside each other, and how many may die meanwhile.
type Race = (
    &'static str,
    &'static [(usize, u8)],
    &'static [(usize, u8)],
    usize,
);

const RACES: &[Race] = &[
    ("two nodes claim", &[], &[(0, ASSIGN), (2, ASSIGN)], 1),
    ("one node claims twice", &[], &[(0, ASSIGN), (1, ASSIGN)], 0),
    (
        "a full hand and a goodbye",
        &[(0, ASSIGN)],
        &[(0, ASSIGN), (1, GIVE_UP)],
        1,
    ),
    (
        "an empty block is wanted and given up",
        &[(0, ASSIGN), (0, RELEASE)],
        &[(0, ASSIGN), (1, GIVE_UP)],
        0,
    ),
    (
        "an empty block is wanted and reclaimed",
        &[(0, ASSIGN), (0, RELEASE)],
        &[(0, ASSIGN), (4, RECLAIM)],
        0,
    ),
    (
        "an empty block is given up and reclaimed",
        &[(0, ASSIGN), (0, RELEASE)],
        &[(1, GIVE_UP), (4, RECLAIM)],
        1,
    ),
    (
        "an empty block is wanted and reclaimed twice",
        &[(0, ASSIGN), (0, RELEASE)],
        &[(0, ASSIGN), (4, RECLAIM), (5, RECLAIM)],
        0,
    ),
    (
        "a pod goes while its block is given up",
        &[(0, ASSIGN)],
        &[(0, RELEASE), (1, GIVE_UP_ALWAYS)],
        1,
    ),
];

#[test]
fn every_interleaving_of_two_keeps_every_promise() {
    let mut all = 0;
    for race in RACES {
        let (states, ends) = explore(race);
        assert!(
            states > 15 && ends > 0,
            "{}: {states} states, {ends} ends",
            race.0
        );
        all += states;
    }

    assert!(all > 1000, "{all} states");
}

/// Walks every way; returns how many states there are, and how many of them are ends.
fn explore((what, first, race, deaths): &Race) -> (usize, usize) {
    let mut seen = BTreeSet::new();
    let mut ends = 0;
    let mut ways: Vec<Vec<(usize, bool)>> = vec![Vec::new()];
    while let Some(way) = ways.pop() {
        let walked = std::panic::catch_unwind(|| walk(first, race, &way));
        let Ok((world, is_possible)) = walked else {
            panic!("{what}: {way:?}");
        };
        if !is_possible || !seen.insert(world.digest()) {
            continue;
        }
        // Two that go on to spoil each other's writes have no end: what they can do, they have done by then.
        if way.len() == WAY_MAX {
            continue;
        }
        for (place, _) in *race {
            ways.push([way.clone(), vec![(*place, false)]].concat());
            if way.iter().filter(|(_, dies)| *dies).count() < *deaths {
                ways.push([way.clone(), vec![(*place, true)]].concat());
            }
        }
        if race.iter().all(|(place, _)| world.is_idle(*place)) {
            ends += 1;
            finish(first, race, &way, what);
        }
    }

    (seen.len(), ends)
}

/// Walks a way; only its last step is checked, as the others were before.
fn walk(first: &[(usize, u8)], race: &[(usize, u8)], way: &[(usize, bool)]) -> (World, bool) {
    let mut world = World::new(Shape {
        nodes: 2,
        cooldown: 0,
        strict: false,
        collects: false,
    });
    world.is_known = true;
    for (place, fate) in first {
        world.complete(*place, *fate);
    }
    world.race(race);
    let mut is_possible = true;
    for (number, (place, dies)) in way.iter().enumerate() {
        world.is_known = number + 1 < way.len();
        is_possible = world.go(*place, *dies);
    }

    (world, is_possible)
}

/// From every end, the garbage can be collected.
fn finish(first: &[(usize, u8)], race: &[(usize, u8)], way: &[(usize, bool)], what: &str) {
    let finished = std::panic::catch_unwind(|| {
        let (mut world, _) = walk(first, race, way);
        world.is_known = false;
        world.finish();
    });
    assert!(finished.is_ok(), "{what}: the end of {way:?}");
}
