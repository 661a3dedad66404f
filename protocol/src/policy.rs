//! A namespace's policy: its rule, rules with a name (classes), which source goes by which, and
//! quotas. A change of policy acts on snapshots that are committed from then on, never on others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::Label;
use crate::limits::{LABEL_MAX_BYTES, POLICY_CLASSES_MAX, POLICY_SOURCES_MAX};
use crate::retention::{FOREVER, RetentionError, RetentionMode, RetentionRule};

const MAGIC: &[u8; 4] = b"SRQ1";
const WHAT: &str = "policy";
const YEAR_SECONDS: u64 = 366 * 24 * 3600;
const MAXIMUM_SECONDS: u64 = 100 * YEAR_SECONDS;

/// Two years after the expiry date of the product (device records where an expiry date exists).
pub const EXPIRY_PLUS_TWO_YEARS: &str = "expiry-plus-2y";
/// Five years or more (device records without an expiry date).
pub const AT_LEAST_FIVE_YEARS: &str = "at-least-5y";
/// Without end (records of implantable devices).
pub const PERMANENT: &str = "permanent";

/// Most that a namespace may hold; 0 is no bound. The longest lock is the rule's maximum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Sealed bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Snapshots.
    #[serde(default)]
    pub snapshots: u64,
}

/// What a namespace goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// For sources without a class.
    pub rule: RetentionRule,
    /// Classes of this namespace, beside the ready-made ones.
    #[serde(default)]
    pub classes: BTreeMap<Label, RetentionRule>,
    /// The class of a source.
    #[serde(default)]
    pub sources: BTreeMap<Label, Label>,
    /// Bounds.
    #[serde(default)]
    pub quota: Quota,
}

/// The ready-made class of a name.
pub fn ready_made(class: &str) -> Option<RetentionRule> {
    let rule = |minimum_seconds, maximum_seconds, after_date_seconds| RetentionRule {
        mode: RetentionMode::Compliance,
        minimum_seconds,
        default_seconds: minimum_seconds,
        maximum_seconds,
        after_date_seconds,
    };
    match class {
        // At least two years from now, too: a client that names too early a date weakens nothing.
        EXPIRY_PLUS_TWO_YEARS => Some(rule(2 * YEAR_SECONDS, MAXIMUM_SECONDS, 2 * YEAR_SECONDS)),
        AT_LEAST_FIVE_YEARS => Some(rule(5 * YEAR_SECONDS, MAXIMUM_SECONDS, 0)),
        PERMANENT => Some(rule(FOREVER, FOREVER, 0)),
        _ => None,
    }
}

impl Policy {
    /// One rule for all sources, no quota.
    pub fn of_rule(rule: RetentionRule) -> Self {
        Self { rule, classes: BTreeMap::new(), sources: BTreeMap::new(), quota: Quota::default() }
    }

    /// Refuses rules that are out of order, classes that nobody defined, and too many of either.
    pub fn check(&self) -> Result<(), RetentionError> {
        self.rule.check()?;
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let is_small = count(self.classes.len()) <= POLICY_CLASSES_MAX
            && count(self.sources.len()) <= POLICY_SOURCES_MAX;
        let is_defined = |class: &Label| self.class(class).is_some();
        let shadows = |class: &Label| ready_made(class.as_str()).is_some();
        if !is_small || !self.sources.values().all(is_defined) || self.classes.keys().any(shadows) {
            return Err(RetentionError::BadPolicy);
        }
        self.classes.values().try_for_each(RetentionRule::check)
    }

    /// The rule that snapshots of a source go by.
    pub fn rule_for(&self, source: &Label) -> RetentionRule {
        self.sources.get(source).and_then(|class| self.class(class)).unwrap_or(self.rule)
    }

    /// A class by its name.
    pub fn class(&self, class: &Label) -> Option<RetentionRule> {
        ready_made(class.as_str()).or_else(|| self.classes.get(class).copied())
    }

    /// The encoding, which is stored, and whose digest stands in the ledger.
    ///
    /// ```text
    /// "SRQ1" | rule | u32 n | n x (label | rule) | u32 m | m x (source label | class label)
    ///   | quota bytes u64 | quota snapshots u64
    /// rule = mode u8 | minimum u64 | default u64 | maximum u64 | after date u64
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_magic(MAGIC);
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        write_rule(&mut out, &self.rule);
        out.u32(count(self.classes.len()));
        for (class, rule) in &self.classes {
            out.bytes(class.as_str().as_bytes());
            write_rule(&mut out, rule);
        }
        out.u32(count(self.sources.len()));
        for (source, class) in &self.sources {
            out.bytes(source.as_str().as_bytes()).bytes(class.as_str().as_bytes());
        }
        out.u64(self.quota.bytes).u64(self.quota.snapshots);
        out.finish()
    }

    /// Decodes a policy; labels must rise, so that one policy has one encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        let mut policy = Self::of_rule(read_rule(&mut reader)?);
        for _ in 0..reader.count(POLICY_CLASSES_MAX)? {
            let class = next_label(&mut reader, policy.classes.keys().next_back())?;
            policy.classes.insert(class, read_rule(&mut reader)?);
        }
        for _ in 0..reader.count(POLICY_SOURCES_MAX)? {
            let source = next_label(&mut reader, policy.sources.keys().next_back())?;
            policy.sources.insert(source, next_label(&mut reader, None)?);
        }
        policy.quota = Quota { bytes: reader.u64()?, snapshots: reader.u64()? };
        reader.finish()?;
        Ok(policy)
    }

    /// BLAKE3 of the encoding.
    pub fn digest(&self) -> [u8; 32] {
        blake3::hash(&self.encode()).into()
    }

    /// Whether, for some source, this policy would lock less, or less firmly, than `old` does, or
    /// lets somebody fill more of the store. Such a change needs a second principal.
    pub fn is_below(&self, old: &Self) -> bool {
        let is_weaker = |new: &RetentionRule, old: &RetentionRule| {
            new.mode < old.mode
                || new.minimum_seconds < old.minimum_seconds
                || new.default_seconds < old.default_seconds
                || new.maximum_seconds < old.maximum_seconds
                || new.after_date_seconds < old.after_date_seconds
        };
        let raises = |new: u64, old: u64| old != 0 && (new == 0 || new > old);
        let named = old.sources.keys().chain(self.sources.keys());
        is_weaker(&self.rule, &old.rule)
            || named
                .into_iter()
                .any(|source| is_weaker(&self.rule_for(source), &old.rule_for(source)))
            || raises(self.quota.bytes, old.quota.bytes)
            || raises(self.quota.snapshots, old.quota.snapshots)
    }
}

/// Writes a rule; the namespace's row and the ledger use the same bytes.
pub fn write_rule(out: &mut Writer, rule: &RetentionRule) {
    out.u8(rule.mode.code()).u64(rule.minimum_seconds).u64(rule.default_seconds);
    out.u64(rule.maximum_seconds).u64(rule.after_date_seconds);
}

/// Reads a rule.
pub fn read_rule(reader: &mut Reader<'_>) -> Result<RetentionRule, DecodeError> {
    let mode = RetentionMode::from_code(reader.u8()?);
    Ok(RetentionRule {
        mode: mode.ok_or(DecodeError::Value("retention mode"))?,
        minimum_seconds: reader.u64()?,
        default_seconds: reader.u64()?,
        maximum_seconds: reader.u64()?,
        after_date_seconds: reader.u64()?,
    })
}

fn next_label(reader: &mut Reader<'_>, last: Option<&Label>) -> Result<Label, DecodeError> {
    let label = reader.text(LABEL_MAX_BYTES)?.parse();
    let label: Label = label.map_err(|_| DecodeError::Value("label"))?;
    if last.is_some_and(|last| *last >= label) {
        return Err(DecodeError::Value("order of labels"));
    }
    Ok(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::{LockWanted, Moment};

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn policy() -> Policy {
        let rule = RetentionRule {
            mode: RetentionMode::Compliance,
            minimum_seconds: 10,
            default_seconds: 100,
            maximum_seconds: 1000,
            after_date_seconds: 0,
        };
        let mut policy = Policy::of_rule(rule);
        policy.sources.insert(label("lots"), label(EXPIRY_PLUS_TWO_YEARS));
        policy.sources.insert(label("implants"), label(PERMANENT));
        policy
    }

    #[test]
    fn sources_go_by_their_class() {
        let policy = policy();
        assert_eq!(policy.check(), Ok(()));
        let now = Moment { retention_seconds: 1000, wall_seconds: 1000, is_suspect: false };
        let until = |source: &str, wanted| {
            policy.rule_for(&label(source)).new_lock(now, wanted).map(|lock| lock.until_seconds)
        };
        assert_eq!(until("db", LockWanted::Default), Ok(1100));
        assert_eq!(until("implants", LockWanted::Default), Ok(FOREVER));
        assert_eq!(until("lots", LockWanted::Default), Err(RetentionError::NeedsDate));
        assert_eq!(until("lots", LockWanted::Date(5000)), Ok(5000 + 2 * YEAR_SECONDS));
    }

    #[test]
    fn what_weakens_is_seen() {
        let old = policy();
        assert!(!old.is_below(&old));
        let mut weaker = old.clone();
        weaker.rule.minimum_seconds = 9;
        assert!(weaker.is_below(&old) && !old.is_below(&weaker));
        let mut unclassed = old.clone();
        unclassed.sources.remove(&label("implants"));
        assert!(unclassed.is_below(&old) && !old.is_below(&unclassed));
        let mut open = old.clone();
        let mut bounded = old.clone();
        bounded.quota.snapshots = 5;
        open.quota.snapshots = 0;
        assert!(open.is_below(&bounded) && !bounded.is_below(&open));
    }

    #[test]
    fn policies_survive_encoding() {
        let mut policy = policy();
        policy.classes.insert(label("monthly"), policy.rule);
        policy.quota = Quota { bytes: 1 << 40, snapshots: 7 };
        assert_eq!(Policy::decode(&policy.encode()), Ok(policy));
    }

    #[test]
    fn unknown_and_shadowing_classes_are_refused() {
        let mut policy = policy();
        policy.sources.insert(label("db"), label("unheard-of"));
        assert_eq!(policy.check(), Err(RetentionError::BadPolicy));
        let mut policy = self::policy();
        policy.classes.insert(label(PERMANENT), policy.rule);
        assert_eq!(policy.check(), Err(RetentionError::BadPolicy));
    }

    #[test]
    fn each_part_of_a_rule_weakens_alone() {
        let old = Policy { quota: Quota { bytes: 50, snapshots: 5 }, ..policy() };
        let classed = |rule| {
            let mut policy = old.clone();
            policy.classes.insert(label("monthly"), rule);
            policy.sources.insert(label("db"), label("monthly"));
            policy
        };
        let with = |change: &dyn Fn(&mut RetentionRule)| {
            let mut rule = RetentionRule { after_date_seconds: 7, ..old.rule };
            let before = rule;
            change(&mut rule);
            [(rule, before), (before, rule)].map(|(new, old)| {
                let whole = Policy::of_rule(new).is_below(&Policy::of_rule(old));
                assert_eq!(classed(new).is_below(&classed(old)), whole, "a class as the whole");
                whole
            })
        };
        let lower_then_higher = [true, false];
        assert_eq!(with(&|rule| rule.mode = RetentionMode::Governance), lower_then_higher);
        assert_eq!(with(&|rule| rule.minimum_seconds -= 1), lower_then_higher);
        assert_eq!(with(&|rule| rule.default_seconds -= 1), lower_then_higher);
        assert_eq!(with(&|rule| rule.maximum_seconds -= 1), lower_then_higher);
        assert_eq!(with(&|rule| rule.after_date_seconds -= 1), lower_then_higher);
        assert_eq!(with(&|_| {}), [false, false]);
        for (bytes, snapshots, is_below) in [
            (50, 5, false),
            (49, 4, false),
            (51, 5, true),
            (50, 6, true),
            (0, 5, true),
            (50, 0, true),
        ] {
            let new = Policy { quota: Quota { bytes, snapshots }, ..old.clone() };
            assert_eq!(new.is_below(&old), is_below, "{bytes} bytes, {snapshots} snapshots");
        }
        let unbounded = policy();
        assert!(!old.is_below(&unbounded) && !unbounded.is_below(&unbounded));
    }

    #[test]
    fn ready_made_classes_lock_for_as_long_as_their_names_say() {
        let year = 31_622_400; // of 366 days
        let rule = |least, most, after_date_seconds| {
            Some(RetentionRule {
                mode: RetentionMode::Compliance,
                minimum_seconds: least,
                default_seconds: least,
                maximum_seconds: most,
                after_date_seconds,
            })
        };
        let most = 100 * year;
        assert_eq!(ready_made("expiry-plus-2y"), rule(2 * year, most, 2 * year));
        assert_eq!(ready_made("at-least-5y"), rule(5 * year, most, 0));
        assert_eq!(ready_made("permanent"), rule(FOREVER, FOREVER, 0));
        assert_eq!(ready_made("at-least-6y"), None);
    }

    #[test]
    fn a_policy_has_so_many_classes_and_sources_and_no_more() {
        let name = |number: u32| label(&format!("n{number:05}"));
        let rule = policy().rule;
        let with = |classes: u32, sources: u32| {
            let mut policy = Policy::of_rule(rule);
            policy.classes.extend((0..classes).map(|number| (name(number), rule)));
            let class = || label(PERMANENT);
            policy.sources.extend((0..sources).map(|number| (name(number), class())));
            (policy.check().is_ok(), Policy::decode(&policy.encode()).is_ok())
        };
        let (classes, sources) = (POLICY_CLASSES_MAX, POLICY_SOURCES_MAX);
        assert_eq!(with(classes, sources), (true, true));
        assert_eq!(with(classes + 1, sources), (false, false));
        assert_eq!(with(classes, sources + 1), (false, false));
        assert_eq!(with(classes + 1, sources + 1), (false, false));
    }

    #[test]
    fn a_digest_is_that_of_the_encoding() {
        let policy = policy();
        assert_eq!(policy.digest(), *blake3::hash(&policy.encode()).as_bytes());
        let mut other = policy.clone();
        other.quota.bytes = 1;
        assert_ne!(policy.digest(), other.digest());
    }
}
