//! The command line of `strongroomd replica`.

use std::path::Path;

use clap::Subcommand;
use strongroom_protocol::id::Label;
use strongroom_protocol::limits::TOKEN_MAX_BYTES;

use crate::admin_messages::AdminRequest;
use crate::durable;
use crate::error::ServerError;
use crate::folder::Folder;
use crate::followers::{FollowState, PrimaryStatus};

/// What can be done about primaries.
#[derive(Debug, Subcommand)]
pub enum ReplicaCommand {
    /// Become a replica of the server that made the token
    Add {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// From `strongroomd token --role replica` there; @FILE reads it from a file
        #[arg(long)]
        token: String,
        /// What to call that server here [default: its first host name]
        #[arg(long, value_name = "NAME")]
        name: Option<Label>,
        /// Namespaces to follow, by their names there [default: all, also later ones]
        #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
        only: Vec<Label>,
        /// Follow nothing; ask that server only for envelopes that are damaged here
        #[arg(long, conflicts_with = "only")]
        repair_only: bool,
    },
    /// List the servers that are followed
    List {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
    },
    /// Say how following them goes
    Status {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
    },
    /// Ask a server nothing until `resume`
    Pause {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `replica list` prints it
        name: Label,
    },
    /// Go on; also after a refusal, which is then judged anew
    Resume {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `replica list` prints it
        name: Label,
    },
    /// Follow other namespaces of a server from now on; what was passed over is read again
    Only {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `replica list` prints it
        name: Label,
        /// Namespaces to follow, by their names there
        #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', required = true)]
        namespaces: Vec<Label>,
        /// Follow all of them, also later ones
        #[arg(long, conflicts_with = "namespaces", required = true)]
        all: bool,
    },
    /// Take a namespace again that was dropped on this server
    TakeAgain {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Name of the server, as `replica list` prints it
        name: Label,
        /// The namespace, by the name that it had here, or its id
        #[arg(long)]
        namespace: String,
    },
    /// Roll over the keys with which this server is enrolled there now
    Roll {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `replica list` prints it
        name: Label,
    },
    /// Follow a server no more; snapshots that came from it stay, with their locks
    Remove {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `replica list` prints it
        name: Label,
    },
}

impl ReplicaCommand {
    /// On which folder to ask what.
    pub fn request(self) -> Result<(Folder, AdminRequest), ServerError> {
        Ok(match self {
            Self::Add { folder, token, name, only, repair_only: is_repair_only } => {
                let token = text_of(&token)?;
                (folder, AdminRequest::ReplicaAdd { token, name, only, is_repair_only })
            }
            Self::List { folder } => (folder, AdminRequest::ReplicaList),
            Self::Status { folder } => (folder, AdminRequest::ReplicaStatus),
            Self::Pause { folder, name } => {
                (folder, AdminRequest::ReplicaPause { name, is_paused: true })
            }
            Self::Resume { folder, name } => {
                (folder, AdminRequest::ReplicaPause { name, is_paused: false })
            }
            // `--all` comes without names.
            Self::Only { folder, name, namespaces, all: _ } => {
                (folder, AdminRequest::ReplicaOnly { name, only: namespaces })
            }
            Self::TakeAgain { folder, name, namespace } => {
                (folder, AdminRequest::ReplicaTakeAgain { name, namespace })
            }
            Self::Roll { folder, name } => (folder, AdminRequest::ReplicaRoll { name }),
            Self::Remove { folder, name } => (folder, AdminRequest::ReplicaRemove { name }),
        })
    }
}

/// A primary in one line.
pub fn primary_line(primary: &PrimaryStatus) -> String {
    let only: Vec<&str> = primary.only.iter().map(Label::as_str).collect();
    let only = if primary.is_repair_only {
        "repairs only".into()
    } else if only.is_empty() {
        "all namespaces".into()
    } else {
        only.join(",")
    };
    format!("{:<24} {:<28} {only}\n", primary.name.as_str(), primary.addresses)
}

/// How following a primary goes; `instant` writes a time in milliseconds since 1970.
pub fn primary_text(primary: &PrimaryStatus, instant: fn(u64) -> String) -> String {
    let state = match primary.state {
        FollowState::Waiting => "not asked since the server was started",
        FollowState::InSync => "in sync",
        FollowState::CatchingUp => "catching up",
        FollowState::Failing => "FAILING: see trouble",
        FollowState::Unreachable => "UNREACHABLE",
        FollowState::Revoked => "REVOKED there: enrol again with a new token",
        FollowState::RepairOnly => "not followed; asked for what is damaged here",
        FollowState::Paused => "paused by command",
        FollowState::Refused => "REFUSED: it was rolled back or shows another history",
    };
    let lag = primary.lag_seconds.map_or_else(|| "unknown".into(), |lag| format!("{lag} s"));
    let contact = match primary.contact_ms {
        0 => "not since the start".into(),
        at => instant(at),
    };
    let mut text = format!(
        "{}\n  state            {state}\n  address          {}\n  lag              {lag}\n  \
         answered         {contact}\n  ledger entries   {} of {}\n  pending          {} \
         snapshots ({} MiB)\n  received         {} MiB\n  \
         repaired         {} envelopes\n",
        primary.name,
        primary.addresses,
        primary.followed_entries,
        primary.known_entries,
        primary.pending_snapshots,
        primary.pending_bytes >> 20,
        primary.received_bytes >> 20,
        primary.repaired_count,
    );
    for name in &primary.passed {
        text.push_str(&format!("  passed over      {name}: it was dropped here\n"));
    }
    if !primary.trouble.is_empty() {
        text.push_str(&format!("  trouble          {}\n", primary.trouble));
    }
    text + &keys_text(primary.keys_ms, &primary.keys_trouble, instant)
}

/// The keys with which this server is enrolled at another.
pub fn keys_text(made_ms: Option<u64>, trouble: &str, instant: fn(u64) -> String) -> String {
    let made = made_ms.map(|made_ms| format!("  keys made        {}\n", instant(made_ms)));
    let trouble = match trouble {
        "" => String::new(),
        trouble => format!("  KEYS             {trouble}\n"),
    };
    made.unwrap_or_default() + &trouble
}

/// A token as it was typed, or the contents of the file that `@FILE` names.
pub fn text_of(token: &str) -> Result<String, ServerError> {
    let Some(path) = token.strip_prefix('@') else { return Ok(token.to_owned()) };
    let bytes = durable::read(Path::new(path))?;
    let is_short = u32::try_from(bytes.len()).is_ok_and(|length| length <= 4 * TOKEN_MAX_BYTES);
    let text = String::from_utf8(bytes).ok().filter(|_| is_short);
    text.ok_or_else(|| ServerError::Operator(format!("{path}: not a token")))
}
