//! Passphrases: from the terminal, not shown, or from the first line of a file.

use std::path::Path;

use zeroize::Zeroizing;

use crate::durable;
use crate::error::ClientError;

/// A shorter one is guessed.
const MIN_CHARACTERS: usize = 12;
const FILE_MAX_BYTES: u64 = 4096;

/// A passphrase for something new; asked for twice.
pub fn read_new(file: Option<&Path>) -> Result<Zeroizing<String>, ClientError> {
    let passphrase = match file {
        Some(path) => first_line(path)?,
        None => {
            let passphrase = ask("Passphrase: ")?;
            if *ask("The same again: ")? != *passphrase {
                return Err(ClientError::Usage("the two passphrases differ; try again".into()));
            }
            passphrase
        }
    };
    if passphrase.chars().count() < MIN_CHARACTERS {
        return Err(ClientError::Usage(format!(
            "a passphrase needs at least {MIN_CHARACTERS} characters: whoever gets the file can \
             guess as often as he likes; take five random words"
        )));
    }
    Ok(passphrase)
}

/// A passphrase for what is there.
pub fn read(file: Option<&Path>) -> Result<Zeroizing<String>, ClientError> {
    file.map_or_else(|| ask("Passphrase: "), first_line)
}

fn ask(prompt: &str) -> Result<Zeroizing<String>, ClientError> {
    let typed = rpassword::prompt_password(prompt).map(Zeroizing::new);
    typed.map_err(|error| {
        ClientError::file("read the passphrase (without a terminal: --passphrase-file)", error)
    })
}

fn first_line(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let bytes = Zeroizing::new(durable::read(path, FILE_MAX_BYTES)?);
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| ClientError::Usage(format!("{}: not UTF-8", path.display())))?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
