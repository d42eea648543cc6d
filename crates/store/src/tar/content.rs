//! The data of a layer's files on its way to the disk, and shared with files that have the same.

use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ftruncate, ioctl_ficlone, openat};
use rustix::io::Errno;

use crate::objects::Content;
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
        if size > SMALL {
            let mut hash = blake3::Hasher::new();
            write(fd, 0, size, reader, Some(&mut hash))?;
            let content = Content::finish(&hash);
            self.clone_same(fd, &content, size);
            self.remember_content(path, content);
            return Ok(());
        }
        if reader.data().map_err(|e| e.to_string())?.len() as u64 == size {
            let data = reader.data().map_err(|e| e.to_string())?;
            self.small(fd, path, data)?;
            let count = data.len();
            reader.consume(count);
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        while (buffer.len() as u64) < size {
            let data = reader.data().map_err(|e| e.to_string())?;
            buffer.extend_from_slice(data);
            let count = data.len();
            reader.consume(count);
        }
        self.small(fd, path, &buffer)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Writes a file whose data is all there, if no other has the same.
    fn small(&mut self, fd: &OwnedFd, path: PathBuf, data: &[u8]) -> Done<()> {
        let content = Content::of(data);
        if !self.clone_same(fd, &content, data.len() as u64) {
            write_all(fd, data, 0).map_err(step("writing"))?;
        }
        self.remember_content(path, content);
        Ok(())
    }

    /// Gives the file the extents of another, of this layer or another, that has this content; false where it gets none.
    fn clone_same(&mut self, fd: &OwnedFd, content: &Content, size: u64) -> bool {
        let same = match self.known.get(content) {
            Some(path) => {
                sys::beneath::open(self.root(), path, OFlags::RDONLY | OFlags::NOFOLLOW).ok()
            }
            None => self.objects.find(content, size),
        };
        let cloned = same.is_some_and(|same| ioctl_ficlone(fd, same).is_ok());
        if cloned {
            self.done.shared += size;
        }
        cloned
    }

    fn remember_content(&mut self, path: PathBuf, content: Content) {
        self.known.entry(content).or_insert_with(|| path.clone());
        self.content.insert(path, content);
    }
}

fn write<R: BufRead>(
    fd: &OwnedFd,
    offset: u64,
    length: u64,
    reader: &mut Reader<R>,
    mut hash: Option<&mut blake3::Hasher>,
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
