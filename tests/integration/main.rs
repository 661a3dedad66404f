//! All integration tests in one binary, because each further one would link RocksDB again.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod gc;
mod gc_crash;
mod gc_damage;
mod gc_guards;
mod gc_kill;
mod harness;

mod access;
mod captured;
mod clock;
mod commit;
mod crash;
mod deployment;
mod drill;
mod enrolment;
mod envelopes;
mod feed;
mod immutability;
mod key_programs;
mod keys;
mod ledger;
mod line;
mod loss;
mod lying_server;
mod model;
mod programs;
mod promote;
mod public_verifier;
mod quota;
mod repair;
mod replica;
mod replica_hostile;
mod replica_kill;
mod replica_line;
mod replica_only;
mod retention;
mod scrub;
mod seed;
mod seed_kill;
mod ship;
mod standing;
mod trees;
mod trees_hostile;
mod trust;
