//! Periods and sizes as people write them in the configuration.

use std::time::Duration;

use serde::Deserialize;

/// A period of time, written `90s`, `30d`, `10years`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

/// A number of bytes, written `256MiB` or `1GiB`, or without a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl Period {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            format!("\"{text}\" is not a period such as 90s, 30d, 10years: {error}")
        })
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a size such as 512KiB, 256MiB, 1GiB");
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(bad()),
        };
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}
