//! The recovery kit: the paper that opens the backups when every machine is gone.
//!
//! A kit is text (TOML under comments in plain words) and a page to print. It holds the age
//! identity, the authority key, the restore-only access key, the namespace's id, server addresses,
//! and the floors: the descriptor version and the ledger checkpoint at print time, below which no
//! server is believed. Identity, access key and id restore everything; the
//! authority key only changes recipients, epoch and pins.
//!
//! [`Kit::parse`] is strict: unknown or missing fields, keys that do not belong together and other
//! spellings are refused, so that what restores today was not mistyped. Its errors never repeat the
//! text, which is secret. The program never stores a kit; it writes one once, where it was told to.

use std::fmt::Write;

use ed25519_dalek::SigningKey;
use jiff::civil::Date;
use qrcode::{EcLevel, QrCode};
use serde::{Deserialize, Serialize};
use strongroom_protocol::codec::Writer;
use strongroom_protocol::id::{Label, NamespaceId, PublicKey, from_hex, to_hex};
use strongroom_protocol::limits::ADDRESS_MAX_BYTES;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::age_file;
use crate::keys::public_key_of;

const FORMAT_VERSION: u32 = 1;
/// Longest text that is read as a kit, in bytes.
pub const KIT_MAX_BYTES: usize = 64 * 1024;
/// Most server addresses of a kit.
const SERVERS_MAX: usize = 16;

/// How a kit and its shares look on paper.
pub(crate) const PAGE_STYLE: &str = include_str!("kit.css");

const HEADING: &str = "\
# STRONGROOM RECOVERY KIT
#
# This page opens the backups of one ERP system or server. Without it, nobody can read them:
# not the backup server, not its operator, and not the machine that made the backups.
#
#  * Print it, on paper, at least twice. Keep the copies in different safe places, offline:
#    a safe, a bank box. Then delete this file from the computer.
#  * Who holds this page can read every backup. Treat it like the key to the safe.
#  * Who loses every copy loses the backups. There is no other way in, and no reset.
#  * To use it: install strongroom on any machine, type or scan the lines below into a file,
#    and give that file to `strongroom restore` (see `strongroom restore --help`).
#  * Test it once a year: `strongroom key kit check` says whether it still opens the newest backup.
#
# Lines that start with # need not be typed.
";

/// A text is not a recovery kit. The text itself is never repeated.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum KitError {
    /// Not TOML, or a field is missing, unknown or of another type.
    #[error("recovery kit: {0}; compare it with the paper, line by line")]
    Form(&'static str),
    /// A field cannot be what it stands for.
    #[error("recovery kit: {0} is mistyped; compare that line with the paper")]
    Field(&'static str),
    /// Authority key and namespace id do not belong together.
    #[error("recovery kit: namespace and authority_key do not belong together; compare both lines")]
    Mismatch,
    /// Written by a later version.
    #[error("recovery kit: of a later format; use a newer strongroom")]
    Version,
    /// The page cannot be drawn.
    #[error("recovery kit: too long for a QR code; print the text form")]
    TooLong,
}

/// The newest ledger checkpoint that was seen when the kit was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointFloor {
    /// Whose ledger: another server of the namespace has another.
    pub ledger_key: PublicKey,
    /// Leaves of the ledger.
    pub size: u64,
    /// Its root.
    pub root: [u8; 32],
}

/// A recovery kit.
#[derive(Clone)]
pub struct Kit {
    /// The namespace's name on its server.
    pub namespace_name: Label,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Where to look for it: `host:port`.
    pub servers: Vec<String>,
    /// Opens records and descriptors (`AGE-SECRET-KEY-1...`).
    pub identity: Zeroizing<String>,
    /// Signs descriptors.
    pub authority_key: SigningKey,
    /// Lets a fresh machine read envelopes, and do nothing else.
    pub access_key: SigningKey,
    /// No older descriptor is believed.
    pub descriptor_version: u64,
    /// No ledger that does not contain this one is believed.
    pub checkpoint: Option<CheckpointFloor>,
    /// The day it was made.
    pub created: Date,
}

impl Kit {
    /// The text form: plain words, then the fields.
    ///
    /// # Errors
    /// When the fields cannot be written.
    pub fn to_text(&self) -> Result<Zeroizing<String>, KitError> {
        let fields = self.fields()?;
        Ok(Zeroizing::new(format!("{HEADING}\n{}", *fields)))
    }

    /// Reads the text form; comment lines may be missing.
    ///
    /// # Errors
    /// When a field is missing, unknown or mistyped, or keys do not belong together.
    pub fn parse(text: &str) -> Result<Self, KitError> {
        if text.len() > KIT_MAX_BYTES {
            return Err(KitError::Form("too long"));
        }
        let fields: Fields = toml::from_str(text)
            .map_err(|_| KitError::Form("a line is missing, unknown or damaged"))?;
        if fields.version != FORMAT_VERSION {
            return Err(KitError::Version);
        }
        Self::of_fields(&fields)
    }

    fn of_fields(fields: &Fields) -> Result<Self, KitError> {
        let identity = Zeroizing::new(fields.identity.clone());
        age_file::recipient_of(&identity).map_err(|_| KitError::Field("identity"))?;
        let kit = Self {
            namespace_name: parsed(&fields.namespace_name, "namespace_name")?,
            namespace: parsed(&fields.namespace, "namespace")?,
            servers: checked_servers(&fields.servers)?,
            identity,
            authority_key: signing_key(&fields.authority_key, "authority_key")?,
            access_key: signing_key(&fields.access_key, "access_key")?,
            descriptor_version: fields.descriptor_version,
            checkpoint: fields.checkpoint.as_ref().map(CheckpointFields::parse).transpose()?,
            created: parsed(&fields.created, "created")?,
        };
        if kit.descriptor_version == 0 {
            return Err(KitError::Field("descriptor_version"));
        }
        if NamespaceId::of_authority(&public_key_of(&kit.authority_key)) != kit.namespace {
            return Err(KitError::Mismatch);
        }
        Ok(kit)
    }

    /// A page to print: plain words, the fields as text and as a QR code. It refers to nothing
    /// outside itself.
    ///
    /// # Errors
    /// When the fields are too long for a QR code.
    pub fn to_html(&self) -> Result<Zeroizing<String>, KitError> {
        let fields = self.fields()?;
        let code = qr_code(&fields)?;
        let shown = Zeroizing::new(escaped(&fields));
        let (name, created) = (&self.namespace_name, self.created);
        let mut page = Zeroizing::new(String::with_capacity(code.len() + 8192));
        // Writing to a string does not fail.
        let _ = write!(
            *page,
            include_str!("kit.html"),
            style = PAGE_STYLE,
            name = name,
            created = created,
            code = *code,
            fields = *shown
        );
        Ok(page)
    }

    /// What is no secret of it.
    pub fn public_fields(&self) -> PublicFields {
        PublicFields {
            namespace_name: self.namespace_name.to_string(),
            namespace: self.namespace.to_string(),
            servers: self.servers.clone(),
            descriptor_version: self.descriptor_version,
            created: self.created.to_string(),
            checkpoint: self.checkpoint.as_ref().map(CheckpointFields::of),
        }
    }

    /// A kit from its public part and its secrets.
    ///
    /// # Errors
    /// When a field cannot be what it stands for, or keys do not belong together.
    pub fn from_parts(
        public: &PublicFields,
        identity: &str,
        authority_key: &[u8; 32],
        access_key: &[u8; 32],
    ) -> Result<Self, KitError> {
        Self::of_fields(&Fields {
            version: FORMAT_VERSION,
            namespace_name: public.namespace_name.clone(),
            namespace: public.namespace.clone(),
            servers: public.servers.clone(),
            identity: identity.to_owned(),
            authority_key: to_hex(authority_key),
            access_key: to_hex(access_key),
            descriptor_version: public.descriptor_version,
            created: public.created.clone(),
            checkpoint: public.checkpoint.clone(),
        })
    }

    fn fields(&self) -> Result<Zeroizing<String>, KitError> {
        let fields = Fields {
            version: FORMAT_VERSION,
            namespace_name: self.namespace_name.to_string(),
            namespace: self.namespace.to_string(),
            servers: self.servers.clone(),
            identity: self.identity.to_string(),
            authority_key: to_hex(self.authority_key.as_bytes()),
            access_key: to_hex(self.access_key.as_bytes()),
            descriptor_version: self.descriptor_version,
            created: self.created.to_string(),
            checkpoint: self.checkpoint.as_ref().map(CheckpointFields::of),
        };
        let text = toml::to_string(&fields);
        text.map(Zeroizing::new).map_err(|_| KitError::Form("cannot be written"))
    }
}

/// The fields, in the order of the text.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u32,
    namespace_name: String,
    namespace: String,
    servers: Vec<String>,
    identity: String,
    authority_key: String,
    access_key: String,
    descriptor_version: u64,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CheckpointFields>,
}

/// What is no secret of a kit, in the order of the text of a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicFields {
    /// The namespace's name on its server.
    pub namespace_name: String,
    /// The namespace.
    pub namespace: String,
    /// Where to look for it.
    pub servers: Vec<String>,
    /// No older descriptor is believed.
    pub descriptor_version: u64,
    /// The day it was made.
    pub created: String,
    /// No ledger that does not contain this one is believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointFields>,
}

impl PublicFields {
    /// Bytes that a checksum is made over.
    pub fn encode(&self, out: &mut Writer) {
        out.bytes(self.namespace_name.as_bytes()).bytes(self.namespace.as_bytes());
        out.count(self.servers.len());
        for server in &self.servers {
            out.bytes(server.as_bytes());
        }
        out.u64(self.descriptor_version).bytes(self.created.as_bytes());
        out.bool(self.checkpoint.is_some());
        if let Some(floor) = &self.checkpoint {
            out.bytes(floor.ledger_key.as_bytes()).u64(floor.size).bytes(floor.root.as_bytes());
        }
    }
}

/// A checkpoint, field by field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFields {
    ledger_key: String,
    size: u64,
    root: String,
}

impl CheckpointFields {
    fn of(floor: &CheckpointFloor) -> Self {
        Self {
            ledger_key: floor.ledger_key.to_string(),
            size: floor.size,
            root: to_hex(&floor.root),
        }
    }

    fn parse(&self) -> Result<CheckpointFloor, KitError> {
        let root = from_hex(&self.root).ok_or(KitError::Field("checkpoint root"))?;
        let ledger_key = parsed(&self.ledger_key, "checkpoint ledger_key")?;
        Ok(CheckpointFloor { ledger_key, size: self.size, root })
    }
}

fn parsed<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, KitError> {
    text.parse().map_err(|_| KitError::Field(field))
}

fn signing_key(text: &str, field: &'static str) -> Result<SigningKey, KitError> {
    let bytes = from_hex(text).map(Zeroizing::new).ok_or(KitError::Field(field))?;
    Ok(SigningKey::from_bytes(&bytes))
}

fn checked_servers(servers: &[String]) -> Result<Vec<String>, KitError> {
    let is_good = |server: &String| {
        let length_is_good =
            u32::try_from(server.len()).is_ok_and(|length| length <= ADDRESS_MAX_BYTES);
        length_is_good && !server.is_empty() && server.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if servers.len() > SERVERS_MAX || !servers.iter().all(is_good) {
        return Err(KitError::Field("servers"));
    }
    Ok(servers.to_vec())
}

/// An SVG picture of the text, with as much redundancy as fits.
pub(crate) fn qr_code(text: &str) -> Result<Zeroizing<String>, KitError> {
    let code = [EcLevel::M, EcLevel::L]
        .into_iter()
        .find_map(|level| QrCode::with_error_correction_level(text, level).ok())
        .ok_or(KitError::TooLong)?;
    let picture = Zeroizing::new(code.render::<qrcode::render::svg::Color<'_>>().build());
    // An XML declaration has no place inside a page.
    let start = picture.find("<svg").unwrap_or(0);
    Ok(Zeroizing::new(picture.get(start..).unwrap_or_default().to_owned()))
}

/// Text as it stands in a page.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const _: () = crate::secrecy::wipes::<Fields>();

    fn kit() -> Kit {
        let authority_key = SigningKey::from_bytes(&[1; 32]);
        Kit {
            namespace_name: "erp-production".parse().unwrap(),
            namespace: NamespaceId::of_authority(&public_key_of(&authority_key)),
            servers: vec!["backup.example:7443".into(), "[2001:db8::1]:7443".into()],
            identity: age_file::generate_identity().0,
            authority_key,
            access_key: SigningKey::from_bytes(&[2; 32]),
            descriptor_version: 3,
            checkpoint: Some(CheckpointFloor {
                ledger_key: PublicKey([9; 32]),
                size: 42,
                root: [7; 32],
            }),
            created: "2026-02-03".parse().unwrap(),
        }
    }

    fn same(one: &Kit, two: &Kit) -> bool {
        *one.fields().unwrap() == *two.fields().unwrap()
    }

    #[test]
    fn text_comes_back_with_and_without_comments() {
        for checkpoint in [None, kit().checkpoint] {
            let kit = Kit { checkpoint, ..kit() };
            let text = kit.to_text().unwrap();
            assert!(same(&Kit::parse(&text).unwrap(), &kit));
            assert!(same(&Kit::parse(&kit.fields().unwrap()).unwrap(), &kit));
            assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 100));
        }
    }

    #[test]
    fn mistyped_lines_are_named() {
        let text = kit().to_text().unwrap();
        let change = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            Kit::parse(&text.replacen(from, to, 1)).map(|_| ()).unwrap_err()
        };
        assert_eq!(change("version = 1", "version = 2"), KitError::Version);
        assert_eq!(change("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1Q"), KitError::Field("identity"));
        assert_eq!(change("0101", "0102"), KitError::Mismatch);
        assert_eq!(change("0202", "020"), KitError::Field("access_key"));
        assert_eq!(change("0707", "07G7"), KitError::Field("checkpoint root"));
        assert_eq!(change("2026-02-03", "2026-02-33"), KitError::Field("created"));
        assert_eq!(change("erp-production", "ERP"), KitError::Field("namespace_name"));
        assert_eq!(change("backup.example", "backup example"), KitError::Field("servers"));
        assert_eq!(
            change("descriptor_version = 3", "descriptor_version = 0"),
            KitError::Field("descriptor_version")
        );
        assert!(matches!(change("created", "crated"), KitError::Form(_)));
        assert!(matches!(change("servers", "more = 1\nservers"), KitError::Form(_)));
    }

    #[test]
    fn the_page_is_whole_and_self_contained() {
        let kit = kit();
        let page = kit.to_html().unwrap();
        for part in ["<svg", "</html>", "erp-production", "2026-02-03", &kit.identity] {
            assert!(page.contains(part), "{part}");
        }
        for outside in ["src=", "href=", "url(", "<script", "<?xml", "http://", "https://"] {
            let known = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!known.contains(outside), "{outside}");
        }
        assert!(page.is_ascii());
        let many = Kit { servers: vec!["s".repeat(500); 16], ..kit };
        assert_eq!(many.to_html().map(|_| ()), Err(KitError::TooLong));
        assert!(many.to_text().is_ok());
    }

    #[test]
    fn text_in_a_page_stays_text() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = Kit::parse(&text);
        }

        #[test]
        fn a_changed_character_is_noticed_or_harmless(at in 0usize..2000, to in "[ -~]") {
            let kit = kit();
            let text = kit.fields().unwrap();
            let at = at % text.len();
            let mut changed = text.to_string();
            changed.replace_range(at..=at, &to);
            if let Ok(other) = Kit::parse(&changed) {
                let namespaces = (other.namespace, other.authority_key.to_bytes());
                prop_assert_eq!(namespaces, (kit.namespace, kit.authority_key.to_bytes()));
                prop_assert_eq!(&*other.identity, &*kit.identity);
            }
        }
    }
}
