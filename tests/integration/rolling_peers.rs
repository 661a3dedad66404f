//! Keys with which servers are enrolled at each other: they roll over by themselves, by hand, at
//! each crash, in both directions; and what an auditor sees of keys that roll over.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use strongroom_client::audit;
use strongroom_client::error::ExitCode;
use strongroom_client::history;
use strongroom_protocol::entry::Event;
use strongroom_protocol::error::{ErrorBody, ErrorCode};
use strongroom_protocol::id::{NamespaceId, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::role::Role;
use strongroom_protocol::roll::{NewKeys, RollRequest, pin_of_point};
use strongroom_protocol::route::Route;
use strongroom_server::admin::execute;
use strongroom_server::admin_messages::{AdminAnswer, AdminRequest};
use strongroom_server::config::{Config, Period};
use strongroom_server::dial::{Dialled, dial};
use strongroom_server::error::ServerError;
use strongroom_server::feeds::FeedStatus;
use strongroom_server::followers::{FollowState, PrimaryStatus};
use strongroom_server::replica::keys::{PeerKeys, Whom};
use strongroom_server::tls::client_config;

use crate::feed::{feed, lent};
use crate::gc::noise;
use crate::harness::{Actor, DAY, TestServer, label, two_sites};
use crate::line::Line;
use crate::lying_server::Trick;
use crate::programs::{Served, json, text};
use crate::replica::{
    add, events, follow, quick, replica, snapshots, status, synced, token_at, until,
};
use crate::replica_hostile::{follow_captured, forge};
use crate::replica_line::impatient;

/// The keys that `server` has for its primary "office", or for "vault", which it lends to.
fn keys(server: &TestServer, is_feed: bool) -> PeerKeys {
    let (office, vault) = (label("office"), label("vault"));
    let whom = if is_feed { Whom::Feed(&vault) } else { Whom::Primary(&office) };
    PeerKeys::load(server.repository.folder(), whom).unwrap()
}

/// The roll-overs in a server's ledger: whose, and to which TLS key.
fn rolled(server: &TestServer) -> Vec<(PrincipalId, TlsKeyDigest)> {
    let event = |event| match event {
        Event::KeysRolled { principal, tls_key, .. } => Some((principal, tls_key)),
        _ => None,
    };
    events(&server.repository).into_iter().filter_map(event).collect()
}

/// How often a server has met a key that was rolled over.
fn alarms(server: &TestServer) -> u64 {
    let text = String::from_utf8(server.repository.metrics().render().unwrap()).unwrap();
    let is_it = |line: &&str| {
        line.starts_with("strongroom_requests_total{") && line.contains("\"keys_rolled\"")
    };
    let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    text.lines().filter(is_it).map(count).sum()
}

async fn connected(server: &TestServer, keys: &PeerKeys) -> Dialled {
    let pin = server.repository.keys().tls_key_digest();
    let tls = client_config(keys.certificate.clone(), keys.tls_key.clone_key(), pin).unwrap();
    dial(&server.address.to_string(), &tls).await.unwrap()
}

/// What a server answers on this connection; nothing where it does not refuse.
async fn answered(dialled: Dialled, route: Route, body: Vec<u8>) -> Option<ErrorCode> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(dialled.stream)).await.unwrap();
    tokio::spawn(driver);
    let request = Request::builder().method(route.method()).uri(route.path());
    let request = request.header(HOST, "server").body(Full::new(Bytes::from(body))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let is_done = answer.status().is_success();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (!is_done).then(|| serde_json::from_slice::<ErrorBody>(&body).unwrap().code)
}

async fn code(server: &TestServer, keys: &PeerKeys) -> Option<ErrorCode> {
    answered(connected(server, keys).await, Route::Checkpoint, Vec::new()).await
}

async fn command(server: &TestServer, request: AdminRequest) -> Result<AdminAnswer, ServerError> {
    let repository = server.repository.clone();
    tokio::task::spawn_blocking(move || execute(&repository, request)).await.unwrap()
}

async fn roll(server: &TestServer, is_feed: bool) -> Result<AdminAnswer, ServerError> {
    let request = match is_feed {
        true => AdminRequest::FeedRoll { name: label("vault") },
        false => AdminRequest::ReplicaRoll { name: label("office") },
    };
    command(server, request).await
}

async fn primary_status(server: &TestServer) -> PrimaryStatus {
    match command(server, AdminRequest::ReplicaStatus).await.unwrap() {
        AdminAnswer::Following { mut primaries } => primaries.remove(0),
        other => panic!("{other:?}"),
    }
}

async fn feed_status(server: &TestServer) -> FeedStatus {
    match command(server, AdminRequest::FeedList).await.unwrap() {
        AdminAnswer::Feeds { mut feeds } => feeds.remove(0),
        other => panic!("{other:?}"),
    }
}

/// Looks often, and lets keys of servers become a year old.
fn young(config: &mut Config) {
    quick(config);
    config.keys.peer_age = Period(365 * DAY);
}

/// A primary and a replica, in one of the two directions. The asking one has the keys.
struct Pair {
    primary: TestServer,
    replica: TestServer,
    writer: Actor,
    is_feed: bool,
}

impl Pair {
    async fn new(is_feed: bool) -> Self {
        let (primary, replica) =
            (TestServer::start_with(young).await, TestServer::start_with(young).await);
        let writer = primary.writer("erp").await;
        match is_feed {
            true => feed(&primary, &replica).await,
            false => follow(&replica, &primary, "office").await,
        }
        let pair = Self { primary, replica, writer, is_feed };
        pair.goes_on().await;
        pair
    }

    /// Whose keys these are.
    fn asking(&self) -> &TestServer {
        if self.is_feed { &self.primary } else { &self.replica }
    }

    /// Who knows them.
    fn answering(&self) -> &TestServer {
        if self.is_feed { &self.replica } else { &self.primary }
    }

    fn keys(&self) -> PeerKeys {
        keys(self.asking(), self.is_feed)
    }

    /// Where they lie.
    fn folder(&self) -> PathBuf {
        let folder = if self.is_feed { "keys/feeds/vault" } else { "keys/primaries/office" };
        self.asking().repository.folder().join(folder)
    }

    /// Demands that a new snapshot reaches the replica.
    async fn goes_on(&self) {
        let before = snapshots(&self.replica, &self.writer.namespace()).len();
        self.writer.snapshot("db", &[b"one more"]).await;
        synced(&self.replica, &self.primary, "office").await;
        assert_eq!(snapshots(&self.replica, &self.writer.namespace()).len(), before + 1);
    }

    /// Stops the asking one, does something to its files, and starts it again.
    async fn restarted(self, change: impl FnOnce()) -> Self {
        let Self { primary, replica, writer, is_feed } = self;
        let (primary, replica) = match is_feed {
            true => (again(primary, change).await, replica),
            false => (primary, again(replica, change).await),
        };
        Self { primary, replica, writer, is_feed }
    }
}

async fn again(server: TestServer, change: impl FnOnce()) -> TestServer {
    let at = server.address;
    let (folder, clock) = server.stop().await;
    change();
    let there = |config: &mut Config| {
        young(config);
        config.listen = at;
    };
    TestServer::open_with(folder, clock, there).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_servers_roll_over_by_themselves_and_the_old_ones_are_nobodys() {
    for is_feed in [false, true] {
        let pair = Pair::new(is_feed).await;
        let old = pair.keys();
        assert_eq!(rolled(pair.answering()), []);
        pair.asking().clock.advance(336 * DAY);
        until("rolled over", || rolled(pair.answering()).len() == 1).await;
        until("in use", || pair.keys().tls_key_digest != old.tls_key_digest).await;
        let new = pair.keys();
        let [(principal, tls_key)] = rolled(pair.answering()).try_into().unwrap();
        assert_eq!(tls_key, new.tls_key_digest);
        let known = pair.answering().repository.registry().principal(&tls_key).unwrap();
        assert_eq!(known.id, principal);
        // A primary that lends is known by its ledger key, which stays.
        let ledger_key = pair.asking().repository.keys().ledger_public();
        let signing_key = if is_feed { ledger_key } else { new.signing_key };
        assert_eq!(known.signing_key, signing_key);
        assert_ne!(new.signing_key, old.signing_key);
        pair.goes_on().await;
        assert_eq!(alarms(pair.answering()), 0);
        // It stays so after a start of both, and is not done again.
        let pair = pair.restarted(|| {}).await;
        pair.goes_on().await;
        assert_eq!((rolled(pair.answering()).len(), alarms(pair.answering())), (1, 0));
        let known = code(pair.answering(), &new).await;
        assert_eq!(known, is_feed.then_some(ErrorCode::NotAllowed));
        assert_eq!(code(pair.answering(), &old).await, Some(ErrorCode::KeysRolled));
        assert_eq!(alarms(pair.answering()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_servers_roll_over_by_command_and_lending_goes_on_with_them() {
    let pair = Pair::new(true).await;
    lent(&pair.primary, 4).await;
    let (old, before) = (pair.keys(), feed_status(&pair.primary).await);
    assert_eq!(before.keys_ms, Some(old.made_ms));
    pair.primary.clock.advance(DAY);
    assert!(matches!(roll(&pair.primary, true).await, Ok(AdminAnswer::PeerKeysRolled { .. })));
    let status_now = feed_status(&pair.primary).await;
    assert_eq!(
        (status_now.keys_ms, status_now.keys_trouble),
        (Some(pair.keys().made_ms), "".into())
    );
    // The primary's row there goes by the new key too, and connections are lent with it.
    assert!(status(&pair.replica, "office").addresses.starts_with("it dials; "));
    let row = pair.replica.repository.primaries().unwrap().remove(0);
    assert_eq!(row.tls_key, pair.keys().tls_key_digest);
    let pair = pair.restarted(|| {}).await;
    lent(&pair.primary, 4).await;
    pair.goes_on().await;
    assert_eq!(status(&pair.replica, "office").addresses, "it dials; 4 connections");
    assert_eq!((rolled(&pair.replica).len(), alarms(&pair.replica)), (1, 0));
    // At the replica there is nothing to roll over: it shows its listener's key.
    let refused = roll(&pair.replica, false).await.unwrap_err().to_string();
    assert!(refused.contains("strongroomd tls roll"), "{refused}");
    assert_eq!(pair.primary.repository.feeds().unwrap().len(), 1);
    assert_eq!(rolled(&pair.primary), []);
    let unknown = command(&pair.primary, AdminRequest::FeedRoll { name: label("other") }).await;
    assert!(unknown.is_err());
}

/// What a crash leaves of a roll-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    NextWritten,
    AnswerLost,
    OlderFilesLeft,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_each_step_of_a_roll_over_of_servers_is_finished_by_the_next_start() {
    for is_feed in [false, true] {
        for crash in [Crash::NextWritten, Crash::AnswerLost, Crash::OlderFilesLeft] {
            let pair = Pair::new(is_feed).await;
            let (folder, old) = (pair.folder(), pair.keys());
            let file = |name: &str| folder.join(name);
            let before = std::fs::read(file("keys.pem")).unwrap();
            if crash != Crash::NextWritten {
                roll(pair.asking(), is_feed).await.unwrap();
            }
            let data = pair.asking().repository.folder().to_owned();
            let crashed = || match crash {
                Crash::NextWritten => {
                    let (office, vault) = (label("office"), label("vault"));
                    let whom = if is_feed { Whom::Feed(&vault) } else { Whom::Primary(&office) };
                    PeerKeys::make_next(&data, whom, old.made_ms + 1).unwrap();
                }
                Crash::AnswerLost => {
                    std::fs::rename(file("keys.pem"), file("next.pem")).unwrap();
                    std::fs::write(file("keys.pem"), &before).unwrap();
                }
                Crash::OlderFilesLeft => {
                    for name in ["tls.key", "tls.crt", "signing.key"] {
                        std::fs::write(file(name), &before).unwrap();
                    }
                }
            };
            let pair = pair.restarted(crashed).await;
            pair.goes_on().await;
            let [(_, tls_key)] = rolled(pair.answering()).try_into().unwrap();
            assert_eq!(pair.keys().tls_key_digest, tls_key, "{crash:?}");
            for name in ["next.pem", "tls.key", "tls.crt", "signing.key"] {
                assert!(!file(name).exists(), "{crash:?}: {name}");
            }
            assert_eq!(alarms(pair.answering()), 0, "{crash:?}");
            assert_eq!(code(pair.answering(), &old).await, Some(ErrorCode::KeysRolled));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_answer_that_was_lost_nothing_is_asked_before_it_is_known_which_keys_hold() {
    for trick in [Trick::RollUnanswered, Trick::RollUnheard] {
        let (primary, replica, writer) = two_sites(impatient).await;
        writer.snapshot("db", &[b"one"]).await;
        let lies = follow_captured(&replica, &primary).await;
        synced(&replica, &primary, "office").await;
        let old = keys(&replica, false);
        replica.repository.pause_primary(&label("office"), true).unwrap();
        lies.play(Some(trick));
        let refused = roll(&replica, false).await.unwrap_err().to_string();
        assert!(refused.contains("no answer to roll_keys in time"), "{refused}");
        assert_eq!(rolled(&primary).len(), usize::from(trick == Trick::RollUnanswered));
        assert_eq!(keys(&replica, false).tls_key_digest, old.tls_key_digest);
        lies.play(None);
        // Both run on, and the follower finds it out: with its next look, without an alarm.
        replica.repository.pause_primary(&label("office"), false).unwrap();
        writer.snapshot("db", &[b"two"]).await;
        synced(&replica, &primary, "office").await;
        assert_eq!((rolled(&primary).len(), alarms(&primary)), (1, 0), "{trick:?}");
        assert_eq!(keys(&replica, false).tls_key_digest, rolled(&primary)[0].1);
        assert_eq!(code(&primary, &old).await, Some(ErrorCode::KeysRolled));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_roll_over_twice_leave_neither_of_the_older_ones() {
    for is_feed in [false, true] {
        let pair = Pair::new(is_feed).await;
        let first = pair.keys();
        roll(pair.asking(), is_feed).await.unwrap();
        let second = pair.keys();
        roll(pair.asking(), is_feed).await.unwrap();
        pair.goes_on().await;
        assert_eq!((rolled(pair.answering()).len(), alarms(pair.answering())), (2, 0));
        assert_eq!(code(pair.answering(), &second).await, Some(ErrorCode::KeysRolled));
        // Only the newest of the older keys is remembered.
        assert_eq!(code(pair.answering(), &first).await, Some(ErrorCode::UnknownPrincipal));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_roll_over_while_a_pull_runs_and_nothing_of_it_is_lost() {
    let (primary, replica, writer) = two_sites(quick).await;
    let line = Line::to(primary.address).await;
    add(&replica, &token_at(&primary, line.address), "office", &[]).await;
    synced(&replica, &primary, "office").await;
    line.rate(512 << 10);
    let pieces = noise(5, 200);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    writer.snapshot("db", &pieces).await;
    let mut keys_before = Vec::new();
    for round in 0..3u64 {
        until("under way", || status(&replica, "office").received_bytes > round << 17).await;
        keys_before.push(keys(&replica, false));
        roll(&replica, false).await.unwrap();
    }
    line.rate(0);
    synced(&replica, &primary, "office").await;
    assert_eq!(snapshots(&replica, &writer.namespace()).len(), 1);
    assert_eq!((rolled(&primary).len(), alarms(&primary)), (3, 0));
    let text = String::from_utf8(replica.repository.metrics().render().unwrap()).unwrap();
    assert!(!text.contains("strongroom_replica_failures_total{"), "no look failed");
    let newest = keys_before.pop().unwrap();
    assert_eq!(code(&primary, &newest).await, Some(ErrorCode::KeysRolled));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_of_a_pull_waits_for_its_answer_while_keys_roll_over() {
    let (primary, replica, writer) = two_sites(quick).await;
    let lies = follow_captured(&replica, &primary).await;
    synced(&replica, &primary, "office").await;
    lies.play(Some(Trick::SlowProof));
    for _ in 0..4 {
        until("asked", || lies.held.load(Ordering::SeqCst) > 0).await;
        roll(&replica, false).await.unwrap();
    }
    assert_eq!(lies.rolls_beside.load(Ordering::SeqCst), 0);
    writer.snapshot("db", &[b"one"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!((rolled(&primary).len(), alarms(&primary)), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_rolls_a_servers_keys_over_first_shuts_it_out_and_it_says_so() {
    let pair = Pair::new(false).await;
    let stolen = std::fs::read(pair.folder().join("keys.pem")).unwrap();
    // The thief rolls over; the owner still has the old keys.
    roll(&pair.replica, false).await.unwrap();
    let folder = pair.folder();
    let pair = pair.restarted(|| std::fs::write(folder.join("keys.pem"), &stolen).unwrap()).await;
    until("said", || status(&pair.replica, "office").state == FollowState::Revoked).await;
    assert!(status(&pair.replica, "office").trouble.contains("keys_rolled"));
    assert!(alarms(&pair.primary) > 0);
    let refused = roll(&pair.replica, false).await.unwrap_err().to_string();
    assert!(refused.contains("keys_rolled"), "{refused}");
    assert!(!pair.folder().join("next.pem").exists());
    let trouble = primary_status(&pair.replica).await.keys_trouble;
    assert!(trouble.contains("keys_rolled"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feeder_takes_no_other_signing_key_and_needs_its_ledger_key() {
    let pair = Pair::new(true).await;
    let (old, next) = (pair.keys(), other_keys());
    let ledger = &pair.primary.repository.keys().ledger;
    let thief = SigningKey::from_bytes(&[66; 32]);
    let registry = pair.replica.repository.registry();
    let principal = registry.principal(&old.tls_key_digest).unwrap();
    let known = principal.signing_key;
    for (what, by, to, is_taken) in [
        ("no ledger key", &thief, ledger, false),
        ("another signing key", ledger, &thief, false),
        ("both of another", &thief, &thief, false),
        ("as it must be", ledger, ledger, true),
    ] {
        let dialled = connected(&pair.replica, &old).await;
        let keys = NewKeys {
            ledger_key: pair.replica.repository.keys().ledger_public(),
            principal: principal.id,
            tls_key: pin_of_point(&next.point().unwrap()),
            signing_key: PublicKey(to.verifying_key().to_bytes()),
        };
        let mut request = RollRequest::vouched(&keys, next.point().unwrap(), by);
        request.prove_held(to, &dialled.exporter);
        request.tls_possession = next.sign(&request.tls_message(&dialled.exporter)).unwrap();
        let answer = answered(dialled, Route::RollKeys, request.encode()).await;
        let wanted = (!is_taken).then_some(ErrorCode::BadRequest);
        assert_eq!(answer, wanted, "{what}");
    }
    let now = registry.principal(&next.tls_key_digest).unwrap();
    assert_eq!((now.id, now.signing_key), (principal.id, known));
}

fn other_keys() -> PeerKeys {
    let folder = tempfile::tempdir().unwrap();
    PeerKeys::load_or_create(folder.path(), Whom::Primary(&label("other")), 1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_rolled_over_are_told_and_nothing_stops() {
    let pair = Pair::new(false).await;
    let (address, folder) = (pair.primary.address, pair.folder());
    // The primary knows another signing key: the replica's cannot vouch.
    let text = std::fs::read_to_string(folder.join("keys.pem")).unwrap();
    let signing = text.lines().find(|line| line.starts_with("signing ")).unwrap();
    let other = text.replace(signing, &format!("signing {}", "07".repeat(32)));
    std::fs::write(folder.join("keys.pem"), other).unwrap();
    pair.replica.clock.advance(400 * DAY);
    let metric = || {
        let text = String::from_utf8(pair.replica.repository.metrics().render().unwrap()).unwrap();
        let line = text.lines().find(|line| line.starts_with("strongroom_peer_key_age_seconds "));
        line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    };
    until("told", || metric() == 400 * DAY.as_secs()).await;
    let said = primary_status(&pair.replica).await;
    assert!(said.keys_trouble.contains("strongroomd replica roll office"), "{said:?}");
    assert!(said.keys_trouble.contains("bad_request"), "{said:?}");
    assert_eq!((said.state, rolled(&pair.primary)), (FollowState::InSync, vec![]));
    pair.goes_on().await;
    assert_eq!((pair.primary.address, folder.join("next.pem").exists()), (address, false));
    // Mended, it is done at the next try.
    std::fs::write(folder.join("keys.pem"), text).unwrap();
    pair.replica.clock.advance(Duration::from_secs(700));
    until("rolled over", || rolled(&pair.primary).len() == 1).await;
    until("told no more", || metric() < DAY.as_secs()).await;
    assert_eq!(primary_status(&pair.replica).await.keys_trouble, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_checks_that_every_key_was_vouched_for_by_the_one_before() {
    let pair = Pair::new(true).await;
    let (primary, replica) = (&pair.primary, &pair.replica);
    let mut writer = primary.writer("other").await;
    for _ in 0..2 {
        history::roll_now(&mut writer.profile, &writer.connect).await.unwrap();
    }
    primary.repository.roll_tls_key().unwrap();
    roll(primary, true).await.unwrap();
    let mut auditor = primary.principal(None, Role::Audit).await;
    let (connect, there) = (primary.connect(), replica.connect());
    let summary = audit::verify(&mut auditor.profile, &connect).await.unwrap();
    assert_eq!((summary.vouched_count, summary.tls_serial), (2, 2));
    // At the replica the primary is a feeder, whose ledger key vouches.
    let mut other = replica.principal(None, Role::Audit).await;
    let summary = audit::verify(&mut other.profile, &there).await.unwrap();
    assert_eq!((summary.vouched_count, summary.tls_serial), (1, 1));
    // Whoever has the ledger key alone writes an entry for a key of his own.
    let (tls_key, thief) = (TlsKeyDigest([7; 32]), SigningKey::from_bytes(&[66; 32]));
    let keys = NewKeys {
        ledger_key: primary.repository.keys().ledger_public(),
        principal: writer.profile.settings().principal,
        tls_key,
        signing_key: PublicKey(thief.verifying_key().to_bytes()),
    };
    let NewKeys { principal, signing_key, .. } = keys;
    let vouch = keys.vouch(&thief);
    let nowhere = NamespaceId([0; 32]);
    forge(primary, nowhere, Event::KeysRolled { principal, tls_key, signing_key, vouch });
    let error = audit::verify(&mut auditor.profile, &connect).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted);
    let says = error.to_string();
    assert!(says.contains("did not vouch") && says.contains(&principal.to_string()), "{says}");
    // At the other server a number is left out.
    forge(replica, nowhere, Event::TlsKeyRolled { tls_key, serial: 3 });
    let error = audit::verify(&mut other.profile, &there).await.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Untrusted);
    assert!(error.to_string().contains("number 3 of the server after number 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_only_primarys_keys_roll_over_too() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let token = token_at(&primary, primary.address);
    let wanted = strongroom_server::replica::enrol::NewPrimary {
        token: token.to_text(),
        name: Some(label("office")),
        only: Vec::new(),
        is_repair_only: true,
    };
    let (_stopper, stop) = strongroom_server::stop::signal();
    let repository: Arc<_> = replica.repository.clone();
    strongroom_server::replica::enrol::add(&repository, wanted, stop).await.unwrap();
    drop(repository);
    let old = keys(&replica, false);
    roll(&replica, false).await.unwrap();
    assert_eq!(rolled(&primary).len(), 1);
    until("goes on", || status(&replica, "office").state == FollowState::RepairOnly).await;
    assert_eq!((alarms(&primary), status(&replica, "office").trouble), (0, String::new()));
    assert_eq!(code(&primary, &old).await, Some(ErrorCode::KeysRolled));
}

/// Waits until the replica has all that the primary's ledger says; gives what it says of itself.
fn in_sync(replica: &Served) -> String {
    for _ in 0..600 {
        let said = json(&replica.command(&["replica", "status", "--json"]));
        if said["primaries"][0]["state"] == "in_sync" {
            return text(&replica.command(&["replica", "status"]).stdout);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never in sync: {}", text(&replica.command(&["replica", "status"]).stdout));
}

/// How often a key that was rolled over was shown to a server since it was started.
fn alarms_of(server: &Served) -> usize {
    let metrics = server.probe("/metrics").unwrap();
    metrics.lines().filter(|line| line.contains("code=\"keys_rolled\"")).count()
}

#[test]
fn servers_that_are_killed_while_their_keys_roll_over_go_on_without_an_alarm() {
    let (mut primary, mut replica) = (Served::start(), Served::start());
    let token = primary.token(None, "replica");
    let added = replica.command(&["replica", "add", "--token", &token, "--name", "office"]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    in_sync(&replica);
    let keys = replica.data().join("keys/primaries/office/keys.pem");
    let first = std::fs::read(&keys).unwrap();
    let (next, mut in_the_middle) = (keys.with_file_name("next.pem"), 0);
    for kill in 0..9u64 {
        let mut rolling = replica.prepared(&["replica", "roll", "office"]);
        let mut rolling = rolling.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !next.exists() && rolling.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(Duration::from_micros(kill * 500));
        match kill % 3 {
            2 => {
                assert_eq!(alarms_of(&primary), 0, "before kill {kill}");
                primary.signal(Signal::KILL);
                rolling.wait().unwrap();
                primary.serve();
            }
            _ => {
                replica.signal(Signal::KILL);
                // A command that found no server opens the folder itself.
                rolling.wait().unwrap();
                in_the_middle += u64::from(next.exists());
                replica.serve();
            }
        }
        in_sync(&replica);
        assert_eq!(alarms_of(&primary), 0, "after kill {kill}");
    }
    assert!(in_the_middle > 0, "no kill met a roll-over");
    // By command, while it runs and while it does not.
    let roll = |replica: &Served| {
        let done = replica.command(&["replica", "roll", "office"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    assert_eq!(roll(&replica), "office knows this server by new keys from now on\n");
    let second = std::fs::read(&keys).unwrap();
    replica.signal(Signal::TERM);
    roll(&replica);
    let third = std::fs::read(&keys).unwrap();
    assert!(first != second && second != third);
    replica.serve();
    let said = in_sync(&replica);
    assert!(said.contains("keys made ") && !said.contains("KEYS"), "{said}");
    assert_eq!(alarms_of(&primary), 0);
}
