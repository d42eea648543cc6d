//! The data of a layer's files on its way to the disk, and shared with files that have the same.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ftruncate, futimens, ioctl_ficlone, openat};
use rustix::io::Errno;

use crate::objects::Content;
use crate::tar::apply::{Done, Objects, step};
use crate::tar::finish::{Finish, times};
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

/// A file that was just made, and has nothing yet.
#[derive(Debug)]
pub(crate) struct New {
    pub fd: OwnedFd,
    /// Its path without symlinks.
    pub path: PathBuf,
    pub entry: Entry,
    /// Whether it was made as it was asked for.
    pub plain: bool,
}

/// What files get when they are made: data, of their own or shared, attributes and times. From two threads at once.
pub(crate) struct Files<'o> {
    root: &'o OwnedFd,
    share: bool,
    objects: &'o (dyn Objects + Sync),
    finish: &'o Finish,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    content: HashMap<PathBuf, Content>,
    known: HashMap<Content, PathBuf>,
    shared: u64,
}

impl<'o> Files<'o> {
    pub fn new(
        root: &'o OwnedFd,
        share: bool,
        objects: &'o (dyn Objects + Sync),
        finish: &'o Finish,
    ) -> Self {
        Self { root, share, objects, finish, state: Mutex::default() }
    }

    /// What was done: bytes that are shared, and the content of each file.
    pub fn end(self) -> (u64, Vec<(Content, PathBuf)>) {
        let state = self.state.into_inner();
        (state.shared, state.content.into_iter().map(|(path, content)| (content, path)).collect())
    }

    /// Forgets a file, and what is beneath it, which is about to go.
    pub fn forget(&self, path: &Path) {
        let mut state = self.state.lock();
        let State { content, known, .. } = &mut *state;
        content.retain(|file, _| !file.starts_with(path));
        known.retain(|_, file| !file.starts_with(path));
    }

    /// Fills a file whose data is all there, unless another file of the layer has the same: that one is given back, for
    /// [`Files::share`], which does not wait for the disk where it is called a little later.
    pub fn fill(&self, new: &New, data: &[u8]) -> Done<Option<OwnedFd>> {
        if !self.share || data.is_empty() {
            write_all(&new.fd, data, 0).map_err(step("writing"))?;
            return self.complete(new).map(|()| None);
        }
        let content = Content::of(data);
        let own = self.own(&content);
        self.remember(&new.path, content);
        if let Some(same) = own {
            return Ok(Some(same));
        }
        let size = data.len() as u64;
        let other = self.objects.find(&content, size);
        if other.is_some_and(|same| ioctl_ficlone(&new.fd, same).is_ok()) {
            self.state.lock().shared += size;
        } else {
            write_all(&new.fd, data, 0).map_err(step("writing"))?;
        }
        self.complete(new).map(|()| None)
    }

    /// Gives a file the data of another that has the same. The kernel shares what is on the disk: it writes what is not,
    /// and waits for that.
    pub fn share(&self, new: &New, same: &OwnedFd) -> Done<()> {
        if ioctl_ficlone(&new.fd, same).is_ok() {
            self.state.lock().shared += new.entry.size;
        } else {
            sys::copy::data(same, &new.fd).map_err(|e| format!("writing: {e}"))?;
        }
        self.complete(new)
    }

    /// Fills a file with what the reader gives of its entry.
    pub fn stream<R: BufRead>(&self, new: &New, reader: &mut Reader<R>) -> Done<()> {
        let (fd, size) = (&new.fd, new.entry.size);
        if let Some(parts) = &new.entry.parts {
            for (offset, length) in parts {
                write(fd, *offset, *length, reader, None)?;
            }
            ftruncate(fd, size).map_err(step("setting its length"))?;
        } else if self.share && size <= SMALL {
            let mut data = Vec::new();
            read(reader, size, &mut data)?;
            let same = self.fill(new, &data)?;
            return same.map_or(Ok(()), |same| self.share(new, &same));
        } else if self.share {
            let mut hash = blake3::Hasher::new();
            write(fd, 0, size, reader, Some(&mut hash))?;
            let content = Content::finish(&hash);
            let same = self.own(&content).or_else(|| self.objects.find(&content, size));
            self.remember(&new.path, content);
            if let Some(same) = same {
                // What was written need not reach the disk.
                ftruncate(fd, 0).map_err(step("sharing its data"))?;
                return self.share(new, &same);
            }
        } else {
            write(fd, 0, size, reader, None)?;
        }
        self.complete(new)
    }

    fn complete(&self, new: &New) -> Done<()> {
        self.finish.file(&new.fd, &new.entry, new.plain)?;
        futimens(&new.fd, &times(new.entry.mtime)).map_err(step("setting its times"))
    }

    /// A file of this layer that has this content.
    fn own(&self, content: &Content) -> Option<OwnedFd> {
        let path = self.state.lock().known.get(content).cloned()?;
        sys::beneath::open(self.root, &path, OFlags::RDONLY | OFlags::NOFOLLOW).ok()
    }

    fn remember(&self, path: &Path, content: Content) {
        let mut state = self.state.lock();
        state.known.entry(content).or_insert_with(|| path.to_owned());
        state.content.insert(path.to_owned(), content);
    }
}

/// Appends `size` bytes of the entry's data to `to`.
pub(crate) fn read<R: BufRead>(reader: &mut Reader<R>, size: u64, to: &mut Vec<u8>) -> Done<()> {
    let mut left = size;
    while left > 0 {
        let data = reader.data().map_err(|e| e.to_string())?;
        if data.is_empty() {
            return Err(SHORT.to_owned());
        }
        to.extend_from_slice(data);
        let count = data.len();
        left = left.saturating_sub(count as u64);
        reader.consume(count);
    }
    Ok(())
}

const SHORT: &str = "its data is shorter than it says";

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
            return Err(SHORT.to_owned());
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
