//! Retention on the wire: locks, holds, policies, proposals.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use strongroom_protocol::id::{NamespaceId, RecordDigest};
use strongroom_protocol::message::{ClockWish, Decide, HoldReason, Retain};
use strongroom_protocol::policy::Policy;
use strongroom_protocol::route::Route;

use crate::error::ServerError;
use crate::handler::{Answer, RequestBody, bad_request, blocking, json};
use crate::registry::Principal;
use crate::repository::Repository;

/// Changes of one snapshot's lock or hold.
pub async fn change_lock(
    repository: &Arc<Repository>,
    principal: Principal,
    route: Route,
    (ns, record): (NamespaceId, RecordDigest),
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let body = body.whole().await?;
    if let Route::Retain(..) = route {
        let wish: Retain = parse(&body)?;
        return json(
            &blocking(repository, move |r| r.retain(&principal, &ns, &record, wish)).await?,
        );
    }
    let HoldReason { reason } = parse(&body)?;
    let state = blocking(repository, move |r| match route {
        Route::PlaceHold(..) => r.place_hold(&principal, &ns, &record, reason),
        _ => r.release_hold(&principal, &ns, &record, reason),
    });
    json(&state.await?)
}

/// `POST /v1/ns/{ns}/snapshots/{record}/lift`
pub async fn lift(
    repository: &Arc<Repository>,
    principal: Principal,
    ns: NamespaceId,
    record: RecordDigest,
) -> Result<Answer, ServerError> {
    json(&blocking(repository, move |r| r.lift(&principal, &ns, &record)).await?)
}

/// `POST /v1/ns/{ns}/policy`
pub async fn set_policy(
    repository: &Arc<Repository>,
    principal: Principal,
    ns: NamespaceId,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let policy: Policy = parse(&body.whole().await?)?;
    json(&blocking(repository, move |r| r.set_policy(&principal, &ns, policy)).await?)
}

/// `POST /v1/proposals/{leaf}`
pub async fn decide(
    repository: &Arc<Repository>,
    principal: Principal,
    leaf: u64,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let answer: Decide = parse(&body.whole().await?)?;
    json(&blocking(repository, move |r| r.decide_proposal(&principal, leaf, answer)).await?)
}

/// `POST /v1/clock`
pub async fn tend_clock(
    repository: &Arc<Repository>,
    principal: Principal,
    body: RequestBody,
) -> Result<Answer, ServerError> {
    let wish: ClockWish = parse(&body.whole().await?)?;
    json(&blocking(repository, move |r| r.tend_clock(&principal, wish)).await?)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ServerError> {
    serde_json::from_slice(body).map_err(|error| bad_request(&format!("body: {error}")))
}
