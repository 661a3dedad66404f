//! Question: how fast does a replica catch up, with how many bytes on the wire and how much memory;
//! how soon after a commit is a small change there; how fast are export, import and scrub?
//!
//! Expected on two cores, all servers on them, dumps of 2 GB: the first day's sealed bytes at 250
//! MB/s or more over loopback, and at 80 % or more of a line of 1 Gbit/s at a round trip of 50 ms;
//! the second day in less than 3 s, with less than 1.05 times its new bytes on the wire; less than
//! 256 MB more memory on either side. Over a line of 50 ms, a small change is there in less than 2
//! s: half a poll interval (0.5 s) on average and 1 s at most, six round trips (proof, entries,
//! record, root, nodes, chunks), the commit: 0.9 s in the middle. A thousand small snapshots over
//! that line: 10 s or less; without groups they took 150 s. Export and import read, hash and write
//! each sealed byte once; scrub reads and hashes: all of them above 250 MB/s.
//!
//! ```text
//! DUMPS=folder cargo bench --bench replica [-- quick]     the folder has day0.sql and day1.sql
//! ```
//!
//! `quick` takes the first 200 MB of each dump, fewer small changes and one run; `RUNS` sets the
//! runs (default 3). MB are decimal, and sealed. The line is a relay in this program, which delays
//! what goes through, holds it to a rate and counts it, TLS and HTTP included; it works above TCP,
//! so there is no slow start. The reference is `dd conv=fdatasync` of as many bytes on the same
//! disk, in the same run. Scrub runs at pace 1. `scripts/netem-replica.sh` measures over a line
//! that the kernel emulates.

mod harness;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::programs::{Client, Server};
use harness::reference::dd;
use harness::relay::Relay;
use harness::rows::{Row, machine, medians, percentile, publish};
use harness::{Failure, as_f64, has_word, mb, run_count};

const ROUND_TRIP: Duration = Duration::from_millis(50);
/// 1 Gbit/s.
const LINE_BYTES_PER_SECOND: u64 = 125_000_000;
const CHANGES: u32 = 12;
const AT_FULL_PACE: &str = "[scrub]\npace = 1.0\n";

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-replica")?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    println!("{}", machine());
    println!("dumps: {} and {} bytes; median of {runs}", dumps.bytes[0], dumps.bytes[1]);
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        all.push(run_once(&place, &dumps)?);
    }
    let mut rows = medians(&all);
    rows.extend(small_changes(&place, quick)?);
    publish(&place, "replica", runs, &rows)
}

fn run_once(place: &Place, dumps: &Dumps) -> Result<Vec<Row>, Failure> {
    let folder = place.folder("run")?;
    let primary = Server::start_with(place, &folder.join("primary"), AT_FULL_PACE)?;
    let near = Server::start(place, &folder.join("near"))?;
    let far = Server::start(place, &folder.join("far"))?;
    let client = Client::set_up(place, &primary, "bench", &[])?;
    let first = sealed(&client.backup("day", &dumps.days[0])?)?;
    let dd = dd("dd conv=fdatasync, as many bytes", &dumps.days[0], first, &folder)?;
    let mut rows = first_day(&primary, &near, first, &dd)?;
    rows.extend(by_hand(place, &folder, &primary, first, &dd)?);
    let relay = Relay::to(primary.address)?;
    rows.push(first_day_over_a_line(&primary, &far, &relay, first)?);
    rows.extend(second_day(&client, &primary, [&near, &far], &relay, &dumps.days[1])?);
    rows.push(dd);
    Ok(rows)
}

fn sealed(summary: &Value) -> Result<u64, Failure> {
    let sent = summary["sent_sealed_bytes"].as_u64();
    sent.ok_or_else(|| format!("no sent_sealed_bytes in {summary}").into())
}

/// A row for what `act` does with so many sealed bytes.
fn timed(
    scenario: &str,
    bytes: u64,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<Row, Failure> {
    run_to_end(&mut std::process::Command::new("sync"))?;
    let began = Instant::now();
    act()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Row { scenario: scenario.to_owned(), seconds, ..Row::default() }.rate_of(bytes))
}

fn first_day(primary: &Server, near: &Server, first: u64, dd: &Row) -> Result<Vec<Row>, Failure> {
    let before = [primary.usage()?, near.usage()?];
    let row = timed("replica: first day, loopback", first, || {
        near.follow(primary, primary.address)?;
        near.wait_for(primary)
    })?;
    let after = [primary.usage()?, near.usage()?];
    let more = |at: usize| mb(after[at].peak_bytes.saturating_sub(before[at].peak_bytes));
    // The replica is the client here.
    let row = Row {
        client_cpu_seconds: after[1].cpu_seconds - before[1].cpu_seconds,
        server_cpu_seconds: after[0].cpu_seconds - before[0].cpu_seconds,
        client_peak_bytes: after[1].peak_bytes,
        server_peak_bytes: after[0].peak_bytes,
        ..row
    };
    Ok(vec![
        row.at_least(250.0).beside(dd),
        Row::figure("replica: more memory, primary", more(0), "MB").below(256.0),
        Row::figure("replica: more memory, replica", more(1), "MB").below(256.0),
    ])
}

/// Scrub, export, a check of the export, and import by a server that knows nothing yet.
fn by_hand(
    place: &Place,
    folder: &Path,
    primary: &Server,
    first: u64,
    dd: &Row,
) -> Result<Vec<Row>, Failure> {
    let disk = folder.join("disk");
    let path = disk.to_str().ok_or("path is not UTF-8")?;
    let mut hashed = 0;
    let scrub = timed("scrub at pace 1", first, || {
        let answer: Value = serde_json::from_str(&primary.command(&["scrub", "run", "--json"])?)?;
        let report = &answer["report"];
        let is_well = report["is_complete"] == true && report["damaged_count"] == 0;
        hashed = report["bytes"].as_u64().unwrap_or(0);
        if is_well { Ok(()) } else { Err(format!("scrub: {answer}").into()) }
    })?;
    let scrub = scrub.rate_of(hashed);
    let export = timed("export", first, || {
        primary.command(&["export", "--to", path]).map(drop)?;
        run_to_end(&mut std::process::Command::new("sync")).map(drop)
    })?;
    let carried = Server::start(place, &folder.join("carried"))?;
    let key = primary.ledger_key()?;
    let import = timed("import", first, || {
        let words = ["import", "--from", path, "--ledger-key", &key, "--json"];
        let answer: Value = serde_json::from_str(&carried.command(&words)?)?;
        let is_all = answer["report"]["snapshots"] == 1;
        if is_all { Ok(()) } else { Err(format!("import: {answer}").into()) }
    })?;
    fs::remove_dir_all(&disk)?;
    drop(carried);
    fs::remove_dir_all(folder.join("carried"))?;
    Ok([scrub, export, import].map(|row| row.beside(dd)).to_vec())
}

fn first_day_over_a_line(
    primary: &Server,
    far: &Server,
    relay: &Relay,
    first: u64,
) -> Result<Row, Failure> {
    relay.delay(ROUND_TRIP / 2);
    relay.rate(LINE_BYTES_PER_SECOND);
    let row = timed("replica: first day, 1 Gbit/s at 50 ms", first, || {
        far.follow(primary, relay.address)?;
        far.wait_for(primary)
    })?;
    relay.delay(Duration::ZERO);
    relay.rate(0);
    let line = Row::figure("the line", mb(LINE_BYTES_PER_SECOND), "MB/s");
    Ok(row.at_least(0.8 * line.figure).beside(&line))
}

/// The near replica is timed, the far one's bytes are counted.
fn second_day(
    client: &Client,
    primary: &Server,
    [near, far]: [&Server; 2],
    relay: &Relay,
    dump: &Path,
) -> Result<Vec<Row>, Failure> {
    for replica in [near, far] {
        replica.command(&["replica", "pause", "office"])?;
    }
    let second = sealed(&client.backup("day", dump)?)?;
    let row = timed("replica: second day", second, || {
        near.command(&["replica", "resume", "office"])?;
        near.wait_for(primary)
    })?;
    let counted = relay.carried();
    far.command(&["replica", "resume", "office"])?;
    far.wait_for(primary)?;
    let carried = as_f64(relay.carried() - counted) / as_f64(second.max(1));
    Ok(vec![
        Row { figure: row.seconds, unit: "s".into(), ..row }.below(3.0),
        Row::figure("replica: second day, on the wire / new bytes", carried, "").below(1.05),
    ])
}

/// Small changes over a line with a delay, once: they are many already. Then nothing.
fn small_changes(place: &Place, quick: bool) -> Result<Vec<Row>, Failure> {
    let (changes, small_count, idle) = if quick { (6, 100, 5) } else { (CHANGES, 1000, 10) };
    let folder = place.folder("run")?;
    let primary = Server::start(place, &folder.join("primary"))?;
    let far = Server::start(place, &folder.join("far"))?;
    let client = Client::set_up(place, &primary, "bench", &[])?;
    let relay = Relay::to(primary.address)?;
    relay.delay(ROUND_TRIP / 2);
    far.follow(&primary, relay.address)?;
    let small = client.home.join("small");
    let mut behind: Vec<f64> = Vec::new();
    for change in 0..changes {
        // Nowhere near the rhythm of the looks.
        std::thread::sleep(Duration::from_millis(1000 + u64::from(change) * 83));
        fs::write(&small, format!("change {change} {}", "of little ".repeat(2000)))?;
        client.backup("small", &small)?;
        let began = Instant::now();
        far.wait_for(&primary)?;
        behind.push(began.elapsed().as_secs_f64());
    }
    behind.sort_by(f64::total_cmp);
    far.command(&["replica", "pause", "office"])?;
    for number in 0..small_count {
        fs::write(&small, format!("snapshot {number}"))?;
        client.backup("many", &small)?;
    }
    far.command(&["replica", "resume", "office"])?;
    let began = Instant::now();
    far.wait_for(&primary)?;
    let seconds = began.elapsed().as_secs_f64();
    let asked = primary.metric("strongroom_requests_total")?;
    std::thread::sleep(Duration::from_secs(idle));
    let asked = primary.metric("strongroom_requests_total")? - asked;
    let looks = as_f64(asked) / as_f64(idle);
    let change = |name: &str, share: f64| {
        let name = format!("replica: a small change at 50 ms, {name} of {changes}");
        Row::figure(&name, percentile(&behind, share), "s")
    };
    let many = format!("replica: {small_count} small snapshots at 50 ms");
    Ok(vec![
        change("middle", 0.5),
        change("most", 1.0).below(2.0),
        Row::figure(&many, seconds, "s").below(f64::from(small_count) / 100.0),
        Row::figure("replica: requests a second without news (looks each second)", looks, ""),
    ])
}
