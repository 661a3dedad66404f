//! Locks after the commit: the object-lock cases of the public `ceph/s3-tests` suite in our words,
//! the ones it lacks, holds, policies and classes, quotas, and what takes two principals.

use std::collections::BTreeMap;
use std::time::Duration;

use strongroom_client::connection::Body;
use strongroom_client::error::ClientError;
use strongroom_client::profile::Profile;
use strongroom_client::prune::Rules;
use strongroom_client::retention::{self, PolicyChange};
use strongroom_client::trust::ReadAccess;
use strongroom_protocol::entry::{ClosedCause, Entry, Event};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{NamespaceId, RecordDigest};
use strongroom_protocol::message::{
    ClockWish, HoldReason, LockState, Outcome, Retain, SizeClass, SnapshotPage,
};
use strongroom_protocol::policy::{AT_LEAST_FIVE_YEARS, EXPIRY_PLUS_TWO_YEARS, PERMANENT, Policy};
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::retention::{FOREVER, LockWanted, RetentionMode};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;

use crate::harness::{Actor, DAY, START_MS, TestServer, Tree, frames, label, refused_with};

const NOW: u64 = START_MS / 1000;
const DAY_SECONDS: u64 = 86_400;

/// A server with a namespace of each mode, and those who tend them.
struct Stage {
    server: TestServer,
    governance: Actor,
    compliance: Actor,
    officer: Actor,
    operator: Actor,
    sources: u32,
}

/// What a step gave: "ok", or the code of the refusal.
type Step = Result<LockState, ClientError>;

impl Stage {
    async fn start() -> Self {
        let server = TestServer::start_with(|config| {
            config.retention.mode = RetentionMode::Governance;
        })
        .await;
        let governance = server.writer("governed").await;
        let compliance = server.writer("strict").await;
        let officer = server.principal(None, Role::SecurityOfficer).await;
        let operator = server.principal(None, Role::Operator).await;
        let stage = Self { server, governance, compliance, officer, operator, sources: 0 };
        let change = PolicyChange { mode: Some(RetentionMode::Compliance), ..Default::default() };
        let access = stage.access(&stage.officer, "strict").await;
        let (_, outcome) = retention::change_policy(&access, change).await.unwrap();
        assert!(outcome.is_done, "a firmer policy needs nobody else");
        stage
    }

    /// The same people, and the server opened again on its folder.
    async fn reopen(
        folder: std::sync::Arc<tempfile::TempDir>,
        clock: std::sync::Arc<strongroom_server::clock::ManualClock>,
        (mut governance, mut compliance, mut officer, mut operator, sources): (
            Actor,
            Actor,
            Actor,
            Actor,
            u32,
        ),
    ) -> Self {
        let server = TestServer::open(folder, clock).await;
        for actor in [&mut governance, &mut compliance, &mut officer, &mut operator] {
            actor.connect = server.connect();
        }
        Self { server, governance, compliance, officer, operator, sources }
    }

    async fn access(&self, actor: &Actor, namespace: &str) -> ReadAccess {
        let mut profile = Profile::open(actor.profile.folder().clone()).unwrap();
        ReadAccess::with_server_profile(&mut profile, namespace, &actor.connect).await.unwrap()
    }

    /// A snapshot that is locked for 30 days.
    async fn snapshot(&mut self, mode: RetentionMode) -> (NamespaceId, RecordDigest) {
        self.sources += 1;
        let writer = match mode {
            RetentionMode::Governance => &self.governance,
            RetentionMode::Compliance => &self.compliance,
        };
        let source = format!("s{}", self.sources);
        let (record, _) = writer.snapshot(&source, &[source.as_bytes()]).await;
        (writer.namespace(), record.digest())
    }

    async fn retain(
        &self,
        (ns, record): (NamespaceId, RecordDigest),
        lock_wanted: LockWanted,
        mode: Option<RetentionMode>,
    ) -> Step {
        let wish = Retain { lock_wanted, mode };
        self.operator.client().json(&Route::Retain(ns, record), "", Some(&wish)).await
    }

    async fn hold(&self, (ns, record): (NamespaceId, RecordDigest), is_placed: bool) -> Step {
        let route = match is_placed {
            true => Route::PlaceHold(ns, record),
            false => Route::ReleaseHold(ns, record),
        };
        let reason = HoldReason { reason: "court case 7".into() };
        self.officer.client().json(&route, "", Some(&reason)).await
    }

    async fn forget(&self, (ns, record): (NamespaceId, RecordDigest)) -> Result<(), ClientError> {
        let route = Route::Forget(ns, record);
        self.operator.client().request_once(&route, "", Body::empty()).await.map(drop)
    }

    /// Proposes to lift governance and lets the operator approve.
    async fn lift(&self, (ns, record): (NamespaceId, RecordDigest)) -> Result<(), ClientError> {
        let route = Route::Lift(ns, record);
        let outcome: Outcome = self.officer.client().json(&route, "", None::<&()>).await?;
        let Some(proposal) = outcome.proposal else { return Ok(()) };
        self.decide(&self.operator, proposal, Verdict::Approve).await.map(drop)
    }

    async fn decide(
        &self,
        actor: &Actor,
        proposal: u64,
        verdict: Verdict,
    ) -> Result<Outcome, ClientError> {
        let (client, meaning) = (actor.client(), "looked at it".to_owned());
        let decided = retention::decide(&actor.profile, &client, proposal, verdict, meaning).await;
        decided.map(|(_, outcome)| outcome)
    }

    fn last_entry(&self) -> Entry {
        let ledger = self.server.repository.ledger();
        Entry::decode(&ledger.entry(ledger.head().size - 1).unwrap()).unwrap()
    }
}

fn word<T>(outcome: &Result<T, ClientError>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(error) => error.code().map_or("failed", ErrorCode::name),
    }
}

const GOVERNANCE: RetentionMode = RetentionMode::Governance;
const COMPLIANCE: RetentionMode = RetentionMode::Compliance;

/// The table of `docs/retention.md`: case of `ceph/s3-tests` (or our own, with a star), what must
/// come of it, what came of it.
#[tokio::test(flavor = "multi_thread")]
async fn object_lock_cases_of_s3_tests() {
    let mut stage = Stage::start().await;
    let mut table: Vec<(&str, &str, &str)> = Vec::new();
    policy_cases(&mut stage, &mut table).await;
    retention_cases(&mut stage, &mut table).await;
    hold_cases(&mut stage, &mut table).await;
    mode_cases(&mut stage, &mut table).await;
    own_cases(&mut stage, &mut table).await;
    for (case, expected, result) in &table {
        println!("| {case} | {expected} | {result} |");
    }
    for (case, expected, result) in &table {
        assert_eq!(expected, result, "{case}");
    }
    assert!(table.len() >= 35, "{} cases", table.len());
}

type Table<'a> = Vec<(&'a str, &'a str, &'a str)>;

async fn policy_cases(stage: &mut Stage, table: &mut Table<'_>) {
    let access = stage.access(&stage.officer, "strict").await;
    let set = async |change: PolicyChange| {
        word(&retention::change_policy(&access, change).await.map(|(_, outcome)| outcome))
    };
    let default = |days: u64| PolicyChange {
        default_seconds: Some(days * DAY_SECONDS),
        ..PolicyChange::default()
    };
    table.push(("put_obj_lock", "ok", set(default(31)).await));
    let route = Route::SetPolicy(stage.compliance.namespace());
    let raw = async |text: &str| {
        word(&stage.officer.client().request_once(&route, "", text.to_owned().into()).await)
    };
    let rule = |body: &str| format!("{{\"rule\": {body}}}");
    let bad_days = rule(
        r#"{"mode":"compliance","minimum_seconds":9,"default_seconds":5,"maximum_seconds":9}"#,
    );
    table.push(("put_obj_lock_invalid_days", "retention_out_of_policy", raw(&bad_days).await));
    let bad_years = rule(
        r#"{"mode":"compliance","minimum_seconds":0,"default_seconds":0,
            "maximum_seconds":18446744073709551614}"#,
    );
    table.push(("put_obj_lock_invalid_years", "retention_out_of_policy", raw(&bad_years).await));
    let bad_mode = bad_days.replace("compliance", "abc");
    table.push(("put_obj_lock_invalid_mode", "bad_request", raw(&bad_mode).await));
    let both = bad_days.replace("\"mode\"", "\"days\":1,\"mode\"");
    table.push(("put_obj_lock_with_days_and_years", "bad_request", raw(&both).await));
    table.push(("put_obj_lock_invalid_status", "bad_request", raw("{}").await));
    let unknown = Route::SetPolicy(NamespaceId([9; 32]));
    let outcome = stage.officer.client().request_once(&unknown, "", bad_days.into()).await;
    table.push(("put_obj_lock_invalid_bucket", "not_found", word(&outcome)));
    let policy: Policy = retention::policy(&access).await.unwrap();
    assert_eq!(policy.rule.default_seconds, 31 * DAY_SECONDS);
    table.push(("get_obj_lock", "ok", word(&retention::policy(&access).await)));
    let outcome: Result<Policy, _> =
        stage.officer.client().json(&Route::Policy(NamespaceId([9; 32])), "", None::<&()>).await;
    table.push(("get_obj_lock_invalid_bucket", "not_found", word(&outcome)));
    let drop = stage.server.repository.drop_namespace(&label("strict"));
    assert!(drop.is_ok(), "an empty namespace can go");
    stage.compliance = stage.server.writer("strict2").await;
    let access = stage.access(&stage.officer, "strict2").await;
    let change = PolicyChange { mode: Some(COMPLIANCE), ..PolicyChange::default() };
    retention::change_policy(&access, change).await.unwrap();
}

async fn retention_cases(stage: &mut Stage, table: &mut Table<'_>) {
    use LockWanted::{Date, Period};
    let at = stage.snapshot(GOVERNANCE).await;
    let unknown = (NamespaceId([9; 32]), at.1);
    let days = |days: u64| Period(days * DAY_SECONDS);
    table.push(("put_obj_retention", "ok", word(&stage.retain(at, days(40), None).await)));
    let outcome = stage.retain(unknown, days(40), None).await;
    table.push(("put_obj_retention_invalid_bucket", "not_found", word(&outcome)));
    let route = Route::Retain(at.0, at.1);
    let body = r#"{"lock_wanted":3000000,"mode":"abc"}"#.to_owned();
    let outcome = stage.operator.client().request_once(&route, "", body.into()).await;
    table.push(("put_obj_retention_invalid_mode", "bad_request", word(&outcome)));
    let route = Route::Snapshots(at.0);
    let page: SnapshotPage = stage.operator.client().json(&route, "", None::<&()>).await.unwrap();
    assert_eq!(page.rows[0].lock.until_seconds, NOW + 40 * DAY_SECONDS);
    table.push(("get_obj_retention", "ok", "ok"));
    let outcome: Result<SnapshotPage, _> =
        stage.operator.client().json(&Route::Snapshots(unknown.0), "", None::<&()>).await;
    table.push(("get_obj_retention_invalid_bucket", "not_found", word(&outcome)));
    let date = Date(NOW + 50 * DAY_SECONDS);
    table.push(("get_obj_retention_iso8601", "ok", word(&stage.retain(at, date, None).await)));
    let other = (at.0, RecordDigest([7; 32]));
    table.push((
        "put_obj_retention_versionid",
        "not_found",
        word(&stage.retain(other, days(60), None).await),
    ));
    let own = stage.snapshot(GOVERNANCE).await;
    let outcome = stage.retain(own, days(200), None).await;
    table.push(("put_obj_retention_override_default_retention", "ok", word(&outcome)));
    let longer = stage.retain(at, days(60), None).await;
    table.push(("put_obj_retention_increase_period", "ok", word(&longer)));
    let shorter = stage.retain(at, days(59), None).await;
    table.push(("put_obj_retention_shorten_period", "shortens", word(&shorter)));
    table.push(("delete_object_with_retention", "locked", word(&stage.forget(at).await)));
    // Shortening is offered to nobody; what governance keeps is forgotten by two principals.
    table.push(("put_obj_retention_shorten_period_bypass", "ok", word(&stage.lift(at).await)));
    table.push(("delete_object_with_retention, bypass", "not_found", word(&stage.lift(at).await)));
    let past = stage.retain(own, Date(NOW), None).await;
    table.push(("* date now", "bad_date", word(&past)));
    let past = stage.retain(own, Date(1), None).await;
    table.push(("* date in the past", "bad_date", word(&past)));
    let far = stage.retain(own, days(200 * 365), None).await;
    table.push(("* beyond the maximum", "retention_out_of_policy", word(&far)));
}

async fn hold_cases(stage: &mut Stage, table: &mut Table<'_>) {
    let at = stage.snapshot(GOVERNANCE).await;
    let unknown = (NamespaceId([9; 32]), at.1);
    let invalid = stage.hold(unknown, true).await;
    table.push(("put_legal_hold_invalid_bucket", "not_found", word(&invalid)));
    let route = Route::PlaceHold(at.0, at.1);
    let body = r#"{"status":"abc"}"#.to_owned();
    let outcome = stage.officer.client().request_once(&route, "", body.into()).await;
    table.push(("put_legal_hold_invalid_status", "bad_request", word(&outcome)));
    let body = r#"{"reason":" "}"#.to_owned();
    let outcome = stage.officer.client().request_once(&route, "", body.into()).await;
    table.push(("* hold without a reason", "bad_request", word(&outcome)));
    let placed = stage.hold(at, true).await;
    table.push(("put_legal_hold", "ok", word(&placed)));
    assert!(placed.unwrap().lock.is_held);
    table.push(("get_legal_hold", "ok", word(&stage.hold(at, true).await)));
    table.push(("delete_object_with_legal_hold_on", "held", word(&stage.forget(at).await)));
    table.push(("* hold is not lifted by a bypass", "held", word(&stage.lift(at).await)));
    let extended = stage.retain(at, LockWanted::Period(70 * DAY_SECONDS), None).await;
    assert!(extended.as_ref().unwrap().lock.is_held);
    table.push(("* extending under a hold keeps both", "ok", word(&extended)));
    let released = stage.hold(at, false).await;
    assert_eq!(released.as_ref().unwrap().lock.until_seconds, NOW + 70 * DAY_SECONDS);
    table.push(("* release leaves the lock", "ok", word(&released)));
    table.push(("delete_object_with_legal_hold_off", "locked", word(&stage.forget(at).await)));
}

async fn mode_cases(stage: &mut Stage, table: &mut Table<'_>) {
    let at = stage.snapshot(GOVERNANCE).await;
    let until = LockWanted::Date(NOW + 30 * DAY_SECONDS);
    // S3 asks for the bypass permission even to make a lock firmer; here firmer is never refused.
    let firmer = stage.retain(at, until, Some(COMPLIANCE)).await;
    table.push(("changing_mode_from_governance_without_bypass", "ok", word(&firmer)));
    table.push((
        "changing_mode_from_governance_with_bypass",
        "locked",
        word(&stage.lift(at).await),
    ));
    let looser = stage.retain(at, until, Some(GOVERNANCE)).await;
    table.push(("changing_mode_from_compliance", "shortens", word(&looser)));
}

async fn own_cases(stage: &mut Stage, table: &mut Table<'_>) {
    let strict = stage.snapshot(COMPLIANCE).await;
    table.push(("* compliance with the bypass flag", "locked", word(&stage.lift(strict).await)));
    let held = stage.snapshot(COMPLIANCE).await;
    stage.hold(held, true).await.unwrap();
    let endless = stage.snapshot(GOVERNANCE).await;
    let days = |days: u64| Duration::from_secs(days * DAY_SECONDS);
    let forever = stage.retain(endless, LockWanted::Forever, None).await;
    table.push((
        "* for ever needs a rule that allows it",
        "retention_out_of_policy",
        word(&forever),
    ));
    stage.server.clock.advance(days(30) - Duration::from_secs(1));
    table.push(("* one second before the end", "locked", word(&stage.forget(strict).await)));
    stage.server.clock.advance(Duration::from_secs(1));
    table.push(("* at the end", "ok", word(&stage.forget(strict).await)));
    table.push(("* hold outlives retention", "held", word(&stage.forget(held).await)));
    let released = stage.hold(held, false).await;
    table.push(("* free after release", "ok", word(&released)));
    let again = stage.retain(held, LockWanted::Period(DAY_SECONDS), Some(GOVERNANCE)).await;
    table.push(("* a lock that has ended can be set anew, in any mode", "ok", word(&again)));
    table.push(("* and holds", "locked", word(&stage.forget(held).await)));
    let by_writer = stage
        .governance
        .client()
        .json::<_, LockState>(
            &Route::Retain(endless.0, endless.1),
            "",
            Some(&Retain { lock_wanted: LockWanted::Period(1), mode: None }),
        )
        .await;
    table.push(("* a backup client sets no retention", "not_allowed", word(&by_writer)));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_holds_and_policies_survive_a_restart() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    let until = LockWanted::Period(90 * DAY_SECONDS);
    stage.retain(at, until, None).await.unwrap();
    stage.hold(at, true).await.unwrap();
    let Stage { server, operator, officer, compliance, .. } = stage;
    let server = server.restart().await;
    let client = operator.profile.client(&server.connect()).unwrap();
    let page: SnapshotPage = client.json(&Route::Snapshots(at.0), "", None::<&()>).await.unwrap();
    let lock = page.rows[0].lock;
    assert!(lock.is_held && lock.mode == COMPLIANCE);
    assert_eq!(lock.until_seconds, NOW + 90 * DAY_SECONDS);
    let policy: Policy = client.json(&Route::Policy(at.0), "", None::<&()>).await.unwrap();
    assert_eq!(policy.rule.mode, COMPLIANCE);
    server.clock.advance(DAY * 1000);
    let forget = client.request_once(&Route::Forget(at.0, at.1), "", Body::empty()).await;
    refused_with(forget, ErrorCode::Held);
    drop((officer, compliance));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_two_takes_two_who_differ() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(GOVERNANCE).await;
    let route = Route::Lift(at.0, at.1);
    let propose = async || -> u64 {
        let outcome: Outcome = stage.officer.client().json(&route, "", None::<&()>).await.unwrap();
        assert!(!outcome.is_done);
        outcome.proposal.unwrap()
    };
    let proposal = propose().await;
    refused_with(
        stage.decide(&stage.officer, proposal, Verdict::Approve).await,
        ErrorCode::NotAllowed,
    );
    let auditor = stage.server.principal(None, Role::Audit).await;
    refused_with(stage.decide(&auditor, proposal, Verdict::Approve).await, ErrorCode::NotAllowed);
    let rejected = stage.decide(&stage.operator, proposal, Verdict::Reject).await.unwrap();
    assert!(!rejected.is_done);
    assert!(matches!(stage.last_entry().event, Event::Decided { verdict: Verdict::Reject, .. }));
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.is_err(), "closed");
    // What was extended since it was proposed is not lifted.
    let proposal = propose().await;
    stage.retain(at, LockWanted::Period(31 * DAY_SECONDS), None).await.unwrap();
    refused_with(stage.decide(&stage.operator, proposal, Verdict::Approve).await, ErrorCode::Stale);
    let closed = |leaf| Event::NotCarriedOut { proposal: leaf, cause: ClosedCause::Stale };
    assert_eq!(stage.last_entry().event, closed(proposal));
    assert!(stage.server.repository.proposals().unwrap().is_empty(), "an attempt closes it");
    // Nor does it outlive its proposer, or its time.
    let proposal = propose().await;
    stage.server.clock.advance(DAY * 8);
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.is_err());
    let proposal = propose().await;
    stage.server.repository.revoke(stage.officer.profile.settings().principal).unwrap();
    refused_with(stage.decide(&stage.operator, proposal, Verdict::Approve).await, ErrorCode::Stale);
    assert_eq!(stage.last_entry().event, closed(proposal));
    refused_with(stage.forget(at).await, ErrorCode::Locked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_carried_out_once_and_on_record() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(GOVERNANCE).await;
    let outcome: Outcome =
        stage.officer.client().json(&Route::Lift(at.0, at.1), "", None::<&()>).await.unwrap();
    let proposal = outcome.proposal.unwrap();
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.unwrap().is_done);
    let entry = stage.last_entry();
    assert!(matches!(entry.event, Event::Forgotten { record, .. } if record == at.1));
    assert_eq!(entry.actor, stage.operator.profile.settings().principal);
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.is_err());
    assert_eq!(stage.server.repository.status().unwrap().snapshot_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_policy_takes_two_and_touches_no_snapshot() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    let access = stage.access(&stage.officer, "strict").await;
    let change = PolicyChange {
        mode: Some(GOVERNANCE),
        minimum_seconds: Some(0),
        default_seconds: Some(DAY_SECONDS),
        ..PolicyChange::default()
    };
    let (_, outcome) = retention::change_policy(&access, change).await.unwrap();
    let proposal = outcome.proposal.expect("a lower policy is proposed");
    let before = retention::policy(&access).await.unwrap();
    assert_eq!(before.rule.mode, COMPLIANCE);
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.unwrap().is_done);
    let after = retention::policy(&access).await.unwrap();
    assert_eq!((after.rule.mode, after.rule.default_seconds), (GOVERNANCE, DAY_SECONDS));
    refused_with(stage.lift(at).await, ErrorCode::Locked);
    let new = stage.snapshot(COMPLIANCE).await;
    stage.lift(new).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_of_device_records() {
    let stage = Stage::start().await;
    let access = stage.access(&stage.officer, "strict").await;
    let class = |name: &str| Some(label(name));
    let sources = BTreeMap::from([
        (label("lots"), class(EXPIRY_PLUS_TWO_YEARS)),
        (label("complaints"), class(AT_LEAST_FIVE_YEARS)),
        (label("implants"), class(PERMANENT)),
    ]);
    let change = PolicyChange { sources, ..PolicyChange::default() };
    assert!(retention::change_policy(&access, change).await.unwrap().1.is_done);
    let writer = &stage.compliance;
    let commit = async |source: &str, lock_wanted| -> Result<RecordDigest, ClientError> {
        let session = writer.session_wanting(source, lock_wanted).await?;
        let tree = Tree::seal(&writer.keys(), &[source.as_bytes()]);
        session.upload(frames(&tree.envelopes())).await?;
        let record =
            writer.record(&session, source, &tree.root, |body| body.lock_wanted = lock_wanted);
        session.commit(record.encode().into()).await?;
        Ok(record.digest())
    };
    refused_with(commit("lots", LockWanted::Default).await, ErrorCode::RetentionOutOfPolicy);
    let expiry = NOW + 400 * DAY_SECONDS;
    let lots = commit("lots", LockWanted::Date(expiry)).await.unwrap();
    let complaints = commit("complaints", LockWanted::Period(1)).await.unwrap();
    let implants = commit("implants", LockWanted::Default).await.unwrap();
    let ends: Vec<u64> = {
        let route = Route::Snapshots(writer.namespace());
        let page: SnapshotPage =
            stage.officer.client().json(&route, "", None::<&()>).await.unwrap();
        let end = |record| page.rows.iter().find(|row| row.record == record).unwrap().lock;
        [lots, complaints, implants].map(|record| end(record).until_seconds).to_vec()
    };
    let year = 366 * DAY_SECONDS;
    assert_eq!(ends, [expiry + 2 * year, NOW + 5 * year, FOREVER]);
    stage.server.clock.advance(DAY * 365 * 150);
    for record in [lots, complaints] {
        stage.forget((writer.namespace(), record)).await.unwrap();
    }
    refused_with(stage.forget((writer.namespace(), implants)).await, ErrorCode::Locked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_stops_a_thief_and_is_seen() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    let access = stage.access(&stage.officer, "strict").await;
    let change = PolicyChange {
        quota_snapshots: Some(2),
        quota_bytes: Some(1 << 20),
        ..PolicyChange::default()
    };
    assert!(retention::change_policy(&access, change).await.unwrap().1.is_done);
    stage.snapshot(COMPLIANCE).await;
    let writer = &stage.compliance;
    let session = writer.session("more").await;
    let tree = Tree::seal(&writer.keys(), &[b"more"]);
    session.upload(frames(&tree.envelopes())).await.unwrap();
    let record = writer.record(&session, "more", &tree.root, |_| {});
    let refused = session.commit(record.encode().into()).await;
    refused_with(refused, ErrorCode::QuotaExceeded);
    let mut junk = vec![0; 900_000];
    blake3::Hasher::new().update(b"junk").finalize_xof().fill(&mut junk);
    let junk = Tree::seal(&writer.keys(), &[&junk, &junk[1..]]);
    let refused = session.upload(frames(&junk.envelopes())).await;
    refused_with(refused, ErrorCode::QuotaExceeded);
    // A higher quota takes two.
    let change = PolicyChange { quota_snapshots: Some(9), ..PolicyChange::default() };
    let (_, outcome) = retention::change_policy(&access, change).await.unwrap();
    stage.decide(&stage.operator, outcome.proposal.unwrap(), Verdict::Approve).await.unwrap();
    session.commit(record.encode().into()).await.unwrap();
    // What is forgotten makes room.
    stage.server.clock.advance(DAY * 31);
    stage.forget(at).await.unwrap();
    let namespace = stage.server.repository.registry().namespace(&writer.namespace()).unwrap();
    assert_eq!(stage.server.repository.usage(&namespace).unwrap().snapshots, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_a_live_lock_is_not_dropped() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    let name = label("strict");
    let refused = stage.server.repository.drop_namespace(&name).unwrap_err().to_string();
    assert!(refused.contains("cannot be dropped") && refused.contains("locked"), "{refused}");
    stage.server.clock.advance(DAY * 31);
    let refused = stage.server.repository.drop_namespace(&name).unwrap_err().to_string();
    assert!(refused.contains("prune"), "{refused}");
    stage.forget(at).await.unwrap();
    stage.server.repository.drop_namespace(&name).unwrap();
    // After it, everybody who belonged to it is revoked.
    assert!(matches!(stage.last_entry().event, Event::Revoked { .. }));
    let ledger = stage.server.repository.ledger();
    let size = ledger.head().size;
    let entry = |leaf| Entry::decode(&ledger.entry(leaf).unwrap()).unwrap().event;
    assert!((0..size).any(|leaf| matches!(entry(leaf), Event::NamespaceDropped)));
    // Its clients are nobody now, and its number is not used again.
    let refused = stage.compliance.session_of("db", SizeClass::Small).await;
    assert!(refused.is_err());
    let old = at.0;
    let server = stage.server.restart().await;
    assert!(server.repository.registry().namespace(&old).is_none());
    let fresh = server.writer("fresh").await;
    let number = server.repository.registry().namespace(&fresh.namespace()).unwrap().number;
    assert_eq!(number, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_forgets_only_what_is_free_and_says_why() {
    let mut stage = Stage::start().await;
    let writer = stage.server.writer("pruned").await;
    let mut records = Vec::new();
    for night in 0..40u32 {
        let (record, _) = writer.snapshot("db", &[&night.to_be_bytes()]).await;
        records.push(record.digest());
        stage.server.clock.advance(DAY);
    }
    let held = (writer.namespace(), records[0]);
    stage.hold(held, true).await.unwrap();
    stage.sources = 0;
    let access = stage.access(&stage.operator, "pruned").await;
    let rules = Rules { last: 3, ..Rules::default() };
    let prune = async |is_dry_run| {
        retention::prune(&access, &label("db"), &rules, (false, is_dry_run), |_| {}).await.unwrap()
    };
    let planned = prune(true).await;
    assert!(planned.forgotten.is_empty());
    // 30 days are locked; of the 10 free ones, one is held and three are the newest.
    let pruned = prune(false).await;
    assert_eq!(pruned.forgotten, records[1..8]);
    assert_eq!(pruned.choices.len(), 40);
    assert!(pruned.refused.is_empty());
    assert!(prune(false).await.forgotten.is_empty());
    let (db, none) = (label("db"), Rules::default());
    let refused = retention::prune(&access, &db, &none, (false, false), |_| {}).await;
    assert!(matches!(refused, Err(ClientError::Usage(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_clock_is_thawed_by_two() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    stage.server.clock.set_wall_ahead(DAY * 3650);
    let server = &stage.server;
    server.clock.advance(DAY * 40);
    refused_with(stage.forget(at).await, ErrorCode::ClockSuspect);
    let thaw = async || -> u64 {
        let client = stage.officer.client();
        retention::tend_clock(&client, ClockWish::Thaw).await.unwrap().proposal.unwrap()
    };
    let own = stage.decide(&stage.officer, thaw().await, Verdict::Approve).await;
    refused_with(own, ErrorCode::NotAllowed);
    refused_with(stage.forget(at).await, ErrorCode::ClockSuspect);
    let proposal = thaw().await;
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.unwrap().is_done);
    assert!(retention::clock_status(&stage.officer.client()).await.unwrap().frozen.is_none());
    stage.forget(at).await.unwrap();
    // Nothing is frozen now, so there is nothing to thaw.
    let proposal = thaw().await;
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_without_power_is_credited_by_two_and_not_beyond_what_was_lost() {
    let mut stage = Stage::start().await;
    let at = stage.snapshot(COMPLIANCE).await;
    let (folder, clock) = {
        let Stage { server, governance, compliance, officer, operator, sources } = stage;
        let kept = (governance, compliance, officer, operator, sources);
        let (folder, clock) = server.stop().await;
        // Off for 60 days, of which 14 are counted.
        clock.reboot(DAY * 60);
        stage = Stage::reopen(folder.clone(), clock.clone(), kept).await;
        (folder, clock)
    };
    refused_with(stage.forget(at).await, ErrorCode::Locked);
    let credit = async |days: u64| -> u64 {
        let wish = ClockWish::Credit(days * DAY_SECONDS);
        let client = stage.officer.client();
        retention::tend_clock(&client, wish).await.unwrap().proposal.unwrap()
    };
    let proposal = credit(50).await;
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.is_err());
    let status = retention::clock_status(&stage.officer.client()).await.unwrap();
    assert_eq!(status.lost_seconds / DAY_SECONDS, 46);
    let proposal = credit(20).await;
    assert!(stage.decide(&stage.operator, proposal, Verdict::Approve).await.unwrap().is_done);
    stage.forget(at).await.unwrap();
    drop((folder, clock));
}
