//! The life of keys as people live it: the real programs.

use std::path::{Path, PathBuf};
use std::process::Output;

use strongroom_client::age_file::generate_identity;

use crate::harness::unpack_dumps;
use crate::programs::{Served, json, text};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn refused(output: &Output, code: i32, why: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
}

fn restored(served: &Served, kit: &Path, snapshot: &serde_json::Value) -> Vec<u8> {
    let snapshot = snapshot["snapshot"].as_str().unwrap();
    let output = served.client("fresh", &["restore", snapshot, "--kit", path(kit), "--to", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout
}

fn passphrase(served: &Served, words: &str) -> PathBuf {
    let file = served.folder.path().join(words.replace(' ', "-"));
    std::fs::write(&file, format!("{words}\n")).unwrap();
    file
}

fn recipients<'a>(kit: &'a Path, verb: &[&'a str]) -> Vec<&'a str> {
    [&["key", "recipients"], verb, &["--kit", path(kit)]].concat()
}

#[test]
fn recipients_are_changed_online_and_by_a_kit_that_stays_offline() {
    let served = Served::start();
    let kit = served.set_up();
    let client = |arguments: &[&str]| served.client("home", arguments);
    let (_, friend) = generate_identity();
    let kit_option = ["--kit", path(&kit)];
    let add = recipients(&kit, &["add", &friend]);
    let added = done(client(&add));
    assert!(added.contains("version 2") && added.contains(&friend), "{added}");
    assert!(added.contains("who was added does not open them"), "{added}");
    refused(&client(&add), 2, "in the list already");
    // Listed with the profile and with the kit alone.
    for (home, more) in [("home", &[][..]), ("fresh", &kit_option[..])] {
        let list = [&["key", "recipients", "list", "--json"], more].concat();
        let state = json(&served.client(home, &list));
        assert_eq!(state["recipients"].as_array().unwrap().len(), 2);
    }
    let remove = recipients(&kit, &["remove", &friend]);
    refused(&client(&remove), 2, "one recipient would be left");
    // Offline: the newest descriptor is read from a file, the next is written to one.
    done(client(&["backup", "erp", path(&kit)]));
    let newest = served.folder.path().join("home/default/descriptor");
    let next = served.folder.path().join("next");
    let offline = ["--force", "--from", path(&newest), "--out", path(&next)];
    let offline = [&remove[..], &offline].concat();
    let moved_away = ["--server", "127.0.0.1:1"];
    let signed = done(served.client("vault", &[&offline[..], &moved_away].concat()));
    assert!(signed.contains("key publish"), "{signed}");
    let publish = ["key", "publish", path(&next)];
    assert!(done(client(&publish)).starts_with("published: version 3"));
    assert!(done(client(&publish)).contains("was there already"));
    assert!(
        done(served.client("fresh", &[&publish[..], &kit_option].concat())).contains("already")
    );
}

#[test]
fn a_second_machine_comes_by_export_and_both_go_through_a_new_epoch() {
    let served = Served::start();
    let kit = served.set_up();
    let [day0, day1, _] = unpack_dumps(served.folder.path());
    let client = |arguments: &[&str]| served.client("home", arguments);
    let second = |arguments: &[&str]| served.client("second", arguments);
    let back_up = |day: &Path| ["--json", "backup", "erp", day.to_str().unwrap()].map(String::from);
    let run = |who: &dyn Fn(&[&str]) -> Output, day: &Path| {
        let words = back_up(day);
        who(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let first = json(&run(&client, &day0));
    let (words, other) = (passphrase(&served, "five random words"), passphrase(&served, "no"));
    let file = served.folder.path().join("erp.export");
    let export = |to: &Path, words: &Path| {
        client(&["key", "export", "--to", path(to), "--passphrase-file", path(words)])
    };
    refused(&export(&file, &other), 2, "at least 12 characters");
    done(export(&file, &words));
    assert_ne!(export(&file, &words).status.code(), Some(0), "it overwrites nothing");
    let import = |file: &Path, words: &Path| {
        second(&["key", "import", path(file), "--passphrase-file", path(words)])
    };
    refused(&import(&file, &passphrase(&served, "six other words")), 5, "passphrase");
    assert!(done(import(&file, &words)).contains("strongroom enroll"));
    done(second(&["enroll", "--token", &served.token(Some("erp"), "backup")]));
    let found = json(&run(&second, &day0));
    assert_eq!(found["sent_chunk_count"], 0, "{found}");

    // The secret is stolen.
    let rotated = done(client(&["key", "rotate", "--kit", path(&kit)]));
    assert!(rotated.contains("epoch 2") && rotated.contains("key renew"), "{rotated}");
    refused(&run(&client, &day1), 2, "strongroom key renew");
    refused(&run(&second, &day1), 2, "strongroom key renew");
    refused(&import(&file, &words), 2, "at epoch 2");
    assert!(done(client(&["key", "renew", "--kit", path(&kit)])).contains("epoch 2"));
    let file = served.folder.path().join("erp.export2");
    done(export(&file, &words));
    assert!(done(import(&file, &words)).contains("its backups go on"));
    let made = [run(&client, &day1), run(&second, &day1)].map(|output| json(&output));
    assert_eq!(made[1]["sent_chunk_count"], 0, "the second finds what the first sent");
    let dumps = [(&first, &day0), (&found, &day0), (&made[0], &day1), (&made[1], &day1)];
    for (summary, day) in dumps {
        assert!(restored(&served, &kit, summary) == std::fs::read(day).unwrap());
    }
}

#[test]
fn a_kit_is_printed_anew_split_and_joined() {
    let served = Served::start();
    let kit = served.set_up();
    let [day0, ..] = unpack_dumps(served.folder.path());
    let client = |arguments: &[&str]| served.client("home", arguments);
    let made = json(&client(&["--json", "backup", "erp", path(&day0)]));
    let folder = |name: &str| served.folder.path().join(name);
    let of_kit = |kit: &Path, verb: &[&str], folder: &Path| {
        let more = ["--kit", path(kit), "--folder", path(folder)];
        served.client("fresh", &[&["key", "kit"], verb, &more].concat())
    };
    let printed = done(of_kit(&kit, &["print"], &folder("new")));
    assert!(printed.contains("descriptor version 1"), "{printed}");
    assert_ne!(of_kit(&kit, &["print"], &folder("new")).status.code(), Some(0), "twice");
    let fresh = folder("new").join("recovery-kit-erp.txt");
    let split = |shares: &str, threshold: &str| {
        let verb = ["split", "--shares", shares, "--threshold", threshold];
        of_kit(&fresh, &verb, &folder("shares"))
    };
    refused(&split("3", "4"), 2, "at least 2");
    assert!(done(split("3", "2")).contains("any 2 of these 3"));
    let share =
        |number: u32| folder("shares").join(format!("recovery-share-erp-{number}-of-3.txt"));
    assert!(folder("shares").join("recovery-share-erp-3-of-3.html").exists());
    let to = folder("joined.txt");
    let join = |shares: &[PathBuf]| {
        let shares: Vec<&str> = shares.iter().map(|share| path(share)).collect();
        served
            .client("fresh", &[&["key", "kit", "join"], &shares[..], &["--to", path(&to)]].concat())
    };
    refused(&join(&[share(1)]), 2, "2 are needed");
    let typed = std::fs::read_to_string(share(3)).unwrap();
    let wrong = folder("typed");
    std::fs::write(&wrong, typed.replacen("number = 3", "number = 1", 1)).unwrap();
    refused(&join(&[share(2), wrong.clone()]), 2, "line 1 of the share is mistyped");
    std::fs::write(&wrong, typed).unwrap();
    done(join(&[share(2), wrong]));
    assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&fresh).unwrap());
    assert!(restored(&served, &to, &made) == std::fs::read(&day0).unwrap());
}

#[test]
fn a_kit_is_checked_against_the_newest_backup() {
    let served = Served::start();
    let kit = served.set_up();
    let [day0, day1, _] = unpack_dumps(served.folder.path());
    let check = |kit: &Path| served.client("fresh", &["key", "kit", "check", "--kit", path(kit)]);
    // Nothing to open yet.
    assert_ne!(check(&kit).status.code(), Some(0));
    json(&served.client("home", &["--json", "backup", "erp", path(&day0)]));
    let newest = json(&served.client("home", &["--json", "backup", "erp", path(&day1)]));
    let words = ["--json", "key", "kit", "check", "--kit", path(&kit)];
    let found = json(&served.client("fresh", &words));
    assert_eq!((&found["snapshot"], &found["source"]), (&newest["snapshot"], &"erp".into()));
    // One whose identity is no recipient any more opens the newest no longer, and says so.
    let (_, friend) = generate_identity();
    let own = std::fs::read_to_string(&kit).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("identity = \"")).unwrap();
    let own = strongroom_client::age_file::recipient_of(own.trim_end_matches('"')).unwrap();
    done(served.client("home", &recipients(&kit, &["add", &friend])));
    done(served.client("home", &[&recipients(&kit, &["remove", &own])[..], &["--force"]].concat()));
    json(&served.client("home", &["--json", "backup", "erp", path(&day0)]));
    refused(&check(&kit), 5, "identity");
}

#[test]
fn showing_keys_that_were_rolled_over_is_an_alarm_in_the_log() {
    let served = Served::start();
    served.set_up();
    let folder = served.folder.path();
    crate::harness::copy_folder(&folder.join("home"), &folder.join("stolen"));
    let log = || std::fs::read_to_string(folder.join("log")).unwrap();
    done(served.client("home", &["key", "roll", "--now"]));
    assert!(!log().contains("ALARM"), "{}", log());
    let back_up = ["backup", "erp", "/etc/hostname"];
    let thief = served.client("stolen", &back_up);
    refused(&thief, 6, "rolled over");
    assert!(log().contains("ALARM: somebody uses a key that was rolled over"), "{}", log());
    done(served.client("home", &back_up));
}
