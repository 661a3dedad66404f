//! What a person types and reads: durations, shares, times, sizes.
//!
//! Durations are whole numbers with a unit: `y` (365 days), `w`, `d`, `h`, `m` (minutes), `s`, in
//! that order and added up, as in `5y`, `90d` or `1y6w`. A year is always 365 days, so that a
//! retention is the same number of seconds whenever it is asked for; months, which are not, have no
//! unit.

use std::fmt;
use std::ops::Range;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use strongroom_protocol::id::Label;
use strongroom_protocol::retention::{FOREVER, Lock};
use zeroize::Zeroizing;

use crate::error::ClientError;

const UNITS: [(char, u64); 6] =
    [('y', 365 * 86_400), ('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// A token as it was typed, or `@FILE`. It is never printed, and wiped when it is dropped.
#[derive(Clone)]
pub struct TokenWord(Zeroizing<String>);

impl TokenWord {
    /// What was typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for TokenWord {
    fn from(typed: String) -> Self {
        Self(Zeroizing::new(typed))
    }
}

impl fmt::Debug for TokenWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenWord(..)")
    }
}

/// Reads a duration; the result is in seconds.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    const FORM: &str = "a duration is numbers with units y (365 days), w, d, h, m (minutes), s, \
                        largest first, as in 5y or 90d";
    let (mut rest, mut seconds, mut units) = (text, 0u64, UNITS.iter());
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits).ok_or(FORM)?;
        let unit = tail.chars().next().ok_or(FORM)?;
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or(FORM)?;
        let number: u64 = number.parse().map_err(|_| FORM)?;
        let part = number.checked_mul(*factor).ok_or(FORM)?;
        seconds = seconds.checked_add(part).ok_or(FORM)?;
        rest = tail.get(1..).ok_or(FORM)?;
    }
    if seconds == 0 { Err(FORM.into()) } else { Ok(seconds) }
}

/// Reads a date, which means its end in UTC, or an instant with its offset; the result is in
/// seconds since 1970.
pub fn parse_date(text: &str) -> Result<u64, String> {
    const FORM: &str = "a date is 2031-05-31 (its end, UTC) or 2031-05-31T12:00:00Z";
    let instant = match text.parse::<jiff::civil::Date>() {
        Ok(date) if text.len() == 10 => {
            let next = date.tomorrow().map_err(|_| FORM)?;
            next.to_zoned(TimeZone::UTC).map_err(|_| FORM)?.timestamp()
        }
        _ => text.parse::<Timestamp>().map_err(|_| FORM)?,
    };
    u64::try_from(instant.as_second()).map_err(|_| FORM.into())
}

/// Reads a duration, or `forever`; the result is in seconds.
pub fn parse_period(text: &str) -> Result<u64, String> {
    if text == "forever" { Ok(FOREVER) } else { parse_duration(text) }
}

/// Reads a range of bytes: `FROM:TO`, without the one at `TO`.
pub fn parse_range(text: &str) -> Result<Range<u64>, String> {
    const FORM: &str = "a range of bytes is FROM:TO, as in 0:1048576; TO itself is not in it";
    let (from, to) = text.split_once(':').ok_or(FORM)?;
    let range = from.parse().map_err(|_| FORM)?..to.parse().map_err(|_| FORM)?;
    if range.is_empty() { Err(FORM.into()) } else { Ok(range) }
}

/// Reads `SOURCE=CLASS`, or `SOURCE=` to take a source out.
pub fn parse_class(text: &str) -> Result<(Label, Option<Label>), String> {
    let (source, class) = text.split_once('=').ok_or("write SOURCE=CLASS, or SOURCE= for none")?;
    let source = source.parse().map_err(|_| format!("{source} is not a source"))?;
    let class = match class {
        "" => None,
        class => Some(class.parse().map_err(|_| format!("{class} is not a class"))?),
    };
    Ok((source, class))
}

/// Reads a share in percent, above 0 and up to 100, with or without the sign.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("a share is above 0 and at most 100 percent, as in 5 or 0.1".into()),
    }
}

/// A time of the server in local time, with its zone.
pub fn local_time(milliseconds: i64) -> String {
    match Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
        Err(_) => "out of range".into(),
    }
}

/// A time of the server in UTC, the same wherever it is read.
pub fn utc_time(milliseconds: i64) -> String {
    match Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => "out of range".into(),
    }
}

/// [`local_time`] of seconds since 1970.
pub fn local_time_of_seconds(seconds: u64) -> String {
    i64::try_from(seconds.saturating_mul(1000)).map_or_else(|_| "out of range".into(), local_time)
}

/// End of a lock, seconds since 1970; nothing for a lock without end.
pub fn end_of(lock: &Lock) -> Option<u64> {
    (lock.until_seconds != FOREVER).then(|| lock.until_seconds.max(lock.until_wall_seconds))
}

/// "until ..." for people.
pub fn end_text(end_seconds: Option<u64>) -> String {
    match end_seconds {
        Some(seconds) => format!("until {}", local_time_of_seconds(seconds)),
        None => "without end".into(),
    }
}

/// Reads an age identity file: comment lines and `AGE-SECRET-KEY-1...` lines.
pub fn identities_in(text: &str) -> Result<Vec<Zeroizing<String>>, ClientError> {
    let lines = text.lines().map(str::trim);
    let identities: Vec<_> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| Zeroizing::new(line.to_owned()))
        .collect();
    if identities.is_empty() {
        return Err(ClientError::Usage(
            "the identity file holds no line that starts with AGE-SECRET-KEY-1".into(),
        ));
    }
    Ok(identities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        for (text, seconds) in [
            ("90d", 90 * 86_400),
            ("5y", 5 * 365 * 86_400),
            ("1y6w", (365 + 42) * 86_400),
            ("1h30m", 5400),
            ("45s", 45),
        ] {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
        for bad in ["", "0d", "5", "d", "5x", "1d1y", "1d1d", "-1d", "1.5y", "99999999999999999y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_bounded() {
        assert_eq!(parse_percent("5%"), Ok(5.0));
        assert_eq!(parse_percent("0.1"), Ok(0.1));
        for bad in ["0", "-1", "101", "x", "NaN", "inf"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_name_their_zone() {
        let text = local_time(0);
        assert!(text.starts_with("19") && (text.contains('+') || text.contains('-')), "{text}");
    }

    #[test]
    fn identity_files_may_have_comments() {
        let identities = identities_in("# created: today\n\nAGE-SECRET-KEY-1X\n").unwrap();
        assert_eq!(identities.len(), 1);
        assert!(identities_in("# nothing\n").is_err());
    }
}
