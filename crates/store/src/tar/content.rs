//! The data of a layer's files on its way to the disk, and shared with files that have the same.

use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ftruncate, ioctl_ficlone, openat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::id::Digest;
use crate::tar::apply::{Apply, Done, step};
use crate::tar::read::{Entry, Reader};
use crate::tar::recipe;

/// Files up to this length are held in memory before they are written, so that one that is there
/// already is never written.
const SMALL: u64 = 1 << 20;

/// Keeps the data of an entry that becomes no file.
pub(crate) fn keep<R: BufRead, W: Write>(
    reader: &mut Reader<R>,
    recipe: &mut recipe::Writer<W>,
) -> Done<()> {
    loop {
        let data = reader.data().map_err(|e| e.to_string())?;
        if data.is_empty() {
            return Ok(());
        }
        recipe.raw(data).map_err(|e| e.to_string())?;
        let count = data.len();
        reader.consume(count);
    }
}

impl Apply<'_> {
    /// Writes the data of the entry into the new file behind `fd`.
    pub(crate) fn write<R: BufRead>(
        &mut self,
        fd: &OwnedFd,
        path: PathBuf,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Done<()> {
        let Some(parts) = &entry.parts else {
            if self.options.share && entry.size > 0 {
                return self.shared(fd, path, entry.size, reader);
            }
            return write(fd, 0, entry.size, reader, None);
        };
        for (offset, length) in parts {
            write(fd, *offset, *length, reader, None)?;
        }
        ftruncate(fd, entry.size).map_err(step("setting its length"))
    }

    /// Writes a file, or shares the extents of one that has the same content.
    fn shared<R: BufRead>(
        &mut self,
        fd: &OwnedFd,
        path: PathBuf,
        size: u64,
        reader: &mut Reader<R>,
    ) -> Done<()> {
        let small = size <= SMALL;
        let mut hash = Sha256::new();
        if small {
            self.buffer.clear();
            let mut left = size;
            while left > 0 {
                let data = reader.data().map_err(|e| e.to_string())?;
                self.buffer.extend_from_slice(data);
                let count = data.len();
                left -= count as u64;
                reader.consume(count);
            }
            hash.update(&self.buffer);
        } else {
            write(fd, 0, size, reader, Some(&mut hash))?;
        }
        let content = Digest::finish(hash);
        let same = self.same(&content, size);
        if same.is_some_and(|same| ioctl_ficlone(fd, same).is_ok()) {
            self.done.shared += size;
        } else if small {
            write_all(fd, &self.buffer, 0).map_err(step("writing"))?;
        }
        self.known.entry(content).or_insert_with(|| path.clone());
        self.content.insert(path, content);
        Ok(())
    }

    /// A file with this content, of this layer or another.
    fn same(&self, content: &Digest, size: u64) -> Option<OwnedFd> {
        let Some(path) = self.known.get(content) else { return self.objects.find(content, size) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        sys::beneath::open(self.root(), path, flags).ok()
    }
}

fn write<R: BufRead>(
    fd: &OwnedFd,
    offset: u64,
    length: u64,
    reader: &mut Reader<R>,
    mut hash: Option<&mut Sha256>,
) -> Done<()> {
    let mut done = 0;
    while done < length {
        let data = reader.data().map_err(|e| e.to_string())?;
        let count = data.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        if count == 0 {
            return Err("its data is shorter than it says".to_owned());
        }
        if let Some(hash) = &mut hash {
            hash.update(&data[..count]);
        }
        write_all(fd, &data[..count], offset + done).map_err(step("writing"))?;
        reader.consume(count);
        done += count as u64;
    }
    Ok(())
}

fn write_all(fd: &OwnedFd, mut data: &[u8], mut offset: u64) -> std::result::Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(fd, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether files in `dir` can share extents: tried with two that have no name.
pub(crate) fn can_share(dir: &Path) -> bool {
    let make = || -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        openat(rustix::fs::CWD, dir, flags, Mode::RUSR | Mode::WUSR)
    };
    let shared = || -> Result<(), Errno> {
        let (from, to) = (make()?, make()?);
        write_all(&from, &[1; 4096], 0)?;
        ioctl_ficlone(&to, &from)
    };
    shared().is_ok()
}
