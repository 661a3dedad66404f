//! From the source's bytes to runs of chunks: a thread that reads, and one that cuts.
//!
//! Both streams of a source come one after the other: the data, then the catalogue. Where the
//! source wants a chunk to begin, and where a stream ends, is marked in the block; the chunker
//! takes each mark for the end of its stream.
//!
//! The plaintext is read once into a block and not copied before it is sealed, but for the chunk
//! that a block's end cuts in two: that one is copied into the lead of the next block. A chunk is a
//! range of a block that is shared and counted; a block returns to the reader when nobody looks at
//! it any more, so the number of blocks bounds the plaintext in memory. The cutter waits for a
//! permit with each run. Both threads end when the run is over, whatever they wait for; only a
//! source that hangs in its own read keeps the reader until it ends.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::budget::{Layout, RUN_BYTES};
use crate::chunker::Chunker;
use crate::feed::{Fed, Feed, Stream};

/// A piece of the source in memory, shared by the chunks in it.
pub struct Block {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl Block {
    /// The bytes of a chunk.
    pub fn chunk(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or(&[])
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // There is room for every block; a reader that has gone needs none.
        let _ = self.home.try_send(std::mem::take(&mut self.bytes));
    }
}

/// Neighbouring chunks of one block, for one worker.
pub struct Run {
    /// Its place among both streams' runs, from 0 without gaps.
    pub index: u64,
    /// The stream that its chunks are of.
    pub stream: Stream,
    /// Where the bytes are.
    pub block: Arc<Block>,
    /// The chunks, in order.
    pub chunks: Vec<Range<usize>>,
}

/// How reading ended.
pub enum ReadOutcome {
    /// At the source's end.
    End {
        /// Runs in all.
        run_count: u64,
        /// Bytes of the data stream.
        data_bytes: u64,
    },
    /// Before it.
    Failed(io::Error),
}

/// What the threads wait for besides the source.
pub struct Gates {
    /// One message lets one run pass.
    pub permitted: Receiver<()>,
    /// Its end says that the run is over.
    pub stopped: Receiver<()>,
}

/// Starts both threads. Runs come out of the receiver; `tell` hears the outcome, once, unless the
/// run is over before.
pub fn start(
    source: Box<dyn Feed>,
    chunker: Chunker,
    layout: Layout,
    gates: Gates,
    tell: impl Fn(ReadOutcome) + Clone + Send + 'static,
) -> io::Result<Receiver<Run>> {
    let (runs, to_seal) = bounded(layout.run_count);
    let (filled, to_cut) = bounded(1);
    let blocks = Blocks::new(layout);
    let (home, lead_bytes) = (blocks.home.clone(), chunker.max_bytes());
    let mut reader = Reader { source, blocks, lead_bytes, filled, stopped: gates.stopped };
    let tell_failure = tell.clone();
    let read = move || {
        layout.give_way();
        if let Err(error) = reader.read_all() {
            tell_failure(ReadOutcome::Failed(error));
        }
    };
    std::thread::Builder::new().name("read".into()).spawn(read)?;
    let permitted = gates.permitted;
    let mut cutter = Cutter {
        chunker,
        lead_bytes,
        home,
        to_cut,
        runs,
        permitted,
        run_count: 0,
        stream: Stream::Data,
        chunks: Vec::new(),
        chunks_bytes: 0,
        data_bytes: 0,
    };
    let cut = move || {
        layout.give_way();
        if cutter.cut_all().is_some() {
            let Cutter { run_count, data_bytes, .. } = cutter;
            tell(ReadOutcome::End { run_count, data_bytes });
        }
    };
    std::thread::Builder::new().name("cut".into()).spawn(cut)?;
    Ok(to_seal)
}

/// Free blocks, made when they are first needed.
struct Blocks {
    home: Sender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
    unmade: usize,
    block_bytes: usize,
}

impl Blocks {
    fn new(layout: Layout) -> Self {
        let (home, free) = bounded(layout.block_count);
        Self { home, free, unmade: layout.block_count, block_bytes: layout.block_bytes }
    }

    /// A free block, or nothing when the run is over.
    fn take(&mut self, stopped: &Receiver<()>) -> Option<Vec<u8>> {
        if let Ok(block) = self.free.try_recv() {
            return Some(block);
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Some(vec![0; self.block_bytes]);
        }
        select! {
            recv(self.free) -> block => block.ok(),
            recv(stopped) -> _ => None,
        }
    }
}

/// A block with bytes of the source after its lead.
struct Filled {
    bytes: Vec<u8>,
    end: usize,
    /// What the source said besides bytes, and where in the block.
    marks: Vec<(usize, Fed)>,
}

struct Reader {
    source: Box<dyn Feed>,
    blocks: Blocks,
    /// Room at the start of each block for the unfinished chunk of the one before.
    lead_bytes: usize,
    filled: Sender<Filled>,
    stopped: Receiver<()>,
}

impl Reader {
    /// Reads to the source's end, or until the run is over.
    fn read_all(&mut self) -> io::Result<()> {
        while let Some(mut bytes) = self.blocks.take(&self.stopped) {
            let (end, marks) = self.fill(&mut bytes)?;
            let at_end = marks.last().is_some_and(|(_, mark)| *mark == Fed::End);
            if self.filled.send(Filled { bytes, end, marks }).is_err() || at_end {
                break;
            }
        }
        Ok(())
    }

    /// Reads until the block is full or the source ends.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<(usize, Vec<(usize, Fed)>)> {
        let (mut end, mut marks) = (self.lead_bytes, Vec::new());
        while let Some(room) = bytes.get_mut(end..).filter(|room| !room.is_empty()) {
            match self.source.feed(room) {
                Ok(Fed::Bytes(count)) => end = end.saturating_add(count),
                Ok(mark) => {
                    marks.push((end, mark));
                    if mark == Fed::End {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((end, marks))
    }
}

struct Cutter {
    chunker: Chunker,
    lead_bytes: usize,
    home: Sender<Vec<u8>>,
    to_cut: Receiver<Filled>,
    runs: Sender<Run>,
    permitted: Receiver<()>,
    run_count: u64,
    stream: Stream,
    /// Chunks of the run that is being made, and their bytes.
    chunks: Vec<Range<usize>>,
    chunks_bytes: usize,
    data_bytes: u64,
}

impl Cutter {
    /// Cuts to the source's end; nothing when the run is over before.
    fn cut_all(&mut self) -> Option<()> {
        let mut tail: Option<(Arc<Block>, Range<usize>)> = None;
        loop {
            let Filled { mut bytes, end, marks } = self.to_cut.recv().ok()?;
            let mut start = self.lead_bytes;
            if let Some((block, range)) = tail.take() {
                // An unfinished chunk is shorter than the longest, which is the lead.
                let unfinished = block.chunk(&range);
                start = start.saturating_sub(unfinished.len());
                if let Some(lead) = bytes.get_mut(start..self.lead_bytes) {
                    lead.copy_from_slice(unfinished);
                }
            }
            let block = Arc::new(Block { bytes, home: self.home.clone() });
            for (at, mark) in marks {
                start = self.cut(&block, start..at, true)?;
                match mark {
                    Fed::Catalogue => self.end_data(&block)?,
                    Fed::End => return self.send(&block),
                    Fed::Boundary | Fed::Bytes(_) => {}
                }
            }
            let cut = self.cut(&block, start..end, false)?;
            self.send(&block)?;
            tail = Some((block, cut..end));
        }
    }

    /// Cuts a part of a block; gives where the unfinished chunk starts, or nothing when the run is
    /// over.
    fn cut(&mut self, block: &Arc<Block>, range: Range<usize>, at_end: bool) -> Option<usize> {
        let mut start = range.start;
        while let Some(length) =
            block.bytes.get(start..range.end).and_then(|rest| self.chunker.cut(rest, at_end))
        {
            self.chunks.push(start..start.saturating_add(length));
            start = start.saturating_add(length);
            self.chunks_bytes = self.chunks_bytes.saturating_add(length);
            if self.stream == Stream::Data {
                self.data_bytes = self.data_bytes.saturating_add(length_of(length));
            }
            if self.chunks_bytes >= RUN_BYTES {
                self.send(block)?;
            }
        }
        Some(start)
    }

    /// Ends the data stream. An empty one is one chunk of length zero.
    fn end_data(&mut self, block: &Arc<Block>) -> Option<()> {
        if self.data_bytes == 0 {
            self.chunks.push(0..0);
        }
        self.send(block)?;
        self.stream = Stream::Catalogue;
        Some(())
    }

    /// Sends the run that was being made, if there is anything in it.
    fn send(&mut self, block: &Arc<Block>) -> Option<()> {
        if self.chunks.is_empty() {
            return Some(());
        }
        self.permitted.recv().ok()?;
        let chunks = std::mem::take(&mut self.chunks);
        self.chunks_bytes = 0;
        let run = Run { index: self.run_count, stream: self.stream, block: block.clone(), chunks };
        self.run_count = self.run_count.saturating_add(1);
        self.runs.send(run).ok()
    }
}

fn length_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PlaintextKeys;
    use strongroom_protocol::descriptor::ChunkSizes;

    /// Gives bytes in pieces of odd lengths, and wants a chunk to begin at some places.
    struct Trickle {
        bytes: Vec<u8>,
        boundaries: Vec<usize>,
        at: usize,
        is_data: bool,
    }

    const CATALOGUE: &[u8] = b"catalogue";

    impl Feed for Trickle {
        fn feed(&mut self, room: &mut [u8]) -> io::Result<Fed> {
            if !self.is_data {
                let rest = &CATALOGUE[self.at..];
                let count = rest.len().min(room.len()).min(4);
                room[..count].copy_from_slice(&rest[..count]);
                self.at += count;
                return Ok(if count == 0 { Fed::End } else { Fed::Bytes(count) });
            }
            let next = self.boundaries.first().copied();
            if next == Some(self.at) {
                self.boundaries.remove(0);
                return Ok(Fed::Boundary);
            }
            let rest = &self.bytes[self.at..next.unwrap_or(self.bytes.len())];
            if rest.is_empty() {
                (self.is_data, self.at) = (false, 0);
                return Ok(Fed::Catalogue);
            }
            let count = rest.len().min(room.len()).min(1 + self.at % 77_777);
            room[..count].copy_from_slice(&rest[..count]);
            self.at += count;
            Ok(Fed::Bytes(count))
        }
    }

    fn read_all(length: usize, boundaries: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(b"source").finalize_xof().fill(&mut bytes);
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let sizes = ChunkSizes::around(64 * 1024).unwrap();
        let (permits, permitted) = bounded(200);
        let (_running, stopped) = bounded(0);
        (0..200).for_each(|_| permits.send(()).unwrap());
        let (tell, told) = bounded(1);
        let source =
            Trickle { bytes: bytes.clone(), boundaries: boundaries.to_vec(), at: 0, is_data: true };
        let runs = start(
            Box::new(source),
            Chunker::new(&keys, sizes),
            Layout::new(sizes, 2),
            Gates { permitted, stopped },
            move |outcome| tell.send(outcome).unwrap(),
        )
        .unwrap();
        let (mut back, mut lengths, mut next) = (Vec::new(), Vec::new(), 0);
        let mut catalogue = Vec::new();
        for run in runs {
            assert_eq!(run.index, next);
            next += 1;
            for range in &run.chunks {
                if run.stream == Stream::Catalogue {
                    catalogue.extend_from_slice(run.block.chunk(range));
                    continue;
                }
                assert!(catalogue.is_empty(), "data after the catalogue");
                back.extend_from_slice(run.block.chunk(range));
                lengths.push(range.len());
            }
        }
        let ReadOutcome::End { run_count, data_bytes } = told.recv().unwrap() else {
            panic!("failed")
        };
        assert_eq!((run_count, data_bytes), (next, length as u64));
        assert!(back == bytes, "{length}");
        assert_eq!(catalogue, CATALOGUE);
        (bytes, lengths)
    }

    /// Cuts as they are where each part is a stream of its own.
    fn cuts_of(parts: &[&[u8]]) -> Vec<usize> {
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let chunker = Chunker::new(&keys, ChunkSizes::around(64 * 1024).unwrap());
        let mut lengths = Vec::new();
        for part in parts {
            let mut rest = *part;
            while let Some(length) = chunker.cut(rest, true) {
                lengths.push(length);
                rest = &rest[length..];
            }
        }
        lengths
    }

    #[test]
    fn blocks_do_not_show_in_the_cuts() {
        for length in [0, 1, 100_000, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 50 << 20] {
            let (bytes, lengths) = read_all(length, &[]);
            let wanted = if length == 0 { vec![0] } else { cuts_of(&[&bytes]) };
            assert_eq!(lengths, wanted, "{length}");
        }
    }

    #[test]
    fn a_chunk_begins_where_the_source_says() {
        let lead_and_block = (256 << 10) + (4 << 20);
        for at in [0, 1, 70_000, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, lead_and_block] {
            let (bytes, lengths) = read_all(9 << 20, &[at, at + 10]);
            let (one, rest) = bytes.split_at(at);
            let (two, three) = rest.split_at(10);
            assert_eq!(lengths, cuts_of(&[one, two, three]), "{at}");
        }
    }
}
