//! The keys of an epoch, and the two names of a plaintext.
//!
//! ```text
//! ikm     = S_e || ns_id(32) || u32 epoch
//! K_plain = derive_key("strongroom v1 plaintext", ikm)
//! K_chunk = derive_key("strongroom v1 chunk", K_plain)
//! K_node  = derive_key("strongroom v1 node", K_plain)
//! h       = chunk: keyed(K_chunk, p)        node: keyed(K_node, clear || payload)
//! ChunkId = derive_key("strongroom v1 ChunkId", h)
//! k       = derive_key("strongroom v1 seal", h)
//! ```
//!
//! All is keyed BLAKE3 and its key derivation with one context string for each purpose, so no
//! output says anything about another. The namespace's id in `ikm` keeps envelopes of one
//! namespace from opening in another; `K_chunk` and `K_node` keep a chunk from passing for a node.
//! Who knows [`PlaintextKeys`] can read nothing: each envelope's key follows from `h`, which stands
//! in the node above, and the root's `h` is sealed to the recovery recipients. Secrets are wiped
//! when they are dropped and never printed.

use std::fmt;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{ChunkId, NamespaceId, PublicKey};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const PLAINTEXT_CONTEXT: &str = "strongroom v1 plaintext";
const RECORD_KEY_CONTEXT: &str = "strongroom v1 record key";
const CHUNK_CONTEXT: &str = "strongroom v1 chunk";
const NODE_CONTEXT: &str = "strongroom v1 node";
const CHUNK_ID_CONTEXT: &str = "strongroom v1 ChunkId";
const SEAL_CONTEXT: &str = "strongroom v1 seal";
const GEAR_CONTEXT: &str = "strongroom v1 gear";
const CACHE_MAC_CONTEXT: &str = "strongroom v1 cache MAC";

/// Entries of a gear table: one a byte value.
pub const GEAR_ENTRIES: usize = 256;

/// The system gave no random bytes, so no key can be made.
#[derive(Debug, Error)]
#[error("cannot make a key: the system's random number generator failed ({0}); try again later")]
pub struct RandomError(getrandom::Error);

/// 32 bytes from the system's random number generator; wiped when dropped.
///
/// # Errors
/// When the system has no random bytes to give.
pub fn random_bytes() -> Result<Zeroizing<[u8; 32]>, RandomError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(RandomError)?;
    Ok(bytes)
}

/// A new random Ed25519 key.
///
/// # Errors
/// When the system has no random bytes to give.
pub fn random_signing_key() -> Result<SigningKey, RandomError> {
    Ok(SigningKey::from_bytes(&*random_bytes()?))
}

/// The public half of a signing key.
pub fn public_key_of(key: &SigningKey) -> PublicKey {
    PublicKey(key.verifying_key().to_bytes())
}

/// An epoch's convergence secret: what clients of a namespace share and no server knows.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ConvergenceSecret([u8; 32]);

impl ConvergenceSecret {
    /// A new random secret.
    ///
    /// # Errors
    /// When the system has no random bytes to give.
    pub fn generate() -> Result<Self, RandomError> {
        random_bytes().map(|bytes| Self(*bytes))
    }

    /// The secret that these bytes are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a private file or an age file.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ConvergenceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConvergenceSecret(..)")
    }
}

/// What a writer derives from the convergence secret.
#[derive(Clone)]
pub struct EpochKeys {
    plaintext: PlaintextKeys,
    record_key: SigningKey,
}

impl EpochKeys {
    /// Derives the keys of `epoch` of `namespace`.
    pub fn derive(secret: &ConvergenceSecret, namespace: &NamespaceId, epoch: u32) -> Self {
        let mut ikm = Zeroizing::new([0; 68]);
        for (to, from) in ikm
            .iter_mut()
            .zip(secret.0.iter().chain(namespace.as_bytes()).copied().chain(epoch.to_le_bytes()))
        {
            *to = from;
        }
        let seed = Zeroizing::new(blake3::derive_key(RECORD_KEY_CONTEXT, ikm.as_slice()));
        Self {
            plaintext: PlaintextKeys::from_plaintext_key(blake3::derive_key(
                PLAINTEXT_CONTEXT,
                ikm.as_slice(),
            )),
            record_key: SigningKey::from_bytes(&seed),
        }
    }

    /// The keys of a descriptor's epoch, if `secret` is that epoch's.
    pub fn of_descriptor(
        descriptor: &VerifiedDescriptor,
        secret: &ConvergenceSecret,
    ) -> Option<Self> {
        let contents = descriptor.contents();
        let keys = Self::derive(secret, &descriptor.namespace(), contents.epoch);
        (public_key_of(&keys.record_key) == contents.record_key).then_some(keys)
    }

    /// The keys that chunk and node hashes are made with.
    pub fn plaintext(&self) -> &PlaintextKeys {
        &self.plaintext
    }

    /// The key that signs writer certificates; a descriptor names its public half.
    pub fn record_key(&self) -> SigningKey {
        self.record_key.clone()
    }
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKeys(..)")
    }
}

/// What follows from `K_plain`: enough to name and check plaintext, not enough to read any.
///
/// A clone is cheap and shares the same memory.
#[derive(Clone)]
pub struct PlaintextKeys(Arc<Derived>);

#[derive(Zeroize, ZeroizeOnDrop)]
struct Derived {
    plaintext: [u8; 32],
    chunk: [u8; 32],
    node: [u8; 32],
    cache_mac: [u8; 32],
    gear: [u64; GEAR_ENTRIES],
    gear_shifted: [u64; GEAR_ENTRIES],
}

impl PlaintextKeys {
    /// Derives everything from `K_plain`, which a record's key block holds.
    pub fn from_plaintext_key(plaintext: [u8; 32]) -> Self {
        let gear = gear_table(&plaintext);
        Self(Arc::new(Derived {
            plaintext,
            chunk: blake3::derive_key(CHUNK_CONTEXT, &plaintext),
            node: blake3::derive_key(NODE_CONTEXT, &plaintext),
            cache_mac: blake3::derive_key(CACHE_MAC_CONTEXT, &plaintext),
            gear,
            gear_shifted: gear.map(|value| value << 1),
        }))
    }

    /// `K_plain`, for a record's key block.
    pub fn plaintext_key(&self) -> &[u8; 32] {
        &self.0.plaintext
    }

    /// `h` of a chunk.
    pub fn hash_chunk(&self, plaintext: &[u8]) -> PlaintextHash {
        PlaintextHash(*blake3::keyed_hash(&self.0.chunk, plaintext).as_bytes())
    }

    /// `h` of a node with this clear part and payload.
    pub fn hash_node(&self, clear: &[u8], payload: &[u8]) -> PlaintextHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0.node);
        PlaintextHash(*hasher.update(clear).update(payload).finalize().as_bytes())
    }

    /// The secret gear table of the chunker.
    pub fn gear(&self) -> &[u64; GEAR_ENTRIES] {
        &self.0.gear
    }

    /// The gear table with each entry shifted left by one bit.
    pub fn gear_shifted(&self) -> &[u64; GEAR_ENTRIES] {
        &self.0.gear_shifted
    }

    /// The key of the row MACs of the client cache.
    pub fn cache_mac_key(&self) -> &[u8; 32] {
        &self.0.cache_mac
    }
}

impl fmt::Debug for PlaintextKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaintextKeys(..)")
    }
}

/// `h`: the keyed hash of a chunk's or node's plaintext. Whoever has it can open that envelope, so
/// it is never printed and never written to disk in the clear.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PlaintextHash(pub [u8; 32]);

impl PlaintextHash {
    /// The name of the plaintext, which opens nothing.
    pub fn chunk_id(&self) -> ChunkId {
        ChunkId(blake3::derive_key(CHUNK_ID_CONTEXT, &self.0))
    }

    /// `k`, from which the envelope's message key follows.
    pub fn seal_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(SEAL_CONTEXT, &self.0))
    }
}

impl fmt::Debug for PlaintextHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaintextHash(..)")
    }
}

/// 2048 bytes of extendable output, read as little-endian numbers.
fn gear_table(plaintext_key: &[u8; 32]) -> [u64; GEAR_ENTRIES] {
    let mut reader =
        blake3::Hasher::new_derive_key(GEAR_CONTEXT).update(plaintext_key).finalize_xof();
    std::array::from_fn(|_| {
        let mut bytes = [0; 8];
        reader.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const NAMESPACE: NamespaceId = NamespaceId([2; 32]);
    const _: () = crate::secrecy::wipes::<Derived>();

    #[test]
    fn the_keys_of_an_epoch_are_wiped() {
        let EpochKeys { plaintext, record_key } = keys(1, NAMESPACE, 1);
        let PlaintextKeys(derived) = plaintext;
        crate::secrecy::is_wiped(&*derived);
        crate::secrecy::is_wiped(&record_key);
    }

    fn keys(secret: u8, namespace: NamespaceId, epoch: u32) -> EpochKeys {
        EpochKeys::derive(&ConvergenceSecret::from_bytes([secret; 32]), &namespace, epoch)
    }

    #[test]
    fn every_input_changes_every_key() {
        let variants = [
            keys(1, NAMESPACE, 1),
            keys(3, NAMESPACE, 1),
            keys(1, NamespaceId([4; 32]), 1),
            keys(1, NAMESPACE, 2),
        ];
        let mut seen = HashSet::new();
        for keys in &variants {
            let plaintext = keys.plaintext();
            assert!(seen.insert(*plaintext.plaintext_key()));
            assert!(seen.insert(*plaintext.cache_mac_key()));
            assert!(seen.insert(plaintext.hash_chunk(b"x").0));
            assert!(seen.insert(plaintext.hash_node(b"", b"x").0));
            assert!(seen.insert(plaintext.hash_chunk(b"x").chunk_id().0));
            assert!(seen.insert(*plaintext.hash_chunk(b"x").seal_key()));
            assert!(seen.insert(keys.record_key().verifying_key().to_bytes()));
        }
    }

    #[test]
    fn keys_from_the_key_block_are_those_of_the_epoch() {
        let epoch = keys(1, NAMESPACE, 1);
        let restored = PlaintextKeys::from_plaintext_key(*epoch.plaintext().plaintext_key());
        assert_eq!(restored.hash_chunk(b"x"), epoch.plaintext().hash_chunk(b"x"));
        assert_eq!(restored.gear(), epoch.plaintext().gear());
    }

    #[test]
    fn gear_tables_are_twins_without_repeats() {
        let keys = keys(1, NAMESPACE, 1);
        let (gear, shifted) = (keys.plaintext().gear(), keys.plaintext().gear_shifted());
        assert!(gear.iter().zip(shifted).all(|(value, twin)| value << 1 == *twin));
        assert_eq!(gear.iter().collect::<HashSet<_>>().len(), GEAR_ENTRIES);
    }

    #[test]
    fn secrets_are_not_printed() {
        let epoch = keys(7, NAMESPACE, 1);
        let text = format!(
            "{:?} {:?} {:?} {:?}",
            ConvergenceSecret::from_bytes([7; 32]),
            epoch,
            epoch.plaintext(),
            epoch.plaintext().hash_chunk(b"x")
        );
        assert!(!text.contains(|c: char| c.is_ascii_digit()), "{text}");
    }

    #[test]
    fn new_secrets_differ() {
        let (one, two) = (ConvergenceSecret::generate(), ConvergenceSecret::generate());
        assert_ne!(one.unwrap().as_bytes(), two.unwrap().as_bytes());
    }
}
