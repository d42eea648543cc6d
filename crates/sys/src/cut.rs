//! Ends a file system as a loss of power does, for tests of what is left.
//!
//! Source: Linux, `fs/ext4/ext4.h` (`EXT4_IOC_SHUTDOWN`), `fs/xfs/libxfs/xfs_fs.h` (`XFS_IOC_GOINGDOWN`).

use std::os::fd::AsFd;

use rustix::ioctl::{Setter, ioctl, opcode};

use crate::{Error, Result};

/// Shut down at once, without writing the journal: what was not synced is gone.
const NO_LOG_FLUSH: u32 = 2;

/// Cuts off the ext4 or XFS that `dir` is on: from now on every request fails, and after unmounting
/// and mounting it shows what it would after a loss of power.
///
/// # Errors
/// `ENOTTY` where the file system can't; `EPERM` without privileges.
pub fn power(dir: impl AsFd) -> Result<()> {
    const CODE: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
    // SAFETY: the request reads one u32 of flags, which is what the setter passes.
    let cut = unsafe { ioctl(dir, Setter::<CODE, u32>::new(NO_LOG_FLUSH)) };
    cut.map_err(|e| Error::new("ioctl", "SHUTDOWN", e))
}
