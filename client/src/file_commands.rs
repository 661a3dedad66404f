//! What `list SNAPSHOT`, `diff` do and print: rows as they come, never a whole list in memory.

use serde::Serialize;

use crate::arguments::local_time;
use crate::cli::{Diff, List};
use crate::error::ClientError;
use crate::files::contents::{self, Change, DiffRow, FileRow};
use crate::snapshot::{self, SnapshotSummary};
use crate::stream::OpenTree;
use crate::terminal::Output;
use crate::trust::ReadAccess;

/// Lists the files of a snapshot.
pub async fn list(
    output: &Output,
    access: &mut ReadAccess,
    found: SnapshotSummary,
    options: List,
) -> Result<(), ClientError> {
    let tree = open(access, &found, options.unverified).await?;
    let mut rows = Rows::begin(output, &format!("\"snapshot\":\"{}\"", found.snapshot))?;
    contents::list(&tree.catalogue, options.path, |row| rows.give(&row, || row_text(&row)))?;
    rows.end()
}

/// Tells what differs between two snapshots.
pub async fn diff(output: &Output, options: Diff) -> Result<(), ClientError> {
    let mut access = output.access(&options.reading, options.unverified).await?;
    let one = snapshot::find(&access, &options.one).await?;
    let other = snapshot::find(&access, &options.other).await?;
    let first = open(&mut access, &one, options.unverified).await?;
    let second = open(&mut access, &other, options.unverified).await?;
    let head = format!("\"from\":\"{}\",\"to\":\"{}\"", one.snapshot, other.snapshot);
    let mut rows = Rows::begin(output, &head)?;
    contents::diff(&first.catalogue, &second.catalogue, |row| rows.give(&row, || diff_text(&row)))?;
    rows.end()
}

async fn open(
    access: &mut ReadAccess,
    found: &SnapshotSummary,
    unverified: bool,
) -> Result<OpenTree, ClientError> {
    access.wanted_source = Some(found.source.clone());
    let opened = Box::pin(access.open_record(found.snapshot, unverified)).await?;
    OpenTree::open(access.fetcher(&opened), opened.level(), opened.root()).await
}

/// Rows of one object, or lines.
struct Rows<'a> {
    output: &'a Output,
    count: u64,
}

impl<'a> Rows<'a> {
    fn begin(output: &'a Output, head: &str) -> Result<Self, ClientError> {
        if output.global.json {
            output.put_json(&format!("{{{head},\"entries\":["))?;
        }
        Ok(Self { output, count: 0 })
    }

    fn give<T: Serialize>(
        &mut self,
        row: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        if !self.output.global.json {
            return self.output.put(&text());
        }
        let comma = if self.count > 0 { "," } else { "" };
        self.count = self.count.saturating_add(1);
        let json = serde_json::to_string(row)
            .map_err(|error| ClientError::Bug(format!("result: {error}")))?;
        self.output.put_json(&format!("{comma}{json}"))
    }

    fn end(self) -> Result<(), ClientError> {
        if self.output.global.json { self.output.put_json("]}\n") } else { Ok(()) }
    }
}

fn row_text(row: &FileRow) -> String {
    let owner =
        |name: &str, id: u32| if name.is_empty() { id.to_string() } else { name.to_owned() };
    let target = match &row.link_target {
        Some(target) => format!(" -> {}", target.escape_debug()),
        None => String::new(),
    };
    format!(
        "{}{} {:<8} {:<8} {:>13} {} {}{target}\n",
        kind_letter(row.kind),
        mode_text(row.mode),
        owner(&row.owner, row.uid),
        owner(&row.group, row.gid),
        row.size_bytes,
        local_time(row.modified_seconds.saturating_mul(1000)),
        row.path.escape_debug(),
    )
}

fn diff_text(row: &DiffRow) -> String {
    let sign = match row.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    };
    let what = match row.what.as_slice() {
        [] => String::new(),
        what => format!("  ({})", what.join(", ")),
    };
    format!("{sign} {}{what}\n", row.path.escape_debug())
}

/// The letters that `ls` shows.
fn kind_letter(kind: &str) -> char {
    match kind {
        "directory" => 'd',
        "symbolic_link" => 'l',
        "pipe" => 'p',
        "character_device" => 'c',
        "block_device" => 'b',
        "socket" => 's',
        _ => '-',
    }
}

fn mode_text(mode: u32) -> String {
    let letter = |bit: u32, letter: char| if mode & bit != 0 { letter } else { '-' };
    let execute = |bit: u32, special: u32, with: char, without: char| match (
        mode & bit != 0,
        mode & special != 0,
    ) {
        (true, true) => with,
        (false, true) => without,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        letter(0o400, 'r'),
        letter(0o200, 'w'),
        execute(0o100, 0o4000, 's', 'S'),
        letter(0o040, 'r'),
        letter(0o020, 'w'),
        execute(0o010, 0o2000, 's', 'S'),
        letter(0o004, 'r'),
        letter(0o002, 'w'),
        execute(0o001, 0o1000, 't', 'T'),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4711, "rws--x--x"),
            (0o2640, "rw-r-S---"),
            (0o1777, "rwxrwxrwt"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }
}
