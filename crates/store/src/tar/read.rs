//! A strict streaming reader: ustar, PAX, GNU long names, and every form of GNU sparse files.
//!
//! What other readers take in two ways is an error here, so that nobody can hide an entry from one
//! reader and show it to another.
//!
//! Source: pax(1) of POSIX; GNU tar manual, "Tar Internals".

use std::io::{self, BufRead, Read};

use super::field::{decimal, number, signed, text};
use super::pax::{Extra, MAX_PARTS, pax};

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// Bytes of a PAX header at most; its attributes have 64 KiB each.
const MAX_PAX: u64 = 1 << 20;
/// Headers before an entry at most: each is held until the entry comes.
const MAX_ANNOUNCING: usize = 16;
/// Bytes of a name at most.
const MAX_NAME: usize = 4096;
/// Bytes behind the end of the archive at most.
const MAX_TAIL: usize = 16 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path, as it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// The target of a link.
    pub link: Vec<u8>,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Bytes of data that follow in the archive.
    pub stored: u64,
    /// Length of the file.
    pub size: u64,
    /// Where the data goes, offset and length; none for a file without holes.
    pub parts: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads an archive. Everything but the data of files is kept until [`Reader::take_raw`].
pub struct Reader<R> {
    from: R,
    /// Data of the present entry that was not read yet.
    left: u64,
    padding: usize,
    raw: Vec<u8>,
    ended: bool,
}

pub(super) fn bad<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, why.into()))
}

impl<R: BufRead> Reader<R> {
    /// A reader of `from`.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0, raw: Vec::new(), ended: false }
    }

    /// What is read from: behind the header of the present entry.
    pub fn source(&self) -> &R {
        &self.from
    }

    /// What was read since the last call, without the data of files.
    pub fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.raw)
    }

    /// The next entry; what was not read of the one before is passed over, and not kept.
    ///
    /// # Errors
    /// `InvalidData` with what is wrong; `UnexpectedEof`; the source's own.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extra = Extra::default();
        let mut announced = false;
        let mut seen = Vec::new();
        for _ in 0..MAX_ANNOUNCING {
            self.pass()?;
            let Some(block) = self.header()? else {
                if announced {
                    return bad("the archive ends behind a header that announces an entry");
                }
                return Ok(None);
            };
            if seen.contains(&block[156]) {
                return bad("an entry has two headers of one kind before it");
            }
            seen.push(block[156]);
            match block[156] {
                b'x' => {
                    let body = self.body(number(&block[124..136])?, MAX_PAX)?;
                    pax(&body, &mut extra)?;
                }
                b'g' => {
                    // To some readers it says something of every entry behind it, to others nothing.
                    let body = self.body(number(&block[124..136])?, MAX_PAX)?;
                    let mut global = Extra::default();
                    pax(&body, &mut global)?;
                    if global != Extra::default() {
                        return bad("a global header says something of entries");
                    }
                }
                b'L' => extra.long_path = Some(self.long_name(&block)?),
                b'K' => extra.long_link = Some(self.long_name(&block)?),
                _ => return self.entry(&block, extra).map(Some),
            }
            announced = true;
        }
        bad("an entry has too many headers before it")
    }

    /// Reads data of the present entry; 0 at its end.
    ///
    /// # Errors
    /// `UnexpectedEof`; the source's own.
    pub fn read_data(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if want == 0 {
            return Ok(0);
        }
        let got = self.from.read(&mut into[..want])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got as u64;
        Ok(got)
    }

    /// What is at hand of the present entry's data; empty at its end.
    ///
    /// # Errors
    /// As [`Reader::read_data`].
    pub fn data(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let data = self.from.fill_buf()?;
        if data.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&data[..data.len().min(left)])
    }

    /// Says that `count` bytes of what [`Reader::data`] gave are done with.
    pub fn consume(&mut self, count: usize) {
        self.from.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    /// Reads and keeps what is behind the end of the archive.
    ///
    /// # Errors
    /// As [`Reader::next_entry`].
    pub fn finish(&mut self) -> io::Result<()> {
        let mut block = vec![0; 64 << 10];
        loop {
            let got = self.from.read(&mut block)?;
            if got == 0 {
                return Ok(());
            }
            if self.raw.len() + got > MAX_TAIL {
                return bad("there are more than 16 MiB behind the end of the archive");
            }
            self.raw.extend_from_slice(&block[..got]);
        }
    }

    /// Passes over the rest of the present entry.
    fn pass(&mut self) -> io::Result<()> {
        let mut block = [0; 16 << 10];
        while self.left > 0 {
            self.read_data(&mut block)?;
        }
        if self.padding > 0 {
            let padding = std::mem::take(&mut self.padding);
            // The archive may end with the data of its last file: umoci's does, and Go reads it.
            let got = (&mut self.from).take(padding as u64).read_to_end(&mut self.raw)?;
            self.ended = got < padding;
        }
        Ok(())
    }

    /// Reads `count` bytes and keeps them; they are the last of what is kept.
    fn keep(&mut self, count: usize) -> io::Result<()> {
        let from = self.raw.len();
        self.raw.resize(from + count, 0);
        self.from.read_exact(&mut self.raw[from..])
    }

    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut got = 0;
        while got < BLOCK {
            match self.from.read(&mut block[got..])? {
                0 if got == 0 => {
                    self.ended = true;
                    return Ok(None);
                }
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got += n,
            }
        }
        self.raw.extend_from_slice(&block);
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(&block[148..156])? != sum {
            return bad("a header's checksum is wrong");
        }
        // Also where they say nothing: to some readers the archive ends with a header that is none.
        for field in [100..108, 108..116, 116..124, 124..136, 136..148, 329..337, 337..345] {
            signed(&block[field])?;
        }
        Ok(Some(block))
    }

    /// The data of an entry that is itself a header.
    fn body(&mut self, size: u64, limit: u64) -> io::Result<Vec<u8>> {
        if size > limit {
            return bad(format!("a header of {size} bytes is longer than {limit}"));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let from = self.raw.len();
        self.keep(size.next_multiple_of(BLOCK))?;
        Ok(self.raw[from..from + size].to_vec())
    }

    fn long_name(&mut self, block: &[u8; BLOCK]) -> io::Result<Vec<u8>> {
        let mut name = self.body(number(&block[124..136])?, MAX_NAME as u64 + 1)?;
        if name.pop() != Some(0) || name.contains(&0) {
            return bad("a long name does not end where it should");
        }
        Ok(name)
    }

    fn entry(&mut self, block: &[u8; BLOCK], extra: Extra) -> io::Result<Entry> {
        let gnu = &block[257..265] == b"ustar  \0";
        let ustar = &block[257..263] == b"ustar\0";
        let mut path = text(&block[0..100]).to_vec();
        let prefix = text(&block[345..500]);
        if ustar && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let plain = path.clone();
        let named = extra.path.is_some() || extra.sparse_name.is_some();
        if named && extra.long_path.is_some() || extra.link.is_some() && extra.long_link.is_some() {
            return bad("two headers name an entry, or what it links to");
        }
        let sparse_named = extra.sparse_name.is_some();
        let path = extra.sparse_name.or(extra.path).or(extra.long_path).unwrap_or(path);
        let kind = match block[156] {
            // Of the oldest archives, which have no other mark of a directory. Files by name, directories to some readers:
            // what comes behind them would be data to some, and an entry to others.
            0 if path.ends_with(b"/") && plain.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' | b'S'
                if path.ends_with(b"/") || block[156] == 0 && plain.ends_with(b"/") =>
            {
                return bad("a file's name ends in a slash");
            }
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return bad(format!("entries of type {:?} are unknown", char::from(other))),
        };
        let size = match extra.size {
            Some(size) => size,
            None => number(&block[124..136])?,
        };
        if size > i64::MAX as u64 - BLOCK as u64 {
            return bad("an entry is larger than any file");
        }
        let id = |field: &[u8]| -> io::Result<u32> {
            u32::try_from(number(field)?).or_else(|_| bad("an owner's id is larger than 32 bits"))
        };
        let half = |field: &[u8]| -> io::Result<u32> {
            u32::try_from(number(field)?).or_else(|_| bad("a device number is larger than 32 bits"))
        };
        let device = matches!(kind, Kind::Char | Kind::Block);
        let mut entry = Entry {
            kind,
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            uid: extra.uid.map_or_else(|| id(&block[108..116]), Ok)?,
            gid: extra.gid.map_or_else(|| id(&block[116..124]), Ok)?,
            mtime: extra
                .mtime
                .map_or_else(|| Ok::<_, io::Error>((signed(&block[136..148])?, 0)), Ok)?,
            link: extra.link.or(extra.long_link).unwrap_or_else(|| text(&block[157..257]).to_vec()),
            device: if device {
                (half(&block[329..337])?, half(&block[337..345])?)
            } else {
                (0, 0)
            },
            // Only files have data, whatever a header says: what all readers agree upon.
            stored: if kind == Kind::File { size } else { 0 },
            size: if kind == Kind::File { size } else { 0 },
            parts: None,
            xattrs: extra.xattrs,
            path,
        };
        if entry.path.is_empty() || entry.path.len() > MAX_NAME || entry.path.contains(&0) {
            return bad("an entry has no name, or one that no file can have");
        }
        if entry.link.len() > MAX_NAME || entry.link.contains(&0) {
            return bad("a link has a target that no file can have");
        }
        if extra.sparse_major.is_some_and(|major| major > 1) {
            return bad("a sparse file is of an unknown form");
        }
        let pax_map = extra.sparse_mapped || !extra.sparse_parts.is_empty();
        if extra.sparse_major == Some(1) && (pax_map || extra.sparse_early) {
            return bad("a sparse file is of two forms");
        }
        if entry.kind != Kind::File && (pax_map || extra.sparse_major == Some(1)) {
            return bad("an entry that is no file has a sparse map");
        }
        let said = pax_map || sparse_named || extra.sparse_size.is_some();
        let said = said || extra.sparse_early || extra.sparse_major.is_some();
        if block[156] == b'S' && !gnu {
            return bad("a sparse file of GNU's old form is not in GNU's format");
        }
        if block[156] == b'S' && said {
            return bad("a sparse file is of two forms");
        }
        let parts = if block[156] == b'S' {
            entry.size = number(&block[483..495])?;
            Some(self.old_sparse(block)?)
        } else if extra.sparse_major == Some(1) {
            self.left = entry.stored;
            self.padding = padding(entry.stored);
            let (parts, read) = self.sparse_map()?;
            entry.stored =
                entry.stored.checked_sub(read).map_or_else(|| bad("a sparse map is cut"), Ok)?;
            entry.size = extra.sparse_size.unwrap_or(entry.size);
            Some(parts)
        } else if pax_map {
            entry.size = extra.sparse_size.unwrap_or(entry.size);
            Some(pairs(&extra.sparse_parts)?)
        } else if said {
            return bad("what is said of a sparse file is said of a file that is none");
        } else {
            None
        };
        if let Some(parts) = parts {
            check_parts(&parts, &entry)?;
            entry.parts = Some(parts);
        }
        self.left = entry.stored;
        self.padding = padding(entry.stored);
        Ok(entry)
    }

    /// The map in a header of type `S`, and in the blocks behind it.
    fn old_sparse(&mut self, block: &[u8; BLOCK]) -> io::Result<Vec<(u64, u64)>> {
        let mut parts = Vec::new();
        let mut read = |fields: &[u8]| -> io::Result<()> {
            for field in fields.chunks_exact(24).filter(|field| field[0] != 0) {
                parts.push((number(&field[..12])?, number(&field[12..])?));
            }
            if parts.len() > MAX_PARTS { bad("a sparse file has too many parts") } else { Ok(()) }
        };
        read(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let from = self.raw.len();
            self.keep(BLOCK)?;
            let next: [u8; BLOCK] =
                self.raw[from..].try_into().map_err(|_| io::ErrorKind::InvalidData)?;
            read(&next[..504])?;
            more = next[504] != 0;
        }
        Ok(parts)
    }

    /// The map at the start of the data (format 1.0): lines of numbers, padded to a block.
    fn sparse_map(&mut self) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let mut text = Vec::new();
        let (mut at, mut numbers, mut wanted) = (0, Vec::new(), None);
        loop {
            if wanted == Some(numbers.len()) {
                return Ok((pairs(&numbers)?, text.len() as u64));
            }
            if text.len() > MAX_PARTS * 40 {
                return bad("a sparse map is too long");
            }
            if self.left < BLOCK as u64 {
                return bad("a sparse map is cut");
            }
            let from = self.raw.len();
            self.keep(BLOCK)?;
            self.left -= BLOCK as u64;
            text.extend_from_slice(&self.raw[from..]);
            while wanted != Some(numbers.len())
                && let Some(end) = text[at..].iter().position(|b| *b == b'\n')
            {
                let value = decimal(&text[at..at + end])?;
                at += end + 1;
                match wanted {
                    None if value > MAX_PARTS as u64 => {
                        return bad("a sparse file has too many parts");
                    }
                    None => wanted = Some(usize::try_from(value).unwrap_or(usize::MAX) * 2),
                    Some(_) => numbers.push(value),
                }
            }
        }
    }
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0)
}

/// Parts must be in order, apart, within the file, and hold what is stored.
fn check_parts(parts: &[(u64, u64)], entry: &Entry) -> io::Result<()> {
    let (mut end, mut held) = (0_u64, 0_u64);
    for (offset, length) in parts {
        if *offset < end {
            return bad("the parts of a sparse file overlap");
        }
        let next = offset.checked_add(*length).filter(|next| *next <= entry.size);
        let Some(next) = next else { return bad("a part of a sparse file is behind its end") };
        end = next;
        held += length;
    }
    if held != entry.stored {
        bad("a sparse file holds another length than its parts have")
    } else {
        Ok(())
    }
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<(u64, u64)>> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return bad("a sparse map has an odd number");
    };
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let mut reader = Reader::new(bytes.as_slice());
            while let Ok(Some(_)) = reader.next_entry() {}
            let _seen = pax(&bytes, &mut Extra::default()).is_ok();
        }
    }
}
