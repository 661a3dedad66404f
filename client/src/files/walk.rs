//! Finds what is in folders, in the order of a catalogue.
//!
//! Every file is reached from the folder that it lies in, by one name and without following a link,
//! so nobody who moves things meanwhile can lead the walk elsewhere. Only the way to a path that
//! the user typed may go over links. Folders are open from their listing until they are left; of a
//! deep chain the upper ones are closed meanwhile, and proven to be the same when they are opened
//! again. Memory is the names of the folders that are open.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use strongroom_protocol::catalogue::{compare_paths, is_within, split_path};
use strongroom_protocol::limits::PATH_MAX_BYTES;

use crate::error::ClientError;
use crate::files::exclude::Excludes;

/// Folders of a chain that are open at once.
const OPEN_LEVELS_MAX: usize = 64;
/// Buffer of a listing, in bytes.
const LISTING_BYTES: usize = 32 * 1024;

/// How a folder is opened to be listed.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What to walk through, and what not.
#[derive(Debug, Clone, Default)]
pub struct WalkOptions {
    /// Where relative paths begin; where this process is, if nothing is said.
    pub base: Option<PathBuf>,
    /// Paths as the user typed them.
    pub paths: Vec<PathBuf>,
    /// What is left out.
    pub excludes: Excludes,
    /// Do not enter folders that lie on another file system than the path above them.
    pub one_file_system: bool,
}

impl WalkOptions {
    /// The paths from the root of all, for people.
    pub fn whole_paths(&self) -> Vec<String> {
        let whole = |path: &PathBuf| {
            let path = self.base.as_ref().map_or_else(|| path.clone(), |base| base.join(path));
            let whole = std::path::absolute(&path).unwrap_or(path);
            whole.to_string_lossy().into_owned()
        };
        self.paths.iter().map(whole).collect()
    }
}

/// Something that was found.
#[derive(Debug)]
pub struct Found {
    /// Its path in the catalogue.
    pub path: Vec<u8>,
    /// The folder that it lies in.
    pub folder: Arc<OwnedFd>,
    /// What the folder says that it is.
    pub kind: FileType,
    /// Where it is a folder: itself.
    pub opened: Option<Arc<OwnedFd>>,
}

impl Found {
    /// Its name in its folder.
    pub fn name(&self) -> &[u8] {
        split_path(&self.path).1
    }
}

/// Why something is not in a snapshot as it should be.
#[derive(Debug)]
pub struct Problem {
    /// Its path in the catalogue.
    pub path: Vec<u8>,
    /// What happened.
    pub trouble: Trouble,
}

/// What can happen to a file.
#[derive(Debug)]
pub enum Trouble {
    /// It cannot be read.
    Unreadable(io::Error),
    /// It was there and is not any more.
    Vanished,
    /// It changed while it was read; the snapshot has what was read.
    Changed,
}

impl Trouble {
    /// What an error says of a file that was there a moment before.
    pub fn of(error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished,
            _ => Self::Unreadable(error),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = shown(&self.path);
        match &self.trouble {
            Trouble::Unreadable(error) => write!(formatter, "{path}: cannot be read: {error}"),
            Trouble::Vanished => write!(formatter, "{path}: vanished before it was read"),
            Trouble::Changed => write!(formatter, "{path}: changed while it was read"),
        }
    }
}

/// A path for people: one line, whatever its bytes are.
pub fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let is_plain = |letter: char| !letter.is_control() && letter != '\\';
    match text.chars().all(is_plain) {
        true => text.into_owned(),
        false => text.escape_debug().to_string(),
    }
}

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// Something was found.
    Found(Found),
    /// Something was not.
    Problem(Problem),
}

/// A walk under way.
pub struct Walk {
    base: Arc<OwnedFd>,
    /// Paths below the base that are still to come, none within another.
    paths: VecDeque<Vec<u8>>,
    /// The path whose ways were told last.
    told: Option<Vec<u8>>,
    excludes: Excludes,
    /// Device that the walk stays on.
    device: Option<u64>,
    one_file_system: bool,
    levels: Vec<Level>,
    steps: VecDeque<Step>,
    /// Files and folders that were left out because the user said so.
    pub excluded_count: u64,
}

/// A folder that is being walked through.
struct Level {
    folder: Option<Arc<OwnedFd>>,
    identity: (u64, u64),
    path: Vec<u8>,
    names: Names,
    next: usize,
}

/// Names of a folder, sorted, without one allocation each.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    entries: Vec<(usize, u16, FileType)>,
}

impl Names {
    fn push(&mut self, name: &[u8], kind: FileType) {
        // A name of a file system has at most a few hundred bytes.
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
        self.entries.push((self.bytes.len(), length, kind));
        self.bytes.extend_from_slice(name);
    }

    fn name(&self, (start, length, _): &(usize, u16, FileType)) -> &[u8] {
        let end = start.saturating_add(usize::from(*length));
        self.bytes.get(*start..end).unwrap_or(&[])
    }

    fn sort(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by(|one, other| self.name(one).cmp(self.name(other)));
        self.entries = entries;
    }
}

impl Walk {
    /// Begins to walk. Paths must be there, and be all absolute or all relative.
    pub fn begin(options: &WalkOptions) -> Result<Self, ClientError> {
        let (is_absolute, paths) = paths_below_base(&options.paths)?;
        let here = options.base.as_deref().unwrap_or(Path::new("."));
        let base = if is_absolute { Path::new("/") } else { here };
        let fail = |error: rustix::io::Errno| {
            ClientError::file(format!("open {}", base.display()), error.into())
        };
        let base = openat(CWD, base, FOLDER, Mode::empty()).map_err(fail)?;
        for path in paths.iter().filter(|path| !path.is_empty()) {
            let fail = |error: rustix::io::Errno| ClientError::file(shown(path), error.into());
            let stat = statat(&base, path, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            if FileType::from_raw_mode(stat.st_mode).is_symlink() {
                return Err(ClientError::Usage(format!(
                    "{} is a symbolic link: name what it points to",
                    shown(path)
                )));
            }
        }
        Ok(Self {
            base: Arc::new(base),
            paths: paths.into(),
            told: None,
            excludes: options.excludes.clone(),
            device: None,
            one_file_system: options.one_file_system,
            levels: Vec::new(),
            steps: VecDeque::new(),
            excluded_count: 0,
        })
    }

    /// Begins with the next path of the user: tells the folders on its way, then what it names.
    fn begin_path(&mut self, path: Vec<u8>) -> Result<(), Problem> {
        let mut folder = self.base.clone();
        let mut ends: Vec<usize> =
            (0..path.len()).filter(|at| path.get(*at) == Some(&b'/')).collect();
        ends.insert(0, 0);
        for end in ends.into_iter().filter(|_| !path.is_empty()) {
            let way = path.get(..end).unwrap_or(&[]);
            if end > 0 {
                let (_, name) = split_path(way);
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let opened = openat(&folder, name, FOLDER, Mode::empty())
                    .or_else(|_| openat(&folder, name, flags, Mode::empty()));
                folder = Arc::new(opened.map_err(|error| problem(way, error))?);
            }
            if self.told.as_ref().is_none_or(|told| !is_within(told, way)) {
                self.steps.push_back(Step::Found(Found {
                    path: way.to_vec(),
                    folder: folder.clone(),
                    kind: FileType::Directory,
                    opened: Some(folder.clone()),
                }));
            }
        }
        self.told = Some(path.clone());
        self.device = None;
        if path.is_empty() {
            self.enter(path, folder.clone(), folder);
            return Ok(());
        }
        self.meet(folder, path, FileType::Unknown);
        Ok(())
    }

    /// Takes note of something in a folder, and enters it where it is a folder itself.
    fn meet(&mut self, folder: Arc<OwnedFd>, path: Vec<u8>, kind: FileType) {
        let name = split_path(&path).1;
        let kind = match kind {
            FileType::Unknown => match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(error) => return self.steps.push_back(Step::Problem(problem(&path, error))),
            },
            known => known,
        };
        if self.excludes.is_match(&path) {
            self.excluded_count = self.excluded_count.saturating_add(1);
            return;
        }
        if !kind.is_dir() {
            let found = Found { path, folder, kind, opened: None };
            return self.steps.push_back(Step::Found(found));
        }
        match openat(&folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(opened) => self.enter(path, folder, Arc::new(opened)),
            Err(error) => {
                let told = problem(&path, error);
                if !matches!(told.trouble, Trouble::Vanished) {
                    // What it is called and whose it is can still be said.
                    let found = Found { path, folder, kind, opened: None };
                    self.steps.push_back(Step::Found(found));
                }
                self.steps.push_back(Step::Problem(told));
            }
        }
    }

    /// Tells a folder, and lists it.
    fn enter(&mut self, path: Vec<u8>, folder: Arc<OwnedFd>, opened: Arc<OwnedFd>) {
        let stat = match fstat(&opened) {
            Ok(stat) => stat,
            Err(error) => return self.steps.push_back(Step::Problem(problem(&path, error))),
        };
        self.steps.push_back(Step::Found(Found {
            path: path.clone(),
            folder,
            kind: FileType::Directory,
            opened: Some(opened.clone()),
        }));
        let device = *self.device.get_or_insert(stat.st_dev);
        if self.one_file_system && device != stat.st_dev {
            return;
        }
        let mut names = Names::default();
        if let Err(error) = list(&opened, &mut names) {
            self.steps.push_back(Step::Problem(problem(&path, error)));
        }
        names.sort();
        // The first level stays open: the way to it is what the user typed.
        if let Some(upper) = self.levels.len().checked_sub(OPEN_LEVELS_MAX).filter(|at| *at > 0)
            && let Some(level) = self.levels.get_mut(upper)
        {
            level.folder = None;
        }
        let identity = identity_of(&stat);
        self.levels.push(Level { folder: Some(opened), identity, path, names, next: 0 });
    }

    /// The folder of a level, opened again where it was closed.
    fn folder_at(&mut self, index: usize) -> Result<Arc<OwnedFd>, Problem> {
        let mut open = index;
        while open > 0 && self.levels.get(open).is_some_and(|level| level.folder.is_none()) {
            open -= 1;
        }
        let mut folder = self.levels.get(open).and_then(|level| level.folder.clone());
        for level in self.levels.iter_mut().take(index.saturating_add(1)).skip(open) {
            if let Some(known) = &level.folder {
                folder = Some(known.clone());
                continue;
            }
            let name = split_path(&level.path).1;
            let above = folder.take().unwrap_or_else(|| self.base.clone());
            let opened = openat(&above, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|error| problem(&level.path, error))?;
            let stat = fstat(&opened).map_err(|error| problem(&level.path, error))?;
            if identity_of(&stat) != level.identity {
                return Err(Problem { path: level.path.clone(), trouble: Trouble::Vanished });
            }
            folder = Some(Arc::new(opened));
        }
        let folder = folder.unwrap_or_else(|| self.base.clone());
        if let Some(level) = self.levels.get_mut(index) {
            level.folder = Some(folder.clone());
        }
        Ok(folder)
    }

    /// Meets what comes next in the innermost folder, or leaves it.
    fn go_on(&mut self) {
        let Some(index) = self.levels.len().checked_sub(1) else { return };
        let Some(level) = self.levels.get_mut(index) else { return };
        let Some(entry) = level.names.entries.get(level.next).copied() else {
            self.levels.pop();
            return;
        };
        level.next += 1;
        let mut path = Vec::with_capacity(level.path.len() + 1 + usize::from(entry.1));
        path.extend_from_slice(&level.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(level.names.name(&entry));
        if u32::try_from(path.len()).map_or(true, |length| length > PATH_MAX_BYTES) {
            let trouble = Trouble::Unreadable(io::Error::other("its path is too long"));
            return self.steps.push_back(Step::Problem(Problem { path, trouble }));
        }
        match self.folder_at(index) {
            Ok(folder) => self.meet(folder, path, entry.2),
            Err(problem) => {
                self.levels.pop();
                self.steps.push_back(Step::Problem(problem));
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Some(step);
            }
            if !self.levels.is_empty() {
                self.go_on();
                continue;
            }
            let path = self.paths.pop_front()?;
            if let Err(problem) = self.begin_path(path) {
                self.steps.push_back(Step::Problem(problem));
            }
        }
    }
}

fn list(folder: &OwnedFd, names: &mut Names) -> rustix::io::Result<()> {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut listing = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name, entry.file_type());
        }
    }
    Ok(())
}

fn identity_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn problem(path: &[u8], error: rustix::io::Errno) -> Problem {
    Problem { path: path.to_vec(), trouble: Trouble::of(error) }
}

/// Paths below the root of all, or below where this process is: sorted, none within another.
fn paths_below_base(typed: &[PathBuf]) -> Result<(bool, Vec<Vec<u8>>), ClientError> {
    let is_absolute = typed.first().is_some_and(|path| path.is_absolute());
    if typed.iter().any(|path| path.is_absolute() != is_absolute) {
        return Err(ClientError::Usage(
            "some paths are absolute and some are not: their names in the snapshot would not fit \
             together"
                .into(),
        ));
    }
    let mut paths = Vec::new();
    for path in typed {
        paths.push(path_below_base(path)?);
    }
    paths.sort_by(|one, other| compare_paths(one, other));
    paths.dedup_by(|path, before| is_within(path, before));
    Ok((is_absolute, paths))
}

/// A path as a catalogue has it: without `/` at its start or end, without `.` and doubled `/`.
pub fn path_below_base(path: &Path) -> Result<Vec<u8>, ClientError> {
    let mut below: Vec<u8> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                return Err(ClientError::Usage(format!(
                    "{}: a path with .. has no name in a snapshot; give the whole path",
                    shown(path.as_os_str().as_bytes())
                )));
            }
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn walked(options: &WalkOptions) -> (Vec<String>, Vec<String>) {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for step in Walk::begin(options).unwrap() {
            match step {
                Step::Found(one) => found.push(String::from_utf8(one.path).unwrap()),
                Step::Problem(problem) => problems.push(problem.to_string()),
            }
        }
        (found, problems)
    }

    fn names_below(folder: &Path, options: WalkOptions) -> Vec<String> {
        let (found, problems) = walked(&options);
        assert_eq!(problems, Vec::<String>::new());
        let prefix = format!("{}/", path_text(folder));
        found.iter().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn path_text(path: &Path) -> String {
        String::from_utf8(path_below_base(path).unwrap()).unwrap()
    }

    fn options(paths: &[&Path]) -> WalkOptions {
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        WalkOptions { paths, ..WalkOptions::default() }
    }

    #[test]
    fn everything_comes_in_the_order_of_a_catalogue() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        for path in ["a/b/c", "a/b.d", "a-", "a/b-"] {
            fs::create_dir_all(here.join(path)).unwrap();
        }
        fs::write(here.join("a/b/c/file"), b"x").unwrap();
        std::os::unix::fs::symlink("a", here.join("link")).unwrap();
        let names = names_below(here, options(&[here]));
        let wanted =
            ["a", "a/b", "a/b/c", "a/b/c/file", "a/b-", "a/b.d", "a-", "link"].map(str::to_owned);
        assert_eq!(names, wanted);
        let (all, _) = walked(&options(&[here]));
        assert_eq!(all[0], "", "the root is there");
        assert!(all.is_sorted_by(|one, other| {
            compare_paths(one.as_bytes(), other.as_bytes()).is_lt()
        }));
    }

    #[test]
    fn several_paths_are_one_tree() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        for path in ["x/one/deep", "x/two", "y"] {
            fs::create_dir_all(here.join(path)).unwrap();
        }
        let paths =
            [&here.join("y"), &here.join("x/two"), &here.join("x/one"), &here.join("x/one/deep")];
        let names = names_below(here, options(&paths.map(|path| path.as_path())));
        assert_eq!(names, ["x", "x/one", "x/one/deep", "x/two", "y"].map(str::to_owned));
        let mixed = options(&[here, Path::new("client")]);
        assert!(Walk::begin(&mixed).is_err(), "absolute and relative");
        assert!(Walk::begin(&options(&[Path::new("../x")])).is_err());
        assert!(Walk::begin(&options(&[&here.join("none")])).is_err());
    }

    #[test]
    fn a_link_on_the_command_line_is_a_mistake_and_one_on_the_way_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        fs::create_dir_all(here.join("real/inside")).unwrap();
        std::os::unix::fs::symlink("real", here.join("link")).unwrap();
        assert!(Walk::begin(&options(&[&here.join("link")])).is_err());
        let names = names_below(here, options(&[&here.join("link/inside")]));
        assert_eq!(names, ["link", "link/inside"].map(str::to_owned));
    }

    #[test]
    fn excludes_prune() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        for path in ["cache/deep", "keep/cache", "keep/rest"] {
            fs::create_dir_all(here.join(path)).unwrap();
        }
        let mut with = options(&[here]);
        with.excludes = Excludes::parse(&[format!("{}/cache", here.display())]).unwrap();
        let anchored = names_below(here, with.clone());
        assert_eq!(anchored, ["keep", "keep/cache", "keep/rest"].map(str::to_owned));
        with.excludes = Excludes::parse(&["cac*".to_owned()]).unwrap();
        assert_eq!(names_below(here, with), ["keep", "keep/rest"].map(str::to_owned));
    }

    #[test]
    fn relative_paths_begin_at_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        fs::create_dir(here.join("sub")).unwrap();
        fs::write(here.join("file"), b"x").unwrap();
        let mut all = options(&[Path::new(".")]);
        all.base = Some(here.to_path_buf());
        let wanted = ["", "file", "sub"].map(str::to_owned).to_vec();
        assert_eq!(walked(&all), (wanted, Vec::new()));
        let mut one = options(&[Path::new("file")]);
        one.base = Some(here.to_path_buf());
        assert_eq!(walked(&one).0, ["", "file"].map(str::to_owned));
        assert_eq!(one.whole_paths(), [here.join("file").to_str().unwrap()]);
        one.base = Some(here.join("none"));
        assert!(Walk::begin(&one).is_err());
    }

    #[test]
    fn another_file_system_is_not_entered_where_that_was_asked_for() {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &str| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        if device("/dev/shm").is_none() || device("/dev/shm") == device("/dev") {
            eprintln!("skipped: /dev/shm is not a file system of its own");
            return;
        }
        let Ok(inside) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("skipped: nothing can be made in /dev/shm");
            return;
        };
        let (mut stay, wanted) = (options(&[Path::new("/dev")]), path_text(inside.path()));
        let meets = |options: &WalkOptions, wanted: &str| {
            walked(options).0.iter().any(|path| path == wanted)
        };
        assert!(meets(&stay, &wanted));
        stay.one_file_system = true;
        assert!(!meets(&stay, &wanted));
        assert!(meets(&stay, "dev/shm"), "the folder itself is there");
        // Each path of the user has a file system of its own.
        stay.paths.push("/dev/shm".into());
        stay.paths.remove(0);
        assert!(meets(&stay, &wanted));
    }

    #[test]
    fn a_chain_deeper_than_what_is_open_is_walked_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut path = folder.path().to_path_buf();
        for _ in 0..3 * OPEN_LEVELS_MAX {
            path.push("d");
            fs::create_dir(&path).unwrap();
            fs::write(path.join("z"), b"").unwrap();
        }
        let names = names_below(folder.path(), options(&[folder.path()]));
        assert_eq!(names.len(), 6 * OPEN_LEVELS_MAX);
        assert_eq!(names.last().map(String::as_str), Some("d/z"));
    }

    #[test]
    fn paths_are_shown_on_one_line() {
        assert_eq!(shown(b"a b"), "a b");
        assert_eq!(shown(b"a\nb\xff"), "a\\nb\u{fffd}");
    }
}
