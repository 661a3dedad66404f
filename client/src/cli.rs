//! The command line of `strongroom`: what can be typed. What it does is in `commands`.

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use strongroom_protocol::id::Label;

use crate::arguments::{TokenWord, parse_percent, parse_range};
use crate::audit_cli::Audit;
use crate::key_cli::{Key, NewKeys};
use crate::options::{Global, Reading, TreeChoice, Until};
use crate::retention_cli::{Clock, Decision, Hold, PolicyCommand, Prune, Retain};

/// Streams backups into a hardened repository that cannot read them and will not delete them.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  strongroom setup --token srk1_...              enrol this machine; makes the recovery kit
  strongroom backup erp -- pg_dump -Fp erp       the dump is the command's standard output
  strongroom backup erp /var/backups/erp.sql --retain 5y --tag monthly
  strongroom list erp
  strongroom restore erp@latest --to erp.sql --kit recovery-kit-erp.txt

Exit codes: 0 done, 1 other, 2 usage, 3 incomplete, 4 refused by policy (locked, retention),
5 verification or trust failed, 6 not authorised, 7 temporary (run again), 8 repository full,
9 the dump command failed, 10 the server's ledger was rolled back or forked.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enrol this machine; where the token is for a new namespace, make its keys and kit first
    Setup(Setup),
    /// Enrol this machine with a token
    Enroll(Enroll),
    /// Keys of a namespace: make them, hand them on, change who opens its backups
    #[command(subcommand)]
    Key(Key),
    /// Back up files, folders, standard input, or the standard output of a command
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup(Backup),
    /// Back up each file that is put into a folder, at once, and remove it (log shipping)
    #[command(after_help = SHIP_EXAMPLES)]
    Ship(Ship),
    /// List snapshots, oldest first, or the files of one
    List(List),
    /// Tell which files differ between two snapshots
    Diff(Diff),
    /// Show one snapshot; with an identity, its sealed fields too
    Show(Show),
    /// Restore a snapshot, or a part of it, verified
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Restore),
    /// Prove that a snapshot restores, without writing it
    Verify(Verify),
    /// Forget a snapshot whose lock has ended
    Forget(Forget),
    /// Extend a snapshot's lock, or raise its mode (operators, security officers)
    Retain(Retain),
    /// Place or release a legal hold
    #[command(subcommand)]
    Hold(Hold),
    /// Show or set a namespace's retention policy and quota
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Forget what no rule keeps and no lock holds
    Prune(Prune),
    /// List what waits for a second principal
    Proposals,
    /// Approve what another principal proposed; it is carried out at once
    Approve(Decision),
    /// Reject a proposal
    Reject(Decision),
    /// The server's retention clock: status, credit of off-time, thaw
    #[command(subcommand)]
    Clock(Clock),
    /// Say how the server stands (operators, auditors)
    Status,
    /// Read, check and prove from the server's ledger
    #[command(subcommand)]
    Audit(Audit),
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  strongroom backup erp -- pg_dump -Fp erp
  pg_dump -Fp erp | strongroom backup erp --stdin     (a failing pg_dump goes unseen: prefer --)
  strongroom backup erp /var/backups/erp.sql --retain 90d --tag nightly
  strongroom backup files /srv/attachments /etc/erp --exclude '*.tmp' --exclude /srv/old
  strongroom backup erp --retain 1y --part db -- pg_dump -Fc -Z0 erp --part files /srv/attachments
  strongroom backup erp --part db --folder-command -- pg_dump -Fd -Z0 -j4 -f {} erp

One file is stored under its own name, folders under their whole paths. A pattern without / names
files and folders wherever they are, one with / the whole path; * stays within one name, ** does
not. What cannot be read, vanishes or changes meanwhile is told; the snapshot has the rest, and the
exit code is 3.

Only a command that exits with 0 makes a snapshot. Its standard input is empty.

Parts make one snapshot, or none. They are read in the order given: the dump first, then the files,
so that what the dump refers to is there; their names must rise in the alphabet. A part is NAME and
PATH... with --exclude, --one-file-system and --special of its own; or --stdin; or -- COMMAND, up to
the next --part. With --folder-command the command leaves its dump in a folder, which stands for {}
in it, is made below --scratch FOLDER (else TMPDIR or /var/tmp), and is removed afterwards. In the
snapshot a part is a folder of its name; a command's output is NAME/dump, and NAME stands for it.";

const SHIP_EXAMPLES: &str = "\
It runs until it is stopped. A file is taken when it was renamed into FOLDER, or has not changed
for two seconds; names that begin with a dot are left alone. It is removed after its snapshot is
committed and locked, and never before. A server that is down or full is waited for.

Example; PostgreSQL's archive_command for it is in docs/operations.md, 6:
  strongroom ship erp-log /var/spool/strongroom/erp-log --retain 90d";

const RESTORE_EXAMPLES: &str = "\
Examples:
  strongroom restore erp@latest --to erp.sql --kit recovery-kit-erp.txt
  strongroom restore 3fa9c2 --to - --identity key.txt | psql erp
  strongroom restore latest --to . --kit kit.txt --server replica.example:7443
  strongroom restore files@latest srv/attachments/2026 --to /tmp/back --kit kit.txt
  strongroom restore erp@latest db --to - --kit kit.txt | pg_restore -d erp   (a part of a set)

One file goes to --to, or into it where it is a folder; folders come back below it, under their
whole paths. A restore of folders that was broken off goes on when it is run again.

SNAPSHOT is SOURCE, SOURCE@latest, latest, an id, or at least 4 digits of one. A pipe gets bytes
as they are verified: if restore fails in the middle, what was piped is the start of the dump, and
the exit code is not 0.";

/// `enroll`.
#[derive(Debug, Clone, Args)]
pub struct Enroll {
    /// From `strongroomd token`; @FILE reads it from a file
    #[arg(long, value_name = "TOKEN")]
    pub token: TokenWord,
    /// Name of this machine for people [default: its host name]
    #[arg(long)]
    pub name: Option<String>,
    /// Folder for the recovery kit of a new namespace
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    pub kit_folder: PathBuf,
    /// Recovery kit of the namespace, for a further backup machine; it is only read
    #[arg(long, value_name = "FILE")]
    pub kit: Option<PathBuf>,
    /// Add the server that made the token to this profile, as the second of its namespace: a
    /// replica, which takes backups once it is promoted
    #[arg(long, conflicts_with_all = ["kit", "kit_folder"])]
    pub standby: bool,
}

/// `setup`.
#[derive(Debug, Clone, Args)]
pub struct Setup {
    /// How to enrol.
    #[command(flatten)]
    pub enroll: Enroll,
    /// How to make a new namespace.
    #[command(flatten)]
    pub keys: NewKeys,
}

/// `backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Name of what is backed up: a-z, 0-9, '.', '_', '-'
    pub source: Label,
    /// File to back up, or folders and files that become a tree
    #[arg(conflicts_with_all = ["stdin", "command"], value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Back up standard input
    #[arg(long, conflicts_with = "command")]
    pub stdin: bool,
    /// How long to lock the snapshot.
    #[command(flatten)]
    pub until: Until,
    /// Word to find the snapshot by; sealed; may be repeated
    #[arg(long)]
    pub tag: Vec<String>,
    /// What of folders is backed up.
    #[command(flatten)]
    pub tree: TreeChoice,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Begin a part of a set, one snapshot of all of them or none: NAME [--folder-command] --
    /// COMMAND, NAME PATH... or NAME --stdin. What follows belongs to parts, so options of the
    /// whole stand before; may be repeated
    #[arg(
        long,
        value_name = "NAME ...",
        num_args = 1..,
        allow_hyphen_values = true,
        conflicts_with_all = ["paths", "stdin", "command", "TreeChoice"]
    )]
    pub part: Vec<OsString>,
    /// Command and arguments whose standard output is the dump
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `ship`.
#[derive(Debug, Args)]
pub struct Ship {
    /// Name of what is backed up: a-z, 0-9, '.', '_', '-'
    pub source: Label,
    /// Folder into which files are put by renaming
    pub folder: PathBuf,
    /// Move files here after their snapshot, instead of removing them; on the same filesystem
    #[arg(long, value_name = "FOLDER")]
    pub done: Option<PathBuf>,
    /// Ship what is ready now, and end
    #[arg(long)]
    pub once: bool,
    /// How long to lock each snapshot.
    #[command(flatten)]
    pub until: Until,
    /// Word to find the snapshots by; sealed; may be repeated
    #[arg(long)]
    pub tag: Vec<String>,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only this source; or a snapshot, whose files are listed: SOURCE@latest, latest, an id
    #[arg(value_name = "SOURCE|SNAPSHOT")]
    pub name: Option<String>,
    /// Only what is at or below this path of the snapshot
    #[arg(value_name = "PATH-IN-SNAPSHOT")]
    pub path: Option<PathBuf>,
    /// Go on where a snapshot's chain of trust is broken
    #[arg(long)]
    pub unverified: bool,
    /// Where to read.
    #[command(flatten)]
    pub reading: Reading,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The older one: SOURCE@latest, latest, an id or its start
    #[arg(value_name = "SNAPSHOT")]
    pub one: String,
    /// The newer one
    #[arg(value_name = "SNAPSHOT")]
    pub other: String,
    /// Where to read.
    #[command(flatten)]
    pub reading: Reading,
    /// Go on where the chain of trust is broken
    #[arg(long)]
    pub unverified: bool,
}

/// `show`.
#[derive(Debug, Args)]
pub struct Show {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Where to read.
    #[command(flatten)]
    pub reading: Reading,
    /// Go on where the chain of trust is broken
    #[arg(long)]
    pub unverified: bool,
}

/// `restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Files or folders of the snapshot [default: all]
    #[arg(value_name = "PATH-IN-SNAPSHOT")]
    pub paths: Vec<PathBuf>,
    /// File or folder to restore to; - for standard output
    #[arg(long, value_name = "PATH|-")]
    pub to: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Only these bytes of one file or stream, the last one not included
    #[arg(long, value_parser = parse_range, value_name = "FROM:TO")]
    pub range: Option<Range<u64>>,
    /// Make pipes and devices too
    #[arg(long)]
    pub special: bool,
    /// Restore set-user-id bits and security attributes: only from machines that you trust
    #[arg(long)]
    pub same_permissions: bool,
    /// Where to read.
    #[command(flatten)]
    pub reading: Reading,
    /// Go on where the chain of trust is broken; chunks are checked all the same
    #[arg(long)]
    pub unverified: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Open a random share of the chunks only
    #[arg(long, value_parser = parse_percent, value_name = "PERCENT")]
    pub sample: Option<f64>,
    /// Where to read.
    #[command(flatten)]
    pub reading: Reading,
    /// Go on where the chain of trust is broken; chunks are checked all the same
    #[arg(long)]
    pub unverified: bool,
}

/// `forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// SOURCE, SOURCE@latest, latest, an id or its start
    pub snapshot: String,
    /// Propose to forget it although a governance lock lasts; another principal approves
    #[arg(long)]
    pub bypass_governance: bool,
    /// Where it is.
    #[command(flatten)]
    pub reading: Reading,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_backup_has_one_source() {
        assert!(parse("strongroom backup erp --stdin").is_ok());
        assert!(parse("strongroom backup erp a.sql --retain 5y --tag x --tag y").is_ok());
        assert!(parse("strongroom backup erp a b --exclude *.tmp --one-file-system").is_ok());
        let cli = parse("strongroom backup erp --json -- pg_dump -Fp --file=- erp").unwrap();
        let Command::Backup(backup) = cli.command else { panic!("not a backup") };
        assert_eq!(backup.command, ["pg_dump", "-Fp", "--file=-", "erp"]);
        let line = "strongroom backup erp --json --part db -- cat -n --part files /srv --quiet";
        let cli = parse(line).unwrap();
        assert!(cli.global.json && !cli.global.quiet);
        let Command::Backup(backup) = cli.command else { panic!("not a backup") };
        assert_eq!(
            backup.part.join(std::ffi::OsStr::new(" ")),
            "db -- cat -n --part files /srv --quiet"
        );
        for bad in [
            "strongroom backup",
            "strongroom backup ERP --stdin",
            "strongroom backup erp a.sql --stdin",
            "strongroom backup erp --stdin -- cat",
            "strongroom backup erp a.sql --retain 5",
            "strongroom backup erp --stdin --exclude x",
            "strongroom backup erp /srv --part db -- cat",
            "strongroom backup erp --exclude x --part files /srv",
            "strongroom backup erp --part=db -- cat",
            "strongroom backup erp --part",
            "strongroom diff erp@latest",
            "strongroom restore erp",
            "strongroom verify erp --sample 0",
            "strongroom list --kit a --identity b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
