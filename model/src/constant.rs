//! Every name and number of ours on a machine: Felix's defaults where it has one.
//!
//! | number | whose | moved by |
//! |---|---|---|
//! | tables 1, 2 | ours alone | |
//! | rule priorities 99, 100 | shared: rules of others may stand there | `wireguardRoutingRulePriority` |
//! | mark 0x200000 | ours alone | |
//! | protocol 80 | ours, and Calico's | |
//! | UDP 51820, 51821 | whoever binds them first | `wireguardListeningPort`, `wireguardListeningPortV6` |
//! | `wireguard.cali`, `wg-v6.cali` | ours, and Calico's | `wireguardInterfaceName`, `wireguardInterfaceNameV6` |
//! | `cali*` | ours, and Calico's | |
//! | UDP 4789, mark 0x4000 | VXLAN's and kube-proxy's: looked at, never taken | |

/// Prefix of the annotations and labels of our own.
pub const ANNOTATION_PREFIX: &str = "meshd.dev/";

/// Annotation that holds a node's [`Record`](crate::Record).
pub const RECORD_ANNOTATION: &str = "meshd.dev/record";

/// Largest record a peer reads, in bytes.
pub const RECORD_MAX: usize = 4096;

/// Route protocol of every route we own (Calico's, for cluster routes).
pub const ROUTE_PROTOCOL: u8 = 80;

/// Route protocol of workload routes (`RTPROT_BOOT`, Felix's `deviceRouteProtocol`).
pub const WORKLOAD_ROUTE_PROTOCOL: u8 = 3;

/// First routing table of Felix's default `routeTableRanges`: destinations that are tunnelled.
pub const TUNNEL_TABLE: u32 = 1;

/// Second table: where pods' packets to members' own addresses go.
pub const SOURCE_TABLE: u32 = 2;

/// Priority of the rule that looks into [`TUNNEL_TABLE`] (Felix's `wireguardRoutingRulePriority`).
pub const TUNNEL_RULE_PRIORITY: u32 = 99;

/// Felix's default mask of mark bits that an agent may use (`nftablesMarkMask`).
pub const MARK_MASK: u32 = 0xffff_0000;

/// The bit of [`MARK_MASK`] on WireGuard's own packets: the sixth, after accept, pass, drop and two scratch bits.
pub const TUNNEL_MARK: u32 = 0x0020_0000;

/// The bit of [`MARK_MASK`] on a packet that a host endpoint's policy let in before normal policy is asked: Calico's
/// accept bit.
pub const ADMITTED_MARK: u32 = 0x0001_0000;

/// The bit of [`MARK_MASK`] on a packet for which a policy said `Pass`, until its tier has been left: Calico's pass
/// bit.
pub const PASS_MARK: u32 = 0x0002_0000;

/// The bit of [`MARK_MASK`] on a *connection* that policy allowed once and no longer does.
pub const REVOKED_MARK: u32 = 0x0004_0000;

/// The mark kube-proxy puts on what it wants masqueraded.
pub const KUBE_MASQUERADE_MARK: u32 = 0x4000;

/// Prefix of workload interfaces on the host.
pub const WORKLOAD_PREFIX: &str = "cali";

/// MAC address of every workload interface's host end.
pub const WORKLOAD_MAC: [u8; 6] = [0xee; 6];

/// The pods' IPv4 gateway: answered by proxy ARP on the host end.
pub const POD_GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);

/// The pods' IPv6 gateway: the link-local address that a host end has by [`WORKLOAD_MAC`] (RFC 4291 appendix A).
pub const POD_GATEWAY_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Name of our nftables tables, in families `inet` and `netdev`.
pub const NFT_TABLE: &str = "meshd";

/// WireGuard device of IPv4 (Felix's `wireguardInterfaceName`).
pub const TUNNEL_DEVICE: &str = "wireguard.cali";

/// WireGuard device of IPv6 (Felix's `wireguardInterfaceNameV6`).
pub const TUNNEL_DEVICE_V6: &str = "wg-v6.cali";

/// Felix's `wireguardListeningPort`.
pub const TUNNEL_PORT: u16 = 51820;

/// Felix's `wireguardListeningPortV6`.
pub const TUNNEL_PORT_V6: u16 = 51821;

/// VXLAN's UDP port as Calico uses it.
pub const VXLAN_PORT: u16 = 4789;

/// How long a member that does not move while its peers do is waited for, in seconds.
pub const LAGGARD_SECONDS: u64 = 30;

/// TCP port of `meshd serve`.
pub const SERVER_PORT: u16 = 7443;
