//! A seeded generator of inputs: the corpus, changed in the ways that upset decoders.
//!
//! The same seed gives the same inputs on every machine.

/// Inputs do not grow beyond this.
const INPUT_MAX_BYTES: usize = 64 * 1024;

/// Numbers that lengths and counts are compared with, and their neighbours.
const TELLING_NUMBERS: [u32; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x0001_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// splitmix64: small, seeded, good enough to pick bytes.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 where `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            return 0;
        }
        usize::try_from(self.bits() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.bits().to_le_bytes()[0]
    }
}

/// A new input from the corpus, into `input`: now and then bytes at random, else a seed with one to
/// four changes.
pub fn next_input(random: &mut Random, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    if random.below(16) == 0 {
        let length = random.below(300);
        input.extend((0..length).map(|_| random.byte()));
        return;
    }
    input.extend_from_slice(&corpus[random.below(corpus.len())]);
    for _ in 0..=random.below(4) {
        change(random, input, corpus);
    }
    input.truncate(INPUT_MAX_BYTES);
}

fn change(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = random.below(input.len());
    match random.below(8) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.byte(),
        2 => input.truncate(at),
        3 => {
            let added = (random.bits().to_le_bytes(), random.bits().to_le_bytes());
            let added = added.0.into_iter().chain(added.1).take(1 + random.below(16));
            input.splice(at..at, added);
        }
        4 => {
            let end = at + random.below(input.len() - at);
            input.extend_from_within(at..end);
            input[at..].rotate_right(end - at);
        }
        5 => {
            let end = at + random.below(input.len() - at);
            input.drain(at..end);
        }
        6 => {
            let other = &corpus[random.below(corpus.len())];
            input.truncate(at);
            input.extend_from_slice(&other[random.below(other.len())..]);
        }
        _ => {
            let number = TELLING_NUMBERS[random.below(TELLING_NUMBERS.len())];
            for (byte, new) in input[at..].iter_mut().zip(number.to_le_bytes()) {
                *byte = new;
            }
        }
    }
}
