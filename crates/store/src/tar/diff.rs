//! Makes a layer's tar of an upper layer: what it adds and changes, and whiteouts for what it hides.
//!
//! Source: OCI image specification, "Representing Changes".

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use layer::{Namespace, WANTED, mark};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Statx, lgetxattr, llistxattr, readlinkat, statx};
use rustix::io::Errno;

use crate::tar::read::BLOCK;

/// Writes the changes of the upper layer behind `upper` to `to`, in the order of names, and gives
/// the bytes written.
///
/// # Errors
/// Of the tree or the writer. Directories that were renamed (redirects) are refused with
/// `Unsupported`: their content is in another layer, so the merged tree has to be read instead.
pub fn write(upper: OwnedFd, namespace: Namespace, to: &mut dyn Write) -> io::Result<u64> {
    let mut writer = Writer { to, namespace, links: HashMap::new(), written: 0 };
    writer.dir(&upper, Path::new(""))?;
    // Two blocks of zeros end an archive.
    writer.out(&[0; 2 * BLOCK])?;
    Ok(writer.written)
}

/// Writes what stands at `name` in `dir` to `to`, with all that is below it, under the name `shown`; without one what is in
/// a directory. The bytes written.
///
/// # Errors
/// Of the tree or the writer.
pub fn write_below(
    dir: &OwnedFd,
    name: &OsStr,
    shown: Option<&OsStr>,
    namespace: Namespace,
    to: &mut dyn Write,
) -> io::Result<u64> {
    let mut writer = Writer { to, namespace, links: HashMap::new(), written: 0 };
    match shown {
        Some(shown) => writer.entry(dir, Path::new(shown), name, false)?,
        None => {
            let inner =
                sys::beneath::open(dir, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|e| io::Error::from(e.source))?;
            writer.dir(&inner, Path::new(""))?;
        }
    }
    writer.out(&[0; 2 * BLOCK])?;
    Ok(writer.written)
}

struct Writer<'w> {
    to: &'w mut dyn Write,
    namespace: Namespace,
    /// The first name of each inode that has several.
    links: HashMap<u64, PathBuf>,
    written: u64,
}

impl Writer<'_> {
    fn out(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn dir(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        let opaque = mark::opaque(dir, self.namespace)?;
        if !path.as_os_str().is_empty() && opaque == mark::Opaque::Yes {
            self.plain(&path.join(mark::AUFS_OPAQUE))?;
        }
        if mark::redirect(dir, self.namespace)?.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{path:?} was renamed: what it shows is in another layer"),
            ));
        }
        for name in names {
            self.entry(dir, &path.join(&name), &name, opaque == mark::Opaque::Whiteouts)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        path: &Path,
        name: &OsStr,
        whiteouts: bool,
    ) -> io::Result<()> {
        let stat = statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let attribute = whiteouts && kind == FileType::RegularFile && stat.stx_size == 0 && {
            let file = sys::beneath::open(dir, Path::new(name), OFlags::RDONLY | OFlags::NOFOLLOW)
                .map_err(|e| io::Error::from(e.source))?;
            mark::is_whiteout(&file, self.namespace)?
        };
        if attribute || (kind == FileType::CharacterDevice && device == (0, 0)) {
            let parent = path.parent().unwrap_or(Path::new(""));
            return self.plain(&parent.join(mark::aufs_whiteout(name)));
        }
        if kind == FileType::Socket {
            // A socket is of a running program; no archive has them.
            return Ok(());
        }
        if kind != FileType::Directory && stat.stx_nlink > 1 {
            if let Some(first) = self.links.get(&stat.stx_ino).cloned() {
                return self.header(path, &stat, b'1', first.as_os_str().as_bytes(), 0, &[]);
            }
            self.links.insert(stat.stx_ino, path.to_owned());
        }
        let xattrs = self.xattrs(dir, name)?;
        match kind {
            FileType::RegularFile => {
                self.header(path, &stat, b'0', b"", stat.stx_size, &xattrs)?;
                self.data(dir, path, name, stat.stx_size)
            }
            FileType::Directory => {
                let mut slashed = path.as_os_str().to_owned();
                slashed.push("/");
                self.header(Path::new(&slashed), &stat, b'5', b"", 0, &xattrs)?;
                let inner =
                    sys::beneath::open(dir, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
                        .map_err(|e| io::Error::from(e.source))?;
                self.dir(&inner, path)
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                self.header(path, &stat, b'2', target.as_bytes(), 0, &xattrs)
            }
            FileType::CharacterDevice => self.header(path, &stat, b'3', b"", 0, &xattrs),
            FileType::BlockDevice => self.header(path, &stat, b'4', b"", 0, &xattrs),
            _ => self.header(path, &stat, b'6', b"", 0, &xattrs),
        }
    }

    fn data(&mut self, dir: &OwnedFd, path: &Path, name: &OsStr, size: u64) -> io::Result<()> {
        let file = sys::beneath::open(dir, Path::new(name), OFlags::RDONLY | OFlags::NOFOLLOW)
            .map_err(|e| io::Error::from(e.source))?;
        let mut block = vec![0; 256 << 10];
        let mut at = 0;
        while at < size {
            let want = usize::try_from(size - at).unwrap_or(usize::MAX).min(block.len());
            let got = rustix::io::pread(&file, &mut block[..want], at)?;
            if got == 0 {
                return Err(io::Error::other(format!("{path:?} became shorter while it was read")));
            }
            self.out(&block[..got])?;
            at += got as u64;
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.out(&[0; BLOCK][..padding])
    }

    fn xattrs(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        let mut list = vec![0; 64 << 10];
        let len = match llistxattr(&path, &mut list) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(e.into()),
        };
        let prefix = self.namespace.attribute("");
        let mut found = Vec::new();
        for attribute in list[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let label = attribute == b"security.selinux";
            if label
                || attribute.starts_with(prefix.as_bytes())
                || attribute.starts_with(b"trusted.overlay.")
            {
                continue;
            }
            let mut value = vec![0; 64 << 10];
            let len = lgetxattr(&path, attribute, &mut value)?;
            value.truncate(len);
            found.push((attribute.to_vec(), value));
        }
        found.sort();
        Ok(found)
    }

    /// An empty file that stands for a mark.
    fn plain(&mut self, path: &Path) -> io::Result<()> {
        let mut block = Header::new();
        let mut pax = Vec::new();
        block.name(path.as_os_str().as_bytes(), &mut pax);
        block.number(100..108, 0);
        block.0[156] = b'0';
        self.with_pax(&pax, block)
    }

    fn header(
        &mut self,
        path: &Path,
        stat: &Statx,
        kind: u8,
        link: &[u8],
        size: u64,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        let mut block = Header::new();
        let mut pax = Vec::new();
        block.name(path.as_os_str().as_bytes(), &mut pax);
        block.number(100..108, u64::from(stat.stx_mode & 0o7777));
        for (range, key, value) in
            [(108..116, "uid", stat.stx_uid), (116..124, "gid", stat.stx_gid)]
        {
            if value > 0o7_777_777 {
                record(&mut pax, key, value.to_string().as_bytes());
            } else {
                block.number(range, value.into());
            }
        }
        if size > 0o77_777_777_777 {
            record(&mut pax, "size", size.to_string().as_bytes());
        } else {
            block.number(124..136, size);
        }
        let (sec, nsec) = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
        match u64::try_from(sec) {
            Ok(sec) if nsec == 0 && sec <= 0o77_777_777_777 => block.number(136..148, sec),
            _ => record(&mut pax, "mtime", time(sec, nsec).as_bytes()),
        }
        block.0[156] = kind;
        if link.len() <= 100 {
            block.0[157..157 + link.len()].copy_from_slice(link);
        } else {
            record(&mut pax, "linkpath", link);
        }
        if matches!(kind, b'3' | b'4') {
            block.number(329..337, stat.stx_rdev_major.into());
            block.number(337..345, stat.stx_rdev_minor.into());
        }
        for (name, value) in xattrs {
            let key = [b"SCHILY.xattr.", name.as_slice()].concat();
            record_bytes(&mut pax, &key, value);
        }
        self.with_pax(&pax, block)
    }

    fn with_pax(&mut self, pax: &[u8], mut block: Header) -> io::Result<()> {
        if !pax.is_empty() {
            let mut extended = Header::new();
            extended.0[..7].copy_from_slice(b"PaxHdr/");
            extended.number(100..108, 0o644);
            extended.number(124..136, pax.len() as u64);
            extended.0[156] = b'x';
            self.out(extended.sealed())?;
            self.out(pax)?;
            let padding = pax.len().next_multiple_of(BLOCK) - pax.len();
            self.out(&[0; BLOCK][..padding])?;
        }
        self.out(block.sealed())
    }
}

/// The header of a plain file with a short name, of nobody and no time: for archives of images.
pub(crate) fn plain_header(name: &str, size: u64) -> Vec<u8> {
    let mut block = Header::new();
    let mut pax = Vec::new();
    block.name(name.as_bytes(), &mut pax);
    block.number(100..108, 0o644);
    if size <= 0o77_777_777_777 {
        block.number(124..136, size);
    } else {
        // Base 256, which everybody reads, rather than a header of its own.
        block.0[124..136].fill(0);
        block.0[124] = 0x80;
        block.0[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block.0[156] = b'0';
    block.sealed().to_vec()
}

struct Header([u8; BLOCK]);

impl Header {
    fn new() -> Self {
        let mut block = [0; BLOCK];
        block[257..265].copy_from_slice(b"ustar\x0000");
        for range in [108..116, 116..124, 124..136, 136..148] {
            let last = range.end - 1;
            block[range.start..last].fill(b'0');
        }
        Self(block)
    }

    fn name(&mut self, name: &[u8], pax: &mut Vec<u8>) {
        let short = name.len().min(100);
        self.0[..short].copy_from_slice(&name[..short]);
        if name.len() > 100 || !name.is_ascii() {
            record(pax, "path", name);
        }
    }

    fn number(&mut self, range: std::ops::Range<usize>, value: u64) {
        let digits = range.len() - 1;
        self.0[range.start..range.start + digits]
            .copy_from_slice(format!("{value:0digits$o}").as_bytes());
    }

    fn sealed(&mut self) -> &[u8] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        &self.0
    }
}

fn record(pax: &mut Vec<u8>, key: &str, value: &[u8]) {
    record_bytes(pax, key.as_bytes(), value);
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record_bytes(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// Decimal seconds; a fraction of a time before 1970 counts backwards, as PAX has it.
fn time(sec: i64, nsec: u32) -> String {
    let text = match (sec < 0, nsec) {
        (_, 0) => sec.to_string(),
        (false, nsec) => format!("{sec}.{nsec:09}"),
        (true, nsec) => format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec),
    };
    text.strip_suffix(".").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..1100 {
            let mut pax = Vec::new();
            record(&mut pax, "key", &vec![b'v'; length]);
            let digits = pax.iter().position(|b| *b == b' ').expect("a space");
            let stated: usize =
                std::str::from_utf8(&pax[..digits]).expect("digits").parse().expect("a number");
            assert_eq!(stated, pax.len(), "{length}");
        }
    }

    #[test]
    fn times_before_1970_are_written_as_pax_has_them() {
        for (sec, nsec, text) in [
            (1, 0, "1"),
            (1, 5, "1.000000005"),
            (-86400, 0, "-86400"),
            (-2, 750_000_000, "-1.250000000"),
        ] {
            assert_eq!(time(sec, nsec), text);
        }
    }
}
