//! FelixConfiguration: every field that Calico has, with its type.
//!
//! Names and types are those of Calico's API (`projectcalico.org/v3`). What
//! meshd acts upon is parsed in [`resource::felix_configuration`](crate::resource::felix_configuration);
//! the rest is checked and kept. The many fields of the eBPF dataplane, which
//! meshd does not have, are known by their prefix alone.

use super::shape::{Field, Shape};

/// A UDP or TCP port; zero is off.
const PORT: Shape = Shape::Number(0, 65535);

/// A port that must be one.
const LISTENING_PORT: Shape = Shape::Number(1, 65535);

/// An MTU; zero is automatic.
const MTU: Shape = Shape::Number(0, 65535);

const SWITCH: Shape = Shape::AnyCase(&["Enabled", "Disabled"]);
const ACCEPT_RETURN: Shape = Shape::AnyCase(&["Accept", "Return"]);
const DROP_REJECT: Shape = Shape::AnyCase(&["Drop", "Reject"]);
const LOG_LEVEL: Shape = Shape::AnyCase(&[
    "Trace", "Debug", "Info", "Warning", "Error", "Fatal", "None",
]);

const TABLE_RANGE: Shape = Shape::Fields(&[
    Field::required("min", Shape::Number(1, 0xffff_ffff)),
    Field::required("max", Shape::Number(1, 0xffff_ffff)),
]);

const FAILSAFE: Shape = Shape::List(
    &Shape::Fields(&[
        Field::optional("protocol", Shape::AnyCase(&["TCP", "UDP", "SCTP"])),
        Field::required("port", Shape::Number(0, 65535)),
        Field::optional("net", Shape::NetworkOrAddress),
    ]),
    1024,
);

const HEALTH_TIMEOUT: &[Field] = &[
    Field::required("name", Shape::Text),
    Field::required("timeout", Shape::Duration),
];

/// `FelixConfiguration`.
pub(super) const FELIX_CONFIGURATION: &[Field] = &[
    Field::optional("spec", Shape::Fields(SPEC)),
    Field::optional("status", Shape::Any),
];

const SPEC: &[Field] = &[
    Field::optional("allowIPIPPacketsFromWorkloads", Shape::Bool),
    Field::optional("allowVXLANPacketsFromWorkloads", Shape::Bool),
    Field::optional(
        "awsSrcDstCheck",
        Shape::AnyCase(&["DoNothing", "Enable", "Disable"]),
    ),
    Field::optional("bpf*", Shape::Any),
    Field::optional("cgroupV2Path", Shape::Text),
    Field::optional("chainInsertMode", Shape::AnyCase(&["insert", "append"])),
    Field::optional("dataplaneDriver", Shape::Text),
    Field::optional("dataplaneWatchdogTimeout", Shape::Duration),
    Field::optional("debugDisableLogDropping", Shape::Bool),
    Field::optional("debugHost", Shape::Text),
    Field::optional("debugMemoryProfilePath", Shape::Text),
    Field::optional("debugPort", PORT),
    Field::optional("debugSimulateCalcGraphHangAfter", Shape::Duration),
    Field::optional("debugSimulateDataplaneApplyDelay", Shape::Duration),
    Field::optional("debugSimulateDataplaneHangAfter", Shape::Duration),
    Field::optional(
        "defaultEndpointToHostAction",
        Shape::AnyCase(&["Drop", "Accept", "Return"]),
    ),
    Field::optional("deviceRouteProtocol", Shape::Number(0, 255)),
    Field::optional("deviceRouteSourceAddress", Shape::Address),
    Field::optional("deviceRouteSourceAddressIPv6", Shape::Address),
    Field::optional("disableConntrackInvalidCheck", Shape::Bool),
    Field::optional("endpointReportingDelay", Shape::Duration),
    Field::optional("endpointReportingEnabled", Shape::Bool),
    Field::optional("endpointStatusPathPrefix", Shape::Text),
    Field::optional(
        "externalNodesList",
        Shape::List(&Shape::NetworkOrAddress, 1024),
    ),
    Field::optional("failsafeInboundHostPorts", FAILSAFE),
    Field::optional("failsafeOutboundHostPorts", FAILSAFE),
    Field::optional("featureDetectOverride", Shape::Text),
    Field::optional("featureGates", Shape::Text),
    Field::optional("floatingIPs", SWITCH),
    Field::optional("flowLogsFlushInterval", Shape::Duration),
    Field::optional("flowLogsGoldmaneServer", Shape::Text),
    Field::optional("flowLogsLocalReporter", SWITCH),
    Field::optional(
        "flowLogsPolicyEvaluationMode",
        Shape::AnyCase(&["None", "Continuous"]),
    ),
    Field::optional("genericXDPEnabled", Shape::Bool),
    Field::optional("goGCThreshold", Shape::Number(-1, u64::MAX)),
    Field::optional("goMaxProcs", Shape::Number(-1, u64::MAX)),
    Field::optional("goMemoryLimitMB", Shape::Number(-1, u64::MAX)),
    Field::optional("healthEnabled", Shape::Bool),
    Field::optional("healthHost", Shape::Text),
    Field::optional("healthPort", PORT),
    Field::optional(
        "healthTimeoutOverrides",
        Shape::List(&Shape::Fields(HEALTH_TIMEOUT), 64),
    ),
    Field::optional("interfaceExclude", Shape::Text),
    Field::optional("interfacePrefix", Shape::Text),
    Field::optional("interfaceRefreshInterval", Shape::Duration),
    Field::optional("ipForwarding", SWITCH),
    Field::optional("ipipEnabled", Shape::Bool),
    Field::optional("ipipMTU", MTU),
    Field::optional("ipsetsRefreshInterval", Shape::Duration),
    Field::optional(
        "iptablesBackend",
        Shape::AnyCase(&["Legacy", "NFT", "Auto"]),
    ),
    Field::optional("iptablesFilterAllowAction", ACCEPT_RETURN),
    Field::optional("iptablesFilterDenyAction", DROP_REJECT),
    Field::optional("iptablesLockFilePath", Shape::Text),
    Field::optional("iptablesLockProbeInterval", Shape::Duration),
    Field::optional("iptablesLockTimeout", Shape::Duration),
    Field::optional("iptablesMangleAllowAction", ACCEPT_RETURN),
    Field::optional("iptablesMarkMask", Shape::Number(0, 0xffff_ffff)),
    Field::optional("iptablesNATOutgoingInterfaceFilter", Shape::Text),
    Field::optional("iptablesPostWriteCheckInterval", Shape::Duration),
    Field::optional("iptablesRefreshInterval", Shape::Duration),
    Field::optional("ipv4ElevatedRoutePriority", Shape::Number(1, 0x7fff_fffe)),
    Field::optional("ipv4NormalRoutePriority", Shape::Number(1, 0x7fff_fffe)),
    Field::optional("ipv6ElevatedRoutePriority", Shape::Number(1, 0x7fff_fffe)),
    Field::optional("ipv6NormalRoutePriority", Shape::Number(1, 0x7fff_fffe)),
    Field::optional("ipv6Support", Shape::Bool),
    Field::optional("istioAmbientMode", SWITCH),
    Field::optional("istioDSCPMark", Shape::Number(0, 63)),
    Field::optional("kubeNodePortRanges", Shape::List(&Shape::Ports, 7)),
    Field::optional("liveMigrationRouteConvergenceTime", Shape::Duration),
    Field::optional(
        "localSubnetL2Reachability",
        Shape::AnyCase(&["Disabled", "PodsAndLoadBalancers"]),
    ),
    Field::optional("localSubnetL2ReachabilityRefreshInterval", Shape::Duration),
    Field::optional("logActionRateLimit", Shape::Text),
    Field::optional("logActionRateLimitBurst", Shape::Number(0, u64::MAX)),
    Field::optional("logDebugFilenameRegex", Shape::Text),
    Field::optional("logFilePath", Shape::Text),
    Field::optional("logPrefix", Shape::Text),
    Field::optional("logSeverityFile", LOG_LEVEL),
    Field::optional("logSeverityScreen", LOG_LEVEL),
    Field::optional("logSeveritySys", LOG_LEVEL),
    Field::optional("maxIpsetSize", Shape::Number(0, u64::MAX)),
    Field::optional("metadataAddr", Shape::Text),
    Field::optional("metadataPort", PORT),
    Field::optional("mtuIfacePattern", Shape::Text),
    Field::optional("natOutgoingAddress", Shape::Text),
    Field::optional(
        "natOutgoingExclusions",
        Shape::AnyCase(&["IPPoolsOnly", "IPPoolsAndHostIPs"]),
    ),
    Field::optional("natPortRange", Shape::Ports),
    Field::optional("netlinkTimeout", Shape::Duration),
    Field::optional("nftablesFilterAllowAction", ACCEPT_RETURN),
    Field::optional("nftablesFilterDenyAction", DROP_REJECT),
    Field::optional("nftablesFlowTableDataIfacePattern", Shape::Text),
    Field::optional(
        "nftablesFlowTableOffload",
        Shape::AnyCase(&["Disabled", "All"]),
    ),
    Field::optional("nftablesMangleAllowAction", ACCEPT_RETURN),
    Field::optional("nftablesMarkMask", Shape::Number(0, 0xffff_ffff)),
    Field::optional(
        "nftablesMode",
        Shape::AnyCase(&["Enabled", "Disabled", "Auto"]),
    ),
    Field::optional("nftablesRefreshInterval", Shape::Duration),
    Field::optional("nodeSelector", Shape::NodeSelector),
    Field::optional("openstackRegion", Shape::Text),
    Field::optional("policySyncPathPrefix", Shape::Text),
    Field::optional(
        "programClusterRoutes",
        Shape::AnyCase(&[
            "Enabled",
            "Disabled",
            "EnabledIPIPOnly",
            "EnabledNoEncapOnly",
        ]),
    ),
    Field::optional("prometheusGoMetricsEnabled", Shape::Bool),
    Field::optional("prometheusMetricsCAFile", Shape::Text),
    Field::optional("prometheusMetricsCertFile", Shape::Text),
    Field::optional(
        "prometheusMetricsClientAuth",
        Shape::AnyCase(&[
            "RequireAndVerifyClientCert",
            "RequireAnyClientCert",
            "VerifyClientCertIfGiven",
            "NoClientCert",
        ]),
    ),
    Field::optional("prometheusMetricsEnabled", Shape::Bool),
    Field::optional("prometheusMetricsHost", Shape::Text),
    Field::optional("prometheusMetricsKeyFile", Shape::Text),
    Field::optional("prometheusMetricsPort", PORT),
    Field::optional("prometheusProcessMetricsEnabled", Shape::Bool),
    Field::optional("prometheusWireGuardMetricsEnabled", Shape::Bool),
    Field::optional("removeExternalRoutes", Shape::Bool),
    Field::optional("reportingInterval", Shape::Duration),
    Field::optional("reportingTTL", Shape::Duration),
    Field::optional("requireMTUFile", Shape::Bool),
    Field::optional("routeRefreshInterval", Shape::Duration),
    Field::optional(
        "routeSource",
        Shape::AnyCase(&["CalicoIPAM", "WorkloadIPs"]),
    ),
    Field::optional("routeSyncDisabled", Shape::Bool),
    Field::optional("routeTableRange", TABLE_RANGE),
    Field::optional("routeTableRanges", Shape::List(&TABLE_RANGE, 64)),
    Field::optional(
        "serviceLoopPrevention",
        Shape::AnyCase(&["Drop", "Reject", "Disabled"]),
    ),
    Field::optional("sidecarAccelerationEnabled", Shape::Bool),
    Field::optional("usageReportingEnabled", Shape::Bool),
    Field::optional("usageReportingInitialDelay", Shape::Duration),
    Field::optional("usageReportingInterval", Shape::Duration),
    Field::optional("useInternalDataplaneDriver", Shape::Bool),
    Field::optional("vxlanEnabled", Shape::Bool),
    Field::optional("vxlanMTU", MTU),
    Field::optional("vxlanMTUV6", MTU),
    Field::optional("vxlanPort", PORT),
    Field::optional("vxlanVNI", Shape::Number(0, 0x00ff_ffff)),
    Field::optional("windowsManageFirewallRules", SWITCH),
    Field::optional("wireguardEnabled", Shape::Bool),
    Field::optional("wireguardEnabledV6", Shape::Bool),
    Field::optional("wireguardHostEncryptionEnabled", Shape::Bool),
    Field::optional("wireguardInterfaceName", Shape::InterfaceName),
    Field::optional("wireguardInterfaceNameV6", Shape::InterfaceName),
    Field::optional("wireguardKeepAlive", Shape::Duration),
    Field::optional("wireguardListeningPort", LISTENING_PORT),
    Field::optional("wireguardListeningPortV6", LISTENING_PORT),
    Field::optional("wireguardMTU", MTU),
    Field::optional("wireguardMTUV6", MTU),
    Field::optional("wireguardRoutingRulePriority", Shape::Number(1, 32765)),
    Field::optional("wireguardThreadingEnabled", Shape::Bool),
    Field::optional(
        "workloadSourceSpoofing",
        Shape::AnyCase(&["Disabled", "Any"]),
    ),
    Field::optional("xdpEnabled", Shape::Bool),
    Field::optional("xdpRefreshInterval", Shape::Duration),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_declared_twice() {
        for pair in SPEC.windows(2) {
            let [a, b] = [pair[0].name, pair[1].name].map(str::to_ascii_lowercase);
            assert!(a < b, "{a} stands before {b}");
        }
    }
}
