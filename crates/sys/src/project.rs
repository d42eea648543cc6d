//! Projects: numbers that files have, and limits that a file system keeps for all files of one number.
//!
//! Source: ioctl_xfs_fsgetxattr(2); quotactl(2), `Q_XGETQSTATV` and its neighbours; quotactl_fd(2); kernel
//! `include/uapi/linux/{fs,quota,dqblk_xfs}.h`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// The request by which whoever owns a file gives it to another project.
pub const SET_ATTRIBUTES: u32 = 0x401c_5820;
/// Those by which it changes flags, of which one is that a directory gives its project on; of 64 and of 32 bits.
pub const SET_FLAGS: [u32; 2] = [0x4008_6602, 0x4004_6602];

const GET_ATTRIBUTES: u32 = 0x801c_581f;
/// `FS_XFLAG_PROJINHERIT`.
const INHERIT: u32 = 0x200;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    pad: [u8; 8],
}

fn last() -> Errno {
    let errno = std::io::Error::last_os_error();
    Errno::from_io_error(&errno).unwrap_or(Errno::IO)
}

fn attributes(fd: impl AsFd, request: u32, attributes: &mut Attributes) -> Result<()> {
    let number = fd.as_fd().as_raw_fd();
    // SAFETY: both requests read or write one `struct fsxattr`, which lives through the call.
    let result = unsafe { libc::ioctl(number, request as _, std::ptr::from_mut(attributes)) };
    let fail = || Error::new("ioctl", format!("{request:#x}"), last());
    if result < 0 { Err(fail()) } else { Ok(()) }
}

/// The project of a directory that gives it to whatever is made in it; none where it does not.
///
/// # Errors
/// ENOTTY where the file system knows no projects.
pub fn inherited(dir: impl AsFd) -> Result<Option<u32>> {
    let mut known = Attributes::default();
    attributes(&dir, GET_ATTRIBUTES, &mut known)?;
    Ok((known.flags & INHERIT != 0).then_some(known.project))
}

/// Puts a directory in a project, which is that of whatever is made in it from now on; with none it is in no project.
///
/// # Errors
/// ENOTTY as before; EINVAL outside the first user namespace.
pub fn inherit(dir: impl AsFd, project: Option<u32>) -> Result<()> {
    let mut wanted = Attributes::default();
    attributes(&dir, GET_ATTRIBUTES, &mut wanted)?;
    wanted.project = project.unwrap_or(0);
    wanted.flags = (wanted.flags & !INHERIT) | if project.is_some() { INHERIT } else { 0 };
    attributes(&dir, SET_ATTRIBUTES, &mut wanted)
}

/// What is known of a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its number.
    pub project: u32,
    /// Bytes of blocks that its files have.
    pub bytes: u64,
    /// How many files it has, of any kind.
    pub inodes: u64,
    /// Bytes that they may have; 0 is no limit.
    pub bytes_limit: u64,
    /// How many it may have; 0 is no limit.
    pub inodes_limit: u64,
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    mask: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    pad: [u8; 10],
}

/// `struct fs_quota_statv`.
#[repr(C)]
#[derive(Default)]
struct Status {
    version: i8,
    pad: u8,
    flags: u16,
    in_core: u32,
    files: [QuotaFile; 3],
    timers: [i32; 3],
    warnings: [u16; 4],
    pad_more: u32,
    more: [u64; 7],
}

/// `struct fs_qfilestatv`.
#[repr(C)]
#[derive(Default)]
struct QuotaFile {
    inode: u64,
    blocks: u64,
    extents: u32,
    pad: u32,
}

const _: () = assert!(size_of::<DiskQuota>() == 112 && size_of::<Status>() == 160);
const _: () = assert!(size_of::<Attributes>() == 28);

/// Blocks of quotas, in bytes.
const BLOCK: u64 = 512;
const SET_LIMIT: u32 = 4;
const GET_QUOTA: u32 = 3;
const GET_STATUS: u32 = 8;
const GET_NEXT: u32 = 9;
/// That limits of projects are counted and kept.
const COUNTED_AND_KEPT: u16 = 0x10 | 0x20;
const HARD_AND_SOFT: u16 = 0xf;
const PROJECT_QUOTA: i8 = 2;

/// The limits of projects of one file system.
#[derive(Debug)]
pub struct Quota {
    dir: OwnedFd,
}

impl AsFd for Quota {
    /// The directory by which they were asked for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Quota {
    /// Those of the file system that the directory `at` is in, whether it keeps any or not.
    ///
    /// # Errors
    /// Of openat(2).
    pub fn of(at: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(at, flags, Mode::empty());
        Ok(Self { dir: dir.map_err(|e| Error::new("openat", at, e))? })
    }

    /// Whether the file system counts what projects use, and keeps their limits.
    ///
    /// # Errors
    /// Other than that it has no quotas, or the kernel has none.
    pub fn is_kept(&self) -> Result<bool> {
        let mut status = Status { version: 1, ..Status::default() };
        match self.call(GET_STATUS, 0, &mut status) {
            Ok(()) => Ok(status.flags & COUNTED_AND_KEPT == COUNTED_AND_KEPT),
            Err(e) if matches!(e.source, Errno::NOSYS | Errno::INVAL | Errno::SRCH) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is known of a project; none where it has neither files nor limits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn usage(&self, project: u32) -> Result<Option<Usage>> {
        self.ask(GET_QUOTA, project)
    }

    /// The next project from `first` on that has files or limits; none where there is no more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self, first: u32) -> Result<Option<Usage>> {
        self.ask(GET_NEXT, first)
    }

    fn ask(&self, command: u32, project: u32) -> Result<Option<Usage>> {
        let mut quota = DiskQuota::default();
        match self.call(command, project, &mut quota) {
            Err(e) if matches!(e.source, Errno::NOENT | Errno::SRCH) => return Ok(None),
            other => other?,
        }
        let usage = Usage {
            project: quota.id,
            bytes: quota.blocks.saturating_mul(BLOCK),
            inodes: quota.inodes,
            bytes_limit: quota.blocks_hard.saturating_mul(BLOCK),
            inodes_limit: quota.inodes_hard,
        };
        // It has been asked for before, and is nothing.
        Ok((usage != Usage { project: quota.id, ..Usage::default() }).then_some(usage))
    }

    /// Limits what a project may have, in bytes, of which only whole blocks of 512 count, and in files; 0 is no limit.
    ///
    /// # Errors
    /// EPERM without `CAP_SYS_ADMIN`.
    pub fn limit(&self, project: u32, bytes: u64, inodes: u64) -> Result<()> {
        let mut quota = DiskQuota {
            version: 1,
            flags: PROJECT_QUOTA,
            mask: HARD_AND_SOFT,
            id: project,
            blocks_hard: bytes / BLOCK,
            inodes_hard: inodes,
            ..DiskQuota::default()
        };
        self.call(SET_LIMIT, project, &mut quota)
    }

    /// quotactl_fd(2), or before Linux 5.14 quotactl(2), which takes the device.
    fn call<T>(&self, command: u32, project: u32, about: &mut T) -> Result<()> {
        // `QCMD(XQM_CMD(command), PRJQUOTA)`.
        let code = ((u32::from(b'X') << 8) + command) << 8 | 2;
        let about = std::ptr::from_mut(about);
        let fail = |call| Error::new(call, format!("{command}, project {project}"), last());
        // SAFETY: each command reads or writes at most the structure of it, which lives through the call.
        let result = unsafe {
            libc::syscall(libc::SYS_quotactl_fd, self.dir.as_raw_fd(), code, project, about)
        };
        if result == 0 {
            return Ok(());
        }
        let failed = fail("quotactl_fd");
        let Some(device) = (failed.source == Errno::NOSYS).then(|| self.device()).flatten() else {
            return Err(failed);
        };
        // SAFETY: the same, and the path ends with NUL.
        let result =
            unsafe { libc::syscall(libc::SYS_quotactl, code, device.as_ptr(), project, about) };
        if result == 0 { Ok(()) } else { Err(fail("quotactl")) }
    }

    fn device(&self) -> Option<CString> {
        let stat = rustix::fs::fstat(&self.dir).ok()?;
        let source = crate::mounts::source(stat.st_dev)?;
        CString::new(source.as_os_str().as_bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_kept_that_is_said() {
        let temp = tempfile::tempdir().expect("a directory");
        let quota = Quota::of(temp.path()).expect("opened");
        // Where it is, a project that nobody has is nothing.
        if quota.is_kept().expect("known") {
            assert_eq!(quota.usage(0x53ff_fffe).expect("known"), None);
        } else {
            assert!(quota.limit(0x53ff_fffe, 1 << 20, 0).is_err());
        }
    }
}
