//! Asks a server that shows another TLS key than the pinned one whether its ledger key vouches for
//! that one: over a connection on which nothing else is asked, sent or believed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use strongroom_protocol::id::{PublicKey, TlsKeyDigest};
use strongroom_protocol::limits::CONTROL_MAX_BYTES;
use strongroom_protocol::message::Identity;
use strongroom_protocol::route::Route;
use strongroom_protocol::vouch::ServerTls;
use tokio::time::timeout;

use crate::dial::{Dialled, dial};
use crate::server_keys::pin_of_certificate;

/// The key that a server shows in the place of the pinned one. `open` is a configuration that takes
/// any key. Says in plain words why there is none to follow.
pub async fn find(
    addresses: &str,
    open: &Arc<ClientConfig>,
    pinned: ServerTls,
    ledger_key: &PublicKey,
    patience: Duration,
) -> Result<ServerTls, String> {
    let asking = timeout(patience, ask(addresses, open));
    let (met, said) =
        asking.await.map_err(|_| format!("{addresses} does not answer in time"))??;
    if let Some(next) = pinned.successor(&said, ledger_key, met) {
        return Ok(next);
    }
    if let Some(older) = ServerTls::vouched_by(&said, ledger_key, met) {
        return Err(format!(
            "ALARM: it shows its older TLS key, number {} after number {}: an old copy of that \
             server runs, or somebody has stolen that key",
            older.serial, pinned.serial
        ));
    }
    Err("its TLS key is not the pinned one, and its ledger key does not vouch for it".into())
}

async fn ask(
    addresses: &str,
    open: &Arc<ClientConfig>,
) -> Result<(TlsKeyDigest, Identity), String> {
    let Dialled { stream, address, .. } =
        dial(addresses, open).await.map_err(|error| error.to_string())?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|all| all.first());
    let met = certificate.and_then(|certificate| pin_of_certificate(certificate));
    let met = met.ok_or_else(|| format!("{address}: it shows no key"))?;
    let broke = |error: hyper::Error| format!("{address}: the connection broke: {error}");
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let driver = tokio::spawn(driver);
    let request = Request::builder()
        .method(Route::Identity.method())
        .uri(Route::Identity.path())
        .header(HOST, &address)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(broke)?;
    if answer.status() != StatusCode::OK {
        return Err(format!("{address} answers {}", answer.status()));
    }
    let max_bytes = usize::try_from(CONTROL_MAX_BYTES).unwrap_or(usize::MAX);
    let body = Limited::new(answer.into_body(), max_bytes).collect().await;
    driver.abort();
    let body = body.map_err(|error| format!("{address}: {error}"))?.to_bytes();
    let said = serde_json::from_slice(&body).map_err(|error| format!("{address}: {error}"))?;
    Ok((met, said))
}
