//! `mount -o remount`: the flags of a mount that serves, changed in the kernel. Its layers stay what they are.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountFlags;

use crate::options::split;

/// `FUSE_SUPER_MAGIC` of linux/magic.h.
const FUSE: u64 = 0x6573_5546;

/// Flags as statvfs(3) shows them, as mount(2) takes them, and the words that set and clear them.
const FLAGS: &[(StatVfsMountFlags, MountFlags, &str, &str)] = &[
    (StatVfsMountFlags::RDONLY, MountFlags::RDONLY, "ro", "rw"),
    (StatVfsMountFlags::NOSUID, MountFlags::NOSUID, "nosuid", "suid"),
    (StatVfsMountFlags::NODEV, MountFlags::NODEV, "nodev", "dev"),
    (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC, "noexec", "exec"),
    (StatVfsMountFlags::NOATIME, MountFlags::NOATIME, "noatime", "atime"),
];

/// What a mount is to become.
#[derive(Debug, PartialEq, Eq)]
pub struct Remount {
    set: MountFlags,
    clear: MountFlags,
}

impl Remount {
    /// The change that option strings ask for; `None` where `remount` is not among them. Of one flag the later word
    /// wins. Everything else is left out, for mount(8) hands over all options that the mount has already.
    pub fn asked<S: AsRef<OsStr>>(strings: &[S]) -> Option<Self> {
        let words = strings.iter().flat_map(|string| split(string.as_ref().as_bytes(), b','));
        let mut change = Self { set: MountFlags::empty(), clear: MountFlags::empty() };
        let mut asked = false;
        for word in words {
            asked |= word == b"remount";
            for (_, flag, set, clear) in FLAGS {
                if word == set.as_bytes() || word == clear.as_bytes() {
                    let on = word == set.as_bytes();
                    change.set.set(*flag, on);
                    change.clear.set(*flag, !on);
                }
            }
        }
        asked.then_some(change)
    }

    /// Changes the mount at `place`; flags that were not asked for stay.
    ///
    /// # Errors
    /// No FUSE mount is there; `EBUSY` where it is to become read-only and a file is open for writing; what else mount(2)
    /// says.
    pub fn apply(&self, place: &Path) -> io::Result<()> {
        let fail = |e: rustix::io::Errno| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("cannot remount {}: {e}", place.display()))
        };
        if rustix::fs::statfs(place).map_err(fail)?.f_type as u64 != FUSE {
            return Err(io::Error::other(format!("{} is no mount of Strata's", place.display())));
        }
        let now = rustix::fs::statvfs(place).map_err(fail)?.f_flag;
        let now =
            FLAGS.iter().filter(|(shown, ..)| now.contains(*shown)).map(|(_, flag, ..)| *flag);
        let flags = (now.collect::<MountFlags>() - self.clear) | self.set;
        rustix::mount::mount_remount(place, flags, "").map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_word_wins() {
        let change = Remount::asked(&["rw,remount,nosuid", "ro,user_id=0,dev"]).unwrap();
        assert_eq!(change.set, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(change.clear, MountFlags::NODEV);
        assert_eq!(Remount::asked(&["ro", "lowerdir=remount"]), None);
    }
}
