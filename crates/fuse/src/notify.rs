//! What the server says unasked: invalidations, and the files that the kernel may use without asking.

use crate::wire::{
    BackingMap, DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN, DEV_IOC_CLONE, NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_INODE, NOTIFY_STORE, NotifyInvalEntry, NotifyInvalInode, NotifyStore, OutHeader,
    Plain,
};
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// The connection to the kernel, to talk without being asked. Clones are the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<OwnedFd>);

impl Connection {
    pub(crate) fn new(device: Arc<OwnedFd>) -> Self {
        Self(device)
    }

    /// Another descriptor on the same connection, with a queue of its own.
    pub(crate) fn clone_device(&self) -> io::Result<OwnedFd> {
        let device = rustix::fs::open(
            "/dev/fuse",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let mut source = self.0.as_raw_fd();
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32 that holds a descriptor; the pointer is to a live i32 of that size.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), DEV_IOC_CLONE, &raw mut source) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(device) }
    }

    /// Registers `file` as one that the kernel may read and write itself; the id to answer OPEN with.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` in the initial user namespace, `ELOOP` when the file system below is stacked too deep.
    pub fn backing_open(&self, file: impl AsFd) -> io::Result<i32> {
        let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads a `fuse_backing_map`, which `map` is and outlives the call.
        let id = unsafe { libc::ioctl(self.0.as_raw_fd(), DEV_IOC_BACKING_OPEN, &raw const map) };
        if id < 0 { Err(io::Error::last_os_error()) } else { Ok(id) }
    }

    /// Ends the registration of a backing file; opens that use it go on.
    ///
    /// # Errors
    /// `ENOENT` when there is none of this id.
    pub fn backing_close(&self, id: i32) -> io::Result<()> {
        // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads one u32; `id` lives through the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), DEV_IOC_BACKING_CLOSE, &raw const id) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Drops what the kernel keeps of a node: attributes, and pages from `offset` on (`len` 0: to the end; a negative
    /// offset: no pages). A node that the kernel does not know is no error. Not to be called while answering a request on
    /// the same node, for the kernel may wait for that answer.
    ///
    /// # Errors
    /// Of the device.
    pub fn invalidate_inode(&self, node: u64, offset: i64, len: i64) -> io::Result<()> {
        self.send(NOTIFY_INVAL_INODE, &[NotifyInvalInode { ino: node, off: offset, len }.bytes()])
    }

    /// Drops a name from the kernel's cache.
    ///
    /// # Errors
    /// Of the device.
    pub fn invalidate_entry(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        let namelen = u32::try_from(name.len()).map_err(io::Error::other)?;
        self.send(
            NOTIFY_INVAL_ENTRY,
            &[NotifyInvalEntry { parent, namelen, flags: 0 }.bytes(), name.as_bytes(), b"\0"],
        )
    }

    /// Puts data into the page cache of a node.
    ///
    /// # Errors
    /// Of the device.
    pub fn store(&self, node: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(io::Error::other)?;
        self.send(
            NOTIFY_STORE,
            &[NotifyStore { nodeid: node, offset, size, padding: 0 }.bytes(), data],
        )
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let len = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let header = OutHeader {
            len: u32::try_from(len).map_err(io::Error::other)?,
            error: code,
            unique: 0,
        };
        let mut slices = vec![IoSlice::new(header.bytes())];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        match rustix::io::writev(&self.0, &slices) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
