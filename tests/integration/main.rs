//! All integration tests in one binary, because each further one would link RocksDB again.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod gc;
mod gc_crash;
mod harness;

mod access;
mod commit;
mod crash;
mod enrolment;
mod envelopes;
mod immutability;
mod lying_server;
mod programs;
mod trust;
