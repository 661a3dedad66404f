//! `strongroomd`: a hardened repository that keeps what it cannot read.
//!
//! A request goes down this list, and imports go down it too:
//!
//! `run` -> `listener` -> `router` -> `auth` -> `handler` -> `repository` -> (`lock`, `ledger`,
//! `writer`, `session`, `registry`) -> `store` -> RocksDB
//!
//! `docs/architecture.md` has the map, the ranks and the invariants.

pub mod cli;
pub mod feed_cli;
pub mod promote_cli;
pub mod replica_cli;
pub mod run;
pub mod scrub_cli;
pub mod seed_cli;

pub mod admin;
pub mod admin_messages;
pub mod admin_text;
pub mod answering;
pub mod dial;
pub mod feed;
pub mod listener;
pub mod probes;
pub mod router;
pub mod stop;
pub mod successor;
pub mod tls;

pub mod admission;
pub mod auth;
pub mod handler;

pub mod gc;
pub mod replica;
pub mod repository;
pub mod scrub;
pub mod seed;

pub mod guards;
pub mod ledger;
pub mod lock;
pub mod readers;
pub mod registry;
pub mod retention_clock;
pub mod session;
pub mod writer;

pub mod damage;
pub mod noted;
pub mod pace;
pub mod pause;
pub mod principal_row;
pub mod replica_rows;
pub mod rows;
pub mod server_keys;
pub mod store;

pub mod budget;
pub mod hits;
pub mod refusals;
pub mod slow_peer;

pub mod clock;
pub mod clock_state;
pub mod config;
pub mod durable;
pub mod error;
pub mod feeds;
pub mod folder;
pub mod followers;
pub mod key_gates;
pub mod keyed_tasks;
pub mod lent;
pub mod metrics;
pub mod units;
