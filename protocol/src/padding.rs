//! Padme: lengths that leak at most `O(log log n)` bits.
//!
//! Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs",
//! PoPETS 2019, algorithm 1: a length of `n` bits keeps its top `log2(n) + 1` bits, the others are
//! rounded up. Overhead is at most 12 %, and falls as lengths grow.

use crate::limits::PAYLOAD_MIN_BYTES;

/// The smallest length on the Padme scale that is at least `length`.
pub fn padme(length: u64) -> u64 {
    let Some(exponent) = length.checked_ilog2().filter(|&exponent| exponent > 0) else {
        return length;
    };
    let kept_bits = exponent.ilog2().saturating_add(1);
    let mask = (1u64 << exponent.saturating_sub(kept_bits)).wrapping_sub(1);
    length.saturating_add(mask) & !mask
}

/// Length of a chunk's payload whose codec, length and body take `used` bytes.
pub fn padded_payload_bytes(used: u64) -> u64 {
    padme(used).max(PAYLOAD_MIN_BYTES)
}

/// Whether a payload of `length` bytes can be a padded one.
pub fn is_on_scale(length: u64) -> bool {
    length >= PAYLOAD_MIN_BYTES && padme(length) == length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        let table =
            [(0, 0), (1, 1), (9, 10), (100, 104), (513, 544), (18_000, 18_432), (65_541, 67_584)];
        for (length, padded) in table {
            assert_eq!(padme(length), padded, "padme({length})");
        }
    }

    proptest! {
        #[test]
        fn grows_little_and_is_idempotent(length in 1u64..1 << 40) {
            let padded = padme(length);
            prop_assert!(padded >= length);
            prop_assert!(padded <= length + length * 12 / 100 + 1);
            prop_assert_eq!(padme(padded), padded);
        }
    }
}
