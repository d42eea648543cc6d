//! Copies of small files whose data is not on the disk yet.
//!
//! A copy-up that waits for the disk takes several times as long as all the rest of it. So it does not wait: before its
//! name appears the copy is noted, and many are synced together a little later. After a loss of power, what is missing of
//! the data of a noted copy is the lower file's: each block is old or new, as if it had been waited for.
//!
//! What is missing shows as holes where the lower file has data, or as a file that is too short: the file systems that
//! this is done on never say that a block is there before it is, and keep the order of names. A file that is cut, or
//! that holes are punched into, is synced and no longer noted before.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use layer::Layer;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Statx, Timespec, Timestamps, UTIME_NOW,
    fdatasync, fstat, fsync, ftruncate, futimens, linkat, mkdirat, openat, seek, statat, unlinkat,
};
use rustix::io::Errno;

use crate::complete::READ;
use crate::disk;
use crate::error::{Error, Result, Step, call};
use crate::node::Node;
use crate::place::Part;
use crate::stack::Union;
use crate::upper::DIRECTORY;

type Io<T> = std::result::Result<T, Errno>;

/// Where copies are noted: a feature of the upper layer that the kernel does not know, and refuses.
const DIR: &str = "incompat/unsynced";
/// The file that each note is a link of: a name is all that it needs.
const NOTE: &str = "note";

/// Bytes of the largest file that is not waited for.
const LARGEST: u64 = 1 << 20;

/// Copies that may be unsynced: the next one waits for all of them.
const MOST: usize = 2048;

/// The copies that are not synced.
#[derive(Debug)]
pub(crate) struct Unsynced {
    work: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while copies are synced.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    dir: Option<Arc<OwnedFd>>,
    /// By the number of their inode.
    copies: HashMap<u64, Copy>,
    ended: bool,
}

#[derive(Debug, Clone)]
struct Copy {
    file: Arc<OwnedFd>,
    note: Note,
}

/// What is noted of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    /// Its inode.
    inode: u64,
    /// The layer that it is from, the lowest being 0, and the inode there.
    layer: u64,
    lower: u64,
    /// The length of the lower file.
    size: u64,
}

impl Note {
    fn name(self) -> OsString {
        let Self { inode, layer, lower, size } = self;
        format!("{inode:x}.{layer:x}.{lower:x}.{size:x}").into()
    }

    fn decode(name: &OsStr) -> Option<Self> {
        let mut numbers = name.to_str()?.split('.').map(|n| u64::from_str_radix(n, 16).ok());
        let mut next = || numbers.next().flatten();
        let note = Self { inode: next()?, layer: next()?, lower: next()?, size: next()? };
        numbers.next().is_none().then_some(note)
    }
}

impl Unsynced {
    /// Makes good what a loss of power has taken from copies of the last union on this upper layer. None where copies
    /// have to be waited for, or need not be.
    pub fn open(
        work: &OwnedFd,
        layers: &[Layer],
        outer: &Path,
        wanted: bool,
    ) -> Result<Option<Self>> {
        let fail = |e| call(outer, Step::Claim, "copies that were not synced", e);
        let work =
            work.try_clone().map_err(|e| fail(Errno::from_io_error(&e).unwrap_or(Errno::MFILE)))?;
        let unsynced = Self {
            work,
            state: Mutex::default(),
            changed: Condvar::new(),
            syncing: Mutex::default(),
        };
        let notes = unsynced.noted().map_err(fail)?;
        if !notes.is_empty() {
            make_good(&notes, layers)?;
        }
        unsynced.unmark().map_err(fail)?;
        let usable = wanted && disk::keeps_order(&unsynced.work).map_err(fail)?;
        Ok(usable.then_some(unsynced))
    }

    /// Whether a copy of what has these attributes need not be waited for.
    pub fn takes(&self, stat: &Statx) -> bool {
        stat.stx_size <= LARGEST
    }

    /// Notes a copy, before it has a name.
    pub fn note(&self, copy: &OwnedFd, layer: u64, stat: &Statx) -> Io<Note> {
        if self.state.lock().copies.len() >= MOST {
            self.sync()?;
        }
        let inode = fstat(copy)?.st_ino;
        let note = Note { inode, layer, lower: stat.stx_ino, size: stat.stx_size };
        let dir = self.dir()?;
        match linkat(&*dir, NOTE, &*dir, note.name(), AtFlags::empty()) {
            // What a crash left of another file with this number.
            Ok(()) | Err(Errno::EXIST) => Ok(note),
            Err(e) => Err(e),
        }
    }

    /// A copy that was noted has its name.
    pub fn published(&self, file: Arc<OwnedFd>, note: Note) {
        self.state.lock().copies.insert(note.inode, Copy { file, note });
        self.changed.notify_all();
    }

    /// A copy that was noted is none: it could not be published, or has lost its last name.
    pub fn gone(&self, note: Note) -> Io<()> {
        let dir = self.dir()?;
        match unlinkat(&*dir, note.name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// As [`Unsynced::gone`], if it is noted.
    pub fn forget(&self, inode: u64) -> Io<()> {
        let copy = self.state.lock().copies.remove(&inode);
        copy.map_or(Ok(()), |copy| self.gone(copy.note))
    }

    /// Before what is on the disk of a copy may become less.
    pub fn settle(&self, inode: u64) -> Io<()> {
        let Some(copy) = self.state.lock().copies.get(&inode).cloned() else { return Ok(()) };
        fdatasync(&*copy.file)?;
        self.forget(inode)?;
        // The note must be off the disk first, or the cut would be taken for a loss.
        fsync(&*self.dir()?)
    }

    /// Syncs every copy, all by one commit of the journal.
    pub fn sync(&self) -> Io<()> {
        let _syncing = self.syncing.lock();
        let copies: Vec<_> = self.state.lock().copies.values().cloned().collect();
        if copies.is_empty() {
            return Ok(());
        }
        // All are on their way before the first is waited for.
        for copy in &copies {
            sys::sync::start(&*copy.file).map_err(|e| e.source)?;
        }
        for copy in &copies {
            sys::sync::hand_over(&*copy.file).map_err(|e| e.source)?;
        }
        self.commit()?;
        for copy in copies {
            // First the note, so that who finds no copy here finds no note either.
            self.gone(copy.note)?;
            let mut state = self.state.lock();
            if state.copies.get(&copy.note.inode).is_some_and(|now| now.note == copy.note) {
                state.copies.remove(&copy.note.inode);
            }
        }
        Ok(())
    }

    /// Waits until everything is on the disk that was changed before, and that the disk keeps what it was handed: these
    /// file systems have one journal, in the order of changes, so that the newest change takes all others along.
    ///
    /// Source: kernel `Documentation/filesystems/journalling.rst`; `fs/xfs/xfs_file.c`, `xfs_file_fsync`.
    fn commit(&self) -> Io<()> {
        let dir = self.dir()?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        futimens(&*dir, &Timestamps { last_access: now, last_modification: now })?;
        fsync(&*dir)
    }

    fn any(&self) -> bool {
        !self.state.lock().copies.is_empty()
    }

    /// Waits until there is something to sync; false once [`Unsynced::end`] was called.
    pub fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.ended && state.copies.is_empty() {
            self.changed.wait(&mut state);
        }
        !state.ended
    }

    /// Waits for `pause`, so that there is more to sync, or for the end.
    pub fn pause(&self, pause: Duration) {
        let mut state = self.state.lock();
        let until = std::time::Instant::now() + pause;
        while !state.ended && !self.changed.wait_until(&mut state, until).timed_out() {}
    }

    /// Nobody waits any more.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    fn noted(&self) -> Io<Vec<Note>> {
        let dir = match openat(&self.work, DIR, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut notes = Vec::new();
        for entry in Dir::read_from(&dir)? {
            notes.extend(Note::decode(OsStr::from_bytes(entry?.file_name().to_bytes())));
        }
        Ok(notes)
    }

    /// The directory of the notes, which keeps kernels from mounting the upper layer.
    fn dir(&self) -> Io<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        if let Some(dir) = &state.dir {
            return Ok(Arc::clone(dir));
        }
        for dir in ["incompat", DIR] {
            match mkdirat(&self.work, dir, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        let dir = Arc::new(openat(&self.work, DIR, DIRECTORY, Mode::empty())?);
        let made = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&*dir, NOTE, made, Mode::empty())?;
        state.dir = Some(Arc::clone(&dir));
        Ok(dir)
    }

    /// Says that a kernel may mount the upper layer, where nothing is unsynced.
    pub fn unmark(&self) -> Io<()> {
        let dir = match openat(&self.work, DIR, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        self.state.lock().dir = None;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                unlinkat(&dir, entry.file_name(), AtFlags::empty())?;
            }
        }
        for dir in [DIR, "incompat"] {
            match unlinkat(&self.work, dir, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A copy that has not all its data.
struct Lost {
    file: OwnedFd,
    note: Note,
    path: PathBuf,
    filled: bool,
}

/// Completes the copies that a loss of power has left without their data, and syncs all of them.
fn make_good(notes: &[Note], layers: &[Layer]) -> Result<()> {
    let fail =
        |path: &Path, e| call(path, Step::Claim, "making good a copy that was not synced", e);
    let wanted: HashMap<u64, &Note> = notes.iter().map(|note| (note.inode, note)).collect();
    let mut lost: Vec<Lost> = Vec::new();
    find(&layers[0], &mut |path, file, inode| {
        let Some(note) = wanted.get(&inode) else { return Ok(()) };
        let file = file()?;
        // Another name of a file that is known already does no harm.
        if is_whole(&file, note.size)? {
            return fsync(&file);
        }
        lost.push(Lost { file, note: **note, path: path.to_owned(), filled: false });
        Ok(())
    })?;
    for (index, layer) in layers.iter().enumerate().skip(1) {
        let number = (layers.len() - 1 - index) as u64;
        let wanted: HashMap<u64, usize> = lost
            .iter()
            .enumerate()
            .filter(|(_, lost)| lost.note.layer == number)
            .map(|(place, lost)| (lost.note.lower, place))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let mut found = Vec::new();
        find(layer, &mut |_, file, inode| {
            if let Some(place) = wanted.get(&inode) {
                found.push((*place, file()?));
            }
            Ok(())
        })?;
        for (place, lower) in found {
            let copy = &mut lost[place];
            fill(&copy.file, &lower, copy.note.size).map_err(|e| fail(&copy.path, e))?;
            copy.filled = true;
        }
    }
    for Lost { file, path, filled, .. } in lost {
        if !filled {
            return Err(Error::LostLower { path });
        }
        fsync(&file).map_err(|e| fail(&path, e))?;
    }
    Ok(())
}

/// Whether a file has `size` bytes without a hole.
fn is_whole(file: &OwnedFd, size: u64) -> Io<bool> {
    let length = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    Ok(length >= size && (size == 0 || seek(file, SeekFrom::Hole(0))? >= size))
}

/// Gives `file` what it has not of the first `size` bytes of `lower`.
fn fill(file: &OwnedFd, lower: &OwnedFd, size: u64) -> Io<()> {
    let length = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        // The next range that is missing.
        let start = if at >= length { at } else { seek(file, SeekFrom::Hole(at))? };
        let end = match seek(file, SeekFrom::Data(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => size,
            Err(e) => return Err(e),
        };
        if start < end {
            sys::copy::piece(lower, file, start, end).map_err(|e| e.source)?;
        }
        at = end.max(start + 1);
    }
    if length < size {
        ftruncate(file, size)?;
    }
    Ok(())
}

type Visit<'v> = dyn FnMut(&Path, &dyn Fn() -> Io<OwnedFd>, u64) -> Io<()> + 'v;

/// Shows every regular file of a layer, and how to open it.
fn find(layer: &Layer, visit: &mut Visit<'_>) -> Result<()> {
    let mut dirs = vec![PathBuf::new()];
    while let Some(path) = dirs.pop() {
        let fail = |e| call(&path, Step::Claim, "a walk of the layer", e);
        let dir = layer.open_dir(&path)?;
        for entry in Dir::read_from(&dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => dirs.push(path.join(name)),
                FileType::RegularFile => {
                    let write = (READ - OFlags::RDONLY) | OFlags::RDWR;
                    let open = || {
                        // A file of a lower layer is never opened for writing.
                        let flags = if layer.is_upper() { write } else { READ };
                        openat(dir.as_fd(), name, flags, Mode::empty())
                    };
                    visit(&path.join(name), &open, stat.st_ino).map_err(fail)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

impl Union {
    /// Waits until copies want to be synced; false once [`Union::end_sync`] was called, or where they are synced one by
    /// one.
    pub fn wait_for_copies(&self) -> bool {
        self.unsynced.as_ref().is_some_and(Unsynced::wait)
    }

    /// Syncs copies that small files of lower layers have got since the last time, `after` this time so that there are
    /// more of them.
    ///
    /// # Errors
    /// The backing file system's own: those copies are noted still.
    pub fn sync_copies(&self, after: Duration) -> Result<()> {
        let Some(unsynced) = &self.unsynced else { return Ok(()) };
        unsynced.pause(after);
        unsynced.sync().map_err(|e| call(self.layers[0].path(), Step::CopyUp, "fdatasync", e))
    }

    /// Syncs what is left, and says so in the upper layer: before the union ends. Nobody waits for copies any more.
    ///
    /// # Errors
    /// As [`Union::sync_copies`].
    pub fn end_sync(&self) -> Result<()> {
        let Some(unsynced) = &self.unsynced else { return Ok(()) };
        unsynced.end();
        let ended = unsynced.sync().and_then(|()| unsynced.unmark());
        ended.map_err(|e| call(self.layers[0].path(), Step::CopyUp, "fdatasync", e))
    }

    /// Notes a staged copy that need not be waited for; none where it must be.
    pub(crate) fn note_copy(
        &self,
        node: &Node,
        copy: &OwnedFd,
        stat: &Statx,
    ) -> Result<Option<Note>> {
        let fail = |e| self.fail(node, Step::CopyUp, "linkat", e);
        let lower = node.body.read().lower.first().map(|part: &Part| usize::from(part.layer.0));
        let (Some(unsynced), Some(layer), None) = (&self.unsynced, lower, node.below()) else {
            return Ok(None);
        };
        if !unsynced.takes(stat) || node.place().is_none() {
            return Ok(None);
        }
        let layer = (self.layers.len() - 1 - layer) as u64;
        unsynced.note(copy, layer, stat).map(Some).map_err(fail)
    }

    /// A noted copy has its name.
    pub(crate) fn noted_copy(&self, file: &Arc<OwnedFd>, note: Note) {
        if let Some(unsynced) = &self.unsynced {
            unsynced.published(Arc::clone(file), note);
        }
    }

    /// A noted copy could not be published.
    pub(crate) fn drop_note(&self, node: &Node, note: Note) -> Result<()> {
        let Some(unsynced) = &self.unsynced else { return Ok(()) };
        unsynced.gone(note).map_err(|e| self.fail(node, Step::CopyUp, "unlinkat", e))
    }

    /// A node's last name is gone.
    pub(crate) fn forget_copy(&self, node: &Arc<Node>) -> Result<()> {
        let Some(unsynced) = self.unsynced.as_ref().filter(|unsynced| unsynced.any()) else {
            return Ok(());
        };
        let forgotten = unsynced.forget(self.real_stat(node)?.stx_ino);
        forgotten.map_err(|e| self.fail(node, Step::Remove, "unlinkat", e))
    }

    /// Before a file is cut, or holes come into it.
    pub(crate) fn settle_copy(&self, node: &Arc<Node>) -> Result<()> {
        let Some(unsynced) = self.unsynced.as_ref().filter(|unsynced| unsynced.any()) else {
            return Ok(());
        };
        let settled = unsynced.settle(self.real_stat(node)?.stx_ino);
        settled.map_err(|e| self.fail(node, Step::Change, "fdatasync", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_note_is_its_name() {
        let note = Note { inode: 0x1234_5678_9abc, layer: 3, lower: 17, size: 1 << 20 };
        assert_eq!(Note::decode(&note.name()), Some(note));
        for wrong in ["note", "", "1.2.3", "1.2.3.4.5", "1.2.3.x"] {
            assert_eq!(Note::decode(OsStr::new(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn only_what_is_missing_comes_from_the_lower_file() {
        let block = 4096;
        let file = |data: &[(usize, u8)], size: usize| {
            let file = tempfile::tempfile().unwrap();
            for (at, byte) in data {
                file.write_all_at(&vec![*byte; block], (at * block) as u64).unwrap();
            }
            file.set_len((size * block) as u64).unwrap();
            OwnedFd::from(file)
        };
        let shown = |fd: &OwnedFd| {
            let file = std::fs::File::from(fd.try_clone().unwrap());
            let blocks = file.metadata().unwrap().len() as usize / block;
            let byte = |at: usize| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, (at * block) as u64).unwrap();
                byte[0]
            };
            (0..blocks).map(byte).collect::<Vec<_>>()
        };
        let lower = file(&[(0, 1), (1, 2), (3, 4)], 5);
        // Blocks that the copy has, its length in blocks, what it is to show.
        type Case<'c> = (&'c [(usize, u8)], usize, &'c [u8]);
        let cases: [Case; 5] = [
            (&[], 0, &[1, 2, 0, 4, 0]),
            (&[(0, 9)], 1, &[9, 2, 0, 4, 0]),
            (&[(1, 9)], 5, &[1, 9, 0, 4, 0]),
            (&[(2, 9), (6, 8)], 7, &[1, 2, 9, 4, 0, 0, 8]),
            (&[(0, 9), (1, 9), (2, 9), (3, 9), (4, 9)], 5, &[9; 5]),
        ];
        for (data, size, expected) in cases {
            let file = file(data, size);
            fill(&file, &lower, 5 * block as u64).unwrap();
            assert_eq!(shown(&file), expected, "{data:?}");
        }
    }
}
