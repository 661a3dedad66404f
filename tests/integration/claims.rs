//! Claims of `docs/security.md` that belong to no other module, and that the tests which it and
//! `docs/reliability.md` name are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use strongroom_client::connection::{Body, Timeouts};
use strongroom_client::tls::{Pin, TlsIdentity};
use strongroom_client::transport::{Client, Endpoint, RetryPolicy};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::SessionId;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::{Access, Route};

use crate::harness::TestServer;

/// All files below a folder, but for what is built and what git keeps.
pub fn below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if !path.is_dir() {
            files.push(path);
        } else if name != "target" && name != ".git" {
            below(&path, files);
        }
    }
}

/// Words that follow `before`, made of small letters, digits and `_`.
fn names_after(text: &str, before: &str) -> BTreeSet<String> {
    let is_part = |letter: &char| matches!(letter, 'a'..='z' | '0'..='9' | '_');
    text.split(before).skip(1).map(|rest| rest.chars().take_while(is_part).collect()).collect()
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    below(root, &mut files);
    let mut functions = BTreeSet::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        functions.extend(names_after(&std::fs::read_to_string(file).unwrap(), "fn "));
    }
    let mut named_count = 0;
    for document in ["security.md", "reliability.md", "retention.md"] {
        let text = std::fs::read_to_string(root.join("docs").join(document)).unwrap();
        let named =
            names_after(&text, "`").into_iter().filter(|name| name.matches('_').count() > 2);
        for name in named {
            assert!(functions.contains(&name), "{document} names {name}, which is nowhere");
            named_count += 1;
        }
    }
    assert!(named_count > 100, "{named_count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_key_of_a_kit_reads_and_does_nothing_else() {
    let server = TestServer::start().await;
    let (writer, other) = (server.writer("erp").await, server.writer("other").await);
    let (record, _) = writer.snapshot("db", &[b"a"]).await;
    let endpoint = Endpoint {
        addresses: vec![server.address.to_string()],
        pin: Pin::Unknown,
        follow: None,
        timeouts: Timeouts::default(),
        retry: RetryPolicy::never(),
    };
    let identity = TlsIdentity::of_ed25519_seed(writer.kit().access_key.as_bytes()).unwrap();
    let client = Client::new(endpoint, &identity).unwrap();
    for route in Route::examples(writer.namespace(), SessionId([1; 16]), record.digest()) {
        let outcome = client.request_once(&route, "", Body::empty()).await;
        let code = outcome.err().and_then(|error| error.code());
        let may = match route.access() {
            Access::Needs(capability) => Role::Restore.may(capability),
            _ => true,
        };
        assert_eq!(code != Some(ErrorCode::NotAllowed), may, "{}: {code:?}", route.name());
    }
    assert_eq!(server.repository.status().unwrap().snapshot_count, 1);
    // In another namespace it is nobody.
    let (elsewhere, _) = other.snapshot("db", &[b"b"]).await;
    let route = Route::Record(other.namespace(), elsewhere.digest());
    let error = client.request_once(&route, "", Body::empty()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound), "{error}");
}
