//! Results as text for people; `--json` prints the same objects field by field.
//!
//! Texts of records and servers were chosen by others, who may not be friends. Nothing reaches a
//! terminal but through [`printable`].

use indicatif::{HumanBytes, HumanCount};
use strongroom_protocol::message::Status;
use strongroom_protocol::role::Role;

use crate::arguments::{end_text, local_time, local_time_of_seconds};
use crate::backup::BackupSummary;
use crate::enroll::EnrollSummary;
use crate::promotion::Promotion;
use crate::restore::{RestoreSummary, VerifySummary};
use crate::ship::Shipped;
use crate::snapshot::{KitCheck, SnapshotDetails, SnapshotSummary};

/// What an enrolment left where.
pub fn enrolled_text(summary: &EnrollSummary, profile: &str) -> String {
    let mut text = format!("enrolled as {} in profile {profile}\n", summary.role);
    if let Some(name) = &summary.namespace_name {
        text.push_str(&format!("namespace: {name}\n"));
    }
    if let (Some(kit), Some(page)) = (&summary.kit_text, &summary.kit_page) {
        text.push_str(&format!(
            "recovery kit: {} (text) and {} (to print)\n\
             Print it twice, keep the copies apart and offline, then delete both files: whoever \
             has them reads\nevery backup, and without them nobody does.\n",
            kit.display(),
            page.display()
        ));
        if summary.recipient_count == Some(1) {
            text.push_str(
                "Only the kit's own identity can open backups. A second recipient on another \
                 medium is safer:\n`strongroom key new --recipient AGE1...` for the next \
                 namespace, before its first backup.\n",
            );
        }
    }
    if summary.role == Role::Backup {
        text.push_str("Next: strongroom backup SOURCE FILE\n");
    }
    text
}

/// What a backup made and cost.
pub fn backup_text(summary: &BackupSummary) -> String {
    let share = summary.deduplicated_bytes.saturating_mul(100) / summary.plaintext_bytes.max(1);
    let mut text = format!(
        "snapshot {}\n{} number {}: {} in {}, {} sent ({share} % was there already), {}\n\
         locked {} ({})\n",
        summary.snapshot,
        summary.source,
        summary.sequence,
        HumanBytes(summary.plaintext_bytes),
        milliseconds(summary.elapsed_ms),
        HumanBytes(summary.sent_bytes),
        rate(summary.plaintext_bytes, summary.elapsed_ms),
        end_text(summary.locked_until_seconds),
        summary.mode.name(),
    );
    for part in &summary.parts {
        text.push_str(&format!(
            "part {}: {} in {} files ({})\n",
            part.name,
            HumanBytes(part.plaintext_bytes),
            HumanCount(part.file_count),
            part.kind.replace('_', " "),
        ));
    }
    if let Some(tree) = &summary.tree {
        text.push_str(&format!(
            "{} files, {} folders, {} others; {} excluded, {} pipes, devices or sockets skipped\n",
            HumanCount(tree.file_count),
            HumanCount(tree.directory_count),
            HumanCount(tree.other_count),
            HumanCount(tree.excluded_count),
            HumanCount(tree.skipped_count),
        ));
        if !tree.is_complete() {
            text.push_str(&format!(
                "INCOMPLETE: {} could not be read, {} vanished, {} changed while they were read\n",
                HumanCount(tree.unreadable_count),
                HumanCount(tree.vanished_count),
                HumanCount(tree.changed_count),
            ));
        }
    }
    text
}

/// One line of a ship's log.
pub fn shipped_text(shipped: &Shipped) -> String {
    let summary = &shipped.summary;
    let id = summary.snapshot.to_string();
    format!(
        "{}  {}  {}, {} sent, {}, locked {}\n",
        shipped.file,
        id.get(..12).unwrap_or(&id),
        HumanBytes(summary.plaintext_bytes),
        HumanBytes(summary.sent_bytes),
        milliseconds(summary.elapsed_ms),
        end_text(summary.locked_until_seconds),
    )
}

/// One line of a list.
pub fn row_text(row: &SnapshotSummary) -> String {
    let id = row.snapshot.to_string();
    format!(
        "{}  {}  {:<24} {:>6}  {:>12}  locked {}{}\n",
        id.get(..12).unwrap_or(&id),
        local_time(signed(row.committed_ms)),
        row.source.as_str(),
        row.sequence,
        HumanBytes(row.padded_plaintext_bytes).to_string(),
        end_text(row.locked_until_seconds),
        if row.is_held { ", held" } else { "" },
    )
}

/// Everything about one snapshot.
pub fn details_text(details: &SnapshotDetails) -> String {
    let row = &details.summary;
    let mut text = format!(
        "snapshot     {}\nsource       {} number {}\ncommitted    {}\nclient time  {}\n\
         locked       {} ({}){}\nplaintext    about {}\nsealed       {} in {} chunks\n\
         principal    {}\nprevious     {}\nroot         {}\n",
        row.snapshot,
        row.source,
        row.sequence,
        local_time(signed(row.committed_ms)),
        local_time(row.client_time_ms),
        end_text(row.locked_until_seconds),
        row.mode.name(),
        if row.is_held { ", legal hold" } else { "" },
        HumanBytes(row.padded_plaintext_bytes),
        HumanBytes(row.sealed_bytes),
        HumanCount(row.chunk_count),
        row.principal,
        details.previous,
        details.root,
    );
    if let Some(sealed) = &details.sealed_fields {
        text.push_str(&format!(
            "host         {}\ncommand      {}\npaths        {}\ntags         {}\n\
             exact size   {} bytes\nverified     {}\n",
            one_line(&sealed.host),
            one_line(&sealed.command.join(" ")),
            one_line(&sealed.paths.join(", ")),
            one_line(&sealed.tags.join(", ")),
            sealed.plaintext_bytes,
            if sealed.is_verified { "yes" } else { "NO" },
        ));
        if !sealed.standard_error.is_empty() {
            text.push_str(&format!("standard error:\n{}\n", sealed.standard_error.trim_end()));
        }
    }
    text
}

/// What a restore wrote, and what it cannot prove.
pub fn restore_text(summary: &RestoreSummary) -> String {
    let place = match &summary.path {
        Some(path) => path.display().to_string(),
        None => "standard output".into(),
    };
    let mut text = format!(
        "restored {} of {} to {place} in {} ({})\n",
        HumanBytes(summary.plaintext_bytes),
        summary.source,
        milliseconds(summary.elapsed_ms),
        rate(summary.plaintext_bytes, summary.elapsed_ms),
    );
    if let Some(tree) = &summary.tree {
        text.push_str(&format!(
            "{} files, {} folders, {} others; {} pipes, devices or sockets skipped\n",
            HumanCount(tree.file_count),
            HumanCount(tree.directory_count),
            HumanCount(tree.other_count),
            HumanCount(tree.skipped_count),
        ));
        if tree.is_resumed {
            let kept = HumanBytes(tree.kept_bytes);
            text.push_str(&format!("went on with an earlier run: {kept} were there already\n"));
        }
        if tree.problem_count > 0 {
            text.push_str(&format!(
                "INCOMPLETE: {} owners, modes, times or attributes could not be set\n",
                HumanCount(tree.problem_count)
            ));
        }
    }
    if summary.fresh_to_kit_floor_only {
        text.push_str(
            "Every byte was verified. That this is the newest state of the namespace is proven \
             only up to the day the kit was made.\n",
        );
    }
    if summary.is_from_replica {
        text.push_str(
            "Every byte was verified. It came from a replica: nothing proves that this is the \
             newest state of the namespace.\n",
        );
    }
    if !summary.is_verified {
        text.push_str("NOT VERIFIED: the chain of trust is broken (--unverified was given)\n");
    }
    text
}

/// What a verify opened.
pub fn verify_text(summary: &VerifySummary) -> String {
    format!(
        "verified {} of {} chunks ({}) of {} in {}{}\n",
        HumanCount(summary.verified_chunk_count),
        HumanCount(summary.chunk_count),
        HumanBytes(summary.verified_bytes),
        summary.source,
        milliseconds(summary.elapsed_ms),
        if summary.is_verified { "" } else { "; the chain of trust is BROKEN" },
    )
}

/// What a kit opened.
pub fn kit_text(check: &KitCheck) -> String {
    let time = local_time(signed(check.committed_ms));
    format!("the kit opens the newest snapshot: {} of {time}\n", check.source)
}

/// What is about to be signed with a namespace's authority key.
pub fn promotion_text(promotion: &Promotion) -> String {
    let mut text = format!(
        "About to sign version {} of the descriptor of namespace {} ({}).\n\
         From then on one server takes its backups, and no other:\n  ledger key  {}\n  address     \
         {}\n  it has      {} snapshots, {} ledger entries\nNo longer:\n",
        promotion.version,
        promotion.namespace_name,
        promotion.namespace,
        promotion.ledger_key,
        promotion.addresses,
        HumanCount(promotion.snapshots),
        HumanCount(promotion.ledger_size),
    );
    for key in &promotion.dropped_ledger_keys {
        text.push_str(&format!("  ledger key  {key}\n"));
    }
    text.push_str("Recipients, keys of records and all snapshots stay as they are.\n");
    text
}

/// What to do with a descriptor that was signed.
pub fn promoted_text(promotion: &Promotion) -> String {
    format!(
        "signed: {}\nIf the first ledger key above is the one that `strongroomd promote` printed, \
         carry it there:\n  strongroomd promote --data DIR --namespace {} --descriptor FILE\nIf \
         not, destroy it. On every copy of the kit, write descriptor_version = {}: so that the kit \
         believes nothing older.\n",
        promotion.file.display(),
        promotion.namespace_name,
        promotion.version
    )
}

/// How a server stands.
pub fn status_text(status: &Status) -> String {
    format!(
        "strongroomd {}\nsnapshots  {}\nsegments   {} ({})\nsessions   {}\nfree       {}\n\
         ledger     {} entries\nuploads    {}\n\
         damaged    {} now, {} repaired\n",
        status.version,
        HumanCount(status.snapshot_count),
        HumanCount(status.segment_count),
        HumanBytes(status.segment_bytes),
        status.session_count,
        HumanBytes(status.free_bytes),
        HumanCount(status.ledger_size),
        if status.accepts_uploads { "accepted" } else { "REFUSED" },
        HumanCount(status.damaged_count),
        HumanCount(status.repaired_count),
    )
}

/// How old keys are, and when they are rolled over.
pub fn key_age_text(made_seconds: u64, due_seconds: Option<u64>) -> String {
    let since = match made_seconds {
        0 => "made at an unknown time".to_owned(),
        seconds => format!("made {}", local_time_of_seconds(seconds)),
    };
    match due_seconds {
        Some(due) => format!("keys {since}, to be rolled over from {}", local_time_of_seconds(due)),
        None => format!("keys {since}, never rolled over by themselves"),
    }
}

/// Text that a terminal can only show: what would move, hide or reorder something is written out.
pub fn printable(text: &str) -> String {
    escaped(text, |letter| letter == '\n' || !is_invisible(letter))
}

/// The same for a text that must not look like more than one line.
fn one_line(text: &str) -> String {
    escaped(text, |letter| !is_invisible(letter))
}

fn escaped(text: &str, is_shown: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_shown(letter) {
            out.push(letter);
        } else {
            out.extend(letter.escape_default());
        }
    }
    out
}

/// Controls (the C1 ones too, which some terminals obey), and what changes the direction of text.
fn is_invisible(letter: char) -> bool {
    let is_direction = matches!(
        letter,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    letter.is_control() || is_direction
}

fn milliseconds(elapsed_ms: u64) -> String {
    format!("{}.{:02} s", elapsed_ms / 1000, elapsed_ms % 1000 / 10)
}

fn rate(bytes: u64, elapsed_ms: u64) -> String {
    format!("{}/s", HumanBytes(bytes.saturating_mul(1000) / elapsed_ms.max(1)))
}

fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_cannot_steer_a_terminal() {
        let hostile = "a\u{1b}[2Jb\rc\u{9b}31m\u{202e}d\ne\u{0}";
        let shown = printable(hostile);
        assert_eq!(shown, "a\\u{1b}[2Jb\\rc\\u{9b}31m\\u{202e}d\ne\\u{0}");
        assert_eq!(one_line("a\nverified yes"), "a\\nverified yes");
        let plain = "Gr\u{fc}\u{df}e, \u{65e5}\u{672c}\n";
        assert_eq!(printable(plain), plain);
    }
}
