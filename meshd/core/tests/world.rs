//! The brain of node `a`, told by hand what a mesh of three looks like.

#[path = "world/fixture.rs"]
mod fixture;

#[path = "world/claim.rs"]
mod claim;
#[path = "world/family.rs"]
mod family;
#[path = "world/pod.rs"]
mod pod;
