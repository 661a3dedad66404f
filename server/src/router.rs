//! One request, from its first line to its answer: route, permission, handler, log, metrics.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;
use prometheus::IntGauge;
use strongroom_protocol::id::to_hex;
use strongroom_protocol::route::Route;
use tokio::time::timeout;

use crate::auth::{Authorized, authorize, refuse_expired};
use crate::budget::Held;
use crate::error::{Refusal, ServerError};
use crate::handler::session::InSession;
use crate::handler::{
    Answer, Peer, RequestBody, bad_request, binary, blocking, clock, json, ledger, lend, refused,
    retention, session, snapshot,
};
use crate::refusals::Reason;
use crate::registry::Principal;
use crate::repository::Repository;
use crate::server_keys::random_bytes;

/// Answers a request. Only a bug of this program makes it fail, and closes the connection.
pub async fn serve(
    repository: Arc<Repository>,
    peer: Peer,
    request: Request<Incoming>,
) -> Result<Answer, ServerError> {
    let request_id = to_hex(&random_bytes::<8>()?);
    let began = repository.clock().monotonic();
    let route = Route::parse(request.method().as_str(), request.uri().path());
    let metrics = repository.metrics();
    let outcome = match route {
        Some(route) => within_time(&repository, &peer, route, request).await,
        None => Err(ServerError::not_found()),
    };
    let route_name = route.map_or("unknown", |route| route.name());
    let (code, answer) = match outcome {
        Ok(answer) => ("ok", Ok(answer)),
        Err(error) => {
            let refusal = error.refusal();
            log_refusal(&request_id, route_name, &peer, &error, &refusal);
            if let Some(reason) = Reason::of_code(refusal.code) {
                metrics.refusals.count(reason);
            }
            (refusal.code.name(), refused(refusal, &request_id))
        }
    };
    let elapsed = repository.clock().monotonic().saturating_sub(began);
    metrics.request_done(route_name, code, elapsed);
    tracing::debug!(request_id, route = route_name, code, ?elapsed, "request done");
    answer
}

/// Whether whoever is asking may, with a key of that age.
fn admit(repository: &Repository, peer: &Peer, route: &Route) -> Result<Authorized, ServerError> {
    let (registry, now_ms) = (repository.registry(), repository.clock().wall_ms());
    let authorized = authorize(registry, &peer.tls_key, route)?;
    refuse_expired(registry, &authorized, route, &repository.config().keys, now_ms)?;
    Ok(authorized)
}

/// Waits for a place among the requests in flight, while nothing of the body is read. Dropping the
/// place gives it back, also where the connection ends before the request does.
async fn begin(
    repository: &Repository,
    authorized: &Authorized,
    route: &Route,
    request: Request<Incoming>,
) -> Result<(Held, RequestBody), ServerError> {
    let who = authorized.principal().ok().map(|principal| principal.id);
    let mut place = repository.guards().requests.holder(who);
    let waiting = Waiting::begin(&repository.metrics().requests_waiting);
    place.grow_to(1).await;
    drop(waiting);
    let body = RequestBody::new(repository, who, request.into_body(), route.body_max_bytes())?;
    Ok((place, body))
}

/// A request that is counted; dropping it ends that.
struct Waiting<'a>(&'a IntGauge);

impl<'a> Waiting<'a> {
    fn begin(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn within_time(
    repository: &Arc<Repository>,
    peer: &Peer,
    route: Route,
    request: Request<Incoming>,
) -> Result<Answer, ServerError> {
    let time = repository.config().limits.request.0;
    let outcome = timeout(time, dispatch(repository, peer, route, request)).await;
    outcome.unwrap_or_else(|_| {
        repository.metrics().refusals.count(Reason::RequestTime);
        Err(bad_request("the request took longer than any may"))
    })
}

async fn dispatch(
    repository: &Arc<Repository>,
    peer: &Peer,
    route: Route,
    request: Request<Incoming>,
) -> Result<Answer, ServerError> {
    let authorized = admit(repository, peer, &route)?;
    if route == Route::Lend {
        return lend::lend(repository, (peer, authorized.principal()?), request).await;
    }
    let query = request.uri().query().map(str::to_owned);
    let (_place, body) = begin(repository, &authorized, &route, request).await?;
    match route {
        // Has its answer already: it takes the connection, not a body.
        Route::Lend => Err(ServerError::not_found()),
        Route::Identity => json(&repository.identity()),
        Route::Enroll => snapshot::enroll(repository, peer, body).await,
        Route::RollKeys => {
            snapshot::roll_keys(repository, (peer, authorized.principal()?), body).await
        }
        Route::Status => json(&blocking(repository, |r| r.status()).await?),
        Route::Namespaces => json(&repository.namespaces()),
        Route::Checkpoint => binary(repository.ledger().head().note),
        Route::Consistency(size) => ledger::consistency(repository, size, query.as_deref()).await,
        Route::Tile(tile) => ledger::tile(repository, tile).await,
        Route::Statement(leaf) => ledger::statement(repository, leaf).await,
        Route::Descriptor(ns) => snapshot::descriptor(repository, ns, query.as_deref()).await,
        Route::OfferDescriptor(ns) => {
            let principal = authorized.principal()?.clone();
            snapshot::offer_descriptor(repository, principal, ns, body).await
        }
        Route::Snapshots(ns) => snapshot::list(repository, ns, query.as_deref()).await,
        Route::Record(ns, record) => {
            let principal = authorized.principal()?.clone();
            snapshot::record(repository, principal, ns, record).await
        }
        Route::Receipt(ns, record) => snapshot::receipt(repository, ns, record).await,
        Route::Forget(ns, record) => {
            let principal = authorized.principal()?.clone();
            snapshot::forget(repository, principal, ns, record).await
        }
        Route::Read(ns) => {
            let principal = authorized.principal()?.clone();
            snapshot::read(repository, principal, ns, body).await
        }
        Route::Retain(..)
        | Route::PlaceHold(..)
        | Route::ReleaseHold(..)
        | Route::Lift(..)
        | Route::Policy(_)
        | Route::SetPolicy(_)
        | Route::Proposals
        | Route::Decide(_)
        | Route::TendClock => keep(repository, authorized.principal()?, route, body).await,
        Route::ClockStatus => clock::status(repository).await,
        Route::ReportHead => {
            clock::report_head(repository, authorized.principal()?.clone(), body).await
        }
        Route::OpenSession(ns) => {
            session::open(repository, authorized.principal()?.clone(), ns, body).await
        }
        Route::Have(..)
        | Route::Prove(..)
        | Route::Upload(..)
        | Route::Renew(..)
        | Route::Close(..)
        | Route::Commit(..) => proceed(repository, authorized.principal()?, route, body).await,
    }
}

/// What keeps snapshots: locks, holds, policies, proposals.
async fn keep(
    repository: &Arc<Repository>,
    principal: &Principal,
    route: Route,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    match route {
        Route::Retain(ns, record)
        | Route::PlaceHold(ns, record)
        | Route::ReleaseHold(ns, record) => {
            retention::change_lock(repository, principal.clone(), route, (ns, record), body).await
        }
        Route::Lift(ns, record) => retention::lift(repository, principal.clone(), ns, record).await,
        Route::Policy(ns) => json(&repository.policy(&ns)?),
        Route::SetPolicy(ns) => {
            retention::set_policy(repository, principal.clone(), ns, body).await
        }
        Route::Proposals => json(&blocking(repository, |r| r.proposals()).await?),
        Route::Decide(leaf) => retention::decide(repository, principal.clone(), leaf, body).await,
        Route::TendClock => retention::tend_clock(repository, principal.clone(), body).await,
        _ => Err(ServerError::not_found()),
    }
}

/// What happens in a session.
async fn proceed(
    repository: &Arc<Repository>,
    principal: &Principal,
    route: Route,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let at = |namespace, session| InSession { principal: principal.clone(), namespace, session };
    match route {
        Route::Have(ns, id) => session::have(repository, at(ns, id), body).await,
        Route::Prove(ns, id) => session::prove(repository, at(ns, id), body).await,
        Route::Upload(ns, id) => session::upload(repository, at(ns, id), body).await,
        Route::Renew(ns, id) => session::renew(repository, at(ns, id)).await,
        Route::Close(ns, id) => session::close(repository, at(ns, id)).await,
        Route::Commit(ns, id) => session::commit(repository, at(ns, id), body).await,
        _ => Err(ServerError::not_found()),
    }
}

/// The one place where an error of a request is logged.
fn log_refusal(request_id: &str, route: &str, peer: &Peer, error: &ServerError, refusal: &Refusal) {
    let (code, client) = (refusal.code.name(), &peer.tls_key);
    if matches!(error, ServerError::Peer(_)) {
        tracing::info!(request_id, route, code, %client, %error, "request refused");
    } else {
        tracing::error!(request_id, route, code, %client, %error, "request failed");
    }
}
