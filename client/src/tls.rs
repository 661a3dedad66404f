//! TLS of the client: its own key, and the pin that stands in for certificate authorities.
//!
//! TLS 1.3 only, both sides authenticated by pinned keys. The verifier checks two things and
//! nothing else: that the server's SubjectPublicKeyInfo has the pinned BLAKE3 digest, and that the
//! handshake is signed by that key. Names, dates and issuers of certificates mean nothing here.
//! Sessions are never resumed, so that no connection skips the check.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};
use strongroom_protocol::id::TlsKeyDigest;
use strongroom_protocol::roll::POINT_BYTES;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::clock;
use crate::error::ClientError;

/// Which server key a connection accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// This one.
    Key(TlsKeyDigest),
    /// Any, because what the server then says is checked against a descriptor (kit mode).
    Unknown,
}

/// The client's own TLS key with its self-signed certificate. The key is wiped when this is
/// dropped; the TLS library has it in a form of its own, as long as a connection may be made.
pub struct TlsIdentity {
    certificate_pem: String,
    key_pem: Zeroizing<String>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Drop for TlsIdentity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl ZeroizeOnDrop for TlsIdentity {}

impl TlsIdentity {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, ClientError> {
        let key = rcgen::KeyPair::generate().map_err(bug)?;
        Self::self_signed(&key)
    }

    /// The identity of an Ed25519 key, such as a recovery kit's access key.
    pub fn of_ed25519_seed(seed: &[u8; 32]) -> Result<Self, ClientError> {
        // RFC 8410 section 7: OneAsymmetricKey, version 1, id-Ed25519, CurvePrivateKey.
        const PREFIX: [u8; 16] = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let mut der = Zeroizing::new(PREFIX.to_vec());
        der.extend_from_slice(seed);
        let der = PrivatePkcs8KeyDer::from(der.as_slice());
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519);
        Self::self_signed(&key.map_err(bug)?)
    }

    /// Reads what [`TlsIdentity::certificate_pem`] and [`TlsIdentity::key_pem`] gave.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, ClientError> {
        let unreadable = |what: &str| {
            ClientError::Usage(format!(
                "{what} of the profile is damaged: enrol this machine again with a new token"
            ))
        };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| unreadable("tls.crt"))?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| unreadable("tls.key"))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: Zeroizing::new(key_pem.to_owned()),
            certificate,
            key,
        })
    }

    /// The certificate as text.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key as text.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What a server pins.
    pub fn key_digest(&self) -> Result<TlsKeyDigest, ClientError> {
        key_digest_of(&self.certificate)
            .ok_or_else(|| ClientError::Bug("own certificate does not parse".into()))
    }

    /// The public key, an uncompressed point of P-256.
    pub fn point(&self) -> Result<[u8; POINT_BYTES], ClientError> {
        let point = x509_parser::parse_x509_certificate(&self.certificate).ok().and_then(|found| {
            let (_, parsed) = found;
            <[u8; POINT_BYTES]>::try_from(
                &*parsed.tbs_certificate.subject_pki.subject_public_key.data,
            )
            .ok()
        });
        point.ok_or_else(|| bug("own key is not of P-256"))
    }

    /// Signs with the private key: ECDSA with SHA-256, DER.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ClientError> {
        let key = aws_lc_rs::sign::any_supported_type(&self.key).map_err(bug)?;
        let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signer = signer.ok_or_else(|| bug("own key does not sign with ECDSA"))?;
        signer.sign(message).map_err(bug)
    }

    fn self_signed(key: &rcgen::KeyPair) -> Result<Self, ClientError> {
        let parameters = rcgen::CertificateParams::new(vec!["strongroom".into()]).map_err(bug)?;
        let certificate = parameters.self_signed(key).map_err(bug)?;
        Self::from_pem(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// The configuration of connections to a server with this pin.
pub fn client_config(identity: &TlsIdentity, pin: Pin) -> Result<ClientConfig, ClientError> {
    client_config_of(identity, Arc::new(Mutex::new(pin)))
}

/// The same, with a pin that may become another: handshakes from then on go by that one.
pub fn client_config_of(
    identity: &TlsIdentity,
    pin: Arc<Mutex<Pin>>,
) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(PinVerifier { pin, provider: provider.clone() });
    // Not by a copy of the key, which nobody would wipe.
    let key = aws_lc_rs::sign::any_supported_type(&identity.key).map_err(bug)?;
    let shown = CertifiedKey::new(vec![identity.certificate.clone()], key);
    shown.keys_match().map_err(bug)?;
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(WallTime))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bug)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The wall clock as rustls asks for it. Nothing here depends on it, as pins are all that counts;
/// but rustls' own reader panics where the clock stands before 1970.
#[derive(Debug)]
struct WallTime;

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = u64::try_from(clock::wall_ms()).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(Duration::from_millis(since)))
    }
}

/// BLAKE3 of the SubjectPublicKeyInfo in a certificate.
pub fn key_digest_of(certificate: &CertificateDer<'_>) -> Option<TlsKeyDigest> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let key_info = parsed.tbs_certificate.subject_pki.raw;
    Some(TlsKeyDigest(*blake3::hash(key_info).as_bytes()))
}

fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
    ];
    provider
}

#[derive(Debug)]
struct PinVerifier {
    pin: Arc<Mutex<Pin>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let found = key_digest_of(end_entity)
            .ok_or(TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        match *self.pin.lock() {
            Pin::Key(wanted) if wanted != found => {
                Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            Pin::Key(_) | Pin::Unknown => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn bug(error: impl fmt::Display) -> ClientError {
    ClientError::Bug(format!("TLS: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_their_text_and_can_be_configured() {
        for identity in
            [TlsIdentity::generate().unwrap(), TlsIdentity::of_ed25519_seed(&[7; 32]).unwrap()]
        {
            let back =
                TlsIdentity::from_pem(identity.certificate_pem(), identity.key_pem()).unwrap();
            assert_eq!(back.key_digest().unwrap(), identity.key_digest().unwrap());
            assert!(client_config(&back, Pin::Unknown).is_ok());
        }
    }

    #[test]
    fn an_own_key_is_named_by_its_point_and_signs() {
        let identity = TlsIdentity::generate().unwrap();
        let point = identity.point().unwrap();
        let named = strongroom_protocol::roll::pin_of_point(&point);
        assert_eq!(named, identity.key_digest().unwrap());
        let signature = identity.sign(b"message").unwrap();
        let key = aws_lc_rs_key(&point);
        assert!(key.verify(b"message", &signature).is_ok());
        assert!(key.verify(b"massage", &signature).is_err());
        assert!(TlsIdentity::of_ed25519_seed(&[7; 32]).unwrap().point().is_err());
    }

    fn aws_lc_rs_key(point: &[u8]) -> ::aws_lc_rs::signature::UnparsedPublicKey<&[u8]> {
        let algorithm = &::aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1;
        ::aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, point)
    }

    #[test]
    fn an_access_key_has_the_digest_of_its_public_half() {
        let seed = [7; 32];
        let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        // RFC 8410 section 4: SubjectPublicKeyInfo of id-Ed25519.
        let mut key_info =
            vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];
        key_info.extend_from_slice(&public);
        let identity = TlsIdentity::of_ed25519_seed(&seed).unwrap();
        assert_eq!(identity.key_digest().unwrap().0, *blake3::hash(&key_info).as_bytes());
    }
}
