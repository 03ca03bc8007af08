//! The kinds of our own.

use super::shape::{Field, Shape};

/// `MeshConfiguration`: only settings that this version acts upon.
pub(super) const MESH_CONFIGURATION: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[
            Field::optional(
                "encryption",
                Shape::Fields(&[
                    Field::optional("mode", Shape::Word(&["Strict", "Permissive"])),
                    Field::optional("backend", Shape::Word(&["Auto", "Kernel", "Userspace"])),
                ]),
            ),
            Field::optional(
                "cni",
                Shape::Fields(&[Field::optional(
                    "unknownPods",
                    Shape::Word(&["Refuse", "NamespaceOnly"]),
                )]),
            ),
            Field::optional("foreignFirewalls", Shape::Word(&["Open", "Report"])),
            Field::optional(
                "policy",
                Shape::Fields(&[
                    Field::optional("establishedConnections", Shape::Word(&["Recheck", "Keep"])),
                    Field::optional("packetLog", Shape::Word(&["Rules", "Denied"])),
                ]),
            ),
            Field::optional(
                "underlay",
                Shape::Fields(&[Field::optional(
                    "networks",
                    Shape::List(&Shape::Network, 256),
                )]),
            ),
        ]),
    ),
    Field::optional("status", Shape::Any),
];

/// `KeyClaim` and `AddressClaim`.
pub(super) const CLAIM: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[Field::required("node", Shape::Node)]),
    ),
    Field::optional("status", Shape::Any),
];
