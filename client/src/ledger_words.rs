//! Ledger entries in plain words.

use strongroom_protocol::entry::{ClockEvent, ClosedCause, Entry, Event, Wish};
use strongroom_protocol::id::{RecordDigest, to_hex};
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::retention::{FOREVER, Lock, RetentionRule};

use crate::arguments::utc_time;

/// The word for an event, for programs.
pub fn kind_of(event: &Event) -> &'static str {
    match event {
        Event::Initialised { .. } => "initialised",
        Event::TokenMade { .. } => "token_made",
        Event::NamespaceCreated { .. } => "namespace_created",
        Event::Enrolled { .. } => "enrolled",
        Event::Revoked { .. } => "revoked",
        Event::Committed { .. } => "committed",
        Event::Forgotten { .. } => "forgotten",
        Event::Refused { .. } => "refused",
        Event::RecordRead { .. } => "record_read",
        Event::Retained { .. } => "retained",
        Event::HoldPlaced { .. } => "hold_placed",
        Event::HoldReleased { .. } => "hold_released",
        Event::PolicySet { .. } => "policy_set",
        Event::NamespaceDropped => "namespace_dropped",
        Event::Proposed { .. } => "proposed",
        Event::Decided { .. } => "decided",
        Event::Clock { .. } => "clock",
        Event::CollectionIntended { .. } => "collection_intended",
        Event::Collected { .. } => "collected",
        Event::SegmentDropIntended { .. } => "segment_drop_intended",
        Event::SegmentDropped { .. } => "segment_dropped",
        Event::Configured { .. } => "configured",
        Event::PrimaryAdded { .. } => "primary_added",
        Event::FeedAdded { .. } => "feed_added",
        Event::PrimaryFollowed { .. } => "primary_followed",
        Event::PrimaryRefused { .. } => "primary_refused",
        Event::PrimaryRemoved { .. } => "primary_removed",
        Event::DescriptorTaken { .. } => "descriptor_taken",
        Event::DescriptorRefused { .. } => "descriptor_refused",
        Event::Exported { .. } => "exported",
        Event::Imported { .. } => "imported",
        Event::FilterSet { .. } => "filter_set",
        Event::NamespaceReadmitted { .. } => "namespace_readmitted",
        Event::NotCarriedOut { .. } => "not_carried_out",
        Event::KeysRolled { .. } => "keys_rolled",
        Event::TlsKeyRolled { .. } => "tls_key_rolled",
        Event::PeerKeyFollowed { .. } => "peer_key_followed",
        Event::RecordRefused { .. } => "record_refused",
        Event::Damaged { .. } => "damaged",
        Event::Repaired { .. } => "repaired",
        Event::Scrubbed { .. } => "scrubbed",
    }
}

/// The snapshot that an event is about.
pub fn record_of(event: &Event) -> Option<RecordDigest> {
    match event {
        Event::Committed { record, .. }
        | Event::Forgotten { record, .. }
        | Event::Refused { record, .. }
        | Event::RecordRead { record }
        | Event::Retained { record, .. }
        | Event::HoldPlaced { record, .. }
        | Event::HoldReleased { record, .. }
        | Event::RecordRefused { record, .. } => Some(*record),
        _ => None,
    }
}

/// What keeps a snapshot, as "in compliance mode until ...".
pub fn lock_words(lock: &Lock) -> String {
    let mode = lock.mode.name();
    let held = if lock.is_held { ", and under legal hold" } else { "" };
    if lock.until_seconds == FOREVER {
        return format!("in {mode} mode without end{held}");
    }
    let end = utc_of_seconds(lock.until_seconds);
    let date = match lock.until_wall_seconds {
        0 => String::new(),
        seconds => format!(" and, by the wall clock, {}", utc_of_seconds(seconds)),
    };
    format!("in {mode} mode until {end} of the retention clock{date}{held}")
}

/// An event as a sentence without its subject, who did it.
pub fn words_of(entry: &Entry) -> String {
    match &entry.event {
        Event::Initialised { repository, .. } => format!("made the repository {repository}"),
        Event::TokenMade { role, expires_seconds, .. } => {
            format!("made a token for role {role}, good until {}", utc_of_seconds(*expires_seconds))
        }
        Event::NamespaceCreated { rule, .. } => {
            format!("made the namespace, with {}", rule_words(rule))
        }
        Event::Enrolled { principal, role, .. } => format!("enrolled {principal} as {role}"),
        Event::Revoked { principal } => format!("revoked {principal}"),
        Event::Committed { commit, record, sequence, lock, .. } => format!(
            "committed snapshot {record} (number {sequence} of its source, commit {commit}), \
             locked {}",
            lock_words(lock)
        ),
        Event::Forgotten { record, commit, lock, proposal: 0 } => format!(
            "forgot snapshot {record} (commit {commit}), which nothing kept: it had been locked {}",
            lock_words(lock)
        ),
        Event::Forgotten { record, commit, lock, proposal } => format!(
            "forgot snapshot {record} (commit {commit}), lifted by proposal {proposal}: it was \
             locked {}",
            lock_words(lock)
        ),
        Event::Refused { record, wish, lock } => {
            let wish = match wish {
                Wish::Forget => "to forget",
                Wish::ForgetGovernance => "to forget, against governance,",
                Wish::Shorten => "to unlock earlier",
            };
            format!("was refused {wish} snapshot {record}: it is locked {}", lock_words(lock))
        }
        Event::RecordRead { record } => format!("read the record of snapshot {record}"),
        later => later_words(later),
    }
}

fn later_words(event: &Event) -> String {
    match event {
        Event::Retained { record, lock } => {
            format!("extended the lock of snapshot {record}: locked {}", lock_words(lock))
        }
        Event::HoldPlaced { record, reason } => {
            format!("placed a legal hold on snapshot {record} (reason {})", short(reason))
        }
        Event::HoldReleased { record, reason } => {
            format!("released the legal hold on snapshot {record} (reason {})", short(reason))
        }
        Event::PolicySet { policy, rule, quota } => format!(
            "set policy {}: {}, quota {} bytes and {} snapshots",
            short(policy),
            rule_words(rule),
            quota.bytes,
            quota.snapshots
        ),
        Event::NamespaceDropped => "dropped the namespace, which held no snapshot".into(),
        Event::Proposed { operation, parameters, expires_ms, .. } => {
            let operation = match operation {
                1 => "to forget a snapshot against governance",
                2 => "to lower the policy",
                3 => "to count time without power",
                4 => "to end the suspicion of the retention clock",
                _ => "an operation of a newer server",
            };
            let until = utc_time(i64::try_from(*expires_ms).unwrap_or(i64::MAX));
            format!("proposed {operation} (parameters {}), until {until}", short(parameters))
        }
        Event::Decided { proposal, verdict, meaning, .. } => {
            let verb = match verdict {
                Verdict::Approve => "approved",
                Verdict::Reject => "rejected",
            };
            format!("{verb} proposal {proposal} (in words {})", short(meaning))
        }
        Event::NotCarriedOut { proposal, cause } => {
            let cause = match cause {
                ClosedCause::Stale => "it had ended, or what it was about had changed",
                ClosedCause::Refused => "the rules forbid it",
            };
            format!("closed proposal {proposal} and did not carry it out: {cause}")
        }
        Event::Clock { event, amount_ms } => clock_words(*event, *amount_ms),
        other => collection_words(other),
    }
}

fn collection_words(event: &Event) -> String {
    match event {
        Event::CollectionIntended { generation, dead_count, reap_count, .. } => format!(
            "is about to quarantine {dead_count} envelopes and to reap {reap_count} (cycle \
             {generation})"
        ),
        Event::Collected { generation, quarantined_count, reaped_count, reaped_bytes } => format!(
            "quarantined {quarantined_count} envelopes and reaped {reaped_count}, {reaped_bytes} \
             bytes (cycle {generation})"
        ),
        Event::SegmentDropIntended { segment, .. } => format!("is about to drop segment {segment}"),
        Event::SegmentDropped { segment, file_bytes } => {
            format!("dropped segment {segment}, {file_bytes} bytes")
        }
        Event::Configured { configuration } => {
            format!("runs with configuration {}", short(configuration))
        }
        other => replica_words(other),
    }
}

fn replica_words(event: &Event) -> String {
    match event {
        Event::PrimaryAdded { ledger_key, principal, .. } => {
            format!("follows primary {} from now on, as its {principal}", short(&ledger_key.0))
        }
        Event::FeedAdded { ledger_key, principal, .. } => format!(
            "lends its connections to server {} from now on, which follows it as {principal}",
            short(&ledger_key.0)
        ),
        Event::PrimaryFollowed { ledger_key, size, root } => format!(
            "took over what primary {} had at {size} entries (root {})",
            short(&ledger_key.0),
            short(root)
        ),
        Event::PrimaryRefused { ledger_key, known_size, shown_size, .. } => format!(
            "REFUSED primary {}: its ledger of {shown_size} entries does not continue the \
             {known_size} that were seen",
            short(&ledger_key.0)
        ),
        Event::PrimaryRemoved { ledger_key } => {
            format!("follows primary {} no more, by command", short(&ledger_key.0))
        }
        Event::DescriptorTaken { descriptor, version } => format!(
            "took version {version} of the namespace's descriptor ({})",
            short(&descriptor.0)
        ),
        Event::DescriptorRefused { ledger_key, descriptor, version } => format!(
            "REFUSED version {version} of the namespace's descriptor ({}) from primary {}: it does \
             not come after what is here",
            short(&descriptor.0),
            short(&ledger_key.0)
        ),
        Event::Exported { namespace_count, namespaces } => format!(
            "is about to export {namespace_count} namespaces (ids {}), by command",
            short(namespaces)
        ),
        Event::Imported { ledger_key, size, root } => format!(
            "is about to take in an export of server {} at {size} entries (root {}), by command",
            short(&ledger_key.0),
            short(root)
        ),
        Event::FilterSet { ledger_key, names } => format!(
            "follows other namespaces of primary {} (names {})",
            short(&ledger_key.0),
            short(names)
        ),
        Event::NamespaceReadmitted { ledger_key } => {
            format!("takes the dropped namespace from primary {} again", short(&ledger_key.0))
        }
        other => key_words(other),
    }
}

fn key_words(event: &Event) -> String {
    match event {
        Event::KeysRolled { principal, tls_key, .. } => format!(
            "put new keys in the place of those of {principal} (TLS key {})",
            short(&tls_key.0)
        ),
        Event::TlsKeyRolled { tls_key, serial } => {
            format!("shows TLS key number {serial} from now on ({})", short(&tls_key.0))
        }
        Event::PeerKeyFollowed { ledger_key, tls_key, serial } => format!(
            "met TLS key number {serial} of server {} ({}), which its ledger key vouched for",
            short(&ledger_key.0),
            short(&tls_key.0)
        ),
        Event::RecordRefused { ledger_key, record, leaf, epoch } => format!(
            "REFUSED snapshot {record} of primary {}: it stands at entry {leaf} there, where epoch \
             {epoch} had begun",
            short(&ledger_key.0)
        ),
        other => damage_words(other),
    }
}

fn damage_words(event: &Event) -> String {
    match event {
        Event::Damaged { count, digests } => {
            format!("found {count} envelopes DAMAGED (list {})", short(digests))
        }
        Event::Repaired { count, digests, from } => {
            let whence = match from.0 == [0; 32] {
                true => "sent again or found here".to_owned(),
                false => format!("from server {}", short(&from.0)),
            };
            format!("has {count} damaged envelopes whole again, {whence} (list {})", short(digests))
        }
        Event::Scrubbed { pass, envelope_count, bytes, damaged_count } => format!(
            "hashed all that is stored, pass {pass}: {envelope_count} envelopes, {bytes} bytes, \
             {damaged_count} newly found damaged"
        ),
        // The others are told by the callers.
        _ => "did what this program has no words for".into(),
    }
}

fn clock_words(event: ClockEvent, amount_ms: u64) -> String {
    let amount = format!("{} s", amount_ms / 1000);
    match event {
        ClockEvent::Started => "started the retention clock".into(),
        ClockEvent::Rebooted => "saw that the machine was started again".into(),
        ClockEvent::WallAhead => format!("saw the wall clock go {amount} forward"),
        ClockEvent::WallBack => format!("saw the wall clock go {amount} back"),
        ClockEvent::OffTimeCounted => format!("counted {amount} without power"),
        ClockEvent::OffTimeLost => format!("did not count {amount} without power"),
        ClockEvent::OffTimeCredited => format!("counted {amount} without power, by two principals"),
        ClockEvent::MachineChanged => "saw that the data folder runs on another machine".into(),
        ClockEvent::RolledBack => "learned of a head that is newer than the data folder".into(),
        ClockEvent::Frozen => "froze the retention clock: no lock ends".into(),
        ClockEvent::Thawed => "let the retention clock go on, by two principals".into(),
    }
}

fn rule_words(rule: &RetentionRule) -> String {
    let days = |seconds: u64| match seconds {
        FOREVER => "no end".to_owned(),
        seconds => format!("{} days", seconds / 86_400),
    };
    format!(
        "{} mode, locks of {} to {}, {} where nothing is said",
        rule.mode.name(),
        days(rule.minimum_seconds),
        days(rule.maximum_seconds),
        days(rule.default_seconds)
    )
}

fn utc_of_seconds(seconds: u64) -> String {
    i64::try_from(seconds.saturating_mul(1000)).map_or_else(|_| "never".into(), utc_time)
}

/// The start of a digest.
fn short(digest: &[u8; 32]) -> String {
    to_hex(digest).chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_protocol::retention::RetentionMode;

    #[test]
    fn locks_are_told_whole() {
        let mut lock = Lock {
            mode: RetentionMode::Compliance,
            until_seconds: 86_400,
            until_wall_seconds: 0,
            is_held: false,
        };
        let until = "in compliance mode until 1970-01-02 00:00:00 UTC of the retention clock";
        assert_eq!(lock_words(&lock), until);
        lock.is_held = true;
        assert_eq!(lock_words(&lock), format!("{until}, and under legal hold"));
        lock.until_seconds = FOREVER;
        assert_eq!(lock_words(&lock), "in compliance mode without end, and under legal hold");
    }
}
