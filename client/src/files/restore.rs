//! A tree, or a part of one, back into a folder.
//!
//! 1. Check the catalogue, and plan what of the data stream is needed.
//! 2. Open the target. Where a marker of the same snapshot lies there, an earlier run was broken
//!    off: what it made is kept as far as its bytes are what they should be.
//! 3. Refuse to go on where something is in the way, before anything is made.
//! 4. Make the marker; make the files in the catalogue's order as their bytes come; then those that
//!    are links to what was not asked for. *Crash: an unfinished tree with a marker in it.*
//! 5. Give folders their modes and times, those inside first.
//! 6. Sync the file system; remove the marker. *Crash after it: the whole tree.*

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode, OFlags, openat, syncfs};
use rustix::process::geteuid;
use serde::Serialize;
use strongroom_protocol::catalogue::{Entry, Kind};
use strongroom_protocol::id::RecordDigest;
use strongroom_protocol::record::Totals;

use crate::error::ClientError;
use crate::fetch::sum;
use crate::files::confine::Confined;
use crate::files::kept::Kept;
use crate::files::plant::{PlantOptions, Planted, Planter, Wanted, finish_folders, finish_root};
use crate::files::select::{Pick, Plan, Selected, Selection, range_of};
use crate::files::walk::shown;
use crate::progress::Monitor;
use crate::stream::{DataRead, Has, OpenTree, Part};

/// Start of the marker's name; digits of the snapshot follow, so that no snapshot has a file of its
/// own marker's name.
const MARKER: &str = ".strongroom-restore-";
/// Digits of the snapshot in the marker's name.
const MARKER_DIGITS: usize = 16;
/// Names of what is in the way that are told.
const TOLD_MAX: usize = 3;

/// How a tree is restored.
#[derive(Debug, Clone, Default)]
pub struct TreeRestoreOptions {
    /// The part that is wanted.
    pub selection: Selection,
    /// Replace what is there.
    pub overwrite: bool,
    /// Make pipes and devices.
    pub special: bool,
    /// Set-user-id bits, and attributes of the system's security.
    pub same_permissions: bool,
}

/// What was made of a tree; a part of the object that `--json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TreeRestored {
    /// Regular files, each name counted.
    pub file_count: u64,
    /// Directories.
    pub directory_count: u64,
    /// Symbolic links, pipes and devices.
    pub other_count: u64,
    /// Pipes, devices and sockets that were not asked for.
    pub skipped_count: u64,
    /// Bytes that an earlier run had left there.
    pub kept_bytes: u64,
    /// An earlier run was gone on with.
    pub is_resumed: bool,
    /// Owners, modes, times and attributes that could not be set.
    pub problem_count: u64,
    /// The first of them, as text.
    pub problems: Vec<String>,
}

/// What a restore of a tree did and read.
pub struct Outcome {
    /// What was made.
    pub restored: TreeRestored,
    /// Bytes of the files.
    pub data_bytes: u64,
    /// Envelopes that were fetched, the catalogue's not.
    pub totals: Totals,
}

/// Restores a tree into the folder `target`, which is made where it is not there.
pub async fn restore_tree(
    tree: &OpenTree,
    snapshot: RecordDigest,
    target: &Path,
    options: &TreeRestoreOptions,
    monitor: &Monitor,
) -> Result<Outcome, ClientError> {
    let plan = Plan::make(&tree.catalogue, &options.selection)?;
    monitor.set_total(plan.data_bytes);
    let mut site = Site::open(tree, snapshot, target, options)?;
    let planted = Arc::new(Mutex::new(Planted::default()));
    let planter = Planter::new(
        site.root.again(),
        site.wanted(),
        options.selection.clone(),
        site.options,
        planted.clone(),
    );
    let kept_bytes = Arc::new(Mutex::new(0u64));
    let part = Part::Ranges { ranges: plan.ranges, has: site.look_for_kept(&kept_bytes, monitor) };
    let mut totals = tree.read(Box::new(planter), part, monitor).await?.totals;
    let late = std::mem::take(&mut planted.lock().late);
    let mut data_bytes = plan.data_bytes;
    for entry in late {
        data_bytes = data_bytes.saturating_add(entry.data_bytes);
        totals = sum(totals, site.make_late(entry, &planted, monitor).await?.totals);
    }
    let mut planted = std::mem::take(&mut *planted.lock());
    site.finish(&mut planted)?;
    let restored = TreeRestored {
        file_count: planted.file_count,
        directory_count: planted.directory_count,
        other_count: planted.other_count,
        skipped_count: planted.skipped_count,
        kept_bytes: *kept_bytes.lock(),
        is_resumed: site.options.resume,
        problem_count: planted.problem_count,
        problems: planted.problems,
    };
    Ok(Outcome { restored, data_bytes, totals })
}

/// The target, and what is made there.
struct Site<'a> {
    tree: &'a OpenTree,
    selection: Selection,
    root: Confined,
    marker: String,
    options: PlantOptions,
    /// The target itself was not there.
    is_new: bool,
    path: PathBuf,
}

impl<'a> Site<'a> {
    fn open(
        tree: &'a OpenTree,
        snapshot: RecordDigest,
        target: &Path,
        options: &TreeRestoreOptions,
    ) -> Result<Self, ClientError> {
        let fail = |error| ClientError::file(format!("restore into {}", target.display()), error);
        let is_new = !target.exists();
        if is_new {
            std::fs::create_dir_all(target).map_err(fail)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, target, flags, Mode::empty());
        let mut root = Confined::new(folder.map_err(|error| fail(error.into()))?);
        let digits = snapshot.to_string();
        let marker = format!("{MARKER}{}", digits.get(..MARKER_DIGITS).unwrap_or(&digits));
        let resume = root.look(marker.as_bytes()).map_err(fail)?.is_some();
        let mut site = Self {
            tree,
            selection: options.selection.clone(),
            root,
            marker,
            options: PlantOptions {
                replace: options.overwrite || resume,
                resume,
                special: options.special,
                same_permissions: options.same_permissions,
                is_root: geteuid().is_root(),
            },
            is_new,
            path: target.to_path_buf(),
        };
        if !resume {
            let is_empty = std::fs::read_dir(target).map_err(fail)?.next().is_none();
            if !is_empty {
                site.refuse_what_is_in_the_way()?;
            }
            site.root.make_file(site.marker.as_bytes()).map_err(fail)?;
        }
        Ok(site)
    }

    fn wanted(&self) -> Wanted {
        Box::new(Selected::new(&self.tree.catalogue, &self.selection))
    }

    /// Before anything is made: files that are there, and folders in whose place something else is.
    fn refuse_what_is_in_the_way(&mut self) -> Result<(), ClientError> {
        let (mut names, mut count) = (Vec::new(), 0u64);
        for next in self.wanted() {
            let (entry, _) = next?;
            let is_folder = entry.kind == Kind::Directory;
            if entry.path.is_empty() {
                continue;
            }
            let fail = |error| ClientError::file(shown(&entry.path), error);
            let there = match self.root.look(&entry.path) {
                Ok(there) => there,
                // What it lies in is no folder: that is told already, or will be replaced.
                Err(_) if count > 0 || self.options.replace => continue,
                Err(error) => return Err(fail(error)),
            };
            let Some(stat) = there else { continue };
            let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
            if (is_folder && is_dir) || (self.options.replace && !is_dir) {
                continue;
            }
            count = count.saturating_add(1);
            if names.len() < TOLD_MAX {
                names.push(shown(&entry.path));
            }
        }
        if count == 0 {
            return Ok(());
        }
        let advice = match self.options.replace {
            true => "a folder is never replaced by a file: remove it, or restore elsewhere",
            false => "restore into another folder, or replace files with --overwrite",
        };
        Err(ClientError::Usage(format!(
            "{}: {count} of the names are there already ({}, ...): {advice}",
            self.path.display(),
            names.join(", ")
        )))
    }

    /// Where an earlier run is gone on with: what of it need not be fetched.
    fn look_for_kept(&self, kept_bytes: &Arc<Mutex<u64>>, monitor: &Monitor) -> Has {
        if !self.options.resume {
            return None;
        }
        let mut kept = Kept::new(self.root.again(), self.wanted(), self.tree.keys());
        let (bytes, monitor) = (kept_bytes.clone(), monitor.clone());
        Some(Box::new(move |leaf| {
            let has = kept.has(leaf);
            if has {
                let length = leaf.child.plaintext_bytes;
                *bytes.lock() += length;
                monitor.add_done(length);
            }
            has
        }))
    }

    /// A link to what was not asked for becomes a file of its own.
    async fn make_late(
        &self,
        entry: Entry,
        planted: &Arc<Mutex<Planted>>,
        monitor: &Monitor,
    ) -> Result<DataRead, ClientError> {
        let range = range_of(&entry);
        let ranges = if range.is_empty() { Vec::new() } else { vec![range] };
        let wanted: Wanted = Box::new(std::iter::once(Ok((entry, Pick::Yes))));
        let options = PlantOptions { resume: false, ..self.options };
        let planter =
            Planter::new(self.root.again(), wanted, Selection::default(), options, planted.clone());
        let part = Part::Ranges { ranges, has: None };
        self.tree.read(Box::new(planter), part, monitor).await
    }

    fn finish(&mut self, planted: &mut Planted) -> Result<(), ClientError> {
        let what = format!("finish the restore into {}", self.path.display());
        let fail = |error: io::Error| ClientError::file(what.clone(), error);
        let wanted = self.wanted();
        finish_folders(&mut self.root, wanted, self.options, planted)?;
        syncfs(self.root.root()).map_err(|error| fail(error.into()))?;
        self.root.remove(self.marker.as_bytes()).map_err(fail)?;
        if self.is_new
            && let Some(Ok((entry, Pick::Yes))) = self.wanted().next()
        {
            finish_root(self.root.root(), &entry, self.options, planted);
        }
        let root: OwnedFd = self.root.root().try_clone().map_err(fail)?;
        File::from(root).sync_all().map_err(fail)
    }
}
