//! Question: what does each stage of a backup and a restore cost one core for each byte, and how
//! fast can two cores be at best with that?
//!
//! Expected on a 2 GHz core with AVX-512, in ns for each byte that goes through the stage: read
//! 0.2, cut 0.5, hash 0.25, zstd level 1 on SQL 2 to 3, seal 1.5 with its digest (0.3), TLS out and
//! in 0.3 to 0.5 each, the socket between them 0.4, the server's digest 0.3, the store 0.4 and its
//! flush and sync what the disk takes. So a first backup costs 4.5 ns and two cores make 450 MB/s
//! of it.
//!
//! ```text
//! DUMPS=folder cargo bench --bench budget [-- quick]      the folder has day0.sql and day1.sql
//! ```
//!
//! Everything runs on one core (`taskset`), on the start of the first day (256 MB; `quick` 64),
//! with the functions that client and server call, and the best of three rounds counts. A stage's
//! bytes are plaintext or sealed, as its row says. The stages of the store are wall time of this
//! process on its one core; flush and sync are mostly the disk's time.
//!
//! The prediction for a scenario takes its shares from the rows of `end_to_end.rs` in
//! `target/bench.json`: which part of the plaintext was new, and how many bytes were sealed. It is
//! the lower of two rates: all stages' CPU time over two cores, and the busiest single thread (the
//! one that cuts; the server's sealer, which waits for the disk in flush and sync; the one that
//! writes what is restored). What it leaves out: hand-over between threads, page faults, requests,
//! and that two hyperthreads of one core are less than two cores.

mod harness;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use harness::place::{Dumps, Place};
use harness::process::run_to_end;
use harness::rows::{Row, digits, machine, publish};
use harness::{Failure, as_f64, has_word};
use serde_json::Value;
use strongroom_client::budget::CACHE_BYTES;
use strongroom_client::cache::{Cache, CacheRow, CacheScope};
use strongroom_client::chunker::Chunker;
use strongroom_client::compressor::{Body, Compressor, Decompressor};
use strongroom_client::keys::{PlaintextHash, PlaintextKeys};
use strongroom_client::sealer::{seal_chunk, unseal_chunk};
use strongroom_client::tls::{Pin, TlsIdentity, client_config};
use strongroom_protocol::descriptor::{ChunkSizes, Codec};
use strongroom_protocol::id::{NamespaceId, PublicKey, SealedDigest};
use strongroom_protocol::record::Totals;
use strongroom_server::server_keys::ServerKeys;
use strongroom_server::store::{NewEnvelope, Store, StoreOptions};
use strongroom_server::tls::server_config;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, ServerConnection};

const ROUNDS: usize = 3;
const PIECE_BYTES: usize = 1 << 20;
const TLS_PIECE_BYTES: usize = 64 << 10;
const CORES: f64 = 2.0;
const NS: u32 = 1;

/// Costs in ns, each for one of its own bytes.
#[derive(Default)]
struct Costs {
    rows: Vec<Row>,
}

impl Costs {
    /// Notes the best of several rounds.
    fn add(
        &mut self,
        stage: &str,
        bytes: u64,
        mut act: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            act()?;
            best = best.min(began.elapsed().as_secs_f64());
        }
        self.note(stage, best, bytes);
        Ok(())
    }

    fn note(&mut self, stage: &str, seconds: f64, bytes: u64) {
        self.rows.push(Row::figure(stage, seconds * 1e9 / as_f64(bytes.max(1)), "ns/byte"));
    }

    fn of(&self, stage: &str) -> f64 {
        self.rows.iter().find(|row| row.scenario == stage).map_or(f64::NAN, |row| row.figure)
    }
}

/// The start of a dump, cut and sealed as a client would.
struct Data {
    plaintext: Vec<u8>,
    chunks: Vec<Range<usize>>,
    hashes: Vec<PlaintextHash>,
    bodies: Vec<(u8, Vec<u8>)>,
    sealed: Vec<(SealedDigest, Vec<u8>)>,
    sealed_bytes: u64,
}

impl Data {
    fn chunk(&self, at: usize) -> &[u8] {
        &self.plaintext[self.chunks[at].clone()]
    }

    fn plaintext_bytes(&self) -> u64 {
        self.plaintext.len() as u64
    }
}

fn main() -> Result<(), Failure> {
    let bytes = if has_word("quick") { 64 << 20 } else { 256 << 20 };
    let place = Place::new("bench-budget")?;
    let dumps = Dumps::find(&place.scratch, false)?;
    println!("{}", machine());
    let pid = std::process::id().to_string();
    run_to_end(Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", "0", &pid]))?;
    let keys = PlaintextKeys::from_plaintext_key([7; 32]);
    let mut costs = Costs::default();
    let data = of_client(&mut costs, &keys, &dumps.days[0], bytes)?;
    of_cache(&mut costs, &keys, &data, &place.scratch)?;
    of_tls(&mut costs, &data, &place.scratch)?;
    of_socket(&mut costs, &data)?;
    of_store(&mut costs, &data, &place.scratch)?;
    of_restore(&mut costs, &keys, &data, &place.scratch)?;
    let predicted = predictions(&costs, &data, &place)?;
    costs.rows.extend(predicted);
    publish(&place, "budget", ROUNDS, &costs.rows)
}

/// Read, cut, hash, compress, seal.
fn of_client(
    costs: &mut Costs,
    keys: &PlaintextKeys,
    dump: &Path,
    bytes: u64,
) -> Result<Data, Failure> {
    let mut plaintext = Vec::new();
    File::open(dump)?.take(bytes).read_to_end(&mut plaintext)?;
    let total = plaintext.len() as u64;
    let mut piece = vec![0; PIECE_BYTES];
    costs.add("read (page cache), plaintext", total, || {
        let mut file = File::open(dump)?.take(total);
        while file.read(&mut piece)? > 0 {}
        Ok(())
    })?;
    let sizes = ChunkSizes { min: 16 << 10, average: 64 << 10, max: 256 << 10 };
    let chunker = Chunker::new(keys, sizes);
    let mut chunks = Vec::new();
    costs.add("cut, plaintext", total, || {
        chunks.clear();
        let mut at = 0;
        while let Some(length) = chunker.cut(&plaintext[at..], true) {
            chunks.push(at..at + length);
            at += length;
        }
        Ok(())
    })?;
    let mut hashes = Vec::new();
    costs.add("keyed hash, plaintext", total, || {
        hashes = chunks.iter().map(|range| keys.hash_chunk(&plaintext[range.clone()])).collect();
        Ok(())
    })?;
    let mut compressor = Compressor::new(Codec::Zstd(1));
    costs.add("compress, plaintext", total, || {
        for range in &chunks {
            black_box(compressor.compress(&plaintext[range.clone()]));
        }
        Ok(())
    })?;
    let body = |range: &Range<usize>| {
        let body = compressor.compress(&plaintext[range.clone()]);
        (body.codec, body.bytes.to_vec())
    };
    let bodies: Vec<(u8, Vec<u8>)> = chunks.iter().map(body).collect();
    let sealed: Vec<_> = bodies.iter().zip(&hashes).map(|(body, h)| seal(h, body)).collect();
    let sealed_bytes = sealed.iter().map(|(_, envelope)| envelope.len() as u64).sum();
    let data = Data { plaintext, chunks, hashes, bodies, sealed, sealed_bytes };
    let mut envelope = Vec::new();
    costs.add("seal, digest included, sealed", sealed_bytes, || {
        for ((codec, bytes), h) in data.bodies.iter().zip(&data.hashes) {
            black_box(seal_chunk(h, &Body { codec: *codec, bytes }, &mut envelope));
        }
        Ok(())
    })?;
    costs.add("digest, sealed", sealed_bytes, || {
        for (digest, envelope) in &data.sealed {
            assert_eq!(SealedDigest::of(envelope), *digest);
        }
        Ok(())
    })?;
    Ok(data)
}

fn seal(h: &PlaintextHash, (codec, bytes): &(u8, Vec<u8>)) -> (SealedDigest, Vec<u8>) {
    let mut envelope = Vec::new();
    (seal_chunk(h, &Body { codec: *codec, bytes }, &mut envelope), envelope)
}

/// What the client's cache costs for chunks that it knows.
fn of_cache(
    costs: &mut Costs,
    keys: &PlaintextKeys,
    data: &Data,
    scratch: &Path,
) -> Result<(), Failure> {
    let (repository, namespace) = (PublicKey([1; 32]), NamespaceId([2; 32]));
    let scope = CacheScope { repository, namespace, epoch: 1 };
    let cache = Cache::open(&scratch.join("cache.redb"), scope, keys, CACHE_BYTES)?;
    let rows =
        data.hashes.iter().zip(&data.sealed).map(|(h, (digest, _))| {
            (h.chunk_id(), CacheRow { digest: *digest, envelope_bytes: 1 })
        });
    cache.insert(rows);
    cache.flush(true);
    costs.add("cache of known chunks, plaintext", data.plaintext_bytes(), || {
        assert!(data.hashes.iter().all(|h| cache.get(&h.chunk_id()).is_some()));
        Ok(())
    })
}

/// Records made on one side and opened on the other, without a socket.
fn of_tls(costs: &mut Costs, data: &Data, scratch: &Path) -> Result<(), Failure> {
    let folder = scratch.join("keys");
    fs::create_dir_all(&folder)?;
    let keys = ServerKeys::create(&folder, &["localhost".into()])?;
    let identity = TlsIdentity::generate()?;
    let config = Arc::new(client_config(&identity, Pin::Key(keys.tls_key_digest()))?);
    let mut client = ClientConnection::new(config, ServerName::try_from("localhost")?)?;
    let mut server = ServerConnection::new(server_config(&keys)?)?;
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        client.write_tls(&mut wire)?;
        server.read_tls(&mut std::mem::take(&mut wire).as_slice())?;
        server.process_new_packets()?;
        server.write_tls(&mut wire)?;
        client.read_tls(&mut std::mem::take(&mut wire).as_slice())?;
        client.process_new_packets()?;
    }
    let mut plain = vec![0; TLS_PIECE_BYTES];
    let (mut out, mut into) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (mut out_now, mut into_now) = (0.0, 0.0);
        for (_, envelope) in &data.sealed {
            for piece in envelope.chunks(TLS_PIECE_BYTES) {
                let began = Instant::now();
                wire.clear();
                client.writer().write_all(piece)?;
                while client.wants_write() {
                    client.write_tls(&mut wire)?;
                }
                out_now += began.elapsed().as_secs_f64();
                let began = Instant::now();
                let mut rest = wire.as_slice();
                while !rest.is_empty() {
                    server.read_tls(&mut rest)?;
                    let state = server.process_new_packets()?;
                    let there = state.plaintext_bytes_to_read();
                    server.reader().read_exact(&mut plain[..there])?;
                }
                into_now += began.elapsed().as_secs_f64();
            }
        }
        (out, into) = (out.min(out_now), into.min(into_now));
    }
    costs.note("TLS out, sealed", out, data.sealed_bytes);
    costs.note("TLS in, sealed", into, data.sealed_bytes);
    Ok(())
}

/// A loopback connection, both ends on this core.
fn of_socket(costs: &mut Costs, data: &Data) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let total = data.sealed_bytes;
    costs.add("socket, both ends, sealed", total, || {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sealed = data.sealed.iter();
                sealed.try_for_each(|(_, envelope)| near.write_all(envelope))
            });
            let mut piece = vec![0; TLS_PIECE_BYTES];
            let mut left = total;
            while left > 0 {
                left -= far.read(&mut piece)? as u64;
            }
            sender.join().map_err(|_| "sender panicked")??;
            Ok(())
        })
    })
}

/// Append, flush and sync; then reading back in the order of the stream.
fn of_store(costs: &mut Costs, data: &Data, scratch: &Path) -> Result<(), Failure> {
    let envelope = |(digest, bytes): &(SealedDigest, Vec<u8>)| NewEnvelope {
        digest: *digest,
        level: 0,
        totals: Totals::of_chunk(bytes.len() as u64),
        bytes: bytes.clone().into(),
    };
    let mut best = [f64::INFINITY; 4];
    for _ in 0..ROUNDS {
        let folder = scratch.join("store");
        let (store, _) = Store::open(&folder, StoreOptions::default())?;
        let batches: Vec<Vec<_>> =
            data.sealed.chunks(64).map(|some| some.iter().map(envelope).collect()).collect();
        let began = Instant::now();
        for batch in batches {
            store.append(NS, batch)?;
        }
        let appended = began.elapsed().as_secs_f64();
        store.seal()?;
        let flushed = began.elapsed().as_secs_f64();
        store.sync()?;
        let synced = began.elapsed().as_secs_f64();
        let mut digests: Vec<_> = data.sealed.iter().map(|(digest, _)| *digest).collect();
        digests.dedup();
        let began = Instant::now();
        for digests in digests.chunks(1024) {
            store.read(NS, digests, &mut |_, envelope| {
                black_box(envelope.len());
                Ok(())
            })?;
        }
        let now = [appended, flushed - appended, synced - flushed, began.elapsed().as_secs_f64()];
        best = std::array::from_fn(|at| best[at].min(now[at]));
        drop(store);
        fs::remove_dir_all(&folder)?;
    }
    let names = ["store, sealed", "flush, sealed", "sync, sealed", "read from the store, sealed"];
    for (name, seconds) in names.into_iter().zip(best) {
        costs.note(name, seconds, data.sealed_bytes);
    }
    Ok(())
}

/// Opening with all checks, and writing durably.
fn of_restore(
    costs: &mut Costs,
    keys: &PlaintextKeys,
    data: &Data,
    scratch: &Path,
) -> Result<(), Failure> {
    let total = data.plaintext_bytes();
    let (mut out, mut decompressor) = (Vec::new(), Decompressor::new());
    costs.add("unseal, decompress, check, plaintext", total, || {
        for (at, (digest, envelope)) in data.sealed.iter().enumerate() {
            let (h, length) = (&data.hashes[at], data.chunk(at).len() as u64);
            unseal_chunk(keys, envelope, digest, h, length, &mut out, &mut decompressor)?;
        }
        Ok(())
    })?;
    let path = scratch.join("restored");
    costs.add("write (page cache), plaintext", total, || {
        let mut file = File::create(&path)?;
        for piece in data.plaintext.chunks(PIECE_BYTES) {
            file.write_all(piece)?;
        }
        Ok(())
    })?;
    fs::remove_file(&path)?;
    Ok(())
}

// --- Predictions ----------------------------------------------------------------------------

/// What a byte of plaintext costs in a scenario.
struct Prediction {
    /// On all cores, in ns.
    all: f64,
    /// On the busiest thread, in ns.
    thread: f64,
}

/// A backup of which `new` of the plaintext was new, and `sealed` bytes came of a byte of it.
fn backup(costs: &Costs, new: f64, sealed: f64, is_compressed: bool) -> Prediction {
    let compress = if is_compressed { new * costs.of("compress, plaintext") } else { 0.0 };
    let of = |stage: &str| costs.of(stage);
    let source = of("read (page cache), plaintext") + of("cut, plaintext");
    let known = of("keyed hash, plaintext") + of("cache of known chunks, plaintext");
    let out = of("seal, digest included, sealed") + of("TLS out, sealed");
    let line = of("socket, both ends, sealed") + of("TLS in, sealed");
    let stored = of("digest, sealed") + of("store, sealed");
    let all = source + known + compress + sealed * (out + line + stored);
    let disk = sealed * (of("flush, sealed") + of("sync, sealed"));
    Prediction { all, thread: of("cut, plaintext").max(disk) }
}

fn restore(costs: &Costs, sealed: f64, is_file: bool) -> Prediction {
    let of = |stage: &str| costs.of(stage);
    let line = of("TLS out, sealed") + of("socket, both ends, sealed") + of("TLS in, sealed");
    let write = if is_file { of("write (page cache), plaintext") } else { 0.0 };
    let open = of("unseal, decompress, check, plaintext");
    let all = sealed * (of("read from the store, sealed") + line) + open + write;
    Prediction { all, thread: write }
}

fn predictions(costs: &Costs, data: &Data, place: &Place) -> Result<Vec<Row>, Failure> {
    let text = fs::read_to_string(place.target.join("bench.json")).unwrap_or_default();
    let json: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let row = |scenario: &str| {
        let rows = json["rows"].as_array().into_iter().flatten();
        rows.clone().find(|row| row["bench"] == "end_to_end" && row["scenario"] == scenario)
    };
    let share = |scenario: &str, key: &str| {
        let row = row(scenario)?;
        Some(row[key].as_f64()? / row["plaintext_bytes"].as_f64()?)
    };
    // Where nobody ran the whole, this part of a dump speaks for all of it.
    let here = as_f64(data.sealed_bytes) / as_f64(data.plaintext_bytes());
    let first = share("first backup", "stored_bytes").unwrap_or(here);
    let next = share("next day", "stored_bytes").unwrap_or(0.03);
    let dense = share("first backup, incompressible", "stored_bytes").unwrap_or(1.0);
    let scenarios = [
        ("first backup", backup(costs, 1.0, first, true)),
        ("first backup, incompressible", backup(costs, 1.0, dense, false)),
        ("next day", backup(costs, next / first, next, true)),
        ("same again", backup(costs, 0.0, 0.0, true)),
        ("restore to file", restore(costs, first, true)),
        ("restore to /dev/null", restore(costs, first, false)),
    ];
    let mut rows = Vec::new();
    for (scenario, Prediction { all, thread }) in scenarios {
        let nanoseconds = (all / CORES).max(thread);
        let achieved = row(scenario).and_then(|row| row["figure"].as_f64());
        let limit = if all / CORES >= thread { "two cores" } else { "one thread" };
        println!(
            "{scenario}: {} ns a byte in all, {} on one thread; {limit} make {} MB/s; achieved {}",
            digits(all),
            digits(thread),
            digits(1000.0 / nanoseconds),
            achieved.map_or("unknown".into(), digits),
        );
        let predicted = Row::figure(&format!("predicted: {scenario}"), 1000.0 / nanoseconds, "");
        let achieved = achieved.map(|figure| (format!("achieved, {limit}"), figure));
        rows.push(Row { unit: "MB/s".into(), reference: achieved, ..predicted });
    }
    Ok(rows)
}
