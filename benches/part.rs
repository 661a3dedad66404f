//! Question: how long does one who needs 1 MB of a snapshot of 100 GB wait?
//!
//! Expected: a process, TLS, the descriptor, the ledger's proof, the list, the record and its age
//! file are some 30 ms whatever is restored; then the root, the catalogue, three levels of nodes
//! one after the other, and 5 to 17 chunks in one request, a round trip each: 10 ms. Nothing
//! grows with the snapshot but the levels, by one for each factor of 500. Wanted: below 100 ms.
//!
//! ```text
//! DUMPS=folder cargo bench --bench part [-- GB] [quick]      default: 100; with quick 1
//! ```
//!
//! The snapshot goes the way of every stream: `backup --stdin` reads zeros with a number each 64
//! KiB, so that each chunk is another one, and in the middle 1 MB of the first day. It is read and
//! cut whole, so it takes 100 seconds or two hundred. Then a machine with nothing but the kit
//! restores that 1 MB, 21 times; its bytes are compared with the dump's.

mod harness;

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::process::Stdio;
use std::time::Instant;

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::programs::{Client, Server};
use harness::rows::{Row, machine, percentile, publish};
use harness::{Failure, as_f64, has_word};
use serde_json::Value;

const GB: u64 = 1_000_000_000;
const PART_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 64 << 10;
const RESTORES: usize = 21;

fn main() -> Result<(), Failure> {
    let given = std::env::args().find_map(|word| word.parse::<u64>().ok());
    let bytes = given.unwrap_or(if has_word("quick") { 1 } else { 100 }) * GB;
    let place = Place::new("bench-part")?;
    let dumps = Dumps::find(&place.scratch, true)?;
    let mut part = vec![0; PART_BYTES];
    File::open(&dumps.days[0])?.read_exact(&mut part)?;
    println!("{}\n{} GB", machine(), bytes / GB);
    let server = Server::start(&place, &place.folder("run")?)?;
    let client = Client::set_up(&place, &server, "large", &[])?;
    let began = Instant::now();
    let (summary, offset) = back_up(&client, bytes, &part)?;
    println!(
        "backed up in {:.0} s, {} chunks",
        began.elapsed().as_secs_f64(),
        summary["chunk_count"]
    );
    let to = place.scratch.join("part");
    let mut times = Vec::new();
    for _ in 0..RESTORES {
        let _ = fs::remove_file(&to);
        let end = offset + u64::try_from(PART_BYTES)?;
        let mut restore = client.restore_of("large", &to);
        restore.args(["--range", &format!("{offset}:{end}")]);
        let began = Instant::now();
        run_to_end(&mut restore)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        if fs::read(&to)? != part {
            return Err("other bytes came back".into());
        }
    }
    times.sort_by(f64::total_cmp);
    let name = format!("restore of 1 MB of {} GB", bytes / GB);
    let row = Row::figure(&name, percentile(&times, 0.5), "ms").below(100.0);
    let spread = Some([percentile(&times, 0.0), percentile(&times, 1.0)]);
    let plaintext_bytes = summary["plaintext_bytes"].as_u64().ok_or("no plaintext_bytes")?;
    let sent = summary["sent_sealed_bytes"].as_u64().ok_or("no sent_sealed_bytes")?;
    let share = Row::figure("stored of it", as_f64(sent) / as_f64(plaintext_bytes) * 100.0, "%");
    publish(&place, "part", 1, &[Row { spread, ..row }, share])
}

/// Backs up a stream of about so many bytes; gives the summary, and where in it the part is.
fn back_up(client: &Client, bytes: u64, part: &[u8]) -> Result<(Value, u64), Failure> {
    let mut backup = client.command("machine");
    backup.args(["backup", "large", "--stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = backup.spawn()?;
    let pipe = child.stdin.take().ok_or("no standard input")?;
    let mut pipe = BufWriter::with_capacity(16 * BLOCK_BYTES, pipe);
    let blocks = bytes / u64::try_from(BLOCK_BYTES)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    for number in 0..blocks {
        if number == blocks / 2 {
            offset = number * u64::try_from(BLOCK_BYTES)?;
            pipe.write_all(part)?;
        }
        block[..8].copy_from_slice(&number.to_le_bytes());
        pipe.write_all(&block)?;
    }
    pipe.flush()?;
    drop(pipe);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("backup: {}", output.status).into());
    }
    Ok((serde_json::from_slice(&output.stdout)?, offset))
}
