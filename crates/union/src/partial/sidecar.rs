//! What is kept of a partial file beside it: whose data the rest is, and which chunks are its own.
//!
//! The format is in `docs/on-disk.md`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, SeekFrom, fdatasync, fsync, ftruncate, openat, seek};
use rustix::io::Errno;

use crate::transfer::{read_some, write_some};

const MAGIC: &[u8; 8] = b"STRATA-1";
/// Bytes of the header that never changes.
const HEADER: usize = 8192;
/// Where the two slots of the valid length are; a sector each, so that a cut leaves the other whole.
const SLOTS: [u64; 2] = [8192, 12288];
/// Where the maps begin.
const MAPS: u64 = 16384;
const FIXED: usize = 56;
/// Bytes of a map that are written as the sidecar is made, so that what is written later goes where there are blocks.
const READY: u64 = 1 << 20;

/// What a partial file is completed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// The lower layer, counted from the lowest, which is 0.
    pub layer: u32,
    /// The path in it.
    pub path: PathBuf,
    /// Bytes of it, and its time of modification: another file under that path is refused.
    pub size: u64,
    pub mtime: (i64, u32),
    /// Bytes of a chunk.
    pub chunk: u64,
}

impl Origin {
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk)
    }

    /// Bytes of a map, in whole words.
    fn map(&self) -> u64 {
        self.chunks().div_ceil(64) * 8
    }
}

/// The two maps of a partial file, a bit a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    /// Written: the file's own, if it has data there.
    Written,
    /// The file's own, data or hole.
    Whole,
}

#[derive(Debug)]
pub(super) struct Sidecar {
    fd: OwnedFd,
    pub origin: Origin,
    /// Of the slot that was written last.
    sequence: u64,
    /// The bytes that have their blocks, and these on the disk.
    solid: u64,
    /// Something was written behind them that is not on the disk.
    grew: bool,
}

impl Sidecar {
    /// Makes one that is on the disk when this returns, unless `volatile`.
    pub fn create(
        dir: &OwnedFd,
        name: &OsStr,
        origin: Origin,
        volatile: bool,
    ) -> Result<Self, Errno> {
        let path = origin.path.as_os_str().as_bytes();
        if FIXED + path.len() + 8 > HEADER {
            return Err(Errno::NAMETOOLONG);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut header = vec![0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&origin.size.to_le_bytes());
        header[16..24].copy_from_slice(&origin.mtime.0.to_le_bytes());
        header[24..28].copy_from_slice(&origin.mtime.1.to_le_bytes());
        header[28..32].copy_from_slice(&origin.layer.to_le_bytes());
        header[32..40].copy_from_slice(&origin.chunk.to_le_bytes());
        header[40..48].copy_from_slice(&(path.len() as u64).to_le_bytes());
        header[FIXED..FIXED + path.len()].copy_from_slice(path);
        let sum = sum(&header[..HEADER - 8]).to_le_bytes();
        header[HEADER - 8..].copy_from_slice(&sum);
        let mut sidecar = Self { fd, origin, sequence: 0, solid: 0, grew: false };
        let map = sidecar.origin.map();
        header.resize(usize::try_from(MAPS + map.min(READY)).map_err(|_| Errno::FBIG)?, 0);
        write_all(&sidecar.fd, &header, 0)?;
        sidecar.set_valid(sidecar.origin.size)?;
        ftruncate(&sidecar.fd, MAPS + 2 * map)?;
        if !volatile {
            fsync(&sidecar.fd)?;
        }
        sidecar.solid = header.len() as u64;
        sidecar.grew = false;
        Ok(sidecar)
    }

    /// Opens one, and the length up to which the lower file counts. Waits for the disk unless `volatile`.
    ///
    /// # Errors
    /// EUCLEAN for one that is damaged.
    pub fn open(dir: &OwnedFd, name: &OsStr, volatile: bool) -> Result<(Self, u64), Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, name, flags, Mode::empty())?;
        let mut header = vec![0; HEADER];
        read_all(&fd, &mut header, 0)?;
        let u64_at = |at: usize| u64::from_le_bytes(array(&header, at));
        let u32_at = |at: usize| u32::from_le_bytes(array(&header, at));
        let len = usize::try_from(u64_at(40)).unwrap_or(usize::MAX);
        let chunk = u64_at(32);
        let good = header.starts_with(MAGIC)
            && u64_at(HEADER - 8) == sum(&header[..HEADER - 8])
            && len <= HEADER - FIXED - 8
            && chunk.is_power_of_two()
            && chunk >= 4096;
        if !good {
            return Err(Errno::UCLEAN);
        }
        let origin = Origin {
            layer: u32_at(28),
            path: PathBuf::from(std::ffi::OsString::from_vec(header[FIXED..FIXED + len].to_vec())),
            size: u64_at(8),
            mtime: (i64::from_le_bytes(array(&header, 16)), u32_at(24)),
            chunk,
        };
        let slots = SLOTS.map(|at| slot(&fd, at));
        let [first, second] = slots;
        let newest = first?.into_iter().chain(second?).max();
        let (sequence, valid) = newest.ok_or(Errno::UCLEAN)?;
        let valid = valid.min(origin.size);
        // What another process wrote may have blocks that are not on the disk.
        let solid = if volatile {
            0
        } else {
            fdatasync(&fd).and_then(|()| seek(&fd, SeekFrom::Hole(0)))?
        };
        Ok((Self { fd, origin, sequence, solid, grew: false }, valid))
    }

    /// Says, without waiting for the disk, up to where the lower file counts.
    pub fn set_valid(&mut self, valid: u64) -> Result<(), Errno> {
        self.sequence += 1;
        let mut slot = [0; 24];
        slot[..8].copy_from_slice(&self.sequence.to_le_bytes());
        slot[8..16].copy_from_slice(&valid.to_le_bytes());
        let sum = sum(&slot[..16]).to_le_bytes();
        slot[16..].copy_from_slice(&sum);
        self.put(&slot, SLOTS[usize::from(self.sequence % 2 == 1)])
    }

    pub fn read(&self, map: Map) -> Result<Vec<u64>, Errno> {
        let mut bytes = vec![0; usize::try_from(self.origin.map()).map_err(|_| Errno::FBIG)?];
        read_all(&self.fd, &mut bytes, self.at(map))?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Writes some words of a map, without waiting for the disk.
    pub fn write(&mut self, map: Map, first: usize, words: &[u64]) -> Result<(), Errno> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&bytes, self.at(map) + 8 * first as u64)
    }

    fn put(&mut self, bytes: &[u8], at: u64) -> Result<(), Errno> {
        self.grew |= at + bytes.len() as u64 > self.solid;
        write_all(&self.fd, bytes, at)
    }

    /// Waits until it is on the disk.
    pub fn sync(&mut self) -> Result<(), Errno> {
        fdatasync(&self.fd)?;
        self.grew = false;
        Ok(())
    }

    /// As [`Sidecar::sync`], by way of `other`'s, which waits for the disk anyway: on a file system that
    /// [overwrites in place](crate::disk::overwrites_in_place).
    pub fn sync_with(
        &mut self,
        other: &OwnedFd,
        sync: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.grew {
            sync(other)?;
            return self.sync();
        }
        for fd in [&self.fd, other] {
            sys::sync::start(fd).map_err(|e| e.source)?;
        }
        sys::sync::hand_over(&self.fd).map_err(|e| e.source)?;
        sync(other)
    }

    fn at(&self, map: Map) -> u64 {
        MAPS + if map == Map::Whole { self.origin.map() } else { 0 }
    }
}

fn slot(fd: &OwnedFd, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    let mut slot = [0; 24];
    read_all(fd, &mut slot, at)?;
    let number = |at| u64::from_le_bytes(array(&slot, at));
    Ok((number(0) > 0 && number(16) == sum(&slot[..16])).then(|| (number(0), number(8))))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// FNV-1a: it tells a slot that was half written, and no forgery.
fn sum(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold)
}

/// Writes all of `data`, or says why not.
pub(super) fn write_all(fd: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let (_, result) = write_some(fd, data, offset);
    result
}

/// Fills `into`; EUCLEAN where the file ends before.
pub(super) fn read_all(fd: &OwnedFd, into: &mut [u8], offset: u64) -> Result<(), Errno> {
    if read_some(fd, into, offset)? == into.len() { Ok(()) } else { Err(Errno::UCLEAN) }
}
