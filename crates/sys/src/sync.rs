//! Writing to the disk without waiting for it.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::{Error, Result};

/// Starts to write what is changed of a file; whether it is on the disk, fdatasync(2) waits for.
///
/// Source: sync_file_range(2), `SYNC_FILE_RANGE_WRITE`.
///
/// # Errors
/// The kernel's.
pub fn start(fd: impl AsFd) -> Result<()> {
    range(fd, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until the disk has got what is changed of a file, and not that it keeps it: neither is its cache flushed, nor is
/// written where the file's blocks are.
///
/// Source: sync_file_range(2), "Warning".
///
/// # Errors
/// The kernel's, the disk's.
pub fn hand_over(fd: impl AsFd) -> Result<()> {
    let before = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
    range(fd, before | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER)
}

fn range(fd: impl AsFd, flags: libc::c_uint) -> Result<()> {
    // SAFETY: the call takes a descriptor, which is open, and numbers.
    let result = unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) };
    if result == 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error();
    Err(Error::new("sync_file_range", "", Errno::from_io_error(&errno).unwrap_or(Errno::IO)))
}
