//! Shares of a recovery kit: any `threshold` of them give the kit back, fewer say nothing.
//!
//! The secret part of the kit (identity, authority key, access key) and a digest of it are split
//! byte by byte by Shamir's scheme over GF(2^8) (Communications of the ACM 22, 1979), as the crate
//! `vsss-rs` has it, with random numbers from the kernel. The rest of the kit is no secret and
//! stands in each share, so that a share says what it is for and how many are needed.
//!
//! A share is text, made to be typed from paper: each line of sixteen bytes ends in a checksum,
//! and one checksum stands over everything. They find what was mistyped, and where; a share that
//! somebody forged has good checksums and fails at the digest. Errors never repeat what was typed.

use std::fmt::Write;

use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use strongroom_protocol::codec::{DecodeError, Reader, Writer};
use strongroom_protocol::id::{from_hex, to_hex};
use thiserror::Error;
use vsss_rs::Gf256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keys::{RandomError, random_bytes};
use crate::kit::{Kit, KitError, PAGE_STYLE, PublicFields, escaped, qr_code};

const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 4] = b"SRKS";
const DIGEST_CONTEXT: &str = "strongroom v1 kit shares";
const CHECKSUM_CONTEXT: &str = "strongroom v1 share checksum";
const LINE_CONTEXT: &str = "strongroom v1 share line";
/// Most shares of a kit.
pub const SHARES_MAX: u8 = 16;
/// Longest text that is read as a share, in bytes.
pub const SHARE_MAX_BYTES: usize = 64 * 1024;
const LINE_BYTES: usize = 16;
const LINES_MAX: usize = 64;
const DIGEST_BYTES: usize = 16;
const IDENTITY_MAX_BYTES: u32 = 4096;

const HEADING: &str = "\
# STRONGROOM RECOVERY KIT, ONE SHARE OF IT
#
# Some of these pages together open the backups of one ERP system or server: how many are needed
# and how many there are stands below. This one alone opens nothing and tells nothing.
#
#  * Keep it apart from the others, offline. Do not copy it.
#  * Too many lost pages lose the backups. There is no other way in, and no reset.
#  * To use it: type the lines of each page into a file of its own, then
#    `strongroom key kit join FILE FILE ... --to KIT` gives the kit back.
#
# Lines that start with # need not be typed.
";

/// Shares cannot be made or joined. What stands in them is never repeated.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The numbers make no sense.
    #[error("shares: at least 2 and at most 16 of them, of which at least 2 must be needed")]
    Numbers,
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The library does not split or join.
    #[error("shares: cannot be computed")]
    Scheme,
    /// The kit cannot be written.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Not TOML, or a field is missing, unknown or of another type.
    #[error("{0}: not a share: a line is missing, unknown or damaged; compare it with the paper")]
    Form(String),
    /// Written by a later version.
    #[error("{0}: of a later format; use a newer strongroom")]
    Version(String),
    /// A line of the share was mistyped.
    #[error("{0}: line {1} of the share is mistyped; compare it with the paper")]
    Line(String, usize),
    /// Another line was mistyped.
    #[error("{0}: a line other than those of the share itself is mistyped; compare all of them")]
    Checksum(String),
    /// It does not belong to the first.
    #[error("{0}: of another kit, or of another splitting of it, than {1}")]
    Foreign(String, String),
    /// The same twice.
    #[error("{0}: the same share as {1}; each counts once")]
    Twice(String, String),
    /// Too few.
    #[error("{given} of {shares} shares of the kit of {name} are here, and {needed} are needed")]
    TooFew {
        /// How many were given.
        given: usize,
        /// How many there are.
        shares: u8,
        /// How many are needed.
        needed: u8,
        /// Name of the namespace.
        name: String,
    },
    /// What comes out is no kit.
    #[error(
        "the shares do not belong together: at least one of them is not genuine, although it is \
         well formed; try other ones"
    )]
    NotGenuine,
}

/// One share of a kit.
#[derive(Clone)]
pub struct Share {
    public: PublicFields,
    split: [u8; 8],
    number: u8,
    shares: u8,
    threshold: u8,
    value: Zeroizing<Vec<u8>>,
}

/// Splits a kit.
///
/// # Errors
/// When the numbers make no sense, or the system has no random bytes.
pub fn split(kit: &Kit, shares: u8, threshold: u8, today: Date) -> Result<Vec<Share>, ShareError> {
    if !(2..=SHARES_MAX).contains(&shares) || !(2..=shares).contains(&threshold) {
        return Err(ShareError::Numbers);
    }
    // A generator that has nothing to give is an error here, so that it never is one below.
    let fresh = random_bytes()?;
    let split = *fresh.first_chunk::<8>().ok_or(ShareError::Scheme)?;
    let secret = secret_of(kit);
    let (threshold_count, count) = (usize::from(threshold), usize::from(shares));
    let values = Gf256::split_bytes(threshold_count, count, &*secret, UnwrapErr(SysRng));
    let values = values.map_err(|_| ShareError::Scheme)?.into_iter().map(Zeroizing::new);
    let public = PublicFields { created: today.to_string(), ..kit.public_fields() };
    let share = |value: Zeroizing<Vec<u8>>| {
        let (number, rest) = value.split_first().ok_or(ShareError::Scheme)?;
        let value = Zeroizing::new(rest.to_vec());
        Ok(Share { public: public.clone(), split, number: *number, shares, threshold, value })
    };
    values.map(share).collect()
}

/// Joins shares, each with the name of its file.
///
/// # Errors
/// When one does not belong to the others, or they are too few, or one is not genuine.
pub fn join(shares: &[(String, Share)]) -> Result<Kit, ShareError> {
    let Some(((first_name, first), rest)) = shares.split_first() else {
        return Err(ShareError::Numbers);
    };
    for (name, share) in rest {
        let is_of_one = share.split == first.split
            && (share.shares, share.threshold) == (first.shares, first.threshold)
            && share.public == first.public
            && share.value.len() == first.value.len();
        if !is_of_one {
            return Err(ShareError::Foreign(name.clone(), first_name.clone()));
        }
    }
    for (at, (name, share)) in shares.iter().enumerate() {
        let twin = shares.iter().take(at).find(|(_, before)| before.number == share.number);
        if let Some((before, _)) = twin {
            return Err(ShareError::Twice(name.clone(), before.clone()));
        }
    }
    if shares.len() < usize::from(first.threshold) {
        return Err(ShareError::TooFew {
            given: shares.len(),
            shares: first.shares,
            needed: first.threshold,
            name: first.public.namespace_name.clone(),
        });
    }
    // All that are given are used, so that one too many checks the others.
    let with_number = |(_, share): &(String, Share)| {
        let mut value = Vec::with_capacity(share.value.len() + 1);
        value.push(share.number);
        value.extend_from_slice(&share.value);
        value
    };
    let mut values: Vec<Vec<u8>> = shares.iter().map(with_number).collect();
    let joined = Gf256::combine_bytes(&values).map(Zeroizing::new);
    values.iter_mut().for_each(Zeroize::zeroize);
    kit_of(&first.public, &joined.map_err(|_| ShareError::Scheme)?)
}

impl Share {
    /// Its number, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The text form: plain words, then the fields.
    ///
    /// # Errors
    /// When the fields cannot be written.
    pub fn to_text(&self) -> Result<Zeroizing<String>, ShareError> {
        Ok(Zeroizing::new(format!("{HEADING}\n{}", *self.fields()?)))
    }

    /// A page to print, with the fields as text and as a QR code.
    ///
    /// # Errors
    /// When the fields are too long for a QR code.
    pub fn to_html(&self) -> Result<Zeroizing<String>, ShareError> {
        let fields = self.fields()?;
        let code = qr_code(&fields)?;
        let shown = Zeroizing::new(escaped(&fields));
        let mut page = Zeroizing::new(String::with_capacity(code.len() + 8192));
        // Writing to a string does not fail.
        let _ = write!(
            *page,
            include_str!("share.html"),
            style = PAGE_STYLE,
            name = self.public.namespace_name,
            created = self.public.created,
            number = self.number,
            shares = self.shares,
            threshold = self.threshold,
            code = *code,
            fields = *shown
        );
        Ok(page)
    }

    /// Reads the text form of the file `name`; comment lines may be missing.
    ///
    /// # Errors
    /// When a field is missing, unknown or mistyped.
    pub fn parse(name: &str, text: &str) -> Result<Self, ShareError> {
        let form = || ShareError::Form(name.to_owned());
        if text.len() > SHARE_MAX_BYTES {
            return Err(form());
        }
        let fields: Fields = toml::from_str(text).map_err(|_| form())?;
        if fields.version != FORMAT_VERSION {
            return Err(ShareError::Version(name.to_owned()));
        }
        let split = from_hex(&fields.split).ok_or_else(form)?;
        let is_good = (2..=SHARES_MAX).contains(&fields.shares)
            && (2..=fields.shares).contains(&fields.threshold)
            && (1..=fields.shares).contains(&fields.number)
            && (1..=LINES_MAX).contains(&fields.share.len());
        if !is_good {
            return Err(form());
        }
        let mut value = Zeroizing::new(Vec::new());
        for (at, line) in fields.share.iter().enumerate() {
            let is_last = at + 1 == fields.share.len();
            let bytes = read_line(&split, fields.number, at, line)
                .filter(|bytes| bytes.len() == LINE_BYTES || is_last)
                .ok_or_else(|| ShareError::Line(name.to_owned(), at + 1))?;
            value.extend_from_slice(&bytes);
        }
        let share = Self {
            public: fields.kit.clone(),
            split,
            number: fields.number,
            shares: fields.shares,
            threshold: fields.threshold,
            value,
        };
        if share.checksum() != fields.checksum {
            return Err(ShareError::Checksum(name.to_owned()));
        }
        Ok(share)
    }

    fn fields(&self) -> Result<Zeroizing<String>, ShareError> {
        let lines = self.value.chunks(LINE_BYTES).enumerate();
        let fields = Fields {
            version: FORMAT_VERSION,
            split: to_hex(&self.split),
            number: self.number,
            shares: self.shares,
            threshold: self.threshold,
            share: lines.map(|(at, bytes)| line_of(&self.split, self.number, at, bytes)).collect(),
            checksum: self.checksum(),
            kit: self.public.clone(),
        };
        let text = toml::to_string_pretty(&fields);
        text.map(Zeroizing::new).map_err(|_| ShareError::Kit(KitError::Form("cannot be written")))
    }

    /// Over everything that the text says.
    fn checksum(&self) -> String {
        let mut out = Writer::with_magic(MAGIC);
        out.raw(&self.split).u8(self.number).u8(self.shares).u8(self.threshold);
        self.public.encode(&mut out);
        out.bytes(&self.value);
        let digest = blake3::derive_key(CHECKSUM_CONTEXT, &Zeroizing::new(out.finish()));
        to_hex(digest.first_chunk::<8>().unwrap_or(&[0; 8]))
    }
}

/// The fields, in the order of the text.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u32,
    split: String,
    number: u8,
    shares: u8,
    threshold: u8,
    share: Vec<String>,
    checksum: String,
    #[zeroize(skip)]
    kit: PublicFields,
}

/// `"SRKS" | bytes identity | authority key(32) | access key(32)`, and its digest.
fn secret_of(kit: &Kit) -> Zeroizing<Vec<u8>> {
    let mut out = Writer::with_magic(MAGIC);
    out.bytes(kit.identity.as_bytes()).raw(kit.authority_key.as_bytes());
    out.raw(kit.access_key.as_bytes());
    let mut secret = Zeroizing::new(out.finish());
    let digest = blake3::derive_key(DIGEST_CONTEXT, &secret);
    secret.extend_from_slice(digest.first_chunk::<DIGEST_BYTES>().unwrap_or(&[0; DIGEST_BYTES]));
    secret
}

fn kit_of(public: &PublicFields, joined: &[u8]) -> Result<Kit, ShareError> {
    let Some((secret, digest)) = joined.split_last_chunk::<DIGEST_BYTES>() else {
        return Err(ShareError::NotGenuine);
    };
    if !blake3::derive_key(DIGEST_CONTEXT, secret).starts_with(digest) {
        return Err(ShareError::NotGenuine);
    }
    let keys = read_secret(secret).map_err(|_| ShareError::NotGenuine)?;
    Kit::from_parts(public, &keys.0, &keys.1, &keys.2).map_err(ShareError::Kit)
}

type Keys = (Zeroizing<String>, Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>);

fn read_secret(secret: &[u8]) -> Result<Keys, DecodeError> {
    let mut reader = Reader::new("kit secrets", secret);
    reader.magic(MAGIC)?;
    let identity = Zeroizing::new(reader.text(IDENTITY_MAX_BYTES)?.to_owned());
    let keys = (identity, Zeroizing::new(reader.array()?), Zeroizing::new(reader.array()?));
    reader.finish()?;
    Ok(keys)
}

/// Sixteen bytes in groups of eight digits, and four digits that check them.
fn line_of(split: &[u8; 8], number: u8, at: usize, bytes: &[u8]) -> String {
    let mut line = String::with_capacity(48);
    for group in bytes.chunks(4) {
        line.push_str(&to_hex(group));
        line.push(' ');
    }
    line.push_str(&line_check(split, number, at, bytes));
    line
}

fn read_line(split: &[u8; 8], number: u8, at: usize, line: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits: Zeroizing<String> =
        Zeroizing::new(line.chars().filter(|c| *c != ' ').collect::<String>());
    let (value, check) = digits.split_at_checked(digits.len().checked_sub(4)?)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(LINE_BYTES));
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    for pair in pairs {
        bytes.push(from_hex::<1>(std::str::from_utf8(pair).ok()?)?[0]);
    }
    let is_good = rest.is_empty()
        && (1..=LINE_BYTES).contains(&bytes.len())
        && line_check(split, number, at, &bytes) == check;
    is_good.then_some(bytes)
}

fn line_check(split: &[u8; 8], number: u8, at: usize, bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(LINE_CONTEXT);
    hasher.update(split).update(&[number, u8::try_from(at).unwrap_or(u8::MAX)]).update(bytes);
    to_hex(hasher.finalize().as_bytes().first_chunk::<2>().unwrap_or(&[0; 2]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::CheckpointFloor;
    use crate::secrecy::{is_wiped, wipes};
    use ed25519_dalek::SigningKey;
    use strongroom_protocol::id::{NamespaceId, PublicKey};

    const TODAY: Date = jiff::civil::date(2026, 2, 3);
    const _: () = wipes::<Fields>();

    #[test]
    fn the_secret_in_a_share_is_wiped() {
        let share = split(&kit(1), 3, 2, TODAY).unwrap().remove(0);
        let Share { value, public: _, split: _, number: _, shares: _, threshold: _ } = share;
        is_wiped(&value);
    }

    fn kit(seed: u8) -> Kit {
        let authority_key = SigningKey::from_bytes(&[seed; 32]);
        let authority = PublicKey(authority_key.verifying_key().to_bytes());
        Kit {
            namespace_name: "erp".parse().unwrap(),
            namespace: NamespaceId::of_authority(&authority),
            servers: vec!["backup.example:7443".into()],
            identity: crate::age_file::generate_identity().0,
            authority_key,
            access_key: SigningKey::from_bytes(&[2; 32]),
            descriptor_version: 3,
            checkpoint: Some(CheckpointFloor {
                ledger_key: PublicKey([9; 32]),
                size: 42,
                root: [7; 32],
            }),
            created: TODAY,
        }
    }

    fn texts(kit: &Kit, shares: u8, threshold: u8) -> Vec<String> {
        let made = split(kit, shares, threshold, TODAY).unwrap();
        made.iter().map(|share| share.to_text().unwrap().to_string()).collect()
    }

    fn joined<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Kit, ShareError> {
        let parse = |(at, text): (usize, &String)| {
            let name = format!("file {at}");
            Share::parse(&name, text).map(|share| (name, share))
        };
        join(&texts.into_iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?)
    }

    #[test]
    fn every_choice_of_enough_shares_gives_the_kit_and_fewer_say_how_many_are_missing() {
        let kit = kit(1);
        let wanted = kit.to_text().unwrap();
        let texts = texts(&kit, 5, 3);
        assert!(texts.iter().all(|text| text.is_ascii() && text.lines().all(|l| l.len() <= 100)));
        for chosen in 0u32..32 {
            let taken: Vec<_> =
                texts.iter().enumerate().filter(|(at, _)| chosen >> at & 1 == 1).collect();
            let outcome = joined(taken.iter().map(|(_, text)| *text));
            match taken.len() {
                0 => assert!(outcome.is_err()),
                1 | 2 => {
                    let error = outcome.err().unwrap().to_string();
                    assert!(error.contains("3 are needed"), "{error}");
                }
                _ => assert_eq!(*outcome.unwrap().to_text().unwrap(), *wanted),
            }
        }
    }

    #[test]
    fn too_few_shares_are_as_likely_for_any_secret() {
        // With one share of two, each value of a secret byte has one polynomial through it: over
        // many splittings of one kit the share's bytes take all values, zero and the secret's too.
        let kit = kit(1);
        let secret = secret_of(&kit);
        let mut seen = [false; 256];
        let mut is_equal = false;
        for _ in 0..40 {
            let share = split(&kit, 2, 2, TODAY).unwrap().remove(0);
            share.value.iter().for_each(|byte| seen[usize::from(*byte)] = true);
            is_equal |= share.value.iter().zip(secret.iter()).any(|(one, two)| one == two);
        }
        assert!(seen.iter().all(|seen| *seen), "a value never comes");
        assert!(is_equal, "a coefficient is never zero");
    }

    #[test]
    fn mistyped_foreign_doubled_and_forged_shares_are_named() {
        let kit_one = kit(1);
        let texts = texts(&kit_one, 4, 2);
        let refused = |shares: &[&String]| {
            joined(shares.iter().copied()).err().expect("they join").to_string()
        };
        // One digit of the third line of the share, and one of a field around it.
        let line = texts[1].lines().filter(|line| line.starts_with("    \"")).nth(2).unwrap();
        let digit = line.chars().nth(10).unwrap();
        let other = if digit == '0' { '1' } else { '0' };
        let mut wrong: Vec<char> = line.chars().collect();
        wrong[10] = other;
        let wrong = texts[1].replace(line, &wrong.into_iter().collect::<String>());
        let error = refused(&[&texts[0], &wrong]);
        assert!(error.contains("file 1: line 3"), "{error}");
        let wrong = texts[1].replace("descriptor_version = 3", "descriptor_version = 2");
        assert!(refused(&[&texts[0], &wrong]).contains("file 1: a line other"));
        let wrong = texts[1].replace("shares = 4", "shares = 5");
        assert!(refused(&[&texts[0], &wrong]).contains("file 1: a line other"));
        let wrong = texts[1].replace("version = 1", "version = 2");
        assert!(refused(&[&texts[0], &wrong]).contains("file 1: of a later format"));
        assert!(refused(&[&texts[0], &"x".into()]).contains("file 1: not a share"));
        // Of another kit, and of another splitting of the same.
        for kit in [kit(2), kit_one.clone()] {
            let others = self::texts(&kit, 4, 2);
            let error = refused(&[&texts[0], &others[1]]);
            assert!(error.contains("file 1: of another kit"), "{error}");
        }
        assert!(refused(&[&texts[0], &texts[0]]).contains("the same share as file 0"));
        // Well formed, and a lie.
        let mut forged = Share::parse("f", &texts[1]).unwrap();
        forged.value[20] ^= 1;
        let forged = forged.to_text().unwrap().to_string();
        assert!(refused(&[&texts[0], &forged]).contains("not genuine"));
        assert!(refused(&[&texts[0], &forged, &texts[2]]).contains("not genuine"));
        assert!(joined([&texts[0], &texts[2]]).is_ok());
    }

    #[test]
    fn numbers_must_make_sense() {
        for (shares, threshold) in [(1, 1), (3, 1), (2, 3), (17, 2), (0, 0)] {
            let outcome = split(&kit(1), shares, threshold, TODAY);
            assert!(matches!(outcome.map(drop), Err(ShareError::Numbers)), "{shares} {threshold}");
        }
    }

    #[test]
    fn a_page_is_whole_and_self_contained() {
        let share = split(&kit(1), 3, 2, TODAY).unwrap().remove(1);
        let page = share.to_html().unwrap();
        for part in ["<svg", "</html>", "share 2 of 3", "<strong>2</strong>"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.is_ascii() && !page.contains("AGE-SECRET-KEY"));
    }

    #[test]
    fn written_shares_join() {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/shares.json");
        if std::env::var_os("UPDATE_VECTORS").is_some_and(|value| value == "1") {
            let kit = kit(1);
            let text = kit.to_text().unwrap().to_string();
            let made = serde_json::json!({ "kit": text, "shares": texts(&kit, 3, 2) });
            std::fs::write(&path, format!("{made:#}\n")).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let vector: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text_of = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let shares: Vec<String> =
            vector["shares"].as_array().unwrap().iter().map(text_of).collect();
        for (one, two) in [(0, 1), (2, 0), (1, 2)] {
            let kit = joined([&shares[one], &shares[two]]).unwrap();
            assert_eq!(*kit.to_text().unwrap(), text_of(&vector["kit"]));
        }
    }
}
