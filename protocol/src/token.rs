//! Enrolment: the one-time token, and the request that proves it.
//!
//! ```text
//! token   = "SRK1" | token id(16) | secret(32) | TLS key digest(32) | BLAKE3(ledger key)(32)
//!         | scope u8 | ns_id(32) | text name | role u8 | expires u64 (s) | text addresses
//!         | check(4) = first bytes of BLAKE3(all before)
//! text    = "srk1_" | base64url without padding
//! request = "SRN1" | token id(16) | client's TLS key digest(32) | signing key(32)
//!         | text display name | bytes descriptor (empty where none is due) | proof(32)
//! proof   = keyed(derive_key("strongroom v1 enrolment", secret), exporter(32) || request so far)
//! ```
//!
//! The exporter is RFC 9266's of the connection, so a relay, whose two connections have two
//! exporters, gets nothing; the token pins the server, so a wrong server gets nothing either.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{Label, NamespaceId, PublicKey, TlsKeyDigest, TokenId};
use crate::limits::{
    ADDRESS_MAX_BYTES, DESCRIPTOR_MAX_BYTES, ENROLL_MAX_BYTES, LABEL_MAX_BYTES, NAME_MAX_BYTES,
    TOKEN_MAX_BYTES,
};
use crate::role::Role;

const MAGIC: &[u8; 4] = b"SRK1";
const REQUEST_MAGIC: &[u8; 4] = b"SRN1";
const PREFIX: &str = "srk1_";
const CHECK_BYTES: usize = 4;
const PROOF_BYTES: usize = 32;

/// RFC 9266: label of the TLS exporter that binds a proof to its connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// What a token gives access to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole server: operators, officers, auditors, replicas.
    Server,
    /// A namespace that exists; the name is for people.
    Existing(NamespaceId, Label),
    /// A namespace that the enrolling client's descriptor will create.
    New(Label),
}

/// An enrolment token, decoded. Whoever has it can enrol once: it has no `Debug`, its secret is
/// wiped when it is dropped, and nothing compares two of them.
#[derive(Clone)]
pub struct Token {
    /// Names the token.
    pub id: TokenId,
    /// Proves that one has it.
    pub secret: Zeroizing<[u8; 32]>,
    /// The server's TLS key.
    pub tls_key: TlsKeyDigest,
    /// BLAKE3 of the server's ledger key.
    pub ledger_key_digest: [u8; 32],
    /// What it gives access to.
    pub scope: Scope,
    /// In which role.
    pub role: Role,
    /// When it ends, seconds since 1970.
    pub expires_seconds: u64,
    /// `host:port`, several with commas.
    pub addresses: String,
}

impl Token {
    /// The text that people copy.
    pub fn to_text(&self) -> String {
        let (scope, namespace, name) = match &self.scope {
            Scope::Server => (0, NamespaceId([0; 32]), ""),
            Scope::Existing(namespace, name) => (1, *namespace, name.as_str()),
            Scope::New(name) => (2, NamespaceId([0; 32]), name.as_str()),
        };
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.id.0).raw(&*self.secret).raw(&self.tls_key.0).raw(&self.ledger_key_digest);
        out.u8(scope).raw(&namespace.0).bytes(name.as_bytes()).u8(self.role.code());
        out.u64(self.expires_seconds).bytes(self.addresses.as_bytes());
        let mut bytes = out.finish();
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads the text that people copy; white space around it does not matter.
    pub fn from_text(text: &str) -> Result<Self, DecodeError> {
        const WHAT: &str = "enrolment token";
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(DecodeError::Magic(WHAT))?;
        if u32::try_from(encoded.len()).map_or(true, |length| length > 2 * TOKEN_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| DecodeError::Value(WHAT))?;
        let bytes = Zeroizing::new(bytes);
        let (fields, check) =
            bytes.split_last_chunk::<CHECK_BYTES>().ok_or(DecodeError::Short(WHAT))?;
        if check_of(fields) != *check {
            return Err(DecodeError::Value("enrolment token (it was not copied whole)"));
        }
        let mut reader = Reader::new(WHAT, fields);
        reader.magic(MAGIC)?;
        let (id, secret) = (TokenId(reader.array()?), Zeroizing::new(reader.array()?));
        let (tls_key, ledger_key_digest) = (TlsKeyDigest(reader.array()?), reader.array()?);
        let (scope, namespace) = (reader.u8()?, NamespaceId(reader.array()?));
        let name = reader.text(LABEL_MAX_BYTES)?;
        let label = name.parse::<Label>().map_err(|_| DecodeError::Value(WHAT));
        let scope = match scope {
            0 if name.is_empty() && namespace.0 == [0; 32] => Scope::Server,
            1 => Scope::Existing(namespace, label?),
            2 if namespace.0 == [0; 32] => Scope::New(label?),
            _ => return reader.refuse(),
        };
        let role = Role::from_code(reader.u8()?).ok_or(DecodeError::Value(WHAT))?;
        let expires_seconds = reader.u64()?;
        let addresses = reader.text(ADDRESS_MAX_BYTES)?.to_owned();
        reader.finish()?;
        Ok(Self { id, secret, tls_key, ledger_key_digest, scope, role, expires_seconds, addresses })
    }
}

/// What a client sends to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollRequest {
    /// By which token.
    pub token: TokenId,
    /// The client's TLS key, which must be the connection's.
    pub tls_key: TlsKeyDigest,
    /// The client's signing key.
    pub signing_key: PublicKey,
    /// For people.
    pub display_name: String,
    /// First descriptor of a new namespace, else empty.
    pub descriptor: Vec<u8>,
}

impl EnrollRequest {
    /// The request with its proof.
    pub fn encode(&self, secret: &[u8; 32], exporter: &[u8; 32]) -> Vec<u8> {
        let mut out = Writer::with_magic(REQUEST_MAGIC);
        out.raw(&self.token.0).raw(&self.tls_key.0).raw(&self.signing_key.0);
        out.bytes(self.display_name.as_bytes()).bytes(&self.descriptor);
        let mut bytes = out.finish();
        let proof = proof_of(&enrolment_key(secret), exporter, &bytes);
        bytes.extend_from_slice(proof.as_bytes());
        bytes
    }

    /// Decodes a request; the proof is checked by [`EnrollRequest::proves`], because the token
    /// must be looked up first.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "enrolment request";
        if u32::try_from(bytes.len()).map_or(true, |length| length > ENROLL_MAX_BYTES) {
            return Err(DecodeError::TooLong(WHAT));
        }
        let (fields, _) =
            bytes.split_last_chunk::<PROOF_BYTES>().ok_or(DecodeError::Short(WHAT))?;
        let mut reader = Reader::new(WHAT, fields);
        reader.magic(REQUEST_MAGIC)?;
        let request = Self {
            token: TokenId(reader.array()?),
            tls_key: TlsKeyDigest(reader.array()?),
            signing_key: PublicKey(reader.array()?),
            display_name: reader.text(NAME_MAX_BYTES)?.to_owned(),
            descriptor: reader.bytes(DESCRIPTOR_MAX_BYTES)?.to_vec(),
        };
        reader.finish()?;
        Ok(request)
    }

    /// Whether the encoded request proves the token on the connection with this exporter. The
    /// comparison takes the same time wherever the proofs differ.
    pub fn proves(bytes: &[u8], enrolment_key: &[u8; 32], exporter: &[u8; 32]) -> bool {
        bytes.split_last_chunk::<PROOF_BYTES>().is_some_and(|(fields, proof)| {
            let made: blake3::Hash = proof_of(enrolment_key, exporter, fields);
            made == blake3::Hash::from_bytes(*proof)
        })
    }
}

/// What a server keeps of a token's secret.
pub fn enrolment_key(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("strongroom v1 enrolment", secret)
}

fn proof_of(enrolment_key: &[u8; 32], exporter: &[u8; 32], fields: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_keyed(enrolment_key).update(exporter).update(fields).finalize()
}

fn check_of(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(scope: Scope) -> Token {
        Token {
            id: TokenId([1; 16]),
            secret: Zeroizing::new([2; 32]),
            tls_key: TlsKeyDigest([3; 32]),
            ledger_key_digest: [4; 32],
            scope,
            role: Role::Backup,
            expires_seconds: 5,
            addresses: "backup.example:7443".into(),
        }
    }

    #[test]
    fn tokens_round_trip_and_notice_bad_copies() {
        let name: Label = "erp".parse().unwrap();
        let existing = Scope::Existing(NamespaceId([9; 32]), name.clone());
        for scope in [Scope::Server, existing, Scope::New(name)] {
            let token = token(scope);
            let text = token.to_text();
            let back = Token::from_text(&format!(" {text}\n")).unwrap();
            assert_eq!((back.to_text(), back.secret), (text.clone(), token.secret));
            assert!(Token::from_text(&text[..text.len() - 1]).is_err());
            assert!(Token::from_text(&text.replacen('A', "B", 1)).is_err());
        }
    }

    #[test]
    fn a_proof_holds_for_its_connection_secret_and_fields_only() {
        let request = EnrollRequest {
            token: TokenId([1; 16]),
            tls_key: TlsKeyDigest([2; 32]),
            signing_key: PublicKey([3; 32]),
            display_name: "erp-1".into(),
            descriptor: vec![4; 10],
        };
        let bytes = request.encode(&[7; 32], &[8; 32]);
        assert_eq!(EnrollRequest::decode(&bytes), Ok(request));
        let key = enrolment_key(&[7; 32]);
        assert!(EnrollRequest::proves(&bytes, &key, &[8; 32]));
        assert!(!EnrollRequest::proves(&bytes, &key, &[9; 32]), "relayed");
        assert!(!EnrollRequest::proves(&bytes, &enrolment_key(&[6; 32]), &[8; 32]));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(!EnrollRequest::proves(&changed, &key, &[8; 32]), "byte {at}");
        }
    }
}
