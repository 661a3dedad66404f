//! Question: what does each step of a backup and a restore cost one core for each byte?
//!
//! Expected on a 2 GHz core with AVX-512: hash 0.25 ns, cut 0.5 ns (one addition waits for
//! another), probe 0.15 ns where the data is not in the caches, zstd level 1 on text 2.5 ns, seal
//! and unseal 1.7 ns for each byte of payload (two BLAKE3 passes 0.5, ChaCha20-Poly1305 1.1). At
//! 250 MB/s of first backup two cores have 8 ns a byte for everything. The cache: a look-up 4
//! microseconds, an insert 12 with its share of durable commits; at 900 MB/s a chunk of 64 KiB may
//! take 73.
//!
//! Prints one row a step: nanoseconds a byte, the best of several rounds.

use std::hint::black_box;
use std::time::Instant;

use strongroom_client::budget::CACHE_BYTES;
use strongroom_client::cache::{Cache, CacheError, CacheRow, CacheScope};
use strongroom_client::chunker::Chunker;
use strongroom_client::compressor::{Body, CODEC_NONE, Compressor, Decompressor, is_compressible};
use strongroom_client::keys::PlaintextKeys;
use strongroom_client::sealer::{NodeChild, challenge_answer, seal_chunk, seal_node, unseal_chunk};
use strongroom_protocol::descriptor::{ChunkSizes, Codec};
use strongroom_protocol::id::{ChunkId, NamespaceId, PublicKey, SealedDigest};

const DATA_BYTES: usize = 64 << 20;
const ROUNDS: usize = 5;

fn main() -> Result<(), String> {
    let keys = PlaintextKeys::from_plaintext_key([7; 32]);
    let mut random = vec![0; DATA_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let line = |n: u32| format!("{n}\tinvoice {}\tposted\t\\N\n", n.wrapping_mul(2_654_435_761));
    let text: Vec<u8> = (0..).flat_map(|n| line(n).into_bytes()).take(DATA_BYTES).collect();

    let chunker = Chunker::new(&keys, sizes(64 << 10));
    report("cut, random, average 64 KiB", DATA_BYTES, || cut_all(&chunker, &random));
    report("cut, text, average 64 KiB", DATA_BYTES, || cut_all(&chunker, &text));
    for chunk_bytes in [16 << 10, 18 << 10, 64 << 10] {
        let kib = chunk_bytes >> 10;
        let chunks: Vec<_> = random.chunks_exact(chunk_bytes).collect();
        let total = chunks.len() * chunk_bytes;
        report(&format!("hash, {kib} KiB"), total, || {
            for chunk in &chunks {
                black_box(keys.hash_chunk(chunk).chunk_id());
            }
        });
        report(&format!("probe, random, {kib} KiB"), total, || {
            assert!(!chunks.iter().any(|chunk| is_compressible(black_box(chunk))));
        });
        seal_and_unseal(&keys, &chunks, &format!("{kib} KiB"));
    }
    for (level, chunk_bytes) in [(1, 16 << 10), (1, 64 << 10), (3, 64 << 10)] {
        let mut compressor = Compressor::new(Codec::Zstd(level));
        let mut body_bytes = 0;
        let name = format!("zstd {level}, text, {} KiB", chunk_bytes >> 10);
        report(&name, DATA_BYTES, || {
            body_bytes = 0;
            for chunk in text.chunks(chunk_bytes) {
                body_bytes += black_box(compressor.compress(chunk)).bytes.len();
            }
        });
        println!("{:>38} {:.1} %", "of the size", body_bytes as f64 * 100.0 / DATA_BYTES as f64);
    }
    nodes(&keys);
    cache(&keys).map_err(|error| error.to_string())
}

fn seal_and_unseal(keys: &PlaintextKeys, chunks: &[&[u8]], name: &str) {
    let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let hashes: Vec<_> = chunks.iter().map(|chunk| keys.hash_chunk(chunk)).collect();
    let mut envelope = Vec::new();
    report(&format!("seal, {name}"), total, || {
        for (chunk, h) in chunks.iter().zip(&hashes) {
            black_box(seal_chunk(h, &Body { codec: CODEC_NONE, bytes: chunk }, &mut envelope));
        }
    });
    let sealed: Vec<_> = chunks
        .iter()
        .zip(&hashes)
        .map(|(chunk, h)| {
            let mut envelope = Vec::new();
            let body = Body { codec: CODEC_NONE, bytes: chunk };
            (seal_chunk(h, &body, &mut envelope), envelope)
        })
        .collect();
    let (mut out, mut decompressor) = (Vec::new(), Decompressor::new());
    report(&format!("unseal, {name}"), total, || {
        for ((digest, envelope), (chunk, h)) in sealed.iter().zip(chunks.iter().zip(&hashes)) {
            let bytes = chunk.len() as u64;
            out.clear();
            let result =
                unseal_chunk(keys, envelope, digest, h, bytes, &mut out, &mut decompressor);
            assert!(result.is_ok());
        }
    });
    report(&format!("challenge, {name}"), total, || {
        for (_, envelope) in &sealed {
            black_box(challenge_answer(&[1; 32], envelope));
        }
    });
}

fn nodes(keys: &PlaintextKeys) {
    let child =
        NodeChild { digest: SealedDigest([1; 32]), h: keys.hash_chunk(b"x"), plaintext_bytes: 1 };
    let children = vec![child; 512];
    report("seal a node, a child as a byte", children.len() * 100, || {
        for _ in 0..100 {
            black_box(seal_node(keys, 1, &children));
        }
    });
}

/// A million rows is a client of 64 GB.
fn cache(keys: &PlaintextKeys) -> Result<(), CacheError> {
    const ROWS: u32 = 1_000_000;
    let path = std::env::temp_dir().join(format!("strongroom-cache-{}", std::process::id()));
    let scope =
        CacheScope { repository: PublicKey([1; 32]), namespace: NamespaceId([2; 32]), epoch: 1 };
    let row = |number: u32| {
        let name = *blake3::hash(&number.to_le_bytes()).as_bytes();
        (ChunkId(name), CacheRow { digest: SealedDigest(name), envelope_bytes: number })
    };
    let cache = Cache::open(&path, scope, keys, CACHE_BYTES)?;
    let rows: Vec<_> = (0..ROWS).map(row).collect();
    let start = Instant::now();
    for some in rows.chunks(64) {
        cache.insert(some.iter().copied());
    }
    cache.flush(true);
    let micros = |start: Instant| start.elapsed().as_secs_f64() * 1e6 / f64::from(ROWS);
    println!("{:<38} {:8.3} us/row", "cache insert, 1 M rows", micros(start));
    let start = Instant::now();
    assert!(rows.iter().all(|(id, row)| cache.get(id) == Some(*row)));
    println!("{:<38} {:8.3} us/row", "cache get, found", micros(start));
    let start = Instant::now();
    assert!(rows.iter().all(|(_, row)| cache.get(&absent(row)).is_none()));
    println!("{:<38} {:8.3} us/row", "cache get, absent", micros(start));
    drop(cache);
    let start = Instant::now();
    drop(Cache::open(&path, scope, keys, CACHE_BYTES)?);
    println!("{:<38} {:8.3} ms", "cache open", start.elapsed().as_secs_f64() * 1e3);
    let file_bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    println!("{:<38} {:8.1} bytes/row", "cache file", file_bytes as f64 / f64::from(ROWS));
    let _ = std::fs::remove_file(&path);
    Ok(())
}

fn absent(row: &CacheRow) -> ChunkId {
    ChunkId(*blake3::hash(row.digest.as_bytes()).as_bytes())
}

fn cut_all(chunker: &Chunker, data: &[u8]) {
    let mut rest = data;
    while let Some(length) = chunker.cut(rest, true) {
        rest = rest.get(length..).unwrap_or(&[]);
    }
}

fn sizes(average: u32) -> ChunkSizes {
    ChunkSizes { min: average / 4, average, max: average * 4 }
}

fn report(name: &str, bytes: usize, mut act: impl FnMut()) {
    let best = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            act();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    let nanoseconds = best * 1e9 / bytes as f64;
    println!("{name:<38} {nanoseconds:8.3} ns/byte {:8.0} MB/s", 1000.0 / nanoseconds);
}
