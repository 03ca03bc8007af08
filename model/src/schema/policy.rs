//! Calico's kinds of policy: what their rules and endpoints may hold.

use super::shape::{Field, Shape};

const STATUS: Field = Field::optional("status", Shape::Any);

/// Most rules of one direction, selectors' and lists' bounds: those of Calico's own definitions.
const RULES_MAX: usize = 1024;
const NETS_MAX: usize = 256;
const PORTS_MAX: usize = 50;

/// Most networks of a set.
const SET_MAX: usize = 16_384;

const ACTION: Shape = Shape::Word(&["Allow", "Deny", "Log", "Pass"]);

const STAGED_ACTION: Field = Field::optional(
    "stagedAction",
    Shape::Word(&["", "Set", "Delete", "Learn", "Ignore"]),
);

/// `Tier`.
pub(super) const TIER: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[
            Field::optional("order", Shape::Order),
            Field::optional("defaultAction", Shape::Word(&["Deny", "Pass"])),
        ]),
    ),
    STATUS,
];

const NAMESPACED: [Field; 8] = [
    Field::optional("tier", Shape::Text),
    Field::optional("order", Shape::Order),
    Field::optional("ingress", RULES),
    Field::optional("egress", RULES),
    Field::optional("selector", Shape::Selector),
    Field::optional(
        "types",
        Shape::List(&Shape::Word(&["Ingress", "Egress"]), 2),
    ),
    Field::optional("serviceAccountSelector", Shape::Selector),
    Field::optional(
        "performanceHints",
        Shape::List(&Shape::Word(&["AssumeNeededOnEveryNode"]), 1),
    ),
];

const DO_NOT_TRACK: Field = Field::optional("doNotTrack", Shape::Bool);
const PRE_DNAT: Field = Field::optional("preDNAT", Shape::Bool);
const APPLY_ON_FORWARD: Field = Field::optional("applyOnForward", Shape::Bool);
const NAMESPACE_SELECTOR: Field = Field::optional("namespaceSelector", Shape::Selector);

const GLOBAL: &[Field] = &{
    let [a, b, c, d, e, f, g, h] = NAMESPACED;
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        DO_NOT_TRACK,
        PRE_DNAT,
        APPLY_ON_FORWARD,
        NAMESPACE_SELECTOR,
    ]
};

const STAGED: &[Field] = &{
    let [a, b, c, d, e, f, g, h] = NAMESPACED;
    [a, b, c, d, e, f, g, h, STAGED_ACTION]
};

const STAGED_GLOBAL: &[Field] = &{
    let [a, b, c, d, e, f, g, h] = NAMESPACED;
    let global = [DO_NOT_TRACK, PRE_DNAT, APPLY_ON_FORWARD, NAMESPACE_SELECTOR];
    let [i, j, k, l] = global;
    [a, b, c, d, e, f, g, h, i, j, k, l, STAGED_ACTION]
};

/// `NetworkPolicy` of Calico.
pub(super) const NETWORK_POLICY: &[Field] =
    &[Field::required("spec", Shape::Fields(&NAMESPACED)), STATUS];

/// `GlobalNetworkPolicy`.
pub(super) const GLOBAL_NETWORK_POLICY: &[Field] =
    &[Field::required("spec", Shape::Fields(GLOBAL)), STATUS];

/// `StagedNetworkPolicy`.
pub(super) const STAGED_NETWORK_POLICY: &[Field] =
    &[Field::required("spec", Shape::Fields(STAGED)), STATUS];

/// `StagedGlobalNetworkPolicy`.
pub(super) const STAGED_GLOBAL_NETWORK_POLICY: &[Field] = &[
    Field::required("spec", Shape::Fields(STAGED_GLOBAL)),
    STATUS,
];

const RULES: Shape = Shape::List(
    &Shape::Fields(&[
        Field::required("action", ACTION),
        Field::optional("ipVersion", Shape::Number(4, 6)),
        Field::optional("protocol", Shape::Protocol),
        Field::optional("icmp", Shape::Fields(ICMP)),
        Field::optional("notProtocol", Shape::Protocol),
        Field::optional("notICMP", Shape::Fields(ICMP)),
        Field::optional("source", Shape::Fields(SIDE)),
        Field::optional("destination", Shape::Fields(SIDE)),
        Field::optional("http", Shape::Fields(HTTP)),
        Field::optional(
            "metadata",
            Shape::Fields(&[Field::optional("annotations", Shape::Map(&Shape::Text))]),
        ),
    ]),
    RULES_MAX,
);

const ICMP: &[Field] = &[
    Field::optional("type", Shape::Number(0, 254)),
    Field::optional("code", Shape::Number(0, 255)),
];

const SIDE: &[Field] = &[
    Field::optional("nets", Shape::List(&Shape::AnyNetwork, NETS_MAX)),
    Field::optional("notNets", Shape::List(&Shape::AnyNetwork, NETS_MAX)),
    Field::optional("selector", Shape::Selector),
    Field::optional("notSelector", Shape::Selector),
    Field::optional("namespaceSelector", Shape::NamespaceSelector),
    Field::optional("ports", Shape::List(&Shape::RulePort, PORTS_MAX)),
    Field::optional("notPorts", Shape::List(&Shape::RulePort, PORTS_MAX)),
    Field::optional(
        "serviceAccounts",
        Shape::Fields(&[
            Field::optional("names", Shape::List(&Shape::Text, 256)),
            Field::optional("selector", Shape::Selector),
        ]),
    ),
    Field::optional(
        "services",
        Shape::Fields(&[
            Field::required("name", Shape::Text),
            Field::optional("namespace", Shape::Text),
        ]),
    ),
];

const HTTP: &[Field] = &[
    Field::optional("methods", Shape::List(&Shape::Text, 20)),
    Field::optional(
        "paths",
        Shape::List(
            &Shape::Fields(&[
                Field::optional("exact", Shape::ShortText(1024)),
                Field::optional("prefix", Shape::ShortText(1024)),
            ]),
            20,
        ),
    ),
];

/// `NetworkSet` and `GlobalNetworkSet`.
pub(super) const NETWORK_SET: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[Field::optional(
            "nets",
            Shape::List(&Shape::NetworkOrAddress, SET_MAX),
        )]),
    ),
    STATUS,
];

/// `HostEndpoint`.
pub(super) const HOST_ENDPOINT: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::required("node", Shape::Node),
            Field::optional("interfaceName", Shape::HostInterface),
            Field::optional("expectedIPs", Shape::List(&Shape::Address, 256)),
            Field::optional("profiles", Shape::List(&Shape::Text, 64)),
            Field::optional(
                "ports",
                Shape::List(
                    &Shape::Fields(&[
                        Field::required("name", Shape::PortName),
                        Field::required("protocol", Shape::Protocol),
                        Field::required("port", Shape::Number(1, 65535)),
                    ]),
                    256,
                ),
            ),
        ]),
    ),
    STATUS,
];

/// `Profile`.
pub(super) const PROFILE: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[
            Field::optional("ingress", RULES),
            Field::optional("egress", RULES),
            Field::optional("labelsToApply", Shape::Map(&Shape::Text)),
        ]),
    ),
    STATUS,
];
