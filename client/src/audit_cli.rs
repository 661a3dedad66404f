//! The command line of `strongroom audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use strongroom_protocol::id::PublicKey;

/// `audit`.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Show the ledger's entries in plain words, proven to be what the server signed
    #[command(after_help = LOG_EXAMPLES)]
    Log(AuditLog),
    /// Read the whole ledger and recompute it from its entries
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify,
    /// Write a proof that a snapshot was committed and how it is locked, as one file
    #[command(after_help = PROVE_EXAMPLES)]
    Prove(AuditProve),
    /// Show the words that an entry holds the digest of: a reason, a meaning, what was proposed
    Statement {
        /// Number of the entry
        entry: u64,
    },
    /// Check such a file, without server and profile
    #[command(after_help = CHECK_EXAMPLES)]
    Check(AuditCheck),
}

const LOG_EXAMPLES: &str = "\
Examples:
  strongroom --profile audit audit log
  strongroom --profile audit audit log --from 120000 --json | jq .entries[].text

Needs a profile of role audit (strongroomd token --role audit). Exit code 0, and is_proven in the
object of --json, say that what was printed is all of the signed ledger from there on; with exit
code 5 or 10, believe none of it.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  strongroom --profile audit audit verify
  strongroom --profile audit --json audit verify

Exit codes: 0 all entries and tiles make the signed root and continue what was seen before,
5 an entry or tile was changed, 10 the ledger was rolled back or forked.";

const PROVE_EXAMPLES: &str = "\
Examples:
  strongroom --profile audit audit prove erp@latest --namespace erp --to snapshot.proof
  strongroom --profile audit audit prove 3fa9c2 --namespace erp --to snapshot.proof

The file is for people and for `strongroom audit check`. A snapshot that was forgotten is named by
its whole id.";

const CHECK_EXAMPLES: &str = "\
Examples:
  strongroom audit check snapshot.proof --ledger-key 5c1e...
  strongroom --json audit check snapshot.proof --ledger-key 5c1e...

Exit codes: 0 the file proves what it says, 5 it does not, or it is of another ledger. Without
--ledger-key, whoever made the file may have made the ledger too.";

/// `audit log`.
#[derive(Debug, Args)]
pub struct AuditLog {
    /// First entry to show, counted from 0
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub from: u64,
}

/// `audit prove`.
#[derive(Debug, Args)]
pub struct AuditProve {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Namespace of the snapshot, by name or id
    #[arg(long, value_name = "NAME|ID")]
    pub namespace: String,
    /// File to write; it must not be there yet
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

/// `audit check`.
#[derive(Debug, Args)]
pub struct AuditCheck {
    /// The proof
    pub file: PathBuf,
    /// The ledger's key, as you know it from elsewhere
    #[arg(long, value_name = "KEY")]
    pub ledger_key: Option<PublicKey>,
}
