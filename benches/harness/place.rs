//! Where things are: the programs, a folder for what a bench makes, the dumps.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Failure;
use super::process::run_to_end;

/// How much of each dump `quick` takes.
const QUICK_BYTES: u64 = 200_000_000;
/// What the compressor of [`Dumps::incompressible`] does to a dump, one level above the client's.
const INCOMPRESSIBLE_LEVEL: i32 = 2;

/// The target folder, the programs in it, and a folder for what the bench makes.
pub struct Place {
    /// Holds `bench.json`.
    pub target: PathBuf,
    /// `strongroom`.
    pub client: PathBuf,
    /// `strongroomd`.
    pub server: PathBuf,
    /// Goes with the place.
    pub scratch: PathBuf,
}

impl Place {
    /// An empty scratch folder of this name below the target folder.
    pub fn new(name: &str) -> Result<Self, Failure> {
        // This program stands in TARGET/release/deps.
        let program = std::env::current_exe()?;
        let release = program.ancestors().nth(2).ok_or("no target folder")?.to_path_buf();
        let target = release.parent().ok_or("no target folder")?.to_path_buf();
        let (client, server) = (release.join("strongroom"), release.join("strongroomd"));
        for binary in [&client, &server] {
            if !binary.exists() {
                return Err(format!("{} is not built; run make bench", binary.display()).into());
            }
        }
        let scratch = target.join(name);
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        Ok(Self { target, client, server, scratch })
    }

    /// An empty folder of this name in the scratch folder.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.scratch.join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Two successive days of one database.
pub struct Dumps {
    /// Where they are.
    pub days: [PathBuf; 2],
    /// How long they are.
    pub bytes: [u64; 2],
}

impl Dumps {
    /// `DUMPS=folder` with day0.sql and day1.sql, or the small ones of the tests; `quick` takes the
    /// start of each.
    pub fn find(scratch: &Path, quick: bool) -> Result<Self, Failure> {
        let folder = match std::env::var_os("DUMPS") {
            Some(folder) => PathBuf::from(folder),
            None => {
                println!("DUMPS is not set: taking the small dumps of tests/data, whose figures");
                println!("say little, because starting and committing take most of the time");
                let folder = scratch.join("dumps");
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/unpack_dumps.sh");
                run_to_end(Command::new(script).arg(&folder))?;
                folder
            }
        };
        let mut days = [folder.join("day0.sql"), folder.join("day1.sql")];
        for day in &mut days {
            let length = fs::metadata(&*day).map_err(|e| format!("{}: {e}", day.display()))?.len();
            if quick && length > QUICK_BYTES {
                let short = scratch.join(day.file_name().ok_or("no name")?);
                copy_part(day, 0, QUICK_BYTES, &short)?;
                *day = short;
            }
        }
        let bytes = [fs::metadata(&days[0])?.len(), fs::metadata(&days[1])?.len()];
        Ok(Self { days, bytes })
    }

    /// A real file that nothing compresses further: both days, compressed.
    pub fn incompressible(&self, scratch: &Path) -> Result<PathBuf, Failure> {
        let path = scratch.join("days.zst");
        let mut encoder = zstd::Encoder::new(File::create(&path)?, INCOMPRESSIBLE_LEVEL)?;
        for day in &self.days {
            std::io::copy(&mut File::open(day)?, &mut encoder)?;
        }
        encoder.finish()?.flush()?;
        Ok(path)
    }

    /// Equal parts of the first day, in files of their own.
    pub fn parts(&self, count: u64, scratch: &Path) -> Result<Vec<PathBuf>, Failure> {
        let part_bytes = self.bytes[0] / count;
        (0..count)
            .map(|number| {
                let path = scratch.join(format!("part-{number}"));
                copy_part(&self.days[0], number * part_bytes, part_bytes, &path)?;
                Ok(path)
            })
            .collect()
    }
}

/// Copies `bytes` from an offset of one file to a new one.
pub fn copy_part(from: &Path, offset: u64, bytes: u64, to: &Path) -> Result<(), Failure> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(from)?;
    file.seek(SeekFrom::Start(offset))?;
    std::io::copy(&mut file.take(bytes), &mut File::create(to)?)?;
    Ok(())
}

/// Sum of the lengths of all files below a folder.
pub fn bytes_below(folder: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        sum += if metadata.is_dir() { bytes_below(&path)? } else { metadata.len() };
    }
    Ok(sum)
}
