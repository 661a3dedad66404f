//! Retention: extend, hold, policy. Work in progress of this file follows below its helpers.

use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::retention::{FOREVER, Kept, Lock, RetentionError};

use crate::error::{Refusal, ServerError};

/// What a peer is told whose wish no rule allows.
pub(super) fn refused_wish(error: RetentionError) -> ServerError {
    let code = match error {
        RetentionError::PastDate | RetentionError::BadWish => ErrorCode::BadDate,
        RetentionError::Shortens | RetentionError::LowersMode => ErrorCode::Shortens,
        _ => ErrorCode::RetentionOutOfPolicy,
    };
    ServerError::peer(code, error.to_string())
}

/// What a peer is told who asks for what a lock, a hold or a suspect clock forbids.
pub(super) fn refused_by(kept: Kept, lock: &Lock) -> ServerError {
    let (code, message) = match kept {
        Kept::Held => {
            (ErrorCode::Held, "a legal hold keeps the snapshot until it is released".to_owned())
        }
        Kept::ClockSuspect => (
            ErrorCode::ClockSuspect,
            "nothing ends while the retention clock is under suspicion; the operator sees why \
             with: strongroomd clock status"
                .to_owned(),
        ),
        Kept::Locked => (
            ErrorCode::Locked,
            format!("the snapshot is locked {} ({} mode)", end_text(lock), lock.mode.name()),
        ),
    };
    ServerError::Peer(Refusal {
        code,
        message,
        missing: Vec::new(),
        locked_until_seconds: (kept == Kept::Locked).then_some(lock.until_seconds),
    })
}

fn end_text(lock: &Lock) -> String {
    if lock.until_seconds == FOREVER {
        return "without end".into();
    }
    let end = i64::try_from(lock.until_seconds.max(lock.until_wall_seconds));
    let end = end.ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    end.map_or_else(|| "until a distant date".into(), |instant| format!("until {instant}"))
}
