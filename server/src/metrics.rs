//! All metrics of the server, in one struct that is passed in. `docs/operations.md` lists them.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::error::ServerError;
use crate::refusals::Refusals;

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests by route and code.
    pub requests: IntCounterVec,
    /// Latency of requests by route, in seconds.
    pub request_seconds: HistogramVec,
    /// Bytes of envelopes received.
    pub received_bytes: IntCounter,
    /// Bytes of envelopes sent.
    pub sent_bytes: IntCounter,
    /// Envelopes stored.
    pub envelopes_new: IntCounter,
    /// Envelopes that were there already: uploaded again, or answered "have".
    pub envelopes_deduplicated: IntCounter,
    /// "Have" answers of sessions that ended without a commit.
    pub hits_uncommitted: IntCounter,
    /// Sessions that hold a lease.
    pub sessions: IntGauge,
    /// Connections open.
    pub connections: IntGauge,
    /// Connections and requests that were refused, by reason.
    pub refusals: Refusals,
    /// Requests that are being answered.
    pub requests_in_flight: IntGauge,
    /// Requests that wait until they may be.
    pub requests_waiting: IntGauge,
    /// Memory that bodies of requests take.
    pub body_bytes: IntGauge,
    /// Snapshots committed.
    pub commits: IntCounter,
    /// Time to seal a segment, in seconds.
    pub seal_seconds: Histogram,
    /// Time to write a batch of rows, in seconds.
    pub meta_batch_seconds: Histogram,
    /// Time of the writer's sync, in seconds.
    pub sync_seconds: Histogram,
    /// Errors of the store.
    pub store_errors: IntCounter,
    /// Free bytes of the filesystem.
    pub free_bytes: IntGauge,
    /// Garbage collection.
    pub gc: GcMetrics,
    /// When the last backup of a source was committed, seconds since 1970.
    pub last_backup_timestamp: GaugeVec,
    /// Bytes that a namespace takes of its quota.
    pub namespace_bytes: IntGaugeVec,
    /// Snapshots of a namespace.
    pub namespace_snapshots: IntGaugeVec,
    /// The retention clock.
    pub clock: ClockMetrics,
    /// Following other servers.
    pub replica: ReplicaMetrics,
    /// Damage and scrub.
    pub damage: DamageMetrics,
}

/// Metrics of following primaries, by their names here.
#[derive(Debug)]
pub struct ReplicaMetrics {
    /// How long ago everything was here, in seconds.
    pub lag: IntGaugeVec,
    /// Snapshots whose trees are not here yet.
    pub pending_snapshots: IntGaugeVec,
    /// Bytes of their trees.
    pub pending_bytes: IntGaugeVec,
    /// 1 while a primary is refused because of its history.
    pub refused: IntGaugeVec,
    /// Bytes of envelopes that came.
    pub received_bytes: IntCounterVec,
    /// Cycles that did not go through.
    pub failures: IntCounterVec,
    /// Descriptors that did not come after those that are here.
    pub refused_descriptors: IntCounterVec,
    /// Records that stand behind an epoch that had ended them.
    pub backdated_records: IntCounterVec,
    /// Age of the oldest keys with which this server is enrolled at another, in seconds.
    pub key_age: IntGauge,
    /// Connections that are lent now, by the name of who they are lent to.
    pub lent_connections: IntGaugeVec,
    /// Connections that could not be lent.
    pub lending_failures: IntCounterVec,
}

impl ReplicaMetrics {
    fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        let of_primary = |name, help| gauges_by(r, name, help, "primary");
        Ok(Self {
            lag: of_primary("replica_lag_seconds", "How long ago everything was here")?,
            pending_snapshots: of_primary("replica_pending_snapshots", "Snapshots to fetch")?,
            pending_bytes: of_primary("replica_pending_bytes", "Bytes of trees to fetch")?,
            refused: of_primary("replica_refused", "1 while a primary is refused")?,
            received_bytes: counters(
                r,
                "replica_received_bytes_total",
                "Bytes of envelopes that came from a primary",
                &["primary"],
            )?,
            failures: counters(
                r,
                "replica_failures_total",
                "Cycles of following that did not go through",
                &["primary"],
            )?,
            refused_descriptors: counters(
                r,
                "replica_refused_descriptors_total",
                "Descriptors of a primary that do not come after those here",
                &["primary"],
            )?,
            backdated_records: counters(
                r,
                "replica_backdated_records_total",
                "Refusals of records of an epoch that had ended in a primary's ledger",
                &["primary"],
            )?,
            key_age: gauge(
                r,
                "peer_key_age_seconds",
                "Age of the oldest keys with which this server is enrolled at another",
            )?,
            lent_connections: gauges_by(
                r,
                "feed_connections",
                "Connections that are lent to a server that follows",
                "feed",
            )?,
            lending_failures: counters(
                r,
                "feed_failures_total",
                "Connections that could not be lent",
                &["feed"],
            )?,
        })
    }
}

/// Metrics of damage and scrub.
#[derive(Debug)]
pub struct DamageMetrics {
    /// Envelopes that are known to be damaged now.
    pub known: IntGauge,
    /// Envelopes that were found damaged.
    pub found: IntCounter,
    /// Envelopes that became whole again.
    pub repaired: IntCounter,
    /// Passes of scrub by outcome.
    pub scrubs: IntCounterVec,
    /// Bytes that scrub has hashed.
    pub scrubbed_bytes: IntCounter,
    /// Contradictions that the last pass found and no repair mends.
    pub problems: IntGauge,
    /// Problems that scrub found and had not told.
    pub told_problems: IntCounter,
    /// When the last whole pass was through, seconds since 1970.
    pub last_completed: IntGauge,
}

impl DamageMetrics {
    fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            known: gauge(r, "damaged_envelopes", "Envelopes that are damaged now")?,
            found: counter(r, "damage_found_total", "Envelopes that were found damaged")?,
            repaired: counter(r, "damage_repaired_total", "Envelopes that became whole again")?,
            scrubs: counters(r, "scrub_passes_total", "Passes of scrub by outcome", &["outcome"])?,
            scrubbed_bytes: counter(r, "scrub_bytes_total", "Bytes that scrub has hashed")?,
            problems: gauge(r, "scrub_problems", "What no repair mends, in the last pass")?,
            told_problems: counter(r, "scrub_problems_found_total", "Problems that were news")?,
            last_completed: gauge(
                r,
                "scrub_last_completed_timestamp_seconds",
                "When the last whole pass of scrub was through",
            )?,
        })
    }
}

/// Metrics of the retention clock.
#[derive(Debug)]
pub struct ClockMetrics {
    /// The retention clock, seconds since 1970.
    pub time: IntGauge,
    /// Disagreement of wall clock and machine clock that was not forgiven, in seconds.
    pub skew: IntGauge,
    /// 1 while no lock ends because the retention clock is under suspicion.
    pub frozen: IntGauge,
    /// Time without power that was not counted, in seconds.
    pub off_time_lost: IntGauge,
    /// What the retention clock saw, by kind.
    pub events: IntCounterVec,
}

impl ClockMetrics {
    fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            time: gauge(r, "retention_clock_seconds", "The retention clock")?,
            skew: gauge(r, "clock_skew_seconds", "Disagreement of wall clock and machine clock")?,
            frozen: gauge(r, "clock_frozen", "1 while no lock ends, out of suspicion")?,
            off_time_lost: gauge(
                r,
                "off_time_lost_seconds",
                "Time without power that was not counted",
            )?,
            events: counters(r, "clock_events_total", "What the retention clock saw", &["event"])?,
        })
    }
}

/// Metrics of garbage collection.
#[derive(Debug)]
pub struct GcMetrics {
    /// Cycles by outcome.
    pub cycles: IntCounterVec,
    /// Envelopes that were quarantined.
    pub quarantined: IntCounter,
    /// Bytes of envelopes that were reaped.
    pub reaped_bytes: IntCounter,
    /// Bytes of segments that were dropped.
    pub dropped_bytes: IntCounter,
    /// Bytes of envelopes that were copied out of half-empty segments.
    pub evacuated_bytes: IntCounter,
    /// When the last cycle went through, seconds since 1970.
    pub last_completed: IntGauge,
}

impl GcMetrics {
    fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            cycles: counters(r, "gc_cycles_total", "Collection cycles by outcome", &["outcome"])?,
            quarantined: counter(r, "gc_quarantined_total", "Envelopes that were quarantined")?,
            reaped_bytes: counter(r, "gc_reaped_bytes_total", "Bytes of reaped envelopes")?,
            dropped_bytes: counter(r, "gc_dropped_bytes_total", "Bytes of dropped segments")?,
            evacuated_bytes: counter(
                r,
                "gc_evacuated_bytes_total",
                "Bytes copied out of half-empty segments",
            )?,
            last_completed: gauge(
                r,
                "gc_last_completed_timestamp_seconds",
                "When the last collection cycle went through",
            )?,
        })
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn new() -> Result<Self, ServerError> {
        Self::register(Registry::new())
            .map_err(|error| ServerError::Bug(format!("register metrics: {error}")))
    }

    fn register(registry: Registry) -> Result<Self, prometheus::Error> {
        let r = &registry;
        let requests =
            counters(r, "requests_total", "Requests by route and code", &["route", "code"])?;
        let request_seconds = HistogramVec::new(
            histogram_options("request_seconds", "Latency of requests"),
            &["route"],
        )?;
        r.register(Box::new(request_seconds.clone()))?;
        let received_bytes = counter(r, "received_bytes_total", "Bytes of envelopes received")?;
        let sent_bytes = counter(r, "sent_bytes_total", "Bytes of envelopes sent")?;
        let envelopes_new = counter(r, "envelopes_new_total", "Envelopes stored")?;
        let envelopes_deduplicated =
            counter(r, "envelopes_deduplicated_total", "Envelopes that were there already")?;
        let help = "Have answers of sessions that ended without a commit";
        let hits_uncommitted = counter(r, "hits_uncommitted_total", help)?;
        let sessions = gauge(r, "sessions", "Sessions that hold a lease")?;
        let connections = gauge(r, "connections", "Connections open")?;
        let help = "Connections and requests that were refused";
        let refusals = Refusals::new(counters(r, "refusals_total", help, &["reason"])?);
        let requests_in_flight = gauge(r, "requests_in_flight", "Requests being answered")?;
        let requests_waiting = gauge(r, "requests_waiting", "Requests waiting for a place")?;
        let body_bytes = gauge(r, "body_bytes", "Memory that bodies of requests take")?;
        let commits = counter(r, "commits_total", "Snapshots committed")?;
        let seal_seconds = histogram(r, "seal_seconds", "Time to seal a segment")?;
        let meta_batch_seconds =
            histogram(r, "meta_batch_seconds", "Time to write a batch of rows")?;
        let sync_seconds = histogram(r, "sync_seconds", "Time of the writer's sync")?;
        let store_errors = counter(r, "store_errors_total", "Errors of the store")?;
        let free_bytes = gauge(r, "free_bytes", "Free bytes of the filesystem")?;
        let last_backup_timestamp = GaugeVec::new(
            Opts::new(
                "strongroom_last_backup_timestamp_seconds",
                "When the last backup of a source was committed",
            ),
            &["namespace", "source"],
        )?;
        r.register(Box::new(last_backup_timestamp.clone()))?;
        Ok(Self {
            requests,
            request_seconds,
            received_bytes,
            sent_bytes,
            envelopes_new,
            envelopes_deduplicated,
            hits_uncommitted,
            sessions,
            connections,
            refusals,
            requests_in_flight,
            requests_waiting,
            body_bytes,
            commits,
            seal_seconds,
            meta_batch_seconds,
            sync_seconds,
            store_errors,
            free_bytes,
            gc: GcMetrics::register(r)?,
            last_backup_timestamp,
            namespace_bytes: gauges(r, "namespace_bytes", "Bytes stored for a namespace")?,
            namespace_snapshots: gauges(r, "namespace_snapshots", "Snapshots of a namespace")?,
            clock: ClockMetrics::register(r)?,
            replica: ReplicaMetrics::register(r)?,
            damage: DamageMetrics::register(r)?,
            registry,
        })
    }

    /// Prometheus' text form.
    pub fn render(&self) -> Result<Vec<u8>, ServerError> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .map_err(|error| ServerError::Bug(format!("render metrics: {error}")))?;
        Ok(text)
    }

    /// Counts one request.
    pub fn request_done(&self, route: &str, code: &str, elapsed: Duration) {
        self.requests.with_label_values(&[route, code]).inc();
        self.request_seconds.with_label_values(&[route]).observe(elapsed.as_secs_f64());
    }
}

fn full_name(name: &str) -> String {
    format!("strongroom_{name}")
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::new(full_name(name), help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(Opts::new(full_name(name), help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::new(full_name(name), help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Gauges by namespace.
fn gauges(registry: &Registry, name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    gauges_by(registry, name, help, "namespace")
}

fn gauges_by(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(Opts::new(full_name(name), help), &[label])?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    let metric = Histogram::with_opts(histogram_options(name, help))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram_options(name: &str, help: &str) -> HistogramOpts {
    let buckets =
        vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];
    HistogramOpts::new(full_name(name), help).buckets(buckets)
}
