//! Epochs of a namespace: a new convergence secret, and how machines get it.
//!
//! A new epoch is for a stolen convergence secret only: nothing of the old one is found again, so
//! the next backup of each machine sends everything. It is a descriptor with another record key and
//! another wrapped secret; from when a server has it, it takes no record of the old epoch. Old
//! snapshots stay, are verified with the descriptor that they name, and open as ever.

use strongroom_protocol::descriptor::{Descriptor, VerifiedDescriptor};

use crate::error::ClientError;
use crate::keys::{ConvergenceSecret, EpochKeys, public_key_of};
use crate::offer::next_after;
use crate::profile::Profile;
use crate::recipients::wrap;

/// The next descriptor, with which a new epoch begins.
pub fn begin(newest: &VerifiedDescriptor) -> Result<Descriptor, ClientError> {
    let secret =
        ConvergenceSecret::generate().map_err(|error| ClientError::Bug(error.to_string()))?;
    let next = next_after(newest)?;
    let epoch = next
        .epoch
        .checked_add(1)
        .ok_or_else(|| ClientError::Usage("no epoch is left: make a new namespace".into()))?;
    let keys = EpochKeys::derive(&secret, &newest.namespace(), epoch);
    let wrapped_secret = wrap(&secret, &next.recipients)?;
    Ok(Descriptor { epoch, record_key: public_key_of(&keys.record_key()), wrapped_secret, ..next })
}

/// Gives a profile, and that of its second server, the secret of the descriptor's epoch.
pub fn adopt(
    profile: &Profile,
    descriptor: &VerifiedDescriptor,
    secret: &ConvergenceSecret,
) -> Result<(), ClientError> {
    if EpochKeys::of_descriptor(descriptor, secret).is_none() {
        return Err(ClientError::Untrusted(format!(
            "the secret is not that of the namespace's epoch {}; nothing was changed: use the \
             newest kit or export",
            descriptor.contents().epoch
        )));
    }
    let folder = profile.folder();
    let standby = folder.standby();
    for folder in [folder, &standby].into_iter().filter(|folder| folder.is_enrolled()) {
        folder.write_convergence_secret(secret)?;
    }
    Ok(())
}
