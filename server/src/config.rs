//! Configuration: a TOML file, every key of which has a default, and unknown keys are errors.
//!
//! `docs/operations.md` explains each key. Periods are texts such as `30d` or `10years`, sizes
//! texts such as `256MiB`; both are checked here, once.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use strongroom_protocol::limits::HAVE_MAX_COUNT;
use strongroom_protocol::policy::{Policy, Quota};
use strongroom_protocol::retention::{RetentionMode, RetentionRule};

use crate::durable;
use crate::error::ServerError;

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the listener for clients.
    pub listen: SocketAddr,
    /// Address of the listener for Prometheus and probes; plain HTTP, so keep it on loopback.
    pub metrics: SocketAddr,
    /// Retention policy of namespaces that are made from now on.
    pub retention: RetentionConfig,
    /// The store.
    pub store: StoreConfig,
    /// Garbage collection.
    pub gc: GcConfig,
    /// Hashing all that is stored.
    pub scrub: ScrubConfig,
    /// Following other servers.
    pub replica: ReplicaConfig,
    /// Limits against hostile or broken peers.
    pub limits: LimitConfig,
}

/// Retention policy of new namespaces.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// `compliance` (lifted by nobody) or `governance`.
    pub mode: RetentionMode,
    /// No snapshot is locked for less.
    pub minimum: Period,
    /// For clients that ask for nothing.
    pub default: Period,
    /// More is refused.
    pub maximum: Period,
    /// Bytes that a namespace may hold; 0 is no bound.
    pub quota_bytes: Size,
    /// Snapshots that a namespace may hold; 0 is no bound.
    pub quota_snapshots: u64,
}

/// The store's sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A segment is sealed at this size.
    pub segment: Size,
    /// Small sessions' envelopes are folded into a segment at this size.
    pub inbox_fold: Size,
    /// Cache for blocks and indexes.
    pub block_cache: Size,
    /// Uploads stop when less than this, and what is under way, would be free.
    pub reserve: Size,
    /// An open segment that gets nothing for so long is sealed.
    pub idle_seal: Period,
}

/// Garbage collection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcConfig {
    /// A cycle begins so long after the one before began.
    pub interval: Period,
    /// What is dead is kept in quarantine for so long, at least, before it is gone.
    pub quarantine: Period,
    /// Share of the time that a cycle works; for the rest it sleeps.
    pub pace: f64,
}

/// Hashing all that is stored.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// A pass begins so long after the one before was through.
    pub interval: Period,
    /// Share of the time that a pass works; for the rest it sleeps.
    pub pace: f64,
}

/// Following other servers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicaConfig {
    /// A primary that had nothing new is asked again after so long.
    pub poll_interval: Period,
    /// Envelopes are fetched over so many connections at a time.
    pub connections: u32,
    /// Bytes of envelopes that are fetched a second at most, from all primaries; 0 is no bound.
    pub bytes_per_second: Size,
}

/// Limits against hostile or broken peers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// Connections at a time.
    pub connections: u32,
    /// Sessions that a principal may hold at a time.
    pub sessions_per_principal: u32,
    /// A session ends when it is silent for so long.
    pub lease: Period,
    /// A TLS handshake must be done in this time.
    pub handshake: Period,
    /// The head of a request must arrive in this time; an idle connection is closed after it.
    pub head: Period,
    /// A body must bring bytes at least this often.
    pub body_idle: Period,
    /// "Have" questions a second that a session may ask on average, in digests.
    pub have_per_second: u32,
    /// How long a shutdown waits for requests under way.
    pub shutdown: Period,
}

/// A period of time, written `90s`, `30d`, `10years`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

/// A number of bytes, written `256MiB` or `1GiB`, or without a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

const DAY: u64 = 24 * 3600;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 7444)),
            retention: RetentionConfig::default(),
            store: StoreConfig::default(),
            gc: GcConfig::default(),
            scrub: ScrubConfig::default(),
            replica: ReplicaConfig::default(),
            limits: LimitConfig::default(),
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            mode: RetentionMode::Compliance,
            minimum: Period::seconds(DAY),
            default: Period::seconds(30 * DAY),
            maximum: Period::seconds(30 * 365 * DAY),
            quota_bytes: Size(0),
            quota_snapshots: 0,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            segment: Size(256 << 20),
            inbox_fold: Size(64 << 20),
            block_cache: Size(64 << 20),
            reserve: Size(1 << 30),
            idle_seal: Period::seconds(60),
        }
    }
}

impl Default for GcConfig {
    fn default() -> Self {
        Self { interval: Period::seconds(DAY), quarantine: Period::seconds(7 * DAY), pace: 0.5 }
    }
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { interval: Period::seconds(30 * DAY), pace: 0.2 }
    }
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self { poll_interval: Period::seconds(1), connections: 4, bytes_per_second: Size(0) }
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            connections: 1024,
            sessions_per_principal: 8,
            lease: Period::seconds(600),
            handshake: Period::seconds(10),
            head: Period::seconds(75),
            body_idle: Period::seconds(60),
            have_per_second: 500_000,
            shutdown: Period::seconds(20),
        }
    }
}

impl Config {
    /// Reads and checks a file; without one, the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ServerError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = String::from_utf8(durable::read(path)?)
            .map_err(|_| ServerError::Operator(format!("{}: not UTF-8", path.display())))?;
        Self::parse(&text)
            .map_err(|message| ServerError::Operator(format!("{}: {message}", path.display())))
    }

    /// Parses and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.retention.policy().check().map_err(|error| error.to_string())?;
        if config.store.segment.0 < 1 << 20 || config.store.segment.0 > 4 << 30 {
            return Err("store.segment: must be between 1MiB and 4GiB".into());
        }
        let limits = &config.limits;
        let periods = [limits.lease, limits.handshake, limits.head, limits.body_idle];
        if periods.iter().any(|period| period.0 < Duration::from_secs(1)) {
            return Err("limits: lease, handshake, head and body_idle need at least 1s".into());
        }
        if config.store.idle_seal.0 < Duration::from_secs(1) {
            return Err("store.idle_seal: needs at least 1s".into());
        }
        if limits.have_per_second < HAVE_MAX_COUNT {
            return Err(format!("limits.have_per_second: needs at least {HAVE_MAX_COUNT}"));
        }
        if config.gc.interval.0 < Duration::from_secs(60) {
            return Err("gc.interval: needs at least 1m".into());
        }
        if config.gc.quarantine.0 < Duration::from_secs(DAY) {
            return Err("gc.quarantine: needs at least 1d".into());
        }
        if !(0.01..=1.0).contains(&config.gc.pace) {
            return Err("gc.pace: must be between 0.01 and 1".into());
        }
        if config.scrub.interval.0 < Duration::from_secs(60) {
            return Err("scrub.interval: needs at least 1m".into());
        }
        if !(0.01..=1.0).contains(&config.scrub.pace) {
            return Err("scrub.pace: must be between 0.01 and 1".into());
        }
        if config.replica.poll_interval.0 < Duration::from_millis(10) {
            return Err("replica.poll_interval: needs at least 10ms".into());
        }
        if !(1..=16).contains(&config.replica.connections) {
            return Err("replica.connections: must be between 1 and 16".into());
        }
        if config.limits.connections == 0 || config.limits.sessions_per_principal == 0 {
            return Err("limits: connections and sessions_per_principal must not be 0".into());
        }
        Ok(config)
    }
}

impl RetentionConfig {
    /// As a policy.
    pub fn policy(&self) -> Policy {
        let quota = Quota { bytes: self.quota_bytes.0, snapshots: self.quota_snapshots };
        let rule = RetentionRule {
            mode: self.mode,
            minimum_seconds: self.minimum.0.as_secs(),
            default_seconds: self.default.0.as_secs(),
            maximum_seconds: self.maximum.0.as_secs(),
            after_date_seconds: 0,
        };
        Policy { quota, ..Policy::of_rule(rule) }
    }
}

impl Period {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            format!("\"{text}\" is not a period such as 90s, 30d, 10years: {error}")
        })
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a size such as 512KiB, 256MiB, 1GiB");
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(bad()),
        };
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keys_and_refuses_unknown_ones() {
        let text = "listen = \"127.0.0.1:1\"\n[retention]\ndefault = \"90d\"\n\
                    [store]\nsegment = \"128MiB\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.retention.default, Period::seconds(90 * DAY));
        assert_eq!(config.store.segment, Size(128 << 20));
        assert!(Config::parse("lisen = \"127.0.0.1:1\"").is_err());
        assert!(Config::parse("[retention]\nminimum = \"2years\"").is_err());
        assert!(Config::parse("[gc]\nquarantine = \"23h\"").is_err());
        assert!(Config::parse("[gc]\npace = 0").is_err());
        assert!(Config::parse("[scrub]\ninterval = \"1s\"").is_err());
        assert!(Config::parse("[scrub]\npace = 2").is_err());
        assert!(Config::parse("[replica]\nconnections = 17").is_err());
        assert!(Config::parse("[replica]\npoll_interval = \"0s\"").is_err());
        assert!(Config::parse("[store]\nsegment = \"12 parsecs\"").is_err());
    }
}
