//! The command lines of `strongroomd export` and `strongroomd import`.

use std::path::{Path, PathBuf};

use clap::Args;
use strongroom_protocol::id::{Label, PublicKey};

use crate::admin_messages::{AdminAnswer, AdminRequest};
use crate::error::ServerError;
use crate::folder::Folder;
use crate::seed::check::check;

/// What `export` takes.
#[derive(Debug, Args)]
pub struct ExportArguments {
    #[command(flatten)]
    folder: Folder,
    /// Folder to write to; one that this server exported to before gets what is new
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Namespaces, with commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    namespace: Vec<Label>,
}

/// What `import` takes.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// Data folder of the repository
    #[arg(long, value_name = "DIR", env = "STRONGROOMD_DATA", required_unless_present = "check")]
    data: Option<PathBuf>,
    /// Folder that another server exported to
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// Ledger key of that server, as `strongroomd status` prints it there; not needed if this
    /// server follows it
    #[arg(long, value_name = "HEX")]
    ledger_key: Option<PublicKey>,
    /// What to call that server here [default: its name as a primary, or one made of its key]
    #[arg(long)]
    name: Option<Label>,
    /// Read and verify everything, and take nothing in; needs no data folder
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ExportArguments {
    /// On which folder to ask what.
    pub fn request(self) -> Result<(Folder, AdminRequest), ServerError> {
        let request = AdminRequest::Export { to: absolute(&self.to)?, only: self.namespace };
        Ok((self.folder, request))
    }
}

impl ImportArguments {
    /// On which folder to ask what; nothing, if the export is only to be checked.
    pub fn request(&self) -> Result<Option<(Folder, AdminRequest)>, ServerError> {
        let Some(data) = self.data.clone().filter(|_| !self.check) else { return Ok(None) };
        let request = AdminRequest::Import {
            from: absolute(&self.from)?,
            ledger_key: self.ledger_key,
            name: self.name.clone(),
        };
        Ok(Some((Folder { data, json: self.json }, request)))
    }

    /// Checks the export, and says what it holds.
    pub fn check(&self, say: fn(&str)) -> Result<(), ServerError> {
        let report = check(&self.from, self.ledger_key)?;
        if self.json {
            let text = serde_json::to_string(&report);
            say(&format!("{}\n", text.map_err(|error| ServerError::Bug(error.to_string()))?));
            return Ok(());
        }
        say(&format!(
            "ledger key       {}{}\nledger entries   {}\nnamespaces       {}\nsnapshots        {}\n\
             packs            {} ({} MiB)\nwhole and undamaged\n",
            report.ledger_key,
            if self.ledger_key.is_some() { "" } else { " (compare it with the server's)" },
            report.ledger_size,
            report.namespaces,
            report.snapshots,
            report.packs,
            report.bytes >> 20,
        ));
        Ok(())
    }
}

/// What `export` and `import` are answered, for people.
pub fn seed_text(answer: &AdminAnswer) -> String {
    match answer {
        AdminAnswer::Exported { report } => {
            let mut text = format!(
                "ledger key       {}\nledger entries   {}\nadded            {} snapshots ({} MiB)\n\
                 packs            {}\n",
                report.ledger_key,
                report.ledger_size,
                report.snapshots,
                report.bytes >> 20,
                report.packs,
            );
            for left_out in &report.left_out {
                text.push_str(&format!("LEFT OUT         {left_out}\n"));
            }
            text
        }
        AdminAnswer::Imported { report } => format!(
            "from             {}\nledger entries   {}\nnew here         {} snapshots\n",
            report.name, report.ledger_size, report.snapshots
        ),
        // The others are printed by the caller.
        _ => String::new(),
    }
}

/// The server that carries the command out may stand in another folder.
fn absolute(path: &Path) -> Result<PathBuf, ServerError> {
    std::path::absolute(path)
        .map_err(|error| ServerError::file(format!("find {}", path.display()), error))
}
