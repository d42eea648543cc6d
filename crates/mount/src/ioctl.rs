//! The ioctls that lsattr(1), chattr(1) and xfs_io(8) use.

use fuse::{Errno, Result};
use rustix::io::Errno as E;
use union::{NodeId, Union};

/// `_IOR('f', 1, long)`; the value is an int.
const GETFLAGS: u32 = 0x8008_6601;
/// `_IOW('f', 2, long)`.
const SETFLAGS: u32 = 0x4008_6602;
/// `_IOR('X', 31, struct fsxattr)`.
const FSGETXATTR: u32 = 0x801c_581f;

/// `_IO('S', 1)`, ours: completes a partial file, or every one where it is asked of a directory.
pub const MATERIALIZE: u32 = 0x5301;

/// `struct fsxattr`: flags, extent size, extents, project, CoW extent size, padding.
const FSXATTR: usize = 28;

/// Flags of `FS_IOC_GETFLAGS` and what they are in `struct fsxattr`.
const FLAGS: [(u32, u32); 5] = [
    (0x08, 0x20), // sync
    (0x10, 0x08), // immutable
    (0x20, 0x10), // append only
    (0x40, 0x80), // no dump
    (0x80, 0x40), // no atime
];

/// Answers one; the count of bytes put into `out`.
pub(crate) fn answer(
    union: &Union,
    node: NodeId,
    read_only: bool,
    command: u32,
    data: &[u8],
    out: &mut [u8],
) -> Result<usize> {
    let refused = |error: union::Error| Errno(error.errno().raw_os_error());
    match command {
        GETFLAGS => put(&union.flags(node).map_err(refused)?.to_ne_bytes(), out),
        SETFLAGS => {
            if read_only {
                return Err(Errno(E::ROFS.raw_os_error()));
            }
            let flags = data.first_chunk::<4>().ok_or(Errno(E::INVAL.raw_os_error()))?;
            union.set_flags(node, u32::from_ne_bytes(*flags)).map_err(refused)?;
            Ok(0)
        }
        MATERIALIZE => {
            let is_dir = union.getattr(node).map_err(refused)?.mode & 0o170_000 == 0o040_000;
            let done = if is_dir { union.complete() } else { union.complete_file(node) };
            done.map_err(refused)?;
            Ok(0)
        }
        FSGETXATTR => {
            let flags = union.flags(node).map_err(refused)?;
            let flags =
                FLAGS.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, x)| x).sum::<u32>();
            let mut attributes = [0; FSXATTR];
            attributes[..4].copy_from_slice(&flags.to_ne_bytes());
            put(&attributes, out)
        }
        _ => Err(Errno(E::NOTTY.raw_os_error())),
    }
}

fn put(value: &[u8], out: &mut [u8]) -> Result<usize> {
    let place = out.get_mut(..value.len()).ok_or(Errno(E::INVAL.raw_os_error()))?;
    place.copy_from_slice(value);
    Ok(value.len())
}
