//! Kubernetes' kinds of policy.

use super::shape::{Field, Shape};

const STATUS: Field = Field::optional("status", Shape::Any);

/// Most entries of a list for which Kubernetes has no bound.
const LIST_MAX: usize = 4096;

/// Most entries of every list of a ClusterNetworkPolicy.
const CLUSTER_LIST_MAX: usize = 25;

const LABEL_SELECTOR: Shape = Shape::Fields(&[
    Field::optional("matchLabels", Shape::Map(&Shape::Text)),
    Field::optional(
        "matchExpressions",
        Shape::List(
            &Shape::Fields(&[
                Field::required("key", Shape::Text),
                Field::required(
                    "operator",
                    Shape::Word(&["In", "NotIn", "Exists", "DoesNotExist"]),
                ),
                Field::optional("values", Shape::List(&Shape::Text, LIST_MAX)),
            ]),
            LIST_MAX,
        ),
    ),
]);

const POD_SELECTOR: Field = Field::required("podSelector", LABEL_SELECTOR);
const INGRESS: Field = Field::optional(
    "ingress",
    Shape::List(
        &Shape::Fields(&[Field::optional("from", PEERS), PORTS]),
        LIST_MAX,
    ),
);
const EGRESS: Field = Field::optional(
    "egress",
    Shape::List(
        &Shape::Fields(&[Field::optional("to", PEERS), PORTS]),
        LIST_MAX,
    ),
);
const POLICY_TYPES: Field = Field::optional(
    "policyTypes",
    Shape::List(&Shape::Word(&["Ingress", "Egress"]), 2),
);

/// `NetworkPolicy` of Kubernetes.
pub(super) const NETWORK_POLICY: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[POD_SELECTOR, INGRESS, EGRESS, POLICY_TYPES]),
    ),
    STATUS,
];

/// `StagedKubernetesNetworkPolicy`.
pub(super) const STAGED_NETWORK_POLICY: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::optional(
                "stagedAction",
                Shape::Word(&["", "Set", "Delete", "Learn", "Ignore"]),
            ),
            Field::optional("podSelector", LABEL_SELECTOR),
            INGRESS,
            EGRESS,
            POLICY_TYPES,
        ]),
    ),
    STATUS,
];

const PEERS: Shape = Shape::List(&Shape::Fields(PEER), LIST_MAX);

const PORTS: Field = Field::optional("ports", Shape::List(&Shape::Fields(PORT), LIST_MAX));

const PEER: &[Field] = &[
    Field::optional("podSelector", LABEL_SELECTOR),
    Field::optional("namespaceSelector", LABEL_SELECTOR),
    Field::optional(
        "ipBlock",
        Shape::Fields(&[
            Field::required("cidr", Shape::AnyNetwork),
            Field::optional("except", Shape::List(&Shape::AnyNetwork, LIST_MAX)),
        ]),
    ),
];

const PORT: &[Field] = &[
    Field::optional("protocol", Shape::Word(&["TCP", "UDP", "SCTP"])),
    Field::optional("port", Shape::PortOrName),
    Field::optional("endPort", Shape::Number(1, 65535)),
];

/// `ClusterNetworkPolicy`.
pub(super) const CLUSTER_NETWORK_POLICY: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::required("tier", Shape::Word(&["Admin", "Baseline"])),
            Field::required("priority", Shape::Number(0, 1000)),
            Field::required(
                "subject",
                Shape::Fields(&[
                    Field::optional("namespaces", LABEL_SELECTOR),
                    Field::optional("pods", PODS),
                ]),
            ),
            Field::optional(
                "ingress",
                Shape::List(
                    &Shape::Fields(&[
                        RULE_NAME,
                        ACTION,
                        PROTOCOLS,
                        Field::required(
                            "from",
                            Shape::List(
                                &Shape::Fields(&[
                                    Field::optional("namespaces", LABEL_SELECTOR),
                                    Field::optional("pods", PODS),
                                ]),
                                CLUSTER_LIST_MAX,
                            ),
                        ),
                    ]),
                    CLUSTER_LIST_MAX,
                ),
            ),
            Field::optional(
                "egress",
                Shape::List(
                    &Shape::Fields(&[
                        RULE_NAME,
                        ACTION,
                        PROTOCOLS,
                        Field::required(
                            "to",
                            Shape::List(
                                &Shape::Fields(&[
                                    Field::optional("namespaces", LABEL_SELECTOR),
                                    Field::optional("pods", PODS),
                                    Field::optional(
                                        "networks",
                                        Shape::List(&Shape::AnyNetwork, CLUSTER_LIST_MAX),
                                    ),
                                ]),
                                CLUSTER_LIST_MAX,
                            ),
                        ),
                    ]),
                    CLUSTER_LIST_MAX,
                ),
            ),
        ]),
    ),
    STATUS,
];

const RULE_NAME: Field = Field::optional("name", Shape::ShortText(100));
const ACTION: Field = Field::required("action", Shape::Word(&["Accept", "Deny", "Pass"]));

const PODS: Shape = Shape::Fields(&[
    Field::optional("namespaceSelector", LABEL_SELECTOR),
    Field::optional("podSelector", LABEL_SELECTOR),
]);

const PROTOCOLS: Field = Field::optional(
    "protocols",
    Shape::List(
        &Shape::Fields(&[
            Field::optional("tcp", DESTINATION),
            Field::optional("udp", DESTINATION),
            Field::optional("sctp", DESTINATION),
            Field::optional("destinationNamedPort", Shape::PortName),
        ]),
        CLUSTER_LIST_MAX,
    ),
);

const DESTINATION: Shape = Shape::Fields(&[Field::optional(
    "destinationPort",
    Shape::Fields(&[
        Field::optional("number", Shape::Number(1, 65535)),
        Field::optional(
            "range",
            Shape::Fields(&[
                Field::required("start", Shape::Number(1, 65535)),
                Field::required("end", Shape::Number(1, 65535)),
            ]),
        ),
    ]),
)]);
