//! The rules of `docs/style.md` that a machine can check. Only the standard library, a second.
//!
//! `docs/architecture.md` holds the table of ranks, one row a source file:
//! `| rank | path in backquotes | purpose |`. A file may import files of a lower rank and files of
//! its own folder; nothing may go in circles, except that a file may use its folder's `mod.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LINE_MAX: usize = 100;
const FUNCTION_MAX_LINES: usize = 70;
const FILE_MAX_LINES: usize = 500;
const TEST_FILE_MAX_LINES: usize = 700;
const CRATES: [&str; 3] = ["protocol", "client", "server"];
/// Parts of the names of packages that open or seal.
const CIPHERS: [&str; 9] =
    ["chacha20", "aes", "salsa20", "crypto_box", "sodium", "age", "openssl", "sm4", "aead"];

/// Code that may stand in some files only.
struct Ban {
    code: &'static str,
    /// Path prefixes where it may stand, and `reason` says why nowhere else.
    allowed: &'static [&'static str],
    reason: &'static str,
}

const BANS: [Ban; 13] = [
    Ban { code: "rocksdb", allowed: &["server/src/store/"], reason: "the store alone knows it" },
    Ban {
        code: "SystemTime::now",
        allowed: &["server/src/clock.rs", "client/src/clock.rs"],
        reason: "time is an argument; one file per binary reads it",
    },
    Ban {
        code: "Instant::now",
        allowed: &["server/src/clock.rs", "client/src/clock.rs"],
        reason: "time is an argument; one file per binary reads it",
    },
    Ban {
        code: "clock_gettime",
        allowed: &["server/src/clock.rs"],
        reason: "time is an argument; one file per binary reads it",
    },
    Ban {
        code: "hyper",
        allowed: &[
            "client/src/connection.rs",
            "client/src/transport.rs",
            "server/src/answering.rs",
            "server/src/feed/connection.rs",
            "server/src/handler/",
            "server/src/lent.rs",
            "server/src/listener.rs",
            "server/src/probes.rs",
            "server/src/replica/peer.rs",
            "server/src/router.rs",
            "server/src/successor.rs",
        ],
        reason: "HTTP stays at the edge",
    },
    Ban { code: "println!", allowed: &[], reason: "it panics where nobody reads" },
    Ban { code: "print!", allowed: &[], reason: "it panics where nobody reads" },
    Ban {
        code: "eprintln!",
        allowed: &["client/src/main.rs", "server/src/main.rs"],
        reason: "only main says why the process ends; the rest logs or returns",
    },
    Ban {
        code: "fs::rename",
        allowed: &["client/src/cache.rs", "client/src/durable.rs", "server/src/durable.rs"],
        reason: "durable.rs syncs file and folder around it; a cache may be lost",
    },
    Ban { code: ".unwrap()", allowed: &[], reason: "say what to do instead" },
    Ban { code: "todo!", allowed: &[], reason: "unfinished" },
    Ban { code: "unimplemented!", allowed: &[], reason: "unfinished" },
    Ban { code: "::*", allowed: &[], reason: "a glob import hides what is used" },
];

/// Casts that can lose something; `protocol` uses `from` and `try_from`.
const CAST_TARGETS: [&str; 13] =
    ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "isize", "f64", "f32"];

struct Source {
    /// Relative to the root of the repository, with `/`.
    path: String,
    text: String,
    is_test: bool,
}

impl Source {
    /// Lines of code with their numbers: without comments, texts and test modules.
    fn code(&self) -> Vec<(usize, String)> {
        let kept = if self.is_test { &self.text } else { before_tests(&self.text) };
        let bare = without_comments_and_texts(kept);
        bare.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
    }
}

fn root() -> PathBuf {
    let here = option_env!("CARGO_MANIFEST_DIR").unwrap_or(".");
    Path::new(here).to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// All files below the root with one of these endings; not what was built, not what git keeps.
fn files(endings: &[&str]) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "artifacts", "corpus", "data"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(root()).unwrap();
                found.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = files(&[".rs"])
        .into_iter()
        .map(|path| {
            let of_tests = ["tests/", "benches/", "fuzz/"];
            let is_test = of_tests
                .iter()
                .any(|part| path.starts_with(part) || path.contains(&format!("/{part}")));
            Source { text: read(&path), path, is_test }
        })
        .collect();
    // A module that its parent declares for tests only is a test, whatever its name.
    let declared: BTreeSet<String> = sources.iter().flat_map(declared_for_tests).collect();
    for source in &mut sources {
        source.is_test |= declared.contains(&source.path);
    }
    sources
}

fn declared_for_tests(parent: &Source) -> Vec<String> {
    let folder = match parent.path.strip_suffix(".rs").unwrap() {
        stem if stem.ends_with("/mod") || stem.ends_with("/lib") || stem.ends_with("/main") => {
            parent.path.rsplit_once('/').unwrap().0.to_owned()
        }
        stem => stem.to_owned(),
    };
    let lines: Vec<&str> = parent.text.lines().collect();
    let pairs = lines.iter().zip(lines.iter().skip(1));
    pairs
        .filter(|(attribute, _)| **attribute == "#[cfg(test)]")
        .filter_map(|(_, line)| line.strip_prefix("mod ")?.strip_suffix(';'))
        .map(|module| format!("{folder}/{module}.rs"))
        .collect()
}

/// The part of a file that stands before its inline test module.
fn before_tests(text: &str) -> &str {
    let end = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub mod tests {"]
        .iter()
        .filter_map(|start| text.find(start))
        .min();
    &text[..end.unwrap_or(text.len())]
}

/// The same text with blanks for comments and for what stands in quotes.
fn without_comments_and_texts(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let rest = &text[at..];
        let previous = at.checked_sub(1).map_or(b' ', |before| bytes[before]);
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with('"') {
            end_of_text(rest)
        } else if !is_word(previous) && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            end_of_raw_text(rest)
        } else if rest.starts_with('\'') {
            end_of_character(rest)
        } else {
            out.push(bytes[at]);
            at += 1;
            continue;
        };
        out.extend(bytes[at..at + end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at += end;
    }
    String::from_utf8(out).unwrap()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn end_of_text(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn end_of_raw_text(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 1; // a raw identifier
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    rest[body..].find(&closing).map_or(rest.len(), |end| body + end + closing.len())
}

/// A character literal, or the tick of a lifetime.
fn end_of_character(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => rest[2..].find('\'').map_or(1, |end| {
            // '\'' has its closing quote one further.
            if end == 0 { 4.min(rest.len()) } else { 2 + end + 1 }
        }),
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// Whether `code` stands in the line as a word of its own.
fn has_code(line: &str, code: &str) -> bool {
    line.match_indices(code).any(|(at, _)| {
        let before = line[..at].bytes().next_back().unwrap_or(b' ');
        let after = line[at + code.len()..].bytes().next().unwrap_or(b' ');
        let starts_word = is_word(code.as_bytes()[0]);
        let ends_word = is_word(*code.as_bytes().last().unwrap());
        !(starts_word && is_word(before) || ends_word && is_word(after))
    })
}

fn report(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}:\n  {}\n", violations.join("\n  "));
}

#[test]
fn every_source_file_says_what_it_owns() {
    let missing: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    report("a file starts with //!", &missing);
}

/// A file may be as long as a test file when what is above its inline tests is short enough.
#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let above_tests = before_tests(&source.text).lines().count();
        let code_lines = if source.is_test { 0 } else { above_tests };
        if lines > TEST_FILE_MAX_LINES || code_lines > FILE_MAX_LINES {
            long.push(format!("{}: {code_lines} lines, {lines} with tests", source.path));
        }
        long.extend(long_functions(&source));
    }
    report("files and functions are short", &long);
}

/// A function runs from its first line to the closing brace with the same indentation.
fn long_functions(source: &Source) -> Vec<String> {
    let bare = without_comments_and_texts(&source.text);
    let lines: Vec<&str> = bare.lines().collect();
    let mut long = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indentation = &line[..line.len() - trimmed.len()];
        let is_function = trimmed.starts_with("fn ")
            || (trimmed.contains(" fn ") && trimmed.starts_with(['p', 'a', 'c', 'u', 'e']));
        if !is_function || line.trim_end().ends_with(';') {
            continue;
        }
        let closing = format!("{indentation}}}");
        let rest = lines[first..].iter().position(|line| line.trim_end() == closing);
        let length = rest.map_or(0, |last| last + 1);
        if length > FUNCTION_MAX_LINES {
            long.push(format!("{}:{}: {length} lines of function", source.path, first + 1));
        }
    }
    long
}

#[test]
fn lines_are_short_and_ascii() {
    let mut bad = Vec::new();
    let chinese = |path: &str| path.contains(".zh");
    for path in files(&[".rs", ".sh", ".toml", ".md", ".yml", "Makefile"]) {
        for (index, line) in read(&path).lines().enumerate() {
            if !line.is_ascii() && !chinese(&path) {
                bad.push(format!("{path}:{}: not ASCII", index + 1));
            }
            let is_code = path.ends_with(".rs") || path.ends_with(".sh");
            if is_code && line.chars().count() > LINE_MAX {
                bad.push(format!("{path}:{}: more than {LINE_MAX} columns", index + 1));
            }
        }
    }
    report("lines are ASCII and of at most 100 columns", &bad);
}

#[test]
fn some_code_stands_in_some_files_only() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        for (number, line) in source.code() {
            for ban in &BANS {
                let is_allowed = ban.allowed.iter().any(|path| source.path.starts_with(path));
                if !is_allowed && has_code(&line, ban.code) {
                    let (path, code, reason) = (&source.path, ban.code, ban.reason);
                    found.push(format!("{path}:{number}: {code} ({reason})"));
                }
            }
        }
    }
    report("code in the wrong place", &found);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut found = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| has_code(line, mark)) {
                found.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    report("unfinished", &found);
}

#[test]
fn protocol_does_not_cast() {
    let mut casts = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("protocol/src/")) {
        for (number, line) in source.code() {
            let is_cast = |kind: &&str| has_code(&line, &format!("as {kind}"));
            if CAST_TARGETS.iter().any(is_cast) {
                casts.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report("protocol converts with from and try_from", &casts);
}

#[test]
fn crates_depend_in_one_direction() {
    let forbidden = [
        ("protocol", ["strongroom-client", "strongroom-server"].as_slice()),
        ("protocol", &["tokio", "hyper", "rocksdb", "getrandom", "tempfile"]),
        ("client", &["strongroom-server"]),
        ("server", &["strongroom-client"]),
        ("server", &CIPHERS),
        ("protocol", &CIPHERS),
    ];
    let mut found = Vec::new();
    for (name, packages) in forbidden {
        let manifest = read(&format!("{name}/Cargo.toml"));
        assert!(!manifest.is_empty(), "{name} has no manifest");
        let without_dev = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        let dependencies = without_dev.split("[dependencies]").nth(1).unwrap_or_default();
        for line in dependencies.lines() {
            let package = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if packages.iter().any(|bad| package == *bad || package.starts_with(&format!("{bad}-")))
            {
                found.push(format!("{name} depends on {package}"));
            }
        }
    }
    let others = [("client/", "strongroom_server"), ("server/", "strongroom_client")];
    for source in sources() {
        for (folder, other) in others {
            if source.path.starts_with(folder) && source.text.contains(other) {
                found.push(format!("{} names {other}", source.path));
            }
        }
    }
    report("client and server never see each other, the server sees no cipher", &found);
}

#[test]
fn every_error_code_is_in_the_protocol_document() {
    let document = read("docs/protocol.md");
    let source = read("protocol/src/error.rs");
    let names = source.split("fn name").nth(1).and_then(|rest| rest.split("fn ").next()).unwrap();
    let names: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 10, "the codes were not found in protocol/src/error.rs");
    let missing = names.iter().filter(|name| !document.contains(&format!("`{name}`")));
    let missing: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
    report("error codes missing in docs/protocol.md", &missing);
}

/// Every text of `metrics.rs` that can be a metric's or a label's name.
#[test]
fn every_metric_is_in_the_operations_document() {
    let document = read("docs/operations.md");
    let text = read("server/src/metrics.rs");
    let is_name = |text: &&str| {
        text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let names = before_tests(&text).split('"').skip(1).step_by(2).filter(is_name);
    let names: BTreeSet<&str> = names.collect();
    assert!(names.len() > 10, "the names were not found in server/src/metrics.rs");
    let missing = names.iter().filter(|name| !document.contains(*name));
    let missing: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
    report("metrics missing in docs/operations.md", &missing);
}

// --- Ranks ---------------------------------------------------------------------------------------

/// File -> files that it imports, within one crate, tests left out.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn crate_sources() -> Vec<Source> {
    let in_crate = |path: &str| CRATES.iter().any(|name| path.starts_with(&format!("{name}/src/")));
    sources().into_iter().filter(|source| !source.is_test && in_crate(&source.path)).collect()
}

/// `server/src/store/mod.rs` -> `server`, `["store"]`.
fn module_of(path: &str) -> (String, Vec<String>) {
    let (name, rest) = path.split_once("/src/").unwrap();
    let rest = rest.strip_suffix(".rs").unwrap();
    let mut parts: Vec<String> = rest.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&parts.last().unwrap().as_str()) {
        parts.pop();
    }
    (name.to_owned(), parts)
}

fn imports() -> Imports {
    let sources = crate_sources();
    let by_module: BTreeMap<(String, Vec<String>), String> = sources
        .iter()
        .filter(|source| !source.path.ends_with("/main.rs"))
        .map(|source| (module_of(&source.path), source.path.clone()))
        .collect();
    let mut imports = Imports::new();
    for source in &sources {
        let (name, own) = module_of(&source.path);
        let code: Vec<String> = source.code().into_iter().map(|(_, line)| line).collect();
        let found = imports.entry(source.path.clone()).or_default();
        for path in paths_in(&code.join(" ")) {
            let Some(absolute) = resolve(&own, &path) else { continue };
            let longest = (0..=absolute.len())
                .rev()
                .find_map(|length| by_module.get(&(name.clone(), absolute[..length].to_vec())));
            // The crate's own root only lists modules.
            found.extend(longest.filter(|path| !path.ends_with("/lib.rs")).cloned());
        }
        found.remove(&source.path);
    }
    imports
}

fn resolve(own: &[String], path: &[String]) -> Option<Vec<String>> {
    let (mut base, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (own.to_vec(), &path[1..]),
        "super" => (own.to_vec(), path),
        _ => return None,
    };
    while rest.first().is_some_and(|part| part == "super") {
        base.pop()?;
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// All paths that start with `crate`, `self` or `super`, braces multiplied out.
fn paths_in(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].bytes().next_back().unwrap_or(b' ');
            if !is_word(before) && before != b':' {
                expand(&code[at..], &[], &mut paths);
            }
        }
    }
    paths
}

/// Reads one path or use-tree from the start of `code`; answers what comes after it.
fn expand<'a>(code: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = expand(rest, prefix, paths);
            if after.len() == rest.len() {
                return after; // not a use-tree
            }
            rest = after;
        }
    }
    let end = code.bytes().position(|byte| !is_word(byte)).unwrap_or(code.len());
    let mut path = prefix.to_vec();
    path.push(code[..end].to_owned());
    let rest = &code[end..];
    if let Some(rest) = rest.strip_prefix("::")
        && rest.trim_start().starts_with(|c: char| c == '{' || c == '_' || c.is_alphabetic())
    {
        return expand(rest, &path, paths);
    }
    paths.push(path);
    let renamed = rest.trim_start().strip_prefix("as ").map(|rest| rest.trim_start());
    renamed.map_or(rest, |rest| rest.trim_start_matches(|c: char| c == '_' || c.is_alphanumeric()))
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

/// Whether `to` is the `mod.rs` of the folder that `from` stands in, or of one above.
fn is_own_mod(from: &str, to: &str) -> bool {
    to.ends_with("/mod.rs") && from.starts_with(&format!("{}/", folder_of(to)))
}

#[test]
fn imports_do_not_go_in_circles() {
    let imports = imports();
    let mut left: BTreeMap<&String, BTreeSet<&String>> = imports
        .iter()
        .map(|(from, to)| (from, to.iter().filter(|to| !is_own_mod(from, to)).collect()))
        .collect();
    loop {
        let done: BTreeSet<&String> =
            left.iter().filter(|(_, to)| to.is_empty()).map(|(from, _)| *from).collect();
        if done.is_empty() {
            break;
        }
        left.retain(|from, _| !done.contains(from));
        left.values_mut().for_each(|to| to.retain(|to| !done.contains(to)));
    }
    let circle: Vec<_> = left.iter().map(|(from, to)| format!("{from} -> {to:?}")).collect();
    report("these import each other, or what does", &circle);
}

/// Rows of the table of ranks: path -> rank.
fn ranks() -> BTreeMap<String, u32> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let rank = cells.next()?.parse().ok()?;
        Some((cells.next()?.strip_prefix('`')?.strip_suffix('`')?.to_owned(), rank))
    };
    read("docs/architecture.md").lines().filter_map(row).collect()
}

#[test]
fn every_source_file_has_its_rank_in_the_architecture_document() {
    let listed = ranks();
    let there: BTreeSet<String> = crate_sources().into_iter().map(|source| source.path).collect();
    let mut wrong: Vec<String> = there
        .iter()
        .filter(|path| !listed.contains_key(*path))
        .map(|path| format!("missing: | {} | `{path}` | |", lowest_rank(path, &imports())))
        .collect();
    wrong.extend(listed.keys().filter(|p| !there.contains(*p)).map(|p| format!("gone: {p}")));
    report("the table of docs/architecture.md", &wrong);
}

/// The lowest rank that the imports of a file allow: a help for whoever writes the table.
fn lowest_rank(path: &str, imports: &Imports) -> u32 {
    let unit = |path: &str| {
        let (name, parts) = module_of(path);
        let top = parts.first().cloned().unwrap_or_else(|| path.to_owned());
        format!("{name}/{top}")
    };
    let mut units: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in imports {
        let own = unit(from);
        let others = to.iter().map(|to| unit(to)).filter(|other| *other != own);
        units.entry(own.clone()).or_default().extend(others);
    }
    let mut ranks: BTreeMap<&String, u32> = units.keys().map(|unit| (unit, 0)).collect();
    for _ in 0..units.len() {
        for (from, to) in &units {
            let above = to.iter().filter_map(|to| ranks.get(to)).max().map_or(0, |rank| rank + 1);
            ranks.insert(from, above.min(99));
        }
    }
    ranks.get(&unit(path)).copied().unwrap_or(0)
}

#[test]
fn imports_go_down_the_ranks() {
    let ranks = ranks();
    let mut wrong = Vec::new();
    for (from, to) in imports() {
        for to in to.iter().filter(|to| folder_of(to) != folder_of(&from) || is_crate_root(to)) {
            let (Some(upper), Some(lower)) = (ranks.get(&from), ranks.get(to)) else { continue };
            if lower >= upper && !is_own_mod(&from, to) {
                wrong.push(format!("{from} (rank {upper}) imports {to} (rank {lower})"));
            }
        }
    }
    report("imports go down the ranks", &wrong);
}

/// Files directly below `src` are ordered by rank; those of a deeper folder are one unit.
fn is_crate_root(path: &str) -> bool {
    folder_of(path).ends_with("/src")
}

// --- The checks themselves -----------------------------------------------------------------------

#[test]
fn comments_texts_and_tests_are_not_code() {
    let text = "a('\\'', '\"') // b\n\"c\\\"\" /* d */ r#\"e\"f\"# 'static g\n\
                #[cfg(test)]\nmod tests {\nh";
    let bare = without_comments_and_texts(before_tests(text));
    let words: Vec<&str> = bare.split(|c: char| !c.is_alphanumeric()).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    assert_eq!(words, ["a", "static", "g"]);
    assert!(has_code("use rocksdb::DB;", "rocksdb") && !has_code("my_rocksdb_x", "rocksdb"));
    assert!(has_code("print!(1)", "print!") && !has_code("eprint!(1)", "print!"));
}

#[test]
fn imports_are_read_from_use_trees_and_paths() {
    let code = "use crate::{a::{B, c::D as E}, f}; let x = super::g::H(self::i());";
    let mut paths: Vec<String> = paths_in(code).iter().map(|path| path.join("::")).collect();
    paths.sort();
    assert_eq!(paths, ["crate::a::B", "crate::a::c::D", "crate::f", "self::i", "super::g::H"]);
    let own = ["store".to_owned(), "meta".to_owned()];
    let path = ["super".to_owned(), "index".to_owned()];
    assert_eq!(resolve(&own, &path), Some(vec!["store".to_owned(), "index".to_owned()]));
}

#[test]
fn long_functions_are_seen() {
    let body = "    x();\n".repeat(FUNCTION_MAX_LINES - 1);
    let text = format!("impl A {{\n    pub const fn f() {{\n{body}    }}\n}}\n");
    let source = Source { path: "a.rs".to_owned(), text, is_test: false };
    assert_eq!(long_functions(&source).len(), 1);
}
