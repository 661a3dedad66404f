//! What is decided while a request is on its way: a namespace dropped, a policy changed, a key
//! revoked. Whoever asked was authorised before; the decision looks again.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use strongroom_client::enroll::{EnrollOptions, enroll};
use strongroom_client::error::ClientError;
use strongroom_client::profile::{Profile, ProfileFolder};
use strongroom_client::retention;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::message::{ClockWish, HoldReason, LockState, Retain, SizeClass};
use strongroom_protocol::proposal::Verdict;
use strongroom_protocol::retention::{LockWanted, RetentionMode};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_server::clock::{Clock, ManualClock};
use strongroom_server::error::ServerError;
use strongroom_server::registry::Principal;
use strongroom_server::repository::{Repository, Witness};
use strongroom_server::store::observer::Step;

use crate::harness::{Actor, TestServer, Tree, label, refused_with, test_config};

const DAY: u64 = 24 * 3600;

type Act = Box<dyn FnOnce(&Arc<Repository>, &ManualClock) + Send>;

/// Does something once, while a segment is being sealed for a commit.
#[derive(Default)]
struct WhileSealing {
    repository: OnceLock<(Arc<Repository>, Arc<ManualClock>)>,
    act: Mutex<Option<Act>>,
}

impl Witness for WhileSealing {
    fn step(&self, step: Step) {
        let act = match step {
            Step::SegmentIngested => self.act.lock().unwrap().take(),
            _ => None,
        };
        if let (Some(act), Some((repository, clock))) = (act, self.repository.get()) {
            act(repository, clock);
        }
    }
}

fn principal_of(actor: &Actor, role: Role) -> Principal {
    let namespace = role.is_of_namespace().then(|| actor.namespace());
    let signing_key: PublicKey = actor.profile.signing_public_key().unwrap();
    Principal { id: actor.profile.settings().principal, role, namespace, signing_key }
}

fn code<T>(outcome: &Result<T, ServerError>) -> Option<ErrorCode> {
    outcome.as_ref().err().map(|error| error.refusal().code)
}

struct Committed {
    repository: Arc<Repository>,
    writer: Actor,
    outcome: Result<(), ServerError>,
    _folder: Arc<tempfile::TempDir>,
}

/// Commits a snapshot, and does `act` between its checks and its decision.
async fn commit_while(act: Act) -> Committed {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let session = writer.session_of("db", SizeClass::Stream).await.unwrap();
    let tree = Tree::seal(&writer.keys(), &[b"a"]);
    let record = writer.record(&session, "db", &tree.root, |_| {});
    let nonce = session.opened().nonce;
    drop(session);
    let (folder, clock) = server.stop().await;
    let witness = Arc::new(WhileSealing::default());
    let (data, time): (_, Arc<dyn Clock>) = (folder.path().join("data"), clock.clone());
    let (repository, _) =
        Repository::open(&data, test_config(|_| {}), time, witness.clone()).unwrap();
    let repository = Arc::new(repository);
    assert!(witness.repository.set((repository.clone(), clock.clone())).is_ok());
    let (asking, namespace) = (principal_of(&writer, Role::Backup), writer.namespace());
    let request = strongroom_protocol::message::OpenSession {
        source: label("db"),
        size_class: SizeClass::Stream,
        lock_wanted: LockWanted::Default,
    };
    let opened = repository.open_session(&asking, &namespace, request).unwrap();
    assert_ne!(opened.nonce, nonce);
    let record = writer.signed_again(record, opened.nonce, &tree.root);
    let envelopes: Vec<Bytes> = tree.envelopes();
    repository.upload(&asking, &namespace, &opened.session, envelopes).unwrap();
    *witness.act.lock().unwrap() = Some(act);
    let outcome = {
        let repository = repository.clone();
        let commit = move || {
            repository.commit(&asking, &namespace, &opened.session, record.encode()).map(drop)
        };
        tokio::task::spawn_blocking(commit).await.unwrap()
    };
    assert!(witness.act.lock().unwrap().is_none(), "nothing happened meanwhile");
    Committed { repository, writer, outcome, _folder: folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_into_a_namespace_that_is_dropped_meanwhile() {
    let Committed { repository, outcome, _folder, .. } = commit_while(Box::new(|repository, _| {
        repository.drop_namespace(&label("erp")).unwrap();
    }))
    .await;
    let refused = [Some(ErrorCode::UnknownPrincipal), Some(ErrorCode::SessionEnded)];
    assert!(refused.contains(&code(&outcome)), "{outcome:?}");
    assert_eq!(repository.status().unwrap().snapshot_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_counts_for_a_commit_that_was_on_its_way() {
    let Committed { repository, writer, outcome, _folder } =
        commit_while(Box::new(|repository, _| {
            let officer = Principal {
                id: strongroom_protocol::id::PrincipalId::LOCAL,
                role: Role::SecurityOfficer,
                namespace: None,
                signing_key: PublicKey([0; 32]),
            };
            let namespace = repository.registry().namespaces().remove(0);
            let mut policy = namespace.row.policy.clone();
            policy.rule.default_seconds = 300 * DAY;
            let id = namespace.row.namespace;
            assert!(repository.set_policy(&officer, &id, policy).unwrap().is_done);
        }))
        .await;
    outcome.unwrap();
    let page = repository.list(&writer.namespace(), None, 0).unwrap();
    let lock = page.rows[0].lock;
    assert_eq!(lock.until_seconds, repository.moment().retention_seconds + 300 * DAY);
    assert_eq!(lock.mode, RetentionMode::Compliance);
}

/// Its pins keep nothing any more, so what it counted on may be gone.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_by_a_session_that_ended_meanwhile() {
    let Committed { repository, writer, outcome, _folder } =
        commit_while(Box::new(|repository, clock| {
            clock.advance(Duration::from_secs(601));
            repository.tick();
        }))
        .await;
    assert_eq!(code(&outcome), Some(ErrorCode::SessionEnded));
    assert!(repository.list(&writer.namespace(), None, 0).unwrap().rows.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_since_decides_nothing() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let actor = server.principal(None, Role::SecurityOfficer).await;
    let (officer, repository) = (principal_of(&actor, Role::SecurityOfficer), &server.repository);
    let (namespace, snapshot) = (writer.namespace(), record.digest());
    repository.revoke(officer.id).unwrap();
    let size = repository.ledger().head().size;
    let wish = Retain { lock_wanted: LockWanted::Period(90 * DAY), mode: None };
    let policy = repository.policy(&namespace).unwrap();
    let unknown = Some(ErrorCode::UnknownPrincipal);
    assert_eq!(code(&repository.retain(&officer, &namespace, &snapshot, wish)), unknown);
    let reason = || "case".to_owned();
    assert_eq!(code(&repository.place_hold(&officer, &namespace, &snapshot, reason())), unknown);
    assert_eq!(code(&repository.release_hold(&officer, &namespace, &snapshot, reason())), unknown);
    assert_eq!(code(&repository.forget(&officer, &namespace, &snapshot)), unknown);
    assert_eq!(code(&repository.lift(&officer, &namespace, &snapshot)), unknown);
    assert_eq!(code(&repository.set_policy(&officer, &namespace, policy)), unknown);
    assert_eq!(code(&repository.tend_clock(&officer, ClockWish::Thaw)), unknown);
    assert_eq!(repository.ledger().head().size, size, "and nothing is entered");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_belonged_to_a_dropped_namespace_stays_out() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let token = server.token(Some("erp"), Role::Restore);
    server.repository.drop_namespace(&label("erp")).unwrap();
    let late = Actor::enroll(server.connect(), token, false).await;
    assert!(late.is_err(), "a token from before the drop enrols nobody");
    let server = server.restart().await;
    let client = writer.profile.client(&server.connect()).unwrap();
    let route = Route::Descriptor(writer.namespace());
    let asked = client.request_once(&route, "", strongroom_client::connection::Body::empty()).await;
    refused_with(asked, ErrorCode::UnknownPrincipal);
    let summaries = server.repository.principals().unwrap();
    assert!(summaries.iter().all(|known| known.revoked_ms != 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_withdraws_what_was_proposed_and_every_reason_is_kept() {
    let server = TestServer::start_with(|config| {
        config.retention.mode = RetentionMode::Governance;
    })
    .await;
    let writer = server.writer("erp").await;
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let officer = server.principal(None, Role::SecurityOfficer).await;
    let operator = server.principal(None, Role::Operator).await;
    let auditor = server.principal(None, Role::Audit).await;
    let (ns, snapshot) = (writer.namespace(), record.digest());
    let lift: strongroom_protocol::message::Outcome =
        officer.client().json(&Route::Lift(ns, snapshot), "", None::<&()>).await.unwrap();
    for (route, reason) in [
        (Route::PlaceHold(ns, snapshot), "case A"),
        (Route::PlaceHold(ns, snapshot), "case B"),
        (Route::ReleaseHold(ns, snapshot), "both are closed"),
    ] {
        let reason = HoldReason { reason: reason.into() };
        let _: LockState = officer.client().json(&route, "", Some(&reason)).await.unwrap();
    }
    let (client, proposal) = (operator.client(), lift.proposal.unwrap());
    let meaning = "checked".to_owned();
    let late =
        retention::decide(&operator.profile, &client, proposal, Verdict::Approve, meaning).await;
    assert!(matches!(late, Err(ClientError::Usage(_))), "it was withdrawn: {late:?}");
    let size = server.repository.ledger().head().size;
    let words = async |leaf: u64| {
        let body = strongroom_client::connection::Body::empty();
        let said = auditor.client().request_once(&Route::Statement(leaf), "", body).await.unwrap();
        String::from_utf8(said.to_vec()).unwrap()
    };
    assert_eq!(words(size - 3).await, "case A");
    assert_eq!(words(size - 2).await, "case B");
    assert_eq!(words(size - 1).await, "both are closed");
    assert!(words(proposal).await.contains(&snapshot.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_officer_cannot_fill_the_desk() {
    let server = TestServer::start().await;
    let first = server.principal(None, Role::SecurityOfficer).await;
    let second = server.principal(None, Role::SecurityOfficer).await;
    let propose =
        async |actor: &Actor| retention::tend_clock(&actor.client(), ClockWish::Credit(5)).await;
    for _ in 0..8 {
        propose(&first).await.unwrap();
    }
    refused_with(propose(&first).await, ErrorCode::TooMany);
    propose(&second).await.unwrap();
    server.repository.revoke(first.profile.settings().principal).unwrap();
    propose(&second).await.unwrap();
    let waiting = server.repository.proposals().unwrap();
    assert_eq!(waiting.len(), 2, "what a revoked officer proposed is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_signing_key_under_two_names_is_one_person() {
    let server = TestServer::start().await;
    let first = server.principal(None, Role::SecurityOfficer).await;
    let home = tempfile::tempdir().unwrap();
    let folder = ProfileFolder::new(home.path(), "default").unwrap();
    folder.make().unwrap();
    let key = "signing.key";
    std::fs::copy(first.profile.folder().path(key), folder.path(key)).unwrap();
    let options = EnrollOptions {
        token: server.token(None, Role::Operator),
        display_name: "the same again".into(),
        kit_folder: home.path().to_path_buf(),
        kit: None,
        connect: server.connect(),
        second_of: None,
    };
    enroll(&folder, options).await.unwrap();
    let second = Profile::open(folder).unwrap();
    let proposed = retention::tend_clock(&first.client(), ClockWish::Credit(5)).await.unwrap();
    let decide = async |profile: &Profile| {
        let client = profile.client(&server.connect()).unwrap();
        let (leaf, meaning) = (proposed.proposal.unwrap(), "checked".to_owned());
        retention::decide(profile, &client, leaf, Verdict::Approve, meaning).await
    };
    refused_with(decide(&second).await, ErrorCode::NotAllowed);
    // To somebody else the clock itself answers: nothing was lost that could be credited.
    let third = server.principal(None, Role::Operator).await;
    refused_with(decide(&third.profile).await, ErrorCode::BadRequest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_withdraws_what_was_proposed_about_it_and_about_no_other() {
    let server = TestServer::start().await;
    let repository = &server.repository;
    let actor = server.principal(None, Role::SecurityOfficer).await;
    let officer = principal_of(&actor, Role::SecurityOfficer);
    let (erp, crm) = (server.writer("erp").await, server.writer("crm").await);
    let change = |writer: &Actor, by_seconds: i64| {
        let mut policy = repository.policy(&writer.namespace()).unwrap();
        let default = &mut policy.rule.default_seconds;
        *default = default.checked_add_signed(by_seconds).unwrap();
        repository.set_policy(&officer, &writer.namespace(), policy).unwrap()
    };
    let (first, other) = (change(&erp, -1).proposal.unwrap(), change(&crm, -1).proposal.unwrap());
    let waiting = || {
        let rows = repository.proposals().unwrap().into_iter();
        rows.map(|row| row.proposal).collect::<Vec<u64>>()
    };
    assert_eq!(waiting(), [first, other]);
    assert!(change(&erp, 1).is_done);
    assert_eq!(waiting(), [other]);
    let again = change(&erp, -1).proposal.unwrap();
    repository.drop_namespace(&label("crm")).unwrap();
    assert_eq!(waiting(), [again], "those of a dropped namespace go with it");
}
