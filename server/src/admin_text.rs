//! Answers to commands on the server as text for people.

use strongroom_protocol::message::{ClockStatus, Status};

use crate::gc::CycleReport;

/// The state of the server.
pub fn status_text(status: &Status) -> String {
    format!(
        "strongroomd {}\nsnapshots        {}\nledger entries   {}\nledger key       {}\n\
         segments         {} ({} MiB)\nopen sessions    {}\nfree space       {} MiB\n\
         accepts uploads  {}\ndamaged          {} now, {} repaired\n",
        status.version,
        status.snapshot_count,
        status.ledger_size,
        status.ledger_key,
        status.segment_count,
        status.segment_bytes >> 20,
        status.session_count,
        status.free_bytes >> 20,
        if status.accepts_uploads { "yes" } else { "no: repository full" },
        status.damaged_count,
        status.repaired_count
    )
}

/// The retention clock and what it has seen.
pub fn clock_text(status: &ClockStatus) -> String {
    let at = |seconds: u64| instant(seconds.saturating_mul(1000));
    let spent = |seconds: u64| {
        format!("{} d {} h {} min", seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60)
    };
    let mut text = format!(
        "retention clock  {}\nwall clock       {}\ndisagreement     {} (frozen above {})\n\
         power off        {} lost, {} of this year's allowance left\n",
        at(status.retention_seconds),
        at(status.wall_seconds),
        spent(status.skew_seconds),
        spent(status.skew_bound_seconds),
        spent(status.lost_seconds),
        spent(status.allowance_seconds),
    );
    text += &match &status.frozen {
        None => "locks end        yes, when the retention clock has passed their date\n".into(),
        Some(reason) => format!(
            "locks end        NO: {reason}\n                 backups and new locks go on; two \
             principals end this (docs/operations.md)\n"
        ),
    };
    text += "seen, oldest first:\n";
    for line in &status.history {
        text += &format!("  {line}\n");
    }
    text
}

/// What a collection cycle did.
pub fn cycle_text(report: &CycleReport) -> String {
    let reaped_count: u64 = report.reaped.values().map(|reaped| reaped.count).sum();
    let reaped_bytes: u64 = report.reaped.values().map(|reaped| reaped.bytes).sum();
    format!(
        "cycle            {} ({:?})\nlocks raised     {}\nneeded           {}\nguarded          \
         {}\nquarantined      {}\nreaped           {} ({} bytes)\ncopied           {} ({} \
         bytes)\nsegments gone    {} ({} bytes)\n",
        report.generation,
        report.outcome,
        report.raised_count,
        report.marked_count,
        report.guarded_count,
        report.quarantined_count,
        reaped_count,
        reaped_bytes,
        report.moved_count,
        report.evacuated_bytes,
        report.dropped_segments,
        report.dropped_bytes
    )
}

/// An instant of the retention clock; 0 is never.
pub fn instant_of(seconds: u64) -> String {
    if seconds == 0 { "never".into() } else { instant(seconds.saturating_mul(1000)) }
}

/// A time in milliseconds since 1970.
pub fn instant(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| "?".into(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}
