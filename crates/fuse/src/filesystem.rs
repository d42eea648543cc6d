//! What a file system answers: one method per operation of the kernel.

use crate::dispatch::DirSink;
use crate::request::Request;
use crate::session::Negotiated;
use crate::wire::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, GetattrIn, IoctlIn, Kstatfs,
    LseekIn, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, StatxIn, StatxOut,
    WriteIn,
};
use std::ffi::OsStr;

/// An error number of the kernel, positive (`ENOENT` is 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// What an operation gives: its answer or an error number.
pub type Result<T> = std::result::Result<T, Errno>;

const UNKNOWN: Errno = Errno(libc::ENOSYS);

/// A file system. Methods are called from many threads at once. What is not implemented answers `ENOSYS`, upon which the
/// kernel stops asking (and handles locks, access and flushes itself).
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync + 'static {
    /// The connection is open; what was agreed upon.
    fn init(&self, negotiated: &Negotiated) {}
    /// The mount is gone; nothing is asked any more.
    fn destroy(&self) {}
    /// Finds `name` in the directory `request.node`. Counts as one lookup when the node id answered is not 0.
    fn lookup(&self, request: &Request, name: &OsStr) -> Result<EntryOut> {
        Err(UNKNOWN)
    }
    /// Drops `count` lookups of a node.
    fn forget(&self, node: u64, count: u64) {}
    /// Attributes.
    fn getattr(&self, request: &Request, input: &GetattrIn) -> Result<AttrOut> {
        Err(UNKNOWN)
    }
    /// Attributes with the time of birth.
    fn statx(&self, request: &Request, input: &StatxIn) -> Result<StatxOut> {
        Err(UNKNOWN)
    }
    /// Changes attributes.
    fn setattr(&self, request: &Request, input: &SetattrIn) -> Result<AttrOut> {
        Err(UNKNOWN)
    }
    /// Target of a symbolic link, into `buffer`; its length.
    fn readlink(&self, request: &Request, buffer: &mut [u8]) -> Result<usize> {
        Err(UNKNOWN)
    }
    /// Makes a symbolic link.
    fn symlink(&self, request: &Request, name: &OsStr, target: &OsStr) -> Result<EntryOut> {
        Err(UNKNOWN)
    }
    /// Makes a node that is neither a directory nor a symbolic link.
    fn mknod(&self, request: &Request, input: &MknodIn, name: &OsStr) -> Result<EntryOut> {
        Err(UNKNOWN)
    }
    /// Makes a directory.
    fn mkdir(&self, request: &Request, input: &MkdirIn, name: &OsStr) -> Result<EntryOut> {
        Err(UNKNOWN)
    }
    /// Removes a name that is no directory.
    fn unlink(&self, request: &Request, name: &OsStr) -> Result<()> {
        Err(UNKNOWN)
    }
    /// Removes an empty directory.
    fn rmdir(&self, request: &Request, name: &OsStr) -> Result<()> {
        Err(UNKNOWN)
    }
    /// Renames; `flags` are those of renameat2(2).
    fn rename(
        &self,
        request: &Request,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        Err(UNKNOWN)
    }
    /// Gives `node` another name, in the directory `request.node`.
    fn link(&self, request: &Request, node: u64, name: &OsStr) -> Result<EntryOut> {
        Err(UNKNOWN)
    }
    /// Opens a file.
    fn open(&self, request: &Request, input: &OpenIn) -> Result<OpenOut> {
        Err(UNKNOWN)
    }
    /// Makes and opens a file.
    fn create(
        &self,
        request: &Request,
        input: &CreateIn,
        name: &OsStr,
    ) -> Result<(EntryOut, OpenOut)> {
        Err(UNKNOWN)
    }
    /// Makes and opens a file without a name, in the directory `request.node`.
    fn tmpfile(&self, request: &Request, input: &CreateIn) -> Result<(EntryOut, OpenOut)> {
        Err(UNKNOWN)
    }
    /// Reads into `buffer`, which is as long as was asked; a short count means the end of the file.
    fn read(&self, request: &Request, input: &ReadIn, buffer: &mut [u8]) -> Result<usize> {
        Err(UNKNOWN)
    }
    /// Writes; the count written.
    fn write(&self, request: &Request, input: &WriteIn, data: &[u8]) -> Result<usize> {
        Err(UNKNOWN)
    }
    /// A descriptor was closed.
    fn flush(&self, request: &Request, handle: u64) -> Result<()> {
        Err(UNKNOWN)
    }
    /// The last descriptor of an open file was closed.
    fn release(&self, request: &Request, input: &ReleaseIn) {}
    /// Brings a file to the disk.
    fn fsync(&self, request: &Request, handle: u64, data_only: bool) -> Result<()> {
        Err(UNKNOWN)
    }
    /// fallocate(2).
    fn fallocate(&self, request: &Request, input: &FallocateIn) -> Result<()> {
        Err(UNKNOWN)
    }
    /// `SEEK_DATA` and `SEEK_HOLE`; the offset.
    fn lseek(&self, request: &Request, input: &LseekIn) -> Result<u64> {
        Err(UNKNOWN)
    }
    /// copy_file_range(2); the count copied.
    fn copy_file_range(&self, request: &Request, input: &CopyFileRangeIn) -> Result<u64> {
        Err(UNKNOWN)
    }
    /// ioctl(2) with its input in `data`; output into `out`. The count of bytes put there.
    fn ioctl(
        &self,
        request: &Request,
        input: &IoctlIn,
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        Err(Errno(libc::ENOTTY))
    }
    /// Opens a directory. While this is not there (ENOSYS) the kernel asks no more, nor [`FileSystem::releasedir`]: it lists by
    /// handle 0, and keeps listings until it changes the directory itself (libfuse's `FUSE_CAP_NO_OPENDIR_SUPPORT`).
    fn opendir(&self, request: &Request, input: &OpenIn) -> Result<OpenOut> {
        Err(UNKNOWN)
    }
    /// Lists a directory from `offset` (0 or an offset that an entry gave) until `sink` is full. When [`DirSink::plus`],
    /// each entry is a lookup.
    fn readdir(
        &self,
        request: &Request,
        handle: u64,
        offset: u64,
        sink: &mut DirSink,
    ) -> Result<()> {
        Err(UNKNOWN)
    }
    /// The last descriptor of an open directory was closed.
    fn releasedir(&self, request: &Request, handle: u64) {}
    /// Brings a directory to the disk.
    fn fsyncdir(&self, request: &Request, handle: u64, data_only: bool) -> Result<()> {
        Err(UNKNOWN)
    }
    /// Space and inodes.
    fn statfs(&self, request: &Request) -> Result<Kstatfs> {
        Err(UNKNOWN)
    }
    /// syncfs(2).
    fn syncfs(&self, request: &Request) -> Result<()> {
        Err(UNKNOWN)
    }
    /// Sets an extended attribute.
    fn setxattr(&self, request: &Request, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        Err(UNKNOWN)
    }
    /// An extended attribute: into `buffer`, or only its length when the buffer is empty (`ERANGE` when too long).
    fn getxattr(&self, request: &Request, name: &OsStr, buffer: &mut [u8]) -> Result<usize> {
        Err(UNKNOWN)
    }
    /// Names of the extended attributes, each with a NUL behind; as [`FileSystem::getxattr`].
    fn listxattr(&self, request: &Request, buffer: &mut [u8]) -> Result<usize> {
        Err(UNKNOWN)
    }
    /// Removes an extended attribute.
    fn removexattr(&self, request: &Request, name: &OsStr) -> Result<()> {
        Err(UNKNOWN)
    }
}
