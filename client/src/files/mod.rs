//! Trees of files: from folders to a catalogue and a data stream, and back.
//!
//! Backup: `walk` finds what is there, in the order of a catalogue; `describe` says what one file
//! is; `collect` reads them, one after the other, and writes the catalogue beside.
//!
//! Restore: `store` keeps a catalogue that was read; `select` chooses from it; `plant` makes the
//! files, below a folder that `confine` lets nothing leave, with the bytes where `spread` says;
//! `kept` knows what an earlier run left there; `restore` is all of it from beginning to end.
//!
//! `contents` lists a catalogue and compares two.
//!
//! A catalogue is written by whoever has a writer's key, and that machine may have been captured.
//! What a restore does with names, links and modes is in `docs/security.md`.

pub mod collect;
pub mod confine;
pub mod contents;
pub mod describe;
pub mod exclude;
pub mod kept;
pub mod plant;
pub mod restore;
pub mod select;
pub mod spread;
pub mod store;
pub mod walk;
