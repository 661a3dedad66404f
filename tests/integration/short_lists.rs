//! A list of files of `meta/` that lost its last records, as in a copy that was made of a folder in
//! use: the rows of those files are gone, and the logs that had them were removed when the files
//! were made. All families of rows are written out together, so what is lost is an end of history,
//! and the ledger is shorter than `HEAD` says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom_server::repository::Repository;

use crate::gc::{assert_whole, noise, snapshot, tree_of};
use crate::harness::{Calm, TestServer, copy_folder, test_config};

/// Blocks of RocksDB's log format, and the header of a record in them: checksum, length, kind.
const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;

/// Where the records of a list end (RocksDB, "Write Ahead Log File Format").
fn ends_of_records(bytes: &[u8]) -> Vec<u64> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while at + HEADER_BYTES <= bytes.len() {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEADER_BYTES {
            at += left;
            continue;
        }
        let length = u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]);
        at += HEADER_BYTES + usize::from(length);
        ends.push(at as u64);
    }
    ends
}

fn list_of(meta: &Path) -> PathBuf {
    let current = std::fs::read_to_string(meta.join("CURRENT")).unwrap();
    meta.join(current.trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_files_that_lost_its_last_records_is_refused_or_nothing_is_lost() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let mut trees = Vec::new();
    for day in 0..2 {
        let tree = tree_of(&writer, &noise(day, 20));
        snapshot(&writer, "db", &tree).await;
        trees.push(tree);
        // What the engine does by itself when its buffers are full. Twice: of four it makes one.
        server.repository.store().flush_rows().unwrap();
    }
    server.repository.ledger().save_head().unwrap();
    let image = tempfile::tempdir().unwrap();
    let whole = image.path().join("whole");
    copy_folder(&server.folder.path().join("data"), &whole);

    let list = list_of(&whole.join("meta"));
    let bytes = std::fs::read(&list).unwrap();
    let ends = ends_of_records(&bytes);
    assert_eq!(ends.last(), Some(&(bytes.len() as u64)));
    let (mut refused, mut opened) = (0, 0);
    for end in ends.iter().rev() {
        let copy = image.path().join("copy");
        copy_folder(&whole, &copy);
        let cut = File::options().write(true).open(list_of(&copy.join("meta"))).unwrap();
        cut.set_len(*end).unwrap();
        let clock = server.clock.clone();
        match Repository::open(&copy, test_config(|_| {}), clock, Arc::new(Calm)) {
            Ok((repository, _)) => {
                let page = repository.list(&writer.namespace(), None, 0).unwrap();
                assert_eq!(page.rows.len(), trees.len(), "{end} of {}", bytes.len());
                trees.iter().for_each(|tree| assert_whole(&repository, &writer, tree));
                opened += 1;
            }
            Err(error) => {
                println!("{end} of {}: {error}", bytes.len());
                refused += 1;
            }
        }
        std::fs::remove_dir_all(&copy).unwrap();
    }
    println!("short lists: {refused} refused, {opened} opened with all that was there");
    assert!(opened == 1 && refused > 20, "only the whole list is opened: {refused}, {opened}");
}
