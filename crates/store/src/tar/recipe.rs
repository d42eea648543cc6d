//! How to make a layer's tar again, bit by bit, from its tree: everything but the data of files,
//! and where that is. With it the blob need not be kept, and a tree can be verified.
//!
//! On disk: zstd of records. `0`, length, bytes; or `1`, length of the path, path, offset, length;
//! or, at the end, `2`, length of the path, path, number of a record `1`: the data of that record is
//! in another file by now. Numbers are little-endian and 64 bits.
//! Paths are in the layer's directory: `fs/…`, and `replaced/…` for what later entries of the same
//! tar took the place of.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

const RAW: u8 = 0;
const DATA: u8 = 1;
const MOVED: u8 = 2;

/// Writes a recipe.
pub struct Writer<W: Write> {
    to: zstd::Encoder<'static, W>,
    data: u64,
}

impl<W: Write> Writer<W> {
    /// A recipe that goes to `to`.
    ///
    /// # Errors
    /// Of the compressor.
    pub fn new(to: W) -> io::Result<Self> {
        // Headers are much alike: the fastest level makes them small.
        Ok(Self { to: zstd::Encoder::new(to, 1)?, data: 0 })
    }

    /// Bytes that are in no file.
    ///
    /// # Errors
    /// Of the writer.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.to.write_all(&[RAW])?;
        self.to.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.to.write_all(bytes)
    }

    /// Data of a file; gives the record's number.
    ///
    /// # Errors
    /// Of the writer.
    pub fn data(&mut self, path: &Path, offset: u64, length: u64) -> io::Result<u64> {
        self.path(DATA, path)?;
        self.to.write_all(&offset.to_le_bytes())?;
        self.to.write_all(&length.to_le_bytes())?;
        self.data += 1;
        Ok(self.data - 1)
    }

    fn path(&mut self, kind: u8, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        self.to.write_all(&[kind])?;
        self.to.write_all(&(path.len() as u64).to_le_bytes())?;
        self.to.write_all(path)
    }

    /// Ends it: `moved` says which data is elsewhere by now.
    ///
    /// # Errors
    /// Of the writer.
    pub fn finish(mut self, moved: &[(u64, PathBuf)]) -> io::Result<W> {
        for (number, path) in moved {
            self.path(MOVED, path)?;
            self.to.write_all(&number.to_le_bytes())?;
        }
        self.to.finish()
    }
}

/// One step of making a tar again.
enum Record {
    Raw(u64),
    Data { path: PathBuf, offset: u64, length: u64 },
    Moved { path: PathBuf, number: u64 },
}

fn record(from: &mut impl Read) -> io::Result<Option<Record>> {
    let mut kind = [0];
    if from.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let length = number(from)?;
    if kind[0] == RAW {
        return Ok(Some(Record::Raw(length)));
    }
    if length > 2 * 4096 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a path of the recipe is too long"));
    }
    let mut path = vec![0; usize::try_from(length).unwrap_or(0)];
    from.read_exact(&mut path)?;
    let path = PathBuf::from(OsString::from_vec(path));
    match kind[0] {
        DATA => Ok(Some(Record::Data { path, offset: number(from)?, length: number(from)? })),
        MOVED => Ok(Some(Record::Moved { path, number: number(from)? })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the recipe has an unknown record")),
    }
}

/// Makes the tar again: the recipe at `recipe` over the layer's directory behind `layer`, to `to`.
///
/// # Errors
/// `InvalidData` for a recipe that is none; `UnexpectedEof` for a file that is shorter than it was;
/// of the tree and the writer.
pub fn replay(recipe: &Path, layer: impl AsFd, to: &mut dyn Write) -> io::Result<()> {
    let open = || -> io::Result<_> {
        let file = std::fs::File::open(recipe)?;
        Ok(io::BufReader::with_capacity(64 << 10, zstd::Decoder::new(file)?))
    };
    // What was moved is told at the end only.
    let mut moved = HashMap::new();
    let mut first = open()?;
    while let Some(record) = record(&mut first)? {
        match record {
            Record::Raw(length) => {
                let passed = io::copy(&mut first.by_ref().take(length), &mut io::sink())?;
                if passed != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Record::Data { .. } => {}
            Record::Moved { path, number } => {
                moved.insert(number, path);
            }
        }
    }
    let mut recipe = open()?;
    let mut block = vec![0; 256 << 10];
    let mut at = 0;
    while let Some(record) = record(&mut recipe)? {
        match record {
            Record::Raw(length) => copy(&mut recipe, length, &mut block, to)?,
            Record::Data { path, offset, length } => {
                let path = moved.get(&at).unwrap_or(&path);
                at += 1;
                data(&layer, path, offset, length, &mut block, to)?;
            }
            Record::Moved { .. } => {}
        }
    }
    Ok(())
}

/// The tar of a recipe with nothing but zeros in its files: for whoever wants its headers alone.
///
/// # Errors
/// Of the recipe's file.
pub(crate) fn headers(recipe: &Path) -> io::Result<impl BufRead> {
    let from =
        io::BufReader::with_capacity(64 << 10, zstd::Decoder::new(std::fs::File::open(recipe)?)?);
    Ok(Headers { from, raw: 0, zeros: 0 })
}

struct Headers<R> {
    from: R,
    /// What is left of the present record: bytes of the recipe, or of a file.
    raw: u64,
    zeros: u64,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// As many bytes of `some` as there are, but `most` at most.
fn first(some: &[u8], most: u64) -> &[u8] {
    &some[..usize::try_from(most).unwrap_or(usize::MAX).min(some.len())]
}

impl<R: BufRead> BufRead for Headers<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.raw == 0 && self.zeros == 0 {
            match record(&mut self.from)? {
                None => return Ok(&[]),
                Some(Record::Raw(length)) => self.raw = length,
                Some(Record::Data { length, .. }) => self.zeros = length,
                Some(Record::Moved { .. }) => {}
            }
        }
        if self.raw == 0 {
            return Ok(first(&ZEROS, self.zeros));
        }
        let some = self.from.fill_buf()?;
        if some.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(first(some, self.raw))
    }

    fn consume(&mut self, count: usize) {
        if self.raw > 0 {
            self.from.consume(count);
            self.raw = self.raw.saturating_sub(count as u64);
        } else {
            self.zeros = self.zeros.saturating_sub(count as u64);
        }
    }
}

impl<R: BufRead> Read for Headers<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let some = self.fill_buf()?;
        let count = some.len().min(into.len());
        into[..count].copy_from_slice(&some[..count]);
        self.consume(count);
        Ok(count)
    }
}

fn data(
    layer: impl AsFd,
    path: &Path,
    mut offset: u64,
    mut left: u64,
    block: &mut [u8],
    to: &mut dyn Write,
) -> io::Result<()> {
    if left == 0 {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = sys::beneath::open(&layer, path, flags)
        .map_err(|e| io::Error::new(io::Error::from(e.source).kind(), format!("{path:?}: {e}")))?;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        let got = rustix::io::pread(&file, &mut block[..want], offset)?;
        if got == 0 {
            let why = format!("{path:?} is shorter than it was");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        to.write_all(&block[..got])?;
        offset += got as u64;
        left -= got as u64;
    }
    Ok(())
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn copy(
    from: &mut impl Read,
    mut left: u64,
    block: &mut [u8],
    to: &mut dyn Write,
) -> io::Result<()> {
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        from.read_exact(&mut block[..want])?;
        to.write_all(&block[..want])?;
        left -= want as u64;
    }
    Ok(())
}
