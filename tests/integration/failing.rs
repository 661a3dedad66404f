//! Every write, sync, rename, open and removal of the server fails in turn, RocksDB's own among
//! them: the server ends itself or refuses with words, and what it had acknowledged is there.

use std::collections::BTreeMap;

use crate::day::{Day, End};
use crate::disk::{Disk, EIO, ENOSPC, Failure};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a server may not go on after. (It may after a hint to write soon, a file that is not there
/// to be opened again, or one that could not be removed.)
const FATAL: [&str; 5] = ["write", "sync", "rename", "link", "mkdir"];

/// How the n-th failure of a campaign fails.
fn failure_of(point: usize, call: usize) -> Failure {
    let (errno, mode) =
        [(EIO, "once"), (ENOSPC, "once"), (EIO, "ever"), (ENOSPC, "ever"), (EIO, "torn")]
            [point % 5];
    Failure { call, errno, mode }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_any_call_of_the_disk_fails() {
    let (points, seed) = (number("POINTS", 20), number("SEED", 1));
    let (day, disk) = (Day::prepare().await, Disk::build());
    let (mut ends, mut kinds): (BTreeMap<End, usize>, BTreeMap<String, usize>) = Default::default();
    let (mut acknowledged, mut reached) = (0, 0);
    // Without a failure, to see how many calls there are.
    let folder = tempfile::tempdir().unwrap();
    day.copy_morning(folder.path());
    let (told, end) = day.live(folder.path(), &disk.counting(&folder.path().join("data"))).await;
    told.assert_whole_day(end);
    day.check(folder.path(), &told, u64::MAX);
    let calls = disk.calls().len();
    println!("disk: {calls} calls in a day, {points} failures, SEED={seed}");
    for point in 0..points {
        // Evenly over all calls, each campaign at other ones.
        let call = 1 + (point * calls + seed * 7919 % calls) / points % calls;
        let failure = failure_of(point + seed, call);
        let folder = tempfile::tempdir().unwrap();
        day.copy_morning(folder.path());
        let variables = disk.failing(&folder.path().join("data"), failure);
        let (told, end) = day.live(folder.path(), &variables).await;
        let hit = disk.calls().get(call - 1).cloned();
        println!("disk: point {point}: {failure:?} {hit:?} {end:?}");
        day.check(folder.path(), &told, u64::MAX);
        acknowledged += told.acknowledged();
        *ends.entry(end).or_default() += 1;
        if let Some(hit) = hit {
            reached += 1;
            let kind = hit.split(' ').next().unwrap().to_owned();
            assert!(end != End::Done || !FATAL.contains(&kind.as_str()), "passed over: {hit}");
            *kinds.entry(kind).or_default() += 1;
        }
    }
    println!("disk: ends {ends:?}; kinds {kinds:?}; {acknowledged} acknowledged before them");
    println!("campaign-faults: {reached} failures injected, 0 acknowledged lost, 0 half visible");
    assert!(reached * 10 >= points * 9, "most calls come again in each run");
    assert!(ends.contains_key(&End::Aborted) && acknowledged > 0, "nothing was tested");
}
