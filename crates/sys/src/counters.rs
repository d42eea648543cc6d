//! Counters that another process can read while they change, and that outlive this one: words of a file that is mapped.
//!
//! Source: mmap(2), `MAP_SHARED`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a counter.
const WORD: usize = size_of::<u64>();

/// Counters in a file, in this machine's byte order.
#[derive(Debug)]
pub struct Counters {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is reached through shared references to atomics alone, and is there until the drop.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Opens `count` counters in the file `path`, which is made where it is not there and keeps what is in it. The file
    /// must stay as long as it is, which is why only who has it open as owner may write to it.
    ///
    /// # Errors
    /// Of the file and of mmap(2).
    pub fn open(path: &Path, count: usize) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let length = (count * WORD) as u64;
        if file.metadata()?.len() < length {
            file.set_len(length)?;
        }
        let (rights, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping of the kernel's choice; nothing else is in its place.
        let start = unsafe { mmap(std::ptr::null_mut(), count * WORD, rights, shared, &file, 0) }?;
        let words = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, count })
    }

    /// One of them.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn get(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "counter {index} of {}", self.count);
        // SAFETY: inside of the mapping, which begins at a page and so is aligned, and lives as long as `self`; every bit
        // pattern is a number.
        unsafe { self.words.add(index).as_ref() }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: what was mapped, once; all references to it have ended with `self`.
        let done = unsafe { munmap(self.words.as_ptr().cast(), self.count * WORD) };
        debug_assert!(done.is_ok(), "munmap of what was mapped");
    }
}

/// Reads counters that another process may be changing; none where the file is not there or has fewer.
///
/// # Errors
/// Of the file.
pub fn read<const COUNT: usize>(path: &Path) -> io::Result<Option<[u64; COUNT]>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::with_capacity(COUNT * WORD);
    file.take((COUNT * WORD) as u64).read_to_end(&mut bytes)?;
    let (words, _) = bytes.as_chunks::<WORD>();
    let mut values = [0; COUNT];
    if words.len() < COUNT {
        return Ok(None);
    }
    for (value, word) in values.iter_mut().zip(words) {
        *value = u64::from_ne_bytes(*word);
    }
    Ok(Some(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn what_one_counts_another_reads_and_the_next_goes_on_from() {
        let temp = tempfile::tempdir().expect("a directory");
        let path = temp.path().join("counters");
        assert_eq!(read::<2>(&path).expect("nothing"), None);
        let counters = Counters::open(&path, 2).expect("counters");
        counters.get(1).fetch_add(7, Relaxed);
        assert_eq!(read(&path).expect("two"), Some([0, 7]));
        assert_eq!(read::<3>(&path).expect("no three"), None);
        drop(counters);
        let again = Counters::open(&path, 3).expect("more counters");
        assert_eq!(again.get(1).fetch_add(1, Relaxed), 7);
        assert_eq!(read(&path).expect("three"), Some([0, 8, 0]));
    }
}
