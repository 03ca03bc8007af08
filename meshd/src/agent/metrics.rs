//! Prometheus metrics: Felix's names where it has one, `meshd_` for the rest.
//!
//! Read on scrape from the same answers that `meshctl status` and `meshctl peers` show.

use std::time::Duration;

use dataplane::Tally;
use model::status::{PeerStatus, Status};
use prometheus::{Encoder, Gauge, GaugeVec, IntCounter, IntGauge, Opts, Registry, TextEncoder};

/// What the loop counts by itself.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Passes over the plan that failed somewhere.
    pub(crate) dataplane_failures: IntCounter,
    /// Events that the brain was told.
    pub(crate) events: IntCounter,
    /// What became of established connections.
    pub(crate) connections: ConnectionCounters,
}

/// What became of established connections; each clone is the same counters.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionCounters {
    /// How often all were judged.
    rechecks: IntCounter,
    /// How often that failed.
    pub(crate) failures: IntCounter,
    /// Those that were cut.
    revoked: IntCounter,
    /// Those that had been cut and may go on.
    restored: IntCounter,
    /// How many there were the last time.
    checked: IntGauge,
    /// How long it took the last time.
    seconds: Gauge,
}

impl ConnectionCounters {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            rechecks: IntCounter::new(
                "meshd_connection_rechecks_total",
                "How often policy was asked about every established connection.",
            )?,
            failures: IntCounter::new(
                "meshd_connection_recheck_failures_total",
                "How often established connections could not be judged.",
            )?,
            revoked: IntCounter::new(
                "meshd_connections_revoked_total",
                "Established connections that policy allowed once and that were cut.",
            )?,
            restored: IntCounter::new(
                "meshd_connections_restored_total",
                "Connections that had been cut and that policy allows again.",
            )?,
            checked: IntGauge::new(
                "meshd_connections_checked",
                "Established connections at the last recheck.",
            )?,
            seconds: Gauge::new(
                "meshd_connection_recheck_seconds",
                "How long the last recheck took.",
            )?,
        })
    }

    /// Notes a recheck.
    pub(crate) fn note(&self, tally: &Tally, taken: Duration) {
        self.rechecks.inc();
        self.revoked.inc_by(tally.set);
        self.restored.inc_by(tally.cleared);
        self.checked
            .set(i64::try_from(tally.seen).unwrap_or(i64::MAX));
        self.seconds.set(taken.as_secs_f64());
    }

    fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.rechecks.clone()))?;
        registry.register(Box::new(self.failures.clone()))?;
        registry.register(Box::new(self.revoked.clone()))?;
        registry.register(Box::new(self.restored.clone()))?;
        registry.register(Box::new(self.checked.clone()))?;

        registry.register(Box::new(self.seconds.clone()))
    }
}

impl Counters {
    /// Starts every counter at zero.
    pub(crate) fn new() -> prometheus::Result<Self> {
        Ok(Self {
            dataplane_failures: IntCounter::new(
                "felix_int_dataplane_failures",
                "Number of times dataplane updates failed and will be retried.",
            )?,
            events: IntCounter::new(
                "felix_calc_graph_output_events",
                "Number of events processed.",
            )?,
            connections: ConnectionCounters::new()?,
        })
    }
}

/// Renders everything in Prometheus' text format.
pub(crate) fn render(
    counters: &Counters,
    status: &Status,
    peers: &[PeerStatus],
    unix_now: u64,
) -> prometheus::Result<String> {
    let registry = Registry::new();
    registry.register(Box::new(counters.dataplane_failures.clone()))?;
    registry.register(Box::new(counters.events.clone()))?;
    counters.connections.register(&registry)?;
    agent(&registry, status, peers)?;
    wireguard(&registry, status, peers, unix_now)?;

    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;

    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn agent(registry: &Registry, status: &Status, peers: &[PeerStatus]) -> prometheus::Result<()> {
    let resync = match (status.store_connected, status.in_sync) {
        (_, true) => 3,
        (true, false) => 2,
        (false, false) => 1,
    };
    gauge(
        registry,
        "felix_resync_state",
        "1 wait, 2 resync, 3 in sync.",
        resync,
    )?;
    let pods = i64::try_from(status.pods.len()).unwrap_or(i64::MAX);
    gauge(
        registry,
        "felix_active_local_endpoints",
        "Pods of this node.",
        pods,
    )?;
    let hosts = i64::try_from(peers.len() + 1).unwrap_or(i64::MAX);
    gauge(
        registry,
        "felix_cluster_num_hosts",
        "Members of the mesh.",
        hosts,
    )?;
    let converged = i64::from(status.converged);
    gauge(
        registry,
        "meshd_converged",
        "1 when the machine matches the plan.",
        converged,
    )?;
    let incomplete = i64::try_from(status.incomplete.len()).unwrap_or(i64::MAX);
    gauge(
        registry,
        "meshd_incomplete_rows",
        "Rows of the plan that wait for what they stand on.",
        incomplete,
    )?;
    let connected = i64::from(status.store_connected);
    gauge(
        registry,
        "meshd_store_connected",
        "1 when the store can be reached.",
        connected,
    )?;

    let states = family(registry, "meshd_peers", "Peers by state.", &["state"])?;
    for (state, count) in &status.peers {
        states
            .with_label_values(&[state.as_str()])
            .set(*count as f64);
    }
    let phase = family(
        registry,
        "meshd_phase",
        "1 for the phase this node is in.",
        &["phase"],
    )?;
    phase
        .with_label_values(&[format!("{:?}", status.encryption.phase).as_str()])
        .set(1.0);

    Ok(())
}

fn wireguard(
    registry: &Registry,
    status: &Status,
    peers: &[PeerStatus],
    unix_now: u64,
) -> prometheus::Result<()> {
    let host = status.node.as_str();
    let labels = &["hostname", "public_key", "iface", "listen_port"];
    let meta = family(registry, "wireguard_meta", "Tunnel devices.", labels)?;
    for device in &status.encryption.devices {
        let (key, port) = (device.key.to_string(), device.port.to_string());
        meta.with_label_values(&[host, &key, &device.name, &port])
            .set(1.0);
    }

    let own = status
        .encryption
        .devices
        .first()
        .map(|device| device.key.to_string());
    let own = own.unwrap_or_default();
    let labels = &["hostname", "public_key", "peer_key", "peer_endpoint"];
    let help = "Unix time of the last handshake with the peer.";
    let handshake = family(registry, "wireguard_latest_handshake_seconds", help, labels)?;
    let sent = family(
        registry,
        "wireguard_bytes_sent",
        "Bytes sent to the peer.",
        labels,
    )?;
    let received = family(
        registry,
        "wireguard_bytes_rcvd",
        "Bytes from the peer.",
        labels,
    )?;
    for peer in peers {
        let Some(key) = peer.key else { continue };
        let endpoint = peer
            .endpoint
            .map(|endpoint| endpoint.to_string())
            .unwrap_or_default();
        let key = key.to_string();
        let labels = [host, own.as_str(), key.as_str(), endpoint.as_str()];
        let at = peer
            .handshake_age_seconds
            .map_or(0, |age| unix_now.saturating_sub(age));
        handshake.with_label_values(&labels).set(at as f64);
        sent.with_label_values(&labels).set(peer.sent_bytes as f64);
        received
            .with_label_values(&labels)
            .set(peer.received_bytes as f64);
    }

    Ok(())
}

fn gauge(registry: &Registry, name: &str, help: &str, value: i64) -> prometheus::Result<()> {
    let gauge = IntGauge::new(name, help)?;
    gauge.set(value);

    registry.register(Box::new(gauge))
}

fn family(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    let family = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;

    Ok(family)
}
