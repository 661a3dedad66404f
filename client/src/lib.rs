//! The client of strongroom: streams dumps into a repository, write-only.
//!
//! Modules, in the order in which a backup meets them:
//!
//! * `error`, `clock`, `durable`, `budget`: what all others stand on;
//! * `keys`, `age_file`, `kit`, `shares`, `passphrase`, `namespace`: secrets, and how a namespace
//!   begins;
//! * `chunker`, `compressor`, `sealer`, `tree`, `cache`: from plaintext to envelopes;
//! * `tls`, `connection`, `follow`, `transport`: requests to a pinned server, whose key may change;
//! * `rolling`: own keys that take the place of older ones;
//! * `profile`, `history`, `receipts`, `trust`, `enroll`, `standby`, `promotion`: what a machine
//!   keeps and believes, how it becomes known to servers, and how a namespace moves to another;
//! * `progress`, `feed`, `files`, `running`, `scratch`, `parts`, `source`, `reader`,
//!   `cache_writer`, `pipeline`, `window`, `session`, `challenge`, `uploader`, `commit`, `backup`:
//!   making a snapshot;
//! * `fetch`, `unsealer`, `stream`, `landing`, `restore`, `snapshot`: listing snapshots and getting
//!   them back;
//! * `ledger_reader`, `ledger_words`, `proof_file`, `audit`: reading a ledger and proving from it;
//! * `offer`, `recipients`, `epoch`, `export`, `reprint`: the life of keys after that;
//! * `prune`, `retention`: what is kept, and for how long;
//! * `arguments`, `options`, `cli`, `audit_cli`, `key_cli`, `part_cli`, `retention_cli`, `output`,
//!   `audit_text`, `terminal`, `commands`, `file_commands`, `audit_commands`, `key_commands`,
//!   `retention_commands`: the command line;
//! * `fuzzing`: entry points for fuzzers, which nothing else calls.

pub mod budget;
pub mod clock;
pub mod durable;
pub mod error;

pub mod age_file;
pub mod keys;
pub mod kit;
pub mod namespace;
pub mod passphrase;
pub mod shares;

pub mod cache;
pub mod chunker;
pub mod compressor;
pub mod sealer;
pub mod tree;

pub mod connection;
pub mod follow;
pub mod rolling;
pub mod tls;
pub mod transport;

pub mod enroll;
pub mod epoch;
pub mod export;
pub mod history;
pub mod offer;
pub mod profile;
pub mod promotion;
pub mod receipts;
pub mod recipients;
pub mod reprint;
pub mod spool;
pub mod standby;
pub mod trust;

pub mod backup;
pub mod cache_writer;
pub mod challenge;
pub mod commit;
pub mod feed;
pub mod files;
pub mod parts;
pub mod pipeline;
pub mod progress;
pub mod reader;
pub mod running;
pub mod scratch;
pub mod session;
pub mod source;
pub mod uploader;
pub mod window;

pub mod fetch;
pub mod landing;
pub mod restore;
pub mod ship;
pub mod snapshot;
pub mod stream;
pub mod unsealer;

pub mod audit;
pub mod ledger_reader;
pub mod ledger_words;
pub mod proof_file;
pub mod prune;
pub mod retention;
pub mod vouches;

pub mod arguments;
pub mod audit_cli;
pub mod audit_commands;
pub mod audit_text;
pub mod cli;
pub mod commands;
pub mod file_commands;
pub mod key_cli;
pub mod key_commands;
pub mod options;
pub mod output;
pub mod part_cli;
pub mod retention_cli;
pub mod retention_commands;
pub mod terminal;

pub mod fuzzing;

#[cfg(test)]
mod secrecy;

#[cfg(test)]
mod vectors;
