//! From a TLS key to permission: who is asking, and may it do this here?
//!
//! Asked for every request, before its body is read, so that a revocation acts at the next
//! request. [`authorize`] is the only maker of [`Authorized`], and handlers demand one. For a
//! principal of one namespace the check of the namespace is a comparison of two ids: no lookup
//! happens for a namespace that is not its own, so neither answer nor time tells whether it exists.

use std::sync::Arc;

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::TlsKeyDigest;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::{Access, Route};

use crate::config::KeysConfig;
use crate::error::ServerError;
use crate::registry::{Principal, Registry};

/// Proof that a principal may use a route.
#[derive(Debug, Clone)]
pub struct Authorized {
    principal: Option<Arc<Principal>>,
}

impl Authorized {
    /// Who it is; refuses on routes that are open to anyone.
    pub fn principal(&self) -> Result<&Principal, ServerError> {
        self.principal.as_deref().ok_or_else(unknown)
    }
}

/// Decides whether whoever holds `tls_key` may use `route`.
pub fn authorize(
    registry: &Registry,
    tls_key: &TlsKeyDigest,
    route: &Route,
) -> Result<Authorized, ServerError> {
    let Access::Needs(capability) = route.access() else {
        return Ok(Authorized { principal: None });
    };
    let principal = registry.principal(tls_key).ok_or_else(|| nobody(registry, tls_key))?;
    if !principal.role.may(capability) {
        return Err(ServerError::peer(
            ErrorCode::NotAllowed,
            format!("role {} does not allow {}", principal.role, capability.name()),
        ));
    }
    if let (Some(own), Some(wanted)) = (principal.namespace, route.namespace())
        && own != wanted
    {
        return Err(ServerError::not_found());
    }
    Ok(Authorized { principal: Some(principal) })
}

/// Refuses keys that are older than the configuration allows, for anything but being rolled over.
/// Who has them can always roll them over, so nobody is shut out; but it is on record then. Servers
/// are exempt: they have nobody who reads what they are told.
pub fn refuse_expired(
    registry: &Registry,
    authorized: &Authorized,
    route: &Route,
    keys: &KeysConfig,
    now_ms: u64,
) -> Result<(), ServerError> {
    let Some(principal) = &authorized.principal else { return Ok(()) };
    let age_max = u64::try_from(keys.principal_age.0.as_millis()).unwrap_or(u64::MAX);
    let is_server = matches!(principal.role, Role::Replica | Role::Feeder);
    if age_max == 0 || is_server || *route == Route::RollKeys {
        return Ok(());
    }
    let Some(since_ms) = registry.keys_ms(&principal.id) else { return Ok(()) };
    if now_ms.saturating_sub(since_ms) <= age_max {
        return Ok(());
    }
    Err(ServerError::peer(
        ErrorCode::KeysExpired,
        "the keys of this profile are older than this server allows: run `strongroom key roll`; \
         each command with the profile does it by itself",
    ))
}

/// The refusal of a key that is nobody's. Whoever holds one that was rolled over is told so: two
/// have had it, or a copy of the profile was put back.
fn nobody(registry: &Registry, tls_key: &TlsKeyDigest) -> ServerError {
    let Some(principal) = registry.former_owner(tls_key) else { return unknown() };
    tracing::error!(
        %principal,
        "ALARM: somebody uses a key that was rolled over: an old copy of the profile, or a thief \
         who has it, or who rolled it over before its owner"
    );
    ServerError::peer(
        ErrorCode::KeysRolled,
        format!(
            "the keys of this profile were rolled over, and it does not have the new ones. If it \
             is an old copy, use the newer one. Else they were stolen, and the thief has rolled \
             them over: have principal {principal} revoked, and enrol in a new profile"
        ),
    )
}

fn unknown() -> ServerError {
    ServerError::peer(
        ErrorCode::UnknownPrincipal,
        "this key is not enrolled here, or was revoked; ask the operator for a token and enrol",
    )
}
