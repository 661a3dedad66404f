//! What a namespace is counted to hold. (`retention.rs` has what a quota refuses.)

use bytes::Bytes;

use crate::gc::{collect, forget, gc_config, noise, snapshot, sync_up, tree_of};
use crate::harness::{DAY, TestServer, Tree};

/// What a restart forgets of the running count, the next cycle counts: stored and not committed,
/// then quarantined, then reaped.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_namespace_holds_is_counted_anew_by_each_cycle() {
    let server = TestServer::start_with(gc_config).await;
    let writer = server.writer("erp").await;
    let kept = tree_of(&writer, &noise(1, 4));
    let record = snapshot(&writer, "db", &kept).await;
    let lost = tree_of(&writer, &noise(2, 9));
    sync_up(&writer.session("lost").await, &lost).await;
    let held = |server: &TestServer| {
        let namespace = server.repository.registry().namespace(&writer.namespace()).unwrap();
        server.repository.usage(&namespace).unwrap().bytes
    };
    let bytes = |tree: &Tree| tree.envelopes().iter().map(|e| e.len() as u64).sum::<u64>();
    let in_both = |envelope: &&Bytes| kept.envelopes().contains(*envelope); // the catalogue
    let shared = lost.envelopes().iter().filter(in_both).map(|e| e.len() as u64).sum::<u64>();
    server.repository.store().seal().unwrap();
    let before = held(&server);
    let server = server.restart_with(gc_config).await;
    assert!(held(&server) < before, "the restart forgot nothing: nothing is tested");
    collect(&server.repository).unwrap();
    assert_eq!(held(&server), before);
    server.clock.advance(DAY * 8);
    collect(&server.repository).unwrap();
    assert_eq!(held(&server), before - bytes(&lost) + shared);
    forget(&server.repository, &writer, &record);
    let listed = held(&server);
    collect(&server.repository).unwrap();
    assert_eq!(held(&server), listed, "what is quarantined is still held");
    assert_eq!(listed, bytes(&kept));
}
