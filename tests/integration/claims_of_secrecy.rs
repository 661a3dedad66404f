//! Where secrets and plaintext must not be: logs, what the programs print, arguments and
//! environment of what they start, data folders of servers, exports. The real programs, however
//! much they log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::process::Signal;
use strongroom_client::kit::Kit;
use strongroom_protocol::id::to_hex;
use strongroom_protocol::token::Token;

use crate::claims::below;
use crate::harness::program;
use crate::programs::{Served, json, text};

/// Secrets by what they are.
type Secrets = BTreeMap<String, Vec<u8>>;

/// Every way in which one may be written: itself, in hexadecimal digits, in base64, and as `Debug`
/// writes bytes.
fn forms_of(secret: &[u8]) -> Vec<Vec<u8>> {
    let decimal: Vec<String> = secret.iter().map(u8::to_string).collect();
    let hex = to_hex(secret);
    let mut forms = vec![secret.to_vec(), hex.to_uppercase().into(), hex.into()];
    forms.push(decimal.join(", ").into());
    // The last digits in base64 depend on what follows.
    for encoded in [STANDARD.encode(secret), URL_SAFE_NO_PAD.encode(secret)] {
        forms.push(encoded.as_bytes()[..encoded.len() - 4].to_vec());
    }
    let is_text = secret.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    if let Some(text) = std::str::from_utf8(secret).ok().filter(|_| is_text) {
        forms.extend([text.to_lowercase().into(), text.to_uppercase().into()]);
    }
    forms
}

/// What is looked for, by its first two bytes: each text is gone through once, for all of it.
struct Needles {
    forms: Vec<(String, Vec<u8>)>,
    by_start: Vec<Vec<usize>>,
}

impl Needles {
    fn of(secrets: &Secrets) -> Self {
        let mut needles = Self { forms: Vec::new(), by_start: vec![Vec::new(); 1 << 16] };
        for (name, secret) in secrets {
            assert!(secret.len() >= 8, "{name} could be there by chance");
            for form in forms_of(secret) {
                let start = usize::from(u16::from_le_bytes([form[0], form[1]]));
                needles.by_start[start].push(needles.forms.len());
                needles.forms.push((name.clone(), form));
            }
        }
        needles
    }

    fn found_in(&self, hay: &[u8]) -> Option<&str> {
        for at in 1..hay.len() {
            let start = usize::from(u16::from_le_bytes([hay[at - 1], hay[at]]));
            for number in &self.by_start[start] {
                let (name, form) = &self.forms[*number];
                if hay[at - 1..].starts_with(form) {
                    return Some(name);
                }
            }
        }
        None
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[track_caller]
fn assert_nowhere(hay: &[u8], place: &str, needles: &Needles) {
    assert_eq!(needles.found_in(hay), None, "it stands in {place}");
}

/// The digits of a file of one line of hexadecimal digits.
fn key_in(file: &Path) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string(file).ok()?;
    strongroom_protocol::id::from_hex::<32>(text.trim()).map(|key| key.to_vec())
}

/// The secret number in a P-256 key, which is a PKCS#8 in PEM (RFC 5915: version 1, then it).
fn scalar_in(file: &Path) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string(file).ok()?;
    let key = text.split("PRIVATE KEY-----").nth(1)?.trim_end_matches("-----END ");
    let der = STANDARD.decode(key.split_whitespace().collect::<String>()).ok()?;
    let start = [2, 1, 1, 4, 32];
    let at = der.windows(5).position(|window| window == start)? + 5;
    der.get(at..at + 32).map(<[u8]>::to_vec)
}

/// What lies in a client's folder and is a secret: now, because keys change.
fn add_profile(secrets: &mut Secrets, home: &Path) {
    let mut files = Vec::new();
    if home.exists() {
        below(home, &mut files);
    }
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let found = match name.as_str() {
            "convergence.secret" | "signing.key" => key_in(&file),
            "tls.key" => scalar_in(&file),
            _ => continue,
        };
        let found = found.unwrap_or_else(|| panic!("{} has no key", file.display()));
        secrets.insert(format!("{name} {}", to_hex(&found[..4])), found);
    }
}

fn add_kit(secrets: &mut Secrets, file: &Path) {
    let kit = Kit::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
    secrets.insert("identity of the kit".into(), kit.identity.as_bytes().to_vec());
    secrets.insert("authority key".into(), kit.authority_key.as_bytes().to_vec());
    secrets.insert("access key".into(), kit.access_key.as_bytes().to_vec());
}

fn add_server(secrets: &mut Secrets, data: &Path) {
    let ledger = std::fs::read(data.join("keys/ledger.key")).unwrap();
    secrets.insert("ledger key".into(), ledger);
    let tls = scalar_in(&data.join("keys/tls.key")).expect("the server's TLS key");
    secrets.insert("TLS key of the server".into(), tls);
}

/// A client that logs all it can.
fn verbose(served: &Served, home: &str, words: &[&str]) -> Output {
    let output = Command::new(program("strongroom"))
        .arg("--home")
        .arg(served.folder.path().join(home))
        .args(words)
        .env("STRONGROOM_LOG", "trace")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    output
}

/// A machine and those who tend it, at work, with everything that was said.
struct Scene {
    served: Served,
    said: Vec<u8>,
    secrets: Secrets,
}

impl Scene {
    fn start() -> Self {
        let mut served = Served::start();
        assert!(served.signal(Signal::TERM).success());
        served.wrapper = vec!["env".into(), "STRONGROOMD_LOG=trace".into()];
        served.serve();
        Self { served, said: Vec::new(), secrets: Secrets::new() }
    }

    fn path(&self, name: &str) -> String {
        self.served.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&mut self, home: &str, words: &[&str]) -> Output {
        let output = verbose(&self.served, home, words);
        self.said.extend_from_slice(&output.stderr);
        // A restore to standard output says plaintext, and that is what it is for.
        if !words.contains(&"-") {
            self.said.extend_from_slice(&output.stdout);
        }
        add_profile(&mut self.secrets, &self.served.folder.path().join(home));
        output
    }

    /// A token in a file, as `@FILE` reads it.
    fn token(&mut self, namespace: Option<&str>, role: &str) -> String {
        let token = self.served.token(namespace, role);
        let count = self.secrets.len();
        let secret = Token::from_text(&token).unwrap().secret.to_vec();
        self.secrets.insert(format!("secret of token {count}"), secret);
        let file = self.path(&format!("token{count}"));
        std::fs::write(&file, &token).unwrap();
        self.secrets.insert(format!("token {count}"), token.into_bytes());
        format!("@{file}")
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

const PASSPHRASE: &str = "nine unlikely words of a passphrase";
const PLAINTEXT: &str = "what nobody may read who has no key";

/// Notes down what a dump command can see of itself and of the program that started it.
fn looking(place: &str) -> String {
    format!(
        "env >> {place}; for file in /proc/$$/cmdline /proc/$PPID/cmdline; do \
         tr '\\0' '\\n' < $file >> {place} 2>&1; done; echo {PLAINTEXT}"
    )
}

#[test]
fn no_secret_is_logged_printed_or_handed_on_by_the_programs_however_much_they_log() {
    let mut scene = Scene::start();
    let seen = scene.path("seen-by-the-command");
    let command = looking(&seen);
    let (words, kits) = (scene.write("words", PASSPHRASE.as_bytes()), scene.path("kits"));
    scene.secrets.insert("passphrase".into(), PASSPHRASE.into());
    let token = scene.token(Some("erp"), "backup");
    scene.run("home", &["setup", "--token", &token, "--kit-folder", &kits]);
    let kit = format!("{kits}/recovery-kit-erp.txt");
    add_kit(&mut scene.secrets, Path::new(&kit));
    let back_up = ["backup", "db", "--", "sh", "-c", &command];
    scene.run("home", &back_up);
    scene.run("fresh", &["restore", "db@latest", "--kit", &kit, "--to", "-"]);
    scene.run("fresh", &["verify", "db@latest", "--kit", &kit]);
    scene.run("fresh", &["key", "kit", "check", "--kit", &kit]);
    scene.run("fresh", &["show", "db@latest", "--kit", &kit]);

    // A second machine, by an export; both in a new epoch; new keys.
    let (file, pass) = (scene.path("erp.export"), ["--passphrase-file", &words]);
    scene.run("home", &[&["key", "export", "--to", &file][..], &pass].concat());
    scene.run("second", &[&["key", "import", &file][..], &pass].concat());
    let token = scene.token(Some("erp"), "backup");
    scene.run("second", &["enroll", "--token", &token]);
    scene.run("home", &["key", "rotate", "--kit", &kit]);
    scene.run("home", &["key", "renew", "--kit", &kit]);
    scene.run("home", &["key", "roll", "--now"]);
    scene.run("home", &back_up);

    // Shares of the kit, joined, and what they are made of.
    let shares = scene.path("shares");
    let split = ["key", "kit", "split", "--kit", &kit, "--folder", &shares];
    scene.run("fresh", &[&split[..], &["--shares", "2", "--threshold", "2"]].concat());
    let share = |number: u8| format!("{shares}/recovery-share-erp-{number}-of-2.txt");
    for number in [1, 2] {
        let share = std::fs::read_to_string(share(number)).unwrap();
        for (at, line) in share.lines().filter(|line| line.starts_with("    \"")).enumerate() {
            let line = line.trim().trim_matches(['"', ',']).to_owned();
            scene.secrets.insert(format!("share {number}, line {at}"), line.into_bytes());
        }
    }
    let (one, two, joined) = (share(1), share(2), scene.path("joined"));
    scene.run("fresh", &["key", "kit", "join", &one, &two, "--to", &joined]);
    for role in ["operator", "audit"] {
        let token = scene.token(None, role);
        scene.run(role, &["enroll", "--token", &token]);
    }
    scene.run("audit", &["audit", "log"]);
    scene.run("operator", &["status"]);

    assert!(scene.served.signal(Signal::TERM).success());
    let log = std::fs::read(scene.served.folder.path().join("log")).unwrap();
    add_server(&mut scene.secrets, &scene.served.data());
    let needles = Needles::of(&scene.secrets);
    for (said, place) in [(&scene.said, "what the clients said"), (&log, "the server's log")] {
        assert!(contains(said, b"TRACE"), "{place}: not all that can be logged");
        assert_nowhere(said, place, &needles);
    }
    // A client shows it to whoever has the kit and asks; the server has it nowhere.
    assert!(!contains(&log, PLAINTEXT.as_bytes()));
    let seen = std::fs::read(seen).unwrap();
    assert!(contains(&seen, b"strongroom\nbackup") || contains(&seen, b"backup\ndb"), "no look");
    assert_nowhere(&seen, "what a dump command sees", &needles);
    // The look finds what is there.
    let (name, secret) = scene.secrets.first_key_value().unwrap();
    let text = [b"key = ", to_hex(secret).as_bytes()].concat();
    assert_eq!(needles.found_in(&text), Some(name.as_str()));
    // Enough was looked for: 2 epochs, 2 times the keys of a machine, and all the others.
    assert!(scene.secrets.len() >= 30, "{}: {:?}", scene.secrets.len(), scene.secrets.keys());
}

/// A token that is given on the command line stands there, and nowhere else.
#[test]
fn a_token_on_the_command_line_is_not_repeated() {
    let mut scene = Scene::start();
    let token = scene.served.token(Some("erp"), "backup");
    let kits = scene.path("kits");
    scene.run("home", &["setup", "--token", &token, "--kit-folder", &kits]);
    let secret = Token::from_text(&token).unwrap().secret.to_vec();
    let secrets = Secrets::from([("secret".into(), secret), ("token".into(), token.into())]);
    assert_nowhere(&scene.said, "what the client said", &Needles::of(&secrets));
    // Nor where it is refused, or mistyped.
    let token = String::from_utf8(secrets["token"].clone()).unwrap();
    for word in [token.clone(), token[..token.len() - 1].to_owned()] {
        let again = ["enroll", "--token", &word];
        let home = scene.served.folder.path().join("again");
        let mut command = Command::new(program("strongroom"));
        command.arg("--home").arg(home).args(again).env("STRONGROOM_LOG", "trace");
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        let said = [output.stdout, output.stderr].concat();
        assert!(!contains(&said, &token.as_bytes()[..token.len() - 1]), "{}", text(&said));
    }
    let data = scene.served.data();
    assert!(scene.served.signal(Signal::KILL).code().is_none());
    assert_in_no_file(&data, &secrets);
    scene.served.serve();
}

/// Bytes that nothing makes shorter, so that what is stored as it is would be found.
fn random(seed: &str, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn word(seed: &str) -> String {
    to_hex(&random(seed, 12))
}

#[track_caller]
fn assert_in_no_file(folder: &Path, secrets: &Secrets) -> usize {
    let mut files = Vec::new();
    below(folder, &mut files);
    let needles = Needles::of(secrets);
    let mut looked_at = 0;
    for file in files {
        let named = file.strip_prefix(folder).unwrap().to_str().unwrap().as_bytes().to_vec();
        assert_nowhere(&named, "a name of a file", &needles);
        let Ok(bytes) = std::fs::read(&file) else { continue }; // a socket
        assert_nowhere(&bytes, &file.display().to_string(), &needles);
        looked_at += 1;
    }
    looked_at
}

fn is_in_a_file(folder: &Path, needle: &[u8]) -> bool {
    let mut files = Vec::new();
    below(folder, &mut files);
    files.iter().any(|file| std::fs::read(file).is_ok_and(|bytes| contains(&bytes, needle)))
}

/// A machine whose files, names and words are all such that one would find them.
fn back_up_everything(served: &Served, kits: &Path) -> (Secrets, PathBuf) {
    let mut hidden = Secrets::new();
    let token = served.token(Some("accounts-of-1602"), "backup");
    let kit_folder = kits.to_str().unwrap();
    let done = served.client("home", &["setup", "--token", &token, "--kit-folder", kit_folder]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let secret = Token::from_text(&token).unwrap().secret.to_vec();
    hidden.insert("token's secret".into(), secret);
    let files = served.folder.path().join("files");
    let deep = files.join(word("folder"));
    std::fs::create_dir_all(&deep).unwrap();
    // One large, one small, one that takes a chunk of its own kind.
    for (name, length) in [("large", 3_000_000), ("small", 700), ("tiny", 40)] {
        let content = random(name, length);
        std::fs::write(deep.join(word(name)), &content).unwrap();
        for at in [0, length / 2 - 16, length - 40] {
            hidden.insert(format!("{name} at {at}"), content[at..at + 24].to_vec());
        }
        hidden.insert(format!("name of {name}"), word(name).into_bytes());
    }
    hidden.insert("name of the folder".into(), word("folder").into_bytes());
    let tag = word("tag");
    hidden.insert("tag".into(), tag.clone().into_bytes());
    let tree = ["--json", "backup", "ledgers-of-1602", "--tag", &tag, files.to_str().unwrap()];
    json(&served.client("home", &tree));
    let (out, error) = (word("dump"), word("standard error"));
    let script = format!("printf '%s' {out}; echo {error} >&2");
    hidden.insert("a dump".into(), out.into_bytes());
    hidden.insert("standard error".into(), error.into_bytes());
    json(&served.client("home", &["--json", "backup", "dumps", "--", "sh", "-c", &script]));
    add_profile(&mut hidden, &served.folder.path().join("home"));
    let kit = kits.join("recovery-kit-accounts-of-1602.txt");
    add_kit(&mut hidden, &kit);
    (hidden, kit)
}

#[test]
fn stolen_disks_have_no_plaintext_no_name_of_a_file_and_no_secret_of_a_client() {
    let mut served = Served::start();
    let kits = served.folder.path().join("kits");
    let (hidden, kit) = back_up_everything(&served, &kits);
    // As it lies there after a power cut, with logs that nobody folded.
    served.signal(Signal::KILL);
    let data = served.data();
    assert!(assert_in_no_file(&data, &hidden) > 10);
    // The look finds what is there in clear, and what is there for good: the server's own keys.
    assert!(is_in_a_file(&data, b"ledgers-of-1602") && is_in_a_file(&data, b"accounts-of-1602"));
    let mut own = Secrets::new();
    add_server(&mut own, &data);
    assert!(is_in_a_file(&data, &own["ledger key"]));
    // After an orderly end too, and all of it comes back.
    served.serve();
    let to = served.folder.path().join("back");
    let restore = ["restore", "ledgers-of-1602", "--kit", kit.to_str().unwrap(), "--to"];
    let done = served.client("fresh", &[&restore[..], &[to.to_str().unwrap()]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(is_in_a_file(&to, &random("large", 3_000_000)[1_000_000..1_000_024]));
    assert!(served.signal(Signal::TERM).success());
    assert!(assert_in_no_file(&data, &hidden) > 10);
}

#[test]
fn an_export_has_no_key_of_the_server_no_plaintext_and_no_name_of_a_file() {
    let mut served = Served::start();
    let kits = served.folder.path().join("kits");
    let (mut hidden, _) = back_up_everything(&served, &kits);
    add_server(&mut hidden, &served.data());
    let disk = served.folder.path().join("disk");
    let exported = served.command(&["export", "--to", disk.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    assert!(assert_in_no_file(&disk, &hidden) >= 3);
    assert!(is_in_a_file(&disk, b"ledgers-of-1602"), "labels are in clear");
    // What a server shows of itself is there, so a key would be found as well.
    let key = std::fs::read(served.data().join("keys/ledger.key")).unwrap();
    let key = ed25519_dalek::SigningKey::from_bytes(&key.try_into().unwrap());
    let shown = to_hex(key.verifying_key().as_bytes());
    let is_there = is_in_a_file(&disk, key.verifying_key().as_bytes());
    assert!(is_there || is_in_a_file(&disk, shown.as_bytes()));
    assert!(served.signal(Signal::TERM).success());
}
