//! What is backed up: a file, a tree of files, a stream, the standard output of a command, or a set
//! of such parts.
//!
//! Only exit code 0 of a command makes a snapshot, and the code is known only after its output has
//! ended, so [`SourceGuard::finish`] stands between the last byte and the record. Whoever drops the
//! guard before that ends the command.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use strongroom_protocol::catalogue::{Entry, Kind};

use crate::budget::SMALL_SOURCE_BYTES;
use crate::error::ClientError;
use crate::feed::{Feed, SingleFeed};
use crate::files::collect::{Collected, Collector, TreeOptions, size_if_small};
use crate::files::describe::OwnerNames;
use crate::parts::{PartRead, PartSet, SetFeed, SetGuard};
use crate::running::RunningCommand;

/// What to back up.
pub enum Source {
    /// One regular file.
    File(PathBuf),
    /// Folders, and what is in them.
    Tree(TreeOptions),
    /// A stream that can be read once.
    Stream(Box<dyn Read + Send>),
    /// Program and arguments, whose standard output is the dump.
    Command(Vec<String>),
    /// Several of these as one.
    Set(PartSet),
}

/// A source that is being read.
pub struct OpenSource {
    /// The bytes.
    pub content: Content,
    /// Size where it is known before reading, in bytes.
    pub size_hint: Option<u64>,
    /// Program and arguments, or the parts as they were typed, for the sealed part of the record.
    pub command: Vec<String>,
    /// Paths, for the sealed part of the record.
    pub paths: Vec<String>,
    /// Says at the end whether the bytes make a snapshot.
    pub guard: SourceGuard,
}

/// What is read.
pub enum Content {
    /// Bytes until they end, and the catalogue's entry without its sizes.
    Single(Box<dyn Read + Send>, Box<Entry>),
    /// Many files.
    Tree(Box<Collector>),
    /// Part after part.
    Set(Box<SetFeed>),
}

impl Content {
    /// Both streams; files longer than `cut_above_bytes` begin a chunk.
    pub fn into_feed(self, cut_above_bytes: u32) -> Box<dyn Feed> {
        match self {
            Self::Single(reader, entry) => Box::new(SingleFeed::new(reader, *entry)),
            Self::Tree(mut collector) => {
                collector.cut_above(u64::from(cut_above_bytes));
                collector
            }
            Self::Set(mut feed) => {
                feed.cut_above(u64::from(cut_above_bytes));
                feed
            }
        }
    }
}

/// How a source ended well.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SourceEnd {
    /// End of what the command wrote to standard error.
    pub standard_error: Vec<u8>,
    /// A file changed while it was read.
    pub changed: bool,
    /// What was read of a tree, or of all parts.
    pub tree: Option<Collected>,
    /// What each part of a set was.
    pub parts: Vec<PartRead>,
}

impl SourceEnd {
    /// Everything that was to be read was read.
    pub fn is_complete(&self) -> bool {
        self.tree.as_ref().is_none_or(Collected::is_complete)
    }
}

/// What must be true of the source before a record may be made.
pub enum SourceGuard {
    /// A stream has no more to say than its end.
    Stream,
    /// A file should be what it was when it was opened.
    File {
        /// The file that was read.
        file: File,
        /// Size and time of change when it was opened.
        before: (u64, i64, i64),
    },
    /// A tree is what could be read of it.
    Tree(Arc<Mutex<Collected>>),
    /// A command must exit with 0.
    Command(RunningCommand),
    /// All of the parts must be there.
    Set(SetGuard),
}

impl Source {
    /// Standard input of this process.
    pub fn stdin() -> Result<Self, ClientError> {
        Ok(Self::Stream(Box::new(standard_input()?)))
    }

    /// Opens the source, once: a stream or command is gone then, a file stays and can be opened
    /// again.
    pub fn open(&mut self) -> Result<OpenSource, ClientError> {
        match self {
            Self::File(path) => open_file(path),
            Self::Tree(options) => open_tree(options),
            Self::Stream(reader) => {
                let reader = std::mem::replace(reader, Box::new(io::empty()));
                Ok(OpenSource {
                    content: Content::Single(reader, Box::new(Entry::empty(Kind::Stream))),
                    size_hint: None,
                    command: Vec::new(),
                    paths: Vec::new(),
                    guard: SourceGuard::Stream,
                })
            }
            Self::Command(command) => start_command(command),
            Self::Set(set) => open_set(set),
        }
    }

    /// Whether the source can be read a second time.
    pub fn can_restart(&self) -> bool {
        match self {
            Self::File(_) | Self::Tree(_) => true,
            Self::Stream(_) | Self::Command(_) => false,
            Self::Set(set) => set.can_restart(),
        }
    }
}

impl SourceGuard {
    /// Waits for the end of the source after its last byte was read.
    pub async fn finish(&mut self) -> Result<SourceEnd, ClientError> {
        match self {
            Self::Stream => Ok(SourceEnd::default()),
            Self::File { file, before } => {
                let fail = |error| ClientError::file("read the state of the source file", error);
                let changed = state_of(file).map_err(fail)? != *before;
                Ok(SourceEnd { changed, ..SourceEnd::default() })
            }
            Self::Tree(collected) => {
                let tree = Some(std::mem::take(&mut *collected.lock()));
                Ok(SourceEnd { tree, ..SourceEnd::default() })
            }
            Self::Command(running) => {
                let standard_error = running.finish().await?;
                Ok(SourceEnd { standard_error, ..SourceEnd::default() })
            }
            Self::Set(guard) => {
                let read = guard.finish()?;
                let (tree, parts) = (Some(read.files), read.parts);
                let standard_error = read.standard_error;
                Ok(SourceEnd { standard_error, changed: false, tree, parts })
            }
        }
    }
}

/// Standard input of this process.
pub fn standard_input() -> Result<File, ClientError> {
    let fail = |error| ClientError::file("open standard input", error);
    let descriptor = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
    Ok(File::from(descriptor))
}

fn open_file(path: &Path) -> Result<OpenSource, ClientError> {
    let fail = |error| ClientError::file(format!("open {}", path.display()), error);
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(ClientError::Usage(format!(
            "{}: not a regular file; give a file, --stdin, or a command after --",
            path.display()
        )));
    }
    let mut entry = Entry::empty(Kind::File);
    entry.path = path.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default();
    entry.mode = metadata.mode() & 0o7777;
    entry.uid = metadata.uid();
    entry.gid = metadata.gid();
    OwnerNames::load().name(&mut entry);
    entry.modified_seconds = metadata.mtime();
    entry.modified_nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    let whole_path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let guard = SourceGuard::File {
        before: state_of(&file).map_err(fail)?,
        file: file.try_clone().map_err(fail)?,
    };
    Ok(OpenSource {
        content: Content::Single(Box::new(file), Box::new(entry)),
        size_hint: Some(metadata.len()),
        command: Vec::new(),
        paths: vec![whole_path.to_string_lossy().into_owned()],
        guard,
    })
}

fn open_tree(options: &TreeOptions) -> Result<OpenSource, ClientError> {
    let size_hint = size_if_small(options, SMALL_SOURCE_BYTES)?;
    let collector = Collector::begin(options)?;
    Ok(OpenSource {
        size_hint,
        command: Vec::new(),
        paths: options.walk.whole_paths(),
        guard: SourceGuard::Tree(collector.collected()),
        content: Content::Tree(Box::new(collector)),
    })
}

fn open_set(set: &mut PartSet) -> Result<OpenSource, ClientError> {
    let (command, paths) = (set.typed().to_vec(), set.whole_paths());
    let (feed, guard) = SetFeed::begin(set)?;
    let content = Content::Set(Box::new(feed));
    Ok(OpenSource { content, size_hint: None, command, paths, guard: SourceGuard::Set(guard) })
}

fn start_command(command: &[String]) -> Result<OpenSource, ClientError> {
    // From here on a failure drops the guard, which ends the command.
    let (guard, stdout) = RunningCommand::start(command)?;
    Ok(OpenSource {
        content: Content::Single(Box::new(stdout), Box::new(Entry::empty(Kind::Stream))),
        size_hint: None,
        command: command.to_vec(),
        paths: Vec::new(),
        guard: SourceGuard::Command(guard),
    })
}

fn state_of(file: &File) -> io::Result<(u64, i64, i64)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn reader_of(source: &mut OpenSource) -> &mut dyn Read {
        match &mut source.content {
            Content::Single(reader, _) => reader,
            Content::Tree(_) | Content::Set(_) => panic!("many files"),
        }
    }

    fn run(script: &str) -> (Vec<u8>, Result<SourceEnd, ClientError>) {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut source = Source::Command(command).open().unwrap();
        let mut bytes = Vec::new();
        reader_of(&mut source).read_to_end(&mut bytes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        (bytes, runtime.block_on(source.guard.finish()))
    }

    #[test]
    fn a_command_gives_its_output_and_the_end_of_its_errors() {
        let (bytes, end) = run("echo dump; echo warning >&2");
        assert_eq!(bytes, b"dump\n");
        assert_eq!(end.unwrap().standard_error, b"warning\n");
    }

    #[test]
    fn only_exit_code_0_counts() {
        for (script, word) in [("echo x; exit 3", "code 3"), ("kill -9 $$", "signal 9")] {
            let (_, end) = run(script);
            let Err(ClientError::DumpFailed(message)) = end else { panic!("{script}: {end:?}") };
            assert!(message.contains(word), "{message}");
        }
        let missing = Source::Command(vec!["/nowhere/at/all".into()]).open();
        assert!(matches!(missing, Err(ClientError::DumpFailed(_))));
    }

    #[test]
    fn a_dropped_guard_ends_the_whole_group() {
        let command = ["sh", "-c", "sleep 1000 & echo $!; wait"].map(str::to_owned).to_vec();
        let mut source = Source::Command(command).open().unwrap();
        let mut text = [0; 16];
        let count = reader_of(&mut source).read(&mut text).unwrap();
        let pid: u32 = std::str::from_utf8(&text[..count]).unwrap().trim().parse().unwrap();
        drop(source);
        let is_gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z"),
            Err(_) => true,
        };
        for _ in 0..200 {
            if is_gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("grandchild {pid} still runs");
    }

    #[test]
    fn a_file_says_when_it_changed_under_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.sql");
        std::fs::write(&path, b"one").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut source = Source::File(path.clone()).open().unwrap();
        assert_eq!(source.size_hint, Some(3));
        let Content::Single(_, entry) = &source.content else { panic!("not a file") };
        assert_eq!(entry.path, b"dump.sql");
        assert!(!runtime.block_on(source.guard.finish()).unwrap().changed);
        std::fs::write(&path, b"longer").unwrap();
        assert!(runtime.block_on(source.guard.finish()).unwrap().changed);
        assert!(Source::File(folder.path().to_owned()).open().is_err());
    }
}
