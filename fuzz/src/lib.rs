//! What the targets share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const BLOCK: usize = 512;

/// The input as a tar whose headers have the checksums that they should have. Without it nearly
/// everything that a fuzzer makes ends at the first of them.
pub fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut tar = input.to_vec();
    let mut at = 0;
    while at + BLOCK <= tar.len() {
        let block = &mut tar[at..at + BLOCK];
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = std::str::from_utf8(&block[124..136]).unwrap_or("");
        let digits = digits.trim_matches(['\0', ' ']);
        let size = usize::from_str_radix(digits, 8).unwrap_or(0);
        if size < tar.len() - at {
            at += size.next_multiple_of(BLOCK);
        }
    }
    tar
}

/// A directory in memory, that every run of this process uses.
pub fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let base = Path::new("/dev/shm");
        let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
        tempfile::Builder::new()
            .prefix("strata-fuzz-")
            .tempdir_in(base)
            .expect("a directory")
            .keep()
    })
}

/// Everything beneath a directory: names, kinds, modes, lengths and times.
pub fn seen(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).expect("what is there");
        let time = (meta.mtime(), meta.mtime_nsec());
        let owner = (meta.uid(), meta.gid(), meta.nlink());
        lines.push(format!("{path:?} {:o} {} {owner:?} {time:?}", meta.mode(), meta.size()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).expect("a list").map(|e| e.expect("an entry").path()));
        }
    }
    lines.sort();
    lines
}
