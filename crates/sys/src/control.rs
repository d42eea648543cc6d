//! ioctl(2) requests without an argument.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::{Error, Result};

/// Asks the file system behind `fd` for `request`, which must be one that takes no argument.
///
/// # Errors
/// The kernel's; ENOTTY where the file system does not know the request.
pub fn ask(fd: impl AsFd, request: u32) -> Result<()> {
    // SAFETY: no pointer is passed, and a request that would take one fails on null.
    let result = unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), request as _, std::ptr::null_mut::<libc::c_void>())
    };
    if result >= 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Error::new("ioctl", format!("{request:#x}"), Errno::from_raw_os_error(errno)))
}
