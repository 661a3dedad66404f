//! A set of parts that belong together, such as a database's dump and the folder of its
//! attachments: one snapshot, or none.
//!
//! Parts are read one after the other, in the order in which they were named. A part begins when
//! the one before it was read to its end and, where it is a command, has ended with exit code 0:
//! what a dump refers to is still there when the files are read. Whatever fails ends the run.
//!
//! In the catalogue each part is a folder of the top level with the part's name. A catalogue is in
//! the order of its paths and its files' bytes are in the order of the catalogue, so the names
//! must rise.
//!
//! The feed runs in the reader's thread. What it has started is in the [`Crew`], which the guard
//! shares: whoever drops the guard ends the command that runs and removes the folder that it fills.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{getegid, geteuid};
use serde::Serialize;
use strongroom_protocol::catalogue::{Entry, Kind};
use strongroom_protocol::id::Label;

use crate::clock;
use crate::error::ClientError;
use crate::feed::{Fed, Feed, fed_from};
use crate::files::collect::{Collected, Collector, TreeOptions, Written};
use crate::files::describe::OwnerNames;
use crate::files::select::STREAM_NAME;
use crate::files::store::StoreReader;
use crate::files::walk::{Walk, WalkOptions};
use crate::running::{RunningCommand, Tail, WAIT_STEP};
use crate::scratch::Scratch;

/// First of the words that a set was typed as; in a record it tells that the snapshot is one.
pub const PART_WORD: &str = "--part";
/// What stands for the folder in a command that fills one.
pub const FOLDER_WORD: &str = "{}";

/// One part of a set.
pub struct Part {
    /// Its folder in the snapshot.
    pub name: Label,
    /// What is in it.
    pub content: PartContent,
}

/// What a part is.
pub enum PartContent {
    /// Folders and files.
    Tree(TreeOptions),
    /// A stream that can be read once.
    Stream(Box<dyn Read + Send>),
    /// Program and arguments, whose standard output is the dump.
    Command(Vec<String>),
    /// Program and arguments, which leave the dump in a folder.
    Folder {
        /// [`FOLDER_WORD`] in it becomes the folder's path.
        command: Vec<String>,
        /// Where the folder is made.
        scratch: PathBuf,
    },
}

impl PartContent {
    fn kind(&self) -> &'static str {
        match self {
            Self::Tree(_) => "files",
            Self::Stream(_) => "stream",
            Self::Command(_) => "command",
            Self::Folder { .. } => "folder_command",
        }
    }
}

/// What came of a part; one of the objects that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartRead {
    /// Its folder in the snapshot.
    pub name: Label,
    /// `command`, `folder_command`, `stream` or `files`.
    pub kind: &'static str,
    /// Its bytes.
    pub plaintext_bytes: u64,
    /// Its regular files.
    pub file_count: u64,
}

/// Parts whose names rise.
pub struct PartSet {
    parts: Vec<Part>,
    typed: Vec<String>,
}

impl PartSet {
    /// Parts in the order in which they are read, and the words that they were typed as.
    pub fn new(parts: Vec<Part>, typed: Vec<String>) -> Result<Self, ClientError> {
        for pair in parts.windows(2) {
            let [one, next] = pair else { continue };
            if one.name.as_str() >= next.name.as_str() {
                return Err(ClientError::Usage(format!(
                    "part '{next}' is read after part '{one}', so its name must come after it in \
                     the alphabet too, because a snapshot is in the order of names: take names \
                     such as '1-{one}' and '2-{next}'",
                    one = one.name,
                    next = next.name
                )));
            }
        }
        let is_stream = |part: &&Part| matches!(part.content, PartContent::Stream(_));
        if parts.iter().filter(is_stream).count() > 1 {
            return Err(ClientError::Usage("two parts cannot both be standard input".into()));
        }
        Ok(Self { parts, typed })
    }

    /// The words that the parts were typed as, from the first `--part` on.
    pub fn typed(&self) -> &[String] {
        &self.typed
    }

    /// Paths of files and folders, for people.
    pub fn whole_paths(&self) -> Vec<String> {
        let of = |part: &Part| match &part.content {
            PartContent::Tree(options) => options.walk.whole_paths(),
            _ => Vec::new(),
        };
        self.parts.iter().flat_map(of).collect()
    }

    /// Whether all of it can be read a second time at no other cost than time.
    pub fn can_restart(&self) -> bool {
        self.parts.iter().all(|part| matches!(part.content, PartContent::Tree(_)))
    }

    /// Finds what would fail, before the first command has run for hours.
    fn check(&self) -> Result<(), ClientError> {
        for part in &self.parts {
            match &part.content {
                PartContent::Tree(options) => drop(Walk::begin(&options.walk)?),
                PartContent::Folder { scratch, .. } => drop(Scratch::make(scratch)?),
                PartContent::Stream(_) | PartContent::Command(_) => {}
            }
        }
        Ok(())
    }

    /// The parts for one reading: streams are gone then, all else stays.
    fn take(&mut self) -> Vec<Part> {
        let take = |part: &mut Part| {
            let content = match &mut part.content {
                PartContent::Tree(options) => PartContent::Tree(options.clone()),
                PartContent::Command(command) => PartContent::Command(command.clone()),
                PartContent::Folder { command, scratch } => {
                    PartContent::Folder { command: command.clone(), scratch: scratch.clone() }
                }
                PartContent::Stream(reader) => {
                    PartContent::Stream(std::mem::replace(reader, Box::new(io::empty())))
                }
            };
            Part { name: part.name.clone(), content }
        };
        self.parts.iter_mut().map(take).collect()
    }
}

/// What was read of a set.
#[derive(Default)]
pub struct SetRead {
    /// Each part.
    pub parts: Vec<PartRead>,
    /// Files of all parts.
    pub files: Collected,
    /// End of what the commands wrote to standard error.
    pub standard_error: Vec<u8>,
}

/// What a run of a set has started, for who reads and for who decides.
#[derive(Default)]
struct Crew {
    state: Mutex<CrewState>,
}

#[derive(Default)]
struct CrewState {
    /// Nothing more is started.
    is_over: bool,
    running: Option<RunningCommand>,
    scratch: Option<Scratch>,
    parts: Vec<PartRead>,
    files: Collected,
    tail: Tail,
}

impl Crew {
    /// Starts a command whose output is read.
    fn start(&self, command: &[String]) -> Result<ChildStdout, ClientError> {
        let mut state = self.state.lock();
        state.refuse_when_over()?;
        let (running, stdout) = RunningCommand::start(command)?;
        state.running = Some(running);
        Ok(stdout)
    }

    /// Starts a command that fills a folder, and gives the folder.
    fn start_filling(&self, command: &[String], place: &Path) -> Result<PathBuf, ClientError> {
        let mut state = self.state.lock();
        state.refuse_when_over()?;
        let scratch = Scratch::make(place)?;
        let folder = scratch.path().to_path_buf();
        state.scratch = Some(scratch);
        let Some(text) = folder.to_str() else {
            let shown = folder.display();
            return Err(ClientError::Usage(format!("{shown}: no text; name another --scratch")));
        };
        let words: Vec<String> =
            command.iter().map(|word| word.replace(FOLDER_WORD, text)).collect();
        state.running = Some(RunningCommand::start_talking(&words)?);
        Ok(folder)
    }

    /// Waits until the command that was started has ended with 0.
    fn wait(&self) -> Result<(), ClientError> {
        loop {
            let mut state = self.state.lock();
            state.refuse_when_over()?;
            let Some(running) = &mut state.running else { return Ok(()) };
            if let Some(standard_error) = running.try_finish()? {
                state.tail.push(&standard_error);
                state.running = None;
                return Ok(());
            }
            drop(state);
            std::thread::sleep(WAIT_STEP);
        }
    }

    /// Takes note of a part that was read, and lets go of its folder.
    fn end_part(&self, part: PartRead, files: &Collected) {
        let mut state = self.state.lock();
        state.parts.push(part);
        state.files.add(files);
        let scratch = state.scratch.take();
        drop(state);
        drop(scratch);
    }
}

impl CrewState {
    fn refuse_when_over(&self) -> Result<(), ClientError> {
        if self.is_over { Err(ClientError::Interrupted) } else { Ok(()) }
    }
}

/// Ends what a set has started, unless it has come to its end.
pub struct SetGuard {
    crew: Arc<Crew>,
}

impl SetGuard {
    /// What was read, once all of it was.
    pub fn finish(&mut self) -> Result<SetRead, ClientError> {
        let mut state = self.crew.state.lock();
        if state.running.is_some() || state.scratch.is_some() {
            return Err(ClientError::Bug("a part of the set has not ended".into()));
        }
        Ok(SetRead {
            parts: std::mem::take(&mut state.parts),
            files: std::mem::take(&mut state.files),
            standard_error: std::mem::take(&mut state.tail).into_bytes(),
        })
    }
}

impl Drop for SetGuard {
    fn drop(&mut self) {
        let mut state = self.crew.state.lock();
        state.is_over = true;
        // The command first: it must not go on to write into what is being removed.
        state.running = None;
        state.scratch = None;
    }
}

/// Reads part after part, as a feed of both streams.
pub struct SetFeed {
    parts: std::vec::IntoIter<Part>,
    crew: Arc<Crew>,
    cut_above_bytes: u64,
    current: Option<Current>,
    written: Written,
    catalogue: Option<StoreReader>,
}

/// The part that is being read.
struct Current {
    name: Label,
    kind: &'static str,
    /// Bytes of the data stream before it.
    before_bytes: u64,
    reading: Reading,
}

enum Reading {
    Stream(Box<dyn Read + Send>, Box<Entry>),
    Tree(Box<Collector>),
}

impl SetFeed {
    /// Begins to read a set; nothing is started before the first bytes are asked for.
    pub fn begin(set: &mut PartSet) -> Result<(Self, SetGuard), ClientError> {
        set.check()?;
        let fail = |error| ClientError::file("keep the catalogue", error);
        let mut written = Written::begin().map_err(fail)?;
        written.growing.push(&made_here(Kind::Directory, "").encode()).map_err(fail)?;
        let crew = Arc::new(Crew::default());
        let guard = SetGuard { crew: crew.clone() };
        let feed = Self {
            parts: set.take().into_iter(),
            crew,
            cut_above_bytes: u64::MAX,
            current: None,
            written,
            catalogue: None,
        };
        Ok((feed, guard))
    }

    /// Files longer than so many bytes begin a chunk.
    pub fn cut_above(&mut self, bytes: u64) {
        self.cut_above_bytes = bytes;
    }

    /// Begins with a part.
    fn begin_part(&mut self, part: Part) -> Result<Current, ClientError> {
        let Part { name, content } = part;
        let (kind, before_bytes) = (content.kind(), self.written.data_bytes);
        let reading = match content {
            PartContent::Tree(options) => self.collect(&name, &options)?,
            PartContent::Folder { command, scratch } => {
                let folder = self.crew.start_filling(&command, &scratch)?;
                self.crew.wait()?;
                refuse_nothing(&name, &folder)?;
                let walk = WalkOptions {
                    base: Some(folder),
                    paths: vec![".".into()],
                    ..WalkOptions::default()
                };
                self.collect(&name, &TreeOptions { walk, special: false })?
            }
            PartContent::Stream(reader) => self.stream(&name, reader)?,
            PartContent::Command(command) => {
                let stdout = self.crew.start(&command)?;
                self.stream(&name, Box::new(stdout))?
            }
        };
        Ok(Current { name, kind, before_bytes, reading })
    }

    fn collect(&mut self, name: &Label, options: &TreeOptions) -> Result<Reading, ClientError> {
        let written = std::mem::take(&mut self.written);
        let mut collector = Collector::go_on(options, name.as_str().as_bytes(), written)?;
        collector.cut_above(self.cut_above_bytes);
        Ok(Reading::Tree(Box::new(collector)))
    }

    fn stream(
        &mut self,
        name: &Label,
        reader: Box<dyn Read + Send>,
    ) -> Result<Reading, ClientError> {
        let folder = made_here(Kind::Directory, name.as_str());
        let fail = |error| ClientError::file("keep the catalogue", error);
        self.written.growing.push(&folder.encode()).map_err(fail)?;
        let mut entry = made_here(Kind::File, &format!("{name}/{STREAM_NAME}"));
        entry.data_offset = self.written.data_bytes;
        Ok(Reading::Stream(reader, Box::new(entry)))
    }

    /// Reads on in the part; nothing at its end.
    fn read_current(&mut self, room: &mut [u8]) -> io::Result<Option<Fed>> {
        match self.current.as_mut().map(|current| &mut current.reading) {
            None => Ok(None),
            Some(Reading::Tree(collector)) => collector.next_data(room),
            Some(Reading::Stream(reader, _)) => {
                let count = reader.read(room)?;
                let length = u64::try_from(count).unwrap_or(u64::MAX);
                self.written.data_bytes = self.written.data_bytes.saturating_add(length);
                Ok((count > 0).then_some(Fed::Bytes(count)))
            }
        }
    }

    /// Ends a part that was read to its end.
    fn end_part(&mut self, current: Current) -> Result<(), ClientError> {
        let Current { name, kind, before_bytes, reading } = current;
        let files = match reading {
            Reading::Tree(collector) => {
                let files = std::mem::take(&mut *collector.collected().lock());
                self.written = collector.into_written();
                files
            }
            Reading::Stream(_, mut entry) => {
                self.crew.wait()?;
                entry.data_bytes = self.written.data_bytes.saturating_sub(entry.data_offset);
                entry.size_bytes = entry.data_bytes;
                let fail = |error| ClientError::file("keep the catalogue", error);
                self.written.growing.push(&entry.encode()).map_err(fail)?;
                Collected { file_count: 1, directory_count: 1, ..Collected::default() }
            }
        };
        let plaintext_bytes = self.written.data_bytes.saturating_sub(before_bytes);
        let part = PartRead { name, kind, plaintext_bytes, file_count: files.file_count };
        self.crew.end_part(part, &files);
        Ok(())
    }
}

impl Feed for SetFeed {
    fn feed(&mut self, room: &mut [u8]) -> io::Result<Fed> {
        if let Some(catalogue) = &mut self.catalogue {
            return fed_from(catalogue, room);
        }
        if let Some(fed) = self.read_current(room)? {
            return Ok(fed);
        }
        if let Some(current) = self.current.take() {
            self.end_part(current).map_err(io::Error::other)?;
        }
        let Some(part) = self.parts.next() else {
            self.catalogue = Some(std::mem::take(&mut self.written).finish()?);
            return Ok(Fed::Catalogue);
        };
        self.current = Some(self.begin_part(part).map_err(io::Error::other)?);
        // A part is the same chunks whatever stands before it.
        Ok(Fed::Boundary)
    }
}

/// A command that ended with 0 and left nothing has made no dump.
fn refuse_nothing(name: &Label, folder: &Path) -> Result<(), ClientError> {
    let fail = |error| ClientError::file(format!("list {}", folder.display()), error);
    match folder.read_dir().map_err(fail)?.next() {
        Some(_) => Ok(()),
        None => Err(ClientError::DumpFailed(format!(
            "the command of part '{name}' ended with 0 and left nothing in its folder"
        ))),
    }
}

/// An entry of what is no file on this machine: made now, by who runs this, for nobody else.
fn made_here(kind: Kind, path: &str) -> Entry {
    let mut entry = Entry::empty(kind);
    entry.path = path.as_bytes().to_vec();
    entry.mode = if kind == Kind::Directory { 0o700 } else { 0o600 };
    (entry.uid, entry.gid) = (geteuid().as_raw(), getegid().as_raw());
    OwnerNames::load().name(&mut entry);
    let now_ms = clock::wall_ms();
    entry.modified_seconds = now_ms.div_euclid(1000);
    let milliseconds = u32::try_from(now_ms.rem_euclid(1000)).unwrap_or(0);
    entry.modified_nanoseconds = milliseconds.saturating_mul(1_000_000);
    entry
}

#[cfg(test)]
mod tests;
