//! Retention: modes, policies, and the pure arithmetic of "locked until".
//!
//! Modes mean what they mean in S3 Object Lock. Times are seconds of the server's retention clock.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::RETENTION_MAX_SECONDS;

/// Who could lift a lock before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetentionMode {
    /// Liftable by a named capability, on purpose, on record.
    Governance,
    /// Liftable by nobody until it ends.
    Compliance,
}

impl RetentionMode {
    /// The byte that names the mode.
    pub const fn code(self) -> u8 {
        match self {
            Self::Governance => 1,
            Self::Compliance => 2,
        }
    }

    /// The mode that `code` names.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Governance),
            2 => Some(Self::Compliance),
            _ => None,
        }
    }

    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

/// A namespace's rule for new snapshots; periods in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionPolicy {
    /// Mode of new locks.
    pub mode: RetentionMode,
    /// No snapshot is locked for less.
    pub minimum_seconds: u64,
    /// For a client that asks for nothing.
    pub default_seconds: u64,
    /// No snapshot is locked for more.
    pub maximum_seconds: u64,
}

/// A policy or a wish that retention does not allow.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum RetentionError {
    /// minimum <= default <= maximum does not hold, or the maximum is absurd.
    #[error("retention policy: minimum <= default <= maximum <= 200 years does not hold")]
    BadPolicy,
    /// A client asked for more than the policy's maximum.
    #[error("retention of {wanted} s is above the namespace's maximum of {maximum} s")]
    AboveMaximum {
        /// Asked for, in seconds.
        wanted: u64,
        /// The policy's maximum, in seconds.
        maximum: u64,
    },
}

impl RetentionPolicy {
    /// Refuses a policy whose periods are out of order.
    pub fn check(&self) -> Result<(), RetentionError> {
        let in_order = self.minimum_seconds <= self.default_seconds
            && self.default_seconds <= self.maximum_seconds
            && self.maximum_seconds <= RETENTION_MAX_SECONDS;
        if in_order { Ok(()) } else { Err(RetentionError::BadPolicy) }
    }

    /// The instant until which a snapshot committed at `now` is locked, when the client asked for
    /// `wanted_seconds` (0: the default). Less than the minimum is raised to it, because a stolen
    /// client must not weaken a lock; more than the maximum is refused, because it must not fill
    /// the store with what nobody can delete.
    pub fn locked_until(&self, now: u64, wanted_seconds: u64) -> Result<u64, RetentionError> {
        let wanted = if wanted_seconds == 0 { self.default_seconds } else { wanted_seconds };
        if wanted > self.maximum_seconds {
            return Err(RetentionError::AboveMaximum { wanted, maximum: self.maximum_seconds });
        }
        Ok(now.saturating_add(wanted.max(self.minimum_seconds)))
    }
}

/// Whether a snapshot may be forgotten at `now`.
pub fn may_forget(now: u64, locked_until: u64) -> bool {
    now >= locked_until
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetentionPolicy = RetentionPolicy {
        mode: RetentionMode::Compliance,
        minimum_seconds: 10,
        default_seconds: 100,
        maximum_seconds: 1000,
    };

    #[test]
    fn wishes_are_bounded_by_the_policy() {
        assert_eq!(POLICY.locked_until(5, 0), Ok(105));
        assert_eq!(POLICY.locked_until(5, 1), Ok(15));
        assert_eq!(POLICY.locked_until(5, 1000), Ok(1005));
        assert!(POLICY.locked_until(5, 1001).is_err());
    }

    #[test]
    fn a_lock_ends_at_its_instant() {
        assert!(!may_forget(99, 100));
        assert!(may_forget(100, 100));
    }

    #[test]
    fn policies_must_be_in_order() {
        assert!(POLICY.check().is_ok());
        assert!(RetentionPolicy { minimum_seconds: 101, ..POLICY }.check().is_err());
        assert!(RetentionPolicy { maximum_seconds: 99, ..POLICY }.check().is_err());
        assert!(RetentionPolicy { maximum_seconds: u64::MAX, ..POLICY }.check().is_err());
    }
}
