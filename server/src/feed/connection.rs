//! One connection that is lent: dialled, turned round, and answered on until it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use strongroom_protocol::error::ErrorBody;
use strongroom_protocol::lend::{LEND_PROOF_HEADER, LEND_PROTOCOL};
use strongroom_protocol::limits::CONTROL_MAX_BYTES;
use strongroom_protocol::route::Route;
use strongroom_protocol::vouch::ServerTls;
use tokio::time::timeout;

use crate::answering::{Manner, answer_on};
use crate::dial::{DialError, Dialled, dial};
use crate::feeds::{FeedProgress, FeedRow};
use crate::handler::Peer;
use crate::replica::keys::{PeerKeys, Whom};
use crate::replica::rolling::{self, Party};
use crate::repository::Repository;
use crate::server_keys::random_bytes;
use crate::stop::Stop;
use crate::successor::find;
use crate::tls::{client_config, open_config};

/// A lent connection on which nothing is asked for so long is ended and dialled again, so that no
/// firewall on the way forgets it unseen; up to as much again at random.
const IDLE: Duration = Duration::from_secs(40);

/// How a connection that was lent ended.
pub enum Ended {
    /// It was closed, from there or because nothing was asked.
    Used,
    /// This server stops.
    Stopping,
}

/// Lends one connection until it ends, `until` does, or this server stops. Says in plain words why
/// none could be lent.
pub async fn keep_lent(
    repository: &Arc<Repository>,
    row: &FeedRow,
    until: impl Future<Output = ()>,
    stop: Stop,
) -> Result<Ended, String> {
    let mut ending = stop.clone();
    let lending = async {
        let (stream, exporter) = tokio::select! {
            turned = turned_round(repository, row, stop.clone()) => turned?,
            () = ending.wait() => return Ok(()),
        };
        let peer = Peer { tls_key: row.tls_key, exporter };
        let lent = Lent::begin(repository, row);
        let [random] = random_bytes::<1>().unwrap_or([0]);
        let idle = IDLE.mul_f64(1.0 + f64::from(random) / 255.0);
        // It may end in the middle of an answer; whoever asked sees that, and asks again.
        let manner = Manner::of_principals(idle);
        answer_on(repository, stream, &peer, manner, stop.clone()).await;
        drop(lent);
        Ok::<(), String>(())
    };
    tokio::select! {
        outcome = lending => outcome?,
        () = until => {}
    }
    Ok(if stop.is_given() { Ended::Stopping } else { Ended::Used })
}

/// A connection to a server, from the moment on in which that server asks over it.
async fn turned_round(
    repository: &Arc<Repository>,
    row: &FeedRow,
    stop: Stop,
) -> Result<(Upgraded, [u8; 32]), String> {
    let party = Party::of_feed(repository, row);
    let settled = rolling::settle(repository, &party, &stop).await;
    settled.map_err(|error| error.to_string())?;
    // They stay until the connection is turned round.
    let gate = rolling::gate(repository, party.whom());
    let _shown = gate.pass_settled().await?;
    // They were made when the replica was enrolled at; a feed that is removed has none.
    let keys = PeerKeys::load(repository.folder(), Whom::Feed(&row.name));
    let keys = keys.map_err(|error| error.to_string())?;
    let tls = client_config(keys.certificate.clone(), keys.tls_key.clone_key(), row.tls_key);
    let tls = tls.map_err(|error| error.to_string())?;
    let Dialled { stream, address, exporter } = match dial(&row.addresses, &tls).await {
        Err(DialError::WrongKey(_)) => return Err(follow(repository, row, keys).await),
        dialled => dialled.map_err(|error| error.to_string())?,
    };
    let broke = |error: hyper::Error| format!("{address}: the connection broke: {error}");
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let driver = tokio::spawn(driver.with_upgrades());
    let request = Request::builder()
        .method(Route::Lend.method())
        .uri(Route::Lend.path())
        .header(HOST, &address)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, LEND_PROTOCOL)
        .header(LEND_PROOF_HEADER, repository.keys().prove_lending(&exporter))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let turning = async {
        let answer = sender.send_request(request).await.map_err(broke)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return hyper::upgrade::on(answer).await.map_err(broke);
        }
        let status = answer.status();
        let body = http_body_util::Limited::new(
            answer.into_body(),
            usize::try_from(CONTROL_MAX_BYTES).unwrap_or(usize::MAX),
        );
        let body = http_body_util::BodyExt::collect(body).await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => Err(format!("it refuses: {}: {}", error.code.name(), error.message)),
            Err(_) => Err(format!("{address} answers {status}")),
        }
    };
    let patience = repository.config().replica.patience.0;
    let turned = timeout(patience, turning).await;
    if !matches!(turned, Ok(Ok(_))) {
        driver.abort();
    }
    let stream = turned.map_err(|_| format!("{address} does not answer in time"))??;
    Ok((stream, exporter))
}

/// Pins the next TLS key of a server, if its ledger key vouches for it; connections are lent by
/// that one from the next try on. Gives what is said of this try.
async fn follow(repository: &Arc<Repository>, row: &FeedRow, keys: PeerKeys) -> String {
    let outcome = async {
        let open = open_config(keys.certificate, keys.tls_key);
        let open = open.map_err(|error| error.to_string())?;
        let pinned = ServerTls { tls_key: row.tls_key, serial: row.tls_serial };
        let patience = repository.config().replica.patience.0;
        let next = find(&row.addresses, &open, pinned, &row.ledger_key, patience).await?;
        let (repository, row) = (repository.clone(), row.clone());
        let following = move || repository.follow_feed_key(&row.name, &row, next);
        let followed = tokio::task::spawn_blocking(following).await;
        followed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    };
    match outcome.await {
        Ok(()) => "it has another TLS key, which is pinned from now on".into(),
        Err(trouble) => trouble,
    }
}

/// A connection that is counted as lent; dropping it ends that.
struct Lent<'a> {
    repository: &'a Repository,
    row: &'a FeedRow,
}

impl<'a> Lent<'a> {
    fn begin(repository: &'a Repository, row: &'a FeedRow) -> Self {
        let now_ms = repository.clock().wall_ms();
        let lent = Self { repository, row };
        lent.note(|progress| {
            progress.lent = progress.lent.saturating_add(1);
            progress.lent_ms = now_ms;
            progress.trouble.clear();
        });
        lent
    }

    fn note(&self, change: impl FnOnce(&mut FeedProgress)) {
        let lent = self.repository.followers().feeds().note(&self.row.principal, change);
        let Some(lent) = lent else { return };
        let gauge = &self.repository.metrics().replica.lent_connections;
        gauge.with_label_values(&[self.row.name.as_str()]).set(i64::from(lent));
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.note(|progress| progress.lent = progress.lent.saturating_sub(1));
    }
}
