//! What this server shows another one: a TLS key and a signing key of their own for each, so that
//! they cannot tell each other who follows them, and one is revoked without the others.
//!
//! Files below `keys/primaries/NAME/` and `keys/feeds/NAME/`, mode 0600, written before they are
//! enrolled. *Crash before the enrolment: the next `replica add` or `feed add` of that name uses
//! them. Crash after it: the same token is answered again, because the keys are the same.*

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use strongroom_protocol::id::{Label, PublicKey, TlsKeyDigest};

use crate::durable;
use crate::error::ServerError;
use crate::server_keys::{pin_of_certificate, random_bytes};

/// For whom keys are.
#[derive(Debug, Clone, Copy)]
pub enum Whom<'a> {
    /// A primary that this server follows.
    Primary(&'a Label),
    /// A server that this one lends its connections to.
    Feed(&'a Label),
}

/// The keys for one other server.
pub struct PeerKeys {
    /// Private key of the certificate.
    pub tls_key: PrivateKeyDer<'static>,
    /// Self-signed.
    pub certificate: CertificateDer<'static>,
    /// What the other pins.
    pub tls_key_digest: TlsKeyDigest,
    /// Public half of the signing key.
    pub signing_key: PublicKey,
}

impl PeerKeys {
    /// Loads the keys, or makes them.
    pub fn load_or_create(folder: &Path, whom: Whom<'_>) -> Result<Self, ServerError> {
        let own = folder_of(folder, whom);
        if !own.join("signing.key").exists() {
            Self::create(&own)?;
        }
        Self::load(folder, whom)
    }

    /// The same keys once more.
    pub fn copy(&self) -> Self {
        Self {
            tls_key: self.tls_key.clone_key(),
            certificate: self.certificate.clone(),
            tls_key_digest: self.tls_key_digest,
            signing_key: self.signing_key,
        }
    }

    /// Removes the keys.
    pub fn remove(folder: &Path, whom: Whom<'_>) -> Result<(), ServerError> {
        let folder = folder_of(folder, whom);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ServerError::file(format!("remove {}", folder.display()), error))
            }
            _ => Ok(()),
        }
    }

    fn create(folder: &Path) -> Result<(), ServerError> {
        let bad = |error: rcgen::Error| ServerError::Bug(format!("make certificate: {error}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?;
        let params = CertificateParams::new(vec!["strongroom".into()]).map_err(bad)?;
        let certificate = params.self_signed(&key).map_err(bad)?;
        durable::make_folder(folder)?;
        durable::write(&folder.join("tls.key"), key.serialize_pem().as_bytes())?;
        durable::write(&folder.join("tls.crt"), certificate.pem().as_bytes())?;
        // Last, because its presence says that all are there.
        durable::write(&folder.join("signing.key"), &random_bytes::<32>()?)
    }

    /// Loads keys that were made.
    pub fn load(folder: &Path, whom: Whom<'_>) -> Result<Self, ServerError> {
        let folder = folder_of(folder, whom);
        let bad = || {
            let message = "keys are not readable; remove what they are for, and add it again";
            ServerError::Operator(format!("{}: {message}", folder.display()))
        };
        let key = durable::read(&folder.join("tls.key"))?;
        let tls_key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| bad())?;
        let certificate = durable::read(&folder.join("tls.crt"))?;
        let certificate =
            CertificateDer::from_pem_slice(&certificate).map_err(|_| bad())?.into_owned();
        let seed = durable::read(&folder.join("signing.key"))?;
        let seed: [u8; 32] = seed.try_into().map_err(|_| bad())?;
        let signing_key = PublicKey(SigningKey::from_bytes(&seed).verifying_key().to_bytes());
        let tls_key_digest = pin_of_certificate(&certificate).ok_or_else(bad)?;
        Ok(Self { tls_key, certificate, tls_key_digest, signing_key })
    }
}

fn folder_of(folder: &Path, whom: Whom<'_>) -> PathBuf {
    match whom {
        Whom::Primary(name) => folder.join("keys/primaries").join(name.as_str()),
        Whom::Feed(name) => folder.join("keys/feeds").join(name.as_str()),
    }
}
