//! What of a catalogue is wanted, and where its bytes are.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use strongroom_protocol::catalogue::{Entry, Kind, Order, OrderError, is_within};

use crate::error::ClientError;
use crate::files::store::{Entries, Store};
use crate::files::walk::{path_below_base, shown};

/// Name of a stream in the folder of its part of a set.
pub const STREAM_NAME: &str = "dump";

/// Bytes that nobody wants between bytes that are wanted cost less than another question, up to so
/// many.
const GAP_BYTES: u64 = 32 * 1024;

/// Paths in a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// None: everything.
    paths: Vec<Vec<u8>>,
}

/// What a selection says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Not wanted.
    No,
    /// Something below it is wanted.
    OnTheWay,
    /// Wanted.
    Yes,
}

impl Selection {
    /// Paths as the user typed them; a `/` at their start means nothing.
    pub fn parse(paths: &[PathBuf]) -> Result<Self, ClientError> {
        let mut parsed = Vec::with_capacity(paths.len());
        for path in paths {
            parsed.push(path_below_base(path)?);
        }
        if parsed.iter().any(Vec::is_empty) {
            parsed.clear();
        }
        Ok(Self { paths: parsed })
    }

    /// What it says of `path`.
    pub fn pick(&self, path: &[u8]) -> Pick {
        let is_picked = |wanted: &Vec<u8>| is_within(path, wanted);
        let is_on_the_way = |wanted: &Vec<u8>| is_within(wanted, path);
        if self.paths.is_empty() || self.paths.iter().any(is_picked) {
            return Pick::Yes;
        }
        if self.paths.iter().any(is_on_the_way) { Pick::OnTheWay } else { Pick::No }
    }

    /// The one path that was named.
    pub fn only(&self) -> Option<&[u8]> {
        match self.paths.as_slice() {
            [path] => Some(path),
            _ => None,
        }
    }
}

/// The entries of a catalogue that are wanted, and those on the way to them.
pub struct Selected {
    entries: Entries,
    selection: Selection,
}

impl Selected {
    /// Those of `store`.
    pub fn new(store: &Arc<Store>, selection: &Selection) -> Self {
        Self { entries: store.entries(), selection: selection.clone() }
    }
}

impl Iterator for Selected {
    type Item = Result<(Entry, Pick), ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next_entry() {
                Ok(entry) => entry?,
                Err(error) => return Some(Err(error)),
            };
            let pick = self.selection.pick(&entry.path);
            if pick != Pick::No {
                return Some(Ok((entry, pick)));
            }
        }
    }
}

/// Whether a catalogue of a data stream of `data_bytes` is a tree's. One that no honest writer
/// makes is refused: nothing of it is used.
pub fn check(store: &Arc<Store>, data_bytes: u64) -> Result<bool, ClientError> {
    let mut order = Order::default();
    let mut entries = store.entries();
    let mut targets = HashSet::new();
    let hash = |path: &[u8]| *blake3::hash(path).as_bytes();
    while let Some(entry) = entries.next_entry()? {
        order.take(&entry).map_err(|error| refused(&entry, error))?;
        if entry.kind == Kind::HardLink {
            targets.insert(hash(&entry.link_target));
        }
    }
    let is_tree = order.finish(data_bytes).map_err(|error| {
        ClientError::Untrusted(format!("the catalogue has {error}: the writer was broken"))
    })?;
    // What a link names must be a file of this catalogue, not something that lies at the target.
    let mut entries = store.entries();
    while !targets.is_empty()
        && let Some(entry) = entries.next_entry()?
    {
        if entry.kind == Kind::File {
            targets.remove(&hash(&entry.path));
        }
    }
    if targets.is_empty() {
        return Ok(is_tree);
    }
    Err(ClientError::Untrusted(
        "the catalogue has a hard link to what is no file of it: the writer was broken or hostile"
            .into(),
    ))
}

fn refused(entry: &Entry, error: OrderError) -> ClientError {
    ClientError::Untrusted(format!(
        "the catalogue has {error} ({}): the writer was broken or hostile; nothing was written",
        shown(&entry.path)
    ))
}

/// What a selection needs.
#[derive(Debug, Default)]
pub struct Plan {
    /// Ranges of the data stream, rising, apart.
    pub ranges: Vec<Range<u64>>,
    /// Bytes of the files.
    pub data_bytes: u64,
}

impl Plan {
    /// What `selection` needs of a catalogue that was checked. Each of its paths must be there.
    pub fn make(store: &Arc<Store>, selection: &Selection) -> Result<Self, ClientError> {
        let mut plan = Self::default();
        let mut missing: Vec<&Vec<u8>> = selection.paths.iter().collect();
        for selected in Selected::new(store, selection) {
            let (entry, pick) = selected?;
            missing.retain(|path| **path != entry.path);
            if pick == Pick::Yes && matches!(entry.kind, Kind::File | Kind::Stream) {
                plan.add(range_of(&entry));
            }
        }
        match missing.first() {
            None => Ok(plan),
            Some(path) => Err(ClientError::Usage(format!(
                "{}: no such path in the snapshot; see `strongroom list SNAPSHOT PATH`",
                shown(path)
            ))),
        }
    }

    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.data_bytes = self.data_bytes.saturating_add(range.end.saturating_sub(range.start));
        match self.ranges.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= GAP_BYTES => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }
}

/// The part of the data stream that a file's bytes are.
pub fn range_of(entry: &Entry) -> Range<u64> {
    entry.data_offset..entry.data_offset.saturating_add(entry.data_bytes)
}

/// The entry of the one path that was named, where it is a file. In a set, the name of a part that
/// is one stream stands for it.
pub fn only_file(
    store: &Arc<Store>,
    selection: &Selection,
    is_set: bool,
) -> Result<Option<Entry>, ClientError> {
    let Some(path) = selection.only() else { return Ok(None) };
    let stream = [path, STREAM_NAME.as_bytes()].join(&b'/');
    let may_be_part = is_set && !path.contains(&b'/');
    let (mut entries, mut found) = (store.entries(), None);
    while let Some(entry) = entries.next_entry()? {
        let is_file = matches!(entry.kind, Kind::File | Kind::HardLink);
        if entry.path == path && entry.kind != Kind::Directory {
            return Ok(Some(entry).filter(|_| is_file));
        }
        if entry.path == path || !may_be_part || !is_within(&entry.path, path) {
            continue;
        }
        if found.is_some() || entry.path != stream || !is_file {
            return Ok(None);
        }
        found = Some(entry);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::store::Growing;
    use strongroom_protocol::catalogue::encode;

    fn entry(kind: Kind, path: &str) -> Entry {
        Entry { path: path.as_bytes().to_vec(), ..Entry::empty(kind) }
    }

    fn file(path: &str, offset: u64, bytes: u64) -> Entry {
        let mut file = entry(Kind::File, path);
        (file.size_bytes, file.data_offset, file.data_bytes) = (bytes, offset, bytes);
        file
    }

    fn store(entries: &[Entry]) -> Arc<Store> {
        let mut all = vec![entry(Kind::Directory, "")];
        all.extend_from_slice(entries);
        let mut growing = Growing::default();
        growing.push(&encode(&all)).unwrap();
        growing.finish().unwrap()
    }

    fn selection(paths: &[&str]) -> Selection {
        Selection::parse(&paths.iter().map(PathBuf::from).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn paths_pick_what_is_below_them() {
        let some = selection(&["/a/b", "c/"]);
        for (path, pick) in [
            ("", Pick::OnTheWay),
            ("a", Pick::OnTheWay),
            ("a/b", Pick::Yes),
            ("a/b/x", Pick::Yes),
            ("a/bc", Pick::No),
            ("c", Pick::Yes),
            ("d", Pick::No),
        ] {
            assert_eq!(some.pick(path.as_bytes()), pick, "{path}");
        }
        assert_eq!(selection(&[]).pick(b"x"), Pick::Yes);
        assert_eq!(selection(&["a", "/"]).pick(b"x"), Pick::Yes);
        assert!(Selection::parse(&[PathBuf::from("../x")]).is_err());
    }

    #[test]
    fn a_plan_has_the_bytes_of_what_is_wanted() {
        let store = store(&[
            entry(Kind::Directory, "a"),
            file("a/one", 0, 10),
            file("a/two", 10, 5),
            file("b", 15, 100_000),
            file("c", 100_015, 7),
        ]);
        let plan = |paths: &[&str]| Plan::make(&store, &selection(paths)).unwrap();
        let ends = |paths: &[&str]| -> Vec<(u64, u64)> {
            plan(paths).ranges.iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(ends(&[]), [(0, 100_022)]);
        assert_eq!(ends(&["a"]), [(0, 15)]);
        assert_eq!(ends(&["a/two", "c"]), [(10, 15), (100_015, 100_022)]);
        assert_eq!(plan(&["a/two", "c"]).data_bytes, 12);
        assert!(Plan::make(&store, &selection(&["a/three"])).is_err());
        let only = only_file(&store, &selection(&["c"]), false).unwrap().unwrap();
        assert_eq!(range_of(&only), 100_015..100_022);
        assert_eq!(only_file(&store, &selection(&["a"]), true).unwrap(), None);
    }

    #[test]
    fn a_part_that_is_one_stream_stands_for_it() {
        let store = store(&[
            entry(Kind::Directory, "db"),
            file("db/dump", 0, 10),
            entry(Kind::Directory, "files"),
            file("files/dump", 10, 5),
            file("files/other", 15, 5),
            entry(Kind::Directory, "x"),
            entry(Kind::Directory, "x/db"),
            file("x/db/dump", 20, 5),
        ]);
        let only = |path: &str, is_set: bool| {
            only_file(&store, &selection(&[path]), is_set).unwrap().map(|entry| entry.path)
        };
        assert_eq!(only("db", true), Some(b"db/dump".to_vec()));
        assert_eq!(only("db/dump", false), Some(b"db/dump".to_vec()));
        for (path, is_set) in [("db", false), ("files", true), ("x/db", true), ("x", true)] {
            assert_eq!(only(path, is_set), None, "{path}");
        }
    }

    #[test]
    fn a_link_names_a_file_of_its_own_catalogue() {
        let link = |target: &str| {
            let link_target = target.as_bytes().to_vec();
            Entry { link_target, ..entry(Kind::HardLink, "z") }
        };
        assert!(check(&store(&[file("a", 0, 1), link("a")]), 1).unwrap());
        for entries in [
            vec![link("a")],
            vec![entry(Kind::SymbolicLink, "a"), link("a")],
            vec![entry(Kind::Directory, "a"), link("a")],
        ] {
            let error = check(&store(&entries), 1).unwrap_err();
            assert!(matches!(error, ClientError::Untrusted(_)), "{error}");
        }
    }
}
