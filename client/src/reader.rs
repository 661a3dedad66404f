//! From the source's bytes to runs of chunks: a thread that reads, and one that cuts.
//!
//! The plaintext is read once into a block and not copied before it is sealed, but for the chunk
//! that a block's end cuts in two: that one is copied into the lead of the next block. A chunk is a
//! range of a block that is shared and counted; a block returns to the reader when nobody looks at
//! it any more, so the number of blocks bounds the plaintext in memory. The cutter waits for a
//! permit with each run. Both threads end when the run is over, whatever they wait for; only a
//! source that hangs in its own read keeps the reader until it ends.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::budget::{Layout, RUN_BYTES};
use crate::chunker::Chunker;

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
    /// Its place in the stream, from 0 without gaps.
    pub index: u64,
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
        /// Bytes in all.
        plaintext_bytes: u64,
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
    source: Box<dyn Read + Send>,
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
    let mut cutter = Cutter { chunker, lead_bytes, home, to_cut, runs, permitted, run_count: 0 };
    let cut = move || {
        layout.give_way();
        if let Some(plaintext_bytes) = cutter.cut_all() {
            tell(ReadOutcome::End { run_count: cutter.run_count, plaintext_bytes });
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
    at_end: bool,
}

struct Reader {
    source: Box<dyn Read + Send>,
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
            let (end, at_end) = self.fill(&mut bytes)?;
            if self.filled.send(Filled { bytes, end, at_end }).is_err() || at_end {
                break;
            }
        }
        Ok(())
    }

    /// Reads until the block is full or the source ends.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut end = self.lead_bytes;
        while let Some(room) = bytes.get_mut(end..).filter(|room| !room.is_empty()) {
            match self.source.read(room) {
                Ok(0) => return Ok((end, true)),
                Ok(count) => end = end.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((end, false))
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
}

impl Cutter {
    /// Cuts to the source's end and gives its number of bytes, or nothing when the run is over
    /// before.
    fn cut_all(&mut self) -> Option<u64> {
        let mut total: u64 = 0;
        let mut tail: Option<(Arc<Block>, Range<usize>)> = None;
        loop {
            let Filled { mut bytes, end, at_end } = self.to_cut.recv().ok()?;
            total = total.saturating_add(length_of(end.saturating_sub(self.lead_bytes)));
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
            let cut = self.cut_block(&block, start..end, at_end, total)?;
            if at_end {
                return Some(total);
            }
            tail = Some((block, cut..end));
        }
    }

    /// Cuts a block and sends its runs; gives where the unfinished chunk starts, or nothing when
    /// the run is over. An empty source is one chunk of length zero.
    fn cut_block(
        &mut self,
        block: &Arc<Block>,
        range: Range<usize>,
        at_end: bool,
        total: u64,
    ) -> Option<usize> {
        let (mut start, mut run_start) = (range.start, range.start);
        let mut chunks = Vec::new();
        while let Some(length) =
            block.bytes.get(start..range.end).and_then(|rest| self.chunker.cut(rest, at_end))
        {
            chunks.push(start..start.saturating_add(length));
            start = start.saturating_add(length);
            if start.saturating_sub(run_start) >= RUN_BYTES {
                self.send(block, std::mem::take(&mut chunks))?;
                run_start = start;
            }
        }
        if at_end && total == 0 {
            chunks.push(0..0);
        }
        if !chunks.is_empty() {
            self.send(block, chunks)?;
        }
        Some(start)
    }

    fn send(&mut self, block: &Arc<Block>, chunks: Vec<Range<usize>>) -> Option<()> {
        self.permitted.recv().ok()?;
        let run = Run { index: self.run_count, block: block.clone(), chunks };
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

    /// Gives bytes in pieces of odd lengths.
    struct Trickle {
        bytes: Vec<u8>,
        at: usize,
    }

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = &self.bytes[self.at..];
            let count = rest.len().min(buffer.len()).min(1 + self.at % 77_777);
            buffer[..count].copy_from_slice(&rest[..count]);
            self.at += count;
            Ok(count)
        }
    }

    fn read_all(length: usize) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(b"source").finalize_xof().fill(&mut bytes);
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let sizes = ChunkSizes::around(64 * 1024).unwrap();
        let (permits, permitted) = bounded(100);
        let (_running, stopped) = bounded(0);
        (0..100).for_each(|_| permits.send(()).unwrap());
        let (tell, told) = bounded(1);
        let runs = start(
            Box::new(Trickle { bytes: bytes.clone(), at: 0 }),
            Chunker::new(&keys, sizes),
            Layout::new(sizes, 2),
            Gates { permitted, stopped },
            move |outcome| tell.send(outcome).unwrap(),
        )
        .unwrap();
        let (mut back, mut lengths, mut next) = (Vec::new(), Vec::new(), 0);
        for run in runs {
            assert_eq!(run.index, next);
            next += 1;
            for range in &run.chunks {
                back.extend_from_slice(run.block.chunk(range));
                lengths.push(range.len());
            }
        }
        let ReadOutcome::End { run_count, plaintext_bytes } = told.recv().unwrap() else {
            panic!("failed")
        };
        assert_eq!((run_count, plaintext_bytes), (next, length as u64));
        assert!(back == bytes, "{length}");
        (bytes, lengths)
    }

    #[test]
    fn blocks_do_not_show_in_the_cuts() {
        let keys = PlaintextKeys::from_plaintext_key([1; 32]);
        let chunker = Chunker::new(&keys, ChunkSizes::around(64 * 1024).unwrap());
        for length in [0, 1, 100_000, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 50 << 20] {
            let (bytes, lengths) = read_all(length);
            let (mut rest, mut wanted) = (bytes.as_slice(), Vec::new());
            while let Some(length) = chunker.cut(rest, true) {
                wanted.push(length);
                rest = &rest[length..];
            }
            if length == 0 {
                wanted.push(0);
            }
            assert_eq!(lengths, wanted, "{length}");
        }
    }
}
