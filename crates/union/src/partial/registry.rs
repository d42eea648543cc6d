//! The partial files of a union, and where their sidecars are.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, Dir, Mode, SeekFrom, Statx, XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat,
    fstatfs, fsync, ftruncate, mkdirat, openat, seek, unlinkat,
};
use rustix::io::Errno;
use sys::mounts::{EXT4, XFS};

use super::chunks::{Chunks, mask};
use super::sidecar::{Map, Origin, Sidecar};
use super::{Partial, Result, State};
use crate::disk;
use crate::upper::DIRECTORY;

/// The attribute of a partial file, behind the namespace's prefix; its value is the number of its sidecar.
pub(crate) const ATTRIBUTE: &str = "strata.partial";

/// A file with less data is copied whole, which takes a few milliseconds at most: bytes.
const SMALLEST: u64 = 4 << 20;
/// More at a time are copied whole: each has three descriptors.
const MOST: usize = 1000;
/// Bits of a map; a file that would have more has larger chunks.
const MOST_CHUNKS: u64 = 1 << 21;
const CHUNK: u64 = 4096;

/// File systems that tell data from holes, and make no holes of what was written: ext4, XFS, btrfs, tmpfs.
const EXACT: [i64; 4] = [EXT4, XFS, 0x9123_683e, 0x0102_1994];

/// Where a copy-up takes its data from.
pub(crate) struct Source<'s> {
    pub fd: &'s OwnedFd,
    pub stat: &'s Statx,
    /// The layer, counted from the lowest, and the path in it.
    pub layer: u32,
    pub path: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Partials {
    /// `work/work`.
    work: OwnedFd,
    attribute: String,
    /// New ones are made.
    on: bool,
    volatile: bool,
    in_place: bool,
    /// There may be some.
    any: AtomicBool,
    next: AtomicU64,
    files: Mutex<HashMap<u64, Arc<Partial>>>,
}

impl Partials {
    /// Those of a work directory, which the union has for itself.
    pub fn open(work: &OwnedFd, attribute: String, on: bool, volatile: bool) -> Result<Self> {
        let exact = EXACT.contains(&(fstatfs(work)?.f_type as i64));
        let work =
            work.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::MFILE))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let in_place = disk::overwrites_in_place(&work)?;
        let partials = Self {
            work,
            attribute,
            on: on && exact,
            volatile,
            in_place,
            any: AtomicBool::new(true),
            next: AtomicU64::new(now.map_or(1, |now| now.as_nanos() as u64)),
            files: Mutex::default(),
        };
        let any = !partials.left()?.is_empty();
        partials.any.store(any, Ordering::Release);
        if !any {
            partials.unmark()?;
        }
        Ok(partials)
    }

    /// Whether a file of the upper layer may be partial.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Every one that is open.
    pub fn all(&self) -> Vec<Arc<Partial>> {
        self.files.lock().values().cloned().collect()
    }

    /// Whether a file with these attributes is worth it.
    pub fn takes(&self, stat: &Statx) -> bool {
        self.on && held_below(stat) >= SMALLEST
    }

    /// Makes the empty file `to` a partial one; none where a copy is as good or the only way.
    pub fn make(&self, to: &OwnedFd, source: &Source<'_>) -> Result<Option<Arc<Partial>>> {
        let size = source.stat.stx_size;
        let held = held_below(source.stat);
        if !self.takes(source.stat) || self.files.lock().len() >= MOST {
            return Ok(None);
        }
        let chunk = size.div_ceil(MOST_CHUNKS).next_power_of_two().max(CHUNK);
        let origin = Origin {
            layer: source.layer,
            path: source.path.clone(),
            size,
            mtime: (source.stat.stx_mtime.tv_sec, source.stat.stx_mtime.tv_nsec),
            chunk,
        };
        self.any.store(true, Ordering::Release);
        let dir = self.mark()?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let sidecar = match Sidecar::create(&dir, &name(id), origin, self.volatile) {
            Ok(sidecar) => sidecar,
            Err(Errno::NAMETOOLONG) => return Ok(None),
            Err(e) => return Err(e),
        };
        let made = (|| {
            ftruncate(to, size)?;
            fsetxattr(to, &*self.attribute, &id.to_le_bytes(), XattrFlags::empty())?;
            let words = vec![0; usize::try_from(sidecar.origin.chunks().div_ceil(64)).unwrap_or(0)];
            let lower = clone(source.fd)?;
            let maps = (words.clone(), words);
            Ok(Arc::new(self.partial(id, clone(to)?, (lower, held), sidecar, size, maps)))
        })();
        match made {
            Ok(partial) => {
                self.files.lock().insert(id, Arc::clone(&partial));
                Ok(Some(partial))
            }
            Err(e) => {
                unlinkat(&dir, name(id), AtFlags::empty())?;
                Err(e)
            }
        }
    }

    fn partial(
        &self,
        id: u64,
        data: OwnedFd,
        (lower, held): (OwnedFd, u64),
        sidecar: Sidecar,
        valid: u64,
        (own, whole): (Vec<u64>, Vec<u64>),
    ) -> Partial {
        let (size, count) = (sidecar.origin.chunk, sidecar.origin.chunks());
        Partial {
            id,
            data,
            lower,
            held,
            chunks: Chunks::new(own, size, count),
            valid: AtomicU64::new(valid),
            cut: AtomicBool::new(valid < sidecar.origin.size),
            complete: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            volatile: self.volatile,
            in_place: self.in_place,
            state: Mutex::new(State { sidecar, whole, dirty: false }),
        }
    }

    /// The number of a file's sidecar, where it is partial.
    pub fn id(&self, file: impl AsFd) -> Result<Option<u64>> {
        let mut value = [0; 8];
        match fgetxattr(file, &*self.attribute, &mut value) {
            Ok(8) => Ok(Some(u64::from_le_bytes(value))),
            Ok(_) | Err(Errno::RANGE) => Err(Errno::UCLEAN),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The partial file behind `data`, whose sidecar is `id`. `lower` opens a file of a lower layer.
    ///
    /// # Errors
    /// EUCLEAN where the sidecar is damaged or gone, or the lower file is another one.
    pub fn load(
        &self,
        id: u64,
        data: OwnedFd,
        lower: impl FnOnce(u32, &std::path::Path) -> Result<OwnedFd>,
    ) -> Result<Arc<Partial>> {
        let mut files = self.files.lock();
        if let Some(known) = files.get(&id) {
            return Ok(Arc::clone(known));
        }
        let gone = |e| if e == Errno::NOENT { Errno::UCLEAN } else { e };
        let dir = self.dir()?.ok_or(Errno::UCLEAN)?;
        let (sidecar, valid) = Sidecar::open(&dir, &name(id), self.volatile).map_err(gone)?;
        let origin = &sidecar.origin;
        let lower = lower(origin.layer, &origin.path).map_err(gone)?;
        let stat = fstat(&lower)?;
        let mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
        if u64::try_from(stat.st_size) != Ok(origin.size) || mtime != origin.mtime {
            return Err(Errno::UCLEAN);
        }
        let size = u64::try_from(fstat(&data)?.st_size).unwrap_or(0);
        let valid = valid.min(size);
        let whole = sidecar.read(Map::Whole)?;
        let written = sidecar.read(Map::Written)?;
        let present = present(&data, valid, origin.chunk, whole.len())?;
        let own = whole.iter().zip(written).zip(present);
        let own = own.map(|((whole, written), data)| whole | (written & data)).collect();
        let held = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let partial = self.partial(id, data, (lower, held), sidecar, valid, (own, whole));
        partial.clear_litter()?;
        let partial = Arc::new(partial);
        files.insert(id, Arc::clone(&partial));
        Ok(partial)
    }

    /// It has all its data: it becomes a file like any other.
    pub fn finish(&self, partial: &Partial) -> Result<()> {
        let _state = partial.state.lock();
        if partial.is_complete() || !self.files.lock().contains_key(&partial.id) {
            return Ok(());
        }
        if !self.volatile {
            fsync(&partial.data)?;
        }
        match fremovexattr(&partial.data, &*self.attribute) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
        if !self.volatile {
            // The sidecar must not go before the attribute that names it.
            fsync(&partial.data)?;
        }
        partial.completed();
        self.files.lock().remove(&partial.id);
        self.remove(partial.id)
    }

    /// The file's last name is gone, or it never got one.
    pub fn gone(&self, partial: &Partial) -> Result<()> {
        self.files.lock().remove(&partial.id);
        self.remove(partial.id)
    }

    /// Whether no name is left of the file.
    pub fn is_gone(partial: &Partial) -> Result<bool> {
        Ok(fstat(&partial.data)?.st_nlink == 0)
    }

    pub fn remove(&self, id: u64) -> Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        match unlinkat(&dir, name(id), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The sidecars that are on disk.
    pub fn left(&self) -> Result<Vec<u64>> {
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        let mut ids = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_string_lossy();
            if let Ok(id) = u64::from_str_radix(&name, 16) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Says that a kernel may mount the upper layer, where no partial file is left.
    pub fn unmark(&self) -> Result<()> {
        for name in ["incompat/partial", "incompat"] {
            let removed = unlinkat(&self.work, name, AtFlags::REMOVEDIR);
            match removed {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The directory of the sidecars, which keeps kernels from mounting the upper layer.
    ///
    /// Source: kernel `fs/overlayfs/super.c`, `work/incompat`.
    fn mark(&self) -> Result<OwnedFd> {
        let made = |result| match result {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e),
        };
        made(mkdirat(&self.work, "incompat", Mode::RWXU))?;
        made(mkdirat(&self.work, "incompat/partial", Mode::RWXU))?;
        self.dir()?.ok_or(Errno::NOENT)
    }

    fn dir(&self) -> Result<Option<OwnedFd>> {
        match openat(&self.work, "incompat/partial", DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn name(id: u64) -> OsString {
    format!("{id:016x}").into()
}

/// Bytes of blocks that a file has below.
fn held_below(stat: &Statx) -> u64 {
    stat.stx_size.min(stat.stx_blocks.saturating_mul(512))
}

fn clone(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::MFILE))
}

/// A bit for each chunk that has data in all of it, up to `valid`.
fn present(file: &OwnedFd, valid: u64, chunk: u64, words: usize) -> Result<Vec<u64>> {
    let mut bits = vec![0; words];
    let mut at = 0;
    while at < valid {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < valid => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let stop = seek(file, SeekFrom::Hole(start))?;
        let first = start.div_ceil(chunk);
        let end = if stop >= valid { valid.div_ceil(chunk) } else { stop / chunk };
        for word in first / 64..end.div_ceil(64) {
            bits[word as usize] |= mask(word * 64, first, end);
        }
        at = stop;
    }
    Ok(bits)
}
