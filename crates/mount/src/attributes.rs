//! The union's attributes in the kernel's words.

use fuse::wire::{
    Attr, AttrOut, EntryOut, Kstatfs, Plain, SetattrIn, Statx, StatxOut, SxTime, fattr,
};
use rustix::fs::StatVfs;
use union::{NewTime, SetAttr, Time};

/// `STATX_BASIC_STATS` and `STATX_BTIME`: what a [`Statx`] of ours holds.
const STATX_MASK: u32 = 0x0fff;

/// For how long the kernel may keep something: seconds and nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Valid {
    names: (u64, u32),
    attributes: (u64, u32),
}

impl Valid {
    /// The layers are ours, so only the kernel itself changes anything.
    const LONG: (u64, u32) = (86_400, 0);

    pub fn new(seconds: Option<f64>) -> Self {
        let time = |seconds: f64| (seconds as u64, (seconds.fract() * 1e9) as u32);
        let time = seconds.map_or(Self::LONG, time);
        Self { names: time, attributes: time }
    }

    /// The same, and attributes are asked for each time.
    pub fn with_fleeting_attributes(self) -> Self {
        Self { attributes: (0, 0), ..self }
    }

    pub fn entry(self, entry: &union::Entry) -> EntryOut {
        EntryOut {
            nodeid: entry.node.0,
            generation: 0,
            entry_valid: self.names.0,
            attr_valid: self.attributes.0,
            entry_valid_nsec: self.names.1,
            attr_valid_nsec: self.attributes.1,
            attr: wire(&entry.attr),
        }
    }

    /// That there is no such name.
    pub fn absent(self) -> EntryOut {
        EntryOut { entry_valid: self.names.0, entry_valid_nsec: self.names.1, ..EntryOut::zero() }
    }

    pub fn attr(self, attr: &union::Attr) -> AttrOut {
        let (attr_valid, attr_valid_nsec) = self.attributes;
        AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: wire(attr) }
    }

    pub fn statx(self, attr: &union::Attr) -> StatxOut {
        let time = |time: Time| SxTime { tv_sec: time.sec, tv_nsec: time.nsec, reserved: 0 };
        let stat = Statx {
            mask: STATX_MASK,
            blksize: attr.blksize,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode as u16,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime),
            btime: time(attr.btime),
            ctime: time(attr.ctime),
            mtime: time(attr.mtime),
            rdev_major: attr.rdev.0,
            rdev_minor: attr.rdev.1,
            ..Statx::zero()
        };
        let (attr_valid, attr_valid_nsec) = self.attributes;
        StatxOut { attr_valid, attr_valid_nsec, flags: 0, spare: [0; 2], stat }
    }
}

fn wire(attr: &union::Attr) -> Attr {
    Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        // Seconds are signed values in unsigned fields.
        atime: attr.atime.sec as u64,
        mtime: attr.mtime.sec as u64,
        ctime: attr.ctime.sec as u64,
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: wire_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// A device number as the kernel packs it into 32 bits.
fn wire_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of [`wire_device`].
pub(crate) fn device(wire: u32) -> (u32, u32) {
    ((wire >> 8) & 0xfff, (wire & 0xff) | ((wire >> 12) & 0xfff00))
}

/// What SETATTR asks for.
pub(crate) fn changes(input: &SetattrIn) -> SetAttr {
    let set = |bit: u32| input.valid & bit != 0;
    let time = |bit, now, seconds: u64, nsec| match (set(bit), set(now)) {
        (_, true) => Some(NewTime::Now),
        (true, false) => Some(NewTime::At(Time { sec: seconds as i64, nsec })),
        (false, false) => None,
    };
    SetAttr {
        mode: set(fattr::MODE).then_some(input.mode & 0o7777),
        uid: set(fattr::UID).then_some(input.uid),
        gid: set(fattr::GID).then_some(input.gid),
        size: set(fattr::SIZE).then_some(input.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, input.atime, input.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, input.mtime, input.mtimensec),
        kill_suidgid: set(fattr::KILL_SUIDGID),
    }
}

pub(crate) fn space(space: &StatVfs) -> Kstatfs {
    Kstatfs {
        blocks: space.f_blocks,
        bfree: space.f_bfree,
        bavail: space.f_bavail,
        files: space.f_files,
        ffree: space.f_ffree,
        bsize: space.f_bsize as u32,
        namelen: 255,
        frsize: space.f_frsize as u32,
        ..Kstatfs::zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_the_wire() {
        for (major, minor) in [(1, 3), (8, 17), (4095, 0xfffff), (0, 0), (259, 300)] {
            assert_eq!(device(wire_device((major, minor))), (major, minor));
        }
    }

    #[test]
    fn fractions_of_a_second_count() {
        let valid = Valid::new(Some(1.5));
        assert_eq!((valid.names, valid.attributes), ((1, 500_000_000), (1, 500_000_000)));
    }
}
