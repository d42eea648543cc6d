//! The rest of a partial file comes up, step by step.

use std::sync::atomic::Ordering;

use rustix::fs::{
    FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT, fallocate, fstat, futimens, seek,
};
use rustix::io::Errno;

use super::{Partial, Result};

/// Bytes of a step, during which nobody else writes.
const STEP: u64 = 1 << 20;

impl Partial {
    /// Brings up a little of what is missing; true where nothing is.
    pub fn step(&self) -> Result<bool> {
        let mut state = self.state.lock();
        let valid = self.valid();
        let Some((start, end)) = self.gap(valid) else { return Ok(true) };
        let before = (fstat(&self.data)?, self.changes());
        // What a write that failed has left there is not the file's own, nor a hole.
        let litter = seek(&self.data, SeekFrom::Data(start)).is_ok_and(|at| at < end);
        let copied = if litter {
            sys::copy::bytes(&self.lower, &self.data, start, end)
        } else {
            sys::copy::piece(&self.lower, &self.data, start, end)
        };
        copied.map_err(|error| error.source)?;
        let chunk = self.chunks.size;
        self.own(&mut state, start / chunk, end.div_ceil(chunk))?;
        let (stat, changes) = before;
        if self.changes() == changes {
            // Nothing that anybody sees has changed.
            let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
            let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            futimens(&self.data, &Timestamps { last_access: omit, last_modification: mtime })?;
        }
        Ok(false)
    }

    /// The first bytes that are missing, a step's worth.
    fn gap(&self, valid: u64) -> Option<(u64, u64)> {
        let mut at = 0;
        while at < valid {
            let (owned, stop) = self.run(at, valid);
            if !owned {
                return Some((at, stop.min(at + STEP.max(self.chunks.size))));
            }
            at = stop;
        }
        None
    }

    /// It is a file like any other from now on.
    pub(super) fn completed(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Takes out of the file what is there and not its own: what a write left that failed or was cut short. Such data
    /// would count once a bit of its chunk reached the disk before the data of a later write.
    pub(super) fn clear_litter(&self) -> Result<()> {
        let valid = self.valid();
        let mut at = 0;
        while at < valid {
            let (owned, stop) = self.run(at, valid);
            if !owned {
                self.clear(at, stop)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn clear(&self, start: u64, end: u64) -> Result<()> {
        match seek(&self.data, SeekFrom::Data(start)) {
            Ok(data) if data < end => {}
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e),
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.data, mode, start, end - start)
    }
}
