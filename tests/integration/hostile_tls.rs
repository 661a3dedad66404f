//! Handshakes that are old, wrong, half, or never end.

use std::sync::Arc;
use std::time::Duration;

use strongroom_client::tls::{Pin, TlsIdentity, client_config};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::route::Route;
use strongroom_server::config::Period;
use strongroom_server::refusals::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, SignatureScheme};

use crate::harness::{Actor, TestServer};
use crate::raw::{Raw, config_of, is_refused, is_well, refused, request_of, stranger};

/// A first message of TLS 1.2: P-256, ECDSA, AES-GCM, and no word of a newer version.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x17][..], // groups: secp256r1
        &[0x00, 0x0b, 0, 2, 1, 0],                 // point formats
        &[0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03],     // signatures: ecdsa_secp256r1_sha256
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, one suite, no compression
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![0x16, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_refused() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&hello_of_tls_1_2()).await.unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).await.unwrap();
    // A fatal alert: protocol_version.
    assert_eq!((said[0], &said[said.len() - 2..]), (0x15, &[2, 70][..]), "{said:?}");
    drop(socket);
    is_well(&server, &honest).await;
    assert_eq!(refused(&server, Reason::Handshake), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_alpn_is_refused_and_none_means_http_1_1() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let with = |protocols: &[&[u8]]| {
        let mut config = (*config_of(&honest)).clone();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    for wrong in [&b"h2"[..], b"http/1.0", b"strongroom"] {
        let outcome = Raw::open(server.address, &with(&[wrong])).await;
        let error = outcome.err().expect("refused").to_string();
        assert!(error.contains("NoApplicationProtocol"), "{error}");
    }
    is_refused(&server, Reason::Handshake, 3).await;
    for right in [&[&b"h2"[..], b"http/1.1"][..], &[]] {
        let mut raw = Raw::open(server.address, &with(right)).await.unwrap();
        let answer = raw.ask(&request_of(&Route::Identity, b"")).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    is_well(&server, &honest).await;
}

/// Shows the server whatever it is told to, and signs with the key if the server lets it.
#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

fn showing(chain: Vec<Vec<u8>>, key: &rcgen::KeyPair) -> Arc<ClientConfig> {
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::sign::any_supported_type(&der).unwrap();
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let mut config = (*stranger()).clone();
    config.client_auth_cert_resolver =
        Arc::new(Shows(Some(Arc::new(CertifiedKey::new(chain, key)))));
    Arc::new(config)
}

fn self_signed(
    key: &rcgen::KeyPair,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> Vec<u8> {
    let mut parameters = rcgen::CertificateParams::new(vec!["strongroom".into()]).unwrap();
    change(&mut parameters);
    parameters.self_signed(key).unwrap().der().to_vec()
}

/// Whether the server answers on a connection with this configuration.
async fn is_answered(server: &TestServer, config: &Arc<ClientConfig>) -> bool {
    match Raw::open(server.address, config).await {
        Ok(mut raw) => raw.ask(&request_of(&Route::Identity, b"")).await.is_some(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_certificates_are_refused_and_only_the_key_of_others_counts() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let good = self_signed(&key, |_| {});
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut bent = good.clone();
    bent[8] ^= 0x40;
    let cases: Vec<(&str, Arc<ClientConfig>)> = vec![
        ("no bytes", showing(vec![vec![]], &key)),
        ("no DER", showing(vec![b"garbage".to_vec()], &key)),
        ("a length without end", showing(vec![vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff]], &key)),
        ("nested without end", showing(vec![[0x30, 0x80].repeat(20_000)], &key)),
        ("a bent length", showing(vec![bent], &key)),
        ("half of one", showing(vec![good[..good.len() / 2].to_vec()], &key)),
        ("one and more", showing(vec![[&good[..], b"more"].concat()], &key)),
        ("a chain", showing(vec![good.clone(), good.clone()], &key)),
        ("somebody else's", showing(vec![good.clone()], &other)),
        ("RSA", showing(vec![self_signed(&rsa, |_| {})], &rsa)),
        ("P-384", showing(vec![self_signed(&p384, |_| {})], &p384)),
    ];
    let refusals = u64::try_from(cases.len()).unwrap() + 1;
    for (what, config) in cases {
        assert!(!is_answered(&server, &config).await, "{what}");
    }
    let mut none = (*stranger()).clone();
    none.client_auth_cert_resolver = Arc::new(Shows(None));
    assert!(!is_answered(&server, &Arc::new(none)).await, "no certificate");
    is_refused(&server, Reason::Handshake, refusals).await;
    // Dates, names and issuers are not looked at.
    let expired = self_signed(&key, |parameters| {
        parameters.not_after = rcgen::date_time_ymd(1999, 1, 1);
        parameters.not_before = rcgen::date_time_ymd(1998, 1, 1);
    });
    assert!(is_answered(&server, &showing(vec![expired], &key)).await);
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(is_answered(&server, &showing(vec![self_signed(&ed25519, |_| {})], &ed25519)).await);
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_end_in_time() {
    let server = TestServer::start_with(|config| {
        config.limits.handshake = Period(Duration::from_secs(1));
    })
    .await;
    let honest = server.writer("erp").await;
    let hello = hello_of_tls_1_2();
    let starts: [&[u8]; 4] = [b"", &hello[..1], &hello[..5], &hello[..hello.len() - 1]];
    let mut sockets = Vec::new();
    for start in starts {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(start).await.unwrap();
        sockets.push(socket);
    }
    // One that never stops saying a little.
    let mut dribbling = TcpStream::connect(server.address).await.unwrap();
    let mut record = vec![0x16, 3, 1, 0x3f, 0xff];
    record.extend([1, 0, 0x3f, 0xfb]);
    let dribble = tokio::spawn(async move {
        for byte in record.iter().copied().chain(std::iter::repeat(0)) {
            if dribbling.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    for mut socket in sockets {
        let mut said = Vec::new();
        // Closed, whether in order or not.
        let _ = socket.read_to_end(&mut said).await;
    }
    dribble.await.unwrap();
    is_well(&server, &honest).await;
    assert_eq!(refused(&server, Reason::HandshakeTime), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_key_updates_ends_or_changes_nothing() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let mut raw = Raw::of(&server, &honest).await;
    let mut is_cut = false;
    for _ in 0..2000 {
        if raw.stream.get_mut().1.refresh_traffic_keys().is_err() {
            is_cut = true;
            break;
        }
        if raw.stream.flush().await.is_err() {
            is_cut = true;
            break;
        }
    }
    if !is_cut && raw.ask(&request_of(&Route::Identity, b"")).await.is_none() {
        assert_eq!(raw.until_closed().await, b"");
    }
    raw.cut();
    is_well(&server, &honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_certificate_is_somebody_else() {
    let server = TestServer::start().await;
    let honest = server.writer("erp").await;
    let route = Route::Descriptor(honest.namespace());
    let mut first = Raw::of(&server, &honest).await;
    assert_eq!(first.ask(&request_of(&route, b"")).await.unwrap().status, 200);
    let pin = Pin::Key(honest.profile.settings().tls_key);
    let another = client_config(&TlsIdentity::generate().unwrap(), pin).unwrap();
    let mut second = Raw::open(server.address, &Arc::new(another)).await.unwrap();
    let answer = second.ask(&request_of(&route, b"")).await.unwrap();
    assert_eq!(answer.status, ErrorCode::UnknownPrincipal.status());
    // A stranger that asks for more than it may is not kept.
    assert_eq!(second.until_closed().await, b"");
    assert_eq!(first.ask(&request_of(&route, b"")).await.unwrap().status, 200);
    // The same key in another certificate is the same client.
    let renewed = renewed_certificate(&honest);
    let mut third = Raw::open(server.address, &renewed).await.unwrap();
    assert_eq!(third.ask(&request_of(&route, b"")).await.unwrap().status, 200);
    drop((first, second, third));
    is_well(&server, &honest).await;
}

/// A new certificate for the key that is enrolled.
fn renewed_certificate(actor: &Actor) -> Arc<ClientConfig> {
    let identity = actor.profile.folder().tls_identity().unwrap();
    let key = rcgen::KeyPair::from_pem(identity.key_pem()).unwrap();
    let certificate = self_signed(&key, |parameters| {
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "renewed");
    });
    showing(vec![certificate], &key)
}
