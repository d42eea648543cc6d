//! Copies a file's data by the cheapest means: a reflink, the kernel's copy, then our own loop.
//!
//! Holes stay holes: only what SEEK_DATA finds is copied, and the length is set at the end.
//!
//! Source: ioctl_ficlone(2), copy_file_range(2), lseek(2).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{SeekFrom, fstat, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

use crate::{Error, Result};

/// How the data came across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// The file system shares the extents: nothing was written.
    Reflink,
    /// Data was copied.
    Copied,
}

const BLOCK: usize = 128 << 10;

/// Bytes of the largest file for which a read and a write are less than finding its data and having the kernel copy it.
const SMALL: u64 = 64 << 10;

/// Copies all of `from` into the empty file `to`; both keep their offsets undefined.
///
/// Cost: O(extents) where the file system reflinks, otherwise the data, without its holes.
///
/// # Errors
/// The kernel's, of the step that failed; `to` is then incomplete and the caller's to remove.
pub fn data(from: impl AsFd, to: impl AsFd) -> Result<Means> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let stat = fstat(from).map_err(|e| Error::new("fstat", "source", e))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 {
        return Ok(Means::Copied);
    }
    if reflink(from, to) {
        return Ok(Means::Reflink);
    }
    let solid = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size;
    if size <= SMALL && solid && by_hand(from, to, 0, size)? == size {
        return Ok(Means::Copied);
    }
    piece(from, to, 0, size)?;
    ftruncate(to, size).map_err(|e| Error::new("ftruncate", size, e))?;
    Ok(Means::Copied)
}

/// Lets the empty file `to` share the extents of `from`; false where the file system can't.
pub fn reflink(from: impl AsFd, to: impl AsFd) -> bool {
    ioctl_ficlone(to, from).is_ok()
}

/// Copies the bytes from `start` to `end` to the same place of `to`, but for the holes of `from`.
///
/// # Errors
/// As [`data`].
pub fn piece(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut at = start;
    while at < end {
        let Some(start) = next_data(from, at)?.filter(|start| *start < end) else { break };
        let stop = match seek(from, SeekFrom::Hole(start)) {
            Ok(stop) => stop.min(end),
            Err(Errno::INVAL) => end,
            Err(e) => return Err(Error::new("lseek", "SEEK_HOLE", e)),
        };
        range(from, to, start, stop)?;
        at = stop;
    }
    Ok(())
}

/// As [`piece`], with the holes of `from` as zeros: `to` may have other data there.
///
/// # Errors
/// As [`data`].
pub fn bytes(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> Result<()> {
    by_hand(from.as_fd(), to.as_fd(), start, end).map(drop)
}

/// The start of the next data at or after `at`; none when only a hole is left.
fn next_data(from: BorrowedFd<'_>, at: u64) -> Result<Option<u64>> {
    match seek(from, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        // A file system without SEEK_DATA has no holes to tell of.
        Err(Errno::INVAL) => Ok(Some(at)),
        Err(e) => Err(Error::new("lseek", "SEEK_DATA", e)),
    }
}

fn range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let len = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), len) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return by_hand(from, to, read, end).map(drop);
            }
            Err(e) => return Err(Error::new("copy_file_range", read, e)),
        }
    }
    Ok(())
}

/// Up to where it came: before `end` only where `from` ends there.
fn by_hand(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    let whole = usize::try_from(end.saturating_sub(start)).unwrap_or(BLOCK);
    let mut block = vec![0; whole.min(BLOCK)];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
        let got = match pread(from, &mut block[..want], at) {
            Ok(0) => break,
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Error::new("pread", at, e)),
        };
        let mut done = 0;
        while done < got {
            match pwrite(to, &block[done..got], at + done as u64) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::new("pwrite", at, e)),
            }
        }
        at += got as u64;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, SeekFrom as Std, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_bytes_and_no_more_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut from = File::create_new(dir.path().join("from")).expect("a file");
        from.write_all(b"head").expect("a write");
        from.seek(Std::Start(8 << 20)).expect("a seek");
        from.write_all(&[7; 5000]).expect("a write");
        from.set_len(16 << 20).expect("a length");
        let from = File::open(dir.path().join("from")).expect("the file");
        let to = File::create_new(dir.path().join("to")).expect("a file");
        data(&from, &to).expect("a copy");
        to.sync_all().expect("a sync");
        let read = |name| std::fs::read(dir.path().join(name)).expect("the file");
        assert_eq!(read("from"), read("to"));
        let blocks = |f: &File| f.metadata().expect("metadata").blocks();
        assert!(blocks(&to) <= blocks(&from), "{} > {}", blocks(&to), blocks(&from));
    }
}
