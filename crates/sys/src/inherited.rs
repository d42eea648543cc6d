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

/// Closes all descriptors but the standard ones and `kept`: for a process that was executed a moment ago, and has opened
/// nothing itself. What its callers have left open, knowing or not, is then nobody's below it.
///
/// Source: close_range(2).
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but(kept: Option<i32>) -> Result<()> {
    let kept = kept.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 2);
    let ranges = match kept {
        Some(kept) => [(3, kept - 1), (kept + 1, u32::MAX)],
        None => [(3, u32::MAX), (u32::MAX, u32::MAX)],
    };
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: the call takes no pointer. Who calls has nothing open that would be closed under it.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            let range = format!("{first}-{last}");
            return Err(Error::new("close_range", range, Errno::from_raw_os_error(errno)));
        }
    }
    Ok(())
}
