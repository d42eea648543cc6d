//! What the kernel tells of file systems that are mounted.
//!
//! Source: proc_pid_mountinfo(5); kernel `Documentation/ABI/testing/sysfs-fs-ext4`.

use std::path::{Path, PathBuf};

/// What statfs(2) says of an ext4, as of ext2 and ext3.
pub const EXT4: i64 = 0xef53;

/// What statfs(2) says of an XFS.
pub const XFS: i64 = 0x5846_5342;

/// The options of the file system with this device number, as comma-separated text; none where no mount of it is seen.
pub fn options(device: u64) -> Option<String> {
    field(device, 2)
}

/// What the file system with this device number was mounted from; none where no mount of it is seen.
pub fn source(device: u64) -> Option<PathBuf> {
    field(device, 1).map(PathBuf::from)
}

/// After the optional fields: type, source, options of the file system.
fn field(device: u64, index: usize) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    field_in(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, major, minor, index)
}

fn field_in(mounts: &str, major: u32, minor: u32, index: usize) -> Option<String> {
    let device = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&*device))?;
    line.split_once(" - ")?.1.split(' ').nth(index).map(str::to_owned)
}

/// Whether the ext4 on this device has a journal; false where that can't be seen.
pub fn ext4_journal(major: u32, minor: u32) -> bool {
    let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = device.ok().and_then(|path| Some(path.file_name()?.to_owned()));
    let task = name.and_then(|name| {
        std::fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("journal_task")).ok()
    });
    task.is_some_and(|task| task.trim().parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_those_of_the_file_system() {
        let mounts = "25 1 7:1 / / rw shared:1 - ext4 /dev/loop1 rw,data=writeback\n\
            26 25 7:11 /a\\040b /m ro - xfs /dev/loop11 rw,inode64\n";
        assert_eq!(field_in(mounts, 7, 1, 2).as_deref(), Some("rw,data=writeback"));
        assert_eq!(field_in(mounts, 7, 11, 2).as_deref(), Some("rw,inode64"));
        assert_eq!(field_in(mounts, 7, 11, 1).as_deref(), Some("/dev/loop11"));
        assert_eq!(field_in(mounts, 7, 2, 2), None);
    }
}
