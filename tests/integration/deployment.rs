//! What is installed beside the programs: units and their sandboxes, man pages, completions,
//! packages' scripts, the container file; and what the programs do for the service manager and
//! against core dumps. `scripts/deb_test.sh` installs it all.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use strongroom_server::config::Config;

use crate::harness::program;
use crate::programs::Served;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// --- Units --------------------------------------------------------------------------------------

/// The values of each key of a unit, in order; sections do not matter here.
fn directives(unit: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read(unit).lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', '[']) {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{unit}: {line}"));
        found.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    found
}

const SERVER_UNIT: &str = "deploy/strongroomd.service";
const BACKUP_UNIT: &str = "deploy/strongroom-backup@.service";
const BACKUP_TIMER: &str = "deploy/strongroom-backup@.timer";

/// What holds for both: no rights, nothing of the machine to write to, no core dump.
const SANDBOX: [(&str, &str); 27] = [
    ("UMask", "0077"),
    ("LimitCORE", "0"),
    ("StateDirectoryMode", "0700"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("NoNewPrivileges", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("KeyringMode", "private"),
    ("ProtectSystem", "strict"),
    ("ProtectProc", "invisible"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("PrivateIPC", "yes"),
    ("DevicePolicy", "closed"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service;~@privileged @resources"),
];

const SERVER_ONLY: [(&str, &str); 10] = [
    ("Type", "notify"),
    ("User", "strongroom"),
    ("Restart", "always"),
    ("StateDirectory", "strongroom"),
    ("PrivateUsers", "yes"),
    ("ProtectHome", "yes"),
    ("NoExecPaths", "/"),
    ("RemoveIPC", "yes"),
    ("ConditionPathExists", "/var/lib/strongroom/keys"),
    ("LimitNOFILE", "8192"),
];

const BACKUP_ONLY: [(&str, &str); 6] = [
    ("Type", "oneshot"),
    ("User", "strongroom-backup"),
    ("StateDirectory", "strongroom-backup"),
    ("ProtectHome", "read-only"),
    ("AssertPathExists", "/etc/strongroom/backup/%i.env"),
    ("RestartPreventExitStatus", "1 2 3 4 5 6 8 9 10"),
];

fn assert_has(unit: &str, wanted: &[(&str, &str)]) {
    let there = directives(unit);
    for (key, value) in wanted {
        let values = there.get(*key).map(|values| values.join(";"));
        assert_eq!(values.as_deref(), Some(*value), "{unit}: {key}=");
    }
}

#[test]
fn units_have_every_wall_of_their_sandbox() {
    for unit in [SERVER_UNIT, BACKUP_UNIT] {
        assert_has(unit, &SANDBOX);
    }
    assert_has(SERVER_UNIT, &SERVER_ONLY);
    assert_has(BACKUP_UNIT, &BACKUP_ONLY);
    assert_has(BACKUP_TIMER, &[("Persistent", "true"), ("WantedBy", "timers.target")]);
}

/// Every exit code of the client that is not "run it again" ends the unit's tries.
#[test]
fn a_backup_unit_repeats_what_is_temporary_and_nothing_else() {
    use strongroom_client::error::ExitCode;
    let ends = &directives(BACKUP_UNIT)["RestartPreventExitStatus"][0];
    let ends: Vec<u8> = ends.split(' ').map(|code| code.parse().unwrap()).collect();
    let last = ExitCode::History.number();
    let others: Vec<u8> = (1..=last).filter(|code| *code != ExitCode::Temporary.number()).collect();
    assert_eq!(ends, others);
}

#[test]
fn units_start_what_the_programs_understand() {
    let start = &directives(SERVER_UNIT)["ExecStart"][0];
    let words = start.strip_prefix("/usr/bin/").unwrap().split(' ');
    strongroom_server::cli::Cli::try_parse_from(words).unwrap();

    let sample = read("deploy/backup.env");
    let backup = sample.lines().find_map(|line| line.strip_prefix("BACKUP=")).unwrap();
    let start = &directives(BACKUP_UNIT)["ExecStart"][0];
    let line = start.replace("%i", "erp").replace("$BACKUP", backup);
    let words = line.strip_prefix("/usr/bin/").unwrap().split(' ');
    let cli = strongroom_client::cli::Cli::try_parse_from(words).unwrap();
    let strongroom_client::cli::Command::Backup(backup) = cli.command else {
        panic!("{line}: no backup");
    };
    assert_eq!(backup.source.to_string(), "erp");
    assert!(!backup.command.is_empty(), "{line}");
}

/// Runs systemd-analyze on a folder with the units, which start the programs as they were built.
fn analyze(arguments: &[&str]) -> Option<Output> {
    let folder = tempfile::tempdir().unwrap();
    for unit in [SERVER_UNIT, BACKUP_UNIT, BACKUP_TIMER] {
        let mut lines = read(unit);
        for name in ["strongroomd", "strongroom"] {
            let path = program(name).display().to_string();
            lines = lines
                .replace(&format!("ExecStart=/usr/bin/{name} "), &format!("ExecStart={path} "));
        }
        let name = Path::new(unit).file_name().unwrap().to_str().unwrap();
        std::fs::write(folder.path().join(name.replace('@', "@erp")), &lines).unwrap();
        std::fs::write(folder.path().join(name), lines).unwrap();
    }
    let started =
        Command::new("systemd-analyze").args(arguments).current_dir(folder.path()).output();
    if started.is_err() {
        eprintln!("SKIPPED: no systemd-analyze here; make test-deb tries the units where it is");
    }
    started.ok()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let units = ["./strongroomd.service", "./strongroom-backup@erp.timer"];
    let Some(output) = analyze(&[&["verify", "--man=no"], &units[..]].concat()) else { return };
    let said = text(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("strongroom")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

/// Exposure in tenths: 0 is none, 100 is all. What is left is the network, which both need, and for
/// a backup the users whose files it reads.
#[test]
fn systemd_rates_the_sandboxes_as_tight() {
    for (unit, threshold) in [("strongroomd.service", 15), ("strongroom-backup@erp.service", 18)] {
        let threshold = format!("--threshold={threshold}");
        let arguments = ["security", "--offline=true", "--no-pager", &threshold];
        let Some(output) = analyze(&[&arguments, &[&*format!("./{unit}")][..]].concat()) else {
            return;
        };
        let said = text(&output.stdout);
        assert!(said.contains("Overall exposure level"), "{said}{}", text(&output.stderr));
        assert!(output.status.success(), "{said}");
    }
}

// --- What the programs do -----------------------------------------------------------------------

#[test]
fn the_server_tells_its_service_manager_how_it_stands() {
    let mut served = Served::start();
    let path = served.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        text(&message[..length]).trim().to_owned()
    };
    assert!(served.signal(rustix::process::Signal::TERM).success());
    served.wrapper = vec!["env".into(), format!("NOTIFY_SOCKET={}", path.display())];
    served.serve();
    assert_eq!(next(), "READY=1");
    assert!(served.signal(rustix::process::Signal::TERM).success());
    assert_eq!(next(), "STOPPING=1");
}

/// Ends the process that a test looks at.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that waits for a token out of a pipe that nobody writes to, as a user without rights.
fn waiting(name: &str, arguments: &[&str], folder: &Path) -> Watched {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join(name);
    std::fs::copy(program(name), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    Watched(command.spawn().unwrap())
}

/// A core dump of a program with keys would be a copy of them. The files below /proc of a process
/// that cannot be dumped belong to root, whoever runs it.
#[test]
fn programs_leave_no_core_dump_and_no_file_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("token");
    assert!(Command::new("mkfifo").args(["-m", "0644"]).arg(&pipe).status().unwrap().success());
    let (token, home) = (format!("@{}", pipe.display()), folder.path().join("home"));
    let home = home.to_str().unwrap();
    let client = ["--home", home, "setup", "--token", &token];
    let server = ["replica", "add", "--data", home, "--token", &token];
    for (name, arguments) in [("strongroom", &client[..]), ("strongroomd", &server[..])] {
        let mut watched = waiting(name, arguments, folder.path());
        let proc = PathBuf::from(format!("/proc/{}", watched.0.id()));
        let fact = |file: &str, start: &str| {
            let text = std::fs::read_to_string(proc.join(file)).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let is_private = || {
            fact("limits", "Max core file size") == "0 0 bytes"
                && fact("status", "Umask:") == "0077"
                && std::fs::metadata(proc.join("environ")).is_ok_and(|file| file.uid() == 0)
        };
        for _ in 0..600 {
            if is_private() {
                break;
            }
            assert!(watched.0.try_wait().unwrap().is_none(), "{name} ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(
            is_private(),
            "{name}: {} {}",
            fact("limits", "Max core"),
            fact("status", "Umask:")
        );
    }
}

// --- Man pages and completions ------------------------------------------------------------------

fn generate(what: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output =
        Command::new(program("strongroom-manual")).arg(what).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    folder
}

fn commands() -> [(clap::Command, &'static str); 2] {
    let client = strongroom_client::cli::Cli::command();
    let server = strongroom_server::cli::Cli::command();
    [(client, "1"), (server, "8")]
}

/// Names of the pages of a command and of all below it.
fn page_names(command: &clap::Command, above: &str, names: &mut Vec<String>) {
    let name = format!("{above}{}", command.get_name());
    for below in command.get_subcommands() {
        page_names(below, &format!("{name}-"), names);
    }
    names.push(name);
}

#[test]
fn every_command_has_a_page_with_every_section() {
    let folder = generate("man");
    let mut wanted = Vec::new();
    for (command, section) in commands() {
        let mut names = Vec::new();
        page_names(&command, "", &mut names);
        wanted.extend(names.into_iter().map(|name| format!("{name}.{section}")));
    }
    wanted.sort();
    let mut there: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, wanted);
    for name in &there {
        let page = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let mut rest = page.as_str();
        for section in ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            // In this order, and with something in it.
            let heading = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
            let found = heading.iter().find_map(|heading| rest.split_once(heading.as_str()));
            let (_, after) = found.unwrap_or_else(|| panic!("{name} has no {section}: {page}"));
            let body = after.split(".SH ").next().unwrap();
            let is_text = |line: &&str| !line.trim().is_empty() && !line.starts_with('.');
            assert!(body.lines().any(|line| is_text(&line)), "{name}: {section} is empty");
            rest = after;
        }
    }
}

#[test]
fn completions_know_every_command() {
    let folder = generate("completions");
    for (command, _) in commands() {
        let name = command.get_name();
        for file in [format!("{name}.bash"), format!("_{name}"), format!("{name}.fish")] {
            let script = std::fs::read_to_string(folder.path().join(&file)).unwrap();
            for below in command.get_subcommands() {
                assert!(script.contains(below.get_name()), "{file}: {}", below.get_name());
            }
        }
        let bash = folder.path().join(format!("{name}.bash"));
        let check = format!("source {} && complete -p {name}", bash.display());
        let output = Command::new("bash").args(["-c", &check]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

// --- Packages and container ---------------------------------------------------------------------

/// The sample says what the defaults are, of every key that the documentation lists.
#[test]
fn the_sample_configuration_shows_every_default() {
    let sample = read("deploy/server.toml");
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let lines = sample.lines().map(|line| if is_key(&line) { &line[1..] } else { line });
    let shown = lines.collect::<Vec<_>>().join("\n");
    let defaults = format!("{:?}", Config::default());
    assert_eq!(format!("{:?}", Config::parse(&sample).unwrap()), defaults);
    assert_eq!(format!("{:?}", Config::parse(&shown).unwrap()), defaults);

    let operations = read("docs/operations.md");
    let table =
        operations.split("### Configuration").nth(1).unwrap().split("\n## ").next().unwrap();
    let keys: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let part = match section {
            "" => shown.split("\n[").next(),
            _ => shown
                .split(&format!("\n[{section}]\n"))
                .nth(1)
                .map(|part| part.split("\n[").next().unwrap()),
        };
        let start = format!("{name} = ");
        let has_key = part.is_some_and(|part| part.lines().any(|line| line.starts_with(&start)));
        assert!(has_key, "deploy/server.toml does not show {key}");
    }
}

/// No script of a package can delete a repository or its user: none of them deletes anything.
#[test]
fn scripts_of_packages_delete_nothing() {
    for package in ["strongroomd", "strongroom"] {
        for script in ["postinst", "prerm", "postrm"] {
            let path = format!("deploy/debian/{package}.{script}");
            let lines = read(&path);
            for word in lines.split(|c: char| c.is_whitespace() || c == ';') {
                let deletes = ["rm", "rmdir", "unlink", "deluser", "userdel", "find", "shred"];
                assert!(!deletes.contains(&word), "{path}: {word}");
            }
            assert!(lines.starts_with("#!/bin/sh\n") && lines.contains("\nset -e\n"), "{path}");
            let parsed = Command::new("sh").arg("-n").arg(root().join(&path)).output().unwrap();
            assert!(parsed.status.success(), "{path}: {}", text(&parsed.stderr));
        }
    }
}

/// Instructions of the container file, with continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let file = read("deploy/Containerfile").replace("\\\n", " ");
    let lines = file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let pair = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.trim().to_owned()));
    lines.map(|line| pair(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

#[test]
fn the_container_runs_the_server_as_a_user_without_rights() {
    let all = instructions();
    for (instruction, rest) in &all {
        assert_ne!(instruction, "ADD", "COPY does what is needed, and nothing from the network");
        if instruction == "FROM" {
            let image = rest.split(' ').next().unwrap();
            assert!(image.starts_with("debian:") && !image.contains('/'), "{image}");
        }
    }
    let last = all.iter().rposition(|(instruction, _)| instruction == "FROM").unwrap();
    let one = |name: &str| {
        let mut found = all[last..].iter().filter(|(instruction, _)| instruction == name);
        let (_, rest) = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(found.next().is_none(), "two of {name}");
        rest.clone()
    };
    let user = one("USER");
    let ids: Vec<u32> = user.split(':').map(|id| id.parse().unwrap()).collect();
    assert!(ids.len() == 2 && !ids.contains(&0), "{user}");
    assert_eq!(one("VOLUME"), "/var/lib/strongroom");
    assert_eq!(one("ENV"), "STRONGROOMD_DATA=/var/lib/strongroom");
    assert_eq!(one("EXPOSE"), "7443");

    let words = |json: &str| serde_json::from_str::<Vec<String>>(json).unwrap();
    let entry = words(&one("ENTRYPOINT"));
    assert_eq!(entry, ["/usr/bin/strongroomd"]);
    let (_, probe) =
        one("HEALTHCHECK").split_once("CMD ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    for line in [[entry, words(&one("CMD"))].concat(), words(&probe)] {
        let data = ["--data".to_owned(), "/var/lib/strongroom".to_owned()];
        let line = [line, data.to_vec()].concat();
        strongroom_server::cli::Cli::try_parse_from(&line).unwrap();
    }
}
