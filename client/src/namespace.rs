//! How a namespace begins: its keys, its first descriptor, its recovery kit.
//!
//! [`NewNamespace::generate`] makes everything at once: the authority key whose hash is the
//! namespace's id, the recovery identity, the restore-only access key, the convergence secret, and
//! that secret wrapped for the recipients. Until the namespace is enrolled all of it waits in a
//! pending file (mode 0600). From the same pending file and ledger keys the first descriptor comes
//! out the same, byte for byte, so an enrolment whose answer was lost can be asked for again.
//! Afterwards the machine keeps the convergence secret only: authority, identity and access key
//! stay in the kit, and the pending file is removed.

use ed25519_dalek::SigningKey;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use strongroom_protocol::codec::DecodeError;
use strongroom_protocol::descriptor::{ChunkSizes, Codec, Descriptor};
use strongroom_protocol::envelope::Suite;
use strongroom_protocol::id::{DescriptorDigest, Label, NamespaceId, PublicKey, from_hex, to_hex};
use strongroom_protocol::limits::RECIPIENTS_MAX;
use strongroom_protocol::message::HexBytes;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::age_file::{self, AgeFileError};
use crate::keys::{ConvergenceSecret, EpochKeys, RandomError, public_key_of, random_signing_key};
use crate::kit::{CheckpointFloor, Kit};

/// The number of a namespace's first convergence secret.
pub const FIRST_EPOCH: u32 = 1;

const FORMAT_VERSION: u32 = 1;

/// A namespace cannot be made, or its pending file not be read.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// A recipient is not one.
    #[error(transparent)]
    Recipient(#[from] AgeFileError),
    /// The chunk size is out of bounds.
    #[error("chunk size: the average must be 4096 to 1048576 bytes")]
    ChunkSize(#[source] DecodeError),
    /// The compression level is out of bounds.
    #[error("codec: the zstd level must be 1 to 19")]
    Level,
    /// More recipients than a descriptor holds.
    #[error("too many recipients: at most 32, the recovery identity included")]
    Recipients,
    /// The pending file is not one, or was changed.
    #[error("pending namespace file: {0}; remove it and make a new namespace with `key new`")]
    Pending(String),
}

/// What is chosen once and stands in every descriptor of the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Average chunk, in bytes; the shortest is a quarter of it, the longest four times.
    pub chunk_average_bytes: u32,
    /// How chunks are compressed.
    pub codec: Codec,
    /// age recipients besides the kit's own identity.
    pub extra_recipients: Vec<String>,
}

/// A namespace that no server knows yet, with all its secrets.
pub struct NewNamespace {
    authority: SigningKey,
    access_key: SigningKey,
    identity: Zeroizing<String>,
    secret: ConvergenceSecret,
    wrapped_secret: Vec<u8>,
    options: NamespaceOptions,
    recipients: Vec<String>,
}

impl NewNamespace {
    /// Makes the keys of a new namespace.
    ///
    /// # Errors
    /// When an option is out of bounds, a recipient is of an unknown kind, or the system has no
    /// random bytes.
    pub fn generate(options: NamespaceOptions) -> Result<Self, NamespaceError> {
        options.check()?;
        let (identity, recipient) = age_file::generate_identity();
        let secret = ConvergenceSecret::generate()?;
        let mut recipients = vec![recipient];
        recipients.extend_from_slice(&options.extra_recipients);
        Ok(Self {
            authority: random_signing_key()?,
            access_key: random_signing_key()?,
            identity,
            wrapped_secret: age_file::seal_to(&recipients, secret.as_bytes())?,
            secret,
            options,
            recipients,
        })
    }

    /// The namespace's id.
    pub fn namespace(&self) -> NamespaceId {
        NamespaceId::of_authority(&public_key_of(&self.authority))
    }

    /// The secret that this machine keeps.
    pub fn convergence_secret(&self) -> &ConvergenceSecret {
        &self.secret
    }

    /// The keys of the first epoch.
    pub fn epoch_keys(&self) -> EpochKeys {
        EpochKeys::derive(&self.secret, &self.namespace(), FIRST_EPOCH)
    }

    /// The recovery identity's own recipient.
    pub fn recovery_recipient(&self) -> &str {
        self.recipients.first().map_or("", String::as_str)
    }

    /// Signs version 1 of the descriptor, which pins the servers with these ledger keys (one at
    /// least). Equal keys give equal bytes.
    pub fn descriptor(&self, ledger_keys: &[PublicKey]) -> Vec<u8> {
        let average = self.options.chunk_average_bytes;
        let descriptor = Descriptor {
            authority: public_key_of(&self.authority),
            version: 1,
            previous: DescriptorDigest([0; 32]),
            suite: Suite::Blake3ChaCha20Poly1305,
            chunk_sizes: ChunkSizes { min: average / 4, average, max: average.saturating_mul(4) },
            codec: self.options.codec,
            epoch: FIRST_EPOCH,
            record_key: public_key_of(&self.epoch_keys().record_key()),
            access_key: public_key_of(&self.access_key),
            recipients: self.recipients.clone(),
            ledger_keys: ledger_keys.to_vec(),
            wrapped_secret: self.wrapped_secret.clone(),
        };
        descriptor.sign(&self.authority)
    }

    /// The recovery kit: `servers` are `host:port` addresses, `checkpoint` is the newest that was
    /// seen, `created` the day to print on it.
    pub fn kit(
        &self,
        namespace_name: Label,
        servers: Vec<String>,
        checkpoint: Option<CheckpointFloor>,
        created: Date,
    ) -> Kit {
        Kit {
            namespace_name,
            namespace: self.namespace(),
            servers,
            identity: self.identity.clone(),
            authority_key: self.authority.clone(),
            access_key: self.access_key.clone(),
            descriptor_version: 1,
            checkpoint,
            created,
        }
    }

    /// The contents of the pending file. All the namespace's secrets are in it.
    ///
    /// # Errors
    /// When the text cannot be made.
    pub fn to_pending_text(&self) -> Result<Zeroizing<String>, NamespaceError> {
        let pending = Pending {
            version: FORMAT_VERSION,
            authority_key: to_hex(self.authority.as_bytes()),
            access_key: to_hex(self.access_key.as_bytes()),
            identity: self.identity.to_string(),
            convergence_secret: to_hex(self.secret.as_bytes()),
            wrapped_secret: to_hex(&self.wrapped_secret),
            chunk_average_bytes: self.options.chunk_average_bytes,
            zstd_level: match self.options.codec {
                Codec::None => 0,
                Codec::Zstd(level) => level,
            },
            extra_recipients: self.options.extra_recipients.clone(),
        };
        let text = toml::to_string(&pending).map_err(|_| pending_error("cannot be written"))?;
        Ok(Zeroizing::new(format!(
            "# A new namespace of strongroom that is not enrolled yet. All its secrets are here:\n\
             # keep this file private. Enrolment removes it.\n{text}"
        )))
    }

    /// Reads the contents of a pending file.
    ///
    /// # Errors
    /// When the text is not what [`NewNamespace::to_pending_text`] wrote.
    pub fn from_pending_text(text: &str) -> Result<Self, NamespaceError> {
        // The parser's message could repeat a line with a secret in it.
        let pending: Pending = toml::from_str(text).map_err(|_| pending_error("not readable"))?;
        if pending.version != FORMAT_VERSION {
            return Err(pending_error("of another version of strongroom"));
        }
        let options = NamespaceOptions {
            chunk_average_bytes: pending.chunk_average_bytes,
            codec: match pending.zstd_level {
                0 => Codec::None,
                level => Codec::Zstd(level),
            },
            extra_recipients: pending.extra_recipients.clone(),
        };
        options.check()?;
        let mut recipients = vec![age_file::recipient_of(&pending.identity)?];
        recipients.extend_from_slice(&options.extra_recipients);
        let wrapped = HexBytes::try_from(pending.wrapped_secret.clone());
        Ok(Self {
            authority: signing_key(&pending.authority_key)?,
            access_key: signing_key(&pending.access_key)?,
            identity: Zeroizing::new(pending.identity.clone()),
            secret: ConvergenceSecret::from_bytes(*key_bytes(&pending.convergence_secret)?),
            wrapped_secret: wrapped.map_err(pending_error)?.0,
            options,
            recipients,
        })
    }
}

impl NamespaceOptions {
    fn check(&self) -> Result<(), NamespaceError> {
        ChunkSizes::around(self.chunk_average_bytes).map_err(NamespaceError::ChunkSize)?;
        if !matches!(self.codec, Codec::None | Codec::Zstd(1..=19)) {
            return Err(NamespaceError::Level);
        }
        let count = u32::try_from(self.extra_recipients.len()).unwrap_or(u32::MAX);
        if count >= RECIPIENTS_MAX {
            return Err(NamespaceError::Recipients);
        }
        self.extra_recipients.iter().try_for_each(|text| age_file::check_recipient(text))?;
        Ok(())
    }
}

/// The pending file, field by field. A level of 0 stands for no compression.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Pending {
    version: u32,
    authority_key: String,
    access_key: String,
    identity: String,
    convergence_secret: String,
    wrapped_secret: String,
    chunk_average_bytes: u32,
    zstd_level: u8,
    extra_recipients: Vec<String>,
}

fn pending_error(what: &str) -> NamespaceError {
    NamespaceError::Pending(what.to_owned())
}

fn key_bytes(text: &str) -> Result<Zeroizing<[u8; 32]>, NamespaceError> {
    from_hex(text).map(Zeroizing::new).ok_or_else(|| pending_error("a key is damaged"))
}

fn signing_key(text: &str) -> Result<SigningKey, NamespaceError> {
    Ok(SigningKey::from_bytes(&*key_bytes(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrecy::{is_wiped, wipes};
    use strongroom_protocol::descriptor::VerifiedDescriptor;

    const LEDGER_KEY: PublicKey = PublicKey([4; 32]);
    const _: () = wipes::<Pending>();

    #[test]
    fn the_secrets_of_a_new_namespace_are_wiped() {
        let NewNamespace {
            authority,
            access_key,
            identity,
            secret,
            wrapped_secret: _,
            options: _,
            recipients: _,
        } = NewNamespace::generate(options()).unwrap();
        is_wiped(&authority);
        is_wiped(&access_key);
        is_wiped(&identity);
        is_wiped(&secret);
    }

    fn options() -> NamespaceOptions {
        let (_, recipient) = age_file::generate_identity();
        NamespaceOptions {
            chunk_average_bytes: 65_536,
            codec: Codec::Zstd(1),
            extra_recipients: vec![recipient],
        }
    }

    #[test]
    fn the_descriptor_says_what_was_chosen_and_opens_with_the_kit() {
        let options = options();
        let new = NewNamespace::generate(options.clone()).unwrap();
        let encoded = new.descriptor(&[LEDGER_KEY]);
        let verified = VerifiedDescriptor::decode_for(&encoded, &new.namespace(), 1).unwrap();
        let contents = verified.contents();
        assert_eq!(contents.chunk_sizes, ChunkSizes::around(65_536).unwrap());
        assert_eq!((contents.codec, contents.epoch), (options.codec, FIRST_EPOCH));
        assert_eq!(contents.recipients[0], new.recovery_recipient());
        assert_eq!(contents.recipients[1..], options.extra_recipients);
        assert_eq!(contents.ledger_keys, [LEDGER_KEY]);

        let date = "2026-02-03".parse().unwrap();
        let kit = new.kit("erp".parse().unwrap(), vec!["backup:7443".into()], None, date);
        assert_eq!(contents.access_key, public_key_of(&kit.access_key));
        let secret = age_file::open_with(&[&*kit.identity], &contents.wrapped_secret).unwrap();
        assert_eq!(secret.as_slice(), new.convergence_secret().as_bytes());
        let record_key = new.epoch_keys().record_key();
        assert_eq!(contents.record_key, public_key_of(&record_key));
    }

    #[test]
    fn a_pending_file_gives_the_same_descriptor() {
        for codec in [Codec::None, Codec::Zstd(7)] {
            let options = NamespaceOptions { codec, ..options() };
            let new = NewNamespace::generate(options).unwrap();
            let text = new.to_pending_text().unwrap();
            let back = NewNamespace::from_pending_text(&text).unwrap();
            assert_eq!(back.descriptor(&[LEDGER_KEY]), new.descriptor(&[LEDGER_KEY]));
            assert_eq!(back.identity, new.identity);
        }
    }

    #[test]
    fn refuses_bad_options_and_bad_pending_files() {
        let bad = |change: fn(&mut NamespaceOptions)| {
            let mut options = options();
            change(&mut options);
            NewNamespace::generate(options).err().unwrap().to_string()
        };
        assert!(bad(|o| o.chunk_average_bytes = 100).contains("chunk size"));
        assert!(bad(|o| o.codec = Codec::Zstd(20)).contains("level"));
        assert!(bad(|o| o.codec = Codec::Zstd(0)).contains("level"));
        assert!(bad(|o| o.extra_recipients = vec!["age1x".into()]).contains("age1x"));
        assert!(bad(|o| o.extra_recipients = vec![String::new(); 40]).contains("too many"));

        let new = NewNamespace::generate(options()).unwrap();
        let text = new.to_pending_text().unwrap();
        for (from, to) in [("version = 1", "version = 2"), ("zstd_level", "zstd"), ("\"", "'x")] {
            let changed = text.replacen(from, to, 1);
            let error = NewNamespace::from_pending_text(&changed).err().unwrap();
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
    }
}
