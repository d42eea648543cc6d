//! How far the kernel reads ahead of a program in what it asks us for.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// KiB. The kernel's own 128 are a round trip for each; more than this is too much where a program touches a page here
/// and there of a mapped file, since as much is read around each.
const AHEAD: u32 = 512;

/// Sets it for the mount at `mountpoint`, whose session has begun: `read_ahead_kb` of its backing device info, see
/// Documentation/ABI/testing/sysfs-class-bdi of Linux.
///
/// # Errors
/// Without privileges, or without sysfs, it stays as it is.
pub(crate) fn widen(mountpoint: &Path) -> io::Result<()> {
    // Nobody serves yet: what the kernel knows must do.
    let flags = AtFlags::STATX_DONT_SYNC;
    let of = statx(CWD, mountpoint, flags, StatxFlags::empty())?;
    let knob = format!("/sys/class/bdi/{}:{}/read_ahead_kb", of.stx_dev_major, of.stx_dev_minor);
    std::fs::write(knob, AHEAD.to_string())
}
