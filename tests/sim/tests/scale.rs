//! The cost of one change, counted in nodes judged and rows computed, not in time.

use model::{Event, Moment, Resource};
use sim::Big;

#[test]
fn the_cost_of_one_change_does_not_grow_with_the_cluster() {
    let small = costs(Big {
        nodes: 10,
        blocks: 10,
    });
    let large = costs(Big {
        nodes: 400,
        blocks: 10,
    });

    assert_eq!(small, large);
    assert!(
        small.iter().all(|cost| (1..100).contains(cost)),
        "{small:?}"
    );
}

#[test]
fn a_change_that_says_nothing_new_costs_nothing() {
    let mesh = Big {
        nodes: 10,
        blocks: 10,
    };
    let mut world = mesh.start();
    let (effort, generation) = (world.effort(), world.plan().generation);

    for event in mesh.facts() {
        world.apply(event, Moment::START);
    }

    assert_eq!(
        (world.effort(), world.plan().generation),
        (effort, generation)
    );
}

/// The costs of a node's change, a block's move, a claim that goes, and a member that leaves.
fn costs(mesh: Big) -> Vec<u64> {
    let mut world = mesh.start();
    let claim = model::ObjectKey::cluster(model::Kind::AddressClaim, "100.64.0.6");
    let leaver = model::ObjectKey::cluster(model::Kind::Node, "n7");
    let changes = [
        Event::Applied(Resource::Node(Box::new(mesh.node(3, 2)))),
        Event::Applied(mesh.block(44, Some(6))),
        Event::Deleted(claim),
        Event::Deleted(leaver),
    ];

    changes
        .into_iter()
        .map(|change| {
            let (before, generation) = (world.effort(), world.plan().generation);
            world.apply(change, Moment::START);
            assert!(
                world.plan().generation > generation,
                "the change changed nothing"
            );
            world.effort() - before
        })
        .collect()
}
