//! Which chunks of a file are its own.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit a chunk; it goes from 0 to 1, never back.
#[derive(Debug)]
pub(super) struct Chunks {
    words: Box<[AtomicU64]>,
    /// Bytes of a chunk.
    pub size: u64,
    count: u64,
}

impl Chunks {
    pub fn new(words: Vec<u64>, size: u64, count: u64) -> Self {
        Self { words: words.into_iter().map(AtomicU64::new).collect(), size, count }
    }

    /// Whether a chunk is the file's own; what is behind the map always is.
    pub fn owns(&self, chunk: u64) -> bool {
        if chunk >= self.count {
            return true;
        }
        let word = self.words[chunk as usize / 64].load(Ordering::Acquire);
        word >> (chunk % 64) & 1 == 1
    }

    /// How many chunks there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a byte is the file's own, and where that ends: at `end` at the latest.
    pub fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let first = at / self.size;
        let owned = self.owns(first);
        let mut chunk = first + 1;
        while chunk < self.count && chunk * self.size < end {
            let word = self.words[chunk as usize / 64].load(Ordering::Acquire);
            let word = if owned { !word } else { word } >> (chunk % 64);
            if word != 0 {
                chunk += u64::from(word.trailing_zeros());
                break;
            }
            chunk += 64 - chunk % 64;
        }
        match (owned, chunk >= self.count) {
            (true, true) => (true, end),
            (false, true) => (false, (self.count * self.size).min(end)),
            (_, false) => (owned, (chunk * self.size).min(end)),
        }
    }

    /// Sets the bits of the chunks from `first` up to `end`, and gives the first word and the words that have
    /// them; none where they were set.
    pub fn own(&self, first: u64, end: u64) -> Option<(usize, Vec<u64>)> {
        let end = end.min(self.count);
        if first >= end {
            return None;
        }
        let (from, to) = (first as usize / 64, (end - 1) as usize / 64);
        let mut changed = false;
        let words = (from..=to).map(|index| {
            let bits = mask(index as u64 * 64, first, end);
            let before = self.words[index].fetch_or(bits, Ordering::AcqRel);
            changed |= before & bits != bits;
            before | bits
        });
        let words = words.collect();
        changed.then_some((from, words))
    }

    /// How many of the first `end` chunks are not the file's own.
    pub fn missing(&self, end: u64) -> u64 {
        let end = end.min(self.count);
        let words = self.words.iter().enumerate();
        words
            .map(|(index, word)| {
                let bits = mask(index as u64 * 64, 0, end);
                u64::from((!word.load(Ordering::Acquire) & bits).count_ones())
            })
            .sum()
    }
}

/// The bits of a word whose first is the chunk `base`, that are from `first` up to `end`.
pub(super) fn mask(base: u64, first: u64, end: u64) -> u64 {
    let low = first.saturating_sub(base).min(64);
    let high = end.saturating_sub(base).min(64);
    let below = |count: u64| if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    below(high) & !below(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_a_look_at_each_chunk_finds() {
        let mut state = 1_u64;
        for count in [1, 63, 64, 65, 200] {
            let chunks = Chunks::new(vec![0; 4], 4096, count);
            for _ in 0..20 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let first = (state >> 33) % count;
                chunks.own(first, first + (state >> 50) % 9);
                for at in 0..count + 3 {
                    let end = (count + 5) * 4096 - 7;
                    let (owned, stop) = chunks.run(at * 4096 + 5, end);
                    assert_eq!(owned, chunks.owns(at));
                    let mut next = at + 1;
                    while next * 4096 < end && chunks.owns(next) == owned {
                        next += 1;
                    }
                    assert_eq!(stop, (next * 4096).min(end), "{count} {at}");
                }
                let missing = (0..count).filter(|chunk| !chunks.owns(*chunk)).count() as u64;
                assert_eq!(chunks.missing(u64::MAX), missing);
            }
        }
    }
}
