//! Signals as something to read.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// What asks a process to end, or tells it something that it may pass on.
const TOLD: [i32; 6] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Signals that are held back from every thread started after they were, and wait to be read.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    held: Vec<i32>,
}

impl Signals {
    /// Holds signals back in this thread and those it starts. To be called before there are others.
    ///
    /// # Errors
    /// Of pthread_sigmask(3) and signalfd(2).
    pub fn hold(signals: &[i32]) -> io::Result<Self> {
        let set = mask(libc::SIG_BLOCK, signals)?;
        // SAFETY: a pointer to an initialised set that lives through the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, held: signals.to_vec() })
    }

    /// Holds back what asks to end or tells something, the end of a child, and a new size of the terminal.
    ///
    /// # Errors
    /// As [`Signals::hold`].
    pub fn hold_all() -> io::Result<Self> {
        let mut all = TOLD.to_vec();
        all.extend([libc::SIGCHLD, libc::SIGWINCH]);
        Self::hold(&all)
    }

    /// Waits for one of the signals; its number.
    ///
    /// # Errors
    /// Of read(2).
    pub fn wait(&self) -> io::Result<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::retry_on_intr(|| rustix::io::read(self.fd.as_fd(), &mut info))?;
        // Its first field is the signal's number.
        Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }

    /// Lets the signals through again; those that came meanwhile are forgotten.
    ///
    /// # Errors
    /// Of pthread_sigmask(3).
    pub fn release(self) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&self.fd, rustix::fs::OFlags::NONBLOCK)?;
        while self.wait().is_ok() {}
        mask(libc::SIG_UNBLOCK, &self.held).map(drop)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether it is the signal that a child has ended.
pub fn is_child(signal: i32) -> bool {
    signal == libc::SIGCHLD
}

/// Whether it is the signal that the terminal has a new size.
pub fn is_resize(signal: i32) -> bool {
    signal == libc::SIGWINCH
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the old one is written to a place that lives through the call, and is all
    // integers and pointers, for which zeros are values.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn mask(how: i32, signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the others then read; no pointer outlives its call.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        match libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut()) {
            0 => Ok(set.assume_init()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The signals that ask a daemon to end: SIGTERM, SIGINT and SIGHUP.
#[derive(Debug)]
pub struct Ends(Signals);

impl Ends {
    /// Holds the signals back in this thread and those it starts. To be called before there are others.
    ///
    /// # Errors
    /// As [`Signals::hold`].
    pub fn hold() -> io::Result<Self> {
        Ok(Self(Signals::hold(&TOLD[..3])?))
    }

    /// The same but for signals that this process was started to ignore: by nohup(1), or in the background of a script.
    ///
    /// # Errors
    /// As [`Signals::hold`].
    pub fn hold_unless_ignored() -> io::Result<Self> {
        let heeded: Vec<i32> = TOLD[..3].iter().copied().filter(|s| !is_ignored(*s)).collect();
        Ok(Self(Signals::hold(&heeded)?))
    }

    /// Waits for one of the signals.
    ///
    /// # Errors
    /// Of read(2).
    pub fn wait(&self) -> io::Result<()> {
        self.number().map(drop)
    }

    /// Waits for one of the signals; its number.
    ///
    /// # Errors
    /// Of read(2).
    pub fn number(&self) -> io::Result<i32> {
        self.0.wait()
    }

    /// Lets the signals through again; those that came meanwhile are forgotten.
    ///
    /// # Errors
    /// As [`Signals::release`].
    pub fn release(self) -> io::Result<()> {
        self.0.release()
    }
}
