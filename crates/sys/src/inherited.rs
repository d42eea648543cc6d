//! Descriptors that whoever started this process has left open for it.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{Error, Result};

/// A descriptor of its own for what is open under `number`, which is closed on exec.
///
/// # Errors
/// EBADF where nothing is open under that number.
pub fn descriptor(number: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes no pointer, and makes a new descriptor or fails.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Error::new("fcntl", format!("{number}"), Errno::from_raw_os_error(errno)));
    }
    // SAFETY: the descriptor was just made, so that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
