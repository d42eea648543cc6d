//! What identifies an inode for as long as it exists, over mounts and reboots.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use crate::{Error, Result};

/// The kernel's limit for a handle: bytes.
const MOST: usize = 128;

/// A file handle, as the file system of the inode makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// What the bytes are, for that file system.
    pub kind: u8,
    /// They are its own business.
    pub bytes: Vec<u8>,
}

/// As `struct file_handle`, with room for the longest.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; MOST],
}

/// The handle of `name` in `dir`, itself if it is a symlink; of `dir` where the name is empty. None where the file system
/// has no handles.
///
/// Source: name_to_handle_at(2).
///
/// # Errors
/// The kernel's; EINVAL for a name with a NUL.
pub fn of(dir: impl AsFd, name: &Path) -> Result<Option<Handle>> {
    let fail = |e| Error::new("name_to_handle_at", name, e);
    let path = CString::new(name.as_os_str().as_bytes()).map_err(|_| fail(Errno::INVAL))?;
    let flags = if name.as_os_str().is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut raw = Raw { bytes: MOST as u32, kind: 0, handle: [0; MOST] };
    let mut mount = 0_i32;
    // SAFETY: the path is NUL-terminated; `raw` has the layout of `struct file_handle` with the room that it says, and
    // lives through the call, as does `mount`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            flags,
        )
    };
    if result < 0 {
        let errno = std::io::Error::last_os_error();
        return match Errno::from_io_error(&errno).unwrap_or(Errno::IO) {
            Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS => Ok(None),
            e => Err(fail(e)),
        };
    }
    let bytes = raw.handle.get(..raw.bytes as usize);
    Ok(bytes
        .zip(u8::try_from(raw.kind).ok())
        .map(|(bytes, kind)| Handle { kind, bytes: bytes.to_vec() }))
}

/// The UUID of the file system that `fd` is on; none where it has none, or the kernel (before 6.9) does not tell.
///
/// Source: `FS_IOC_GETFSUUID` of linux/fs.h.
pub fn uuid(fd: impl AsFd) -> Option<[u8; 16]> {
    /// `_IOR(0x15, 0, struct fsuuid2)`: a length, and 16 bytes.
    const GETFSUUID: u32 = 0x8011_1500;
    let mut out = [0_u8; 17];
    // SAFETY: the kernel writes the 17 bytes that the request's number says, into an array of that size.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), GETFSUUID as _, out.as_mut_ptr()) };
    if result < 0 || out[0] != 16 {
        return None;
    }
    out[1..].try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_an_inode_have_one_handle() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("a"), "a").expect("a file");
        std::fs::hard_link(at("a"), at("b")).expect("a link");
        std::fs::write(at("c"), "c").expect("a file");
        let dir = std::fs::File::open(temp.path()).expect("the directory");
        let handle = |name: &str| of(&dir, Path::new(name)).expect("a handle");
        assert_eq!(handle("a"), handle("b"));
        if handle("a").is_some() {
            assert_ne!(handle("a"), handle("c"));
            assert_ne!(handle(""), handle("c"));
        }
        assert!(of(&dir, Path::new("absent")).is_err());
    }
}
