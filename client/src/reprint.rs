//! A fresh copy of a recovery kit: the same keys, today's floors.
//!
//! A kit on paper ages: it believes a server that shows what it knew on the day it was printed. The
//! fresh one has the newest descriptor's version and the ledger's newest checkpoint, which must
//! contain the old one's, and the addresses that were given or else the old ones.

use jiff::civil::Date;
use strongroom_protocol::message::Identity;
use strongroom_protocol::route::Route;

use crate::error::ClientError;
use crate::history;
use crate::kit::{CheckpointFloor, Kit};
use crate::profile::ConnectOptions;
use crate::trust::ReadAccess;

/// The kit with what its servers show today, every link of it proven.
pub async fn renewed(kit: &Kit, connect: &ConnectOptions, today: Date) -> Result<Kit, ClientError> {
    let access = ReadAccess::with_kit(kit, connect, false).await?;
    let untrusted = || {
        ClientError::Untrusted("the server is not one of the namespace's: check --server".into())
    };
    let descriptor = access.descriptor.as_ref().ok_or_else(untrusted)?;
    // The connection is pinned to the key that this ledger key has vouched for.
    let said: Identity = access.client.json(&Route::Identity, "", None::<&()>).await?;
    if !descriptor.names(&said.ledger_key) {
        return Err(untrusted());
    }
    let key = said.ledger_key;
    let newest = history::newest_beyond(&access.client, key, kit.checkpoint.as_ref()).await?;
    let servers = match connect.servers.is_empty() {
        true => kit.servers.clone(),
        false => connect.servers.clone(),
    };
    let floor = CheckpointFloor { ledger_key: key, size: newest.size, root: newest.root };
    Ok(Kit {
        servers,
        descriptor_version: descriptor.contents().version,
        checkpoint: Some(floor),
        created: today,
        ..kit.clone()
    })
}
