//! The command line of `strongroomd feed`.

use clap::Subcommand;
use strongroom_protocol::id::Label;

use crate::admin_messages::AdminRequest;
use crate::error::ServerError;
use crate::feeds::FeedStatus;
use crate::folder::Folder;
use crate::replica_cli::{keys_text, text_of};

/// What can be done about servers that this one dials, and that follow it.
#[derive(Debug, Subcommand)]
pub enum FeedCommand {
    /// Lend connections to the server that made the token; it follows this one over them
    Add {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// From `strongroomd token --role feeder` there; @FILE reads it from a file
        #[arg(long)]
        token: String,
        /// What to call that server here [default: its first host name]
        #[arg(long, value_name = "NAME")]
        name: Option<Label>,
    },
    /// List the servers that connections are lent to, and say how that goes
    List {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
    },
    /// Lend a server nothing until `resume`
    Pause {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `feed list` prints it
        name: Label,
    },
    /// Go on
    Resume {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `feed list` prints it
        name: Label,
    },
    /// Roll over the key with which this server dials there now
    Roll {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `feed list` prints it
        name: Label,
    },
    /// Lend a server nothing any more, and revoke it here; what it has stays there
    Remove {
        /// On which folder
        #[command(flatten)]
        folder: Folder,
        /// Its name, as `feed list` prints it
        name: Label,
    },
}

impl FeedCommand {
    /// On which folder to ask what.
    pub fn request(self) -> Result<(Folder, AdminRequest), ServerError> {
        Ok(match self {
            Self::Add { folder, token, name } => {
                (folder, AdminRequest::FeedAdd { token: text_of(&token)?, name })
            }
            Self::List { folder } => (folder, AdminRequest::FeedList),
            Self::Pause { folder, name } => {
                (folder, AdminRequest::FeedPause { name, is_paused: true })
            }
            Self::Resume { folder, name } => {
                (folder, AdminRequest::FeedPause { name, is_paused: false })
            }
            Self::Roll { folder, name } => (folder, AdminRequest::FeedRoll { name }),
            Self::Remove { folder, name } => (folder, AdminRequest::FeedRemove { name }),
        })
    }
}

/// How lending to a server goes; `instant` writes a time in milliseconds since 1970.
pub fn feed_text(feed: &FeedStatus, instant: fn(u64) -> String) -> String {
    let state = match (feed.is_revoked, feed.is_paused, feed.lent) {
        (true, ..) => "REVOKED here: remove it; to go on, add it again with a new token".into(),
        (false, true, _) => "paused by command".into(),
        (false, false, 0) => "NO CONNECTION is lent".into(),
        (false, false, lent) => format!("{lent} connections are lent"),
    };
    let last = match feed.lent_ms {
        0 => "not since the start".into(),
        at => instant(at),
    };
    let mut text = format!(
        "{}\n  state            {state}\n  address          {}\n  newest           {last}\n  \
         principal        {}\n",
        feed.name, feed.addresses, feed.principal
    );
    if !feed.trouble.is_empty() {
        text.push_str(&format!("  trouble          {}\n", feed.trouble));
    }
    text + &keys_text(feed.keys_ms, &feed.keys_trouble, instant)
}
