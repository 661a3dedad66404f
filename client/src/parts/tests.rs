//! Sets that are read without a server: order, boundaries, failures, folders that go.

use super::*;
use std::fs;
use std::time::Duration;

use strongroom_protocol::catalogue::{Order, decode};

fn part(name: &str, content: PartContent) -> Part {
    Part { name: name.parse().unwrap(), content }
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

fn tree(folder: &Path) -> PartContent {
    let walk = WalkOptions { paths: vec![folder.to_path_buf()], ..WalkOptions::default() };
    PartContent::Tree(TreeOptions { walk, special: false })
}

fn set(parts: Vec<Part>) -> PartSet {
    PartSet::new(parts, vec![PART_WORD.to_owned()]).unwrap()
}

struct Fetched {
    entries: Vec<Entry>,
    data: Vec<u8>,
    boundaries: Vec<usize>,
    read: SetRead,
}

impl Fetched {
    fn paths(&self) -> Vec<String> {
        self.entries.iter().map(|e| String::from_utf8(e.path.clone()).unwrap()).collect()
    }

    fn bytes(&self, path: &str) -> &[u8] {
        let entry = self.entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
        let start = entry.data_offset as usize;
        &self.data[start..start + entry.data_bytes as usize]
    }
}

/// Reads a set to its end, and checks its catalogue as a restore does.
fn read(set: &mut PartSet) -> Result<Fetched, ClientError> {
    let (mut feed, mut guard) = SetFeed::begin(set)?;
    feed.cut_above(100_000);
    let (mut data, mut catalogue, mut boundaries) = (Vec::new(), Vec::new(), Vec::new());
    let (mut room, mut is_catalogue) = ([0; 700], false);
    loop {
        match feed.feed(&mut room).map_err(|error| error.downcast::<ClientError>().unwrap())? {
            Fed::Bytes(count) if is_catalogue => catalogue.extend_from_slice(&room[..count]),
            Fed::Bytes(count) => data.extend_from_slice(&room[..count]),
            Fed::Boundary => boundaries.push(data.len()),
            Fed::Catalogue => is_catalogue = true,
            Fed::End => break,
        }
    }
    let entries = decode(&catalogue).unwrap();
    let mut order = Order::default();
    entries.iter().for_each(|entry| order.take(entry).unwrap());
    assert_eq!(order.finish(data.len() as u64), Ok(true));
    Ok(Fetched { entries, data, boundaries, read: guard.finish()? })
}

#[test]
fn parts_are_folders_and_their_bytes_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one"), b"file").unwrap();
    fs::hard_link(folder.path().join("one"), folder.path().join("two")).unwrap();
    let stream = PartContent::Stream(Box::new(io::Cursor::new(b"stream")));
    let mut set = set(vec![
        part("conf", tree(folder.path())),
        part("db", PartContent::Command(shell("printf dump; echo told >&2"))),
        part("in", stream),
    ]);
    let fetched = read(&mut set).unwrap();
    let below = format!("conf{}", folder.path().display());
    let paths = fetched.paths();
    assert_eq!(&paths[..2], ["", "conf"]);
    assert_eq!(&paths[paths.len() - 4..], ["db", "db/dump", "in", "in/dump"]);
    assert_eq!(fetched.data, b"filedumpstream");
    assert_eq!(fetched.boundaries, [0, 4, 8]);
    assert_eq!(fetched.bytes(&format!("{below}/one")), b"file");
    assert_eq!(fetched.bytes("db/dump"), b"dump");
    let link = fetched.entries.iter().find(|entry| entry.kind == Kind::HardLink).unwrap();
    assert_eq!(link.link_target, format!("{below}/one").into_bytes());
    assert_eq!(fetched.read.standard_error, b"told\n");
    let parts: Vec<_> =
        fetched.read.parts.iter().map(|part| (part.kind, part.plaintext_bytes)).collect();
    assert_eq!(parts, [("files", 4), ("command", 4), ("stream", 6)]);
    assert_eq!(fetched.read.files.file_count, 4);
    assert!(fetched.read.files.is_complete());
}

#[test]
fn a_part_begins_when_the_one_before_has_ended_well() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let text = marker.to_str().unwrap();
    // It closes its output long before it ends.
    let slow = format!("exec 1>&-; sleep 0.3; echo late > {text}");
    let mut good = set(vec![
        part("1", PartContent::Command(shell(&slow))),
        part("2", PartContent::Command(shell(&format!("cat {text}")))),
    ]);
    assert_eq!(read(&mut good).unwrap().data, b"late\n");
    fs::remove_file(&marker).unwrap();
    let mut bad = set(vec![
        part("1", PartContent::Command(shell("echo half; exit 3"))),
        part("2", PartContent::Command(shell(&format!("touch {text}")))),
    ]);
    let error = read(&mut bad).err().unwrap();
    assert!(matches!(&error, ClientError::DumpFailed(told) if told.contains("code 3")), "{error}");
    assert!(!marker.exists(), "what comes after a failure is not started");
}

#[test]
fn what_would_fail_later_fails_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let touch = || PartContent::Command(shell(&format!("touch {}", marker.display())));
    let nowhere = folder.path().join("none");
    let filling = PartContent::Folder { command: shell("true {}"), scratch: nowhere.clone() };
    for later in [tree(&nowhere), filling] {
        let mut set = set(vec![part("1", touch()), part("2", later)]);
        assert!(read(&mut set).is_err());
        assert!(!marker.exists());
    }
}

fn filling(script: &str, scratch: &Path) -> PartContent {
    PartContent::Folder { command: shell(script), scratch: scratch.to_path_buf() }
}

#[test]
fn a_folder_that_a_command_filled_is_read_and_goes() {
    let place = tempfile::tempdir().unwrap();
    let script = "mkdir {}/sub; echo toc > {}/toc.dat; echo rows > {}/sub/1.dat; echo for people";
    let mut set = set(vec![
        part("db", filling(script, place.path())),
        part("then", PartContent::Command(shell(&format!("ls -A {}", place.path().display())))),
    ]);
    let fetched = read(&mut set).unwrap();
    let wanted = ["", "db", "db/sub", "db/sub/1.dat", "db/toc.dat", "then", "then/dump"];
    assert_eq!(fetched.paths(), wanted);
    assert_eq!(fetched.bytes("db/toc.dat"), b"toc\n");
    assert_eq!(fetched.bytes("then/dump"), b"", "it goes before the next part begins");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_goes_also_when_its_command_fails_or_left_nothing() {
    let place = tempfile::tempdir().unwrap();
    for (script, word) in
        [("echo half > {}/toc.dat; exit 4", "code 4"), ("true {}", "left nothing")]
    {
        let error = read(&mut set(vec![part("db", filling(script, place.path()))])).err().unwrap();
        assert!(matches!(&error, ClientError::DumpFailed(told) if told.contains(word)), "{error}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{script}");
    }
}

#[test]
fn a_dropped_guard_ends_the_command_and_removes_its_folder() {
    let place = tempfile::tempdir().unwrap();
    let mut set = set(vec![part("db", filling("echo $$ > {}/pid; sleep 1000", place.path()))]);
    let (mut feed, guard) = SetFeed::begin(&mut set).unwrap();
    let reader = std::thread::spawn(move || feed.feed(&mut [0; 100]).map(|_| ()));
    let pid = loop {
        let folders = fs::read_dir(place.path()).unwrap().flatten();
        let texts = folders.filter_map(|e| fs::read_to_string(e.path().join("pid")).ok());
        if let Some(pid) = texts.filter_map(|text| text.trim().parse::<u32>().ok()).next() {
            break pid;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(guard);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let error = reader.join().unwrap().unwrap_err().downcast::<ClientError>().unwrap();
    assert!(matches!(error, ClientError::Interrupted), "{error}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.is_err() || stat.unwrap().contains(") Z"), "{pid} still runs");
}

#[test]
fn a_path_that_its_place_makes_too_long_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = TreeOptions {
        walk: WalkOptions {
            base: Some(folder.path().to_path_buf()),
            paths: vec![".".into()],
            ..WalkOptions::default()
        },
        special: false,
    };
    fs::write(folder.path().join("file"), b"x").unwrap();
    // No label is so long; a path so long needs a chain of folders that takes seconds to make.
    let place = vec![b'p'; 16_384 - 4];
    let written = Written::begin().unwrap();
    let mut collector = Collector::go_on(&options, &place, written).unwrap();
    assert_eq!(collector.next_data(&mut [0; 10]).unwrap(), None);
    let collected = collector.collected().lock().clone();
    assert_eq!((collected.unreadable_count, collected.file_count), (1, 0));
    assert!(collected.problems[0].contains("its path is too long"));
}

#[test]
fn names_rise_and_one_part_is_standard_input() {
    let stream = || PartContent::Stream(Box::new(io::empty()));
    let made = |parts| PartSet::new(parts, Vec::new()).err().map(|error| error.to_string());
    let command = || PartContent::Command(shell("true"));
    assert_eq!(made(vec![part("a", command()), part("b", stream())]), None);
    for (one, next) in [("b", "a"), ("a", "a")] {
        let told = made(vec![part(one, command()), part(next, command())]).unwrap();
        assert!(told.contains("must come after"), "{told}");
    }
    assert!(
        made(vec![part("a", stream()), part("b", stream())]).unwrap().contains("standard input")
    );
}
