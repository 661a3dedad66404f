//! Claims of `docs/security.md` that are figures, or about the source: the document is read, and
//! what it says is compared with the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use strongroom_client::challenge;
use strongroom_client::export::Export;
use strongroom_client::transport::RetryPolicy;
use strongroom_protocol::entry::{Entry, Event};
use strongroom_protocol::id::{
    DescriptorDigest, NamespaceId, PrincipalId, RecordDigest, SessionId,
};
use strongroom_protocol::limits::{
    CHALLENGES_MAX, CHUNK_MAX_BYTES, LENT_CONNECTIONS_MAX, PAYLOAD_MIN_BYTES, PROPOSALS_MAX,
    STRANGER_SHARE, TOKEN_TRIES_MAX, TOKEN_TTL_MAX_SECONDS,
};
use strongroom_protocol::padding::{padded_payload_bytes, padme};
use strongroom_protocol::route::{Access, Route};
use strongroom_server::clock_state::{ALLOWANCE_MS, YEAR_MS};
use strongroom_server::config::LimitConfig;

use crate::claims::below;
use crate::harness::TestServer;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The document, its lines joined.
fn document() -> String {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn figures_of_the_security_document_are_those_of_the_code() {
    let document = document();
    let says = |words: &str| assert!(document.contains(words), "not said: {words}");
    let limits = LimitConfig::default();
    let lobby = limits.connections / STRANGER_SHARE;
    assert_eq!(STRANGER_SHARE, 8);
    says("it takes the lobby for strangers, an eighth of the connections, and no more");
    says(&format!("as many addresses as the lobby has places ({lobby})"));
    let a_second = lobby * 1000 / 50 / 500 * 500;
    says(&format!("{lobby} in 50 ms, {a_second} a second, for a client 50 ms away"));
    assert_eq!(RetryPolicy::default().attempts, 12);
    says("The client tries twelve times in all");

    says(&format!("keep up to {LENT_CONNECTIONS_MAX} connections open"));
    assert_eq!((PROPOSALS_MAX, TOKEN_TRIES_MAX, TOKEN_TTL_MAX_SECONDS), (8, 5, 24 * 3600));
    says("can propose, up to eight things at a time");
    says("A token works once, here, unrelayed, and for five tries");
    says("| token secret | with who enrols, a day at most |");
    says(&format!("demands proof for up to {CHALLENGES_MAX} answers a run"));
    says(&format!("**Challenges are a sample**, about {} answers a run", challenge::WANTED));
    let chances = |lacking: f64| 1.0 - (1.0 - lacking).powi(challenge::WANTED as i32);
    assert!(chances(0.1) > 0.99 && (0.35..0.45).contains(&chances(0.01)));
    says("is caught in 99 runs of 100, one that lacks a hundredth in about 4 of 10");

    assert_eq!((ALLOWANCE_MS / 86_400_000, YEAR_MS / 86_400_000), (14, 365));
    says("| start the machine with a wall clock ahead | 14 days in any 365 |");
    says(&format!("no more room than the node announced, at most {} MiB", CHUNK_MAX_BYTES >> 20));
}

#[test]
fn padding_hides_what_the_document_says() {
    assert_eq!(PAYLOAD_MIN_BYTES, 512);
    assert!(document().contains("Padding hides a length within 12 %, and everything below 512"));
    for used in 0..=512 {
        assert_eq!(padded_payload_bytes(used), 512, "{used}");
    }
    let mut most = 0.0_f64;
    for length in 512..100_000_u64 {
        let padded = padme(length);
        most = most.max((padded - length) as f64 / length as f64);
    }
    assert!(most <= 0.12, "{most}");
}

#[test]
fn a_descriptor_is_event_27_of_a_ledger() {
    let event = Event::DescriptorTaken { descriptor: DescriptorDigest([1; 32]), version: 2 };
    let at = |event: Event| {
        let entry = Entry {
            server_time_ms: 0,
            retention_time_seconds: 0,
            actor: PrincipalId([0; 16]),
            namespace: NamespaceId([0; 32]),
            event,
        };
        entry.encode()
    };
    let other = Event::Revoked { principal: PrincipalId([1; 16]) };
    let (bytes, another) = (at(event), at(other));
    let code = bytes.iter().zip(&another).find(|(one, other)| one != other);
    assert_eq!(code.map(|(one, _)| *one), Some(27));
    assert!(document().contains("the descriptor that began the next epoch (event 27)"));
}

/// scrypt takes 128 r N bytes; the file says N as a power of two, and age has r = 8.
#[tokio::test(flavor = "multi_thread")]
async fn a_guess_at_an_export_costs_256_mib() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let file = Export::of_profile(&writer.profile).unwrap().seal("five random words").unwrap();
    let head = String::from_utf8_lossy(&file[..200]).into_owned();
    let stanza = head.lines().find_map(|line| line.strip_prefix("-> scrypt ")).unwrap();
    let factor: u32 = stanza.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!((128 * 8) << factor, 256 << 20);
    assert!(document().contains("guesses it, at a second and 256 MiB a try"));
}

fn sources_of(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    below(&root().join(folder), &mut files);
    let is_source = |file: &PathBuf| file.extension().is_some_and(|end| end == "rs");
    let read = |file: PathBuf| {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        (path, std::fs::read_to_string(file).unwrap())
    };
    files.into_iter().filter(is_source).map(read).collect()
}

/// What is compiled into the programs: tests and comments left out.
fn code_of(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn there_is_no_unsafe_code_in_the_workspace() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    assert!(read("Cargo.toml").contains("unsafe_code = \"forbid\""));
    let members = ["Cargo.toml", "protocol/Cargo.toml", "client/Cargo.toml", "server/Cargo.toml"];
    for manifest in members.into_iter().chain(["manual/Cargo.toml"]) {
        assert!(read(manifest).contains("[lints]\nworkspace = true"), "{manifest}");
    }
    // No file lifts it, and the fuzzers, which are workspaces of their own, have none either.
    let word = concat!("uns", "afe");
    for (path, text) in ["protocol", "client", "server", "manual", "benches", "tests"]
        .iter()
        .flat_map(|folder| sources_of(folder))
    {
        let starts = [format!("{word} "), format!("({word}_code")];
        let found = code_of(&text).find(|line| starts.iter().any(|start| line.contains(start)));
        assert_eq!(found, None, "{path}");
    }
}

#[test]
fn as_many_decoders_are_fuzzed_as_the_document_says() {
    let count = |folder: &str| sources_of(folder).len();
    let all = count("protocol/fuzz/fuzz_targets") + count("client/fuzz/fuzz_targets");
    assert!(document().contains(&format!("are fuzzed ({all} targets,")), "{all}");
}

/// Names of what is secret, or proves that somebody has a secret.
const SECRETS: [&str; 9] = [
    "secret",
    "enrolment_key",
    "proof",
    "mac",
    "exporter",
    "passphrase",
    "token_secret",
    "convergence_secret",
    "plaintext_key",
];

/// Where one of them is compared, and why whoever asks learns nothing from how long that takes.
const COMPARED: [(&str, &str); 6] = [
    // In constant time: both sides are a `blake3::Hash`, whose `==` is.
    ("protocol/src/token.rs", "made == blake3::Hash::from_bytes(*proof)"),
    // Both were typed by the same person.
    ("client/src/passphrase.rs", "if *ask(\"The same again: \")? != *passphrase {"),
    // Whoever joins shares has all that they give.
    (
        "client/src/shares.rs",
        "if !blake3::derive_key(DIGEST_CONTEXT, secret).starts_with(digest) {",
    ),
    // A file of this very machine.
    ("client/src/cache.rs", "if self.of(id, body) != *mac {"),
    // The server's answer to a number that was drawn for it; it is not asked twice.
    ("client/src/challenge.rs", "if challenge_answer(nonce, envelope) == *proof {"),
    // A cost of work, not a proof by anybody.
    (
        "server/src/lock.rs",
        "let proof = if row.is_unproven && row.level == 1 { PROOF_COST } else { 1 };",
    ),
];

#[test]
fn secrets_are_compared_in_constant_time_or_where_nobody_can_learn_from_it() {
    let mut found = BTreeSet::new();
    for (path, text) in
        ["protocol/src", "client/src", "server/src"].iter().flat_map(|folder| sources_of(folder))
    {
        if ["/tests.rs", "/vectors.rs", "/secrecy.rs"].iter().any(|end| path.ends_with(end)) {
            continue;
        }
        for line in code_of(&text) {
            let compares = ["==", "!=", ".eq(", ".ne(", "starts_with(", "ends_with(", ".cmp("];
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let is_secret = words.into_iter().any(|word| SECRETS.contains(&word));
            if is_secret && compares.iter().any(|compare| line.contains(compare)) {
                found.insert((path.clone(), line.to_owned()));
            }
        }
    }
    let known = COMPARED.map(|(path, line)| (path.to_owned(), line.to_owned()));
    let known = BTreeSet::from(known);
    assert_eq!(found, known);
    let token = std::fs::read_to_string(root().join("protocol/src/token.rs")).unwrap();
    assert!(token.contains("let made: blake3::Hash = proof_of("));
}

#[test]
fn tokens_revocations_and_lists_of_principals_have_no_route() {
    let routes = Route::examples(NamespaceId([1; 32]), SessionId([1; 16]), RecordDigest([1; 32]));
    let open: Vec<_> =
        routes.iter().filter(|route| route.access() == Access::Anyone).map(Route::name).collect();
    assert_eq!(open, ["identity", "enroll"], "to any key");
    for route in &routes {
        let name = format!("{} {}", route.name(), route.path());
        for word in ["token", "revo", "principal", "drop"] {
            assert!(!name.contains(word), "{name}");
        }
    }
    let changing: BTreeSet<&str> =
        routes.iter().filter(|route| route.method() != "GET").map(Route::name).collect();
    let known = [
        "close",
        "commit",
        "decide",
        "enroll",
        "forget",
        "have",
        "lend",
        "lift",
        "offer_descriptor",
        "open_session",
        "place_hold",
        "prove",
        "read",
        "release_hold",
        "renew",
        "report_head",
        "retain",
        "roll_keys",
        "set_policy",
        "tend_clock",
        "upload",
    ];
    assert_eq!(changing, BTreeSet::from(known), "a new verb: docs/security.md, 1 and 4");
}
