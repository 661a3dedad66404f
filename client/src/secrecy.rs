//! Secrets are wiped when they are dropped, have no printable form, and are not compared: what
//! `docs/security.md`, 7 says of them, as far as types can show it. Most of it the compiler checks.
//!
//! Types with private fields are taken apart in the tests of their own modules, with what stands
//! here. They are taken apart whole, so that a new field does not compile there until somebody has
//! said whether it is a secret.

use std::fmt::{Debug, Display};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use serde::Serialize;
use strongroom_protocol::id::{NamespaceId, to_hex};
use strongroom_protocol::record::{KeyBlock, PrivateFields};
use strongroom_protocol::token::{Scope, Token};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::arguments::TokenWord;
use crate::enroll::EnrollOptions;
use crate::error::ClientError;
use crate::export::Export;
use crate::keys::{ConvergenceSecret, EpochKeys, PlaintextHash, PlaintextKeys};
use crate::kit::Kit;
use crate::namespace::NewNamespace;
use crate::passphrase;
use crate::rolling::NextKeys;
use crate::shares::Share;
use crate::tls::TlsIdentity;
use crate::trust::{OpenRecord, ReadAccess};

/// Does not compile where the type has one of the traits: then two functions have the name.
macro_rules! has_not {
    ($kind:ty: $($bound:path),+) => { $(
        const _: fn() = || {
            trait Either<Which> {
                fn found() {}
            }
            #[allow(dead_code, reason = "only its name is needed")]
            struct HasIt;
            impl<T: ?Sized> Either<()> for T {}
            impl<T: ?Sized + $bound> Either<HasIt> for T {}
            let _ = <$kind as Either<_>>::found;
        };
    )+ };
}

/// Compiles for what is wiped when it is dropped.
pub fn is_wiped<T: ZeroizeOnDrop>(_: &T) {}

/// The same, of a type alone.
pub const fn wipes<T: ZeroizeOnDrop>() {}

const _: () = {
    wipes::<ConvergenceSecret>();
    wipes::<SigningKey>();
    wipes::<TlsIdentity>();
    wipes::<Zeroizing<String>>();
    wipes::<Zeroizing<[u8; 32]>>();
};

// No words and no JSON of any secret; `Debug` where it says a name only, which is tried below.
has_not!(ConvergenceSecret: Display, Serialize, PartialEq);
has_not!(EpochKeys: Display, Serialize, PartialEq);
has_not!(PlaintextKeys: Display, Serialize, PartialEq);
has_not!(PlaintextHash: Display, Serialize);
has_not!(TlsIdentity: Display, Serialize, PartialEq);
has_not!(KeyBlock: Display, Serialize);
has_not!(SigningKey: Display, Serialize);
has_not!(TokenWord: Display, Serialize, PartialEq);
has_not!(Kit: Debug, Display, Serialize, PartialEq);
has_not!(Share: Debug, Display, Serialize, PartialEq);
has_not!(Export: Debug, Display, Serialize, PartialEq);
has_not!(NewNamespace: Debug, Display, Serialize, PartialEq);
has_not!(NextKeys: Debug, Display, Serialize, PartialEq);
has_not!(Token: Debug, Display, Serialize, PartialEq);
has_not!(EnrollOptions: Debug, Display, Serialize, PartialEq);
has_not!(ReadAccess: Debug, Display, Serialize, PartialEq);
has_not!(OpenRecord: Debug, Display, Serialize, PartialEq);

type Asking = fn(Option<&Path>) -> Result<Zeroizing<String>, ClientError>;

/// What people type is wiped, wherever it comes from.
const _: [Asking; 2] = [passphrase::read, passphrase::read_new];

fn kit() -> Kit {
    let key = |byte: u8| SigningKey::from_bytes(&[byte; 32]);
    Kit {
        namespace_name: "erp".parse().unwrap(),
        namespace: NamespaceId([4; 32]),
        servers: vec!["backup.example:7443".into()],
        identity: crate::age_file::generate_identity().0,
        authority_key: key(2),
        access_key: key(3),
        descriptor_version: 1,
        checkpoint: None,
        created: "2026-02-03".parse().unwrap(),
    }
}

#[test]
fn every_secret_in_a_type_is_wiped() {
    let Kit {
        identity,
        authority_key,
        access_key,
        namespace_name: _,
        namespace: _,
        servers: _,
        descriptor_version: _,
        checkpoint: _,
        created: _,
    } = kit();
    is_wiped(&identity);
    is_wiped(&authority_key);
    is_wiped(&access_key);
    let NextKeys { identity, signing_key, made_seconds: _ } = NextKeys::generate().unwrap();
    is_wiped(&identity);
    is_wiped(&signing_key);
    let Token {
        secret,
        id: _,
        tls_key: _,
        ledger_key_digest: _,
        scope: _,
        role: _,
        expires_seconds: _,
        addresses: _,
    } = token();
    is_wiped(&secret);
    let KeyBlock { plaintext_key, root_h, body_digest: _, private: _ } = key_block();
    is_wiped(&plaintext_key);
    is_wiped(&root_h);
}

fn token() -> Token {
    Token {
        id: strongroom_protocol::id::TokenId([1; 16]),
        secret: [0xa7; 32].into(),
        tls_key: strongroom_protocol::id::TlsKeyDigest([3; 32]),
        ledger_key_digest: [4; 32],
        scope: Scope::Server,
        role: strongroom_protocol::role::Role::Operator,
        expires_seconds: 1,
        addresses: "backup.example:7443".into(),
    }
}

fn key_block() -> KeyBlock {
    KeyBlock {
        body_digest: [0; 32],
        plaintext_key: [0xa7; 32].into(),
        root_h: [0xb3; 32].into(),
        private: PrivateFields::default(),
    }
}

/// Every way in which bytes are written here, and in which `Debug` writes them.
fn forms_of(secret: &[u8]) -> Vec<String> {
    let decimal: Vec<String> = secret.iter().map(u8::to_string).collect();
    let hexadecimal: Vec<String> = secret.iter().map(|byte| format!("{byte:#x}")).collect();
    let text = std::str::from_utf8(secret).unwrap_or("(not a text)").to_owned();
    vec![
        to_hex(secret),
        STANDARD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        decimal.join(", "),
        hexadecimal.join(", "),
        text,
    ]
}

#[test]
fn what_can_be_shown_for_debugging_shows_no_secret() {
    let bytes = [0xa7; 32];
    let secret = ConvergenceSecret::from_bytes(bytes);
    let keys = EpochKeys::derive(&secret, &NamespaceId([4; 32]), 1);
    let (plain, h) = (keys.plaintext(), keys.plaintext().hash_chunk(b"chunk"));
    let signing = SigningKey::from_bytes(&bytes);
    let identity = TlsIdentity::of_ed25519_seed(&bytes).unwrap();
    let word = TokenWord::from("srk1_secret".to_owned());
    let cases: Vec<(String, Vec<&[u8]>)> = vec![
        (format!("{secret:?} {secret:#?}"), vec![&bytes]),
        (format!("{keys:?} {keys:#?}"), vec![plain.plaintext_key(), plain.cache_mac_key()]),
        (format!("{plain:?} {plain:#?}"), vec![plain.plaintext_key(), plain.cache_mac_key()]),
        (format!("{h:?} {h:#?}"), vec![&h.0]),
        (format!("{signing:?} {signing:#?}"), vec![&bytes]),
        (format!("{identity:?} {identity:#?}"), vec![&bytes, identity.key_pem().as_bytes()]),
        (format!("{:?} {:#?}", key_block(), key_block()), vec![&[0xa7; 32], &[0xb3; 32]]),
        (format!("{word:?} {word:#?}"), vec![b"srk1_secret"]),
        (format!("{:?}", Zeroizing::new(bytes)), vec![&bytes]),
    ];
    for (shown, secrets) in cases {
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        for form in secrets.into_iter().flat_map(forms_of) {
            // A few bytes of it would be too many.
            let start: String = form.chars().take(11).collect();
            assert!(!shown.contains(&start.to_lowercase()), "{shown}");
        }
    }
    // The look itself finds what is there.
    let shown = format!("{bytes:?}");
    assert!(forms_of(&bytes).iter().any(|form| shown.contains(form)));
}
