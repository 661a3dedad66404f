//! Claims of `docs/security.md` that belong to no other module, and that the tests which it and
//! `docs/reliability.md` name are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use strongroom_client::connection::{Body, Timeouts};
use strongroom_client::tls::{Pin, TlsIdentity};
use strongroom_client::transport::{Client, Endpoint, RetryPolicy};
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{SessionId, to_hex};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::{Access, Route};
use strongroom_protocol::token::Token;

use crate::harness::{TestServer, program};
use crate::programs::{Served, text};

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

/// All secrets that lie in a folder: files of one line, and the kit's lines.
fn secrets_in(folder: &Path) -> BTreeSet<String> {
    let mut files = Vec::new();
    below(folder, &mut files);
    let mut secrets = BTreeSet::new();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let Ok(content) = std::fs::read_to_string(&file) else { continue };
        let is_secret = ["key", "secret"].iter().any(|part| name.contains(part));
        if is_secret && !name.contains("pub") {
            let lines = content.lines().filter(|line| line.len() >= 32 && !line.starts_with('-'));
            secrets.extend(lines.map(|line| line.trim().to_owned()));
        }
        for line in content.lines() {
            for field in ["identity = ", "authority_key = ", "access_key = "] {
                secrets.extend(line.strip_prefix(field).map(|text| text.trim_matches('"').into()));
            }
        }
    }
    secrets
}

#[test]
fn no_secret_is_logged_however_much_is_logged() {
    let mut served = Served::start();
    assert!(served.signal(rustix::process::Signal::TERM).success());
    served.wrapper = vec!["env".into(), "STRONGROOMD_LOG=trace".into(), "RUST_LOG=trace".into()];
    served.serve();
    let token = served.token(Some("erp"), "backup");
    let home = served.folder.path().join("home");
    let (kits, token_file) = (home.join("kit"), home.join("token"));
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(&token_file, &token).unwrap();
    let token_word = format!("@{}", token_file.display());
    let dump = served.folder.path().join("dump");
    std::fs::write(&dump, "what nobody may read\n".repeat(10_000)).unwrap();
    let setup = ["-vv", "setup", "--token", &token_word, "--kit-folder", kits.to_str().unwrap()];
    let backup = ["-vv", "backup", "db", dump.to_str().unwrap()];
    let mut said = String::new();
    for words in [&setup[..], &backup[..]] {
        let mut command = Command::new(program("strongroom"));
        command.arg("--home").arg(&home).args(words).env("RUST_LOG", "trace");
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        said.push_str(&text(&output.stderr));
        said.push_str(&text(&output.stdout));
    }
    assert!(served.signal(rustix::process::Signal::TERM).success());
    said.push_str(&std::fs::read_to_string(served.folder.path().join("log")).unwrap());
    assert!(said.lines().count() > 20, "nothing was logged: {said}");
    let mut secrets = secrets_in(&home);
    secrets.extend(secrets_in(&served.data()));
    secrets.insert(to_hex(&Token::from_text(&token).unwrap().secret));
    secrets.insert(token);
    assert!(secrets.len() >= 8, "{}", secrets.len());
    let said = said.to_lowercase();
    for secret in secrets {
        assert!(!said.contains(&secret.to_lowercase()), "a secret of {} letters", secret.len());
    }
    assert!(!said.contains("what nobody may read"));
}
