//! Which of the server's "have" answers must be proven, and whether a proof is one.
//!
//! A server that says "have" for what it lost, or never had, would make snapshots that cannot be
//! restored. So up to [`CHALLENGES_MAX`] answers a session, picked at random after they were given
//! and spread over the whole source, are challenged: the client makes the envelope again and asks
//! for its hash under a fresh nonce, which cannot be known without the bytes.

use bytes::Bytes;
use strongroom_protocol::id::SealedDigest;
use strongroom_protocol::limits::CHALLENGES_MAX;

use crate::error::ClientError;
use crate::keys::random_bytes;
use crate::pipeline::envelope_of;
use crate::sealer::challenge_answer;
use crate::session::Session;

/// Challenges that are spread over the expected number of answers; the rest of
/// [`CHALLENGES_MAX`] is for sources that have grown.
pub const WANTED: u64 = 48;

/// Picks the answers to challenge.
#[derive(Debug)]
pub struct Sampler {
    expected: u64,
    seen: u64,
    picked: u32,
}

impl Sampler {
    /// A sampler for about `expected` "have" answers.
    pub fn new(expected: u64) -> Self {
        Self { expected, seen: 0, picked: 0 }
    }

    /// Whether this answer is to be proven. The first always is.
    pub fn pick(&mut self) -> bool {
        self.seen = self.seen.saturating_add(1);
        if self.picked >= CHALLENGES_MAX {
            return false;
        }
        let among = self.expected.max(self.seen).max(1);
        // Without random numbers everything is proven until the bound is reached.
        let random = getrandom::u64().unwrap_or(0) % among;
        let is_picked = self.picked == 0 || random < WANTED;
        self.picked = self.picked.saturating_add(u32::from(is_picked));
        is_picked
    }
}

/// Has the server prove that it has these framed envelopes.
pub async fn prove(
    session: &Session,
    envelopes: &[(SealedDigest, Bytes)],
) -> Result<(), ClientError> {
    let nonce = fresh_nonce()?;
    let digests: Vec<SealedDigest> = envelopes.iter().map(|(digest, _)| *digest).collect();
    let proofs = session.prove(&nonce, &digests).await?;
    for ((_, framed), proof) in envelopes.iter().zip(&proofs) {
        check(&nonce, envelope_of(framed), proof)?;
    }
    Ok(())
}

/// A nonce that nobody has seen.
fn fresh_nonce() -> Result<[u8; 32], ClientError> {
    random_bytes().map(|nonce| *nonce).map_err(|error| ClientError::Bug(error.to_string()))
}

/// Checks the server's proof for an envelope.
fn check(nonce: &[u8; 32], envelope: &[u8], proof: &[u8; 32]) -> Result<(), ClientError> {
    if challenge_answer(nonce, envelope) == *proof {
        return Ok(());
    }
    Err(ClientError::Unproven("a proof is wrong".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_start_at_once_are_spread_and_bounded() {
        for expected in [1, 1000, 100_000] {
            let mut sampler = Sampler::new(expected);
            assert!(sampler.pick());
            let picks: Vec<u64> = (1..expected * 2).filter(|_| sampler.pick()).collect();
            assert!(picks.len() < 64);
            if expected >= 1000 {
                assert!(picks.len() >= 25, "{} of {expected}", picks.len());
                assert!(picks.iter().any(|pick| *pick > expected / 2));
            }
        }
    }

    #[test]
    fn a_proof_needs_the_bytes_and_the_nonce() {
        let nonce = fresh_nonce().unwrap();
        let proof = challenge_answer(&nonce, b"envelope");
        assert!(check(&nonce, b"envelope", &proof).is_ok());
        assert!(check(&nonce, b"Envelope", &proof).is_err());
        assert!(check(&[0; 32], b"envelope", &proof).is_err());
    }
}
