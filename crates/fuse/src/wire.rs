//! What the kernel and a FUSE server say to one another: protocol 7.45, `include/uapi/linux/fuse.h`.
//!
//! The structs keep the kernel's names (without `fuse_`) and layout; tests below hold their sizes.
#![allow(missing_docs)] // The fields are the kernel's; its header documents them.

/// Protocol major that this crate speaks.
pub const MAJOR: u32 = 7;
/// Protocol minor that this crate speaks.
pub const MINOR: u32 = 45;
/// The oldest minor of a kernel that we serve (Linux 5.10): older layouts are not implemented.
pub const OLDEST_MINOR: u32 = 31;
/// Node id of the root.
pub const ROOT_ID: u64 = 1;

/// A struct of the protocol: plain integers, no padding that matters, any bytes are a value.
///
/// # Safety
/// Only for `repr(C)` structs made of integers and arrays of them, without implicit padding.
pub unsafe trait Plain: Copy {
    /// Copies the struct from the start of `bytes`; `None` when they are too few.
    fn take(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: enough bytes, any bit pattern is valid (trait contract), alignment is not assumed.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
    /// The bytes of the struct.
    fn bytes(&self) -> &[u8] {
        // SAFETY: `Plain` types have no padding, so that every byte is initialised.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast::<u8>(), size_of::<Self>()) }
    }
    /// The struct with every byte zero.
    fn zero() -> Self {
        // SAFETY: any bit pattern is valid (trait contract).
        unsafe { std::mem::zeroed() }
    }
}

macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident, $size:literal { $($field:ident : $ty:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name { $(pub $field: $ty),* }
            const _: () = assert!(size_of::<$name>() == $size);
            // No hidden padding: the fields fill the struct.
            const _: () = assert!(0 $(+ size_of::<$ty>())* == $size);
            // SAFETY: integers only, and the assertion above excludes padding.
            unsafe impl Plain for $name {}
        )*
    };
}

wire! {
    InHeader, 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    OutHeader, 16 { len: u32, error: i32, unique: u64 }
    Attr, 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32
    }
    EntryOut, 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr
    }
    AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    InitIn, 64 { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    InitOut, 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16, max_write: u32,
        time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11]
    }
    ForgetIn, 8 { nlookup: u64 }
    ForgetOne, 16 { nodeid: u64, nlookup: u64 }
    BatchForgetIn, 8 { count: u32, dummy: u32 }
    GetattrIn, 16 { flags: u32, dummy: u32, fh: u64 }
    SetattrIn, 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32
    }
    MknodIn, 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn, 8 { mode: u32, umask: u32 }
    RenameIn, 8 { newdir: u64 }
    Rename2In, 16 { newdir: u64, flags: u32, padding: u32 }
    LinkIn, 8 { oldnodeid: u64 }
    OpenIn, 8 { flags: u32, open_flags: u32 }
    CreateIn, 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut, 16 { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn, 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn, 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    ReadIn, 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn, 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut, 8 { size: u32, padding: u32 }
    Kstatfs, 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6]
    }
    FsyncIn, 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// As sent when `SETXATTR_EXT` was not negotiated.
    SetxattrIn, 8 { size: u32, flags: u32 }
    GetxattrIn, 8 { size: u32, padding: u32 }
    GetxattrOut, 8 { size: u32, padding: u32 }
    AccessIn, 8 { mask: u32, padding: u32 }
    InterruptIn, 8 { unique: u64 }
    IoctlIn, 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    IoctlOut, 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn, 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut, 8 { offset: u64 }
    CopyFileRangeIn, 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    CopyFileRangeOut, 8 { bytes_copied: u64 }
    SyncfsIn, 8 { padding: u64 }
    SxTime, 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    Statx, 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64, size: u64,
        blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime, rdev_major: u32,
        rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14]
    }
    StatxIn, 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    StatxOut, 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    Dirent, 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    ExtHeader, 8 { size: u32, kind: u32 }
    NotifyInvalInode, 24 { ino: u64, off: i64, len: i64 }
    NotifyInvalEntry, 16 { parent: u64, namelen: u32, flags: u32 }
    NotifyStore, 24 { nodeid: u64, offset: u64, size: u32, padding: u32 }
    /// In the 80 bytes of an SQE for the device.
    UringCmdReq, 24 { flags: u64, commit_id: u64, qid: u16, padding: [u8; 6] }
    UringEntInOut, 32 { flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64 }
    /// Shared with the kernel, an entry each.
    UringReqHeader, 288 { in_out: [u8; 128], op_in: [u8; 128], ring_ent_in_out: UringEntInOut }
    BackingMap, 16 { fd: i32, flags: u32, padding: u64 }
}

macro_rules! opcodes {
    ($($name:ident = $value:literal),* $(,)?) => {
        $(pub const $name: u32 = $value;)*
        /// The name of an operation, for logs.
        #[must_use]
        pub fn opcode_name(opcode: u32) -> &'static str {
            match opcode { $($value => stringify!($name),)* _ => "UNKNOWN" }
        }
    };
}

opcodes! {
    LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10, RMDIR = 11,
    RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20, SETXATTR = 21,
    GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27, READDIR = 28, RELEASEDIR = 29,
    FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, ACCESS = 34, CREATE = 35, INTERRUPT = 36, BMAP = 37, DESTROY = 38,
    IOCTL = 39, POLL = 40, NOTIFY_REPLY = 41, BATCH_FORGET = 42, FALLOCATE = 43, READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46,
    COPY_FILE_RANGE = 47, SETUPMAPPING = 48, REMOVEMAPPING = 49, SYNCFS = 50, TMPFILE = 51, STATX = 52, COPY_FILE_RANGE_64 = 53,
}

/// Flags of INIT; those from bit 32 on travel in `flags2`.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Bits of `SetattrIn::valid`.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Bits of `OpenOut::open_flags`.
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// `WriteIn::write_flags`: suid, sgid and capabilities are to be removed.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `OpenIn::open_flags`: suid and sgid are to be removed (with `O_TRUNC`).
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `GetattrIn::flags`: `fh` is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `FsyncIn::fsync_flags`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `IoctlIn::flags`: the ioctl is on a directory.
pub const IOCTL_DIR: u32 = 1 << 4;
/// `ExtHeader::kind`: supplementary groups.
pub const EXT_GROUPS: u32 = 32;

pub const NOTIFY_INVAL_INODE: i32 = 2;
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
pub const NOTIFY_STORE: i32 = 4;

/// Offers buffers to the kernel, and waits for a request in them.
pub const URING_CMD_REGISTER: u32 = 1;
/// Answers the request in an entry, and waits for the next.
pub const URING_CMD_COMMIT_AND_FETCH: u32 = 2;

/// `_IOR(229, 0, u32)`.
pub const DEV_IOC_CLONE: u64 = 0x8004_e500;
/// `_IOW(229, 1, fuse_backing_map)`.
pub const DEV_IOC_BACKING_OPEN: u64 = 0x4010_e501;
/// `_IOW(229, 2, u32)`.
pub const DEV_IOC_BACKING_CLOSE: u64 = 0x4004_e502;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_the_kernels() {
        assert_eq!(std::mem::offset_of!(InitOut, time_gran), 24);
        assert_eq!(std::mem::offset_of!(InitOut, flags2), 32);
        assert_eq!(std::mem::offset_of!(InitOut, max_stack_depth), 36);
        assert_eq!(std::mem::offset_of!(EntryOut, attr), 40);
        assert_eq!(std::mem::offset_of!(SetattrIn, mode), 68);
        assert_eq!(std::mem::offset_of!(SetattrIn, uid), 76);
        assert_eq!(std::mem::offset_of!(Statx, ino), 32);
        assert_eq!(std::mem::offset_of!(Statx, rdev_major), 128);
        assert_eq!(std::mem::offset_of!(StatxOut, stat), 32);
        assert_eq!(std::mem::offset_of!(ReadIn, flags), 32);
    }

    #[test]
    fn short_input_is_no_struct() {
        assert!(InHeader::take(&[0; 39]).is_none());
        assert!(InHeader::take(&[0; 40]).is_some());
        assert_eq!(opcode_name(LOOKUP), "LOOKUP");
        assert_eq!(opcode_name(9999), "UNKNOWN");
    }
}
