//! What is in a snapshot, entry by entry, and what differs between two.
//!
//! Both go through catalogues as streams. Two files count as equal when their sizes, times, modes,
//! owners, attributes, holes and link targets are: contents are not fetched for that.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use strongroom_protocol::catalogue::{Entry, Kind, compare_paths};
use strongroom_protocol::id::to_hex;

use crate::error::ClientError;
use crate::files::select::{Pick, Plan, Selected, Selection};
use crate::files::store::Store;

/// One file of a snapshot; the objects that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileRow {
    /// Path in the snapshot; bytes that are no text are replaced.
    pub path: String,
    /// The path's bytes in hexadecimal, where they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// What it is.
    pub kind: &'static str,
    /// Size in bytes, holes included.
    pub size_bytes: u64,
    /// Bytes that are stored of it, before deduplication.
    pub data_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Owner's name on the machine that was backed up.
    pub owner: String,
    /// Group's name there.
    pub group: String,
    /// Last change, seconds since 1970.
    pub modified_seconds: i64,
    /// What a link says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

impl FileRow {
    fn of(entry: &Entry) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let is_text = std::str::from_utf8(&entry.path).is_ok();
        Self {
            path: text(&entry.path),
            path_hex: (!is_text).then(|| to_hex(&entry.path)),
            kind: name_of(entry.kind),
            size_bytes: entry.size_bytes,
            data_bytes: entry.data_bytes,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            owner: text(&entry.owner),
            group: text(&entry.group),
            modified_seconds: entry.modified_seconds,
            link_target: Some(text(&entry.link_target)).filter(|target| !target.is_empty()),
        }
    }
}

/// How a path differs between two snapshots; the objects that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffRow {
    /// What happened to it.
    pub change: Change,
    /// Path in the snapshots; bytes that are no text are replaced.
    pub path: String,
    /// The path's bytes in hexadecimal, where they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// What of it is not the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<&'static str>,
}

/// What can happen to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The second has it, the first has not.
    Added,
    /// The first has it, the second has not.
    Removed,
    /// Both have it, and it is not the same.
    Changed,
}

/// Gives every entry at or below `path`; of the whole snapshot where there is none.
pub fn list(
    catalogue: &Arc<Store>,
    path: Option<PathBuf>,
    mut give: impl FnMut(FileRow) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let selection = Selection::parse(&path.into_iter().collect::<Vec<_>>())?;
    Plan::make(catalogue, &selection)?;
    for selected in Selected::new(catalogue, &selection) {
        let (entry, pick) = selected?;
        // The root of a tree is told by what is in it.
        let is_root = entry.kind == Kind::Directory && entry.path.is_empty();
        if pick == Pick::Yes && !is_root {
            give(FileRow::of(&entry))?;
        }
    }
    Ok(())
}

/// Gives every path that is not the same in both.
pub fn diff(
    one: &Arc<Store>,
    other: &Arc<Store>,
    mut give: impl FnMut(DiffRow) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let (mut left, mut right) = (one.entries(), other.entries());
    let (mut first, mut second) = (left.next_entry()?, right.next_entry()?);
    loop {
        let order = match (&first, &second) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(first), Some(second)) => compare_paths(&first.path, &second.path),
        };
        match (order, &first, &second) {
            (Ordering::Less, Some(removed), _) => give(row(Change::Removed, removed, Vec::new()))?,
            (Ordering::Greater, _, Some(added)) => give(row(Change::Added, added, Vec::new()))?,
            (_, Some(first), Some(second)) => {
                let what = differences(first, second);
                if !what.is_empty() {
                    give(row(Change::Changed, second, what))?;
                }
            }
            _ => return Ok(()),
        }
        if order != Ordering::Greater {
            first = left.next_entry()?;
        }
        if order != Ordering::Less {
            second = right.next_entry()?;
        }
    }
}

fn row(change: Change, entry: &Entry, what: Vec<&'static str>) -> DiffRow {
    let FileRow { path, path_hex, .. } = FileRow::of(entry);
    DiffRow { change, path, path_hex, what }
}

fn differences(one: &Entry, other: &Entry) -> Vec<&'static str> {
    let modified = |entry: &Entry| (entry.modified_seconds, entry.modified_nanoseconds);
    // Which of a file's names is the first one says nothing about the file.
    let kind = |entry: &Entry| match entry.kind {
        Kind::HardLink => Kind::File,
        kind => kind,
    };
    let symbolic_target = |entry: &Entry| match entry.kind {
        Kind::SymbolicLink => entry.link_target.clone(),
        _ => Vec::new(),
    };
    let checks = [
        ("kind", kind(one) != kind(other)),
        ("size", one.size_bytes != other.size_bytes),
        ("time", modified(one) != modified(other)),
        ("mode", one.mode != other.mode),
        ("owner", (one.uid, one.gid) != (other.uid, other.gid)),
        ("attributes", one.xattrs != other.xattrs),
        ("holes", one.holes != other.holes),
        ("target", symbolic_target(one) != symbolic_target(other)),
        ("device", one.device != other.device),
    ];
    checks.into_iter().filter(|(_, is_other)| *is_other).map(|(name, _)| name).collect()
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "stream",
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::SymbolicLink => "symbolic_link",
        Kind::HardLink => "hard_link",
        Kind::Fifo => "pipe",
        Kind::CharacterDevice => "character_device",
        Kind::BlockDevice => "block_device",
        Kind::Socket => "socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::store::Growing;
    use strongroom_protocol::catalogue::encode;

    fn entry(kind: Kind, path: &str, size: u64) -> Entry {
        Entry { path: path.as_bytes().to_vec(), size_bytes: size, ..Entry::empty(kind) }
    }

    fn store(entries: &[Entry]) -> Arc<Store> {
        let mut all = vec![entry(Kind::Directory, "", 0)];
        all.extend_from_slice(entries);
        let mut growing = Growing::default();
        growing.push(&encode(&all)).unwrap();
        growing.finish().unwrap()
    }

    fn difference(one: &[Entry], other: &[Entry]) -> Vec<(Change, String, Vec<&'static str>)> {
        let mut rows = Vec::new();
        diff(&store(one), &store(other), |row| {
            rows.push((row.change, row.path, row.what));
            Ok(())
        })
        .unwrap();
        rows
    }

    #[test]
    fn two_snapshots_differ_in_what_came_went_and_changed() {
        let one = [
            entry(Kind::Directory, "a", 0),
            entry(Kind::File, "a/gone", 1),
            entry(Kind::File, "a/same", 1),
            entry(Kind::File, "a.b", 1),
        ];
        let mut longer = entry(Kind::File, "a.b", 2);
        longer.mode = 0o644;
        let other = [
            entry(Kind::Directory, "a", 0),
            entry(Kind::HardLink, "a/same", 1),
            entry(Kind::SymbolicLink, "a-", 0),
            longer,
        ];
        let wanted = vec![
            (Change::Removed, "a/gone".to_owned(), vec![]),
            (Change::Added, "a-".to_owned(), vec![]),
            (Change::Changed, "a.b".to_owned(), vec!["size", "mode"]),
        ];
        assert_eq!(difference(&one, &other), wanted);
        assert_eq!(difference(&one, &one), []);
        assert_eq!(difference(&[], &one).len(), 4);
    }

    #[test]
    fn a_list_has_what_is_below_a_path() {
        let mut odd = entry(Kind::File, "a/x", 1);
        odd.path.push(0xff);
        let store = store(&[entry(Kind::Directory, "a", 0), odd, entry(Kind::File, "b", 3)]);
        let listed = |path: Option<&str>| {
            let mut rows = Vec::new();
            list(&store, path.map(PathBuf::from), |row| {
                rows.push((row.path, row.path_hex));
                Ok(())
            })
            .map(|()| rows)
        };
        let odd_row = ("a/x\u{fffd}".to_owned(), Some("612f78ff".to_owned()));
        assert_eq!(listed(Some("/a")).unwrap(), [("a".to_owned(), None), odd_row]);
        assert_eq!(listed(None).unwrap().len(), 3);
        assert!(listed(Some("c")).is_err());
    }
}
