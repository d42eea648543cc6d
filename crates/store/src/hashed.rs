//! What is written through, hashed and counted.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::id::Digest;

/// Passes on what is written to it, and knows its digest and length.
#[derive(Debug)]
pub struct Hashed<W> {
    to: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> Hashed<W> {
    /// Nothing is written yet.
    pub fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), count: 0 }
    }

    /// Where it went, its digest, and its length in bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.to, Digest::finish(self.hash), self.count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
