//! The limit of the writable layer: bytes of data and inodes, on any file system.
//!
//! Counted in blocks of 4 KiB that hold data, taken before anything is written, so that a file
//! system that is full says so at the limit and never behind it. What is used is counted anew when
//! the union is opened: nothing is kept that a crash could leave wrong. Whiteouts do not count:
//! what is deleted must never need room.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layer::WANTED;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType, SeekFrom, StatVfs, Statx, fstat, seek, statx};
use rustix::io::Errno;

use crate::counts::{Counts, Word};
use crate::node::NodeId;
use crate::upper::DIRECTORY;

const BLOCK: u64 = 4096;

/// How much the upper layer may hold; what is none is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of data.
    pub bytes: Option<u64>,
    /// Files, directories and whatever else has an inode.
    pub inodes: Option<u64>,
}

/// What is used, and the limits.
#[derive(Debug)]
pub(crate) struct Space {
    limits: Limits,
    /// What is used is among them.
    counts: Arc<Counts>,
    /// Nodes without a name whose data goes when they are closed.
    going: Mutex<HashSet<NodeId>>,
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

/// Bytes of blocks that hold a file's data.
pub(crate) fn held(size: u64, sectors: u64) -> u64 {
    // A file system may give more than was asked for, ahead of the end: that does not count.
    blocks(size.min(sectors.saturating_mul(512))) * BLOCK
}

pub(crate) fn held_by(stat: &Statx) -> u64 {
    let regular = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
    if regular { held(stat.stx_size, stat.stx_blocks) } else { 0 }
}

pub(crate) fn held_by_fd(fd: &OwnedFd) -> Result<u64, Errno> {
    let stat = fstat(fd)?;
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(held(unsigned(stat.st_size), unsigned(stat.st_blocks)))
}

impl Space {
    /// Counts what the upper layer behind `root` holds, and files that only the index has.
    pub fn count(
        limits: Limits,
        root: &OwnedFd,
        index: Option<&OwnedFd>,
        counts: Arc<Counts>,
    ) -> Result<Self, Errno> {
        let mut used = Used { bytes: 0, inodes: 0, seen: HashSet::new() };
        used.dir(root)?;
        if let Some(index) = index {
            used.dir(index)?;
        }
        counts.get(Word::Bytes).store(used.bytes, Ordering::Release);
        counts.get(Word::Inodes).store(used.inodes, Ordering::Release);
        counts.get(Word::HasLimit).store(1, Ordering::Release);
        Ok(Self { limits, counts, going: Mutex::default() })
    }

    /// Goes on in other counters, which have what is used.
    pub fn count_in(&mut self, counts: Arc<Counts>) {
        self.counts = counts;
    }

    fn bytes(&self) -> &AtomicU64 {
        self.counts.get(Word::Bytes)
    }

    fn inodes(&self) -> &AtomicU64 {
        self.counts.get(Word::Inodes)
    }

    /// Somebody hears that there is no room.
    fn refuse(&self, _: &Errno) {
        self.counts.add(Word::Refused, 1);
    }

    /// Takes bytes, or says ENOSPC.
    pub fn take(&self, bytes: u64) -> Result<(), Errno> {
        take(self.bytes(), bytes, self.limits.bytes).inspect_err(|e| self.refuse(e))
    }

    pub fn give(&self, bytes: u64) {
        give(self.bytes(), bytes);
    }

    /// Takes an inode, or says ENOSPC.
    pub fn take_inode(&self) -> Result<(), Errno> {
        take(self.inodes(), 1, self.limits.inodes).inspect_err(|e| self.refuse(e))
    }

    pub fn give_inode(&self) {
        give(self.inodes(), 1);
    }

    /// Takes what a write of `len` bytes at `offset` adds, for as much of it as there is room for:
    /// that length, and the bytes taken.
    pub fn take_write(&self, fd: &OwnedFd, offset: u64, len: u64) -> Result<(u64, u64), Errno> {
        let added = added(fd, offset, len)?;
        if take(self.bytes(), added, self.limits.bytes).is_ok() {
            return Ok((len, added));
        }
        // As a full disk does: what fits is written, and the next write hears of the end.
        let room = self
            .limits
            .bytes
            .unwrap_or(u64::MAX)
            .saturating_sub(self.bytes().load(Ordering::Acquire));
        let fits = self.fitting(fd, offset, len, room / BLOCK * BLOCK)?;
        if fits == 0 {
            self.refuse(&Errno::NOSPC);
            return Err(Errno::NOSPC);
        }
        let added = self::added(fd, offset, fits)?;
        self.take(added)?;
        Ok((fits, added))
    }

    /// The longest start of a range that adds no more than `room`: its end is looked for by halves.
    fn fitting(&self, fd: &OwnedFd, offset: u64, len: u64, room: u64) -> Result<u64, Errno> {
        let (first, mut low) = (offset / BLOCK, 0);
        let mut high = blocks(offset % BLOCK + len);
        let length = |count: u64| ((first + count) * BLOCK).saturating_sub(offset).min(len);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if added(fd, offset, length(middle))? <= room {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(length(low))
    }

    /// A node's last name has gone while it is open.
    pub fn goes_at_close(&self, node: NodeId) {
        self.going.lock().insert(node);
    }

    /// A node without a name has got one.
    pub fn stays(&self, node: NodeId) {
        self.going.lock().remove(&node);
    }

    /// A node without a name is closed for the last time.
    pub fn closed(&self, node: NodeId, anchor: Option<&OwnedFd>) {
        if !self.going.lock().remove(&node) {
            return;
        }
        self.give_inode();
        match anchor.map(held_by_fd) {
            Some(Ok(bytes)) => self.give(bytes),
            Some(Err(error)) => tracing::debug!(%error, "what a removed file held stays counted"),
            None => {}
        }
    }

    /// What `statfs` shows: the limit where it is nearer than the end of the file system below.
    pub fn shown(&self, mut stat: StatVfs) -> StatVfs {
        let unit = stat.f_frsize.max(1);
        if let Some(limit) = self.limits.bytes {
            let free = limit.saturating_sub(self.bytes().load(Ordering::Acquire)) / unit;
            stat.f_blocks = limit / unit;
            stat.f_bfree = free.min(stat.f_bfree);
            stat.f_bavail = free.min(stat.f_bavail);
        }
        if let Some(limit) = self.limits.inodes {
            let free = limit.saturating_sub(self.inodes().load(Ordering::Acquire));
            stat.f_files = limit;
            stat.f_ffree = free.min(stat.f_ffree);
            stat.f_favail = free.min(stat.f_favail);
        }
        stat
    }
}

fn take(used: &AtomicU64, count: u64, limit: Option<u64>) -> Result<(), Errno> {
    if count == 0 {
        return Ok(());
    }
    let fits =
        |used: u64| used.checked_add(count).filter(|sum| limit.is_none_or(|limit| *sum <= limit));
    used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map(drop).map_err(|_| Errno::NOSPC)
}

fn give(used: &AtomicU64, count: u64) {
    let less = |used: u64| Some(used.saturating_sub(count));
    if used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_err() {
        tracing::debug!("a count did not change");
    }
}

/// Bytes of blocks that a range has no data in yet.
pub(crate) fn added(fd: &OwnedFd, offset: u64, len: u64) -> Result<u64, Errno> {
    if len == 0 {
        return Ok(0);
    }
    let (first, end) = (offset / BLOCK, blocks(offset.saturating_add(len)));
    let stat = fstat(fd)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    let behind = end.saturating_sub(first.max(blocks(size)));
    if first >= blocks(size) || blocks(allocated) >= blocks(size) {
        return Ok(behind * BLOCK);
    }
    // A file with holes: those of the range are counted.
    let inside = end.min(blocks(size));
    let mut data = 0;
    let mut at = first;
    while at < inside {
        let start = match seek(fd, SeekFrom::Data(at * BLOCK)) {
            Ok(start) => (start / BLOCK).max(at),
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        if start >= inside {
            break;
        }
        let stop = blocks(seek(fd, SeekFrom::Hole(start * BLOCK))?).min(inside);
        data += stop.saturating_sub(start);
        at = stop.max(start + 1);
    }
    Ok((inside - first - data + behind) * BLOCK)
}

struct Used {
    bytes: u64,
    inodes: u64,
    /// Inodes with several names, which count once.
    seen: HashSet<u64>,
}

impl Used {
    fn dir(&mut self, dir: &OwnedFd) -> Result<(), Errno> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = statx(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
            let kind = FileType::from_raw_mode(stat.stx_mode.into());
            let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
            if kind == FileType::CharacterDevice && device == (0, 0) {
                continue;
            }
            if kind != FileType::Directory && stat.stx_nlink > 1 && !self.seen.insert(stat.stx_ino)
            {
                continue;
            }
            self.inodes += 1;
            self.bytes += held_by(&stat);
            if kind == FileType::Directory {
                self.dir(&rustix::fs::openat(dir, name, DIRECTORY, rustix::fs::Mode::empty())?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_blocks_without_data_are_added() {
        let temp = tempfile::tempdir().expect("a directory");
        let file = File::create_new(temp.path().join("f")).expect("a file");
        file.write_all_at(&[1; 5000], 0).expect("a write");
        file.write_all_at(&[1; 1], 10 * BLOCK).expect("a write");
        let fd = OwnedFd::from(file);
        let cases = [
            ((0, 0), 0),
            ((0, 8192), 0),
            ((0, 8193), 1),
            ((2 * BLOCK, 8 * BLOCK), 8),
            ((2 * BLOCK, 9 * BLOCK), 8),
            ((2 * BLOCK, 10 * BLOCK), 9),
            ((10 * BLOCK + 5, 10), 0),
            ((11 * BLOCK, 1), 1),
            ((100 * BLOCK, 2 * BLOCK), 2),
        ];
        for ((offset, len), want) in cases {
            assert_eq!(added(&fd, offset, len).expect("a count"), want * BLOCK, "{offset} {len}");
        }
    }

    #[test]
    fn what_fits_is_taken_and_no_more() {
        let temp = tempfile::tempdir().expect("a directory");
        let file = File::create_new(temp.path().join("f")).expect("a file");
        file.write_all_at(&[1; 100], 0).expect("a write");
        let root = OwnedFd::from(File::open(temp.path()).expect("the directory"));
        let limits = Limits { bytes: Some(3 * BLOCK), inodes: Some(2) };
        let space = Space::count(limits, &root, None, Arc::default()).expect("a count");
        let fd = OwnedFd::from(file);
        assert_eq!(space.take_write(&fd, 100, 100 * BLOCK), Ok((3 * BLOCK - 100, 2 * BLOCK)));
        assert_eq!(space.take_write(&fd, 3 * BLOCK, 1), Err(Errno::NOSPC));
        assert_eq!(space.take_write(&fd, 0, 50), Ok((50, 0)), "what is there costs nothing");
        space.give(BLOCK);
        assert_eq!(space.take(BLOCK), Ok(()));
        assert_eq!(space.take(1), Err(Errno::NOSPC));
        assert_eq!(space.take_inode(), Ok(()));
        assert_eq!(space.take_inode(), Err(Errno::NOSPC));
        space.give_inode();
        assert_eq!(space.take_inode(), Ok(()));
    }
}
