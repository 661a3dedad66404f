//! Question: what do clients get that come at once?
//!
//! Expected on two cores: the cores are the limit, so 16 clients get together 90 % or more of what
//! the best single one gets; what they lose is switching between processes and caches. Nobody is
//! preferred, so the slowest gets half of the mean or more.
//!
//! ```text
//! DUMPS=folder cargo bench --bench crowd [-- quick]       the folder has day0.sql and day1.sql
//! ```
//!
//! Each of the 16 has a namespace of its own and a sixteenth of the first day; the single client
//! has all of it. All of them are processes on this machine. A share is a client's own rate over
//! the mean of the rates; it would be 0.3 if they were served one after the other. `quick` takes
//! the first 200 MB.

mod harness;

use std::path::PathBuf;
use std::time::Instant;

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::programs::{Client, Server, all_at_once};
use harness::reference::warm;
use harness::rows::{Row, machine, medians, publish};
use harness::{Failure, as_f64, has_word, run_count};

const CLIENTS: u64 = 16;

fn main() -> Result<(), Failure> {
    let (quick, runs) = (has_word("quick"), run_count()?);
    let place = Place::new("bench-crowd")?;
    let dumps = Dumps::find(&place.scratch, quick)?;
    let parts = dumps.parts(CLIENTS, &place.scratch)?;
    println!("{}", machine());
    println!("{CLIENTS} clients, {} bytes in all; median of {runs}", dumps.bytes[0]);
    let mut all = Vec::new();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        let single = single(&place, &dumps)?;
        let mut rows = at_once(&place, &parts, &single)?;
        rows.push(single);
        all.push(rows);
    }
    publish(&place, "crowd", runs, &medians(&all))
}

/// All of it by one client.
fn single(place: &Place, dumps: &Dumps) -> Result<Row, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let client = Client::set_up(place, &server, "single", &[])?;
    warm(&dumps.days[0])?;
    client.backup_row("1 client", &server, "day", &dumps.days[0])
}

fn at_once(place: &Place, parts: &[PathBuf], single: &Row) -> Result<Vec<Row>, Failure> {
    let server = Server::start(place, &place.folder("run")?)?;
    let clients: Vec<Client> = (0..parts.len())
        .map(|number| Client::set_up(place, &server, &format!("erp-{number}"), &[]))
        .collect::<Result<_, _>>()?;
    for part in parts {
        warm(part)?;
    }
    run_to_end(&mut std::process::Command::new("sync"))?;
    server.reset_peak();
    let (before, began) = (server.usage()?, Instant::now());
    let measured = all_at_once(&clients, parts)?;
    let (seconds, after) = (began.elapsed().as_secs_f64(), server.usage()?);
    let mut rates = Vec::new();
    let (mut bytes, mut cpu_seconds, mut peak_bytes) = (0, 0.0, 0);
    for one in &measured {
        let row = Row { seconds: one.seconds, ..Row::default() };
        let row = row.of_summary(&serde_json::from_str(&one.output)?)?;
        rates.push(row.figure);
        bytes += row.plaintext_bytes;
        cpu_seconds += one.usage.cpu_seconds;
        peak_bytes = peak_bytes.max(one.usage.peak_bytes);
    }
    let total = Row {
        scenario: "16 clients at once".into(),
        seconds,
        client_cpu_seconds: cpu_seconds,
        server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        client_peak_bytes: peak_bytes,
        server_peak_bytes: after.peak_bytes,
        ..Row::default()
    };
    let slowest = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let fair = rates.iter().sum::<f64>() / as_f64(CLIENTS);
    Ok(vec![
        total.rate_of(bytes).at_least(0.9 * single.figure).beside(single),
        Row::figure("slowest of 16 / mean of 16", slowest / fair, "").at_least(0.5),
    ])
}
