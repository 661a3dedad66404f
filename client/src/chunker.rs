//! Where a stream is cut: FastCDC with a secret gear table.
//!
//! The algorithm is the 2020 variant of FastCDC (Xia et al., "The Design of Fast Content-Defined
//! Chunking for Data Deduplication Based Storage Systems", IEEE TPDS 2020) as the `fastcdc` crate
//! has it in `v2020::cut_gear`; the descriptor names it as chunker 1. The table comes from
//! `K_plain`, so that whoever sees the lengths of envelopes does not know where a known file would
//! be cut. That is obfuscation, not security: published attacks recover such tables.
//!
//! Masks: normalisation level 1, as in the crate's own default. With `bits` = log2 of the average,
//! rounded, a cut below the average needs `MASKS[bits + 1]` to be zero and one above it
//! `MASKS[bits - 1]`:
//!
//! | average | mask below | mask above |
//! |---|---|---|
//! | 16 KiB (14) | `0xd90f03530000` (15 bits) | `0xd90303530000` (13 bits) |
//! | 64 KiB (16) | `0xd90703537000` (17 bits) | `0xd90f03530000` (15 bits) |
//! | 1 MiB (20) | `0xd91767537000` (21 bits) | `0xd91707537000` (19 bits) |
//!
//! A cut depends on the bytes from the chunk's start to at most `max` bytes on, and on nothing
//! else: neither on how the stream was buffered nor on what came before. That is what lets two
//! clients share chunks, and it holds because a cut is made only when `max` bytes or the stream's
//! end are in sight. Odd sizes count as the even number below, because the algorithm looks at pairs
//! of bytes.
//!
//! The scan is our own, because it decides how fast an unchanged dump goes: in the crate's loop
//! each byte waits for the one before. The hash has 64 bits and moves by one with each byte, so it
//! forgets a byte after 64 more; two stretches of a chunk can therefore be scanned side by side,
//! the second one warmed up with the 64 bytes before it, and the cuts are the same to the byte. A
//! test compares them with the crate's.

use std::ops::Range;

use fastcdc::v2020::{Normalization, select_masks};
use strongroom_protocol::descriptor::ChunkSizes;

use crate::keys::PlaintextKeys;

/// Bytes that each of the two lanes scans before both are looked at; even.
const LANE_BYTES: usize = 1024;
/// A hash of 64 bits has forgotten what lies so many bytes back.
const REACH_BYTES: usize = 64;

/// Cuts a namespace's streams.
#[derive(Clone)]
pub struct Chunker {
    keys: PlaintextKeys,
    min_bytes: usize,
    average_bytes: usize,
    max_bytes: usize,
    mask_below: u64,
    mask_above: u64,
}

impl Chunker {
    /// A chunker with the namespace's table and the sizes of its descriptor.
    pub fn new(keys: &PlaintextKeys, sizes: ChunkSizes) -> Self {
        let even = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX) & !1;
        let average_bytes = even(sizes.average);
        let (mask_below, mask_above) = select_masks(average_bytes, Normalization::Level1);
        Self {
            keys: keys.clone(),
            min_bytes: even(sizes.min),
            average_bytes,
            max_bytes: even(sizes.max),
            mask_below,
            mask_above,
        }
    }

    /// Length of the longest chunk, in bytes: what must be in sight for a cut.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Length of the next chunk, which starts where `data` starts; `at_end` says that the stream
    /// ends where `data` ends. Nothing where more bytes are needed first, or where `data` is empty:
    /// an empty stream's one chunk of length zero is the caller's to make.
    pub fn cut(&self, data: &[u8], at_end: bool) -> Option<usize> {
        if data.is_empty() || (data.len() < self.max_bytes && !at_end) {
            return None;
        }
        let data = data.get(..self.max_bytes).unwrap_or(data);
        let pairs_end = data.len() & !1;
        let center = self.average_bytes.min(pairs_end);
        let below = self.min_bytes..center;
        let above = center.max(self.min_bytes)..pairs_end;
        let mut hash = 0;
        let cut = self
            .find(data, below, self.mask_below, &mut hash)
            .or_else(|| self.find(data, above, self.mask_above, &mut hash));
        Some(cut.unwrap_or(data.len()))
    }

    /// The first cut in a range of `data` by `mask`, as a place in `data`; takes `hash` along.
    fn find(&self, data: &[u8], range: Range<usize>, mask: u64, hash: &mut u64) -> Option<usize> {
        let mut rest = data.get(range.clone()).unwrap_or(&[]);
        let place = |rest: &[u8], offset: usize| range.end - rest.len() + offset;
        while let Some((one, after)) = rest.split_first_chunk::<LANE_BYTES>()
            && let Some((two, after)) = after.split_first_chunk::<LANE_BYTES>()
        {
            let (_, before_two) = one.split_at(LANE_BYTES - REACH_BYTES);
            let (mut hash_one, mut hash_two) = (*hash, self.warmed(before_two));
            let (pairs_one, _) = one.as_chunks::<2>();
            let (pairs_two, _) = two.as_chunks::<2>();
            let has_cut = pairs_one.iter().zip(pairs_two).any(|(one, two)| {
                let in_one = self.step(&mut hash_one, one, mask);
                let in_two = self.step(&mut hash_two, two, mask);
                in_one.0 | in_one.1 | in_two.0 | in_two.1
            });
            if has_cut {
                let (one, two) = rest.split_at(LANE_BYTES);
                let before_two = self.warmed(before_two);
                let in_two = || {
                    let mut hash = before_two;
                    self.scan(two, mask, &mut hash).map(|offset| place(two, offset))
                };
                return self
                    .scan(one, mask, hash)
                    .map(|offset| place(rest, offset))
                    .or_else(in_two);
            }
            *hash = hash_two;
            rest = after;
        }
        self.scan(rest, mask, hash).map(|offset| place(rest, offset))
    }

    /// The same without lanes; the place is one in `bytes`.
    fn scan(&self, bytes: &[u8], mask: u64, hash: &mut u64) -> Option<usize> {
        let (pairs, _) = bytes.as_chunks::<2>();
        for (number, pair) in pairs.iter().enumerate() {
            match self.step(hash, pair, mask) {
                (true, _) => return Some(2 * number),
                (_, true) => return Some(2 * number + 1),
                _ => {}
            }
        }
        None
    }

    /// Takes two bytes in; whether a cut is before the first, before the second.
    #[inline(always)]
    fn step(&self, hash: &mut u64, [one, two]: &[u8; 2], mask: u64) -> (bool, bool) {
        let shifted = (*hash << 2).wrapping_add(self.keys.gear_shifted()[usize::from(*one)]);
        *hash = shifted.wrapping_add(self.keys.gear()[usize::from(*two)]);
        (shifted & (mask << 1) == 0, *hash & mask == 0)
    }

    /// The hash after the last bytes before some place.
    fn warmed(&self, before: &[u8]) -> u64 {
        let gear = self.keys.gear();
        before.iter().fold(0, |hash, byte| (hash << 1).wrapping_add(gear[usize::from(*byte)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastcdc::v2020::cut_gear;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn chunker(key: u8, average: u32) -> Chunker {
        let keys = PlaintextKeys::from_plaintext_key([key; 32]);
        let sizes = ChunkSizes { min: average / 4, average, max: average * 4 };
        Chunker::new(&keys, sizes)
    }

    fn random(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cuts(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while let Some(length) = chunker.cut(data, true) {
            lengths.push(length);
            data = &data[length..];
        }
        lengths
    }

    /// Cuts as a reader does that gets `piece` bytes at a time.
    fn streamed_cuts(chunker: &Chunker, data: &[u8], piece: usize) -> Vec<usize> {
        let (mut lengths, mut window, mut rest) = (Vec::new(), Vec::new(), data);
        loop {
            while let Some(length) = chunker.cut(&window, rest.is_empty()) {
                lengths.push(length);
                window.drain(..length);
            }
            if rest.is_empty() {
                return lengths;
            }
            let (head, tail) = rest.split_at(piece.min(rest.len()));
            window.extend_from_slice(head);
            rest = tail;
        }
    }

    #[test]
    fn averages_are_near_the_wanted_ones() {
        for average in [16 << 10, 64 << 10] {
            let data = random(1, 32 << 20);
            let count = cuts(&chunker(1, average), &data).len();
            let found = data.len() / count;
            let wanted = average as usize;
            assert!((wanted * 7 / 10..wanted * 14 / 10).contains(&found), "{found} for {wanted}");
        }
    }

    #[test]
    fn another_key_cuts_elsewhere() {
        let data = random(2, 4 << 20);
        let positions = |key| {
            let mut at = 0;
            let ends = cuts(&chunker(key, 16 << 10), &data).into_iter().map(|length| {
                at += length;
                at
            });
            ends.collect::<HashSet<_>>()
        };
        let (one, two) = (positions(1), positions(2));
        assert!(one.intersection(&two).count() < one.len() / 20, "{}", one.len());
    }

    #[test]
    fn asks_for_more_until_the_longest_chunk_is_in_sight() {
        let chunker = chunker(1, 4096);
        let data = random(3, chunker.max_bytes());
        assert_eq!(chunker.cut(&data[..data.len() - 1], false), None);
        assert!(chunker.cut(&data, false).is_some());
        assert_eq!(chunker.cut(&[], true), None);
        assert_eq!(chunker.cut(&[1], true), Some(1));
        assert_eq!(chunker.cut(&vec![0; 1 << 20], false), Some(chunker.max_bytes()));
    }

    fn length_by_the_crate(chunker: &Chunker, data: &[u8]) -> usize {
        let Chunker { keys, min_bytes, average_bytes, max_bytes, mask_below, mask_above } = chunker;
        let (below, above) = (*mask_below, *mask_above);
        let (min, average, max) = (*min_bytes, *average_bytes, *max_bytes);
        let (gear, shifted) = (keys.gear(), keys.gear_shifted());
        let twins = (below << 1, above << 1);
        cut_gear(data, min, average, max, below, above, twins.0, twins.1, gear, shifted).1
    }

    fn assert_cuts_as_the_crate(average: u32, mut data: &[u8]) {
        let chunker = chunker(7, average);
        while !data.is_empty() {
            let length = chunker.cut(data, true).unwrap();
            assert_eq!(length, length_by_the_crate(&chunker, data), "of {}", data.len());
            data = &data[length..];
        }
    }

    #[test]
    fn cuts_where_the_crate_cuts() {
        let lines: Vec<u8> = (0..60_000).flat_map(|n| format!("{n}\trow\n").into_bytes()).collect();
        for average in [256, 4 << 10, 16 << 10, 64 << 10] {
            assert_cuts_as_the_crate(average, &random(9, 4 << 20));
            assert_cuts_as_the_crate(average, &lines);
            assert_cuts_as_the_crate(average, &vec![0; 1 << 20]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn ends_of_any_length_are_cut_as_the_crate_cuts(
            seed in any::<u64>(), length in 0usize..20_000, average in 256u32..6000,
        ) {
            assert_cuts_as_the_crate(average, &random(seed, length));
        }

        #[test]
        fn buffering_does_not_matter(
            seed in any::<u64>(), length in 0usize..300_000, piece in 1usize..40_000,
        ) {
            let (chunker, data) = (chunker(1, 4096), random(seed, length));
            let whole = cuts(&chunker, &data);
            prop_assert_eq!(&whole, &streamed_cuts(&chunker, &data, piece));
            prop_assert_eq!(whole.iter().sum::<usize>(), length);
            for (number, cut) in whole.iter().enumerate() {
                prop_assert!(*cut <= chunker.max_bytes);
                prop_assert!(*cut >= chunker.min_bytes || number + 1 == whole.len());
            }
        }

        #[test]
        fn a_local_change_is_local(
            seed in any::<u64>(), at in 0usize..400_000, inserted in 0usize..200,
        ) {
            let (chunker, data) = (chunker(1, 4096), random(seed, 400_000));
            let mut changed = data.clone();
            changed.splice(at..at, random(seed ^ 1, inserted));
            let pieces = |data: &[u8]| {
                let mut start = 0;
                let pieces = cuts(&chunker, data).into_iter().map(|length| {
                    start += length;
                    blake3::hash(&data[start - length..start])
                });
                pieces.collect::<HashSet<_>>()
            };
            let (before, after) = (pieces(&data), pieces(&changed));
            prop_assert!(after.difference(&before).count() <= 12, "of {}", after.len());
        }
    }
}
