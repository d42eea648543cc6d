//! Open files. What is read and written is the node's present inode, not the one of the open.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom, fallocate, fdatasync, fsync, seek};
use rustix::io::Errno;

use crate::attr::reopen_fd;
use crate::copy_up::Data;
use crate::error::{Result, Step, refused};
use crate::node::{Node, NodeId, Rest};
use crate::space::{added, held_by_fd};
use crate::stack::Union;
use crate::transfer::{counted, read_some, write_some};

/// Bytes that are copied by hand at once.
const PIECE: usize = 1 << 20;

/// An open file of a union. It must go back through [`Union::close`].
#[derive(Debug)]
pub struct OpenFile {
    pub(crate) node: Arc<Node>,
    flags: OFlags,
    /// A write has taken set-user-ID or set-group-ID away.
    lost: AtomicBool,
    /// The descriptor, and the node's version that it is of; none until it is needed.
    real: RwLock<Option<(u32, Arc<OwnedFd>)>>,
}

impl OpenFile {
    /// The node that is open.
    pub fn node(&self) -> NodeId {
        self.node.id
    }

    /// Whether a write through it has taken set-user-ID or set-group-ID away since this was asked last.
    pub fn lost_privileges(&self) -> bool {
        self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::Relaxed)
    }
}

impl Union {
    /// Opens a regular file; `flags` as open(2) has them. Opening for writing copies up; `O_TRUNC`
    /// copies no data.
    ///
    /// # Errors
    /// EISDIR, EROFS, ENOSPC, or the layer's own.
    pub fn open_file(&self, node: NodeId, flags: OFlags) -> Result<Arc<OpenFile>> {
        let node = self.node(node)?;
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory => {
                return Err(refused(&node.path().unwrap_or_default(), Errno::ISDIR));
            }
            _ => return Err(refused(&node.path().unwrap_or_default(), Errno::NXIO)),
        }
        let truncate = flags.contains(OFlags::TRUNC);
        let writes = truncate || flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        node.opens.fetch_add(1, Ordering::AcqRel);
        let opened = (|| {
            if writes {
                let data = if truncate { Data::None } else { Data::All };
                self.copy_up(&node, data)?;
                self.bring_data(&node, data)?;
            }
            // A copy-up between the look and the open would leave a descriptor of the old inode.
            let _change = node.change.lock();
            let version = node.body.read().version;
            // Reads of what is open for writing only come from the kernel's page cache.
            let access = if writes { OFlags::RDWR } else { OFlags::RDONLY };
            if truncate {
                self.settle_copy(&node)?;
            }
            // Where there is a limit, what the cut frees is counted first.
            let partial = node.partial();
            let limited = self.space.is_some() || partial.is_some();
            let cut = if truncate && !limited { OFlags::TRUNC } else { OFlags::empty() };
            // What is read of a partial file is in two files, and not where a direct read needs it.
            let direct = if partial.is_none() { flags & OFlags::DIRECT } else { OFlags::empty() };
            let real = self.real(&node)?;
            let fd = Arc::new(match node.below() {
                None => self.reopen(&node, &real, access | cut | direct)?,
                Some(part) => self.open_part(&node, &part)?,
            });
            if truncate && limited {
                self.cut(&node, &fd, 0)?;
            }
            let anchor = match node.below() {
                None => Arc::clone(&fd),
                // Attributes are in another inode than data.
                Some(_) => Arc::new(self.reopen(&node, &real, OFlags::RDONLY)?),
            };
            node.body.write().anchor.get_or_insert(anchor);
            Ok((version, fd, access | direct))
        })();
        match opened {
            Ok((version, fd, flags)) => Ok(Arc::new(OpenFile {
                node,
                flags,
                lost: AtomicBool::new(false),
                real: RwLock::new(Some((version, fd))),
            })),
            Err(e) => {
                self.table.closed(&node);
                Err(e)
            }
        }
    }

    /// Opens a regular file that the kernel reads and writes itself, and whose descriptor it has: nothing is opened
    /// before it is needed. None where that does not do, and for `O_TRUNC`.
    pub fn open_file_later(&self, node: NodeId, flags: OFlags) -> Option<Arc<OpenFile>> {
        let node = self.table.get(node)?;
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let plain = {
            let body = node.body.read();
            body.rest.is_none() && (body.upper || !writes)
        };
        if !plain || flags.contains(OFlags::TRUNC) || node.kind != FileType::RegularFile {
            return None;
        }
        node.opens.fetch_add(1, Ordering::AcqRel);
        let access = if writes { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | (flags & OFlags::DIRECT);
        Some(Arc::new(OpenFile {
            node,
            flags,
            lost: AtomicBool::new(false),
            real: RwLock::new(None),
        }))
    }

    /// As [`Union::open_file_later`], for a file that only lower layers have.
    pub fn open_lower_later(&self, node: NodeId, flags: OFlags) -> Option<Arc<OpenFile>> {
        let in_upper = self.table.get(node)?.body.read().upper;
        if in_upper { None } else { self.open_file_later(node, flags) }
    }

    pub(crate) fn opened(&self, node: &Arc<Node>, fd: OwnedFd) -> Arc<OpenFile> {
        node.opens.fetch_add(1, Ordering::AcqRel);
        let fd = Arc::new(fd);
        let mut body = node.body.write();
        body.anchor.get_or_insert_with(|| Arc::clone(&fd));
        let real = RwLock::new(Some((body.version, fd)));
        drop(body);
        Arc::new(OpenFile {
            node: Arc::clone(node),
            flags: OFlags::RDWR,
            lost: AtomicBool::new(false),
            real,
        })
    }

    /// Cuts or lengthens a file, and counts what that frees.
    pub(crate) fn cut(&self, node: &Arc<Node>, fd: &OwnedFd, size: u64) -> Result<()> {
        let fail = |e| self.fail(node, Step::Change, "ftruncate", e);
        if let Some(partial) = node.partial() {
            return partial.truncate(size).map_err(fail);
        }
        self.settle_copy(node)?;
        let Some(space) = &self.space else {
            return rustix::fs::ftruncate(fd, size).map_err(fail);
        };
        let before = held_by_fd(fd).map_err(fail)?;
        rustix::fs::ftruncate(fd, size).map_err(fail)?;
        space.give(before.saturating_sub(held_by_fd(fd).map_err(fail)?));
        Ok(())
    }

    fn without_privileges(&self, open: &OpenFile, fd: &OwnedFd) -> Result<()> {
        if self.drop_privileges(&open.node, fd)? {
            open.lost.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends an open file.
    pub fn close(&self, open: &OpenFile) {
        if let Some(space) =
            self.space.as_ref().filter(|_| open.node.opens.load(Ordering::Acquire) == 1)
        {
            space.closed(open.node.id, open.node.body.read().anchor.as_deref());
        }
        self.table.closed(&open.node);
    }

    /// The descriptor of the node's present inode.
    fn fd(&self, open: &OpenFile) -> Result<Arc<OwnedFd>> {
        let version = open.node.body.read().version;
        {
            let real = open.real.read();
            if let Some((_, fd)) = real.as_ref().filter(|(known, _)| *known == version) {
                return Ok(Arc::clone(fd));
            }
        }
        let mut real = open.real.write();
        let (version, anchor) = {
            let body = open.node.body.read();
            (body.version, body.anchor.clone())
        };
        if let Some((_, fd)) = real.as_ref().filter(|(known, _)| *known == version) {
            return Ok(Arc::clone(fd));
        }
        let fail = |e| self.fail(&open.node, Step::Read, "open", e);
        let fd = match anchor {
            Some(anchor) => reopen_fd(&anchor, open.flags).map_err(fail)?,
            None if real.is_none() => {
                self.reopen(&open.node, &self.real(&open.node)?, open.flags)?
            }
            None => return Err(fail(Errno::STALE)),
        };
        let fd = Arc::new(fd);
        *real = Some((version, Arc::clone(&fd)));
        Ok(fd)
    }

    /// As [`Union::fd`], in the upper layer: a file that was opened for reading may be changed too,
    /// by fchmod(2) for one.
    fn changing(&self, open: &OpenFile) -> Result<Arc<OwnedFd>> {
        if !open.flags.contains(OFlags::RDWR) {
            return Err(refused(&open.node.path().unwrap_or_default(), Errno::BADF));
        }
        self.fd(open)
    }

    /// Whether all that is read of an open file is in the upper layer, and so in one inode as long as it is open.
    pub fn is_in_upper(&self, open: &OpenFile) -> bool {
        let body = open.node.body.read();
        let whole = match body.rest.as_deref() {
            None => true,
            Some(Rest::Partial(partial)) => partial.is_complete(),
            Some(Rest::Below(_)) => false,
        };
        body.upper && whole
    }

    /// The descriptor behind an open file, for passthrough.
    ///
    /// # Errors
    /// As [`Union::read`].
    pub fn backing(&self, open: &OpenFile) -> Result<Arc<OwnedFd>> {
        self.fd(open)
    }

    /// Reads at `offset` until `into` is full or the file ends.
    ///
    /// # Errors
    /// The backing file system's own.
    pub fn read(&self, open: &OpenFile, into: &mut [u8], offset: u64) -> Result<usize> {
        if let Some(partial) = open.node.partial() {
            let read = partial.read(into, offset);
            return read.map_err(|e| self.fail(&open.node, Step::Read, "pread", e));
        }
        let fd = self.fd(open)?;
        read_some(&fd, into, offset).map_err(|e| self.fail(&open.node, Step::Read, "pread", e))
    }

    /// Writes all of `data` at `offset`, or as much as there is room for.
    ///
    /// `kill_suidgid` takes set-user-ID and set-group-ID away, as a write by anybody but root does.
    ///
    /// # Errors
    /// EBADF where it is not open for writing; ENOSPC; the backing file system's own.
    pub fn write(
        &self,
        open: &OpenFile,
        data: &[u8],
        offset: u64,
        kill_suidgid: bool,
    ) -> Result<usize> {
        let fd = self.changing(open)?;
        if kill_suidgid {
            self.without_privileges(open, &fd)?;
        }
        if let Some(partial) = open.node.partial() {
            let written = partial.write(data, offset);
            return written.map_err(|e| self.fail(&open.node, Step::Change, "pwrite", e));
        }
        let (data, taken) = match &self.space {
            None => (data, 0),
            Some(space) => {
                let (len, taken) = space
                    .take_write(&fd, offset, data.len() as u64)
                    .map_err(|e| self.fail(&open.node, Step::Change, "pwrite", e))?;
                (&data[..usize::try_from(len).unwrap_or(data.len())], taken)
            }
        };
        let written = self.write_all(open, &fd, data, offset);
        if let Some(space) = self
            .space
            .as_ref()
            .filter(|_| taken > 0 && !matches!(written, Ok(n) if n == data.len()))
        {
            // What was not written was not used.
            let missing = match written {
                Ok(done) => {
                    added(&fd, offset + done as u64, (data.len() - done) as u64).unwrap_or(0)
                }
                Err(_) => taken,
            };
            space.give(missing.min(taken));
        }
        written
    }

    fn write_all(&self, open: &OpenFile, fd: &OwnedFd, data: &[u8], offset: u64) -> Result<usize> {
        let written = counted(write_some(fd, data, offset));
        written.map_err(|e| self.fail(&open.node, Step::Change, "pwrite", e))
    }

    /// Waits until the file, and its copy-up, are on disk. A volatile union does not wait.
    ///
    /// # Errors
    /// The backing file system's own: what was written may be lost.
    pub fn fsync(&self, open: &OpenFile, data_only: bool) -> Result<()> {
        if self.upper.as_ref().is_none_or(|upper| upper.volatile) {
            return Ok(());
        }
        if let Some(partial) = open.node.partial() {
            let synced = partial.sync(data_only);
            return synced.map_err(|e| self.fail(&open.node, Step::Change, "fsync", e));
        }
        let fd = self.fd(open)?;
        let synced = if data_only { fdatasync(&*fd) } else { fsync(&*fd) };
        synced.map_err(|e| self.fail(&open.node, Step::Change, "fsync", e))
    }

    /// fallocate(2), with every mode that the backing file system has; `kill_suidgid` as for [`Union::write`].
    ///
    /// # Errors
    /// EBADF, EOPNOTSUPP, ENOSPC.
    pub fn fallocate(
        &self,
        open: &OpenFile,
        mode: FallocateFlags,
        (offset, len): (u64, u64),
        kill_suidgid: bool,
    ) -> Result<()> {
        let fd = self.changing(open)?;
        if kill_suidgid {
            self.without_privileges(open, &fd)?;
        }
        let fail = |e| self.fail(&open.node, Step::Change, "fallocate", e);
        let moves = FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE;
        if mode.intersects(moves) {
            self.complete_file(open.node.id)?;
        }
        if let Some(partial) = open.node.partial() {
            return partial.fallocate(mode, offset, len).map_err(fail);
        }
        if mode.intersects(moves | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            self.settle_copy(&open.node)?;
        }
        let Some(space) = &self.space else {
            return fallocate(&*fd, mode, offset, len).map_err(fail);
        };
        let frees = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        let taken =
            if mode.intersects(frees) { 0 } else { added(&fd, offset, len).map_err(fail)? };
        space.take(taken).map_err(fail)?;
        let before = held_by_fd(&fd).map_err(fail)?;
        let done = fallocate(&*fd, mode, offset, len);
        match done {
            Ok(()) if mode.intersects(frees) => {
                space.give(before.saturating_sub(held_by_fd(&fd).map_err(fail)?));
            }
            Ok(()) => {}
            Err(_) => space.give(taken),
        }
        done.map_err(fail)
    }

    /// The next data or hole.
    ///
    /// # Errors
    /// ENXIO past the end.
    pub fn seek(&self, open: &OpenFile, to: SeekFrom) -> Result<u64> {
        if let Some(partial) = open.node.partial() {
            return partial.seek(to).map_err(|e| self.fail(&open.node, Step::Read, "lseek", e));
        }
        let fd = self.fd(open)?;
        seek(&*fd, to).map_err(|e| self.fail(&open.node, Step::Read, "lseek", e))
    }

    /// Copies a piece at least, through partial files.
    fn copy_by_hand(
        &self,
        (from, at): (&OpenFile, u64),
        (to, into): (&OpenFile, u64),
        len: usize,
    ) -> Result<usize> {
        let mut piece = vec![0; len.min(PIECE)];
        let got = self.read(from, &mut piece, at)?;
        self.write(to, &piece[..got], into, false)
    }

    /// Copies within the union, in the kernel where it can; `kill_suidgid` as for [`Union::write`].
    ///
    /// # Errors
    /// EBADF, EXDEV where the files are on two file systems that do not copy to each other.
    pub fn copy_range(
        &self,
        (from, mut at): (&OpenFile, u64),
        (to, mut into): (&OpenFile, u64),
        len: usize,
        kill_suidgid: bool,
    ) -> Result<usize> {
        let (source, target) = (self.fd(from)?, self.changing(to)?);
        if kill_suidgid {
            self.without_privileges(to, &target)?;
        }
        if from.node.partial().is_some() || to.node.partial().is_some() {
            return self.copy_by_hand((from, at), (to, into), len);
        }
        let fail = |e| self.fail(&to.node, Step::Change, "copy_file_range", e);
        let start = into;
        let taken = match &self.space {
            Some(space) => {
                // No more than the source has is copied, whatever was asked for.
                let size = rustix::fs::fstat(&*source).map_err(fail)?.st_size;
                let there = u64::try_from(size).unwrap_or(0).saturating_sub(at);
                let taken = added(&target, start, there.min(len as u64)).map_err(fail)?;
                space.take(taken).map_err(fail)?;
                taken
            }
            None => 0,
        };
        let before = held_by_fd(&target).map_err(fail)?;
        let done =
            rustix::fs::copy_file_range(&*source, Some(&mut at), &*target, Some(&mut into), len);
        if let Some(space) = &self.space {
            let grown = held_by_fd(&target).map_err(fail)?.saturating_sub(before);
            space.give(taken.saturating_sub(grown));
        }
        done.map_err(fail)
    }
}
