//! age files: what is sealed to people and their recovery identities.
//!
//! A record's key block and a descriptor's wrapped secret are plain binary age files, so that the
//! public `age -d -i KEY` opens them without any of this code. Recipients are those that the `age`
//! crate reads without plugins: X25519 (`age1...`) and the hardware-token kinds `age1tag1...` and
//! `age1tagpq1...`, which age does not mix with others in one file where that would weaken one.
//! Plaintext is at most tens of kilobytes, and is wiped from memory when dropped.

use std::io::{Read, Write};

use age::secrecy::{ExposeSecret, SecretString};
use age::{Decryptor, Encryptor, Identity, Recipient, scrypt, tag, tagpq, x25519};
use strongroom_protocol::limits::DESCRIPTOR_MAX_BYTES;
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest plaintext that is taken from an age file: more than any format of ours holds.
const PLAINTEXT_MAX_BYTES: u64 = 4 * DESCRIPTOR_MAX_BYTES as u64;

/// scrypt's cost of a passphrase: 2^18, a second and 256 MiB, as the `age` program takes.
const WORK_FACTOR: u8 = 18;
/// A file that asks for more is not opened: it would stop the machine, not a thief.
const WORK_FACTOR_MAX: u8 = 20;

/// An age file cannot be made or opened.
#[derive(Debug, Error)]
pub enum AgeFileError {
    /// A text is not a recipient of a known kind. A secret key given by mistake is not repeated.
    #[error("not an age recipient: {0}; give a public key that starts with age1")]
    Recipient(String),
    /// A text is not an identity. The text is a secret and is not repeated.
    #[error("not an age identity: give the line that starts with AGE-SECRET-KEY-1")]
    Identity,
    /// age could not seal.
    #[error("age file: cannot be sealed to these recipients")]
    Seal(#[source] age::EncryptError),
    /// age could not open.
    #[error("age file: does not open with the given identity; use the recovery kit's")]
    Open(#[source] age::DecryptError),
    /// age could not open with the passphrase.
    #[error("age file: does not open with this passphrase; type it again, or make the file again")]
    Passphrase(#[source] age::DecryptError),
    /// The encrypted part is damaged or too long.
    #[error("age file: contents are damaged")]
    Contents(#[source] std::io::Error),
}

/// A new age file with `plaintext`, which each of `recipients` can open.
///
/// # Errors
/// When there is no recipient, one is of an unknown kind, or some cannot share a file.
pub fn seal_to(recipients: &[String], plaintext: &[u8]) -> Result<Vec<u8>, AgeFileError> {
    let recipients: Vec<_> =
        recipients.iter().map(|text| parse_recipient(text)).collect::<Result<_, _>>()?;
    let borrowed = recipients.iter().map(|recipient| recipient.as_ref() as &dyn Recipient);
    seal(borrowed, plaintext)
}

/// A new age file with `plaintext` under a passphrase.
///
/// # Errors
/// When age cannot seal.
pub fn seal_with_passphrase(passphrase: &str, plaintext: &[u8]) -> Result<Vec<u8>, AgeFileError> {
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase.to_owned()));
    recipient.set_work_factor(WORK_FACTOR);
    seal(std::iter::once(&recipient as &dyn Recipient), plaintext)
}

fn seal<'a>(
    recipients: impl Iterator<Item = &'a dyn Recipient>,
    plaintext: &[u8],
) -> Result<Vec<u8>, AgeFileError> {
    let encryptor = Encryptor::with_recipients(recipients).map_err(AgeFileError::Seal)?;
    let mut file = Vec::with_capacity(plaintext.len() + 512);
    let mut writer = encryptor.wrap_output(&mut file).map_err(AgeFileError::Contents)?;
    writer.write_all(plaintext).map_err(AgeFileError::Contents)?;
    writer.finish().map_err(AgeFileError::Contents)?;
    Ok(file)
}

/// The plaintext of an age file that one of `identities` (`AGE-SECRET-KEY-1...`) can open.
///
/// # Errors
/// When an identity does not parse, none opens the file, or the file is damaged.
pub fn open_with<S: AsRef<str>>(
    identities: &[S],
    file: &[u8],
) -> Result<Zeroizing<Vec<u8>>, AgeFileError> {
    let identities: Vec<_> =
        identities.iter().map(|text| parse_identity(text.as_ref())).collect::<Result<_, _>>()?;
    open(identities.iter().map(|identity| identity as &dyn Identity), file, AgeFileError::Open)
}

/// The plaintext of an age file under a passphrase.
///
/// # Errors
/// When the passphrase is another, or the file is damaged.
pub fn open_with_passphrase(
    passphrase: &str,
    file: &[u8],
) -> Result<Zeroizing<Vec<u8>>, AgeFileError> {
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase.to_owned()));
    identity.set_max_work_factor(WORK_FACTOR_MAX);
    open(std::iter::once(&identity as &dyn Identity), file, AgeFileError::Passphrase)
}

fn open<'a>(
    identities: impl Iterator<Item = &'a dyn Identity>,
    file: &[u8],
    refused: impl Fn(age::DecryptError) -> AgeFileError,
) -> Result<Zeroizing<Vec<u8>>, AgeFileError> {
    let decryptor = Decryptor::new_buffered(file).map_err(&refused)?;
    let reader = decryptor.decrypt(identities).map_err(&refused)?;
    // Room for all of it at once, so that growing leaves no copies behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(file.len()));
    let mut bounded = reader.take(PLAINTEXT_MAX_BYTES);
    bounded.read_to_end(&mut plaintext).map_err(AgeFileError::Contents)?;
    Ok(plaintext)
}

/// A new X25519 identity and its recipient.
pub fn generate_identity() -> (Zeroizing<String>, String) {
    let identity = x25519::Identity::generate();
    let secret = Zeroizing::new(identity.to_string().expose_secret().to_owned());
    (secret, identity.to_public().to_string())
}

/// The recipient of an identity.
///
/// # Errors
/// When the identity does not parse.
pub fn recipient_of(identity: &str) -> Result<String, AgeFileError> {
    Ok(parse_identity(identity)?.to_public().to_string())
}

/// Whether `text` is a recipient that records can be sealed to.
///
/// # Errors
/// When it is not.
pub fn check_recipient(text: &str) -> Result<(), AgeFileError> {
    parse_recipient(text).map(|_| ())
}

fn parse_recipient(text: &str) -> Result<Box<dyn Recipient>, AgeFileError> {
    if let Ok(recipient) = text.parse::<x25519::Recipient>() {
        return Ok(Box::new(recipient));
    }
    if let Ok(recipient) = text.parse::<tag::Recipient>() {
        return Ok(Box::new(recipient));
    }
    if let Ok(recipient) = text.parse::<tagpq::Recipient>() {
        return Ok(Box::new(recipient));
    }
    let is_secret = text.to_ascii_uppercase().contains("SECRET");
    let shown = if is_secret { "a secret key" } else { text };
    Err(AgeFileError::Recipient(shown.to_owned()))
}

fn parse_identity(text: &str) -> Result<x25519::Identity, AgeFileError> {
    text.trim().parse().map_err(|_| AgeFileError::Identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_opens_and_nobody_else() {
        let (one, one_public) = generate_identity();
        let (two, two_public) = generate_identity();
        let (other, _) = generate_identity();
        let plaintext = vec![7; 100_000];
        let file = seal_to(&[one_public, two_public], &plaintext).unwrap();
        assert!(file.starts_with(b"age-encryption.org/v1\n"));
        assert_eq!(*open_with(&[one], &file).unwrap(), plaintext);
        assert_eq!(*open_with(&[other.clone(), two], &file).unwrap(), plaintext);
        assert!(matches!(open_with(&[other], &file), Err(AgeFileError::Open(_))));
        assert!(open_with::<&str>(&[], &file).is_err());
    }

    #[test]
    fn damaged_files_do_not_open() {
        let (identity, public) = generate_identity();
        let file = seal_to(&[public], b"secret").unwrap();
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(open_with(&[&*identity], &changed).is_err(), "byte {at}");
            assert!(open_with(&[&*identity], &file[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn refuses_what_is_no_key_without_repeating_secrets() {
        let (identity, public) = generate_identity();
        assert_eq!(recipient_of(&identity).unwrap(), public);
        assert!(check_recipient(&public).is_ok());
        assert!(matches!(seal_to(&[], b"x"), Err(AgeFileError::Seal(_))));
        let error = check_recipient(&identity).unwrap_err();
        assert!(!error.to_string().contains(&identity[..20]), "{error}");
        let error = open_with(&["AGE-SECRET-KEY-1XX"], b"").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("1XX"));
    }
}
