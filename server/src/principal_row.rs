//! The row of a principal: its role, its keys and their age.

use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::limits::NAME_MAX_BYTES;
use strongroom_protocol::role::Role;

const WHAT: &str = "principal row";
/// Stands for a key that is none.
const NO_KEY: TlsKeyDigest = TlsKeyDigest([0; 32]);

/// A principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalRow {
    /// What it may do.
    pub role: Role,
    /// Where, for roles of one namespace.
    pub namespace: Option<NamespaceId>,
    /// Pin of its TLS key.
    pub tls_key: TlsKeyDigest,
    /// Its signing key.
    pub signing_key: PublicKey,
    /// For people.
    pub display_name: String,
    /// When it was enrolled, milliseconds since 1970.
    pub enrolled_ms: u64,
    /// When it was revoked, milliseconds since 1970; 0 while it is not.
    pub revoked_ms: u64,
    /// Since when it has these keys, milliseconds since 1970.
    pub keys_ms: u64,
    /// The TLS key that it had before, which is good for nothing any more.
    pub former_tls_key: Option<TlsKeyDigest>,
}

impl PrincipalRow {
    /// Key of a principal.
    pub fn key(principal: &PrincipalId) -> Vec<u8> {
        principal.0.to_vec()
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(b"RPR2");
        out.u8(self.role.code()).bool(self.namespace.is_some());
        out.raw(&self.namespace.unwrap_or(NamespaceId([0; 32])).0);
        out.raw(&self.tls_key.0).raw(&self.signing_key.0).bytes(self.display_name.as_bytes());
        out.u64(self.enrolled_ms).u64(self.revoked_ms).u64(self.keys_ms);
        out.raw(&self.former_tls_key.unwrap_or(NO_KEY).0);
        out.finish()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        // Rows of before end with the revocation: their keys are those of the enrolment.
        let is_first = bytes.first_chunk() == Some(b"RPR1");
        reader.magic(if is_first { b"RPR1" } else { b"RPR2" })?;
        let role = Role::from_code(reader.u8()?).ok_or(DecodeError::Value("role"))?;
        let has_namespace = reader.bool()?;
        let namespace = NamespaceId(reader.array()?);
        let mut row = Self {
            role,
            namespace: has_namespace.then_some(namespace),
            tls_key: TlsKeyDigest(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            display_name: reader.text(NAME_MAX_BYTES)?.to_owned(),
            enrolled_ms: reader.u64()?,
            revoked_ms: reader.u64()?,
            keys_ms: 0,
            former_tls_key: None,
        };
        row.keys_ms = if is_first { row.enrolled_ms } else { reader.u64()? };
        if !is_first {
            row.former_tls_key = Some(TlsKeyDigest(reader.array()?)).filter(|key| *key != NO_KEY);
        }
        reader.finish()?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_so_do_those_of_before() {
        let row = PrincipalRow {
            role: Role::Operator,
            namespace: None,
            tls_key: TlsKeyDigest([1; 32]),
            signing_key: PublicKey([2; 32]),
            display_name: "desk".into(),
            enrolled_ms: 3,
            revoked_ms: 4,
            keys_ms: 5,
            former_tls_key: Some(TlsKeyDigest([6; 32])),
        };
        assert_eq!(PrincipalRow::decode(&row.encode()).as_ref(), Ok(&row));
        let bare = PrincipalRow { keys_ms: 3, former_tls_key: None, ..row };
        assert_eq!(PrincipalRow::decode(&bare.encode()).as_ref(), Ok(&bare));
        let mut first = bare.encode();
        first.truncate(first.len() - 8 - 32);
        first[3] = b'1';
        assert_eq!(PrincipalRow::decode(&first), Ok(bare));
    }
}
