//! Tiers and the policies in them.

use model::{Kind, Object, ObjectKey};
use serde_json::json;

use super::{World, assert_denied};
use crate::{Denial, Precondition, Store, StoreError};

#[tokio::test]
async fn a_policy_needs_its_tier_and_a_tier_stays_while_a_policy_needs_it() {
    let world = World::new().await;
    let admin = world.admin();
    let policy = Object::new(
        &ObjectKey::cluster(Kind::GlobalNetworkPolicy, "p"),
        json!({"tier": "net"}),
    );
    let tier = Object::new(&ObjectKey::cluster(Kind::Tier, "net"), json!({"order": 5}));

    let refused = admin.create(policy.clone()).await;
    assert!(
        matches!(&refused, Err(StoreError::Invalid(error)) if error.field == "spec.tier"),
        "{refused:?}"
    );
    admin.create(tier.clone()).await.unwrap();
    admin.create(policy.clone()).await.unwrap();

    let kept = admin.delete(tier.key(), Precondition::Any).await;
    assert_denied(kept, Denial::TierInUse);
    admin.delete(policy.key(), Precondition::Any).await.unwrap();
    admin.delete(tier.key(), Precondition::Any).await.unwrap();
}

#[tokio::test]
async fn a_built_in_tier_needs_no_object_and_its_object_stays() {
    let world = World::new().await;
    let admin = world.admin();
    let spec = json!({"order": 1_000_000, "defaultAction": "Deny"});
    let tier = Object::new(&ObjectKey::cluster(Kind::Tier, "default"), spec);
    let policy = Object::new(
        &ObjectKey::namespaced(Kind::NetworkPolicy, "shop", "p"),
        json!({"tier": "kube-baseline"}),
    );

    admin.create(policy).await.unwrap();
    admin.create(tier.clone()).await.unwrap();

    let kept = admin.delete(tier.key(), Precondition::Any).await;
    assert_denied(kept, Denial::TierBuiltIn);
}
