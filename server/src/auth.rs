//! From a TLS key to permission: who is asking, and may it do this here?
//!
//! Asked for every request, before its body is read, so that a revocation acts at the next
//! request. [`authorize`] is the only maker of [`Authorized`], and handlers demand one. For a
//! principal of one namespace the check of the namespace is a comparison of two ids: no lookup
//! happens for a namespace that is not its own, so neither answer nor time tells whether it exists.

use std::sync::Arc;

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::TlsKeyDigest;
use strongroom_protocol::route::{Access, Route};

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
    let principal = registry.principal(tls_key).ok_or_else(unknown)?;
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

fn unknown() -> ServerError {
    ServerError::peer(
        ErrorCode::UnknownPrincipal,
        "this key is not enrolled here, or was revoked; ask the operator for a token and enrol",
    )
}
