//! From a request's bytes to a method of the file system, and from its answer to the reply's bytes.

use crate::filesystem::{Errno, FileSystem, Result};
use crate::request::{Body, Request};
use crate::wire::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A reply's payload under construction, in a buffer that lives as long as its thread.
pub(crate) struct Reply<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Reply<'a> {
    /// A payload built from the start of `buffer`.
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    fn put<T: Plain>(&mut self, value: &T) -> Result<()> {
        let bytes = value.bytes();
        let place =
            self.buffer.get_mut(self.len..self.len + bytes.len()).ok_or(Errno(libc::EIO))?;
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Room for a payload of at most `size` bytes.
    fn room(&mut self, size: u32) -> &mut [u8] {
        let end = self.len.saturating_add(size as usize).min(self.buffer.len());
        &mut self.buffer[self.len..end]
    }
}

/// What to send back: the header of an answer whose payload, as long as it says, is in the buffer given.
pub(crate) fn header(unique: u64, result: Result<usize>) -> OutHeader {
    let (error, len) = match result {
        Ok(len) => (0, len),
        // The kernel takes -511..=0 only, and drops a reply that is out of range.
        Err(Errno(errno)) if (1..512).contains(&errno) => (-errno, 0),
        Err(_) => (-libc::EIO, 0),
    };
    OutHeader { len: (size_of::<OutHeader>() + len) as u32, error, unique }
}

/// Where the entries of a directory go until it is full.
pub struct DirSink<'a> {
    buffer: &'a mut [u8],
    len: usize,
    plus: bool,
}

impl DirSink<'_> {
    /// Whether entries carry attributes (READDIRPLUS).
    #[must_use]
    pub fn plus(&self) -> bool {
        self.plus
    }

    fn size(&self, name: &OsStr) -> usize {
        let fixed = size_of::<Dirent>() + if self.plus { size_of::<EntryOut>() } else { 0 };
        (fixed + name.len()).next_multiple_of(8)
    }

    /// Whether an entry of this name still fits; to be asked before a lookup is counted for it.
    #[must_use]
    pub fn fits(&self, name: &OsStr) -> bool {
        self.len + self.size(name) <= self.buffer.len()
    }

    /// Adds an entry; `next` is the offset of the one behind it. `entry` is used by READDIRPLUS only: with node id 0 (or
    /// `None`) the kernel takes the name without attributes. False when it does not fit.
    pub fn push(
        &mut self,
        name: &OsStr,
        ino: u64,
        kind: u32,
        next: u64,
        entry: Option<&EntryOut>,
    ) -> bool {
        let size = self.size(name);
        let Some(place) = self.buffer.get_mut(self.len..self.len + size) else { return false };
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            place[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if self.plus {
            put(entry.copied().unwrap_or_else(EntryOut::zero).bytes());
        }
        put(Dirent { ino, off: next, namelen: name.len() as u32, kind }.bytes());
        put(name.as_bytes());
        place[at..].fill(0);
        self.len += size;
        true
    }
}

/// Answers one message, its payload in `buffer`. `None` when the operation has no answer.
pub(crate) fn answer<F: FileSystem>(
    fs: &F,
    message: Option<(InHeader, Request, Body)>,
    unique: u64,
    buffer: &mut [u8],
) -> Option<OutHeader> {
    let Some((input, request, mut body)) = message else {
        // Its lengths make no sense, but the caller in the kernel must not hang.
        return Some(header(unique, Err(Errno(libc::EIO))));
    };
    match input.opcode {
        FORGET => {
            if let Some(input) = body.take::<ForgetIn>() {
                fs.forget(request.node, input.nlookup);
            }
            return None;
        }
        BATCH_FORGET => {
            if let Some(input) = body.take::<BatchForgetIn>() {
                for _ in 0..input.count {
                    let Some(one) = body.take::<ForgetOne>() else { break };
                    fs.forget(one.nodeid, one.nlookup);
                }
            }
            return None;
        }
        // Operations on files are short: an interrupt is not worth a table of what is running.
        INTERRUPT | NOTIFY_REPLY => return None,
        _ => {}
    }
    let mut reply = Reply::new(buffer);
    // A panic is our error about one request: its caller gets EIO, and nobody hangs for want of a thread.
    let caught = catch_unwind(AssertUnwindSafe(|| {
        operation(fs, input.opcode, &request, &mut body, &mut reply)
    }));
    let result = caught.unwrap_or_else(|_| {
        tracing::error!(op = opcode_name(input.opcode), node = input.nodeid, "panicked");
        Err(Errno(libc::EIO))
    });
    match result {
        Err(Errno(errno)) => {
            tracing::debug!(op = opcode_name(input.opcode), node = input.nodeid, errno, "refused");
        }
        Ok(()) => {
            tracing::debug!(
                op = opcode_name(input.opcode),
                node = input.nodeid,
                pid = input.pid,
                "answered"
            );
        }
    }
    let len = reply.len;
    Some(header(input.unique, result.map(|()| len)))
}

const MALFORMED: Errno = Errno(libc::EINVAL);

/// The next struct of the body, or EINVAL.
fn take<T: Plain>(body: &mut Body) -> Result<T> {
    body.take().ok_or(MALFORMED)
}

/// The next path component of the body, or EINVAL.
fn component<'a>(body: &mut Body<'a>) -> Result<&'a OsStr> {
    body.component().ok_or(MALFORMED)
}

fn operation<F: FileSystem>(
    fs: &F,
    opcode: u32,
    request: &Request,
    body: &mut Body,
    reply: &mut Reply,
) -> Result<()> {
    match opcode {
        // `.` and `..` come from file handles only (EXPORT_SUPPORT), as names like others.
        LOOKUP => reply.put(&fs.lookup(request, component(body)?)?),
        GETATTR => reply.put(&fs.getattr(request, &take(body)?)?),
        STATX => reply.put(&fs.statx(request, &take(body)?)?),
        SETATTR => reply.put(&fs.setattr(request, &take(body)?)?),
        READLINK => {
            let count = fs.readlink(request, reply.room(4096))?;
            reply.len += count;
            Ok(())
        }
        SYMLINK => {
            let name = component(body)?;
            reply.put(&fs.symlink(request, name, body.name().ok_or(MALFORMED)?)?)
        }
        MKNOD => {
            let input = take(body)?;
            reply.put(&fs.mknod(request, &input, component(body)?)?)
        }
        MKDIR => {
            let input = take(body)?;
            reply.put(&fs.mkdir(request, &input, component(body)?)?)
        }
        UNLINK => fs.unlink(request, component(body)?),
        RMDIR => fs.rmdir(request, component(body)?),
        RENAME => {
            let input: RenameIn = take(body)?;
            let (name, new_name) = (component(body)?, component(body)?);
            fs.rename(request, name, input.newdir, new_name, 0)
        }
        RENAME2 => {
            let input: Rename2In = take(body)?;
            let (name, new_name) = (component(body)?, component(body)?);
            fs.rename(request, name, input.newdir, new_name, input.flags)
        }
        LINK => {
            let input: LinkIn = take(body)?;
            reply.put(&fs.link(request, input.oldnodeid, component(body)?)?)
        }
        OPEN => reply.put(&fs.open(request, &take(body)?)?),
        CREATE => {
            let input = take(body)?;
            let (entry, open) = fs.create(request, &input, component(body)?)?;
            reply.put(&entry)?;
            reply.put(&open)
        }
        TMPFILE => {
            let (entry, open) = fs.tmpfile(request, &take(body)?)?;
            reply.put(&entry)?;
            reply.put(&open)
        }
        READ => {
            let input: ReadIn = take(body)?;
            let count = fs.read(request, &input, reply.room(input.size))?;
            reply.len += count;
            Ok(())
        }
        WRITE => {
            let input: WriteIn = take(body)?;
            let data = body.bytes(input.size).ok_or(MALFORMED)?;
            let size = fs.write(request, &input, data)? as u32;
            reply.put(&WriteOut { size, padding: 0 })
        }
        STATFS => reply.put(&fs.statfs(request)?),
        RELEASE => {
            fs.release(request, &take(body)?);
            Ok(())
        }
        FSYNC => {
            let input: FsyncIn = take(body)?;
            fs.fsync(request, input.fh, input.fsync_flags & FSYNC_FDATASYNC != 0)
        }
        FLUSH => {
            let input: FlushIn = take(body)?;
            fs.flush(request, input.fh)
        }
        SETXATTR => {
            let input: SetxattrIn = take(body)?;
            let name = body.name().ok_or(MALFORMED)?;
            fs.setxattr(request, name, body.bytes(input.size).ok_or(MALFORMED)?, input.flags)
        }
        GETXATTR | LISTXATTR => {
            let input: GetxattrIn = take(body)?;
            let room = reply.room(input.size);
            let count = if opcode == GETXATTR {
                fs.getxattr(request, body.name().ok_or(MALFORMED)?, room)?
            } else {
                fs.listxattr(request, room)?
            };
            if input.size == 0 {
                return reply.put(&GetxattrOut { size: count as u32, padding: 0 });
            }
            reply.len += count;
            Ok(())
        }
        REMOVEXATTR => fs.removexattr(request, body.name().ok_or(MALFORMED)?),
        OPENDIR => reply.put(&fs.opendir(request, &take(body)?)?),
        READDIR | READDIRPLUS => {
            let input: ReadIn = take(body)?;
            let mut sink =
                DirSink { buffer: reply.room(input.size), len: 0, plus: opcode == READDIRPLUS };
            let result = fs.readdir(request, input.fh, input.offset, &mut sink);
            let len = sink.len;
            // Entries already given were counted as lookups: they have to reach the kernel, the error comes next time.
            if len == 0 {
                result?;
            }
            reply.len += len;
            Ok(())
        }
        RELEASEDIR => {
            let input: ReleaseIn = take(body)?;
            fs.releasedir(request, input.fh);
            Ok(())
        }
        FSYNCDIR => {
            let input: FsyncIn = take(body)?;
            fs.fsyncdir(request, input.fh, input.fsync_flags & FSYNC_FDATASYNC != 0)
        }
        FALLOCATE => fs.fallocate(request, &take(body)?),
        LSEEK => {
            let offset = fs.lseek(request, &take(body)?)?;
            reply.put(&LseekOut { offset })
        }
        COPY_FILE_RANGE => {
            // This one answers in 32 bits.
            let mut input: CopyFileRangeIn = take(body)?;
            input.len = input.len.min(0x7fff_f000);
            let size = fs.copy_file_range(request, &input)? as u32;
            reply.put(&WriteOut { size, padding: 0 })
        }
        COPY_FILE_RANGE_64 => {
            let bytes_copied = fs.copy_file_range(request, &take(body)?)?;
            reply.put(&CopyFileRangeOut { bytes_copied })
        }
        IOCTL => ioctl(fs, request, body, reply),
        SYNCFS => fs.syncfs(request),
        DESTROY => {
            fs.destroy();
            Ok(())
        }
        _ => Err(Errno(libc::ENOSYS)),
    }
}

fn ioctl<F: FileSystem>(
    fs: &F,
    request: &Request,
    body: &mut Body,
    reply: &mut Reply,
) -> Result<()> {
    let input: IoctlIn = take(body)?;
    let data = body.bytes(input.in_size).ok_or(MALFORMED)?;
    reply.put(&IoctlOut { result: 0, flags: 0, in_iovs: 0, out_iovs: 0 })?;
    let count = fs.ioctl(request, &input, data, reply.room(input.out_size))?;
    reply.len += count;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::split;

    struct Nothing;
    impl FileSystem for Nothing {
        fn statfs(&self, _: &Request) -> Result<Kstatfs> {
            panic!("a test of panics")
        }
    }

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (40 + body.len()) as u32;
        let header = InHeader {
            len,
            opcode,
            unique: 9,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 0,
            total_extlen: 0,
            padding: 0,
        };
        [header.bytes(), body].concat()
    }

    fn error_of(message: &[u8]) -> Option<i32> {
        let mut buffer = [0; 8192];
        answer(&Nothing, split(message), 9, &mut buffer).map(|header| {
            assert_eq!(header.unique, 9);
            header.error
        })
    }

    #[test]
    fn every_opcode_survives_every_length() {
        for opcode in (0..70).filter(|opcode| *opcode != STATFS) {
            for len in 0..130 {
                for byte in [0, 1, b'a', 255] {
                    let error = error_of(&message(opcode, &vec![byte; len]));
                    assert!(error.is_none_or(|error| error <= 0));
                }
            }
        }
    }

    #[test]
    fn unknown_and_malformed_are_told_apart() {
        assert_eq!(error_of(&message(4000, b"")), Some(-libc::ENOSYS));
        assert_eq!(error_of(&message(LOOKUP, b"no end")), Some(-libc::EINVAL));
        assert_eq!(error_of(&message(LOOKUP, b"name\0")), Some(-libc::ENOSYS));
        assert_eq!(error_of(&message(FORGET, b"")), None);
        assert_eq!(error_of(&message(INTERRUPT, b"")), None);
    }

    #[test]
    fn a_panic_is_an_error_of_one_request() {
        assert_eq!(error_of(&message(STATFS, b"")), Some(-libc::EIO));
        assert_eq!(error_of(&message(LOOKUP, b"name\0")), Some(-libc::ENOSYS));
    }

    #[test]
    fn sink_stops_when_full() {
        let mut buffer = [0; 70];
        let mut sink = DirSink { buffer: &mut buffer, len: 0, plus: false };
        assert!(sink.push(OsStr::new("a"), 1, 4, 1, None));
        assert!(sink.push(OsStr::new("b"), 2, 4, 2, None));
        assert!(!sink.fits(OsStr::new("c")));
        assert!(!sink.push(OsStr::new("c"), 3, 4, 3, None));
        assert_eq!(sink.len, 64);
    }
}
