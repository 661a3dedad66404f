//! Operations that take two principals: what is proposed, and how the second one approves.
//!
//! A proposal is a leaf of the ledger. An approval signs the leaf's hash, the ledger's origin, a
//! decision and a stated meaning with the approver's own key:
//!
//! ```text
//! "SRA1" | leaf hash(32) | origin text | decision u8 (1 approve, 2 reject) | meaning text
//! ```
//!
//! so an approval cannot be moved to another proposal or another server, and what the approver
//! meant by it is on record (21 CFR Part 11, 11.50).

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::codec::Writer;
use crate::id::{NamespaceId, PublicKey, RecordDigest};
use crate::merkle::Hash;
use crate::policy::Policy;
use crate::signature::{SIGNATURE_BYTES, SignatureError, SignedType, sign, verify};

/// What is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "kind")]
pub enum Operation {
    /// 1: forget a snapshot whose governance lock lasts.
    ForgetGovernance {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        record: RecordDigest,
    },
    /// 2: a policy that is below the one in force.
    LowerPolicy {
        /// Where.
        namespace: NamespaceId,
        /// The new policy.
        policy: Policy,
    },
    /// 3: count time that the server was powered off as time that has passed.
    CreditOffTime {
        /// How much.
        seconds: u64,
    },
    /// 4: end the suspicion of the retention clock, so that locks end again.
    Thaw,
}

/// What the second principal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Do it.
    Approve,
    /// Do not.
    Reject,
}

/// What an approver signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval<'a> {
    /// Hash of the proposal's leaf.
    pub leaf: Hash,
    /// Origin of the ledger that the leaf is in.
    pub origin: &'a str,
    /// Yes or no.
    pub verdict: Verdict,
    /// In the approver's words.
    pub meaning: &'a str,
}

impl Operation {
    /// The byte that names the kind of operation.
    pub const fn code(&self) -> u8 {
        match self {
            Self::ForgetGovernance { .. } => 1,
            Self::LowerPolicy { .. } => 2,
            Self::CreditOffTime { .. } => 3,
            Self::Thaw => 4,
        }
    }

    /// For people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ForgetGovernance { .. } => "forget under governance",
            Self::LowerPolicy { .. } => "lower a policy",
            Self::CreditOffTime { .. } => "credit off-time",
            Self::Thaw => "thaw the retention clock",
        }
    }

    /// The namespace that it is about, if it is about one.
    pub const fn namespace(&self) -> Option<NamespaceId> {
        match self {
            Self::ForgetGovernance { namespace, .. } | Self::LowerPolicy { namespace, .. } => {
                Some(*namespace)
            }
            Self::CreditOffTime { .. } | Self::Thaw => None,
        }
    }

    /// BLAKE3 over code and parameters: what the ledger says of them.
    pub fn digest(&self) -> [u8; 32] {
        let mut out = Writer::with_magic(b"SRO1");
        out.u8(self.code());
        match self {
            Self::ForgetGovernance { namespace, record } => {
                out.raw(&namespace.0).raw(&record.0);
            }
            Self::LowerPolicy { namespace, policy } => {
                out.raw(&namespace.0).raw(&policy.encode());
            }
            Self::CreditOffTime { seconds } => {
                out.u64(*seconds);
            }
            Self::Thaw => {}
        }
        blake3::hash(&out.finish()).into()
    }
}

impl Verdict {
    /// The byte that names it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Approve => 1,
            Self::Reject => 2,
        }
    }

    /// The verdict that `code` names.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Approve),
            2 => Some(Self::Reject),
            _ => None,
        }
    }
}

impl Approval<'_> {
    /// Signs with the approver's signing key.
    pub fn sign(&self, key: &SigningKey) -> [u8; SIGNATURE_BYTES] {
        sign(key, SignedType::Approval, &self.digest())
    }

    /// Checks the approver's signature.
    pub fn verify(
        &self,
        key: &PublicKey,
        signature: &[u8; SIGNATURE_BYTES],
    ) -> Result<(), SignatureError> {
        verify(key, SignedType::Approval, &self.digest(), signature)
    }

    fn digest(&self) -> [u8; 32] {
        let mut out = Writer::with_magic(b"SRA1");
        out.raw(&self.leaf).bytes(self.origin.as_bytes()).u8(self.verdict.code());
        out.bytes(self.meaning.as_bytes());
        blake3::hash(&out.finish()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_for_one_leaf_ledger_verdict_and_meaning() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let approval =
            Approval { leaf: [1; 32], origin: "o", verdict: Verdict::Approve, meaning: "checked" };
        let signature = approval.sign(&key);
        assert_eq!(approval.verify(&public, &signature), Ok(()));
        for other in [
            Approval { leaf: [2; 32], ..approval.clone() },
            Approval { origin: "p", ..approval.clone() },
            Approval { verdict: Verdict::Reject, ..approval.clone() },
            Approval { meaning: "", ..approval.clone() },
        ] {
            assert!(other.verify(&public, &signature).is_err());
        }
    }

    #[test]
    fn operations_have_distinct_digests() {
        let namespace = NamespaceId([1; 32]);
        let digests = [
            Operation::ForgetGovernance { namespace, record: RecordDigest([2; 32]) },
            Operation::ForgetGovernance { namespace, record: RecordDigest([3; 32]) },
            Operation::CreditOffTime { seconds: 5 },
            Operation::CreditOffTime { seconds: 6 },
            Operation::Thaw,
        ]
        .map(|operation| operation.digest());
        let distinct: std::collections::HashSet<_> = digests.into_iter().collect();
        assert_eq!(distinct.len(), 5);
    }

    #[test]
    fn operations_have_codes_names_and_namespaces_of_their_own() {
        let (namespace, record) = (NamespaceId([1; 32]), RecordDigest([2; 32]));
        let rule = crate::policy::ready_made(crate::policy::PERMANENT).unwrap();
        let policy = Policy::of_rule(rule);
        let all = [
            (Operation::ForgetGovernance { namespace, record }, 1, Some(namespace)),
            (Operation::LowerPolicy { namespace, policy }, 2, Some(namespace)),
            (Operation::CreditOffTime { seconds: 5 }, 3, None),
            (Operation::Thaw, 4, None),
        ];
        let mut names = std::collections::BTreeSet::new();
        for (operation, code, about) in all {
            assert_eq!((operation.code(), operation.namespace()), (code, about));
            assert!(names.insert(operation.name()) && operation.name().len() > 3);
        }
        for (verdict, code) in [(Verdict::Approve, 1), (Verdict::Reject, 2)] {
            assert_eq!((verdict.code(), Verdict::from_code(code)), (code, Some(verdict)));
        }
        assert_eq!((Verdict::from_code(0), Verdict::from_code(3)), (None, None));
    }
}
