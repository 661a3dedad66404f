//! A profile: one principal of one repository, as files that only their owner can read.
//!
//! ```text
//! HOME/PROFILE/            0700; every file in it 0600, written whole, synced, renamed
//!   lock                   held while profile.toml or descriptor are read and written again
//!   profile.toml           addresses, pins, ids, floors; there once the machine is enrolled
//!   tls.key tls.crt        TLS key of this principal
//!   signing.key            signs records
//!   next-keys              keys that are to take their place (`rolling.rs`)
//!   keys.lock              shared by who uses the keys, held by who changes them
//!   convergence.secret     `backup` profiles only: makes deduplication work, opens nothing
//!   descriptor             newest verified descriptor of the namespace
//!   imported               an export of another machine, until this one is enrolled
//!   pending-namespace      a namespace that is not enrolled yet, with all its secrets
//!   cache.redb             client cache
//!   pending/SOURCE.record  a signed record whose receipt has not come yet
//!   receipts/SOURCE/       what the server has proven to have committed
//!   distrust               a server was caught lying: the next run asks it nothing
//!   standby/               the same for a second server of the namespace (`standby.rs`)
//! ```
//!
//! No file of a `backup` profile opens a backup: identity, authority key and access key are in the
//! recovery kit and nowhere else. The floors (descriptor version, ledger checkpoint) only rise, so
//! that an old state of the server is noticed.

mod keys;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{
    Label, NamespaceId, PrincipalId, PublicKey, TlsKeyDigest, from_hex, to_hex,
};
use strongroom_protocol::limits::DESCRIPTOR_MAX_BYTES;
use strongroom_protocol::role::Role;
use strongroom_protocol::vouch::ServerTls;
use zeroize::Zeroizing;

use crate::durable;
use crate::error::ClientError;
use crate::follow::Follow;
use crate::keys::{ConvergenceSecret, public_key_of};
use crate::rolling::KeySettings;
use crate::tls::{Pin, TlsIdentity};
use crate::transport::{Client, Endpoint, RetryPolicy, Timeouts};

const SETTINGS_MAX_BYTES: u64 = 64 * 1024;
const KEY_FILE_MAX_BYTES: u64 = 64 * 1024;

/// How patiently to talk, and to whom if not to the profile's server.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Bounds of waits.
    pub timeouts: Timeouts,
    /// Bounds of repetition.
    pub retry: RetryPolicy,
    /// Addresses instead of the profile's; the pin stays.
    pub servers: Vec<String>,
    /// Read from a replica: the server need not be one that the descriptor names.
    pub from_replica: bool,
}

/// The contents of `profile.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Version of this file's format.
    pub version: u32,
    /// `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// Pin of the server's TLS key.
    pub tls_key: TlsKeyDigest,
    /// The server's ledger key.
    pub ledger_key: PublicKey,
    /// Who this machine is on the server.
    pub principal: PrincipalId,
    /// What it may do.
    pub role: Role,
    /// Its namespace, where the role has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceId>,
    /// The namespace's name on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_name: Option<Label>,
    /// No older descriptor is followed.
    pub descriptor_version: u64,
    /// Newest signed checkpoint of the ledger that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The keys: how old, how old they may become, which were before.
    #[serde(default)]
    pub keys: KeySettings,
}

impl Settings {
    /// The server's TLS key that is pinned.
    pub fn server_tls(&self) -> ServerTls {
        ServerTls { tls_key: self.tls_key, serial: self.keys.server_serial }
    }

    /// Pins a key, unless it is older than the pinned one.
    fn pin(&mut self, next: ServerTls) {
        if next.serial > self.keys.server_serial {
            (self.tls_key, self.keys.server_serial) = (next.tls_key, next.serial);
        }
    }
}

/// Version of `profile.toml` that this program writes.
pub const SETTINGS_VERSION: u32 = 1;

/// The folder of one profile, whether enrolled or not.
#[derive(Debug, Clone)]
pub struct ProfileFolder(PathBuf);

/// An enrolled profile.
#[derive(Debug)]
pub struct Profile {
    folder: ProfileFolder,
    settings: Settings,
}

/// Where profiles are kept: `option`, else `$XDG_CONFIG_HOME/strongroom`, else
/// `~/.config/strongroom`.
pub fn locate_home(option: Option<PathBuf>) -> Result<PathBuf, ClientError> {
    let from_environment =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default = || {
        from_environment("XDG_CONFIG_HOME")
            .or_else(|| from_environment("HOME").map(|home| home.join(".config")))
            .map(|config| config.join("strongroom"))
    };
    option.or_else(default).ok_or_else(|| {
        ClientError::Usage("no home folder is known: name one with --home FOLDER".into())
    })
}

impl ProfileFolder {
    /// The folder of profile `name` in `home`.
    pub fn new(home: &Path, name: &str) -> Result<Self, ClientError> {
        let label: Label = name
            .parse()
            .map_err(|error| ClientError::Usage(format!("profile {name:?}: {error}")))?;
        Ok(Self(home.join(label.as_str())))
    }

    /// Makes the folder, for its owner only.
    pub fn make(&self) -> Result<(), ClientError> {
        durable::make_folder(&self.0)
    }

    /// Whether a machine is enrolled here.
    pub fn is_enrolled(&self) -> bool {
        self.path("profile.toml").exists()
    }

    /// Waits for this process's turn to read something and write it again.
    fn lock(&self) -> Result<File, ClientError> {
        durable::lock(&self.path("lock"))
    }

    /// The folder of the profile's second server.
    pub fn standby(&self) -> Self {
        Self(self.0.join("standby"))
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The secrets of a namespace that is not enrolled yet, with the name of their file.
    pub fn pending_namespace(&self) -> Result<Option<Zeroizing<String>>, ClientError> {
        let path = self.path("pending-namespace");
        match durable::read_if_there(&path, SETTINGS_MAX_BYTES * 4)? {
            Some(bytes) => secret_text(&path, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps the secrets of a namespace until it is enrolled.
    pub fn write_pending_namespace(&self, text: &str) -> Result<(), ClientError> {
        durable::create(&self.path("pending-namespace"), text.as_bytes())
    }

    /// Forgets them.
    pub fn remove_pending_namespace(&self) -> Result<(), ClientError> {
        durable::remove(&self.path("pending-namespace"))
    }

    /// What `key import` kept for the enrolment.
    pub fn imported(&self) -> Result<Option<Zeroizing<String>>, ClientError> {
        let path = self.path("imported");
        match durable::read_if_there(&path, SETTINGS_MAX_BYTES)? {
            Some(bytes) => secret_text(&path, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps an import until the machine is enrolled.
    pub fn write_imported(&self, text: &str) -> Result<(), ClientError> {
        durable::write(&self.path("imported"), text.as_bytes())
    }

    /// Forgets it.
    pub fn remove_imported(&self) -> Result<(), ClientError> {
        durable::remove(&self.path("imported"))
    }

    /// The TLS key: the one that is there, else a new one.
    pub fn tls_identity(&self) -> Result<TlsIdentity, ClientError> {
        let (key, certificate) = (self.path("tls.key"), self.path("tls.crt"));
        let stored = durable::read_if_there(&certificate, KEY_FILE_MAX_BYTES)?;
        if let Some(stored) = stored {
            let key_text = secret_text(&key, durable::read(&key, KEY_FILE_MAX_BYTES)?)?;
            return TlsIdentity::from_pem(&String::from_utf8_lossy(&stored), &key_text);
        }
        let identity = TlsIdentity::generate()?;
        // The certificate goes last: where it is, the key is whole.
        durable::write(&key, identity.key_pem().as_bytes())?;
        durable::write(&certificate, identity.certificate_pem().as_bytes())?;
        Ok(identity)
    }

    /// The key that signs records: the one that is there, else a new one.
    pub fn signing_key(&self) -> Result<SigningKey, ClientError> {
        let path = self.path("signing.key");
        if let Some(bytes) = durable::read_if_there(&path, KEY_FILE_MAX_BYTES)? {
            return Ok(SigningKey::from_bytes(&*hex_key(&path, bytes)?));
        }
        let key = crate::keys::random_signing_key()
            .map_err(|error| ClientError::Bug(error.to_string()))?;
        let text = Zeroizing::new(format!("{}\n", to_hex(key.as_bytes())));
        durable::write(&path, text.as_bytes())?;
        Ok(key)
    }

    /// Keeps a namespace's convergence secret.
    pub fn write_convergence_secret(&self, secret: &ConvergenceSecret) -> Result<(), ClientError> {
        let text = Zeroizing::new(format!("{}\n", to_hex(secret.as_bytes())));
        durable::write(&self.path("convergence.secret"), text.as_bytes())
    }
}

impl Profile {
    /// Completes an enrolment: from here on the profile is usable.
    pub fn create(folder: ProfileFolder, settings: Settings) -> Result<Self, ClientError> {
        let profile = Self { folder, settings };
        profile.save()?;
        Ok(profile)
    }

    /// Opens an enrolled profile.
    pub fn open(folder: ProfileFolder) -> Result<Self, ClientError> {
        let path = folder.path("profile.toml");
        let Some(bytes) = durable::read_if_there(&path, SETTINGS_MAX_BYTES)? else {
            return Err(ClientError::Usage(format!(
                "no profile at {}: run `strongroom setup --token TOKEN` first, or name another \
                 with --profile",
                folder.0.display()
            )));
        };
        let damaged = |error: &dyn std::fmt::Display| {
            ClientError::Usage(format!("{}: {error}; restore it or enrol again", path.display()))
        };
        let text = String::from_utf8(bytes).map_err(|error| damaged(&error))?;
        let settings: Settings = toml::from_str(&text).map_err(|error| damaged(&error))?;
        if settings.version != SETTINGS_VERSION {
            return Err(damaged(&"of another version of strongroom"));
        }
        Ok(Self { folder, settings })
    }

    /// What `profile.toml` says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The profile's folder.
    pub fn folder(&self) -> &ProfileFolder {
        &self.folder
    }

    /// The namespace; an error for roles without one.
    pub fn namespace(&self) -> Result<NamespaceId, ClientError> {
        self.settings.namespace.ok_or_else(|| {
            ClientError::Usage(format!(
                "a profile of role {} belongs to no namespace: name one with --namespace",
                self.settings.role
            ))
        })
    }

    /// A client of the profile's server. As long as it is there, the keys stay as they are.
    pub fn client(&self, options: &ConnectOptions) -> Result<Client, ClientError> {
        let guard = durable::lock_shared(&self.folder.path("keys.lock"))?;
        Client::guarded(self.endpoint(options), &self.folder.tls_identity()?, Some(guard))
    }

    /// A client that shows this key, for whoever has the keys alone.
    pub fn client_as(
        &self,
        identity: &TlsIdentity,
        options: &ConnectOptions,
    ) -> Result<Client, ClientError> {
        Client::new(self.endpoint(options), identity)
    }

    fn endpoint(&self, options: &ConnectOptions) -> Endpoint {
        let servers = &options.servers;
        let addresses = if servers.is_empty() { &self.settings.addresses } else { servers };
        // Another process, or a client of before, may have met the server's next key.
        let written = Self::open(self.folder.clone()).ok();
        let mut settings = self.settings.clone();
        if let Some(written) = written.filter(|it| it.settings.ledger_key == settings.ledger_key) {
            settings.pin(written.settings.server_tls());
        }
        let (folder, ledger_key, pinned) =
            (self.folder.clone(), settings.ledger_key, settings.server_tls());
        let keep = Arc::new(move |next| folder.follow(ledger_key, next));
        Endpoint {
            addresses: addresses.clone(),
            pin: Pin::Key(pinned.tls_key),
            timeouts: options.timeouts,
            retry: options.retry,
            follow: Some(Follow { ledger_key, pinned, keep }),
        }
    }

    /// The key that signs this principal's records.
    pub fn signing_key(&self) -> Result<SigningKey, ClientError> {
        self.folder.signing_key()
    }

    /// Public half of the signing key.
    pub fn signing_public_key(&self) -> Result<PublicKey, ClientError> {
        Ok(public_key_of(&self.signing_key()?))
    }

    /// The namespace's convergence secret.
    pub fn convergence_secret(&self) -> Result<ConvergenceSecret, ClientError> {
        let path = self.folder.path("convergence.secret");
        let Some(bytes) = durable::read_if_there(&path, KEY_FILE_MAX_BYTES)? else {
            return Err(ClientError::Usage(match self.settings.role {
                Role::Backup => "this machine has lost the namespace's convergence secret: run \
                     `strongroom key renew --kit FILE`, or `strongroom key import FILE` with an \
                     export of a machine that has it"
                    .into(),
                role => format!(
                    "a profile of role {role} cannot make backups: use one of role backup \
                     (--profile)"
                ),
            }));
        };
        Ok(ConvergenceSecret::from_bytes(*hex_key(&path, bytes)?))
    }

    /// The newest descriptor that was accepted; nothing where it is lost or damaged. The floor
    /// stands in `profile.toml` and stays.
    pub fn kept_descriptor(&self) -> Result<Option<VerifiedDescriptor>, ClientError> {
        let path = self.folder.path("descriptor");
        let Some(bytes) = durable::read_if_there(&path, u64::from(DESCRIPTOR_MAX_BYTES))? else {
            return Ok(None);
        };
        Ok(VerifiedDescriptor::decode_for(&bytes, &self.namespace()?, 0).ok())
    }

    /// Checks a descriptor that the server offers, and keeps it where it is newer than the one
    /// that is known.
    pub fn accept_descriptor(&mut self, bytes: &[u8]) -> Result<VerifiedDescriptor, ClientError> {
        let (namespace, floor) = (self.namespace()?, self.settings.descriptor_version);
        let descriptor = VerifiedDescriptor::decode_for(bytes, &namespace, floor)?;
        let path = self.folder.path("descriptor");
        let _turn = self.folder.lock()?;
        let known = durable::read_if_there(&path, u64::from(DESCRIPTOR_MAX_BYTES))?;
        if known.as_deref() == Some(bytes) {
            return Ok(descriptor);
        }
        let version = descriptor.contents().version;
        if let Some(known) = known
            && let Ok(known) = VerifiedDescriptor::decode_for(&known, &namespace, floor)
        {
            let kept = known.contents().version;
            if kept == version {
                return Err(ClientError::Untrusted(format!(
                    "there are two descriptors of version {version}: the authority key signed \
                     twice or was stolen; ask whoever keeps the recovery kit"
                )));
            }
            if kept > version {
                // Another process of this profile was told of a newer one since.
                return Ok(descriptor);
            }
        }
        // The file first: a floor above the file is safe, one that was never raised is not.
        durable::write(&path, bytes)?;
        if version > floor {
            self.settings.descriptor_version = version;
            self.save_locked()?;
        }
        Ok(descriptor)
    }

    /// The newest checkpoint of the server's ledger that was seen; nothing before the first. One
    /// that does not verify is an error: a floor must not vanish in silence.
    pub fn remembered(&self) -> Result<Option<Checkpoint>, ClientError> {
        let Some(note) = &self.settings.checkpoint else { return Ok(None) };
        let checkpoint = Checkpoint::verify(note, &[self.settings.ledger_key]);
        checkpoint.map(Some).map_err(|error| {
            ClientError::Usage(format!(
                "profile.toml: {error}: the remembered checkpoint was changed; restore the file, \
                 or enrol again"
            ))
        })
    }

    /// Remembers a checkpoint that was proven to continue the remembered one (`history.rs`). A
    /// smaller one changes nothing.
    pub fn remember(&mut self, note: &str) -> Result<(), ClientError> {
        let new = Checkpoint::verify(note, &[self.settings.ledger_key]).map_err(|error| {
            ClientError::Untrusted(format!("{error}: tell whoever runs the server"))
        })?;
        if self.remembered()?.is_some_and(|known| new.size <= known.size) {
            return Ok(());
        }
        self.settings.checkpoint = Some(note.to_owned());
        self.save()
    }

    /// Writes `profile.toml`. Floors that another process of this profile has raised stay.
    fn save(&self) -> Result<(), ClientError> {
        let _turn = self.folder.lock()?;
        self.save_locked()
    }

    fn save_locked(&self) -> Result<(), ClientError> {
        self.save_changed(|_| {})
    }

    /// The same, with a change of what else stays as it was written last.
    fn save_changed(&self, change: impl FnOnce(&mut Settings)) -> Result<(), ClientError> {
        let mut settings = self.settings.clone();
        if let Ok(written) = Self::open(self.folder.clone()) {
            let written = written.settings;
            settings.descriptor_version =
                settings.descriptor_version.max(written.descriptor_version);
            if settings.ledger_key == written.ledger_key {
                settings.pin(written.server_tls());
                settings.keys.merge(written.keys.clone());
            }
            let keys = [settings.ledger_key];
            let size_of = |note: &Option<String>| {
                let note = note.as_deref()?;
                Checkpoint::verify(note, &keys).ok().map(|checkpoint| checkpoint.size)
            };
            if size_of(&written.checkpoint) > size_of(&settings.checkpoint) {
                settings.checkpoint = written.checkpoint;
            }
        }
        change(&mut settings);
        let text = toml::to_string(&settings)
            .map_err(|error| ClientError::Bug(format!("profile.toml: {error}")))?;
        durable::write(&self.folder.path("profile.toml"), text.as_bytes())
    }
}

/// Splits `HOST:PORT[,HOST:PORT...]`.
pub fn parse_addresses(text: &str) -> Result<Vec<String>, ClientError> {
    let addresses: Vec<String> =
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let is_address = |address: &String| {
        address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    if addresses.is_empty() || !addresses.iter().all(is_address) {
        return Err(ClientError::Usage(format!("{text:?} is not HOST:PORT[,HOST:PORT...]")));
    }
    Ok(addresses)
}

fn secret_text(path: &Path, bytes: Vec<u8>) -> Result<Zeroizing<String>, ClientError> {
    String::from_utf8(bytes).map(Zeroizing::new).map_err(|_| damaged_key(path))
}

fn hex_key(path: &Path, bytes: Vec<u8>) -> Result<Zeroizing<[u8; 32]>, ClientError> {
    let text = secret_text(path, bytes)?;
    from_hex(text.trim_end()).map(Zeroizing::new).ok_or_else(|| damaged_key(path))
}

fn damaged_key(path: &Path) -> ClientError {
    ClientError::Usage(format!("{} is damaged: restore it or enrol again", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn settings() -> Settings {
        Settings {
            version: SETTINGS_VERSION,
            addresses: vec!["backup.example:7443".into()],
            tls_key: TlsKeyDigest([1; 32]),
            ledger_key: PublicKey([2; 32]),
            principal: PrincipalId([3; 16]),
            role: Role::Backup,
            namespace: Some(NamespaceId([4; 32])),
            namespace_name: Some("erp".parse().unwrap()),
            descriptor_version: 1,
            checkpoint: None,
            keys: KeySettings::default(),
        }
    }

    #[test]
    fn a_profile_is_private_and_reads_back() {
        let home = tempfile::tempdir().unwrap();
        let folder = ProfileFolder::new(&home.path().join("deep"), "erp").unwrap();
        folder.make().unwrap();
        assert!(!folder.is_enrolled());
        assert!(Profile::open(folder.clone()).is_err());
        let identity = folder.tls_identity().unwrap();
        let key = folder.signing_key().unwrap();
        folder.write_convergence_secret(&ConvergenceSecret::from_bytes([9; 32])).unwrap();
        Profile::create(folder.clone(), settings()).unwrap();

        let profile = Profile::open(folder.clone()).unwrap();
        assert_eq!(profile.settings(), &settings());
        assert_eq!(profile.signing_key().unwrap().to_bytes(), key.to_bytes());
        assert_eq!(profile.convergence_secret().unwrap().as_bytes(), &[9; 32]);
        let again = folder.tls_identity().unwrap().key_digest().unwrap();
        assert_eq!(again, identity.key_digest().unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.0), 0o700);
        for entry in std::fs::read_dir(&folder.0).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }

    #[test]
    fn runs_of_one_profile_at_once_only_raise_its_floors() {
        let home = tempfile::tempdir().unwrap();
        let folder = ProfileFolder::new(home.path(), "erp").unwrap();
        folder.make().unwrap();
        Profile::create(folder.clone(), settings()).unwrap();
        std::thread::scope(|scope| {
            for version in 2..18 {
                let mut profile = Profile::open(folder.clone()).unwrap();
                scope.spawn(move || {
                    profile.settings.descriptor_version = version;
                    profile.save().unwrap();
                });
            }
        });
        assert_eq!(Profile::open(folder).unwrap().settings().descriptor_version, 17);
    }

    #[test]
    fn names_and_addresses_are_checked() {
        let home = Path::new("/h");
        assert!(ProfileFolder::new(home, "../etc").is_err());
        assert!(ProfileFolder::new(home, "erp-1").is_ok());
        assert_eq!(parse_addresses("a:1, b:2").unwrap(), ["a:1", "b:2"]);
        for bad in ["", "a", "a:", ":1", "a:0", "a:x", "a:1,b"] {
            assert!(parse_addresses(bad).is_err(), "{bad}");
        }
        let home = locate_home(Some("/x".into())).unwrap();
        assert_eq!(home, Path::new("/x"));
    }
}
