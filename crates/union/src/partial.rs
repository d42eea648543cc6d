//! Partial files: a big file of a lower layer that was written to, and not copied.
//!
//! In the upper layer it is a sparse file of the full length; chunks that were written are its own, the others are read
//! from the lower layer. Which are its own is kept in a [sidecar](sidecar), never inferred from holes alone:
//!
//! - a chunk in the map `Whole` is the file's own, data or hole;
//! - a chunk in the map `Written` is, if the file has data in all of it: neither the map's bit without the data nor the
//!   data without the bit says anything, so the two may reach the disk in any order.
//!
//! Nothing else than an fsync waits for the disk, therefore, and a crash leaves each chunk old or new.

mod chunks;
mod complete;
mod registry;
mod sidecar;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, fstat, fsync, ftruncate, seek};
use rustix::io::Errno;

use chunks::Chunks;
pub(crate) use registry::{ATTRIBUTE, Partials, Source};
use sidecar::{Map, Sidecar};

use crate::transfer::{counted, read_some, write_some};

type Result<T> = std::result::Result<T, Errno>;

/// A file of the upper layer that has only a part of its data.
#[derive(Debug)]
pub(crate) struct Partial {
    pub id: u64,
    /// The file in the upper layer, for reading and writing.
    data: OwnedFd,
    /// The file whose data it has not.
    lower: OwnedFd,
    /// Bytes of blocks that it has.
    held: u64,
    chunks: Chunks,
    /// The length up to which the lower file counts; it only shrinks.
    valid: AtomicU64,
    /// `valid` shrank, and that is not on the disk: nothing may lengthen the file before it is.
    cut: AtomicBool,
    /// It has all its data: a file like any other.
    complete: AtomicBool,
    /// Grows with every change.
    changes: AtomicU64,
    volatile: bool,
    /// The file system [overwrites in place](crate::disk::overwrites_in_place): data and sidecar need but one wait.
    in_place: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sidecar: Sidecar,
    /// The map `Whole`, a bit a chunk.
    whole: Vec<u64>,
    /// The sidecar has what is not on the disk yet.
    dirty: bool,
}

impl Partial {
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// A number that changes with every write.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn size(&self) -> Result<u64> {
        Ok(u64::try_from(fstat(&self.data)?.st_size).unwrap_or(0))
    }

    fn valid(&self) -> u64 {
        self.valid.load(Ordering::Acquire)
    }

    /// Bytes that are still below.
    pub fn missing(&self) -> u64 {
        let missing = self.chunks.missing(self.valid().div_ceil(self.chunks.size));
        (missing * self.chunks.size).min(self.held)
    }

    /// Whether the byte `at` is in the upper file, and where that ends: at `end` at the latest.
    fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let valid = self.valid();
        if at >= valid {
            return (true, end);
        }
        match self.chunks.run(at, end) {
            (false, stop) => (false, stop.min(valid)),
            owned => owned,
        }
    }

    /// Reads at `offset` until `into` is full or the file ends.
    pub fn read(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        let end = offset.saturating_add(into.len() as u64).min(self.size()?);
        let mut at = offset;
        while at < end {
            let (owned, stop) = self.run(at, end);
            let from = usize::try_from(at - offset).map_err(|_| Errno::FBIG)?;
            let len = usize::try_from(stop - at).map_err(|_| Errno::FBIG)?;
            let part = &mut into[from..from + len];
            let got = read_some(if owned { &self.data } else { &self.lower }, part, at)?;
            if got < len && !owned {
                // The layer lost what it had: that is no end of this file.
                return Err(Errno::IO);
            }
            at += got as u64;
            if got < len {
                break;
            }
        }
        Ok(usize::try_from(at.saturating_sub(offset)).unwrap_or(0))
    }

    /// Writes `data`, or as much as there is room for.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        if data.is_empty() {
            return Ok(0);
        }
        // What is its own already is written as in any file.
        if !self.cut.load(Ordering::Acquire) && self.run(offset, end) == (true, end) {
            return counted(write_some(&self.data, data, offset));
        }
        let mut state = self.state.lock();
        self.before_growth(&mut state, end)?;
        let chunk = self.chunks.size;
        self.fill_edges(offset, end)?;
        let (done, result) = write_some(&self.data, data, offset);
        if done == data.len() {
            self.own(&mut state, offset / chunk, end.div_ceil(chunk))?;
            return Ok(done);
        }
        // The last chunk has a part of the new data and not the rest of the old: it stays as it is below.
        let whole = (offset + done as u64) / chunk * chunk;
        if whole <= offset {
            return Err(result.err().unwrap_or(Errno::IO));
        }
        self.own(&mut state, offset / chunk, whole / chunk)?;
        Ok(usize::try_from(whole - offset).unwrap_or(done).min(done))
    }

    /// Brings what the first and the last chunk of a range have beside it, where they are not the file's own.
    fn fill_edges(&self, offset: u64, end: u64) -> Result<()> {
        let (chunk, valid) = (self.chunks.size, self.valid());
        let (first, last) = (offset / chunk, (end - 1) / chunk);
        if !self.chunks.owns(first) {
            self.bring(first * chunk, offset.min(valid))?;
            if first == last {
                self.bring(end, ((first + 1) * chunk).min(valid))?;
            }
        }
        if first != last && !self.chunks.owns(last) {
            self.bring(end, ((last + 1) * chunk).min(valid))?;
        }
        Ok(())
    }

    /// Copies bytes from below; nothing where `end` is not behind `start`.
    fn bring(&self, start: u64, end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        sys::copy::bytes(&self.lower, &self.data, start, end).map_err(|error| error.source)
    }

    /// The chunks from `first` up to `end` are the file's own from now on.
    fn own(&self, state: &mut State, first: u64, end: u64) -> Result<()> {
        if let Some((word, words)) = self.chunks.own(first, end) {
            state.sidecar.write(Map::Written, word, &words)?;
            state.dirty = true;
        }
        Ok(())
    }

    /// What was cut off must be so on the disk before the file has that length again: the lower file's data would come
    /// back after a crash.
    fn before_growth(&self, state: &mut State, end: u64) -> Result<()> {
        if self.cut.load(Ordering::Acquire) && end > self.size()? {
            self.sync_locked(state, true)?;
            self.cut.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Cuts or lengthens the file.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        self.before_growth(&mut state, size)?;
        ftruncate(&self.data, size)?;
        if size < self.valid() {
            // In this order: a length that is behind the end of the file is no harm.
            self.valid.store(size, Ordering::Release);
            self.cut.store(true, Ordering::Release);
            state.dirty = true;
            state.sidecar.set_valid(size)?;
        }
        Ok(())
    }

    /// Waits until what was written is on the disk.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        self.sync_locked(&mut self.state.lock(), data_only)
    }

    fn sync_locked(&self, state: &mut State, data_only: bool) -> Result<()> {
        if self.volatile {
            return Ok(());
        }
        let sync = |data: &OwnedFd| if data_only { fdatasync(data) } else { fsync(data) };
        if !state.dirty {
            return sync(&self.data);
        }
        if self.in_place {
            state.sidecar.sync_with(&self.data, sync)?;
        } else {
            sync(&self.data)?;
            state.sidecar.sync()?;
        }
        state.dirty = false;
        Ok(())
    }

    /// fallocate(2), but what moves data about, for which the file must be whole.
    pub fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        if !mode.contains(FallocateFlags::KEEP_SIZE) {
            self.before_growth(&mut state, end)?;
        }
        let zeros = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !mode.intersects(zeros) || len == 0 || self.is_complete() {
            return fallocate(&self.data, mode, offset, len);
        }
        let chunk = self.chunks.size;
        let (first, last) = (offset / chunk, end.div_ceil(chunk));
        // Chunks that are the file's own would be the lower file's again, had a crash made them holes.
        self.declare_whole(&mut state, first, last)?;
        self.fill_edges(offset, end)?;
        fallocate(&self.data, mode, offset, len)?;
        self.own(&mut state, first, last)?;
        self.declare_whole(&mut state, first, last)
    }

    /// Those of the chunks that are the file's own are so from now on whether they have data or not.
    fn declare_whole(&self, state: &mut State, first: u64, end: u64) -> Result<()> {
        let mut changed = Vec::new();
        for chunk in first..end.min(self.chunks.count()) {
            let (word, bit) = (chunk as usize / 64, 1 << (chunk % 64));
            if self.chunks.owns(chunk) && state.whole[word] & bit == 0 {
                state.whole[word] |= bit;
                if changed.last() != Some(&word) {
                    changed.push(word);
                }
            }
        }
        let (Some(first), Some(last)) = (changed.first(), changed.last()) else { return Ok(()) };
        // Their data must be there before the map says that it counts.
        if !self.volatile {
            fdatasync(&self.data)?;
        }
        state.sidecar.write(Map::Whole, *first, &state.whole[*first..=*last])?;
        state.dirty = true;
        self.sync_locked(state, true)
    }

    /// The next data or hole.
    pub fn seek(&self, to: SeekFrom) -> Result<u64> {
        let (hole, offset) = match to {
            SeekFrom::Data(offset) => (false, offset),
            SeekFrom::Hole(offset) => (true, offset),
            _ => return Err(Errno::INVAL),
        };
        let size = self.size()?;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < size {
            let (owned, stop) = self.run(at, size);
            let fd = if owned { &self.data } else { &self.lower };
            let found = seek(fd, if hole { SeekFrom::Hole(at) } else { SeekFrom::Data(at) });
            match found {
                Ok(found) if found < stop => return Ok(found),
                Ok(_) | Err(Errno::NXIO) => at = stop,
                Err(e) => return Err(e),
            }
        }
        if hole { Ok(size) } else { Err(Errno::NXIO) }
    }
}
