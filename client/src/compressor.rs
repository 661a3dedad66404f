//! Compression of one chunk at a time, and its undoing.
//!
//! zstd without dictionaries: no chunk's bytes say anything about another's. The context and the
//! buffer live as long as the [`Compressor`], so a chunk costs no allocation.
//!
//! A probe looks at a sample of each chunk first. Data that is compressed or encrypted already has
//! a flat histogram of byte values; trying to compress it costs ten times what sealing it does and
//! wins nothing. The probe sums the squares of the counts of a sample: `n` independent uniform
//! bytes give `n + n(n - 1)/256` on average, with a standard deviation of 0.088 `n`. A sample that
//! is not [`EXCESS_PERCENT`] percent above the average (which is 5 deviations for the smallest
//! sample) would lose less than 1 % of its size. What the probe decides changes no plaintext, no
//! hash and no key; it follows from the plaintext alone, so equal chunks make equal envelopes.
//!
//! Decompression is bounded by the length that the node above gives, before anything is allocated;
//! one-shot decompression uses the output as its window, so a frame header cannot ask for memory.

use std::io::Cursor;

use strongroom_protocol::descriptor::Codec;
use strongroom_protocol::padding::padded_payload_bytes;
use thiserror::Error;

/// The codec byte of a body that is the plaintext itself.
pub const CODEC_NONE: u8 = 0;
/// The codec byte of a body that is one zstd frame.
pub const CODEC_ZSTD: u8 = 1;

/// Chunks below this many bytes are compressed without a probe.
const PROBED_MIN_BYTES: usize = 4096;
/// One byte in this many is sampled, within the two bounds below.
const SAMPLED_SHARE: usize = 16;
const SAMPLE_MIN_BYTES: usize = 1024;
const SAMPLE_MAX_BYTES: usize = 4096;
/// The sample is made of windows of this length, evenly spread.
const WINDOW_BYTES: usize = 64;
/// How far above a flat histogram a sample must be to be worth compressing.
const EXCESS_PERCENT: u64 = 12;

/// A compressed body does not decompress to what was announced.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DecompressError {
    /// The codec byte names no codec.
    #[error("unknown codec {0}")]
    Codec(u8),
    /// zstd refuses the body, or it is longer than announced.
    #[error("body does not decompress within its length")]
    Body,
    /// The plaintext is shorter or longer than announced.
    #[error("plaintext has another length than its node says")]
    Length,
}

/// What of a chunk goes into its payload.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// [`CODEC_NONE`] or [`CODEC_ZSTD`].
    pub codec: u8,
    /// The plaintext or its compressed form.
    pub bytes: &'a [u8],
}

/// Compresses chunks, one after another, into a buffer of its own.
pub struct Compressor {
    context: Option<zstd::bulk::Compressor<'static>>,
    buffer: Vec<u8>,
}

impl Compressor {
    /// A compressor for the codec that the namespace's descriptor names. Should zstd refuse the
    /// level (it has all that a descriptor can name), bodies stay uncompressed, which is always a
    /// valid form.
    pub fn new(codec: Codec) -> Self {
        let context = match codec {
            Codec::None => None,
            Codec::Zstd(level) => zstd::bulk::Compressor::new(i32::from(level)).ok(),
        };
        Self { context, buffer: Vec::new() }
    }

    /// The body for `plaintext`: compressed where that makes the padded payload shorter.
    pub fn compress<'a>(&'a mut self, plaintext: &'a [u8]) -> Body<'a> {
        let whole = Body { codec: CODEC_NONE, bytes: plaintext };
        let Some(context) = self.context.as_mut().filter(|_| is_compressible(plaintext)) else {
            return whole;
        };
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(plaintext.len()));
        match context.compress_to_buffer(plaintext, &mut self.buffer) {
            Ok(_) if is_shorter(self.buffer.len(), plaintext.len()) => {
                Body { codec: CODEC_ZSTD, bytes: &self.buffer }
            }
            _ => whole,
        }
    }
}

/// Undoes [`Compressor::compress`], with a context that is used again and again. Also lends its
/// scratch space to the unsealer, which decrypts into it.
#[derive(Default)]
pub struct Decompressor {
    context: Option<zstd::bulk::Decompressor<'static>>,
    pub(crate) scratch: Vec<u8>,
}

impl Decompressor {
    /// A decompressor for every codec.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the `plaintext_bytes` bytes of plaintext that `body` stands for to `out`. Allocates
    /// that much at most, and what a growing vector adds: the caller bounds it.
    ///
    /// # Errors
    /// When the body is of an unknown codec, does not decompress, or has another length; `out` is
    /// as it was then.
    pub fn decompress(
        &mut self,
        body: Body<'_>,
        plaintext_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecompressError> {
        match body.codec {
            CODEC_NONE if body.bytes.len() == plaintext_bytes => {
                out.extend_from_slice(body.bytes);
                Ok(())
            }
            CODEC_NONE => Err(DecompressError::Length),
            CODEC_ZSTD => self.decompress_zstd(body.bytes, plaintext_bytes, out),
            other => Err(DecompressError::Codec(other)),
        }
    }

    fn decompress_zstd(
        &mut self,
        body: &[u8],
        plaintext_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecompressError> {
        let context = self.context.get_or_insert_default();
        let start = out.len();
        out.reserve(plaintext_bytes);
        // A cursor, so that the plaintext lands where it is wanted and nothing is zeroed before.
        let mut rest = Cursor::new(std::mem::take(out));
        rest.set_position(u64::try_from(start).unwrap_or(u64::MAX));
        let written = context.decompress_to_buffer(body, &mut rest);
        *out = rest.into_inner();
        match written {
            Ok(count) if count == plaintext_bytes => Ok(()),
            Ok(_) => {
                out.truncate(start);
                Err(DecompressError::Length)
            }
            Err(_) => {
                out.truncate(start);
                Err(DecompressError::Body)
            }
        }
    }
}

/// Version of the zstd library, which with this crate's version decides what bytes a seal makes.
pub fn zstd_version() -> &'static str {
    zstd::zstd_safe::version_string()
}

/// Whether `plaintext` looks worth compressing.
pub fn is_compressible(plaintext: &[u8]) -> bool {
    if plaintext.len() < PROBED_MIN_BYTES {
        return !plaintext.is_empty();
    }
    let sample_bytes = (plaintext.len() / SAMPLED_SHARE).clamp(SAMPLE_MIN_BYTES, SAMPLE_MAX_BYTES);
    let stride = plaintext.len() / (sample_bytes / WINDOW_BYTES);
    // Four tables, so that a run of equal bytes does not wait for its own last increment.
    let mut counts = [[0u16; 256]; 4];
    let [first, second, third, fourth] = &mut counts;
    let mut sampled: u64 = 0;
    for window in plaintext.chunks(stride) {
        let (quads, _) = window.get(..WINDOW_BYTES).unwrap_or(&[]).as_chunks::<4>();
        for [a, b, c, d] in quads {
            first[usize::from(*a)] += 1;
            second[usize::from(*b)] += 1;
            third[usize::from(*c)] += 1;
            fourth[usize::from(*d)] += 1;
            sampled += 4;
        }
    }
    let square = |value: usize| {
        let count = u64::from(first[value] + second[value] + third[value] + fourth[value]);
        count * count
    };
    let squares: u64 = (0..256).map(square).sum();
    let flat = sampled + sampled * sampled / 256;
    squares * 100 > flat * (100 + EXCESS_PERCENT)
}

/// Whether a body of `compressed` bytes makes a shorter payload than one of `plaintext` bytes.
fn is_shorter(compressed: usize, plaintext: usize) -> bool {
    const FRAME: u64 = 5;
    let padded = |length: usize| {
        u64::try_from(length).map_or(u64::MAX, |length| padded_payload_bytes(length + FRAME))
    };
    padded(compressed) < padded(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(seed: &str, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn text(length: usize) -> Vec<u8> {
        (0..)
            .flat_map(|n| format!("{n}\tinvoice {}\tt\n", n * 37).into_bytes())
            .take(length)
            .collect()
    }

    #[test]
    fn the_probe_tells_random_from_other_bytes() {
        for (number, length) in [4096, 16 << 10, 64 << 10, 256 << 10].into_iter().enumerate() {
            for round in 0..50 {
                let bytes = random(&format!("{number}.{round}"), length);
                assert!(!is_compressible(&bytes), "{length} random bytes, round {round}");
            }
            assert!(is_compressible(&text(length)));
            assert!(is_compressible(&vec![0; length]));
            let base64_like: Vec<u8> =
                random("base64", length).iter().map(|byte| b' ' + byte % 64).collect();
            assert!(is_compressible(&base64_like));
            let mut mixed = random("mixed", length);
            for window in mixed.chunks_mut(1000) {
                let end = window.len().min(150);
                window[..end].fill(b'0');
            }
            assert!(is_compressible(&mixed), "a seventh of {length} bytes is text");
        }
    }

    #[test]
    fn bodies_come_back_and_are_never_longer() {
        let mut decompressor = Decompressor::new();
        for codec in [Codec::None, Codec::Zstd(1), Codec::Zstd(19)] {
            let mut compressor = Compressor::new(codec);
            for length in [0, 1, 100, 511, 4095, 4096, 65_536, 300_000] {
                for plaintext in [text(length), random("body", length), vec![7; length]] {
                    let body = compressor.compress(&plaintext);
                    assert!(body.bytes.len() <= plaintext.len());
                    let mut back = Vec::new();
                    decompressor.decompress(body, length, &mut back).unwrap();
                    assert_eq!(back, plaintext);
                }
            }
        }
    }

    #[test]
    fn compresses_text_only() {
        let mut compressor = Compressor::new(Codec::Zstd(1));
        assert_eq!(compressor.compress(&text(65_536)).codec, CODEC_ZSTD);
        assert_eq!(compressor.compress(&random("x", 65_536)).codec, CODEC_NONE);
        assert_eq!(Compressor::new(Codec::None).compress(&text(65_536)).codec, CODEC_NONE);
    }

    #[test]
    fn refuses_bombs_wrong_lengths_and_unknown_codecs() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        let mut decompressor = Decompressor::new();
        let mut out = Vec::new();
        let body = Body { codec: CODEC_ZSTD, bytes: &bomb };
        assert_eq!(decompressor.decompress(body, 65_536, &mut out), Err(DecompressError::Body));
        assert!(out.is_empty() && out.capacity() < 1 << 20, "capacity {}", out.capacity());
        let honest = zstd::bulk::compress(b"twelve bytes", 1).unwrap();
        let body = Body { codec: CODEC_ZSTD, bytes: &honest };
        assert_eq!(decompressor.decompress(body, 13, &mut out), Err(DecompressError::Length));
        assert_eq!(decompressor.decompress(body, 12, &mut out), Ok(()));
        let body = Body { codec: CODEC_NONE, bytes: b"12" };
        assert_eq!(decompressor.decompress(body, 3, &mut out), Err(DecompressError::Length));
        let body = Body { codec: 9, bytes: b"12" };
        assert_eq!(decompressor.decompress(body, 2, &mut out), Err(DecompressError::Codec(9)));
        let body = Body { codec: CODEC_ZSTD, bytes: b"no frame" };
        assert_eq!(decompressor.decompress(body, 8, &mut out), Err(DecompressError::Body));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(plaintext in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let mut compressor = Compressor::new(Codec::Zstd(1));
            let mut back = Vec::new();
            let body = compressor.compress(&plaintext);
            Decompressor::new().decompress(body, plaintext.len(), &mut back).unwrap();
            prop_assert_eq!(back, plaintext);
        }

        #[test]
        fn no_body_panics(
            body in proptest::collection::vec(any::<u8>(), 0..2000),
            codec in 0u8..3,
            length in 0usize..5000,
        ) {
            let mut out = Vec::new();
            let body = Body { codec, bytes: &body };
            if Decompressor::new().decompress(body, length, &mut out).is_ok() {
                prop_assert_eq!(out.len(), length);
            } else {
                prop_assert!(out.is_empty());
            }
        }
    }
}
