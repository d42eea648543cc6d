//! What waits for a disk: copy-ups of small files, which the kernel syncs one by one, and writes at random into a file of
//! the upper layer and into one that was a lower layer's.
//!
//! The question that the pairs answer: how often may a program sync before a file that is copied up as it is written costs
//! more than twice what a plain file does?

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use crate::row::{Ground, Row, Work, chmod, copy_up, per_second, places};

/// Of small files; then pairs: of the upper layer, was a lower layer's.
pub const ROWS: &[Row] = &[
    Row { unit: "files/s", ..row("copy-up, 4 KiB, on ext4", copy_up) },
    Row { unit: "files/s", needs: &["chmod"], ..row("chmod -R, on ext4", chmod) },
    row("write 4 KiB at random, O_DIRECT: upper", |work| direct(&work.big_upper()?, work)),
    row("write 4 KiB at random, O_DIRECT: was lower", |work| direct(&lower(work), work)),
    row("write 4 KiB at random, fsync each: upper", |work| synced(&work.big_upper()?, work, 1)),
    row("write 4 KiB at random, fsync each: was lower", |work| synced(&lower(work), work, 1)),
    row("write 4 KiB at random, fsync each 16: upper", |work| synced(&work.big_upper()?, work, 16)),
    row("write 4 KiB at random, fsync each 16: was lower", |work| synced(&lower(work), work, 16)),
    row("write 4 KiB at random, fsync each 256: upper", |work| {
        synced(&work.big_upper()?, work, 256)
    }),
    row("write 4 KiB at random, fsync each 256: was lower", |work| synced(&lower(work), work, 256)),
];

const fn row(name: &'static str, run: fn(&Work) -> anyhow::Result<f64>) -> Row {
    Row { name, unit: "writes/s", run, ground: Ground::Disk, needs: &[] }
}

fn lower(work: &Work) -> std::path::PathBuf {
    work.merged.join("big")
}

/// What O_DIRECT takes: as the blocks of any disk.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// The file, copied up (all of it, or as much as a union copies for its first byte), with nothing left to be written.
fn opened(path: &Path, work: &Work, flags: rustix::fs::OFlags) -> anyhow::Result<File> {
    OpenOptions::new().write(true).open(path)?.write_all_at(b"y", 0)?;
    // Not of the union, which FUSE does not ask to sync: of the disk, by the directory beside.
    rustix::fs::syncfs(File::open(work.merged.parent().unwrap_or(work.merged))?)?;
    let flags = i32::try_from(flags.bits())?;
    Ok(OpenOptions::new().write(true).custom_flags(flags).open(path)?)
}

fn direct(path: &Path, work: &Work) -> anyhow::Result<f64> {
    let file = opened(path, work, rustix::fs::OFlags::DIRECT)?;
    let block = Box::new(Block([b'y'; 4096]));
    let places = places(work);
    let places = &places[..places.len().min(work.scale.ops)];
    let begun = Instant::now();
    for place in places {
        file.write_all_at(&block.0, *place)?;
    }
    Ok(per_second(places.len(), begun))
}

/// With an fsync after each `every` writes. Of few writes where each waits.
fn synced(path: &Path, work: &Work, every: usize) -> anyhow::Result<f64> {
    let file = opened(path, work, rustix::fs::OFlags::empty())?;
    let places = places(work);
    let places = &places[..places.len().min(work.scale.ops / 10 * every)];
    let begun = Instant::now();
    for some in places.chunks(every) {
        for place in some {
            file.write_all_at(&[b'y'; 4096], *place)?;
        }
        file.sync_all()?;
    }
    Ok(per_second(places.len(), begun))
}
