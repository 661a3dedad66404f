//! The licences of all libraries that a program contains, as one text: their names, versions and
//! terms, then the texts that came with them, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Writes `FOLDER/strongroom` and `FOLDER/strongroomd`.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let graph = Graph::of_workspace()?;
    for (program, package) in
        [("strongroom", "strongroom-client"), ("strongroomd", "strongroom-server")]
    {
        fs::write(folder.join(program), text(&graph.libraries_of(package)?)?)?;
    }
    Ok(())
}

/// A package that was not written here.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Library {
    name: String,
    version: String,
    terms: String,
    folder: PathBuf,
}

/// What `cargo metadata` says: packages, and what each is linked with.
struct Graph {
    packages: BTreeMap<String, Value>,
    linked: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn of_workspace() -> io::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--locked", "--format-version=1", "--filter-platform"])
            .arg(host()?)
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let all: Value = serde_json::from_slice(&output.stdout)?;
        let packages = rows(&all["packages"]).map(|row| (word(&row["id"]), row.clone())).collect();
        let linked = rows(&all["resolve"]["nodes"])
            .map(|row| {
                let below = rows(&row["deps"]).filter(|dep| is_linked(dep));
                (word(&row["id"]), below.map(|dep| word(&dep["pkg"])).collect())
            })
            .collect();
        Ok(Self { packages, linked })
    }

    fn libraries_of(&self, program: &str) -> io::Result<BTreeSet<Library>> {
        let is_program = |row: &&Value| row["name"] == program;
        let start = self.packages.values().find(is_program);
        let start = start.ok_or_else(|| io::Error::other(format!("no package {program}")))?;
        let (mut seen, mut next) = (BTreeSet::new(), vec![word(&start["id"])]);
        let mut found = BTreeSet::new();
        while let Some(id) = next.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            next.extend(self.linked.get(&id).into_iter().flatten().cloned());
            let package = &self.packages[&id];
            if package["source"].is_null() {
                continue; // of this workspace
            }
            let manifest = PathBuf::from(word(&package["manifest_path"]));
            found.insert(Library {
                name: word(&package["name"]),
                version: word(&package["version"]),
                terms: word(&package["license"]),
                folder: manifest.parent().unwrap_or(Path::new("/")).to_owned(),
            });
        }
        Ok(found)
    }
}

/// The kind of machine that this was built for and on.
fn host() -> io::Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| io::Error::other("rustc -vV names no host"))
}

/// Whether a dependency ends up in the program: not if it is only for building or testing.
fn is_linked(dependency: &Value) -> bool {
    rows(&dependency["dep_kinds"]).any(|row| row["kind"].is_null())
}

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn text(libraries: &BTreeSet<Library>) -> io::Result<String> {
    let mut page = String::from("Libraries in this program:\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for library in libraries {
        let name = format!("{} {}", library.name, library.version);
        page.push_str(&format!("{name}: {}\n", library.terms));
        for file in licence_files(&library.folder)? {
            let terms = String::from_utf8_lossy(&fs::read(file)?).trim_end().to_owned();
            texts.entry(terms).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(terms, names)| (names, terms)).collect();
    texts.sort();
    for (mut names, terms) in texts {
        names.dedup();
        page.push_str(&format!("\n{}\n{}\n\n{terms}\n", "=".repeat(72), names.join(", ")));
    }
    Ok(page)
}

/// Licences at the top of a package and one folder below, where bundled C and C++ sources are.
fn licence_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];
            if path.is_file() && is_licence.iter().any(|start| name.starts_with(start)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
