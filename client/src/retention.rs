//! Requests about what keeps snapshots: locks, holds, policies, proposals, the retention clock.

use std::collections::BTreeMap;

use serde::Serialize;
use strongroom_protocol::checkpoint::origin_of;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{Label, RecordDigest};
use strongroom_protocol::merkle::leaf_hash;
use strongroom_protocol::message::{
    ClockStatus, ClockWish, Decide, Forgotten, HexBytes, HoldReason, LockState, Outcome,
    ProposalRow, Retain,
};
use strongroom_protocol::policy::Policy;
use strongroom_protocol::proposal::{Approval, Verdict};
use strongroom_protocol::retention::{LockWanted, RetentionMode, RetentionRule};
use strongroom_protocol::route::Route;

use crate::error::ClientError;
use crate::profile::Profile;
use crate::prune::{Candidate, Choice, Rules, plan};
use crate::snapshot;
use crate::transport::{Body, Client, parse_json};
use crate::trust::ReadAccess;

/// What a policy should become; what is not named stays.
#[derive(Debug, Clone, Default)]
pub struct PolicyChange {
    /// Mode of new locks.
    pub mode: Option<RetentionMode>,
    /// Shortest lock, in seconds.
    pub minimum_seconds: Option<u64>,
    /// Lock for clients that ask for nothing, in seconds.
    pub default_seconds: Option<u64>,
    /// Longest lock, in seconds.
    pub maximum_seconds: Option<u64>,
    /// Sources and their class; no class takes a source out.
    pub sources: BTreeMap<Label, Option<Label>>,
    /// Bytes that the namespace may hold; 0 for no bound.
    pub quota_bytes: Option<u64>,
    /// Snapshots that it may hold; 0 for no bound.
    pub quota_snapshots: Option<u64>,
}

/// What became of a prune; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Every snapshot of the source and why it was kept; for no reason, it was to be forgotten.
    pub choices: Vec<Choice>,
    /// Snapshots that were forgotten.
    pub forgotten: Vec<RecordDigest>,
    /// Snapshots that the server kept all the same, with its reason.
    pub refused: Vec<(RecordDigest, String)>,
    /// Nothing was to be changed.
    pub is_dry_run: bool,
}

/// Extends a lock, or raises its mode.
pub async fn retain(
    access: &ReadAccess,
    name: &str,
    lock_wanted: LockWanted,
    mode: Option<RetentionMode>,
) -> Result<LockState, ClientError> {
    let found = snapshot::find(access, name).await?;
    let route = Route::Retain(access.namespace, found.snapshot);
    access.client.json(&route, "", Some(&Retain { lock_wanted, mode })).await
}

/// Places a hold, or releases it.
pub async fn hold(
    access: &ReadAccess,
    name: &str,
    is_placed: bool,
    reason: String,
) -> Result<LockState, ClientError> {
    let found = snapshot::find(access, name).await?;
    let route = match is_placed {
        true => Route::PlaceHold(access.namespace, found.snapshot),
        false => Route::ReleaseHold(access.namespace, found.snapshot),
    };
    access.client.json(&route, "", Some(&HoldReason { reason })).await
}

/// Forgets what governance keeps, as far as one principal can: it is proposed.
pub async fn lift(access: &ReadAccess, name: &str) -> Result<(RecordDigest, Outcome), ClientError> {
    let found = snapshot::find(access, name).await?;
    let route = Route::Lift(access.namespace, found.snapshot);
    Ok((found.snapshot, access.client.json(&route, "", None::<&()>).await?))
}

/// The policy of a namespace.
pub async fn policy(access: &ReadAccess) -> Result<Policy, ClientError> {
    access.client.json(&Route::Policy(access.namespace), "", None::<&()>).await
}

/// Changes the policy of a namespace; a lower one is proposed.
pub async fn change_policy(
    access: &ReadAccess,
    change: PolicyChange,
) -> Result<(Policy, Outcome), ClientError> {
    let mut policy = policy(access).await?;
    let RetentionRule { mode, minimum_seconds, default_seconds, maximum_seconds, .. } =
        &mut policy.rule;
    *mode = change.mode.unwrap_or(*mode);
    *minimum_seconds = change.minimum_seconds.unwrap_or(*minimum_seconds);
    *default_seconds = change.default_seconds.unwrap_or(*default_seconds);
    *maximum_seconds = change.maximum_seconds.unwrap_or(*maximum_seconds);
    for (source, class) in change.sources {
        match class {
            Some(class) => policy.sources.insert(source, class),
            None => policy.sources.remove(&source),
        };
    }
    policy.quota.bytes = change.quota_bytes.unwrap_or(policy.quota.bytes);
    policy.quota.snapshots = change.quota_snapshots.unwrap_or(policy.quota.snapshots);
    policy.check().map_err(|error| {
        ClientError::Usage(format!("{error}; or a source names a class that nobody defined"))
    })?;
    let outcome =
        access.client.json(&Route::SetPolicy(access.namespace), "", Some(&policy)).await?;
    Ok((policy, outcome))
}

/// Plans a prune of a source. `show` gets the plan before anything is forgotten.
pub async fn prune(
    access: &ReadAccess,
    source: &Label,
    rules: &Rules,
    (accepts_bursts, is_dry_run): (bool, bool),
    show: impl FnOnce(&[Choice]),
) -> Result<Pruned, ClientError> {
    if rules.is_empty() {
        return Err(ClientError::Usage(
            "no rule keeps anything: give at least one of --keep-last, --keep-daily, ...".into(),
        ));
    }
    let rows = snapshot::list_rows(access, Some(source)).await?;
    let mut candidates = Vec::with_capacity(rows.len());
    for row in &rows {
        let body = strongroom_protocol::record::RecordBody::decode(&row.body.0)?;
        candidates.push(Candidate {
            snapshot: row.record,
            principal: body.principal,
            committed_ms: row.committed_ms,
            kept: row.kept,
        });
    }
    let choices = plan(&candidates, rules, accepts_bursts);
    show(&choices);
    let mut pruned = Pruned { choices, forgotten: Vec::new(), refused: Vec::new(), is_dry_run };
    let chosen: Vec<RecordDigest> = pruned
        .choices
        .iter()
        .filter(|choice| choice.reasons.is_empty() && !is_dry_run)
        .map(|choice| choice.snapshot)
        .collect();
    for snapshot in chosen {
        let route = Route::Forget(access.namespace, snapshot);
        match access.client.request(&route, "", Body::empty()).await {
            Ok(answer) => {
                let forgotten: Forgotten = parse_json(&route, &answer)?;
                pruned.forgotten.push(forgotten.record);
            }
            // Somebody locked it since the list was made: that is what locks are for.
            Err(error @ ClientError::Server(_)) if !error.is_temporary() => {
                pruned.refused.push((snapshot, error.reason()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(pruned)
}

/// What waits for a second principal.
pub async fn proposals(client: &Client) -> Result<Vec<ProposalRow>, ClientError> {
    client.json(&Route::Proposals, "", None::<&()>).await
}

/// Approves or rejects a proposal, signed with the profile's own key.
pub async fn decide(
    profile: &Profile,
    client: &Client,
    proposal: u64,
    verdict: Verdict,
    meaning: String,
) -> Result<(ProposalRow, Outcome), ClientError> {
    let waiting = proposals(client).await?;
    let row = waiting.into_iter().find(|row| row.proposal == proposal).ok_or_else(|| {
        ClientError::Usage(format!("no proposal {proposal} waits; see: strongroom proposals"))
    })?;
    check_is_of_entry(&row)?;
    let origin = origin_of(&profile.settings().ledger_key);
    let leaf = leaf_hash(&row.entry.0);
    let approval = Approval { leaf, origin: &origin, verdict, meaning: &meaning };
    let signature = HexBytes(approval.sign(&profile.signing_key()?).to_vec());
    let answer = Decide { verdict, meaning: meaning.clone(), signature };
    let outcome = client.json(&Route::Decide(proposal), "", Some(&answer)).await?;
    Ok((row, outcome))
}

/// Sees to it that the operation which a person was shown is the one that the leaf is about: the
/// server could show one and have another approved.
fn check_is_of_entry(row: &ProposalRow) -> Result<(), ClientError> {
    let entry = Entry::decode(&row.entry.0)?;
    let is_same = match entry.event {
        Event::Proposed { operation, parameters, .. } => {
            operation == row.operation.code()
                && parameters == row.operation.digest()
                && entry.actor == row.proposer
        }
        _ => false,
    };
    if is_same {
        return Ok(());
    }
    Err(ClientError::Untrusted(
        "the server shows another operation than the one in its ledger: do not decide, and tell \
         whoever guards the server"
            .into(),
    ))
}

/// Where the retention clock stands, and why.
pub async fn clock_status(client: &Client) -> Result<ClockStatus, ClientError> {
    client.json(&Route::ClockStatus, "", None::<&()>).await
}

/// Proposes what the retention clock needs.
pub async fn tend_clock(client: &Client, wish: ClockWish) -> Result<Outcome, ClientError> {
    client.json(&Route::TendClock, "", Some(&wish)).await
}
