//! Which namespaces of a primary are followed, changed later; namespaces that were dropped on the
//! replica; and how fast it may fetch at which time of the day.

use std::time::Duration;

use strongroom_protocol::entry::Event;
use strongroom_protocol::message::SizeClass;
use strongroom_server::config::{Config, Size};
use strongroom_server::followers::FollowState;

use crate::gc::noise;
use crate::harness::{Actor, DAY, TestServer, label};
use crate::replica::{
    OFFICER, add, events, follow, quick, replica, snapshots, status, synced, token_at, until,
};

fn has(replica: &TestServer, actor: &Actor) -> usize {
    snapshots(replica, &actor.namespace()).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_namespaces_can_be_followed_later_and_nothing_old_happens_twice() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (erp, files, mail) =
        (primary.writer("erp").await, primary.writer("files").await, primary.writer("mail").await);
    let (record, _) = erp.snapshot("db", &[b"one"]).await;
    files.snapshot("home", &[b"one"]).await;
    mail.snapshot("box", &[b"one"]).await;
    let (namespace, record) = (erp.namespace(), record.digest());
    primary.repository.place_hold(&OFFICER, &namespace, &record, "audit".into()).unwrap();
    add(&replica, &token_at(&primary, primary.address), "office", &["erp"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!([has(&replica, &erp), has(&replica, &files), has(&replica, &mail)], [1, 0, 0]);
    replica.repository.release_hold(&OFFICER, &namespace, &record, "done".into()).unwrap();

    let office = label("office");
    let both = vec![label("erp"), label("files")];
    replica.repository.set_only(&office, both.clone()).unwrap();
    assert_eq!(status(&replica, "office").only, both);
    synced(&replica, &primary, "office").await;
    assert_eq!([has(&replica, &erp), has(&replica, &files), has(&replica, &mail)], [1, 1, 0]);
    // The hold that was released here is not placed again by reading its entry again.
    assert!(!snapshots(&replica, &namespace)[0].lock.is_held);

    // Narrower: what is here stays, nothing new comes.
    replica.repository.set_only(&office, vec![label("erp")]).unwrap();
    files.snapshot("home", &[b"two"]).await;
    erp.snapshot("db", &[b"two"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!([has(&replica, &erp), has(&replica, &files), has(&replica, &mail)], [2, 1, 0]);
    // All: also what was passed over meanwhile; and it stands after a restart.
    replica.repository.set_only(&office, Vec::new()).unwrap();
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    assert_eq!([has(&replica, &erp), has(&replica, &files), has(&replica, &mail)], [2, 2, 1]);
    assert!(!snapshots(&replica, &namespace)[0].lock.is_held);
    let own = events(&replica.repository);
    let set = own.iter().filter(|event| matches!(event, Event::FilterSet { .. })).count();
    assert_eq!(set, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_change_waits_until_the_first_is_read() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let erp = primary.writer("erp").await;
    primary.writer("files").await;
    erp.snapshot("db", &[b"one"]).await;
    add(&replica, &token_at(&primary, primary.address), "office", &["erp"]).await;
    synced(&replica, &primary, "office").await;
    let office = label("office");
    replica.repository.pause_primary(&office, true).unwrap();
    let wider = |name: &str| replica.repository.set_only(&office, vec![label("erp"), label(name)]);
    wider("files").unwrap();
    let refused = wider("mail").unwrap_err().to_string();
    assert!(refused.contains("try again when"), "{refused}");
    assert_eq!(status(&replica, "office").only, [label("erp"), label("files")]);
    replica.repository.pause_primary(&office, false).unwrap();
    synced(&replica, &primary, "office").await;
    wider("mail").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_was_dropped_here_is_passed_over_until_it_is_taken_again() {
    let (primary, replica) = (TestServer::start().await, replica().await);
    let (erp, files) = (primary.writer("erp").await, primary.writer("files").await);
    let (record, _) = erp.snapshot("db", &[b"one"]).await;
    files.snapshot("home", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    synced(&replica, &primary, "office").await;
    replica.clock.advance(DAY * 31);
    replica.repository.tick();
    replica.repository.forget(&OFFICER, &erp.namespace(), &record.digest()).unwrap();
    replica.repository.drop_namespace(&label("erp")).unwrap();

    erp.snapshot("db", &[b"two"]).await;
    files.snapshot("home", &[b"two"]).await;
    synced(&replica, &primary, "office").await;
    let seen = status(&replica, "office");
    assert_eq!((seen.state, seen.pending_snapshots), (FollowState::InSync, 0), "{seen:?}");
    assert_eq!(seen.passed, [label("erp")]);
    assert_eq!([has(&replica, &erp), has(&replica, &files)], [0, 2]);
    let replica = replica.restart_with(quick).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(status(&replica, "office").passed, [label("erp")]);

    let office = label("office");
    assert!(replica.repository.take_again(&office, "mail").is_err());
    replica.repository.take_again(&office, "erp").unwrap();
    synced(&replica, &primary, "office").await;
    // All that the primary has of it, under a number of its own here.
    assert_eq!([has(&replica, &erp), has(&replica, &files)], [2, 2]);
    assert!(status(&replica, "office").passed.is_empty());
    let replica = replica.restart_with(quick).await;
    erp.snapshot("db", &[b"three"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(has(&replica, &erp), 3);

    // Dropped once more, it stays so.
    replica.clock.advance(DAY * 100);
    replica.repository.tick();
    for row in snapshots(&replica, &erp.namespace()) {
        replica.repository.forget(&OFFICER, &erp.namespace(), &row.record).unwrap();
    }
    replica.repository.drop_namespace(&label("erp")).unwrap();
    erp.snapshot("db", &[b"four"]).await;
    synced(&replica, &primary, "office").await;
    assert_eq!(status(&replica, "office").passed, [label("erp")]);
    assert_eq!(has(&replica, &erp), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_of_a_namespace_that_is_dropped_is_given_up() {
    let primary = TestServer::start().await;
    let full = |config: &mut Config| {
        quick(config);
        config.store.reserve = Size(1 << 60);
    };
    let replica = TestServer::start_with(full).await;
    let erp = primary.writer("erp").await;
    erp.snapshot("db", &[b"one"]).await;
    follow(&replica, &primary, "office").await;
    until("pending", || status(&replica, "office").pending_snapshots == 1).await;
    replica.repository.drop_namespace(&label("erp")).unwrap();
    synced(&replica, &primary, "office").await;
    assert_eq!(status(&replica, "office").pending_snapshots, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_table_says_how_fast_at_which_time_of_the_day() {
    let primary = TestServer::start().await;
    // The manual clocks begin at midnight.
    let table = |config: &mut Config| {
        quick(config);
        let text = "[replica]\nschedule = [\
                    { from = \"22:00\", to = \"06:00\", bytes_per_second = \"256KiB\" }]";
        config.replica.schedule = Config::parse(text).unwrap().replica.schedule;
    };
    let replica = TestServer::start_with(table).await;
    let writer = primary.writer("erp").await;
    let session = writer.session_of("db", SizeClass::Stream).await.unwrap();
    let pieces = noise(1, 200);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let (_, record) = writer.uploaded(&session, "db", &pieces).await;
    session.commit(record.encode().into()).await.unwrap();
    follow(&replica, &primary, "office").await;
    // 4 MB at a quarter of a MiB a second.
    until("begun", || status(&replica, "office").state == FollowState::CatchingUp).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(has(&replica, &writer), 0);
    assert!(status(&replica, "office").received_bytes < 2 << 20);
    let before = std::time::Instant::now();
    replica.clock.advance(Duration::from_secs(6 * 3600));
    synced(&replica, &primary, "office").await;
    assert_eq!(has(&replica, &writer), 1);
    assert!(before.elapsed() < Duration::from_secs(6), "{:?}", before.elapsed());
}
