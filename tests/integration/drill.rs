//! The disaster of `docs/operations.md`, 13, in short: the real programs, a server that is killed
//! and deleted, the kit alone on a machine that knows nothing.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::unpack_dumps;
use crate::programs::{Served, json, text};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn done(output: std::process::Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a machine with nothing but the kit gets from a server.
fn restored(server: &Served, kit: &str, snapshot: &str, more: &[&str]) -> Vec<u8> {
    let address = server.address();
    let mut arguments = vec!["restore", snapshot, "--kit", kit, "--to", "-"];
    arguments.extend(["--server", &address]);
    arguments.extend(more);
    let output = server.client("fresh", &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout
}

/// Waits until all that the primary's ledger says is here.
fn in_sync(replica: &Served, primary: &Served) {
    let size = json(&primary.command(&["status", "--json"]))["status"]["ledger_size"].clone();
    for _ in 0..600 {
        let status = json(&replica.command(&["replica", "status", "--json"]));
        let primary = &status["primaries"][0];
        let entries = |value: &serde_json::Value| value.as_u64().unwrap();
        if primary["state"] == "in_sync" && entries(&primary["followed_entries"]) >= entries(&size)
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the replica is not in sync");
}

#[test]
fn the_first_site_is_gone_and_backups_go_on() {
    let (mut office, mut offsite) = (Served::start(), Served::start());
    let kit = office.set_up();
    let kit = path(&kit);
    let [day0, day1, _] = unpack_dumps(offsite.folder.path());
    let client = |arguments: &[&str]| office.client("home", arguments);
    let first = json(&client(&["--json", "backup", "erp-db", path(&day0)]));
    let token = office.token(None, "replica");
    done(offsite.command(&["replica", "add", "--token", &token, "--name", "office"]));
    in_sync(&offsite, &office);
    let token = offsite.token(Some("erp"), "backup");
    done(client(&["enroll", "--standby", "--token", &token]));
    let listed = done(offsite.command(&["namespaces"]));
    assert!(listed.contains("takes NO backups"), "{listed}");

    office.signal(Signal::KILL);
    std::fs::remove_dir_all(office.data()).unwrap();
    let client = |arguments: &[&str]| office.client("home", arguments);
    let from_replica = restored(&offsite, kit, "erp-db@latest", &["--from-replica"]);
    assert!(from_replica == std::fs::read(&day0).unwrap());

    let folder = offsite.folder.path();
    let (request, descriptor) = (folder.join("erp.request"), folder.join("erp.descriptor"));
    let promote = ["promote", "--namespace", "erp"];
    let asked = done(offsite.command(&[&promote[..], &["--request", path(&request)]].concat()));
    let sign = ["key", "kit", "promote", "--kit", kit, "--request", path(&request)];
    let sign = [&sign[..], &["--out", path(&descriptor)]].concat();
    let signed = done(offsite.client("fresh", &sign));
    let key = asked.split("ledger key").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!(key.len() == 64 && signed.contains(key), "{asked}{signed}");
    // A file that is there is not overwritten.
    assert!(!offsite.client("fresh", &sign).status.success());
    // The request is no descriptor.
    let wrong = [&promote[..], &["--descriptor", path(&request)]].concat();
    let refused = offsite.command(&wrong);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("nothing was changed"), "{}", text(&refused.stderr));
    let right = [&promote[..], &["--descriptor", path(&descriptor)]].concat();
    let moved = done(offsite.command(&right));
    assert!(moved.contains("takes its backups"), "{moved}");
    let wrong_way = ["demote", "--namespace", "erp", "--descriptor", path(&descriptor)];
    assert_eq!(offsite.command(&wrong_way).status.code(), Some(1));

    // It stays so after a kill.
    offsite.signal(Signal::KILL);
    offsite.serve();
    let second = json(&client(&["--json", "backup", "erp-db", path(&day1)]));
    for (summary, day) in [(first, day0), (second, day1)] {
        let name = summary["snapshot"].as_str().unwrap();
        assert!(restored(&offsite, kit, name, &[]) == std::fs::read(&day).unwrap());
        let own = done(client(&["list", "erp-db", "--json"]));
        assert!(own.contains(name), "{own}");
    }
}
