//! How this server begins to lend its connections to another: `strongroomd feed add`.
//!
//! 1. Keys for that server are written (`replica/keys.rs`). *Crash: they wait for the next try.*
//! 2. It is asked who it is; its TLS key and ledger key must be those of the token.
//! 3. The token is proven on the same connection, with this server's ledger key. *Crash: it follows
//!    this server as soon as a connection is lent; the same command with the same token goes on.*
//! 4. The row and the principal, in one decision. *From here on connections are lent.*

use std::sync::Arc;

use strongroom_protocol::id::{Label, PrincipalId};
use strongroom_protocol::role::Role;
use strongroom_protocol::token::Token;

use crate::error::ServerError;
use crate::feeds::FeedRow;
use crate::replica::enrol::{Newcomer, name_of, operator, prove};
use crate::replica::error::ReplicaError;
use crate::replica::keys::{PeerKeys, Whom};
use crate::replica::peer::Peer;
use crate::replica::throttle::Throttle;
use crate::repository::Repository;
use crate::server_keys::random_bytes;
use crate::stop::Stop;

/// Enrols as the one that lends, and begins to lend; gives that server's name here.
pub async fn add(
    repository: &Arc<Repository>,
    token: &str,
    name: Option<Label>,
    stop: Stop,
) -> Result<Label, ReplicaError> {
    let token = Token::from_text(token)
        .map_err(|error| operator(format!("{error}: copy the whole token")))?;
    if token.role != Role::Feeder {
        return Err(operator(format!(
            "the token is for role {}; make one there with: strongroomd token --data DIR --role \
             feeder --name NAME",
            token.role
        )));
    }
    let name = match name {
        Some(name) => name,
        None => name_of(&token.addresses)?,
    };
    if repository.feeds()?.iter().any(|row| row.name == name) {
        return Err(operator(format!("{name} is fed already; give another --name")));
    }
    if repository.registry().principal(&token.tls_key).is_some() {
        return Err(operator(
            "that server's key is a principal here already; revoke it first".into(),
        ));
    }
    let now_ms = repository.clock().wall_ms();
    let keys = PeerKeys::load_or_create(repository.folder(), Whom::Feed(&name), now_ms)?;
    let throttle = Arc::new(Throttle::unbounded(repository.clock().clone()));
    let patience = repository.config().replica.patience.0;
    let peer = Peer::dialling(&token.addresses, &keys, token.tls_key, throttle, patience, stop)?;
    let signing_key = repository.keys().ledger_public();
    let me = Newcomer { keys: &keys, signing_key, display_name: "primary" };
    let (ledger_key, tls_serial, answer) = prove(&peer, &token, me).await?;
    let row = FeedRow {
        name: name.clone(),
        addresses: token.addresses,
        tls_key: token.tls_key,
        ledger_key,
        principal: PrincipalId(random_bytes()?),
        is_paused: false,
        tls_serial,
        enrolled_as: Some(answer.principal),
    };
    let adding = repository.clone();
    let added = tokio::task::spawn_blocking(move || adding.add_feed(row)).await;
    added.map_err(|error| ServerError::Bug(error.to_string()))??;
    Ok(name)
}
