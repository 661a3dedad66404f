//! How long to wait before what failed is tried again.

use std::time::Duration;

use crate::server_keys::random_bytes;

/// What fails is tried again after at most this, and half as much at random.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The usual pause; longer after failures, and then shortened at random by up to half.
pub fn pause_after(usual: Duration, failures: u32) -> Duration {
    if failures == 0 {
        return usual;
    }
    let longest = usual.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX));
    let longest = longest.min(RETRY_MAX.max(usual));
    let [random] = random_bytes::<1>().unwrap_or([255]);
    longest.mul_f64(0.5 + f64::from(random) / 510.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_and_stay_bounded() {
        let usual = Duration::from_secs(1);
        assert_eq!(pause_after(usual, 0), usual);
        for failures in 1..100 {
            let pause = pause_after(usual, failures);
            assert!(pause <= RETRY_MAX && pause >= usual, "{pause:?} after {failures}");
        }
    }
}
