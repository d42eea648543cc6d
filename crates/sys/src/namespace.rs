//! Namespaces of the calling process, and who is who in a user namespace.
//!
//! Source: unshare(2), user_namespaces(7), setns(2).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::{Error, Result};

/// Leaves the caller's namespaces of these kinds for new ones; a new PID namespace is for later children.
///
/// Only for a process with one thread, which for a user namespace the kernel demands.
///
/// # Errors
/// EPERM where the kernel's settings or the caller's privileges forbid it, ENOSPC at the limit of nesting.
pub fn unshare(flags: UnshareFlags) -> Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Error::new("unshare", flags, Errno::INVAL));
    }
    // SAFETY: what makes this unsafe is CLONE_FILES, which takes descriptors from under other threads; it is refused.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|source| Error::new("unshare", flags, source))
}

/// Owns a descriptor that the parent process left open for us under this number.
///
/// It is closed when we execute something else.
///
/// # Errors
/// EBADF where nothing is open under the number; EINVAL for the three standard ones.
pub fn inherited(number: i32) -> Result<OwnedFd> {
    let fail = |source| Error::new("fcntl", number, source);
    if number < 3 {
        return Err(fail(Errno::INVAL));
    }
    // SAFETY: fcntl takes the number alone, and says EBADF where it stands for nothing.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(fail(Errno::BADF));
    }
    // SAFETY: it is open, as was just seen, and nobody in this process owns what its parent opened.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Brings up the loopback of this network namespace, so that what listens on 127.0.0.1 can be reached.
///
/// # Errors
/// Of ioctl(2) SIOCSIFFLAGS: EPERM without CAP_NET_ADMIN in the namespace.
///
/// Source: netdevice(7).
pub fn loopback_up() -> Result<()> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .map_err(|e| Error::new("socket", "AF_INET", e))?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as libc::c_short },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel reads one ifreq, which lives through the call; its name ends in zeroes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        return Err(Error::new("ioctl", "SIOCSIFFLAGS lo", errno));
    }
    Ok(())
}
