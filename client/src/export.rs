//! The convergence secret on its way to another machine: an age file under a passphrase.
//!
//! Plain `age -d` opens it. Its plaintext is TOML: the namespace, its epoch and secret, the version
//! of the descriptor below which no server is believed, and where the server is. It opens no
//! backup: a thief who has file and passphrase can do with a captured server what a thief of a
//! backup machine can (`docs/security.md`), and nothing else. Errors never repeat what was read.

use serde::{Deserialize, Serialize};
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{Label, NamespaceId, PublicKey, from_hex, to_hex};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::age_file;
use crate::error::ClientError;
use crate::keys::{ConvergenceSecret, EpochKeys};
use crate::profile::{Profile, ProfileFolder};

const FORMAT_VERSION: u32 = 1;
/// Longest export file, in bytes.
pub const EXPORT_MAX_BYTES: u64 = 64 * 1024;

/// What a second machine needs.
pub struct Export {
    /// The namespace's name on the server.
    pub namespace_name: Option<Label>,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Number of the secret.
    pub epoch: u32,
    /// The secret.
    pub secret: ConvergenceSecret,
    /// No older descriptor is believed.
    pub descriptor_version: u64,
    /// Addresses of the server of the machine that exported.
    pub servers: Vec<String>,
    /// Ledger key of that server.
    pub ledger_key: PublicKey,
}

impl Export {
    /// What a machine of role `backup` hands on. No server is asked.
    pub fn of_profile(profile: &Profile) -> Result<Self, ClientError> {
        let secret = profile.convergence_secret()?;
        let descriptor = profile.kept_descriptor()?.ok_or_else(|| {
            ClientError::Usage(
                "this profile has no descriptor: make a backup first, then export".into(),
            )
        })?;
        if EpochKeys::of_descriptor(&descriptor, &secret).is_none() {
            return Err(ClientError::epoch_ended(descriptor.contents().epoch));
        }
        let settings = profile.settings();
        Ok(Self {
            namespace_name: settings.namespace_name.clone(),
            namespace: profile.namespace()?,
            epoch: descriptor.contents().epoch,
            secret,
            descriptor_version: descriptor.contents().version.max(settings.descriptor_version),
            servers: settings.addresses.clone(),
            ledger_key: settings.ledger_key,
        })
    }

    /// The file, under a passphrase.
    pub fn seal(&self, passphrase: &str) -> Result<Vec<u8>, ClientError> {
        age_file::seal_with_passphrase(passphrase, self.to_text()?.as_bytes())
            .map_err(|error| ClientError::Usage(error.to_string()))
    }

    /// Opens a file.
    pub fn open(passphrase: &str, file: &[u8]) -> Result<Self, ClientError> {
        let plaintext = age_file::open_with_passphrase(passphrase, file)
            .map_err(|error| ClientError::Untrusted(error.to_string()))?;
        Self::parse(std::str::from_utf8(&plaintext).unwrap_or_default())
    }

    /// Keeps it in the folder of a profile that is to be enrolled.
    pub fn keep(&self, folder: &ProfileFolder) -> Result<(), ClientError> {
        folder.write_imported(&self.to_text()?)
    }

    /// What `keep` kept.
    pub fn kept(folder: &ProfileFolder) -> Result<Option<Self>, ClientError> {
        folder.imported()?.map(|text| Self::parse(&text)).transpose()
    }

    /// Refuses a descriptor that is older than the export, or of another epoch.
    pub fn check(&self, descriptor: &VerifiedDescriptor) -> Result<(), ClientError> {
        if descriptor.namespace() != self.namespace {
            return Err(ClientError::Untrusted("the export is of another namespace".into()));
        }
        if descriptor.contents().version < self.descriptor_version {
            return Err(ClientError::Untrusted(
                "the server's descriptor is older than the export: it was rolled back".into(),
            ));
        }
        if EpochKeys::of_descriptor(descriptor, &self.secret).is_none() {
            return Err(ClientError::Usage(format!(
                "the namespace is at epoch {}, and the export at {}: export again on a machine \
                 that has the new secret",
                descriptor.contents().epoch,
                self.epoch
            )));
        }
        Ok(())
    }

    pub(crate) fn to_text(&self) -> Result<Zeroizing<String>, ClientError> {
        let fields = Fields {
            version: FORMAT_VERSION,
            namespace_name: self.namespace_name.as_ref().map(ToString::to_string),
            namespace: self.namespace.to_string(),
            epoch: self.epoch,
            convergence_secret: to_hex(self.secret.as_bytes()),
            descriptor_version: self.descriptor_version,
            servers: self.servers.clone(),
            ledger_key: self.ledger_key.to_string(),
        };
        let text = toml::to_string(&fields);
        text.map(Zeroizing::new).map_err(|_| damaged("cannot be written"))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, ClientError> {
        let fields: Fields = toml::from_str(text).map_err(|_| damaged("not an export"))?;
        if fields.version != FORMAT_VERSION {
            return Err(damaged("of another version of strongroom"));
        }
        let secret = from_hex(&fields.convergence_secret).map(Zeroizing::new);
        let name = fields.namespace_name.as_deref().map(str::parse).transpose();
        Ok(Self {
            namespace_name: name.map_err(|_| damaged("namespace_name"))?,
            namespace: fields.namespace.parse().map_err(|_| damaged("namespace"))?,
            epoch: fields.epoch,
            secret: ConvergenceSecret::from_bytes(
                *secret.ok_or_else(|| damaged("convergence_secret"))?,
            ),
            descriptor_version: fields.descriptor_version,
            servers: fields.servers.clone(),
            ledger_key: fields.ledger_key.parse().map_err(|_| damaged("ledger_key"))?,
        })
    }
}

/// The fields, in the order of the text.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace_name: Option<String>,
    namespace: String,
    epoch: u32,
    convergence_secret: String,
    descriptor_version: u64,
    servers: Vec<String>,
    ledger_key: String,
}

fn damaged(what: &str) -> ClientError {
    ClientError::Usage(format!("export: {what}; make it again with `strongroom key export`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrecy::{is_wiped, wipes};

    const _: () = wipes::<Fields>();

    /// Neither a key of the machine nor of anybody else is in it: the convergence secret is all.
    #[test]
    fn an_export_has_one_secret_which_is_wiped() {
        let Export {
            secret,
            namespace_name: _,
            namespace: _,
            epoch: _,
            descriptor_version: _,
            servers: _,
            ledger_key: _,
        } = export();
        is_wiped(&secret);
        let text = export().to_text().unwrap();
        let keys: Vec<&str> =
            text.lines().filter_map(|line| line.split_once(" = ").map(|(key, _)| key)).collect();
        let known = [
            "version",
            "namespace_name",
            "namespace",
            "epoch",
            "convergence_secret",
            "descriptor_version",
            "servers",
            "ledger_key",
        ];
        assert_eq!(keys, known);
    }

    fn export() -> Export {
        Export {
            namespace_name: Some("erp".parse().unwrap()),
            namespace: NamespaceId([1; 32]),
            epoch: 2,
            secret: ConvergenceSecret::from_bytes([7; 32]),
            descriptor_version: 3,
            servers: vec!["backup.example:7443".into()],
            ledger_key: PublicKey([4; 32]),
        }
    }

    #[test]
    fn opens_with_its_passphrase_and_with_no_other() {
        let file = export().seal("correct horse battery").unwrap();
        assert!(file.starts_with(b"age-encryption.org/v1\n-> scrypt "));
        let back = Export::open("correct horse battery", &file).unwrap();
        assert_eq!(*back.to_text().unwrap(), *export().to_text().unwrap());
        let error = Export::open("correct horse", &file).err().unwrap().to_string();
        assert!(error.contains("passphrase"), "{error}");
    }

    #[test]
    fn damaged_plaintext_is_refused_without_repeating_it() {
        let text = export().to_text().unwrap();
        for (from, to) in [("version = 1", "version = 2"), ("epoch", "epok"), ("0707", "07")] {
            let error = Export::parse(&text.replacen(from, to, 1)).err().unwrap().to_string();
            assert!(!error.contains("0707"), "{error}");
        }
    }
}
