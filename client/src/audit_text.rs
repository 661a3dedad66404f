//! Results of `strongroom audit` as text for people.

use indicatif::HumanCount;

use crate::arguments::local_time;
use crate::audit::{CheckSummary, LedgerSummary, LogRow, ProveSummary};
use crate::proof_file::{Proven, state_words};

/// One entry.
pub fn log_row_text(row: &LogRow) -> String {
    let time = local_time(i64::try_from(row.server_time_ms).unwrap_or(i64::MAX));
    let (actor, namespace) = (row.actor.to_string(), row.namespace.to_string());
    let actor = match actor.bytes().all(|digit| digit == b'0') {
        true => "the server",
        false => &actor,
    };
    let place = match (&row.namespace_name, namespace.bytes().all(|digit| digit == b'0')) {
        (Some(name), _) => format!(" [{name}]"),
        (None, true) => String::new(),
        (None, false) => format!(" [{namespace}]"),
    };
    format!("{:>8}  {time}{place}  {actor} {}\n", row.index, row.text)
}

/// A ledger that holds.
pub fn ledger_text(summary: &LedgerSummary) -> String {
    let unknown = match summary.unknown_count {
        0 => String::new(),
        count => format!("{count} entries are of kinds that this version does not know\n"),
    };
    format!(
        "the ledger holds: {} entries, {} of them commits\nevery entry and tile leads to the \
         signed root {}\nit continues the {} entries that were seen here before\n{} times keys \
         were rolled over, vouched for by those before; the server's TLS key is number {}\norigin \
         {}\n{unknown}{} tiles in {}.{:02} s\n",
        HumanCount(summary.size),
        HumanCount(summary.commit_count),
        summary.root,
        HumanCount(summary.remembered_size),
        HumanCount(summary.vouched_count),
        summary.tls_serial,
        summary.origin,
        HumanCount(summary.tile_count),
        summary.elapsed_ms / 1000,
        summary.elapsed_ms % 1000 / 10,
    )
}

/// A proof that was written.
pub fn prove_text(summary: &ProveSummary) -> String {
    format!(
        "{}wrote {}\nledger key {}: hand it to the auditor by another way than the file\n",
        proven_text(&summary.proven),
        summary.path.display(),
        summary.proven.ledger_key,
    )
}

/// A proof that was checked.
pub fn check_text(summary: &CheckSummary) -> String {
    let key = match summary.is_key_given {
        true => "the ledger is the one with the key that you gave\n".to_owned(),
        false => format!(
            "NOT CHECKED: whose ledger this is. Compare its key with what you know from elsewhere, \
             or give it with --ledger-key:\n{}\n",
            summary.proven.ledger_key
        ),
    };
    format!("the proof holds\n{}{key}", proven_text(&summary.proven))
}

fn proven_text(proven: &Proven) -> String {
    format!(
        "snapshot {}\ncommitted {}, entry {} of {}\n{}\n",
        proven.snapshot,
        local_time(i64::try_from(proven.committed_ms).unwrap_or(i64::MAX)),
        proven.leaf,
        proven.ledger_size,
        state_words(proven),
    )
}
