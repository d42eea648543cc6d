//! What a union counts: where others want to read it, in a file that they can read while it serves, and that goes on
//! counting at the next mount.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sys::counters::{self, Counters};

use crate::{Result, Union};

/// How many words the file has.
const WORDS: usize = 6;

/// The words of the file, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    CopyUps,
    CopiedBytes,
    Refused,
    /// Whether the next two are kept.
    HasLimit,
    Bytes,
    Inodes,
}

/// What a union has counted, as others read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Files and directories that were copied up.
    pub copy_ups: u64,
    /// Bytes of these files that were copied with them; those of files that stay partial are not among them.
    pub copied_bytes: u64,
    /// Requests that were refused since they would have gone beyond the limit.
    pub refused: u64,
    /// Bytes of data and inodes in the upper layer; where it has a limit, which alone needs to know.
    pub used: Option<(u64, u64)>,
}

impl Counted {
    /// Reads what the union with [`Union::count_in`] `path` has counted; none where there was never any.
    ///
    /// # Errors
    /// Of the file.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let words = counters::read::<WORDS>(path)?;
        Ok(words.map(|[copy_ups, copied_bytes, refused, has_limit, bytes, inodes]| Self {
            copy_ups,
            copied_bytes,
            refused,
            used: (has_limit != 0).then_some((bytes, inodes)),
        }))
    }
}

/// The counters themselves: in a file, or in memory of our own.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    file: Option<Counters>,
    own: [AtomicU64; WORDS],
}

impl Counts {
    pub fn get(&self, word: Word) -> &AtomicU64 {
        match &self.file {
            Some(file) => file.get(word as usize),
            None => &self.own[word as usize],
        }
    }

    pub fn add(&self, word: Word, count: u64) {
        self.get(word).fetch_add(count, Ordering::Relaxed);
    }
}

impl Union {
    /// Counts in the file `path` from now on, which is made where it is not there: what was counted there before goes on,
    /// and what is used is as it is.
    ///
    /// # Errors
    /// Of the file.
    pub fn count_in(mut self, path: &Path) -> Result<Self> {
        let file = Counters::open(path, WORDS).map_err(|source| {
            let errno = rustix::io::Errno::from_io_error(&source).unwrap_or(rustix::io::Errno::IO);
            crate::error::refused(path, errno)
        })?;
        let counts = Arc::new(Counts { file: Some(file), ..Counts::default() });
        for word in [Word::HasLimit, Word::Bytes, Word::Inodes] {
            let now = self.counts.get(word).load(Ordering::Acquire);
            counts.get(word).store(now, Ordering::Release);
        }
        if let Some(space) = &mut self.space {
            space.count_in(Arc::clone(&counts));
        }
        self.counts = counts;
        Ok(self)
    }
}
