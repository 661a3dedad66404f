//! TLS: version 1.3 only, both sides authenticated by pinned keys.
//!
//! There is no CA. The server shows its self-signed certificate, which clients pin. It demands a
//! certificate of the client, checks that the client holds its private key (the handshake's
//! signature), and nothing else: whose key it is, `auth.rs` looks up for each request. Where this
//! server is itself a client, of a primary that it follows, it pins that one's key.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use strongroom_protocol::id::TlsKeyDigest;

use crate::error::ServerError;
use crate::server_keys::{ServerKeys, pin_of_certificate};

/// The listener's configuration. New connections are shown the key that the server has then.
pub fn server_config(keys: &ServerKeys) -> Result<Arc<ServerConfig>, ServerError> {
    let bad = |error: Error| ServerError::Operator(format!("TLS key or certificate: {error}"));
    // The default provider of aws-lc-rs offers X25519MLKEM768 first.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyKeyVerifier { provider: provider.clone() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(keys.shown());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // No resumption: each connection proves its key anew, and no ticket key can be stolen.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Keys of clients: P-256, and Ed25519 for a kit's access key. Others are not checked at all: the
/// largest RSA keys take long to check, and no client makes any.
const CLIENT_SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

/// Accepts every key that the client can prove to hold.
#[derive(Debug)]
struct AnyKeyVerifier {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let is_bare = intermediates.is_empty() && pin_of_certificate(end_entity).is_some();
        match is_bare {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !CLIENT_SCHEMES.contains(&dss.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        CLIENT_SCHEMES.to_vec()
    }
}

/// Whether the P-256 key with this uncompressed point made an ECDSA signature (DER, SHA-256).
pub fn verify_p256(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let is_p256 = |scheme: &SignatureScheme| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256;
    let fitting = algorithms.mapping.iter().filter(|(scheme, _)| is_p256(scheme));
    // The scheme's own curve stands first.
    fitting
        .filter_map(|(_, algorithms)| algorithms.first())
        .any(|algorithm| algorithm.verify_signature(point, message, signature).is_ok())
}

/// The configuration of connections from here to the server whose TLS key has this pin.
pub fn client_config(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pin: TlsKeyDigest,
) -> Result<Arc<ClientConfig>, ServerError> {
    configured(certificate, key, Some(pin))
}

/// The same to whoever answers: to ask who it is, and nothing else.
pub fn open_config(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, ServerError> {
    configured(certificate, key, None)
}

fn configured(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pin: Option<TlsKeyDigest>,
) -> Result<Arc<ClientConfig>, ServerError> {
    let bad = |error: Error| ServerError::Operator(format!("TLS key or certificate: {error}"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(PinVerifier { pin, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(bad)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // No resumption: no connection skips the check of the pin.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts one key, which the handshake must prove; names, dates and issuers mean nothing.
#[derive(Debug)]
struct PinVerifier {
    pin: Option<TlsKeyDigest>,
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
    ) -> Result<ServerCertVerified, Error> {
        let found = pin_of_certificate(end_entity);
        if found.is_some() && (self.pin.is_none() || self.pin == found) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
