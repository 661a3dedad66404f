//! The command line of `strongroom key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `key new`'s choices.
#[derive(Debug, Clone, Args)]
pub struct NewKeys {
    /// Average chunk in KiB (4 to 1024); fixed for the namespace
    #[arg(long, default_value_t = 64, value_name = "KIB")]
    pub chunk_kib: u32,
    /// zstd level (1 to 19), or 0 for no compression; fixed for the namespace
    #[arg(long, default_value_t = 1, value_name = "LEVEL")]
    pub zstd_level: u8,
    /// Further age recipient that can open the backups; may be repeated
    #[arg(long, value_name = "AGE1...")]
    pub recipient: Vec<String>,
}

/// `key`.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make the keys of a new namespace; they wait in the profile until `enroll`
    New(NewKeys),
    /// Work with a recovery kit
    #[command(subcommand)]
    Kit(KitCommand),
    /// Show or change who can open the snapshots that are made from now on
    #[command(subcommand)]
    Recipients(Recipients),
    /// Begin a new epoch, because the convergence secret was stolen; the next backup of each
    /// machine sends everything
    #[command(after_help = ROTATE_HELP)]
    Rotate(Signing),
    /// Give this machine the secret of the namespace's newest epoch
    Renew {
        /// Recovery kit; it is only read
        #[arg(long, value_name = "FILE")]
        kit: PathBuf,
    },
    /// Write this machine's convergence secret to a file under a passphrase, for a second machine
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Take the passphrase from the first line of this file
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take such a file in: before `enroll`, or on an enrolled machine after `key rotate`
    Import {
        /// The file
        file: PathBuf,
        /// Take the passphrase from the first line of this file
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Say how old this profile's TLS and signing keys are; roll them over if they are due
    #[command(after_help = ROLL_HELP)]
    Roll {
        /// Roll them over whether they are due or not
        #[arg(long)]
        now: bool,
    },
    /// Give a signed descriptor (from `--out`) to the server
    Publish {
        /// The descriptor
        file: PathBuf,
        /// Recovery kit; without it, the profile is used
        #[arg(long, value_name = "FILE")]
        kit: Option<PathBuf>,
    },
}

/// `key kit`.
#[derive(Debug, Subcommand)]
pub enum KitCommand {
    /// Does the kit still open the newest snapshot?
    Check {
        /// The kit, typed or scanned from the paper
        #[arg(long, value_name = "FILE")]
        kit: PathBuf,
    },
    /// Sign the descriptor that moves a namespace to the server which asks for it
    #[command(after_help = PROMOTE_HELP)]
    Promote {
        /// The kit, typed or scanned from the paper
        #[arg(long, value_name = "FILE")]
        kit: PathBuf,
        /// From `strongroomd promote --request FILE` on the server that is to take backups
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// Where to write the descriptor; it is no secret
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the kit anew, with today's floors and with the addresses of --server, if it is given
    Print {
        /// The kit, typed or scanned from the paper
        #[arg(long, value_name = "FILE")]
        kit: PathBuf,
        /// Where to write text and page
        #[arg(long, value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Split the kit into shares, some of which give it back
    #[command(after_help = SPLIT_HELP)]
    Split {
        /// The kit, typed or scanned from the paper
        #[arg(long, value_name = "FILE")]
        kit: PathBuf,
        /// How many shares to make (2 to 16)
        #[arg(long, value_name = "N")]
        shares: u8,
        /// How many of them are needed (at least 2)
        #[arg(long, value_name = "K")]
        threshold: u8,
        /// Where to write their texts and pages
        #[arg(long, value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Join shares to the kit
    Join {
        /// The shares, each typed or scanned into a file of its own
        #[arg(required = true, value_name = "SHARE")]
        shares: Vec<PathBuf>,
        /// Where to write the kit
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
}

/// `key recipients`.
#[derive(Debug, Subcommand)]
pub enum Recipients {
    /// Who can open the snapshots that are made now
    List {
        /// Recovery kit; without it, the profile is used
        #[arg(long, value_name = "FILE")]
        kit: Option<PathBuf>,
    },
    /// Let somebody open the snapshots that are made from now on
    #[command(after_help = RECIPIENTS_HELP)]
    Add {
        /// Public key
        #[arg(value_name = "AGE1...")]
        recipient: String,
        /// How to sign.
        #[command(flatten)]
        signing: Signing,
    },
    /// Seal the snapshots that are made from now on to somebody no more
    #[command(after_help = RECIPIENTS_HELP)]
    Remove {
        /// Public key
        #[arg(value_name = "AGE1...")]
        recipient: String,
        /// Also where it is the kit's own, or leaves one
        #[arg(long)]
        force: bool,
        /// How to sign.
        #[command(flatten)]
        signing: Signing,
    },
}

/// How the next descriptor is made and where it goes.
#[derive(Debug, Clone, Args)]
pub struct Signing {
    /// The kit, typed or scanned from the paper
    #[arg(long, value_name = "FILE")]
    pub kit: PathBuf,
    /// Write the descriptor here instead of giving it to the server; it is no secret
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The newest descriptor (a profile keeps it as `descriptor`): no server is asked
    #[arg(long, value_name = "FILE", requires = "out")]
    pub from: Option<PathBuf>,
}

const PROMOTE_HELP: &str = "\
It needs no network: carry the request to where the kit is, and the descriptor back. Compare the
ledger key that is shown with the one that `strongroomd promote` printed on the server: whoever can
swap the request could have another server named. Carry the descriptor to that server only:
  strongroomd promote --data DIR --namespace NAME --descriptor FILE";

const RECIPIENTS_HELP: &str = "\
It acts on snapshots that are made from then on. Older ones stay sealed to whom they were sealed to:
who is added does not open them, and who is removed still does.

Example, where the kit must stay offline:
  strongroom key recipients add AGE1... --kit KIT --from DESCRIPTOR --out NEXT
  strongroom key publish NEXT";

const ROTATE_HELP: &str = "\
It is for a stolen convergence secret (a stolen backup machine, or an export with its passphrase).
From then on the server takes no backups that are made with the old one. Each machine needs
`strongroom key renew --kit FILE`, or `strongroom key import` with a new export. Old snapshots stay
and open as ever. Revoke the stolen machine as well: `strongroomd principals revoke`.";

const ROLL_HELP: &str = "\
Each command that uses the profile rolls keys over by itself when they are due: a month before
`age_days` in the [keys] part of profile.toml (365). By hand it is for keys that somebody may have
seen. If the server says that they were rolled over and you did not: a thief was faster; have the
principal revoked (strongroomd principals revoke), and enrol in a new profile.";

const EXPORT_HELP: &str = "\
Example, on the second machine:
  strongroom key import FILE
  strongroom enroll --token TOKEN

Then remove the file from both. It opens no backup; with it and the passphrase a thief can test
guesses, and with a captured server make snapshots (docs/security.md).";

const SPLIT_HELP: &str = "\
With --shares 5 --threshold 3 there are five pages; any three give the kit back, two say nothing.
A kit that is still whole somewhere opens everything all the same: destroy it, or keep it safe.";
