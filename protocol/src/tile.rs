//! Tiles of the ledger, as C2SP `tlog-tiles` names them.
//!
//! A tile of level `L` holds up to 256 hashes of complete subtrees of height `8 L`, an entry bundle
//! up to 256 entries, each after its length as two big-endian bytes. The path is
//! `tile/<L>/<N>[.p/<W>]` or `tile/entries/<N>[.p/<W>]`, with `N` in groups of three digits, all
//! but the last after an `x`: `tile/0/x001/x234/067.p/8`.

use std::fmt::Write;

/// Hashes or entries of a full tile.
pub const TILE_WIDTH: u16 = 256;
/// Highest level of a tile: 256^8 is 2^64.
const LEVEL_MAX: u8 = 7;

/// One tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// What it holds.
    pub content: TileContent,
    /// Its place in its level, from 0.
    pub index: u64,
    /// Hashes or entries in it, 1 to 256; less than 256 is a partial tile.
    pub width: u16,
}

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileContent {
    /// Hashes of subtrees of height eight times this level.
    Hashes(u8),
    /// Entries.
    Entries,
}

impl Tile {
    /// The tile of a path after `tile/`.
    pub fn parse(path: &str) -> Option<Self> {
        let (content, rest) = path.split_once('/')?;
        let content = match content {
            "entries" => TileContent::Entries,
            level => TileContent::Hashes(canonical(level).filter(|level| *level <= LEVEL_MAX)?),
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => {
                (number, canonical(width).filter(|width| (1..TILE_WIDTH).contains(width))?)
            }
            None => (rest, TILE_WIDTH),
        };
        let mut index = 0u64;
        let mut groups = number.split('/').peekable();
        while let Some(group) = groups.next() {
            let digits = match groups.peek() {
                Some(_) => group.strip_prefix('x')?,
                None => group,
            };
            if digits.len() != 3 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        let tile = Self { content, index, width };
        (tile.path() == path).then_some(tile)
    }

    /// The path after `tile/`.
    pub fn path(&self) -> String {
        let mut path = match self.content {
            TileContent::Hashes(level) => format!("{level}/"),
            TileContent::Entries => "entries/".to_owned(),
        };
        let digits = format!("{:03}", self.index);
        let head = digits.len() % 3;
        let padded = if head == 0 { digits } else { format!("{}{digits}", "0".repeat(3 - head)) };
        let groups: Vec<&str> =
            padded.as_bytes().chunks(3).filter_map(|group| str::from_utf8(group).ok()).collect();
        if let Some((last, before)) = groups.split_last() {
            for group in before {
                let _ = write!(path, "x{group}/");
            }
            path.push_str(last);
        }
        if self.width < TILE_WIDTH {
            let _ = write!(path, ".p/{}", self.width);
        }
        path
    }
}

/// A number in its shortest form.
fn canonical<T: std::str::FromStr + std::fmt::Display>(text: &str) -> Option<T> {
    let number: T = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        for path in
            ["0/000", "1/067.p/8", "0/x001/x234/067", "entries/x123/456.p/255", "7/x001/000"]
        {
            let tile = Tile::parse(path).unwrap();
            assert_eq!(tile.path(), path);
        }
        let deep = Tile { content: TileContent::Hashes(0), index: 1_234_067, width: 256 };
        assert_eq!(deep.path(), "0/x001/x234/067");
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "",
            "0",
            "0/",
            "0/1",
            "00/001",
            "8/000",
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/08",
            "0/x000/001",
            "0/001/002",
            "0/x001",
            "-1/000",
            "entries/+01",
            "0/000/",
        ] {
            assert_eq!(Tile::parse(path), None, "{path}");
        }
    }
}
