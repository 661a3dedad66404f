//! An upload session: its requests, and the renewal of its lease.
//!
//! All of them may be repeated: asking, proving, renewing and committing change nothing the second
//! time, and an envelope that arrives twice is stored once. [`Session::upload_or_wait`] alone is
//! not repeated here, because its caller knows better what to send again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, NamespaceId, SealedDigest, SessionId};
use strongroom_protocol::message::{OpenSession, SessionOpened, SizeClass, Uploaded};
use strongroom_protocol::retention::LockWanted;
use strongroom_protocol::route::Route;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::error::ClientError;
use crate::transport::{Body, Client, parse_json};

/// An open session. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
    namespace: NamespaceId,
    opened: Arc<SessionOpened>,
}

/// Why an upload did not succeed.
#[derive(Debug)]
pub enum Setback {
    /// The network's fault, and a pause has passed since: part of it may have arrived.
    Again(ClientError),
    /// For good.
    Final(ClientError),
}

/// Renews a session's lease until it is dropped.
#[derive(Debug)]
pub struct Renewal(JoinHandle<()>);

impl Session {
    /// Opens a session for one snapshot of `source`.
    pub async fn open(
        client: &Client,
        namespace: NamespaceId,
        source: &Label,
        size_class: SizeClass,
        lock_wanted: LockWanted,
    ) -> Result<Self, ClientError> {
        let question = OpenSession { source: source.clone(), size_class, lock_wanted };
        let route = Route::OpenSession(namespace);
        let opened = client.json(&route, "", Some(&question)).await?;
        Ok(Self { client: client.clone(), namespace, opened: Arc::new(opened) })
    }

    /// Speaks to the server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the server said when it opened the session.
    pub fn opened(&self) -> &SessionOpened {
        &self.opened
    }

    /// Keeps the lease alive.
    pub fn keep_alive(&self) -> Renewal {
        let session = self.clone();
        let step = Duration::from_millis(self.opened.lease_ms / 4).max(Duration::from_millis(200));
        Renewal(tokio::spawn(async move {
            loop {
                sleep(step).await;
                let route = Route::Renew(session.namespace, session.opened.session);
                // A lease that cannot be renewed shows at the next real request.
                if let Err(error) = session.client.request_once(&route, "", Body::empty()).await {
                    tracing::debug!("renew the session: {error}");
                }
            }
        }))
    }

    /// Which of `digests` the repository has.
    pub async fn have(&self, digests: &[SealedDigest]) -> Result<Vec<bool>, ClientError> {
        let route = Route::Have(self.namespace, self.opened.session);
        let answer = self.client.request(&route, "", concat(&[], digests).into()).await;
        let answer = answer.map_err(lost)?;
        let is_answer = answer.len() == digests.len() && answer.iter().all(|byte| *byte <= 1);
        if !is_answer {
            return Err(ClientError::Protocol("answer to have is not one byte a digest".into()));
        }
        Ok(answer.iter().map(|byte| *byte == 1).collect())
    }

    /// The server's proofs that it has the envelopes with `digests`, for a fresh nonce.
    pub async fn prove(
        &self,
        nonce: &[u8; 32],
        digests: &[SealedDigest],
    ) -> Result<Vec<[u8; 32]>, ClientError> {
        let answer = self.ask_for_proofs(concat(nonce, digests)).await?;
        let (proofs, rest) = answer.as_chunks::<32>();
        if proofs.len() != digests.len() || !rest.is_empty() {
            return Err(ClientError::Unproven("a proof is missing".into()));
        }
        Ok(proofs.to_vec())
    }

    /// Only the network excuses a missing proof. An answer that got lost may have used up the
    /// session's challenges, though: then the session is over, and not the trust.
    async fn ask_for_proofs(&self, body: Bytes) -> Result<Bytes, ClientError> {
        let route = Route::Prove(self.namespace, self.opened.session);
        let mut failures = 0;
        loop {
            let error = match self.client.request_once(&route, "", body.clone().into()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let is_excused = matches!(error, ClientError::Unreachable(_))
                || error.code() == Some(ErrorCode::Unavailable);
            match (error.code(), error) {
                (Some(ErrorCode::TooMany), _) if failures > 0 => {
                    return Err(ClientError::SessionLost("the connection broke too often".into()));
                }
                (Some(ErrorCode::SessionEnded | ErrorCode::UnknownPrincipal), error) => {
                    return Err(lost(error));
                }
                (_, error) if is_excused => {
                    failures += 1;
                    let Some(pause) = self.client.retry().pause(failures) else {
                        return Err(error);
                    };
                    sleep(pause).await;
                }
                (Some(code), _) => {
                    return Err(ClientError::Unproven(format!("it answers {}", code.name())));
                }
                (None, error) => return Err(error),
            }
        }
    }

    /// Sends a stream of framed envelopes. After a failure of the network, the next after
    /// `failures` others, it waits, and leaves it to the caller to find out what arrived.
    pub async fn upload_or_wait(&self, body: Body, failures: u32) -> Result<Uploaded, Setback> {
        let error = match self.upload(body).await {
            Ok(uploaded) => return Ok(uploaded),
            Err(error) => error,
        };
        let pause = self.client.retry().pause(failures.saturating_add(1));
        match pause.filter(|_| error.is_temporary()) {
            Some(pause) => {
                sleep(pause).await;
                Err(Setback::Again(error))
            }
            None => Err(Setback::Final(error)),
        }
    }

    /// Sends a stream of framed envelopes, once.
    pub async fn upload(&self, body: Body) -> Result<Uploaded, ClientError> {
        let route = Route::Upload(self.namespace, self.opened.session);
        let answer = self.client.request_once(&route, "", body).await.map_err(lost)?;
        parse_json(&route, &answer)
    }

    /// Commits a record and gives the receipt.
    pub async fn commit(&self, record: Bytes) -> Result<Bytes, ClientError> {
        let session = self.opened.session;
        commit_in(&self.client, self.namespace, session, record).await.map_err(lost)
    }

    /// Gives the lease back early; what it held is unpinned.
    pub async fn close(&self) {
        let route = Route::Close(self.namespace, self.opened.session);
        // The lease ends by itself where this does not arrive.
        if let Err(error) = self.client.request_once(&route, "", Body::empty()).await {
            tracing::debug!("close the session: {error}");
        }
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Commits a record in a session that may have ended: a record that was committed before gets its
/// receipt all the same.
pub async fn commit_in(
    client: &Client,
    namespace: NamespaceId,
    session: SessionId,
    record: Bytes,
) -> Result<Bytes, ClientError> {
    client.request(&Route::Commit(namespace, session), "", record.into()).await
}

fn concat(head: &[u8], digests: &[SealedDigest]) -> Bytes {
    let digest_bytes = digests.len().saturating_mul(SealedDigest::BYTES);
    let mut bytes = Vec::with_capacity(head.len().saturating_add(digest_bytes));
    bytes.extend_from_slice(head);
    for digest in digests {
        bytes.extend_from_slice(digest.as_bytes());
    }
    bytes.into()
}

/// Tells the end of a session from other refusals: a new session can go on from there.
fn lost(error: ClientError) -> ClientError {
    match error {
        ClientError::Server(body)
            if matches!(
                body.code,
                ErrorCode::SessionEnded | ErrorCode::MissingChildren | ErrorCode::TooLarge
            ) =>
        {
            ClientError::SessionLost(format!(
                "the upload session ended ({}: {})",
                body.code.name(),
                body.message
            ))
        }
        other => other,
    }
}
