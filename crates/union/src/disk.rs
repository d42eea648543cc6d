//! What file systems promise about how things reach the disk.

use std::os::fd::OwnedFd;

use rustix::fs::{fstat, fstatfs};
use rustix::io::Errno;
use sys::mounts::{EXT4, XFS};

/// Whether names reach the disk in the order in which they were made, and blocks before what says that they are there:
/// XFS, and ext4 with a journal.
pub(crate) fn keeps_order(dir: &OwnedFd) -> Result<bool, Errno> {
    match fstatfs(dir)?.f_type as i64 {
        XFS => Ok(true),
        // Blocks of a file may hold anything after a loss of power where data does not come before its metadata.
        EXT4 => with_journal(dir, "data=writeback"),
        _ => Ok(false),
    }
}

/// Whether what overwrites blocks that a file has goes to these very blocks, and an fdatasync(2) of any file makes the
/// disk keep everything that it has got: ext4 with a journal.
///
/// Source: kernel `fs/ext4/fsync.c`: a commit of the journal tells the disk, or the call does.
pub(crate) fn overwrites_in_place(dir: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstatfs(dir)?.f_type as i64 == EXT4 && with_journal(dir, "data=journal")?)
}

/// Whether the ext4 behind `dir` has a journal and not this option.
fn with_journal(dir: &OwnedFd, unwanted: &str) -> Result<bool, Errno> {
    let stat = fstat(dir)?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let options = sys::mounts::options(stat.st_dev);
    let without = options.is_some_and(|o| !o.split(',').any(|o| o == unwanted));
    Ok(without && sys::mounts::ext4_journal(major, minor))
}
