//! The file system that the kernel sees, over a union.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use fuse::wire::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, GETATTR_FH, GetattrIn, IoctlIn,
    Kstatfs, LseekIn, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, StatxIn,
    StatxOut, WRITE_KILL_SUIDGID, WriteIn, fopen,
};
use fuse::{Connection, DirSink, Errno, FileSystem, Negotiated, Request, Result};
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, SeekFrom, XattrFlags};
use union::{Caller, NodeId, OpenFile, Union};

use crate::attributes::{Valid, changes, device, space};
use crate::early::{self, Early};
use crate::handles::Handles;
use crate::ids::Ids;
use crate::ioctl;
use crate::passthrough::Passthrough;

/// How many nodes are forgotten until their memory goes back to the kernel.
const FORGOTTEN: u64 = 20_000;

/// Set-user-ID and set-group-ID.
const PRIVILEGES: u32 = 0o6000;

/// With which a file is opened to be changed.
const WRITES: OFlags = OFlags::WRONLY.union(OFlags::RDWR).union(OFlags::TRUNC);

/// `DT_DIR`.
const DIRECTORY: u32 = 4;

/// The offsets of `.` and `..`, which are before all places.
const DOTS: u64 = 2;

/// A union behind FUSE.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) union: Union,
    read_only: bool,
    noacl: bool,
    static_nlink: bool,
    valid: Valid,
    ids: Ids,
    files: Handles<OpenFile>,
    passthrough: Passthrough,
    early: Early,
    connection: OnceLock<Connection>,
    forgotten: AtomicU64,
}

fn refused(error: union::Error) -> Errno {
    let errno = error.errno().raw_os_error();
    if !matches!(errno, 2 | 61) {
        // ENOENT and ENODATA are answers.
        tracing::debug!(%error, "refused by the union");
    }
    Errno(errno)
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno(errno.raw_os_error())
}

fn node(request: &Request) -> NodeId {
    NodeId(request.node)
}

impl Adapter {
    pub fn new(union: Union, options: &crate::Options) -> Self {
        Self {
            read_only: options.read_only || union.is_read_only(),
            // An ACL would change the mode of the file, which is not the one that is shown.
            noacl: options.noacl || union.keeps_owners(),
            static_nlink: options.static_nlink,
            valid: Valid::new(options.timeout),
            ids: Ids::new(options),
            union,
            files: Handles::new(),
            passthrough: Passthrough::default(),
            early: Early::new(),
            connection: OnceLock::new(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Over which the kernel is told what it does not know.
    pub fn connect(&self, connection: Connection) {
        self.connection.get_or_init(|| connection);
    }

    /// Lets the kernel read and write files itself.
    pub fn enable_passthrough(&self, connection: Connection) {
        self.passthrough.enable(connection);
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(errno(rustix::io::Errno::ROFS)) } else { Ok(()) }
    }

    fn entry(&self, mut entry: union::Entry) -> EntryOut {
        self.fix(&mut entry.attr);
        self.valid(entry.node.0, &entry.attr).entry(&entry)
    }

    /// How long the kernel may keep what `stat` shows: not at all where it writes the file itself, for then it may take
    /// set-user-ID from it without noticing.
    fn valid(&self, node: u64, attr: &union::Attr) -> Valid {
        let fleeting = attr.mode & PRIVILEGES != 0 && self.passthrough.is_open(node);
        if fleeting { self.valid.with_fleeting_attributes() } else { self.valid }
    }

    /// After a write: the kernel goes on with the mode that it knows where it is not told.
    fn tell_lost(&self, file: &OpenFile) {
        if !file.lost_privileges() {
            return;
        }
        let told = self.connection.get().map(|c| c.invalidate_inode(file.node().0, -1, 0));
        if let Some(Err(error)) = told {
            tracing::warn!(%error, "the kernel may show a mode that a file has no more");
        }
    }

    fn fix(&self, attr: &mut union::Attr) {
        self.ids.shown(attr);
        if self.static_nlink && attr.mode & 0o170_000 == 0o040_000 {
            attr.nlink = 1;
        }
    }

    fn caller(&self, request: &Request, umask: u32) -> Result<Caller> {
        let (uid, gid) = self.ids.stored(request.uid, request.gid)?;
        Ok(Caller { uid, gid, umask })
    }

    fn attr(&self, request: &Request, handle: Option<u64>) -> Result<union::Attr> {
        let file = handle.and_then(|handle| self.files.get(handle).ok());
        let attr = match file {
            Some(open) => self.union.getattr_open(&open),
            None => self.union.getattr(node(request)),
        };
        let mut attr = attr.map_err(refused)?;
        self.fix(&mut attr);
        Ok(attr)
    }

    fn opened(&self, open: Arc<OpenFile>, flags: OFlags) -> OpenOut {
        let backing = self.passthrough.opened(open.node().0, || {
            if !self.read_only && !self.union.is_in_upper(&open) {
                return None;
            }
            let fd = self.union.backing(&open).ok()?;
            (self.read_only || !has_privileges(&fd)).then_some(fd)
        });
        let mut open_flags = fopen::NOFLUSH | fopen::PARALLEL_DIRECT_WRITES;
        if backing.is_some() {
            open_flags |= fopen::PASSTHROUGH;
        } else {
            // Pages of a file that passthrough may have written meanwhile are not kept.
            let kept = !self.passthrough.is_on() || !self.union.is_in_upper(&open);
            if kept {
                open_flags |= fopen::KEEP_CACHE;
            }
            let read = kept && !flags.intersects(WRITES | OFlags::DIRECT);
            self.early.touch(open.node().0, || {
                if read {
                    self.send_early(&open);
                }
            });
        }
        let fh = self.files.insert(open);
        OpenOut { fh, open_flags, backing_id: backing.unwrap_or(0) }
    }

    /// Puts a small file into the kernel's page cache. What goes wrong shows when the file is read.
    fn send_early(&self, open: &OpenFile) {
        let Some(connection) = self.connection.get() else { return };
        let Ok(size) = self.union.getattr_open(open).map(|attr| attr.size) else { return };
        if size == 0 || size > early::LARGEST {
            return;
        }
        let mut data = vec![0; size as usize];
        // The last page ends with the file, or the kernel would take it for one that is not whole.
        if self.union.read(open, &mut data, 0).is_ok_and(|count| count == data.len())
            && let Err(error) = connection.store(open.node().0, 0, &data)
        {
            tracing::debug!(%error, "a small file is read by request");
        }
    }

    /// Opens a file that the kernel has already for reading and writing itself.
    fn open_again(&self, node: u64, flags: OFlags) -> Option<OpenOut> {
        if flags.contains(OFlags::TRUNC) {
            return None;
        }
        let backing_id = self.passthrough.again(node)?;
        let Some(open) = self.union.open_file_later(NodeId(node), flags) else {
            self.passthrough.closed(node);
            return None;
        };
        let open_flags = fopen::NOFLUSH | fopen::PARALLEL_DIRECT_WRITES | fopen::PASSTHROUGH;
        Some(OpenOut { fh: self.files.insert(open), open_flags, backing_id })
    }

    fn hidden(&self, name: &OsStr) -> bool {
        self.noacl && is_acl(name)
    }
}

fn has_privileges(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_mode & PRIVILEGES != 0)
}

fn is_acl(name: &OsStr) -> bool {
    name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

/// Into `buffer`, or only its length where the buffer is empty.
fn fill(value: &[u8], buffer: &mut [u8]) -> Result<usize> {
    if !buffer.is_empty() {
        let place = buffer.get_mut(..value.len()).ok_or(errno(rustix::io::Errno::RANGE))?;
        place.copy_from_slice(value);
    }
    Ok(value.len())
}

impl FileSystem for Adapter {
    fn init(&self, negotiated: &Negotiated) {
        tracing::debug!(minor = negotiated.minor, flags = negotiated.flags, "agreed");
    }

    fn lookup(&self, request: &Request, name: &OsStr) -> Result<EntryOut> {
        let found = match name.as_encoded_bytes() {
            // These two come from file handles.
            b"." => self.union.lookup_self(node(request)),
            b".." => self.union.lookup_parent(node(request)),
            _ => self.union.lookup(node(request), name),
        };
        match found {
            Ok(entry) => Ok(self.entry(entry)),
            // The kernel remembers that there is nothing.
            Err(error) if error.errno() == rustix::io::Errno::NOENT => Ok(self.valid.absent()),
            Err(error) => Err(refused(error)),
        }
    }

    fn forget(&self, node: u64, count: u64) {
        if self.union.forget_all(NodeId(node), count) {
            self.passthrough.forgotten(node);
            self.early.forgotten(node);
        }
        // The kernel forgets in bulk when memory is short, or dropped by hand.
        if self.forgotten.fetch_add(1, Ordering::Relaxed) % FORGOTTEN == FORGOTTEN - 1 {
            sys::memory::give_back();
        }
    }

    fn getattr(&self, request: &Request, input: &GetattrIn) -> Result<AttrOut> {
        let handle = (input.flags & GETATTR_FH != 0).then_some(input.fh);
        let attr = self.attr(request, handle)?;
        Ok(self.valid(request.node, &attr).attr(&attr))
    }

    fn statx(&self, request: &Request, input: &StatxIn) -> Result<StatxOut> {
        let handle = (input.getattr_flags & GETATTR_FH != 0).then_some(input.fh);
        let attr = self.attr(request, handle)?;
        Ok(self.valid(request.node, &attr).statx(&attr))
    }

    fn setattr(&self, request: &Request, input: &SetattrIn) -> Result<AttrOut> {
        self.writable()?;
        let mut change = changes(input);
        self.ids.change(&mut change)?;
        let mut attr = self.union.setattr(node(request), &change).map_err(refused)?;
        if change.size.is_some() {
            self.early.touch(request.node, || {});
        }
        if attr.mode & PRIVILEGES != 0 {
            self.passthrough.unfit(request.node);
        }
        self.fix(&mut attr);
        Ok(self.valid(request.node, &attr).attr(&attr))
    }

    fn readlink(&self, request: &Request, buffer: &mut [u8]) -> Result<usize> {
        let target = self.union.readlink(node(request)).map_err(refused)?;
        let place = buffer.get_mut(..target.len());
        place.ok_or(errno(rustix::io::Errno::NAMETOOLONG))?.copy_from_slice(&target);
        Ok(target.len())
    }

    fn symlink(&self, request: &Request, name: &OsStr, target: &OsStr) -> Result<EntryOut> {
        self.writable()?;
        let entry = self.union.symlink(self.caller(request, 0)?, node(request), name, target);
        Ok(self.entry(entry.map_err(refused)?))
    }

    fn mknod(&self, request: &Request, input: &MknodIn, name: &OsStr) -> Result<EntryOut> {
        self.writable()?;
        let caller = self.caller(request, input.umask)?;
        let (major, minor) = device(input.rdev);
        let rdev = rustix::fs::makedev(major, minor);
        let entry = self.union.mknod(caller, node(request), name, input.mode, rdev);
        Ok(self.entry(entry.map_err(refused)?))
    }

    fn mkdir(&self, request: &Request, input: &MkdirIn, name: &OsStr) -> Result<EntryOut> {
        self.writable()?;
        let caller = self.caller(request, input.umask)?;
        let entry = self.union.mkdir(caller, node(request), name, input.mode);
        Ok(self.entry(entry.map_err(refused)?))
    }

    fn unlink(&self, request: &Request, name: &OsStr) -> Result<()> {
        self.writable()?;
        self.union.unlink(node(request), name).map_err(refused)
    }

    fn rmdir(&self, request: &Request, name: &OsStr) -> Result<()> {
        self.writable()?;
        self.union.rmdir(node(request), name).map_err(refused)
    }

    fn rename(
        &self,
        request: &Request,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(errno(rustix::io::Errno::INVAL))?;
        let (from, to) = ((node(request), name), (NodeId(new_parent), new_name));
        self.union.rename(from, to, flags).map_err(refused)
    }

    fn link(&self, request: &Request, linked: u64, name: &OsStr) -> Result<EntryOut> {
        self.writable()?;
        let entry = self.union.link(NodeId(linked), node(request), name);
        Ok(self.entry(entry.map_err(refused)?))
    }

    fn open(&self, request: &Request, input: &OpenIn) -> Result<OpenOut> {
        let flags = OFlags::from_bits_retain(input.flags);
        if flags.intersects(WRITES) {
            self.writable()?;
        }
        if let Some(known) = self.open_again(request.node, flags) {
            return Ok(known);
        }
        // A file of a lower layer that was open before is in the kernel's cache: what it has, nobody asks us for.
        let known = !flags.intersects(WRITES | OFlags::DIRECT) && self.early.knows(request.node);
        let later = known.then(|| self.union.open_lower_later(node(request), flags)).flatten();
        let open = match later {
            Some(open) => open,
            None => self.union.open_file(node(request), flags).map_err(refused)?,
        };
        Ok(self.opened(open, flags))
    }

    fn create(
        &self,
        request: &Request,
        input: &CreateIn,
        name: &OsStr,
    ) -> Result<(EntryOut, OpenOut)> {
        self.writable()?;
        let caller = self.caller(request, input.umask)?;
        let made = self.union.create(caller, node(request), name, input.mode);
        let (entry, open) = made.map_err(refused)?;
        Ok((self.entry(entry), self.opened(open, OFlags::RDWR)))
    }

    fn tmpfile(&self, request: &Request, input: &CreateIn) -> Result<(EntryOut, OpenOut)> {
        self.writable()?;
        let caller = self.caller(request, input.umask)?;
        let made = self.union.tmpfile(caller, node(request), input.mode);
        let (entry, open) = made.map_err(refused)?;
        Ok((self.entry(entry), self.opened(open, OFlags::RDWR)))
    }

    fn read(&self, _: &Request, input: &ReadIn, buffer: &mut [u8]) -> Result<usize> {
        let file = self.files.get(input.fh)?;
        self.union.read(&file, buffer, input.offset).map_err(refused)
    }

    fn write(&self, _: &Request, input: &WriteIn, data: &[u8]) -> Result<usize> {
        let file = self.files.get(input.fh)?;
        let kill = input.write_flags & WRITE_KILL_SUIDGID != 0;
        let written = self.union.write(&file, data, input.offset, kill);
        self.tell_lost(&file);
        written.map_err(refused)
    }

    fn release(&self, _: &Request, input: &ReleaseIn) {
        if let Some(file) = self.files.remove(input.fh) {
            self.passthrough.closed(file.node().0);
            self.union.close(&file);
        }
    }

    fn fsync(&self, _: &Request, handle: u64, data_only: bool) -> Result<()> {
        self.union.fsync(&*self.files.get(handle)?, data_only).map_err(refused)
    }

    fn fallocate(&self, request: &Request, input: &FallocateIn) -> Result<()> {
        let file = self.files.get(input.fh)?;
        let mode = FallocateFlags::from_bits_retain(input.mode);
        let kill = request.uid != 0;
        let done = self.union.fallocate(&file, mode, (input.offset, input.length), kill);
        self.tell_lost(&file);
        done.map_err(refused)
    }

    fn lseek(&self, _: &Request, input: &LseekIn) -> Result<u64> {
        let file = self.files.get(input.fh)?;
        let to = match input.whence {
            3 => SeekFrom::Data(input.offset),
            4 => SeekFrom::Hole(input.offset),
            _ => return Err(errno(rustix::io::Errno::INVAL)),
        };
        self.union.seek(&file, to).map_err(refused)
    }

    fn copy_file_range(&self, request: &Request, input: &CopyFileRangeIn) -> Result<u64> {
        let (from, to) = (self.files.get(input.fh_in)?, self.files.get(input.fh_out)?);
        let len = usize::try_from(input.len).unwrap_or(usize::MAX);
        let (source, target) = ((&*from, input.off_in), (&*to, input.off_out));
        let copied = self.union.copy_range(source, target, len, request.uid != 0);
        self.tell_lost(&to);
        Ok(copied.map_err(refused)? as u64)
    }

    fn ioctl(
        &self,
        request: &Request,
        input: &IoctlIn,
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        ioctl::answer(&self.union, node(request), self.read_only, input.cmd, data, out)
    }

    // OPENDIR is not answered: the kernel asks it no more from then on, nor RELEASEDIR, and keeps every listing until it
    // changes the directory itself.

    fn readdir(&self, request: &Request, _: u64, offset: u64, sink: &mut DirSink) -> Result<()> {
        let dir = node(request);
        let names = self.union.read_dir(dir, offset == 0).map_err(refused)?;
        let own = self.union.shown_ino_of(dir);
        let above = self.union.shown_ino_of_parent(dir);
        for (next, dots, ino) in [(1, ".", own), (2, "..", above)] {
            if offset < next && !sink.push(OsStr::new(dots), ino, DIRECTORY, next, None) {
                return Ok(());
            }
        }
        let place = u32::try_from(offset.saturating_sub(DOTS)).unwrap_or(u32::MAX);
        let rest = names.after(place);
        if rest.is_empty() {
            self.union.read_to_end(dir);
        }
        for entry in rest {
            if !sink.fits(&entry.name) {
                break;
            }
            let next = u64::from(entry.place) + DOTS;
            let kind = entry.kind.as_raw_mode() >> 12;
            if !sink.plus() {
                sink.push(&entry.name, entry.ino, kind, next, None);
                continue;
            }
            match self.union.lookup_entry(dir, &entry.name) {
                Ok(Some(found)) => {
                    let found = self.entry(found);
                    sink.push(&entry.name, found.attr.ino, kind, next, Some(&found));
                }
                // It went away since the listing was taken.
                Ok(None) => {}
                // The name without attributes: whoever wants them sees the error.
                Err(_) => {
                    sink.push(&entry.name, entry.ino, kind, next, None);
                }
            }
        }
        Ok(())
    }

    fn fsyncdir(&self, request: &Request, _: u64, _: bool) -> Result<()> {
        self.union.fsync_dir(node(request)).map_err(refused)
    }

    fn statfs(&self, _: &Request) -> Result<Kstatfs> {
        Ok(space(&self.union.statfs().map_err(refused)?))
    }

    fn setxattr(&self, request: &Request, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        if self.hidden(name) {
            return Err(errno(rustix::io::Errno::OPNOTSUPP));
        }
        let flags = XattrFlags::from_bits_retain(flags);
        let mut value = Cow::Borrowed(value);
        self.ids.acl_stored(name, &mut value)?;
        self.union.setxattr(node(request), name, &value, flags).map_err(refused)
    }

    fn getxattr(&self, request: &Request, name: &OsStr, buffer: &mut [u8]) -> Result<usize> {
        // "Not supported" would make the kernel refuse to open what it asks for an ACL; "none" is the answer then.
        if self.hidden(name) {
            return Err(errno(rustix::io::Errno::NODATA));
        }
        let value = self.union.getxattr(node(request), name);
        let mut value = value.map_err(|e| match e.errno() {
            rustix::io::Errno::OPNOTSUPP if is_acl(name) => errno(rustix::io::Errno::NODATA),
            _ => refused(e),
        })?;
        self.ids.acl_shown(name, &mut value);
        fill(&value, buffer)
    }

    fn listxattr(&self, request: &Request, buffer: &mut [u8]) -> Result<usize> {
        fill(&self.union.listxattr(node(request)).map_err(refused)?, buffer)
    }

    fn removexattr(&self, request: &Request, name: &OsStr) -> Result<()> {
        self.writable()?;
        if self.hidden(name) {
            return Err(errno(rustix::io::Errno::OPNOTSUPP));
        }
        self.union.removexattr(node(request), name).map_err(refused)
    }
}
