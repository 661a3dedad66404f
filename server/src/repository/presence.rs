//! Whether a folder holds a whole repository, as far as names tell. Asked before anything in it is
//! opened or written: where half is missing, whoever opened the rest would make the other half
//! anew, and clear away what it does not know.

use std::path::Path;

use crate::error::ServerError;

/// What is there from the end of `init` on, and only ever replaced in one step.
const ALWAYS_THERE: [&str; 3] = ["HEAD", "meta/CURRENT", "chunks/CURRENT"];
/// The same, of what the owner was told to have a copy of: the ledger key, and the TLS key, in one
/// file from its first replacement on (`server_keys.rs`).
const LEDGER_KEY: [&str; 1] = ["keys/ledger.key"];
const FIRST_TLS_KEY: [&str; 2] = ["keys/tls.key", "keys/tls.crt"];
const LATER_TLS_KEY: &str = "keys/tls.pem";

/// Refuses a folder that holds no repository, or not all of one.
pub(super) fn require_whole(folder: &Path, identification: &Path) -> Result<(), ServerError> {
    let refuse = |path: &Path, words: &str| {
        Err(ServerError::Operator(format!("{}: missing{words}", path.display())))
    };
    if !is_there(identification)? {
        if is_there(&folder.join("keys"))? {
            let words = " beside a repository: restore it from your copy; or, if an `init` failed \
                         here, delete the folder";
            return refuse(identification, words);
        }
        let folder = folder.display();
        return Err(ServerError::Operator(format!(
            "{folder}: not a data folder; make one with: strongroomd init --data {folder} --host \
             NAME"
        )));
    }
    let is_later = is_there(&folder.join(LATER_TLS_KEY))?;
    let tls_key: &[&str] = if is_later { &[] } else { &FIRST_TLS_KEY };
    for path in LEDGER_KEY.iter().chain(tls_key).map(|name| folder.join(name)) {
        if !is_there(&path)? {
            return refuse(&path, ": restore it from your copy of keys/");
        }
    }
    for path in ALWAYS_THERE.map(|name| folder.join(name)) {
        if !is_there(&path)? {
            let words = ", so this is not a whole data folder: keep it as it is, and restore the \
                         whole folder or go on from a replica";
            return refuse(&path, words);
        }
    }
    Ok(())
}

/// What cannot be looked at is not missing.
fn is_there(path: &Path) -> Result<bool, ServerError> {
    let looked = path.try_exists();
    looked.map_err(|error| ServerError::file(format!("look for {}", path.display()), error))
}
