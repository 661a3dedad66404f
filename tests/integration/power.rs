//! Power cuts: a day of a server is written down call by call, and folders are made as a cut at
//! some moment may leave them (`power_model.rs` says what that is). Each is opened and compared
//! with what clients had been told by then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::day::Day;
use crate::disk::Disk;
use crate::power_model::{Call, Dice, Loss, Model, calls_of};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Files by their paths, but for locks, sockets and RocksDB's logs of events.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() && !name.starts_with("LOG") {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), bytes);
            }
        }
    }
    found
}

/// The list of calls is whole: played on the morning's folder, it gives the evening's.
fn assert_gives(morning: &Path, trace: &[u8], calls: &[Call], evening: &Path) {
    let mut model = Model::of(morning, trace);
    calls.iter().for_each(|call| model.play(call));
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("data");
    model.make(&made, Loss::Nothing, &mut Dice::of(0, 0));
    let (made, real) = (contents(&made), contents(evening));
    let names = |folder: &BTreeMap<PathBuf, Vec<u8>>| folder.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&real));
    for (path, bytes) in &made {
        assert!(*bytes == real[path], "{} differs", path.display());
    }
}

/// Moments of a day, in order: half of them anywhere, half where something is just being synced.
fn moments(calls: &[Call], count: u64, dice: &mut Dice) -> Vec<usize> {
    let syncs: Vec<usize> = (0..calls.len()).filter(|at| calls[*at].is_sync()).collect();
    let mut any = |end: usize| usize::try_from(dice.below(end as u64)).unwrap();
    let mut moments: Vec<usize> = (0..count)
        .map(|cut| match cut % 4 {
            0 | 1 => any(calls.len() + 1),
            2 => syncs[any(syncs.len())],
            _ => syncs[any(syncs.len())] + 1,
        })
        .collect();
    moments.sort_unstable();
    moments
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_a_power_cut() {
    let (days, cuts, seed) = (number("DAYS", 1), number("CUTS", 20), number("SEED", 1));
    println!("power: {days} days, {cuts} cuts in each, SEED={seed}");
    let (day, disk) = (Day::prepare().await, Disk::build());
    let (mut calls_count, mut syncs, mut lost_bytes_cuts) = (0, 0, 0);
    for number in 0..days {
        let folder = tempfile::tempdir().unwrap();
        day.copy_morning(folder.path());
        let data = folder.path().join("data").canonicalize().unwrap();
        let trace = folder.path().join("trace");
        let (told, end) = day.live(folder.path(), &disk.tracing(&data, &trace)).await;
        told.assert_whole_day(end);
        let trace = std::fs::read(trace).unwrap();
        let calls = calls_of(&trace, &data);
        assert_gives(&day.morning(), &trace, &calls, &data);
        calls_count += calls.len();
        syncs += calls.iter().filter(|call| call.is_sync()).count();
        let mut dice = Dice::of(seed, number);
        let mut model = Model::of(&day.morning(), &trace);
        let mut played = 0;
        for (cut, moment) in moments(&calls, cuts, &mut dice).into_iter().enumerate() {
            calls[played..moment].iter().for_each(|call| model.play(call));
            played = moment;
            let loss = [Loss::All, Loss::Some, Loss::Some, Loss::Nothing][cut % 4];
            let after = tempfile::tempdir().unwrap();
            model.make(&after.path().join("data"), loss, &mut dice);
            let at = moment.checked_sub(1).map_or(0, |last| calls[last].end);
            println!("power: day {number}, cut {cut} after call {moment}, lost: {loss:?}");
            day.check(after.path(), &told, at);
            lost_bytes_cuts += u64::from(loss != Loss::Nothing);
        }
    }
    println!("power: {calls_count} calls, {syncs} syncs; {lost_bytes_cuts} cuts lost what was not");
    println!("campaign-power: {} power cuts, 0 acknowledged lost, 0 half visible", days * cuts);
}
