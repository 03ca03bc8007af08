//! Calico's kinds, except FelixConfiguration.

use super::shape::{Field, Shape};

const STATUS: Field = Field::optional("status", Shape::Any);

/// Most addresses of a block: an IPv4 /20 or an IPv6 /116.
const BLOCK_MAX: usize = 4096;

/// `Node`, and `MeshNode`.
pub(super) const NODE: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[
            Field::optional("bgp", Shape::Fields(BGP)),
            Field::optional("ipv4VXLANTunnelAddr", Shape::Address),
            Field::optional("vxlanTunnelMACAddr", Shape::Mac),
            Field::optional("ipv6VXLANTunnelAddr", Shape::Address),
            Field::optional("vxlanTunnelMACAddrV6", Shape::Mac),
            Field::optional("orchRefs", Shape::List(&Shape::Fields(ORCH_REF), 16)),
            Field::optional(
                "wireguard",
                Shape::Fields(&[
                    Field::optional("interfaceIPv4Address", Shape::Address),
                    Field::optional("interfaceIPv6Address", Shape::Address),
                ]),
            ),
            Field::optional("addresses", Shape::List(&Shape::Fields(NODE_ADDRESS), 256)),
            Field::optional(
                "interfaces",
                Shape::List(&Shape::Fields(NODE_INTERFACE), 1024),
            ),
        ]),
    ),
    Field::optional(
        "status",
        Shape::Fields(&[
            Field::optional("wireguardPublicKey", Shape::Key),
            Field::optional("wireguardPublicKeyV6", Shape::Key),
            Field::optional("podCIDRs", Shape::List(&Shape::Network, 16)),
        ]),
    ),
];

const BGP: &[Field] = &[
    Field::optional("asNumber", Shape::AsNumber),
    Field::optional("ipv4Address", Shape::Interface),
    Field::optional("ipv6Address", Shape::Interface),
    Field::optional("ipv4IPIPTunnelAddr", Shape::Address),
    Field::optional("routeReflectorClusterID", Shape::Text),
];

const ORCH_REF: &[Field] = &[
    Field::optional("nodeName", Shape::Text),
    Field::optional("orchestrator", Shape::Text),
];

const NODE_ADDRESS: &[Field] = &[
    Field::required("address", Shape::NetworkOrAddress),
    Field::optional(
        "type",
        Shape::Word(&["CalicoNodeIP", "InternalIP", "ExternalIP"]),
    ),
];

const NODE_INTERFACE: &[Field] = &[
    Field::required("name", Shape::Text),
    Field::optional("addresses", Shape::List(&Shape::NetworkOrAddress, 256)),
];

/// `IPPool`.
pub(super) const IP_POOL: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::required("cidr", Shape::Network),
            // The range depends on the family; the parser of pools has the exact one.
            Field::optional("blockSize", Shape::Number(0, 128)),
            Field::optional("ipipMode", ENCAPSULATION),
            Field::optional("vxlanMode", ENCAPSULATION),
            Field::optional("natOutgoing", Shape::Bool),
            Field::optional("disabled", Shape::Bool),
            Field::optional("disableBGPExport", Shape::Bool),
            Field::optional("nodeSelector", Shape::NodeSelector),
            Field::optional("namespaceSelector", Shape::NodeSelector),
            Field::optional(
                "allowedUses",
                Shape::List(&Shape::Word(&["Workload", "Tunnel", "LoadBalancer"]), 3),
            ),
            Field::optional("assignmentMode", Shape::Word(&["Automatic", "Manual"])),
        ]),
    ),
    STATUS,
];

const ENCAPSULATION: Shape = Shape::Word(&["Never", "Always", "CrossSubnet"]);

/// `IPAMBlock`.
pub(super) const IPAM_BLOCK: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::required("cidr", Shape::Network),
            Field::optional("affinity", Shape::Text),
            Field::optional("affinityClaimTime", Shape::Text),
            Field::optional("hostAffinity", Shape::Text),
            Field::required(
                "allocations",
                Shape::List(&Shape::Number(0, 65535), BLOCK_MAX),
            ),
            Field::required(
                "unallocated",
                Shape::List(&Shape::Number(0, 65535), BLOCK_MAX),
            ),
            Field::optional(
                "attributes",
                Shape::List(&Shape::Fields(ATTRIBUTE), BLOCK_MAX),
            ),
            Field::optional("sequenceNumber", Shape::Number(0, u64::MAX)),
            Field::optional(
                "sequenceNumberForAllocation",
                Shape::Map(&Shape::Number(0, u64::MAX)),
            ),
            Field::optional("deleted", Shape::Bool),
            Field::optional("strictAffinity", Shape::Bool),
        ]),
    ),
    STATUS,
];

const ATTRIBUTE: &[Field] = &[
    Field::optional("handle_id", Shape::Text),
    Field::optional("secondary", Shape::Map(&Shape::Text)),
    Field::optional("alternateOwnerAttrs", Shape::Map(&Shape::Text)),
    Field::optional("releasedAt", Shape::Text),
];

/// `BlockAffinity`.
pub(super) const BLOCK_AFFINITY: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::optional(
                "state",
                Shape::Word(&["", "confirmed", "pending", "pendingDeletion"]),
            ),
            Field::required("node", Shape::Text),
            Field::optional("type", Shape::Word(&["", "host", "virtual"])),
            Field::required("cidr", Shape::Network),
            Field::optional("deleted", Shape::Flag),
        ]),
    ),
    STATUS,
];

/// `IPAMHandle`.
pub(super) const IPAM_HANDLE: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::required("handleID", Shape::Text),
            Field::optional("block", Shape::Map(&Shape::Number(0, 65536))),
            Field::optional("deleted", Shape::Bool),
        ]),
    ),
    STATUS,
];

/// `IPAMConfiguration`.
pub(super) const IPAM_CONFIGURATION: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::optional("strictAffinity", Shape::Bool),
            Field::optional("maxBlocksPerHost", Shape::Number(0, 1_000_000)),
            Field::optional("autoAllocateBlocks", Shape::Bool),
            Field::optional(
                "kubeVirtVMAddressPersistence",
                Shape::Word(&["Enabled", "Disabled"]),
            ),
            Field::optional("ipCooldownSeconds", Shape::Number(0, 1200)),
        ]),
    ),
    STATUS,
];

/// `IPReservation`.
pub(super) const IP_RESERVATION: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[Field::optional(
            "reservedCIDRs",
            Shape::List(&Shape::NetworkOrAddress, 1024),
        )]),
    ),
    STATUS,
];

/// `WorkloadEndpoint`.
pub(super) const WORKLOAD_ENDPOINT: &[Field] = &[
    Field::required(
        "spec",
        Shape::Fields(&[
            Field::optional("orchestrator", Shape::Text),
            Field::optional("workload", Shape::Text),
            Field::required("node", Shape::Node),
            Field::optional("containerID", Shape::Text),
            Field::optional("pod", Shape::Text),
            Field::optional("endpoint", Shape::Text),
            Field::optional("serviceAccountName", Shape::Text),
            Field::optional("ipNetworks", Shape::List(&Shape::Interface, 64)),
            Field::optional("ipNATs", Shape::List(&Shape::Fields(IP_NAT), 64)),
            Field::optional("ipv4Gateway", Shape::Address),
            Field::optional("ipv6Gateway", Shape::Address),
            Field::optional("profiles", Shape::List(&Shape::Text, 64)),
            Field::required("interfaceName", Shape::InterfaceName),
            Field::optional("mac", Shape::Mac),
            Field::optional("ports", Shape::List(&Shape::Fields(WORKLOAD_PORT), 256)),
            Field::optional(
                "allowSpoofedSourcePrefixes",
                Shape::List(&Shape::NetworkOrAddress, 64),
            ),
            Field::optional("qosControls", Shape::Any),
        ]),
    ),
    STATUS,
];

const IP_NAT: &[Field] = &[
    Field::required("internalIP", Shape::Address),
    Field::required("externalIP", Shape::Address),
];

const WORKLOAD_PORT: &[Field] = &[
    Field::optional("name", Shape::Text),
    Field::optional("protocol", Shape::Any),
    Field::required("port", Shape::Number(1, 65535)),
    Field::optional("hostPort", Shape::Number(0, 65535)),
    Field::optional("hostIP", Shape::Text),
];

/// `ClusterInformation`.
pub(super) const CLUSTER_INFORMATION: &[Field] = &[
    Field::optional(
        "spec",
        Shape::Fields(&[
            Field::optional("clusterGUID", Shape::Text),
            Field::optional("clusterType", Shape::Text),
            Field::optional("calicoVersion", Shape::Text),
            Field::optional("datastoreReady", Shape::Bool),
            Field::optional("variant", Shape::Text),
        ]),
    ),
    STATUS,
];
