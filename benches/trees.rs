//! Question: what does a folder of many small files cost?
//!
//! Expected on two cores: a file that is read is five system calls and a row of the catalogue, some
//! 6 us of one thread, and its bytes cost what a dump's do; so 30 000 files/s that are new, and
//! 80 000 that are known. A file that is made is nine calls (create, write, owner, mode, times) and
//! an inode in the journal, as for `cp -a`: 20 000. Wanted: 20 000, 60 000, 15 000.
//!
//! ```text
//! TREE=folder cargo bench --bench trees [-- quick | removed]
//! ```
//!
//! The tree is 10^5 files of TREE, else of the Rust toolchain (sources, documentation) or of
//! cargo's registry, each at most 64 KiB long, with their folders; where there are fewer, all of
//! them again in further folders, whose bytes are known then. It is copied once and is in the page
//! cache. Each run has a new repository, and restores to a folder that was not there. `tar c | cat`
//! reads the same tree, `cp -a` makes it again. Nothing is removed before everything was measured:
//! `removed` measures instead what a restore costs directly after as large a tree was removed,
//! beside `tar x` in the same situation. `quick` takes 10^4 files.

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use harness::place::Place;
use harness::process::{Measured, measure, run_to_end};
use harness::programs::{Client, Server};
use harness::rows::{Row, machine, medians, publish};
use harness::{Failure, as_f64, has_word, run_count};
use serde_json::Value;

const FILES: u64 = 100_000;
const QUICK_FILES: u64 = 10_000;
/// Longer files are other benches' matter.
const FILE_MAX_BYTES: u64 = 64 << 10;

fn main() -> Result<(), Failure> {
    let runs = run_count()?;
    let place = Place::new("bench-trees")?;
    let tree = Tree::make(&place, if has_word("quick") { QUICK_FILES } else { FILES })?;
    println!("{}\n{}; median of {runs}", machine(), tree.words());
    if has_word("removed") {
        return removed(&place, &tree);
    }
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        all.push(one_run(&place, &tree, run)?);
    }
    publish(&place, "trees", runs, &medians(&all))
}

/// A folder of small files.
struct Tree {
    folder: PathBuf,
    files: u64,
    bytes: u64,
    median_bytes: u64,
}

impl Tree {
    /// Copies so many files into the scratch folder.
    fn make(place: &Place, wanted: u64) -> Result<Self, Failure> {
        let from = source_of_files()?;
        let mut found = Vec::new();
        find(&from, &mut found)?;
        if found.is_empty() {
            return Err(format!("no small files in {}", from.display()).into());
        }
        let folder = place.folder("tree")?;
        let mut sizes = Vec::new();
        for (number, (path, size)) in (0..wanted).zip(found.iter().cycle()) {
            let again = number / u64::try_from(found.len())?;
            let to = folder.join(again.to_string()).join(path.strip_prefix(&from)?);
            fs::create_dir_all(to.parent().ok_or("no folder")?)?;
            fs::copy(path, to)?;
            sizes.push(*size);
        }
        sizes.sort_unstable();
        let median_bytes = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
        Ok(Self { folder, files: wanted, bytes: sizes.iter().sum(), median_bytes })
    }

    fn words(&self) -> String {
        let Self { files, bytes, median_bytes, .. } = self;
        format!("{files} files, {bytes} bytes, the median file has {median_bytes}")
    }

    /// A row of files a second.
    fn rate(&self, row: Row) -> Row {
        let figure = as_f64(self.files) / row.seconds.max(1e-9);
        Row { figure, unit: "files/s".to_owned(), plaintext_bytes: self.bytes, ..row }
    }

    fn reference(&self, scenario: &str, command: &mut Command) -> Result<Row, Failure> {
        run_to_end(&mut Command::new("sync"))?;
        let Measured { seconds, .. } = measure(command)?;
        let row = Row { scenario: scenario.to_owned(), seconds, ..Row::default() };
        Ok(self.rate(Row { is_reference: true, ..row }))
    }
}

/// Where real small files are.
fn source_of_files() -> Result<PathBuf, Failure> {
    if let Some(folder) = std::env::var_os("TREE") {
        return Ok(folder.into());
    }
    let toolchain = run_to_end(Command::new("rustc").args(["--print", "sysroot"]));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cargo"))
    });
    let documented = toolchain.map(|path| PathBuf::from(path.trim())).into_iter();
    let places = documented.filter(|path| path.join("share/doc/rust/html").exists());
    let mut places = places.chain(home.map(|home| home.join("registry/src")));
    places.find(|path| path.exists()).ok_or_else(|| "set TREE to a folder of small files".into())
}

/// Regular files below a folder, in the order of their names.
fn find(folder: &Path, found: &mut Vec<(PathBuf, u64)>) -> Result<(), Failure> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            find(&path, found)?;
        } else if metadata.is_file() && metadata.size() <= FILE_MAX_BYTES {
            found.push((path, metadata.size()));
        }
    }
    Ok(())
}

fn one_run(place: &Place, tree: &Tree, run: usize) -> Result<Vec<Row>, Failure> {
    let server = Server::start(place, &place.folder(&format!("run-{run}"))?)?;
    let client = Client::set_up(place, &server, "files", &[])?;
    let read =
        tree.reference("tar c into a pipe", &mut shell(tree, "tar c \"$0\" | cat >/dev/null"))?;
    let backup = |name: &str| -> Result<Row, Failure> {
        let mut command = client.backup_of("files", &tree.folder);
        let (row, json) = client.row(name, &server, command.stdout(Stdio::piped()))?;
        let summary: Value = serde_json::from_str(&json)?;
        if summary["tree"]["file_count"] != tree.files || summary["is_complete"] != true {
            return Err(format!("not all files: {summary}").into());
        }
        Ok(tree.rate(row.of_summary(&summary)?))
    };
    let first = backup("files that are new")?.at_least(20_000.0).beside(&read);
    let again = backup("the same files again")?.at_least(60_000.0).beside(&read);
    let copy = place.scratch.join(format!("copy-{run}"));
    let mut cp = Command::new("cp");
    let cp = tree.reference("cp -a", cp.arg("-a").arg(&tree.folder).arg(&copy))?;
    let back = place.scratch.join(format!("back-{run}"));
    let (row, _) = client.row("restore", &server, &mut client.restore_of("files", &back))?;
    let restore = tree.rate(row).at_least(15_000.0).beside(&cp);
    if run == 1 {
        compare(tree, &back)?;
    }
    Ok(vec![first, again, restore, read, cp])
}

/// A command of the shell, with the tree's folder as `$0`.
fn shell(tree: &Tree, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&tree.folder);
    command.stderr(Stdio::null());
    command
}

/// What came back is what was there.
fn compare(tree: &Tree, back: &Path) -> Result<(), Failure> {
    let below = back.join(tree.folder.strip_prefix("/")?);
    run_to_end(Command::new("diff").arg("-rq").arg(&tree.folder).arg(below)).map(drop)
}

/// A restore, and `tar x`, to a new folder; then each directly after such a folder was removed.
fn removed(place: &Place, tree: &Tree) -> Result<(), Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let client = Client::set_up(place, &server, "files", &[])?;
    client.backup("files", &tree.folder)?;
    let archive = place.scratch.join("tree.tar");
    run_to_end(Command::new("tar").arg("cf").arg(&archive).arg(&tree.folder))?;
    let back = place.scratch.join("back");
    for (what, is_tar) in [("restore", false), ("tar x", true)] {
        for situation in ["new", "after rm -rf", "after rm -rf and sync"] {
            let began = Instant::now();
            if back.exists() {
                run_to_end(Command::new("rm").arg("-rf").arg(&back))?;
            }
            let removed_in = began.elapsed().as_secs_f64();
            if situation != "after rm -rf" {
                run_to_end(&mut Command::new("sync"))?;
            }
            fs::create_dir(&back)?;
            let began = Instant::now();
            if is_tar {
                run_to_end(Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(&back))?;
                run_to_end(Command::new("sync").arg("-f").arg(&back))?;
            } else {
                run_to_end(&mut client.restore_of("files", &back))?;
            }
            let seconds = began.elapsed().as_secs_f64();
            let rate = as_f64(tree.files) / seconds;
            println!("{what}, {situation}: {seconds:.1} s, {rate:.0} files/s");
            println!("  removing before it: {removed_in:.1} s");
        }
        run_to_end(Command::new("rm").arg("-rf").arg(&back))?;
    }
    Ok(())
}
