//! What a backup leaves out, by patterns.
//!
//! A pattern without `/` names files and folders wherever they are; one with `/` is compared with
//! the whole path. `*` and `?` stay within one name, `**` does not. What is in a folder that is
//! left out is left out with it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use strongroom_protocol::catalogue::split_path;

use crate::error::ClientError;

/// Compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    by_name: GlobSet,
    by_path: GlobSet,
}

impl Excludes {
    /// Compiles patterns as they were typed.
    pub fn parse(patterns: &[String]) -> Result<Self, ClientError> {
        let (mut by_name, mut by_path) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let trimmed = pattern.trim_end_matches('/');
            let glob = GlobBuilder::new(trimmed.trim_start_matches("./").trim_start_matches('/'))
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| fail(pattern, &error))?;
            match trimmed.contains('/') {
                true => by_path.add(glob),
                false => by_name.add(glob),
            };
        }
        let build =
            |builder: GlobSetBuilder| builder.build().map_err(|error| fail("together", &error));
        Ok(Self { by_name: build(by_name)?, by_path: build(by_path)? })
    }

    /// Whether what has this path in the catalogue is left out.
    pub fn is_match(&self, path: &[u8]) -> bool {
        let is_in = |set: &GlobSet, text: &[u8]| {
            !set.is_empty() && set.is_match_candidate(&Candidate::new(as_path(text)))
        };
        is_in(&self.by_name, split_path(path).1) || is_in(&self.by_path, path)
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn fail(pattern: &str, error: &globset::Error) -> ClientError {
    ClientError::Usage(format!("--exclude {pattern}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_go_by_name_or_by_path() {
        let cases: [(&str, &[&str], &[&str]); 6] = [
            ("*.tmp", &["a.tmp", "x/y/b.tmp"], &["a.tmpl", "tmp"]),
            ("/srv/cache", &["srv/cache"], &["cache", "x/srv/cache", "srv/cache2"]),
            ("srv/*/log", &["srv/a/log"], &["srv/a/b/log", "log"]),
            ("**/target/debug", &["target/debug", "a/b/target/debug"], &["target"]),
            ("cache/", &["cache", "x/cache"], &["caches"]),
            ("[ab]?", &["ax", "d/bz"], &["a", "cx"]),
        ];
        for (pattern, matching, other) in cases {
            let excludes = Excludes::parse(&[pattern.to_owned()]).unwrap();
            for path in matching {
                assert!(excludes.is_match(path.as_bytes()), "{pattern} {path}");
            }
            for path in other {
                assert!(!excludes.is_match(path.as_bytes()), "{pattern} {path}");
            }
        }
        let bytes = Excludes::parse(&["*.bak".to_owned()]).unwrap();
        assert!(bytes.is_match(b"a\xff.bak") && !bytes.is_match(b"a\xff"));
        assert!(Excludes::parse(&["[".to_owned()]).is_err());
        assert!(!Excludes::default().is_match(b"anything"));
    }
}
