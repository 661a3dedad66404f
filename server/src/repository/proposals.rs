//! What takes two principals: one proposes, another approves, and the approval carries it out.
//!
//! A proposal is a leaf of the ledger and a row of family `approvals` (key: the leaf, u64). It
//! names the operation, the digest of its parameters and of the state that it was made against. An
//! approval runs as **one** decision on the writer thread, and checks there that
//!
//! * the proposal waits, and has not ended;
//! * the approver is not the proposer, and the proposer has not been revoked since;
//! * the approver's own key signed leaf, ledger, verdict and meaning;
//! * the state is the one that was proposed against: a snapshot that was extended or held since, or
//!   a policy that was changed, cannot be lifted or lowered by it any more (`stale`);
//! * the rules allow the operation now: a lift does not reach compliance mode or a hold.
//!
//! Only then are the approval's entry, the operation's rows and its entry written in one batch, and
//! the row is deleted: a proposal is carried out once, or not at all. One approval is enough for
//! now, so that two principals stand behind each operation.
//!
//! An approval of what has changed since, or is forbidden by now, closes the proposal too: what was
//! attempted is on record, with the approval's own entry, and nothing else is written.

use std::ops::ControlFlow;
use std::sync::Arc;

use strongroom_protocol::entry::{ClosedCause, Event, Wish};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, RecordDigest};
use strongroom_protocol::limits::{PROPOSAL_TTL_SECONDS, PROPOSALS_MAX, REASON_MAX_BYTES};
use strongroom_protocol::merkle::leaf_hash;
use strongroom_protocol::message::{ClockWish, Decide, HexBytes, Outcome, ProposalRow};
use strongroom_protocol::proposal::{Approval, Operation, Verdict};

use crate::error::ServerError;
use crate::guards::Refused;
use crate::registry::Principal;
use crate::repository::Repository;
use crate::repository::retention::{Found, refused_by};
use crate::repository::snapshots::forget_found;
use crate::repository::waiting::waiting_rows;
use crate::rows::WaitingRow;
use crate::server_keys::random_bytes;
use crate::store::schema::Family;
use crate::writer::Decision;

impl Repository {
    /// Forgets a snapshot that nothing keeps, or proposes to forget what governance keeps.
    pub fn lift(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &NamespaceId,
        record: &RecordDigest,
    ) -> Result<Outcome, ServerError> {
        let id = self.namespace(namespace)?.row.namespace;
        let (repository, actor, record) = (self.clone(), principal.id, *record);
        let asking = principal.clone();
        let is_done = self.writer.decide(move |decision| {
            let namespace = repository.registry.standing(&asking, &id)?;
            let found = Found::look_up(decision.store, &namespace, &record)?;
            let lock = found.row.lock;
            if let Some(kept) = lock.kept_from_lift(decision.moment()) {
                let refused = Refused { principal: actor, wish: "lift", record: Some(record) };
                if repository.guards.entries.is_due(refused, repository.clock.monotonic()) {
                    let wish = Wish::ForgetGovernance;
                    decision.enter(actor, id, Event::Refused { record, wish, lock });
                }
                return Ok(Err(refused_by(kept, &lock)));
            }
            let is_free = lock.kept(decision.moment()).is_none();
            if is_free {
                forget_found(decision, actor, &namespace, &found, 0)?;
            }
            Ok(Ok(is_free))
        })??;
        if is_done {
            return Ok(Outcome { is_done, proposal: None });
        }
        self.propose(principal, Operation::ForgetGovernance { namespace: id, record })
    }

    /// Proposes what the retention clock needs.
    pub fn tend_clock(
        self: &Arc<Self>,
        principal: &Principal,
        wish: ClockWish,
    ) -> Result<Outcome, ServerError> {
        self.propose(
            principal,
            match wish {
                ClockWish::Credit(seconds) => Operation::CreditOffTime { seconds },
                ClockWish::Thaw => Operation::Thaw,
            },
        )
    }

    /// Enters a proposal.
    pub(super) fn propose(
        self: &Arc<Self>,
        principal: &Principal,
        operation: Operation,
    ) -> Result<Outcome, ServerError> {
        let (repository, asking, proposer) = (self.clone(), principal.clone(), principal.id);
        let nonce = random_bytes()?;
        let leaf = self.writer.decide(move |decision| {
            repository.registry.refuse_fallen(&asking)?;
            let (mut own_count, now_ms) = (0u32, decision.now_ms);
            for (leaf, row) in waiting_rows(decision)? {
                let is_live = row.expires_ms > now_ms
                    && repository.registry.signing_key(&row.proposer).is_some();
                if !is_live {
                    decision.batch.delete(Family::Approvals, WaitingRow::key(leaf));
                }
                own_count += u32::from(is_live && row.proposer == proposer);
            }
            if own_count >= PROPOSALS_MAX {
                let message =
                    "too many of your proposals wait; let them be decided, or reject some";
                return Err(ServerError::peer(ErrorCode::TooMany, message));
            }
            let state = repository.state_of(decision, &operation)?;
            let expires_ms =
                decision.now_ms.saturating_add(PROPOSAL_TTL_SECONDS.saturating_mul(1000));
            let event = Event::Proposed {
                operation: operation.code(),
                parameters: operation.digest(),
                state,
                nonce,
                expires_ms,
            };
            let namespace = operation.namespace().unwrap_or(NamespaceId([0; 32]));
            let leaf = decision.enter(proposer, namespace, event);
            let words = serde_json::to_vec(&operation)
                .map_err(|error| ServerError::Bug(format!("proposal: {error}")))?;
            decision.state(leaf, &words);
            let proposed_ms = decision.now_ms;
            let row = WaitingRow { proposer, proposed_ms, expires_ms, state, operation };
            decision.batch.put(Family::Approvals, WaitingRow::key(leaf), row.encode()?);
            Ok(leaf)
        })?;
        Ok(Outcome { is_done: false, proposal: Some(leaf) })
    }

    /// What waits for a second principal.
    pub fn proposals(&self) -> Result<Vec<ProposalRow>, ServerError> {
        let now_ms = self.clock.wall_ms();
        let mut rows = Vec::new();
        self.store.scan(Family::Approvals, &[], None, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let mut answer = Vec::new();
        for (key, value) in rows {
            let (proposal, row) = (WaitingRow::leaf_of(&key)?, WaitingRow::decode(&value)?);
            if row.expires_ms > now_ms {
                answer.push(ProposalRow {
                    proposal,
                    entry: HexBytes(self.ledger.entry(proposal)?),
                    proposer: row.proposer,
                    operation: row.operation,
                    proposed_ms: row.proposed_ms,
                    expires_ms: row.expires_ms,
                });
            }
        }
        Ok(answer)
    }

    /// Approves a proposal, which carries it out, or rejects it, which closes it.
    pub fn decide_proposal(
        self: &Arc<Self>,
        principal: &Principal,
        leaf: u64,
        answer: Decide,
    ) -> Result<Outcome, ServerError> {
        let signature: [u8; 64] = answer.signature.0.clone().try_into().map_err(|_| {
            ServerError::peer(ErrorCode::BadRequest, "the signature is not of 64 bytes")
        })?;
        if u32::try_from(answer.meaning.len()).map_or(true, |length| length > REASON_MAX_BYTES) {
            return Err(ServerError::peer(ErrorCode::BadRequest, "the meaning is too long"));
        }
        let (repository, approver) = (self.clone(), principal.clone());
        self.writer.decide(move |decision| {
            let row = decision.store.get(Family::Approvals, &WaitingRow::key(leaf))?;
            let row = WaitingRow::decode(&row.ok_or_else(ServerError::not_found)?)?;
            let approval = Approval {
                leaf: leaf_hash(&repository.ledger.entry(leaf)?),
                origin: repository.ledger.origin(),
                verdict: answer.verdict,
                meaning: &answer.meaning,
            };
            repository.registry.refuse_fallen(&approver)?;
            let refuse = |message: &str| Err(ServerError::peer(ErrorCode::NotAllowed, message));
            if approval.verify(&approver.signing_key, &signature).is_err() {
                return refuse("the approval is not signed with your signing key");
            }
            let proposer_key = repository.registry.signing_key(&row.proposer);
            let is_same = approver.id == row.proposer || proposer_key == Some(approver.signing_key);
            if answer.verdict == Verdict::Approve && is_same {
                return refuse("another principal than the one who proposed it must approve");
            }
            let namespace = row.operation.namespace().unwrap_or(NamespaceId([0; 32]));
            decision.batch.delete(Family::Approvals, WaitingRow::key(leaf));
            let event = Event::Decided {
                proposal: leaf,
                verdict: answer.verdict,
                meaning: *blake3::hash(answer.meaning.as_bytes()).as_bytes(),
                signature,
            };
            let decided = decision.enter(approver.id, namespace, event);
            decision.state(decided, answer.meaning.as_bytes());
            if answer.verdict == Verdict::Reject {
                return Ok(Ok(Outcome { is_done: false, proposal: None }));
            }
            let carried = repository.check_fresh(decision, &row).and_then(|()| {
                decision.attempt(|decision| {
                    repository.carry_out(decision, &approver, leaf, row.operation)
                })
            });
            match carried {
                Ok(()) => Ok(Ok(Outcome { is_done: true, proposal: None })),
                Err(refused @ ServerError::Peer(_)) => {
                    let cause = match refused.refusal().code {
                        ErrorCode::Stale | ErrorCode::NotFound => ClosedCause::Stale,
                        _ => ClosedCause::Refused,
                    };
                    let event = Event::NotCarriedOut { proposal: leaf, cause };
                    decision.enter(approver.id, namespace, event);
                    // The refusal is entered, so it is an outcome, not an error.
                    Ok(Err(refused))
                }
                Err(error) => Err(error),
            }
        })?
    }

    /// Refuses a proposal that has ended, whose proposer is gone, or whose state has changed.
    fn check_fresh(&self, decision: &Decision<'_>, row: &WaitingRow) -> Result<(), ServerError> {
        let stale = |message: &str| Err(ServerError::peer(ErrorCode::Stale, message));
        if row.expires_ms <= decision.now_ms {
            return stale("the proposal has ended; propose it again");
        }
        if self.registry.signing_key(&row.proposer).is_none() {
            return stale("whoever proposed it was revoked since");
        }
        if self.state_of(decision, &row.operation)? != row.state {
            return stale("what it is about has changed since; propose it again");
        }
        Ok(())
    }

    /// Digest of what an operation was proposed against.
    fn state_of(
        &self,
        decision: &Decision<'_>,
        operation: &Operation,
    ) -> Result<[u8; 32], ServerError> {
        Ok(match operation {
            Operation::ForgetGovernance { namespace, record } => {
                let namespace = self.namespace(namespace)?;
                let found = Found::look_up(decision.store, &namespace, record)?;
                blake3::hash(&found.row.encode()).into()
            }
            Operation::LowerPolicy { namespace, .. } => {
                self.namespace(namespace)?.row.policy.digest()
            }
            Operation::CreditOffTime { .. } | Operation::Thaw => decision.clock_digest(),
        })
    }

    fn carry_out(
        &self,
        decision: &mut Decision<'_>,
        approver: &Principal,
        leaf: u64,
        operation: Operation,
    ) -> Result<(), ServerError> {
        match operation {
            Operation::ForgetGovernance { namespace, record } => {
                self.forget_lifted(decision, (approver, leaf), &namespace, &record)
            }
            Operation::LowerPolicy { namespace, policy } => {
                let namespace = self.namespace(&namespace)?;
                self.write_policy(decision, approver.id, &namespace, policy)
            }
            Operation::CreditOffTime { seconds } => decision.credit_clock(approver.id, seconds),
            Operation::Thaw => decision.thaw_clock(approver.id),
        }
    }

    fn forget_lifted(
        &self,
        decision: &mut Decision<'_>,
        (approver, leaf): (&Principal, u64),
        namespace: &NamespaceId,
        record: &RecordDigest,
    ) -> Result<(), ServerError> {
        let namespace = self.namespace(namespace)?;
        let found = Found::look_up(decision.store, &namespace, record)?;
        match found.row.lock.kept_from_lift(decision.moment()) {
            Some(kept) => Err(refused_by(kept, &found.row.lock)),
            None => forget_found(decision, approver.id, &namespace, &found, leaf),
        }
    }
}
