//! The Merkle tree of RFC 6962 section 2.1: hashes, inclusion and consistency proofs.
//!
//! SHA-256, `0x00` before a leaf's data, `0x01` before two children. Proofs are verified by the
//! algorithms of RFC 9162 sections 2.1.3.2 and 2.1.4.2 (the same tree). Building a proof needs
//! subtree hashes, which the caller supplies through [`SubtreeHashes`], because a server keeps
//! them in tiles and a test in a list.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A node of the tree.
pub type Hash = [u8; 32];

/// A proof does not show what it claims.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("merkle {0} proof does not verify")]
pub struct ProofError(pub &'static str);

/// Hash of a leaf.
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the empty tree.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Where subtree hashes come from.
pub trait SubtreeHashes {
    /// Why a hash could not be had.
    type Error;

    /// Hash of the complete subtree over leaves `index << height .. (index + 1) << height`, all of
    /// which exist.
    fn complete(&self, height: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Root of the tree over the first `size` leaves.
pub fn root<S: SubtreeHashes>(hashes: &S, size: u64) -> Result<Hash, S::Error> {
    if size == 0 {
        return Ok(empty_root());
    }
    range_hash(hashes, 0, size)
}

/// Proof that leaf `index` is in the tree over the first `size` leaves; `index < size`.
pub fn inclusion_proof<S: SubtreeHashes>(
    hashes: &S,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, S::Error> {
    let (mut start, mut end, mut proof) = (0, size, Vec::new());
    while end.saturating_sub(start) > 1 {
        let middle = split(start, end);
        if index < middle {
            proof.push(range_hash(hashes, middle, end)?);
            end = middle;
        } else {
            proof.push(range_hash(hashes, start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proof that the tree over `old_size` leaves is a prefix of the one over `size`;
/// `0 < old_size <= size`.
pub fn consistency_proof<S: SubtreeHashes>(
    hashes: &S,
    old_size: u64,
    size: u64,
) -> Result<Vec<Hash>, S::Error> {
    let (mut start, mut end, mut proof) = (0, size, Vec::new());
    while end != old_size {
        let middle = split(start, end);
        if old_size <= middle {
            proof.push(range_hash(hashes, middle, end)?);
            end = middle;
        } else {
            proof.push(range_hash(hashes, start, middle)?);
            start = middle;
        }
    }
    if start > 0 {
        proof.push(range_hash(hashes, start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that `leaf` is leaf `index` of the tree with this size and root.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    const ERROR: ProofError = ProofError("inclusion");
    if index >= size {
        return Err(ERROR);
    }
    let (mut node, mut last, mut hash) = (index, size.saturating_sub(1), *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ERROR);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last == 0 && hash == *root { Ok(()) } else { Err(ERROR) }
}

/// Checks that the tree with `old_size` and `old_root` is a prefix of the one with `size` and
/// `root`. The empty tree is a prefix of every tree.
pub fn verify_consistency(
    old_size: u64,
    size: u64,
    proof: &[Hash],
    old_root: &Hash,
    root: &Hash,
) -> Result<(), ProofError> {
    const ERROR: ProofError = ProofError("consistency");
    if old_size == size || old_size == 0 {
        let same = old_size == 0 || old_root == root;
        return if same && proof.is_empty() { Ok(()) } else { Err(ERROR) };
    }
    if old_size > size {
        return Err(ERROR);
    }
    let (first, rest) = if old_size.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ERROR)?
    };
    let mut node = old_size.saturating_sub(1);
    let mut last = size.saturating_sub(1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(ERROR);
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last == 0 && old_hash == *old_root && new_hash == *root { Ok(()) } else { Err(ERROR) }
}

/// A tree that grows from the left, without its inside: the complete subtrees of its right edge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// From left to right, each higher than the next.
    subtrees: Vec<(u32, Hash)>,
}

impl Frontier {
    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a complete subtree of `height` on the right; 0 is a leaf. Subtrees must come as a tree
    /// of their size has them: no subtree may follow a lower one, unless that one is completed.
    pub fn push(&mut self, height: u32, hash: Hash) {
        self.size = self.size.saturating_add(1u64.checked_shl(height).unwrap_or(u64::MAX));
        let (mut height, mut hash) = (height, hash);
        while let Some((_, left)) = self.subtrees.pop_if(|(top, _)| *top == height) {
            hash = node_hash(&left, &hash);
            height = height.saturating_add(1);
        }
        self.subtrees.push((height, hash));
    }

    /// The subtrees with their heights, from left to right: pushed in this order, they make the
    /// same tree again.
    pub fn subtrees(&self) -> &[(u32, Hash)] {
        &self.subtrees
    }

    /// Root of the tree so far.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        let Some((_, last)) = subtrees.next() else { return empty_root() };
        subtrees.fold(*last, |right, (_, left)| node_hash(left, &right))
    }
}

/// Hash over leaves `start..end`, where the range is a subtree of the RFC's recursion.
fn range_hash<S: SubtreeHashes>(hashes: &S, start: u64, end: u64) -> Result<Hash, S::Error> {
    let length = end.saturating_sub(start);
    if length.is_power_of_two() {
        let height = length.trailing_zeros();
        return hashes.complete(height, start >> height);
    }
    let middle = split(start, end);
    let left = range_hash(hashes, start, middle)?;
    let right = range_hash(hashes, middle, end)?;
    Ok(node_hash(&left, &right))
}

/// `start` plus the largest power of two below the length of the range, which is at least 2.
fn split(start: u64, end: u64) -> u64 {
    let last = end.saturating_sub(start).saturating_sub(1);
    start.saturating_add(1u64 << last.checked_ilog2().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    struct Leaves(Vec<Hash>);

    impl SubtreeHashes for Leaves {
        type Error = Infallible;
        fn complete(&self, height: u32, index: u64) -> Result<Hash, Infallible> {
            if height == 0 {
                return Ok(self.0[usize::try_from(index).unwrap()]);
            }
            let left = self.complete(height - 1, index * 2)?;
            let right = self.complete(height - 1, index * 2 + 1)?;
            Ok(node_hash(&left, &right))
        }
    }

    fn leaves(count: u8) -> Leaves {
        Leaves((0..count).map(|n| leaf_hash(&[n])).collect())
    }

    #[test]
    fn known_roots() {
        // RFC 6962 section 2.1: the empty tree's hash, and the shape of a tree of three.
        assert_eq!(
            crate::id::to_hex(&empty_root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let Leaves(hashes) = leaves(3);
        let expected = node_hash(&node_hash(&hashes[0], &hashes[1]), &hashes[2]);
        assert_eq!(root(&leaves(3), 3), Ok(expected));
    }

    #[test]
    fn a_frontier_has_the_root_of_its_tree_from_leaves_and_from_subtrees() {
        let tree = leaves(40);
        let mut grown = Frontier::default();
        assert_eq!(grown.root(), empty_root());
        for size in 1..=40u64 {
            grown.push(0, tree.0[usize::try_from(size - 1).unwrap()]);
            assert_eq!((grown.size(), Ok(grown.root())), (size, root(&tree, size)));
            let (mut joined, mut start) = (Frontier::default(), 0);
            for height in (0..6).rev().filter(|height| size & (1 << height) != 0) {
                joined.push(height, tree.complete(height, start >> height).unwrap());
                start += 1 << height;
            }
            assert_eq!(joined, grown);
        }
    }

    #[test]
    fn every_inclusion_proof_verifies_and_no_other() {
        let tree = leaves(40);
        for size in 1..=40u64 {
            let root = root(&tree, size).unwrap();
            for index in 0..size {
                let proof = inclusion_proof(&tree, index, size).unwrap();
                let leaf = tree.0[usize::try_from(index).unwrap()];
                assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_ok());
                let other = leaf_hash(b"other");
                assert!(verify_inclusion(&other, index, size, &proof, &root).is_err());
                assert!(verify_inclusion(&leaf, size, size, &proof, &root).is_err());
                let mut longer = proof.clone();
                longer.push([0; 32]);
                assert!(verify_inclusion(&leaf, index, size, &longer, &root).is_err());
            }
        }
    }

    #[test]
    fn every_consistency_proof_verifies_and_no_other() {
        let tree = leaves(40);
        for size in 1..=40u64 {
            let new_root = root(&tree, size).unwrap();
            for old_size in 1..=size {
                let old_root = root(&tree, old_size).unwrap();
                let proof = consistency_proof(&tree, old_size, size).unwrap();
                let verify = |old: &Hash, new: &Hash, proof: &[Hash]| {
                    verify_consistency(old_size, size, proof, old, new).is_ok()
                };
                assert!(verify(&old_root, &new_root, &proof), "{old_size} of {size}");
                assert!(!verify(&[1; 32], &new_root, &proof));
                assert!(!verify(&old_root, &[1; 32], &proof));
                let mut longer = proof.clone();
                longer.push([0; 32]);
                assert!(!verify(&old_root, &new_root, &longer));
            }
        }
    }

    #[test]
    fn a_smaller_tree_continues_nothing() {
        let tree = leaves(40);
        for old_size in 2..=40u64 {
            let old_root = root(&tree, old_size).unwrap();
            for size in 1..old_size {
                let new_root = root(&tree, size).unwrap();
                let back = consistency_proof(&tree, size, old_size).unwrap();
                for (proof, root) in [
                    (&[][..], &old_root),
                    (&[][..], &new_root),
                    (&back[..], &old_root),
                    (&back[..], &new_root),
                ] {
                    let verified = verify_consistency(old_size, size, proof, &old_root, root);
                    assert!(verified.is_err(), "{old_size} to {size}");
                }
            }
        }
    }
}
