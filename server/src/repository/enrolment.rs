//! Tokens, enrolment, revocation: how a key becomes a principal and stops being one.
//!
//! A token is made on the server, gives one enrolment (asked again with the same keys and proof, it
//! gives the same answer, because answers get lost), lives at most a day, and dies of five wrong
//! proofs. The server keeps only what checks a proof. The proof covers the connection's exporter
//! and every field of the request, so neither a relay nor a man in the middle can use it. All
//! answers to a bad token are one answer, so that nobody learns which part was wrong.

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, TlsKeyDigest, TokenId};
use strongroom_protocol::limits::{NAME_MAX_BYTES, TOKEN_TRIES_MAX, TOKEN_TTL_MAX_SECONDS};
use strongroom_protocol::message::EnrollAnswer;
use strongroom_protocol::role::Role;
use strongroom_protocol::token::{EnrollRequest, Scope, Token, enrolment_key};

use crate::error::ServerError;
use crate::principal_row::PrincipalRow;
use crate::registry::{Namespace, all_rows};
use crate::repository::Repository;
use crate::rows::{NamespaceRow, TokenRow, descriptor_key};
use crate::server_keys::{pin_of_ed25519, random_bytes};
use crate::store::schema::Family;
use crate::writer::Decision;

/// What an operator asks for when making a token.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// Name of the namespace; none for roles of the whole server.
    pub namespace: Option<Label>,
    /// Role that the token gives.
    pub role: Role,
    /// For people.
    pub display_name: String,
    /// How long the token lives, in seconds.
    pub ttl_seconds: u64,
}

/// A principal, for lists.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PrincipalSummary {
    /// Its id.
    pub principal: PrincipalId,
    /// Its role.
    pub role: Role,
    /// Name of its namespace, where it has one.
    pub namespace: Option<Label>,
    /// For people.
    pub display_name: String,
    /// When it was enrolled, milliseconds since 1970.
    pub enrolled_ms: u64,
    /// When it was revoked, milliseconds since 1970; 0 while it is not.
    pub revoked_ms: u64,
    /// Since when it has its keys, milliseconds since 1970.
    #[serde(default)]
    pub keys_ms: u64,
}

impl Repository {
    /// Makes a token. Only commands on the server itself may.
    pub fn make_token(&self, request: TokenRequest) -> Result<Token, ServerError> {
        let operator = |message: &str| Err(ServerError::Operator(message.into()));
        if request.ttl_seconds == 0 || request.ttl_seconds > TOKEN_TTL_MAX_SECONDS {
            return operator("a token lives for at least a second and at most 24 hours");
        }
        if u32::try_from(request.display_name.len()).map_or(true, |n| n > NAME_MAX_BYTES) {
            return operator("the display name is too long (128 bytes at most)");
        }
        if request.role == Role::Feeder && request.display_name.parse::<Label>().is_err() {
            return operator(
                "role feeder needs --name NAME: what that primary is to be called here (small \
                 letters, digits, dots and hyphens)",
            );
        }
        let scope = self.scope_of(&request)?;
        let secret: [u8; 32] = random_bytes()?;
        let now_seconds = self.clock.wall_ms() / 1000;
        let token = Token {
            id: TokenId(random_bytes()?),
            secret: secret.into(),
            tls_key: self.keys.tls_key_digest(),
            ledger_key_digest: *blake3::hash(&self.keys.ledger_public().0).as_bytes(),
            scope: scope.clone(),
            role: request.role,
            expires_seconds: now_seconds.saturating_add(request.ttl_seconds),
            addresses: self.addresses(),
        };
        let row = TokenRow {
            enrolment_key: enrolment_key(&secret),
            scope,
            role: request.role,
            display_name: request.display_name,
            expires_seconds: token.expires_seconds,
            tries: 0,
            enrolled: None,
        };
        let (id, role, expires_seconds) = (token.id, token.role, token.expires_seconds);
        self.writer.decide(move |decision| {
            decision.batch.put(Family::Tokens, TokenRow::key(&id), row.encode());
            let event = Event::TokenMade { token: id, role, expires_seconds };
            decision.enter(PrincipalId::LOCAL, NamespaceId([0; 32]), event);
            Ok(())
        })?;
        Ok(token)
    }

    /// Enrols whoever proves a token on the connection with this client key and exporter.
    pub fn enroll(
        self: &std::sync::Arc<Self>,
        body: &[u8],
        connection_key: TlsKeyDigest,
        exporter: &[u8; 32],
    ) -> Result<EnrollAnswer, ServerError> {
        let request = EnrollRequest::decode(body).map_err(|_| bad_token())?;
        let principal = PrincipalId(random_bytes()?);
        let (repository, body, exporter) = (self.clone(), body.to_vec(), *exporter);
        self.writer.decide(move |decision| {
            let key = TokenRow::key(&request.token);
            let Some(value) = decision.store.get(Family::Tokens, &key)? else {
                return Err(bad_token());
            };
            let mut token = TokenRow::decode(&value)?;
            let now_seconds = decision.now_ms / 1000;
            let alive = token.tries < TOKEN_TRIES_MAX && now_seconds < token.expires_seconds;
            if !alive {
                return Err(bad_token());
            }
            let proven = EnrollRequest::proves(&body, &token.enrolment_key, &exporter)
                && request.tls_key == connection_key;
            if let Some(enrolled) = token.enrolled {
                // The answer may have been lost: whoever proves the token with the keys that it
                // enrolled is told again what he became. Nobody else can use it any more.
                return match proven {
                    true => repository.enrolled_before(enrolled, &request, &token).map(Ok),
                    false => Err(bad_token()),
                };
            }
            if !proven {
                // The try is counted durably: the refusal is an outcome, not an error.
                token.tries = token.tries.saturating_add(1);
                decision.batch.put(Family::Tokens, key, token.encode());
                return Ok(Err(bad_token()));
            }
            if repository.registry.is_taken(&connection_key) {
                return Err(ServerError::peer(
                    ErrorCode::BadRequest,
                    "this TLS key is enrolled already; enrol with a new profile",
                ));
            }
            let answer = repository.enroll_proven(decision, &request, &token, principal)?;
            token.enrolled = Some(principal);
            decision.batch.put(Family::Tokens, key, token.encode());
            Ok(Ok(answer))
        })?
    }

    /// Revokes a principal. Its next request finds nobody; its live sessions cannot be used.
    pub fn revoke(self: &std::sync::Arc<Self>, principal: PrincipalId) -> Result<(), ServerError> {
        let repository = self.clone();
        self.writer.decide(move |decision| {
            let key = PrincipalRow::key(&principal);
            let value = decision.store.get(Family::Principals, &key)?;
            let value = value
                .ok_or_else(|| ServerError::Operator(format!("{principal}: no such principal")))?;
            let mut row = PrincipalRow::decode(&value)?;
            if row.revoked_ms == 0 {
                row.revoked_ms = decision.now_ms;
                decision.batch.put(Family::Principals, key, row.encode());
                let namespace = row.namespace.unwrap_or(NamespaceId([0; 32]));
                decision.enter(PrincipalId::LOCAL, namespace, Event::Revoked { principal });
                repository.registry.remove_principal(&row.tls_key);
                repository.followers.lent().close(principal);
            }
            Ok(())
        })
    }

    /// Revokes all who belong to a namespace that is dropped.
    pub(super) fn revoke_members(
        &self,
        decision: &mut Decision<'_>,
        namespace: &NamespaceId,
    ) -> Result<(), ServerError> {
        for (key, value) in all_rows(decision.store, Family::Principals)? {
            let mut row = PrincipalRow::decode(&value)?;
            if row.namespace == Some(*namespace) && row.revoked_ms == 0 {
                row.revoked_ms = decision.now_ms;
                decision.batch.put(Family::Principals, key.clone(), row.encode());
                let id = key.try_into().map_err(|_| ServerError::Bug("principal key".into()))?;
                let event = Event::Revoked { principal: PrincipalId(id) };
                decision.enter(PrincipalId::LOCAL, *namespace, event);
            }
        }
        Ok(())
    }

    /// All principals, revoked ones included.
    pub fn principals(&self) -> Result<Vec<PrincipalSummary>, ServerError> {
        let mut summaries = Vec::new();
        for (key, value) in all_rows(&self.store, Family::Principals)? {
            let row = PrincipalRow::decode(&value)?;
            let id = key.try_into().map_err(|_| ServerError::Bug("principal key".into()))?;
            let namespace = row.namespace.and_then(|id| self.registry.namespace(&id));
            summaries.push(PrincipalSummary {
                principal: PrincipalId(id),
                role: row.role,
                namespace: namespace.map(|namespace| namespace.row.name.clone()),
                display_name: row.display_name,
                enrolled_ms: row.enrolled_ms,
                revoked_ms: row.revoked_ms,
                keys_ms: row.keys_ms,
            });
        }
        summaries.sort_by_key(|summary| summary.enrolled_ms);
        Ok(summaries)
    }

    fn scope_of(&self, request: &TokenRequest) -> Result<Scope, ServerError> {
        let operator = |message: String| Err(ServerError::Operator(message));
        match (&request.namespace, request.role.is_of_namespace()) {
            (None, false) => Ok(Scope::Server),
            (Some(name), true) => match self.registry.namespace_named(name) {
                Some(namespace) => Ok(Scope::Existing(namespace.row.namespace, name.clone())),
                None if request.role == Role::Backup => Ok(Scope::New(name.clone())),
                None => operator(format!(
                    "namespace {name} does not exist yet; its first client has role backup"
                )),
            },
            (None, true) => operator(format!("role {} needs --namespace NAME", request.role)),
            (Some(_), false) => operator(format!(
                "role {} is one of the whole server: leave --namespace out",
                request.role
            )),
        }
    }

    /// Where clients reach this server, as `init` was told.
    pub(super) fn addresses(&self) -> String {
        let port = self.identification.port;
        let with_port = |host: &String| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        self.identification.hosts.iter().map(with_port).collect::<Vec<_>>().join(",")
    }

    /// The answer that an enrolment got before, if the same keys ask again.
    fn enrolled_before(
        &self,
        enrolled: PrincipalId,
        request: &EnrollRequest,
        token: &TokenRow,
    ) -> Result<EnrollAnswer, ServerError> {
        let principal = self.registry.principal(&request.tls_key);
        let same = principal.filter(|principal| {
            principal.id == enrolled && principal.signing_key == request.signing_key
        });
        let principal = same.ok_or_else(bad_token)?;
        let namespace = principal.namespace.and_then(|id| self.registry.namespace(&id));
        if let (Scope::New(_), Some(namespace)) = (&token.scope, &namespace)
            && namespace.descriptor.encoded() != request.descriptor
        {
            return Err(bad_token());
        }
        Ok(EnrollAnswer {
            principal: enrolled,
            role: principal.role,
            namespace: principal.namespace,
            namespace_name: namespace.map(|namespace| namespace.row.name.clone()),
            ledger_key: self.keys.ledger_public(),
        })
    }

    /// Adds the rows of a proven enrolment, and of the namespace if it is new.
    fn enroll_proven(
        &self,
        decision: &mut Decision<'_>,
        request: &EnrollRequest,
        token: &TokenRow,
        principal: PrincipalId,
    ) -> Result<EnrollAnswer, ServerError> {
        let (namespace, name) = match &token.scope {
            Scope::Server => (None, None),
            Scope::Existing(namespace, name) => {
                // It may have been dropped since the token was made.
                self.registry.namespace(namespace).ok_or_else(bad_token)?;
                (Some(*namespace), Some(name.clone()))
            }
            Scope::New(name) => {
                let namespace = self.create_namespace(decision, name, principal, request)?;
                (Some(namespace), Some(name.clone()))
            }
        };
        if !matches!(token.scope, Scope::New(_)) && !request.descriptor.is_empty() {
            return Err(ServerError::peer(
                ErrorCode::BadDescriptor,
                "this token is not for a new namespace",
            ));
        }
        if token.role == Role::Feeder {
            self.insert_feeder(decision, token, request, principal)?;
        }
        let display_name = match token.display_name.is_empty() {
            // Chosen by the client and shown on an operator's terminal: no control characters.
            true => request.display_name.chars().filter(|c| !c.is_control()).collect(),
            false => token.display_name.clone(),
        };
        let row = PrincipalRow {
            role: token.role,
            namespace,
            tls_key: request.tls_key,
            signing_key: request.signing_key,
            display_name,
            enrolled_ms: decision.now_ms,
            revoked_ms: 0,
            keys_ms: decision.now_ms,
            former_tls_key: None,
        };
        decision.batch.put(Family::Principals, PrincipalRow::key(&principal), row.encode());
        let event = Event::Enrolled {
            principal,
            role: token.role,
            tls_key: request.tls_key,
            signing_key: request.signing_key,
            token: request.token,
        };
        decision.enter(principal, namespace.unwrap_or(NamespaceId([0; 32])), event);
        self.registry.add_principal(principal, &row);
        Ok(EnrollAnswer {
            principal,
            role: token.role,
            namespace,
            namespace_name: name,
            ledger_key: self.keys.ledger_public(),
        })
    }

    fn create_namespace(
        &self,
        decision: &mut Decision<'_>,
        name: &Label,
        principal: PrincipalId,
        request: &EnrollRequest,
    ) -> Result<NamespaceId, ServerError> {
        let refuse = |message: String| Err(ServerError::peer(ErrorCode::BadDescriptor, message));
        let descriptor = match VerifiedDescriptor::decode(&request.descriptor) {
            Ok(descriptor) => descriptor,
            Err(error) => return refuse(error.to_string()),
        };
        let contents = descriptor.contents();
        if contents.version != 1 || contents.previous.0 != [0; 32] {
            return refuse("the first descriptor of a namespace has version 1".into());
        }
        if !contents.ledger_keys.contains(&self.keys.ledger_public()) {
            return refuse("the descriptor does not name this server's ledger key".into());
        }
        // A key has one owner: a descriptor that names the writer's own would outlive its
        // revocation.
        if pin_of_ed25519(&contents.access_key) == request.tls_key {
            return refuse("the descriptor's access key is in use already".into());
        }
        self.insert_namespace(decision, name.clone(), principal, descriptor, false)
    }

    /// Adds a namespace with its first descriptor here and this server's policy. One that was
    /// dropped comes back only if the operator readmitted it, and under another number.
    pub(super) fn insert_namespace(
        &self,
        decision: &mut Decision<'_>,
        name: Label,
        actor: PrincipalId,
        descriptor: VerifiedDescriptor,
        is_readmitted: bool,
    ) -> Result<NamespaceId, ServerError> {
        let refuse = |message: &str| Err(ServerError::peer(ErrorCode::BadDescriptor, message));
        let contents = descriptor.contents();
        let namespace = descriptor.namespace();
        let taken = self.registry.namespace(&namespace).is_some()
            || self.registry.namespace_named(&name).is_some();
        if taken {
            return refuse("a namespace of this name or id exists already");
        }
        // A key has one owner: a descriptor that names somebody else's would shut him out.
        if self.registry.principal(&pin_of_ed25519(&contents.access_key)).is_some() {
            return refuse("the descriptor's access key is in use already");
        }
        if self.registry.dropped_name(&namespace).is_some() && !is_readmitted {
            return refuse("the namespace was dropped here; make a new one");
        }
        let last = decision.store.last(Family::Namespaces, &[])?;
        let last = last.and_then(|(key, _)| key.try_into().ok()).map_or(0, u32::from_be_bytes);
        let number = last.saturating_add(1);
        let policy = self.config.retention.policy();
        let rule = policy.rule;
        let row = NamespaceRow { namespace, name, policy, is_dropped: false };
        let key = descriptor_key(number, contents.version);
        decision.batch.put(Family::Namespaces, NamespaceRow::key(number), row.encode());
        decision.batch.put(Family::Descriptors, key, descriptor.encoded());
        let event = Event::NamespaceCreated { descriptor: descriptor.digest(), rule };
        decision.enter(actor, namespace, event);
        self.registry.add_namespace(Namespace { number, row, descriptor });
        Ok(namespace)
    }
}

fn bad_token() -> ServerError {
    ServerError::peer(
        ErrorCode::BadToken,
        "the token is not valid here (used, expired, for another server, or not copied whole); \
         ask the operator for a new one",
    )
}
