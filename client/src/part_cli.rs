//! What can be typed after `--part`: each part is a small command line of its own.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Parser;
use strongroom_protocol::id::Label;

use crate::error::ClientError;
use crate::files::collect::TreeOptions;
use crate::options::TreeChoice;
use crate::parts::{FOLDER_WORD, PART_WORD, Part, PartContent, PartSet};
use crate::scratch::Scratch;
use crate::source::standard_input;

/// A part, up to the next `--part`.
#[derive(Debug, Parser)]
#[command(name = PART_WORD, no_binary_name = true, disable_help_flag = true)]
struct PartLine {
    /// Its folder in the snapshot: a-z, 0-9, '.', '_', '-'
    name: Label,
    /// Folders and files
    #[arg(conflicts_with_all = ["stdin", "command"], value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Standard input
    #[arg(long, conflicts_with = "command")]
    stdin: bool,
    /// What of folders is backed up.
    #[command(flatten)]
    tree: TreeChoice,
    /// The command leaves the dump in the folder that {} stands for
    #[arg(long, requires = "command")]
    folder_command: bool,
    /// Where that folder is made
    #[arg(long, requires = "folder_command", value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// Command and arguments
    #[arg(last = true)]
    command: Vec<String>,
}

/// Reads the words that follow the first `--part`.
pub fn parse(words: &[OsString]) -> Result<PartSet, ClientError> {
    let mut parts = Vec::new();
    for line in words.split(|word| word == PART_WORD) {
        parts.push(part_of(line)?);
    }
    let typed = words.iter().map(|word| word.to_string_lossy().into_owned());
    PartSet::new(parts, std::iter::once(PART_WORD.to_owned()).chain(typed).collect())
}

fn part_of(line: &[OsString]) -> Result<Part, ClientError> {
    let name = line.first().map_or(OsStr::new(""), OsString::as_os_str).to_string_lossy();
    let refused = |what: &str| ClientError::Usage(format!("--part {name}: {what}"));
    let parsed = PartLine::try_parse_from(line).map_err(|error| refused(&reason_of(&error)))?;
    let PartLine { name: label, paths, stdin, tree, folder_command, scratch, command } = parsed;
    let content = if stdin {
        PartContent::Stream(Box::new(standard_input()?))
    } else if folder_command {
        if !command.iter().any(|word| word.contains(FOLDER_WORD)) {
            return Err(refused("the command must say {} where it wants its folder"));
        }
        let scratch = scratch.unwrap_or_else(Scratch::default_place);
        PartContent::Folder { command, scratch }
    } else if !command.is_empty() {
        PartContent::Command(command)
    } else if !paths.is_empty() {
        PartContent::Tree(tree_of(tree, paths)?)
    } else {
        return Err(refused("nothing in it: give a PATH, --stdin, or a command after --"));
    };
    Ok(Part { name: label, content })
}

/// One file alone is stored under its own name, whatever folder it lies in.
fn tree_of(tree: TreeChoice, paths: Vec<PathBuf>) -> Result<TreeOptions, ClientError> {
    let single = match paths.as_slice() {
        [path] if path.is_file() => path.parent().zip(path.file_name()),
        _ => None,
    };
    let Some((folder, name)) = single else { return tree.of_paths(paths) };
    let base = if folder.as_os_str().is_empty() { ".".into() } else { folder.to_path_buf() };
    let mut options = tree.of_paths(vec![name.into()])?;
    options.walk.base = Some(base);
    Ok(options)
}

/// The first sentence of what the parser says.
fn reason_of(error: &clap::Error) -> String {
    let text = error.to_string();
    let reason = text.split("\n\n").next().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason).trim().replace('\n', " ");
    format!("{reason}; options of the whole backup stand before the first --part")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn parsed(line: &str) -> Result<PartSet, String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn parts_are_what_stands_between_the_words() {
        let set = parsed("db -- pg_dump -Fc -f - erp --part files / --exclude *.tmp").unwrap();
        assert_eq!(
            set.typed().join(" "),
            "--part db -- pg_dump -Fc -f - erp --part files / --exclude *.tmp"
        );
        assert_eq!(set.whole_paths(), ["/"]);
        assert!(!set.can_restart());
        assert!(parsed("one / --part two /etc --special").unwrap().can_restart());
        assert!(parsed("db --folder-command --scratch /tmp -- pg_dump -Fd -f {} erp").is_ok());
        assert!(parsed("db --folder-command -- mydumper --outputdir={}").is_ok());
        assert!(parsed("db --stdin --part files /").is_ok());
    }

    #[test]
    fn mistakes_are_told_by_part() {
        for (line, told) in [
            ("db", "--part db: nothing in it"),
            ("db --part files /", "--part db: nothing in it"),
            ("--part files /", "--part : "),
            ("DB -- cat", "--part DB: "),
            ("files / --json", "--part files: unexpected argument '--json' found; options of the"),
            ("files / -- cat", "--part files: the argument"),
            ("db --stdin -- cat", "--part db: the argument"),
            ("db --exclude x -- cat", "--part db: the argument"),
            ("db --folder-command", "--part db: the following required"),
            ("db --folder-command -- pg_dump -Fd", "must say {}"),
            ("db --scratch /tmp -- cat", "--part db: the following required"),
            ("db -- cat --part", "--part : "),
            ("files / --part db -- cat", "'1-files' and '2-db'"),
            ("db -- cat --part db -- cat", "'db'"),
            ("a --stdin --part b --stdin", "standard input"),
        ] {
            let error = parsed(line).err().unwrap_or_else(|| panic!("{line} was taken"));
            assert!(error.contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn one_file_is_stored_under_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("erp.conf");
        fs::write(&path, b"x").unwrap();
        let single = tree_of(TreeChoice::default(), vec![path.clone()]).unwrap();
        assert_eq!(single.walk.base.as_deref(), Some(folder.path()));
        assert_eq!(single.walk.paths, [PathBuf::from("erp.conf")]);
        assert_eq!(single.walk.whole_paths(), [path.to_str().unwrap()]);
        let two = tree_of(TreeChoice::default(), vec![path.clone(), path]).unwrap();
        assert_eq!(two.walk.base, None);
    }
}
