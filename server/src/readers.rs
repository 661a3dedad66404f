//! Places for answers that stream envelopes: each holds a thread that may block, so there are fewer
//! of them than threads, and one principal gets only some.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::PrincipalId;

use crate::error::ServerError;

/// Streams at a time; half of the threads that may block.
const READERS_MAX: usize = 64;
/// Streams of one principal at a time.
const READERS_PER_PRINCIPAL_MAX: usize = 16;

/// Who streams now.
#[derive(Default)]
pub struct Readers {
    places: Mutex<HashMap<PrincipalId, usize>>,
}

/// A place; dropping it gives it back.
pub struct ReadingPlace {
    readers: Arc<Readers>,
    principal: PrincipalId,
}

impl Readers {
    /// Takes a place.
    pub fn enter(self: &Arc<Self>, principal: PrincipalId) -> Result<ReadingPlace, ServerError> {
        let mut places = self.places.lock();
        let held = places.get(&principal).copied().unwrap_or(0);
        if places.values().sum::<usize>() >= READERS_MAX || held >= READERS_PER_PRINCIPAL_MAX {
            return Err(ServerError::peer(ErrorCode::TooMany, "too many readers; try again later"));
        }
        places.insert(principal, held.saturating_add(1));
        Ok(ReadingPlace { readers: self.clone(), principal })
    }
}

impl Drop for ReadingPlace {
    fn drop(&mut self) {
        let mut places = self.readers.places.lock();
        if let Some(held) = places.get_mut(&self.principal) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                places.remove(&self.principal);
            }
        }
    }
}
