//! Names of things: fixed-size digests and ids, and the two kinds of label that people choose.
//!
//! A [`ChunkId`] and a [`SealedDigest`] are never interchangeable: the first is derived from the
//! plaintext under a namespace's secret and stays with clients, the second is the BLAKE3 digest of
//! a stored envelope and is the server's content address.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::LABEL_MAX_BYTES;

/// A text is not an id, digest or label.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("not a {0}")]
pub struct ParseIdError(pub &'static str);

/// Lower-case hexadecimal text of `bytes`.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text
}

/// The `N` bytes that lower-case hexadecimal `text` stands for, or nothing.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N.saturating_mul(2) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = (nibble(*high)? << 4) | nibble(*low)?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
        _ => None,
    }
}

macro_rules! fixed_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $bytes;

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                from_hex(text).map(Self).ok_or(ParseIdError($what))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }
    };
}

fixed_id! {
    /// `BLAKE3(authority public key)`: names a namespace, everywhere and for ever.
    NamespaceId, 32, "namespace id"
}
fixed_id! {
    /// Derived from the keyed hash of a plaintext; known to clients only.
    ChunkId, 32, "chunk id"
}
fixed_id! {
    /// BLAKE3 of a stored envelope, exactly as stored: the server's content address.
    SealedDigest, 32, "sealed digest"
}
fixed_id! {
    /// `BLAKE3(body || length || key block)` of a snapshot record: names a snapshot.
    RecordDigest, 32, "snapshot id"
}
fixed_id! {
    /// BLAKE3 of the signed part of a descriptor.
    DescriptorDigest, 32, "descriptor digest"
}
fixed_id! {
    /// BLAKE3 of the DER SubjectPublicKeyInfo of a TLS key: what a pin compares.
    TlsKeyDigest, 32, "TLS key digest"
}
fixed_id! {
    /// An Ed25519 public key.
    PublicKey, 32, "public key"
}
fixed_id! {
    /// Random, given at enrolment, stable across key roll-over.
    PrincipalId, 16, "principal id"
}
fixed_id! {
    /// Random, names a repository (one data folder).
    RepositoryId, 16, "repository id"
}
fixed_id! {
    /// Random, names an enrolment token.
    TokenId, 16, "token id"
}
fixed_id! {
    /// Random, names an upload session.
    SessionId, 16, "session id"
}
fixed_id! {
    /// Random, given by the server when a session opens; stands in the record that it commits.
    SessionNonce, 32, "session nonce"
}

impl NamespaceId {
    /// The id that belongs to an authority's public key.
    pub fn of_authority(key: &PublicKey) -> Self {
        Self(*blake3::hash(&key.0).as_bytes())
    }
}

impl SealedDigest {
    /// The content address of `envelope`.
    pub fn of(envelope: &[u8]) -> Self {
        Self(*blake3::hash(envelope).as_bytes())
    }
}

impl PrincipalId {
    /// Stands in ledger entries for commands given on the server itself.
    pub const LOCAL: Self = Self([0; 16]);
}

/// A label that people choose for a source (`erp-production`) or a namespace: 1 to 64 characters
/// of `a-z 0-9 . _ -`, starting with a letter or digit. It can only be built valid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Label(String);

impl Label {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const WHAT: &str = "label (1 to 64 of a-z, 0-9, '.', '_', '-', letter or digit first)";
        let too_long = u32::try_from(text.len()).map_or(true, |length| length > LABEL_MAX_BYTES);
        let first_is_good = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let all_are_good = text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
        });
        if too_long || !first_is_good || !all_are_good {
            return Err(ParseIdError(WHAT));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Label {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Label({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_other_text() {
        let id = PrincipalId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("a5".parse::<PrincipalId>().is_err());
        assert!("A5".repeat(16).parse::<PrincipalId>().is_err());
        assert!("g5".repeat(16).parse::<PrincipalId>().is_err());
    }

    #[test]
    fn labels_are_checked() {
        for good in ["erp", "erp-production.1", "0_a"] {
            assert!(good.parse::<Label>().is_ok(), "{good}");
        }
        for bad in ["", "-erp", "ERP", "a/b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
