//! Tiles of the ledger, as C2SP `tlog-tiles` names them.
//!
//! A tile of level `L` holds up to 256 hashes of complete subtrees of height `8 L`, an entry bundle
//! up to 256 entries, each after its length as two big-endian bytes. The path is
//! `tile/<L>/<N>[.p/<W>]` or `tile/entries/<N>[.p/<W>]`, with `N` in groups of three digits, all
//! but the last after an `x`: `tile/0/x001/x234/067.p/8`.

use std::fmt::Write;

use crate::codec::DecodeError;
use crate::merkle::Hash;

const BUNDLE: &str = "entry bundle";

/// Hashes or entries of a full tile.
pub const TILE_WIDTH: u16 = 256;
/// Height of a tile: a level up is this many levels of the tree up.
pub const TILE_HEIGHT: u32 = 8;
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

    /// The tile `index` of `content` in a tree of `size` leaves, as wide as it can be there.
    pub fn widest(content: TileContent, index: u64, size: u64) -> Option<Self> {
        let level = match content {
            TileContent::Hashes(level) => level,
            TileContent::Entries => 0,
        };
        let before = index.checked_mul(u64::from(TILE_WIDTH))?;
        let count = count_at(level, size).checked_sub(before)?.min(u64::from(TILE_WIDTH));
        let width = u16::try_from(count).ok().filter(|width| *width > 0)?;
        Some(Self { content, index, width })
    }

    /// Whether a tree of `size` leaves has all of it.
    pub fn is_within(&self, size: u64) -> bool {
        Self::widest(self.content, self.index, size).is_some_and(|most| self.width <= most.width)
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

/// What a tile of this level can hold in a tree of `size` leaves.
pub fn count_at(level: u8, size: u64) -> u64 {
    size.checked_shr(u32::from(level).saturating_mul(TILE_HEIGHT)).unwrap_or(0)
}

/// Writes an entry bundle: each entry after its length as two big-endian bytes.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), DecodeError> {
    let length = u16::try_from(entry.len()).map_err(|_| DecodeError::TooLong(BUNDLE))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Reads an entry bundle of exactly `width` entries.
pub fn entries_of(bundle: &[u8], width: u16) -> Result<Vec<&[u8]>, DecodeError> {
    let (mut entries, mut rest) = (Vec::with_capacity(usize::from(width)), bundle);
    for _ in 0..width {
        let (length, tail) = rest.split_first_chunk::<2>().ok_or(DecodeError::Short(BUNDLE))?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, tail) = tail.split_at_checked(length).ok_or(DecodeError::Short(BUNDLE))?;
        entries.push(entry);
        rest = tail;
    }
    if rest.is_empty() { Ok(entries) } else { Err(DecodeError::Leftover(BUNDLE)) }
}

/// Reads a tile of exactly `width` hashes.
pub fn hashes_of(tile: &[u8], width: u16) -> Result<&[Hash], DecodeError> {
    let (hashes, rest) = tile.as_chunks::<32>();
    if !rest.is_empty() || hashes.len() != usize::from(width) {
        return Err(DecodeError::Value("tile of hashes"));
    }
    Ok(hashes)
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
    fn a_tree_has_the_tiles_that_its_size_covers() {
        let entries = |index, width| Tile { content: TileContent::Entries, index, width };
        assert!(entries(0, 256).is_within(256) && !entries(0, 256).is_within(255));
        assert!(entries(1, 1).is_within(257) && !entries(1, 1).is_within(256));
        let second = |index, width| Tile { content: TileContent::Hashes(1), index, width };
        assert!(second(0, 2).is_within(512) && !second(0, 2).is_within(511));
        assert_eq!(Tile::widest(TileContent::Hashes(1), 0, 600), Some(second(0, 2)));
        assert_eq!(Tile::widest(TileContent::Entries, 2, 600), Some(entries(2, 88)));
        assert_eq!(Tile::widest(TileContent::Entries, u64::MAX, 600), None);
        assert_eq!(Tile::widest(TileContent::Entries, 1, 256), None, "a tile without a leaf");
        assert_eq!((count_at(7, u64::MAX), count_at(8, u64::MAX)), (255, 0));
    }

    #[test]
    fn bundles_come_back_and_refuse_what_is_left_over() {
        let mut bundle = Vec::new();
        for entry in [&b"one"[..], b"", b"three"] {
            push_entry(&mut bundle, entry).unwrap();
        }
        assert_eq!(entries_of(&bundle, 3).unwrap(), [&b"one"[..], b"", b"three"]);
        assert!(entries_of(&bundle, 2).is_err() && entries_of(&bundle, 4).is_err());
        assert!(entries_of(&bundle[..bundle.len() - 1], 3).is_err());
        assert!(push_entry(&mut bundle, &[0; 65_536]).is_err());
        assert!(hashes_of(&[0; 64], 2).is_ok());
        assert!(hashes_of(&[0; 64], 1).is_err() && hashes_of(&[0; 65], 2).is_err());
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
