//! What client, server and replica agree on: formats, messages, limits.
//!
//! This crate holds no I/O, no async code, no clock and no secret key. Its files read in the order
//! in which a backup meets them:
//!
//! * `limits`, `codec`, `id`, `padding`, `signature`: the alphabet;
//! * `envelope`, `node`, `catalogue`: what a snapshot is made of (stored bytes, then plaintext);
//! * `descriptor`, `certificate`, `record`: who may speak for a namespace, and what it says;
//! * `retention`, `merkle`, `checkpoint`, `entry`, `receipt`: what a server decides and proves;
//! * `seed`: what it hands to another on a disk;
//! * `roll`, `vouch`: keys that take the place of older ones;
//! * `role`, `error`, `token`, `message`, `frame`, `route`: the wire.
//!
//! `docs/format.md` describes every format byte by byte, `docs/protocol.md` every route.

pub mod limits;

pub mod codec;
pub mod id;
pub mod padding;
pub mod signature;

pub mod catalogue;
pub mod envelope;
pub mod node;

pub mod certificate;
pub mod descriptor;
pub mod record;

pub mod checkpoint;
pub mod entry;
pub mod event;
pub mod merkle;
pub mod promotion;
pub mod receipt;
pub mod seed;
pub mod tile;

pub mod policy;
pub mod proposal;
pub mod retention;

pub mod error;
pub mod frame;
pub mod lend;
pub mod message;
pub mod role;
pub mod roll;
pub mod route;
pub mod token;
pub mod vouch;

pub mod fuzzing;
