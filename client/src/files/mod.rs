//! Trees of files: from folders to a catalogue and a data stream, and back.
//!
//! Backup: `walk` finds what is there, in the order of a catalogue; `describe` says what one file
//! is; `collect` reads them, one after the other, and writes the catalogue beside.
//!
//! Restore: `store` keeps a catalogue that was read; `select` checks it and chooses from it;
//! `plant` makes the files, below a folder that `confine` lets nothing leave; `kept` knows what an
//! earlier run left there.
//!
//! A catalogue is written by whoever has a writer's key, and that machine may have been captured.
//! What a restore does with names, links and modes is in `docs/security.md`.

pub mod collect;
pub mod describe;
pub mod exclude;
pub mod store;
pub mod walk;
