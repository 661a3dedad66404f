//! Data folders that are not as they should be: half copied, cut, of another version, another
//! owner, in two copies, or not to be written to. Each attempt to open one ends with exit code 1
//! and words that say what to do, and changes nothing that could be needed to repair it.

use std::collections::BTreeMap;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rocksdb::{DB, Options};
use rustix::process::Signal;

use crate::gc::noise;
use crate::gc_crash::copy_folder;
use crate::harness::program;
use crate::programs::{Served, json, text};

/// What a program without rights runs as.
const NOBODY: u32 = 65534;

/// A repository with segments, an inbox and rows that only the log holds.
struct Office {
    served: Served,
    kit: PathBuf,
    dump: PathBuf,
}

impl Office {
    fn start() -> Self {
        let mut served = Served::start();
        assert!(served.signal(Signal::TERM).success());
        served.config = "segment = \"1MiB\"\n".into();
        served.serve();
        let kit = served.set_up();
        let dump = served.folder.path().join("dump");
        let mut office = Self { served, kit, dump };
        // So large that it is no small session, and is sealed.
        office.back_up("large", 1, 1000);
        office
    }

    fn back_up(&mut self, source: &str, seed: u64, pieces: u64) -> String {
        std::fs::write(&self.dump, noise(seed, pieces).concat()).unwrap();
        let dump = self.dump.to_str().unwrap();
        let made = json(&self.served.client("home", &["--json", "backup", source, dump]));
        made["snapshot"].as_str().unwrap().to_owned()
    }

    /// Ends the server with a kill, once `HEAD` has all that the ledger has.
    fn kill(&mut self) {
        self.back_up("small", 2, 10);
        let answer = json(&self.served.command(&["status", "--json"]));
        let size = answer["status"]["ledger_size"].to_string();
        let head = || std::fs::read_to_string(self.served.data().join("HEAD")).unwrap();
        while head().lines().nth(1) != Some(&size) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.served.signal(Signal::KILL);
    }

    /// A copy of the data folder, to be spoilt.
    fn copy(&self) -> Copy {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&self.served.data(), &folder.path().join("data"));
        Copy { folder }
    }
}

struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A command that opens the folder, and ends.
    fn status(&self) -> Output {
        let mut command = Command::new(program("strongroomd"));
        command.args(["status", "--json", "--data"]).arg(self.data()).output().unwrap()
    }

    /// Has it refused with these words; nothing that counts is changed by that.
    fn refused(&self, words: &str) {
        let before = contents(&self.data());
        let output = self.status();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {said}");
        assert!(said.contains(words), "{words:?} is not in {said:?}");
        assert_same(&before, &contents(&self.data()), words);
    }
}

type Contents = BTreeMap<PathBuf, [u8; 32]>;

/// Every file of a folder, with its digest.
fn contents(data: &Path) -> Contents {
    let (mut found, mut folders) = (Contents::new(), vec![data.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                let digest = *blake3::hash(&std::fs::read(&path).unwrap()).as_bytes();
                found.insert(path.strip_prefix(data).unwrap().to_path_buf(), digest);
            }
        }
    }
    found
}

/// Whether a refusal leaves a file as it is. It may have to open the rows to find out, and then the
/// engine makes new files of its own beside the tables.
fn is_kept(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let in_a_database = path.starts_with("meta") || path.starts_with("chunks");
    let is_of_the_engine = in_a_database && !name.ends_with(".sst");
    !(is_of_the_engine || name.starts_with("LOG") || ["lock", "LOCK"].contains(&name))
}

fn assert_same(before: &Contents, after: &Contents, what: &str) {
    for (path, digest) in before.iter().filter(|(path, _)| is_kept(path)) {
        let now = after.get(path);
        assert!(now == Some(digest), "{what}: {} changed: {}", path.display(), now.is_some());
    }
    let new = after.keys().filter(|path| is_kept(path) && !path.starts_with("meta"));
    for path in new {
        assert!(before.contains_key(path), "{what}: {} is new", path.display());
    }
}

/// What a file that is missing, or cut, is answered with; nothing where it is not needed.
fn answer_to(path: &str, is_missing: bool) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap();
    let either = |missing, cut| Some(if is_missing { missing } else { cut });
    match path {
        "repository.toml" => either("missing beside a repository: restore it", "repository.toml"),
        "HEAD" => either("HEAD: missing, so", "HEAD: not a head that this repository signed"),
        "meta/CURRENT" | "chunks/CURRENT" => either("CURRENT: missing, so", "restore the whole"),
        _ if path.starts_with("keys/") => either("restore it from your copy", "not readable as a"),
        _ if path.starts_with("chunks/") && name.ends_with(".sst") => {
            either("file is missing (it had", "the catalogue says")
        }
        _ if name.ends_with(".sst") || name.starts_with("MANIFEST") => Some("restore"),
        // What a killed server had not yet written elsewhere.
        _ if path.starts_with("meta/") && name.ends_with(".log") => Some("but had"),
        _ => None,
    }
}

#[test]
fn half_a_copy_of_a_data_folder_is_refused_whatever_is_missing_or_cut() {
    let mut office = Office::start();
    office.kill();
    let whole = contents(&office.served.data());
    let has = |end: &str| whole.keys().any(|path| path.to_str().unwrap().ends_with(end));
    assert!(has(".sst") && has(".log"), "{whole:?}");
    let mut refusals = 0;
    for path in whole.keys() {
        for is_missing in [true, false] {
            let copy = office.copy();
            let file = copy.data().join(path);
            let bytes = file.metadata().unwrap().len();
            let is_spoilt = match is_missing {
                true => std::fs::remove_file(&file).is_ok(),
                false => std::fs::File::options()
                    .write(true)
                    .open(&file)
                    .and_then(|file| file.set_len(bytes / 2))
                    .is_ok(),
            };
            assert!(is_spoilt);
            match answer_to(path.to_str().unwrap(), is_missing).filter(|_| bytes > 0) {
                Some(words) => {
                    println!("{}, missing: {is_missing}: {words}", path.display());
                    copy.refused(words);
                    refusals += 1;
                }
                None => {
                    let output = copy.status();
                    let said = text(&output.stderr);
                    assert!(output.status.success(), "{}: {said}", path.display());
                }
            }
        }
    }
    println!("odd folders: {refusals} refused, of {} files missing and cut", whole.len());
    assert!(refusals > 20, "{refusals}");
}

#[test]
fn a_folder_without_one_of_its_folders_is_refused() {
    let mut office = Office::start();
    office.kill();
    for (name, words) in [
        ("meta", "CURRENT: missing, so this is not a whole data folder"),
        ("chunks", "CURRENT: missing, so this is not a whole data folder"),
        ("keys", "not a data folder"),
    ] {
        let copy = office.copy();
        std::fs::remove_dir_all(copy.data().join(name)).unwrap();
        if name == "keys" {
            copy.refused("keys/tls.key: missing: restore it from your copy of keys/");
            std::fs::remove_file(copy.data().join("repository.toml")).unwrap();
        }
        copy.refused(words);
    }
    // Staging is made again.
    let copy = office.copy();
    std::fs::remove_dir_all(copy.data().join("staging")).unwrap();
    assert!(copy.status().status.success());
    // An empty folder, and none.
    let copy = Copy { folder: tempfile::tempdir().unwrap() };
    assert!(text(&copy.status().stderr).contains("make one with: strongroomd init --data"));
    assert!(!copy.data().exists(), "a question makes no folder");
    std::fs::create_dir(copy.data()).unwrap();
    copy.refused("make one with: strongroomd init --data");
}

/// Puts a row into the folder below the store, as another version would have written it.
fn put_version(data: &Path, version: u32) {
    let (options, meta) = (Options::default(), data.join("meta"));
    let families = DB::list_cf(&options, &meta).unwrap();
    let db = DB::open_cf(&options, &meta, &families).unwrap();
    let counters = db.cf_handle("counters").unwrap();
    db.put_cf(counters, b"schema_version", version.to_le_bytes()).unwrap();
}

#[test]
fn folders_of_older_and_newer_versions_are_refused_with_what_to_do() {
    let mut office = Office::start();
    assert!(office.served.signal(Signal::TERM).success());
    let copy = office.copy();
    put_version(&copy.data(), 3);
    copy.refused("schema version 3, this program knows 2: use a newer one");
    put_version(&copy.data(), 1);
    copy.refused("schema version 1, this program knows 2: use the program that wrote it");
    put_version(&copy.data(), 2);
    assert!(copy.status().status.success());

    // A kind of rows that this version does not have.
    let copy = office.copy();
    let (options, meta) = (Options::default(), copy.data().join("meta"));
    let families = DB::list_cf(&options, &meta).unwrap();
    let mut db = DB::open_cf(&options, &meta, &families).unwrap();
    db.create_cf("of_next_year", &options).unwrap();
    drop(db);
    let before = contents(&copy.data());
    copy.refused("a family of_next_year, unknown to this program: use a newer one");
    assert_eq!(before, contents(&copy.data()), "not even the engine has touched it");
}

#[test]
fn a_folder_that_is_in_use_is_refused_and_one_that_was_left_by_a_kill_is_not() {
    let mut office = Office::start();
    let data = office.served.data();
    let refused = Command::new(program("strongroomd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is in use by a running strongroomd"));
    let init = Command::new(program("strongroomd"))
        .args(["init", "--host", "localhost", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(init.status.code(), Some(1));
    assert!(text(&init.stderr).contains("folder is not empty; name a new one"));
    // Lock and socket of a server that was killed are no obstacle, to a command or a server.
    office.kill();
    assert!(data.join("lock").exists() && data.join("admin.sock").exists());
    assert!(office.served.command(&["status"]).status.success());
    office.served.serve();
    office.back_up("after", 3, 10);
}

#[test]
fn a_second_copy_of_a_folder_is_noticed_by_who_saw_more_of_the_first() {
    let mut office = Office::start();
    office.kill();
    let copy = office.copy();
    // The first goes on, and its client sees it.
    office.served.serve();
    let last = office.back_up("large", 4, 20);
    office.served.signal(Signal::KILL);
    // Then the copy is served in its place, as it was.
    let data = office.served.data();
    std::fs::rename(&data, data.with_extension("first")).unwrap();
    copy_folder(&copy.data(), &data);
    office.served.serve();
    let dump = office.dump.to_str().unwrap();
    let output = office.served.client("home", &["backup", "large", dump]);
    assert_eq!(output.status.code(), Some(10), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("rolled back or forked"), "{}", text(&output.stderr));
    // And the first has all that it ever had.
    office.served.signal(Signal::KILL);
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(data.with_extension("first"), &data).unwrap();
    office.served.serve();
    let kit = office.kit.to_str().unwrap();
    let verified = office.served.client("fresh", &["verify", &last, "--kit", kit]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

/// Runs a command on the folder as a user without rights, who can reach folder and program.
fn status_of_nobody(copy: &Copy) -> Output {
    let open = Permissions::from_mode(0o755);
    set_permissions(copy.folder.path(), open.clone()).unwrap();
    let server = copy.folder.path().join("strongroomd");
    if !server.exists() {
        std::fs::copy(program("strongroomd"), &server).unwrap();
        set_permissions(&server, open).unwrap();
    }
    let mut command = Command::new(server);
    command.args(["status", "--data"]).arg(copy.data()).uid(NOBODY).gid(NOBODY);
    command.output().unwrap()
}

fn everything_below(folder: &Path, each: &dyn Fn(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            everything_below(&path, each);
        }
        each(&path);
    }
    each(folder);
}

#[test]
fn a_folder_of_another_owner_is_refused_and_says_whose_it_must_be() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can give a folder to somebody else");
        return;
    }
    let mut office = Office::start();
    office.kill();
    let wanted = "the user that runs strongroomd must own the data folder and all in it";
    let refused = |copy: &Copy, what: &str| {
        let before = contents(&copy.data());
        let output = status_of_nobody(copy);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(said.contains("Permission denied") && said.contains(wanted), "{what}: {said}");
        assert_same(&before, &contents(&copy.data()), what);
    };
    // All of it, still root's.
    let copy = office.copy();
    set_permissions(copy.data(), Permissions::from_mode(0o700)).unwrap();
    refused(&copy, "root's folder");
    // The folder given away, but not what is in it, or not all.
    chown(copy.data(), Some(NOBODY), Some(NOBODY)).unwrap();
    refused(&copy, "root's files");
    let give = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    let part = |copy: &Copy, name: &str| {
        everything_below(&copy.data(), &give);
        everything_below(&copy.data().join(name), &|path| {
            let mode = if path.is_dir() { 0o700 } else { 0o600 };
            chown(path, Some(0), Some(0)).unwrap();
            set_permissions(path, Permissions::from_mode(mode)).unwrap();
        });
    };
    for name in ["keys", "meta", "chunks", "staging"] {
        part(&copy, name);
        refused(&copy, name);
    }
    // To be read by all, and written by nobody.
    everything_below(&copy.data(), &|path| {
        chown(path, Some(0), Some(0)).unwrap();
        let mode = if path.is_dir() { 0o555 } else { 0o444 };
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    });
    refused(&copy, "not to be written to");
    // Given away wholly, it opens.
    everything_below(&copy.data(), &|path| {
        give(path);
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    });
    let output = status_of_nobody(&copy);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_folder_on_a_file_system_that_is_read_only_is_refused() {
    let mut office = Office::start();
    office.kill();
    let copy = office.copy();
    let data = copy.data().to_str().unwrap().to_owned();
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && \
                  exec \"$@\"";
    let inside = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh", &data]).args(words).output()
    };
    if !inside(&["true"]).is_ok_and(|output| output.status.success()) {
        println!("skipped: no mount namespaces here");
        return;
    }
    let before = contents(&copy.data());
    let server = program("strongroomd");
    let server = server.to_str().unwrap();
    for words in [
        &["status", "--data", &data][..],
        &["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--data", &data],
    ] {
        let output = inside(&[&[server], words].concat()).unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("Read-only file system"), "{said}");
        assert!(said.contains("be able to write there"), "{said}");
    }
    assert_eq!(before, contents(&copy.data()));
    assert!(copy.status().status.success(), "nothing is wrong with it");
}
