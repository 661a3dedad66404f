//! One open segment for each lifetime: apart on the disk, together in a seal.

use super::super::schema::Lifetime;
use super::*;

#[test]
fn lifetimes_lie_apart_and_one_seal_covers_them() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), options()).unwrap().0;
    let [short, medium, long] = Lifetime::ALL;
    for (lifetime, range) in [(short, 0..40), (long, 40..80), (short, 80..90), (medium, 90..99)] {
        let appended = store.append_for(NS, lifetime, envelopes(range)).unwrap();
        assert!(appended.iter().all(|answer| !answer.duplicate));
    }
    // What one lifetime has, another does not store again.
    let again = store.append_for(NS, medium, envelopes(0..99)).unwrap();
    assert!(again.iter().all(|answer| answer.duplicate));
    store.seal().unwrap();
    assert!(
        rows(&store, &envelopes(0..99))
            .iter()
            .all(|row| row.is_some_and(|row| row.place == Place::Segment))
    );
    let mut held: Vec<(u8, u32)> = store
        .catalogue()
        .unwrap()
        .iter()
        .map(|(_, row)| (row.retention_class, row.envelope_count))
        .collect();
    held.sort_unstable();
    assert_eq!(held, [(1, 50), (2, 9), (3, 40)]);
    assert_readable(&store, &envelopes(0..99));
}

#[test]
fn seals_beside_appends_of_every_lifetime_lose_nothing() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), options()).unwrap().0;
    std::thread::scope(|scope| {
        for (n, lifetime) in Lifetime::ALL.into_iter().enumerate() {
            let store = &store;
            scope.spawn(move || {
                for round in 0..30 {
                    let first = (n as u64 * 30 + round) * 10;
                    let batch = envelopes(first..first + 10);
                    store.append_for(NS, lifetime, batch.clone()).unwrap();
                    store.seal().unwrap();
                    assert!(
                        rows(store, &batch).iter().all(|row| row.is_some_and(|row| row.durable))
                    );
                }
            });
        }
    });
    assert_readable(&store, &envelopes(0..900));
}
