//! Who can open the snapshots of a namespace: the recipients in its descriptor, changed with the
//! kit.
//!
//! The kit's identity opens the wrapped convergence secret, which is sealed anew to the new list,
//! and the authority key signs. **Only snapshots that are made from then on are sealed to the new
//! list.** A recipient that is added opens no older one, and one that is removed still opens those
//! that it could; nothing but forgetting them takes that away.

use strongroom_protocol::descriptor::{Descriptor, VerifiedDescriptor};
use strongroom_protocol::limits::RECIPIENTS_MAX;

use crate::age_file;
use crate::error::ClientError;
use crate::keys::ConvergenceSecret;
use crate::kit::Kit;
use crate::offer::next_after;
use crate::trust::open_wrapped_secret;

/// Fewer than so many are a risk: each is one medium that can be lost.
const ADVISED_MIN: usize = 2;

/// The next descriptor, with one recipient more.
pub fn add(
    kit: &Kit,
    newest: &VerifiedDescriptor,
    recipient: &str,
) -> Result<Descriptor, ClientError> {
    age_file::check_recipient(recipient).map_err(|error| usage(&error))?;
    let mut recipients = newest.contents().recipients.clone();
    if recipients.iter().any(|known| known == recipient) {
        return Err(usage(&"that recipient is in the list already; nothing was signed"));
    }
    recipients.push(recipient.to_owned());
    if u32::try_from(recipients.len()).map_or(true, |count| count > RECIPIENTS_MAX) {
        return Err(usage(&"a descriptor holds at most 32 recipients; nothing was signed"));
    }
    with_recipients(kit, newest, recipients)
}

/// The next descriptor, with one recipient less. What leaves few ways in must be forced.
pub fn remove(
    kit: &Kit,
    newest: &VerifiedDescriptor,
    recipient: &str,
    is_forced: bool,
) -> Result<Descriptor, ClientError> {
    let mut recipients = newest.contents().recipients.clone();
    let count = recipients.len();
    recipients.retain(|known| known != recipient);
    if recipients.len() == count {
        return Err(usage(&"that recipient is not in the list; nothing was signed"));
    }
    if recipients.is_empty() {
        return Err(usage(
            &"it is the last recipient: nobody could open the snapshots that are made from then \
              on; add another first. Nothing was signed",
        ));
    }
    let own = age_file::recipient_of(&kit.identity).map_err(|error| usage(&error))?;
    if recipient == own && !is_forced {
        return Err(usage(
            &"it is this kit's own recipient: the kit would open no snapshot that is made from \
              then on, and could change recipients no more. If that is what you want: --force. \
              Nothing was signed",
        ));
    }
    if recipients.len() < ADVISED_MIN && !is_forced {
        return Err(usage(
            &"one recipient would be left: if its owner loses it, nobody opens the snapshots that \
              are made from then on. Add another first, or --force. Nothing was signed",
        ));
    }
    with_recipients(kit, newest, recipients)
}

fn with_recipients(
    kit: &Kit,
    newest: &VerifiedDescriptor,
    recipients: Vec<String>,
) -> Result<Descriptor, ClientError> {
    let secret = open_wrapped_secret(newest, std::slice::from_ref(&kit.identity))?;
    let wrapped_secret = wrap(&secret, &recipients)?;
    Ok(Descriptor { recipients, wrapped_secret, ..next_after(newest)? })
}

/// A convergence secret as a descriptor holds it.
pub fn wrap(secret: &ConvergenceSecret, recipients: &[String]) -> Result<Vec<u8>, ClientError> {
    age_file::seal_to(recipients, secret.as_bytes()).map_err(|error| usage(&error))
}

fn usage(error: &dyn std::fmt::Display) -> ClientError {
    ClientError::Usage(error.to_string())
}
