//! What a power cut may leave of a folder, from the list of what was done to it.
//!
//! The library of `disk.rs` writes down each call, in order. Of a file, what stood before its last
//! sync is on the disk; of what came after, any part may be, in any order, down to single sectors
//! of 512 bytes. Of a folder, the names that it had at its last sync are on the disk; of later
//! changes, those up to any one of them, because file systems write names in order. Syncing a file
//! is not taken to make its name durable, and renaming not to make contents durable.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
/// RocksDB opens no database whose list of files has a hole, so of that what comes first is there.
/// A file system that writes a length after the contents below it leaves no hole in what grows.
const LIST_OF_FILES: &[u8] = b"MANIFEST-";

/// How much of what was not synced is there after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing of it.
    All,
    /// Some of it.
    Some,
    /// All of it, as after a kill.
    Nothing,
}

/// A call, as the library wrote it down.
#[derive(Debug)]
pub struct Call {
    kind: u8,
    number: u64,
    offset: u64,
    /// Below the folder that is watched.
    path: PathBuf,
    other: PathBuf,
    /// What was written, in the trace.
    bytes: Range<usize>,
    /// Length of the trace with this call in it.
    pub end: u64,
}

impl Call {
    /// Whether something became durable by it.
    pub fn is_sync(&self) -> bool {
        matches!(self.kind, b'S' | b'D')
    }
}

/// Reads a trace of what was done below `root`.
pub fn calls_of(trace: &[u8], root: &Path) -> Vec<Call> {
    let (mut calls, mut at) = (Vec::new(), 0);
    let below = |path: &[u8]| {
        let path = Path::new(OsStr::from_bytes(path));
        path.strip_prefix(root).map(Path::to_path_buf).unwrap_or_default()
    };
    while at < trace.len() {
        let line_end = at + trace[at..].iter().position(|byte| *byte == b'\n').unwrap();
        let words: Vec<&[u8]> = trace[at..line_end].splitn(5, |byte| *byte == b' ').collect();
        let number = |word: &[u8]| std::str::from_utf8(word).unwrap().parse::<u64>().unwrap();
        let mut paths = words[4].split(|byte| *byte == b'\t');
        let (kind, from) = (words[0][0], line_end + 1);
        let length = if kind == b'W' { usize::try_from(number(words[3])).unwrap() } else { 0 };
        at = from + length;
        calls.push(Call {
            kind,
            number: number(words[1]),
            offset: number(words[2]),
            path: below(paths.next().unwrap()),
            other: below(paths.next().unwrap_or_default()),
            bytes: from..at,
            end: at as u64,
        });
    }
    calls
}

/// What a seed chooses.
pub struct Dice(blake3::OutputReader);

impl Dice {
    pub fn of(seed: u64, number: u64) -> Self {
        let seed = [seed.to_le_bytes(), number.to_le_bytes()].concat();
        Self(blake3::Hasher::new().update(&seed).finalize_xof())
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}

enum Change {
    Write { at: u64, bytes: Range<usize> },
    Resize(u64),
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    File(usize),
    Folder(usize),
}

#[derive(Clone)]
enum Naming {
    Set(OsString, Node),
    Unset(OsString),
    /// Within one folder it is one step.
    Move(OsString, OsString, Node),
}

type Names = BTreeMap<OsString, Node>;

#[derive(Default)]
struct Folder {
    durable: Names,
    pending: Vec<Naming>,
    /// With all that is pending.
    now: Names,
}

fn apply(names: &mut Names, naming: &Naming) {
    match naming {
        Naming::Set(name, node) => drop(names.insert(name.clone(), *node)),
        Naming::Unset(name) => drop(names.remove(name)),
        Naming::Move(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
    }
}

/// A folder, with what of it is durable.
pub struct Model<'a> {
    trace: &'a [u8],
    files: Vec<File>,
    folders: Vec<Folder>,
    /// Files by their inode numbers, as far as they were opened.
    numbers: HashMap<u64, usize>,
}

impl<'a> Model<'a> {
    /// Begins with a folder that is wholly durable.
    pub fn of(folder: &Path, trace: &'a [u8]) -> Self {
        let mut model =
            Self { trace, files: Vec::new(), folders: Vec::new(), numbers: HashMap::new() };
        model.take_in(folder);
        model
    }

    fn take_in(&mut self, folder: &Path) -> usize {
        let own = self.folders.len();
        self.folders.push(Folder::default());
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let node = if entry.path().is_dir() {
                Node::Folder(self.take_in(&entry.path()))
            } else if !entry.path().is_file() {
                continue; // the socket of an earlier server
            } else {
                let durable = std::fs::read(entry.path()).unwrap();
                self.files.push(File { durable, pending: Vec::new() });
                Node::File(self.files.len() - 1)
            };
            self.folders[own].durable.insert(entry.file_name(), node);
        }
        self.folders[own].now = self.folders[own].durable.clone();
        own
    }

    fn find(&self, path: &Path) -> Option<Node> {
        path.iter().try_fold(Node::Folder(0), |node, name| match node {
            Node::Folder(folder) => self.folders[folder].now.get(name).copied(),
            Node::File(_) => None,
        })
    }

    /// The folder that holds a path, and the name in it.
    fn place(&mut self, path: &Path) -> (usize, OsString) {
        let folder = self.find(path.parent().unwrap());
        let Some(Node::Folder(folder)) = folder else { panic!("no folder of {path:?}") };
        (folder, path.file_name().unwrap().to_owned())
    }

    fn rename(&mut self, folder: usize, naming: Naming) {
        apply(&mut self.folders[folder].now, &naming);
        self.folders[folder].pending.push(naming);
    }

    fn set(&mut self, path: &Path, node: Node) {
        let (folder, name) = self.place(path);
        self.rename(folder, Naming::Set(name, node));
    }

    fn file(&mut self, call: &Call) -> &mut File {
        let file = self.numbers.get(&call.number);
        &mut self.files[*file.unwrap_or_else(|| panic!("never opened: {call:?}"))]
    }

    /// Does what a call did.
    pub fn play(&mut self, call: &Call) {
        let path = call.path.as_path();
        match call.kind {
            b'C' => {
                self.files.push(File::default());
                self.numbers.insert(call.number, self.files.len() - 1);
                self.set(path, Node::File(self.files.len() - 1));
            }
            b'O' => {
                let Some(Node::File(file)) = self.find(path) else { panic!("unknown: {call:?}") };
                self.numbers.insert(call.number, file);
            }
            b'W' => {
                let change = Change::Write { at: call.offset, bytes: call.bytes.clone() };
                self.file(call).pending.push(change);
            }
            b'T' => self.file(call).pending.push(Change::Resize(call.offset)),
            b'S' => {
                let trace = self.trace;
                let file = self.file(call);
                for change in std::mem::take(&mut file.pending) {
                    change_wholly(&mut file.durable, &change, trace);
                }
            }
            b'D' => {
                let Some(Node::Folder(folder)) = self.find(path) else { panic!("{call:?}") };
                let folder = &mut self.folders[folder];
                folder.pending.clear();
                folder.durable = folder.now.clone();
            }
            b'L' => {
                let node = self.find(path).unwrap();
                self.set(&call.other, node);
            }
            b'R' => self.play_rename(path, &call.other),
            b'U' | b'X' => {
                let (folder, name) = self.place(path);
                self.rename(folder, Naming::Unset(name));
            }
            b'M' => {
                self.folders.push(Folder::default());
                self.set(path, Node::Folder(self.folders.len() - 1));
            }
            kind => panic!("no such kind: {kind}"),
        }
    }

    fn play_rename(&mut self, from: &Path, to: &Path) {
        let node = self.find(from).unwrap();
        let ((from, old), (to, new)) = (self.place(from), self.place(to));
        if from == to {
            self.rename(from, Naming::Move(old, new, node));
        } else {
            self.rename(to, Naming::Set(new, node));
            self.rename(from, Naming::Unset(old));
        }
    }

    /// Makes the folder as a power cut leaves it now.
    pub fn make(&self, to: &Path, loss: Loss, dice: &mut Dice) {
        self.make_folder(0, to, loss, dice);
    }

    fn make_folder(&self, folder: usize, to: &Path, loss: Loss, dice: &mut Dice) {
        std::fs::create_dir(to).unwrap();
        let Folder { durable, pending, .. } = &self.folders[folder];
        let mut names = durable.clone();
        let kept = match loss {
            Loss::All => 0,
            Loss::Nothing => pending.len(),
            Loss::Some => usize::try_from(dice.below(pending.len() as u64 + 1)).unwrap(),
        };
        pending.iter().take(kept).for_each(|naming| apply(&mut names, naming));
        for (name, node) in &names {
            let path = to.join(name);
            match node {
                Node::Folder(folder) => self.make_folder(*folder, &path, loss, dice),
                Node::File(file) => {
                    let is_list = name.as_bytes().starts_with(LIST_OF_FILES);
                    let contents = self.contents(&self.files[*file], is_list, loss, dice);
                    std::fs::write(&path, contents).unwrap();
                }
            }
        }
    }

    fn contents(&self, file: &File, in_order: bool, loss: Loss, dice: &mut Dice) -> Vec<u8> {
        let mut is_over = false;
        let mut contents = file.durable.clone();
        // Of eight parts of what is pending, so many are there.
        let share = match loss {
            Loss::All => 0,
            Loss::Nothing => 8,
            Loss::Some => dice.below(9),
        };
        for change in &file.pending {
            match change {
                Change::Write { at, bytes } if share < 8 => {
                    let mut from = *at;
                    let end = from + bytes.len() as u64;
                    while from < end {
                        let to = (from / SECTOR + 1).saturating_mul(SECTOR).min(end);
                        is_over |= in_order && dice.below(8) >= share;
                        if (in_order && !is_over) || (!in_order && dice.below(8) < share) {
                            let of = |place: u64| usize::try_from(place - at).unwrap();
                            let part = &self.trace[bytes.clone()][of(from)..of(to)];
                            write_at(&mut contents, from, part);
                        }
                        from = to;
                    }
                }
                Change::Resize(_) if is_over || (share < 8 && dice.below(8) >= share) => {}
                _ => change_wholly(&mut contents, change, self.trace),
            }
        }
        contents
    }
}

fn change_wholly(contents: &mut Vec<u8>, change: &Change, trace: &[u8]) {
    match change {
        Change::Write { at, bytes } => write_at(contents, *at, &trace[bytes.clone()]),
        Change::Resize(length) => contents.resize(usize::try_from(*length).unwrap(), 0),
    }
}

fn write_at(contents: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap();
    let end = at + bytes.len();
    contents.resize(contents.len().max(end), 0);
    contents[at..end].copy_from_slice(bytes);
}
