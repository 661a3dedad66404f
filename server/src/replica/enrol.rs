//! How this server becomes a replica of another: `strongroomd replica add`.
//!
//! 1. Keys for this primary are written (`keys.rs`). *Crash: they wait for the next try.*
//! 2. The primary is asked who it is; its TLS key and ledger key must be those of the token.
//! 3. The token is proven on the same connection. *Crash: the primary has a principal that nobody
//!    uses; the same command with the same token goes on from here.*
//! 4. The primary's row and the ledger entry, in one decision. *From here on it is followed.*

use std::sync::Arc;

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, PublicKey};
use strongroom_protocol::limits::{ANSWER_MAX_BYTES, PRIMARY_FILTER_MAX, PROTOCOL_VERSION};
use strongroom_protocol::message::{EnrollAnswer, Identity};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::{EnrollRequest, Token};
use strongroom_protocol::vouch::ServerTls;

use super::error::ReplicaError;
use super::keys::{PeerKeys, Whom};
use super::peer::{Peer, parse_json};
use super::throttle::Throttle;
use crate::error::ServerError;
use crate::replica_rows::{PrimaryRow, Reach};
use crate::repository::Repository;
use crate::stop::Stop;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct NewPrimary {
    /// The token's text, made by the primary for role `replica`.
    pub token: String,
    /// What to call the primary; its first host name, where nothing is said.
    pub name: Option<Label>,
    /// Namespaces to follow, by their names there; all, where it is empty.
    pub only: Vec<Label>,
    /// Ask it only for what is damaged here.
    pub is_repair_only: bool,
}

/// Enrols at a primary and begins to follow it; gives its name here.
pub async fn add(
    repository: &Arc<Repository>,
    wanted: NewPrimary,
    stop: Stop,
) -> Result<Label, ReplicaError> {
    let token = Token::from_text(&wanted.token)
        .map_err(|error| operator(format!("{error}: copy the whole token")))?;
    if token.role != Role::Replica {
        return Err(operator(format!(
            "the token is for role {}; make one with: strongroomd token --data DIR --role replica",
            token.role
        )));
    }
    let name = match wanted.name {
        Some(name) => name,
        None => name_of(&token.addresses)?,
    };
    let is_known = |row: &PrimaryRow| row.name == name;
    if repository.primaries()?.iter().any(is_known) {
        return Err(operator(format!("primary {name} is followed already; give another --name")));
    }
    if u32::try_from(wanted.only.len()).map_or(true, |count| count > PRIMARY_FILTER_MAX) {
        return Err(operator(format!("--only takes at most {PRIMARY_FILTER_MAX} names")));
    }
    let now_ms = repository.clock().wall_ms();
    let keys = PeerKeys::load_or_create(repository.folder(), Whom::Primary(&name), now_ms)?;
    let throttle = Arc::new(Throttle::unbounded(repository.clock().clone()));
    let patience = repository.config().replica.patience.0;
    let peer = Peer::dialling(&token.addresses, &keys, token.tls_key, throttle, patience, stop)?;
    let me = Newcomer { keys: &keys, signing_key: keys.signing_key, display_name: "replica" };
    let (ledger_key, tls_serial, answer) = prove(&peer, &token, me).await?;
    let reach = Reach::Dialled(token.addresses);
    let mut row = PrimaryRow::new(name.clone(), reach, token.tls_key, ledger_key, answer.principal);
    (row.only, row.tls_serial) = (wanted.only, tls_serial);
    row.is_repair_only = wanted.is_repair_only;
    let adding = repository.clone();
    let added = tokio::task::spawn_blocking(move || adding.add_primary(row)).await;
    added.map_err(|error| ServerError::Bug(error.to_string()))??;
    Ok(name)
}

/// As whom this server enrols.
pub struct Newcomer<'a> {
    /// What the connection shows.
    pub keys: &'a PeerKeys,
    /// By which it is known there.
    pub signing_key: PublicKey,
    /// For people there.
    pub display_name: &'a str,
}

/// Proves a token to the server that made it; gives that server's ledger key, the number of its TLS
/// key, and what this one is enrolled as there.
pub async fn prove(
    peer: &Peer,
    token: &Token,
    me: Newcomer<'_>,
) -> Result<(PublicKey, u64, EnrollAnswer), ReplicaError> {
    let mut connection = peer.connect().await?;
    let (route, max) = (Route::Identity, u64::from(ANSWER_MAX_BYTES));
    let said = peer.call_on(&mut connection, &route, bytes::Bytes::new(), max).await?;
    let said: Identity = parse_json(&route, &said)?;
    if said.protocol != PROTOCOL_VERSION {
        return Err(ReplicaError::Wrong(format!("it speaks version {}", said.protocol)));
    }
    if *blake3::hash(&said.ledger_key.0).as_bytes() != token.ledger_key_digest {
        let message = "its ledger key is not the one that the token names";
        return Err(ReplicaError::Wrong(message.into()));
    }
    let request = EnrollRequest {
        token: token.id,
        tls_key: me.keys.tls_key_digest,
        signing_key: me.signing_key,
        display_name: me.display_name.into(),
        descriptor: Vec::new(),
    };
    let body = request.encode(&token.secret, connection.exporter());
    let route = Route::Enroll;
    let answer = match peer.call_on(&mut connection, &route, body.into(), max).await {
        Err(ReplicaError::Primary(body)) if body.code == ErrorCode::BadToken => {
            return Err(operator(body.message));
        }
        answer => answer?,
    };
    let answer: EnrollAnswer = parse_json(&route, &answer)?;
    if answer.role != token.role || answer.ledger_key != said.ledger_key {
        let message = "it enrolled this server as something else than the token says";
        return Err(ReplicaError::Wrong(message.into()));
    }
    let tls = ServerTls::vouched_by(&said, &said.ledger_key, token.tls_key);
    Ok((said.ledger_key, tls.map_or(0, |tls| tls.serial), answer))
}

/// The first host name of a token's addresses, where that is a name that can be typed.
pub fn name_of(addresses: &str) -> Result<Label, ReplicaError> {
    let first = addresses.split(',').next().unwrap_or_default();
    let host = first.rsplit_once(':').map_or(first, |(host, _)| host).to_ascii_lowercase();
    host.parse().map_err(|_| operator("give that server a name with --name NAME".into()))
}

/// What the operator's command is refused with.
pub fn operator(message: String) -> ReplicaError {
    ReplicaError::Here(ServerError::Operator(message))
}
