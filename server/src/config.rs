//! Configuration: a TOML file, every key of which has a default, and unknown keys are errors.
//!
//! `docs/operations.md` explains each key. Periods are texts such as `30d` or `10years`, sizes
//! texts such as `256MiB`; both are checked here, once.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use strongroom_protocol::limits::{BODY_BYTES_MIN, HAVE_MAX_COUNT, LENT_CONNECTIONS_MAX};
use strongroom_protocol::policy::{Policy, Quota};
use strongroom_protocol::retention::{RetentionMode, RetentionRule};

use crate::durable;
use crate::error::ServerError;
use crate::slow_peer::Floor;
pub use crate::units::{Period, Size};

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
    /// Lending connections to servers that follow this one.
    pub feed: FeedConfig,
    /// How long keys are used.
    pub keys: KeysConfig,
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
    /// Cache for blocks and indexes; 0 is as large as the index needs it.
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

/// How long keys are used.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// This server's TLS key is replaced after so long; 0 is never.
    pub tls_age: Period,
    /// A client's keys of this age do nothing any more but be rolled over; 0 is no bound.
    pub principal_age: Period,
    /// Its keys at other servers are rolled over before they are so old; 0 is never.
    pub peer_age: Period,
}

/// Lending connections to servers that follow this one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeedConfig {
    /// So many connections are kept lent to each.
    pub connections: u32,
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
    /// Other numbers of bytes a second at times of the day.
    pub schedule: Vec<RateRow>,
    /// A primary that says nothing, or next to nothing, for so long is given up for now.
    pub patience: Period,
    /// No further entries of a primary are taken over while so many snapshots wait for their trees.
    pub pending_max: u32,
}

/// A number of bytes a second for a time of the day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateRow {
    /// It begins here.
    pub from: TimeOfDay,
    /// It ends before this; earlier than the begin means on the next day.
    pub to: TimeOfDay,
    /// 0 is no bound.
    pub bytes_per_second: Size,
}

/// How many bytes a second at which time of the day.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    schedule: Vec<RateRow>,
    otherwise: u64,
}

/// A time of the day, written `08:00`; `24:00` is the end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct TimeOfDay {
    minutes: u64,
}

/// Limits against hostile or broken peers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitConfig {
    /// Connections at a time.
    pub connections: u32,
    /// Connections that a principal may have at a time.
    pub connections_per_principal: u32,
    /// Requests in flight at a time; a principal gets an eighth of them.
    pub requests: u32,
    /// A connection whose key is not enrolled ends after this.
    pub stranger: Period,
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
    /// A body must bring, and an answer be taken at, so many bytes a second; 0 is no bound.
    pub rate_min: Size,
    /// Over this time of waiting.
    pub rate_window: Period,
    /// A request may take so long in all, and its answer as long again.
    pub request: Period,
    /// Memory for bodies of requests; a principal gets a quarter of it.
    pub body_bytes: Size,
    /// "Have" answers that a principal may leave without a commit, a day.
    pub hits_uncommitted: u64,
    /// "Have" questions a second that a session may ask on average, in digests.
    pub have_per_second: u32,
    /// How long a shutdown waits for requests under way.
    pub shutdown: Period,
}

const DAY: u64 = 24 * 3600;
const DAY_MINUTES: u64 = 24 * 60;
/// Least bytes a second: with less, a connection of several is silent for longer than peers wait.
const RATE_MIN: u64 = 64 << 10;
/// The least rate of peers may not be set higher.
const RATE_FLOOR_MAX: u64 = 1 << 20;

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
            feed: FeedConfig::default(),
            keys: KeysConfig::default(),
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
            block_cache: Size(0),
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
        Self {
            poll_interval: Period(Duration::from_millis(500)),
            connections: 4,
            bytes_per_second: Size(0),
            schedule: Vec::new(),
            patience: Period::seconds(60),
            pending_max: 4096,
        }
    }
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self { connections: 4 }
    }
}

impl Default for KeysConfig {
    /// Clients roll their keys over after a year, less a month: two years are for those that were
    /// off for long.
    fn default() -> Self {
        let year = Period::seconds(365 * DAY);
        Self { tls_age: year, principal_age: Period::seconds(2 * 365 * DAY), peer_age: year }
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_principal: 64,
            requests: 512,
            stranger: Period::seconds(30),
            sessions_per_principal: 8,
            lease: Period::seconds(600),
            handshake: Period::seconds(10),
            head: Period::seconds(75),
            body_idle: Period::seconds(60),
            rate_min: Size(16 << 10),
            rate_window: Period::seconds(120),
            request: Period::seconds(6 * 3600),
            body_bytes: Size(256 << 20),
            hits_uncommitted: 100_000_000,
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
        if config.store.idle_seal.0 < Duration::from_secs(1) {
            return Err("store.idle_seal: needs at least 1s".into());
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
        let ages = [config.keys.tls_age, config.keys.principal_age, config.keys.peer_age];
        if ages.iter().any(|age| (1..DAY).contains(&age.0.as_secs())) {
            return Err("keys: each age must be 0, for none, or at least 1d".into());
        }
        config.replica.check()?;
        if config.feed.connections == 0 || config.feed.connections > LENT_CONNECTIONS_MAX {
            return Err("feed.connections: must be between 1 and 16".into());
        }
        config.limits.check()?;
        Ok(config)
    }
}

impl LimitConfig {
    /// The least rate of bodies and answers.
    pub fn floor(&self) -> Floor {
        Floor { bytes_per_second: self.rate_min.0, window: self.rate_window.0 }
    }

    fn check(&self) -> Result<(), String> {
        let periods = [self.lease, self.handshake, self.stranger, self.head, self.body_idle];
        let more = [self.rate_window, self.request];
        if periods.iter().chain(&more).any(|period| period.0 < Duration::from_secs(1)) {
            return Err("limits: lease, handshake, stranger, head, body_idle, rate_window and \
                        request need at least 1s"
                .into());
        }
        if self.have_per_second < HAVE_MAX_COUNT {
            return Err(format!("limits.have_per_second: needs at least {HAVE_MAX_COUNT}"));
        }
        let counts = [
            self.connections,
            self.connections_per_principal,
            self.requests,
            self.sessions_per_principal,
        ];
        if counts.contains(&0) || self.hits_uncommitted == 0 {
            return Err("limits: connections, connections_per_principal, requests, \
                        sessions_per_principal and hits_uncommitted must not be 0"
                .into());
        }
        if self.rate_min.0 > RATE_FLOOR_MAX {
            return Err("limits.rate_min: at most 1MiB, or honest lines are cut off".into());
        }
        if self.body_bytes.0 < BODY_BYTES_MIN {
            return Err("limits.body_bytes: needs at least 16MiB".into());
        }
        Ok(())
    }
}

impl ReplicaConfig {
    fn check(&self) -> Result<(), String> {
        if self.poll_interval.0 < Duration::from_millis(10) {
            return Err("replica.poll_interval: needs at least 10ms".into());
        }
        if !(1..=16).contains(&self.connections) {
            return Err("replica.connections: must be between 1 and 16".into());
        }
        if self.patience.0 < Duration::from_secs(1) {
            return Err("replica.patience: needs at least 1s".into());
        }
        if !(256..=1 << 20).contains(&self.pending_max) {
            return Err("replica.pending_max: must be between 256 and 1048576".into());
        }
        let rates = self.schedule.iter().map(|row| row.bytes_per_second);
        if rates.chain([self.bytes_per_second]).any(|rate| (1..RATE_MIN).contains(&rate.0)) {
            return Err("replica: bytes_per_second must be 0, for no bound, or at least 64KiB: \
                        below, the primary takes this server for one that has gone away"
                .into());
        }
        for (index, row) in self.schedule.iter().enumerate() {
            if row.from == row.to || row.from.minutes == DAY_MINUTES {
                return Err("replica.schedule: a row must not begin where it ends; for the whole \
                            day, set bytes_per_second"
                    .into());
            }
            if self.schedule.iter().skip(index + 1).any(|other| row.overlaps(other)) {
                return Err("replica.schedule: rows must not overlap".into());
            }
        }
        Ok(())
    }

    /// How many bytes a second when.
    pub fn rates(&self) -> Rates {
        Rates { schedule: self.schedule.clone(), otherwise: self.bytes_per_second.0 }
    }
}

impl RateRow {
    fn contains(&self, minutes: u64) -> bool {
        let (from, to) = (self.from.minutes, self.to.minutes);
        match from < to {
            true => (from..to).contains(&minutes),
            false => minutes >= from || minutes < to,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.from.minutes) || other.contains(self.from.minutes)
    }
}

impl Rates {
    /// Bytes a second at a time, in milliseconds since 1970; 0 is no bound.
    pub fn at_ms(&self, wall_ms: u64) -> u64 {
        let minutes = wall_ms / 60_000 % DAY_MINUTES;
        let row = self.schedule.iter().find(|row| row.contains(minutes));
        row.map_or(self.otherwise, |row| row.bytes_per_second.0)
    }

    /// Whether there is never a bound.
    pub fn is_unbounded(&self) -> bool {
        self.otherwise == 0 && self.schedule.iter().all(|row| row.bytes_per_second.0 == 0)
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a time of the day such as 08:00");
        let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
        let number = |text: &str| match text.len() {
            2 if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse::<u64>().ok(),
            _ => None,
        };
        let (hours, minutes) = (number(hours), number(minutes));
        let (hours, minutes) = hours.zip(minutes).ok_or_else(bad)?;
        let all = hours * 60 + minutes;
        if minutes < 60 && all <= DAY_MINUTES { Ok(Self { minutes: all }) } else { Err(bad()) }
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
        assert!(Config::parse("[keys]\ntls_age = \"23h\"").is_err());
        assert!(Config::parse("[keys]\npeer_age = \"23h\"").is_err());
        assert!(Config::parse("[keys]\ntls_age = \"0s\"").is_ok());
        assert!(Config::parse("[scrub]\ninterval = \"1s\"").is_err());
        assert!(Config::parse("[scrub]\npace = 2").is_err());
        assert!(Config::parse("[replica]\nconnections = 17").is_err());
        assert!(Config::parse("[replica]\npoll_interval = \"0s\"").is_err());
        assert!(Config::parse("[replica]\nbytes_per_second = \"1KiB\"").is_err());
        assert!(Config::parse("[replica]\npatience = \"1ms\"").is_err());
        assert!(Config::parse("[store]\nsegment = \"12 parsecs\"").is_err());
        for limit in [
            "connections = 0",
            "connections_per_principal = 0",
            "stranger = \"0s\"",
            "rate_window = \"1ms\"",
            "rate_min = \"2MiB\"",
            "request = \"0s\"",
            "body_bytes = \"1MiB\"",
            "hits_uncommitted = 0",
        ] {
            assert!(Config::parse(&format!("[limits]\n{limit}")).is_err(), "{limit}");
        }
    }

    #[test]
    fn a_schedule_says_how_much_at_which_time_of_the_day() {
        let parse = |rows: &str| {
            let text = format!("[replica]\nbytes_per_second = \"8MiB\"\nschedule = [{rows}]");
            Config::parse(&text).map(|config| config.replica.rates())
        };
        let row = |from: &str, to: &str, rate: &str| {
            format!("{{ from = \"{from}\", to = \"{to}\", bytes_per_second = \"{rate}\" }}, ")
        };
        let rows = row("08:00", "18:30", "2MiB") + &row("22:00", "06:00", "0");
        let rates = parse(&rows).unwrap();
        let at = |hours: u64, minutes: u64| {
            let day = 20_000 * 24 * 3600 * 1000;
            rates.at_ms(day + (hours * 60 + minutes) * 60_000 + 59_999)
        };
        assert_eq!(
            [at(7, 59), at(8, 0), at(18, 29), at(18, 30)],
            [8 << 20, 2 << 20, 2 << 20, 8 << 20]
        );
        assert_eq!(
            [at(21, 59), at(22, 0), at(0, 0), at(5, 59), at(6, 0)],
            [8 << 20, 0, 0, 0, 8 << 20]
        );
        assert!(!rates.is_unbounded() && Rates::default().is_unbounded());
        for bad in [
            row("8:00", "18:00", "2MiB"),
            row("08:00", "24:01", "2MiB"),
            row("08:60", "18:00", "2MiB"),
            row("+8:00", "18:00", "2MiB"),
            row("08:00", "08:00", "2MiB"),
            row("24:00", "08:00", "2MiB"),
            row("08:00", "18:00", "1B"),
            row("08:00", "18:00", "2MiB") + &row("17:59", "19:00", "1MiB"),
            row("22:00", "06:00", "2MiB") + &row("05:00", "07:00", "1MiB"),
            "{ from = \"08:00\", bytes_per_second = \"2MiB\" }".into(),
            row("08:00", "18:00", "2MiB").replace(" }", ", zone = \"UTC\" }"),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
        assert!(parse(&row("00:00", "24:00", "2MiB")).is_ok());
    }
}
