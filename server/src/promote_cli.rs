//! The command lines of `strongroomd promote` and `strongroomd demote`.
//!
//! The running server reads and writes no files for a command: the process of the command does,
//! with the rights of whoever typed it.

use std::path::{Path, PathBuf};

use clap::Args;
use strongroom_protocol::id::Label;
use strongroom_protocol::limits::DESCRIPTOR_MAX_BYTES;
use strongroom_protocol::message::HexBytes;
use strongroom_protocol::promotion::PromotionRequest;

use crate::admin_messages::{AdminAnswer, AdminRequest};
use crate::durable;
use crate::error::ServerError;
use crate::folder::Folder;
use crate::repository::descriptors::Move;

/// `promote`.
#[derive(Debug, Args)]
pub struct Promote {
    /// On which folder
    #[command(flatten)]
    pub folder: Folder,
    /// The namespace, by its name here
    #[arg(long, value_name = "NAME")]
    namespace: Label,
    /// Write the request that `strongroom key kit promote` takes
    #[arg(long, value_name = "FILE", required_unless_present = "descriptor")]
    request: Option<PathBuf>,
    /// Take the descriptor that `strongroom key kit promote` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "request")]
    descriptor: Option<PathBuf>,
}

/// `demote`.
#[derive(Debug, Args)]
pub struct Demote {
    /// On which folder
    #[command(flatten)]
    pub folder: Folder,
    /// The namespace, by its name here
    #[arg(long, value_name = "NAME")]
    namespace: Label,
    /// The descriptor that names another server
    #[arg(long, value_name = "FILE")]
    descriptor: PathBuf,
}

impl Promote {
    /// What to ask the server.
    pub fn request(&self) -> Result<AdminRequest, ServerError> {
        let namespace = self.namespace.clone();
        match &self.descriptor {
            None => Ok(AdminRequest::PromotionRequest { namespace }),
            Some(path) => moving(namespace, Move::Promote, path),
        }
    }

    /// Writes the request that was answered, where one was.
    pub fn finish(&self, answer: AdminAnswer) -> Result<AdminAnswer, ServerError> {
        let (AdminAnswer::PromotionRequest { request }, Some(path)) = (&answer, &self.request)
        else {
            return Ok(answer);
        };
        let said = PromotionRequest::decode(&request.0)?;
        let verified = said.verify().map_err(|error| ServerError::Bug(error.to_string()))?;
        let fail = |error| ServerError::file(format!("name {}", path.display()), error);
        durable::write(&std::path::absolute(path).map_err(fail)?, &request.0)?;
        Ok(AdminAnswer::RequestWritten {
            file: path.clone(),
            namespace: said.namespace_name,
            ledger_key: said.ledger_key,
            addresses: said.addresses,
            descriptor_version: verified.descriptor.contents().version,
            snapshots: said.snapshots,
        })
    }
}

impl Demote {
    /// What to ask the server.
    pub fn request(&self) -> Result<AdminRequest, ServerError> {
        moving(self.namespace.clone(), Move::Demote, &self.descriptor)
    }
}

fn moving(namespace: Label, wanted: Move, path: &Path) -> Result<AdminRequest, ServerError> {
    let fail = |error| ServerError::file(format!("read {}", path.display()), error);
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > u64::from(DESCRIPTOR_MAX_BYTES) {
        return Err(ServerError::Operator(format!(
            "{}: too long for a descriptor; name the file that `strongroom key kit promote` wrote",
            path.display()
        )));
    }
    let descriptor = HexBytes(durable::read(path)?);
    Ok(AdminRequest::MoveNamespace { namespace, wanted, descriptor })
}

/// What these commands are answered, for people.
pub fn moved_text(answer: &AdminAnswer) -> String {
    match answer {
        AdminAnswer::RequestWritten {
            file,
            namespace,
            ledger_key,
            addresses,
            descriptor_version,
            snapshots,
        } => format!(
            "request written to {}\n  namespace        {namespace}, {snapshots} snapshots here\n  \
             descriptor       version {descriptor_version}\n  this server      {addresses}\n  \
             ledger key       {ledger_key}\nNow, where the recovery kit is:\n  strongroom key kit \
             promote --kit KIT --request {} --out FILE\nIt shows the ledger key: it must be the \
             one above.\n",
            file.display(),
            file.display()
        ),
        AdminAnswer::Moved { namespace, wanted: Move::Promote, version } => format!(
            "version {version} of the descriptor of {namespace} is in force: this server takes \
             its backups\n"
        ),
        AdminAnswer::Moved { namespace, wanted: Move::Demote, version } => format!(
            "version {version} of the descriptor of {namespace} is in force: this server takes \
             no backups of it any more; what it has stays and can be read\n"
        ),
        // The others are printed by the caller.
        _ => String::new(),
    }
}
