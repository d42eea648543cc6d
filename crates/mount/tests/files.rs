//! One system call after the other, on files of either layer.

mod scene;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom,
    StatxFlags, XattrFlags,
};
use rustix::io::Errno;
use scene::Scene;

fn lower(dir: &Path) {
    fs::write(dir.join("file"), "text").unwrap();
    fs::write(dir.join("other"), "other").unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/inner"), "inner").unwrap();
}

#[test]
fn hard_links_stay_one_file() {
    let Some(scene) = Scene::new(|dir| {
        lower(dir);
        fs::hard_link(dir.join("file"), dir.join("twin")).unwrap();
    }) else {
        return;
    };
    let stat = |name: &str| fs::metadata(scene.path(name)).unwrap();
    assert_eq!((stat("file").ino(), stat("file").nlink()), (stat("twin").ino(), 2));
    fs::write(scene.path("file"), "changed").unwrap();
    fs::hard_link(scene.path("other"), scene.path("third")).unwrap();
    fs::write(scene.path("third"), "both").unwrap();
    assert_eq!(fs::read_to_string(scene.path("other")).unwrap(), "both");
    assert_eq!((stat("other").ino(), stat("other").nlink()), (stat("third").ino(), 2));
    fs::remove_file(scene.path("other")).unwrap();
    assert_eq!(stat("third").nlink(), 1);
}

#[test]
fn renames_have_their_flags() {
    let Some(mut scene) = Scene::new(lower) else { return };
    let rename = |scene: &Scene, from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, scene.path(from), CWD, scene.path(to), flags)
    };
    let noreplace = RenameFlags::NOREPLACE;
    assert_eq!(rename(&scene, "file", "other", noreplace), Err(Errno::EXIST));
    rename(&scene, "file", "new", noreplace).unwrap();
    fs::remove_file(scene.path("other")).unwrap();
    rename(&scene, "new", "other", noreplace).unwrap();
    assert_eq!(fs::read_to_string(scene.path("other")).unwrap(), "text");
    rename(&scene, "other", "dir", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(scene.path("dir")).unwrap(), "text");
    assert_eq!(fs::read_to_string(scene.path("other/inner")).unwrap(), "inner");
    rename(&scene, "other", "moved", RenameFlags::empty()).unwrap();
    let into_itself = rename(&scene, "moved", "moved/below", RenameFlags::empty());
    assert_eq!(into_itself, Err(Errno::INVAL));
    scene.remount();
    assert_eq!(fs::read_to_string(scene.path("moved/inner")).unwrap(), "inner");
    assert!(!scene.path("other").exists() && scene.path("dir").is_file());
}

#[test]
fn a_file_without_a_name_gets_one() {
    let Some(scene) = Scene::new(lower) else { return };
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = rustix::fs::open(scene.path("dir"), flags, Mode::from_raw_mode(0o640)).unwrap();
    rustix::io::write(&file, b"quiet").unwrap();
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let follow = AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(CWD, &link, CWD, scene.path("dir/named"), follow).unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(scene.path("dir/named")).unwrap(), "quiet");
}

#[test]
fn special_files_are_made() {
    let Some(scene) = Scene::new(lower) else { return };
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, scene.path(name), kind, Mode::from_raw_mode(0o600), device)
    };
    make("pipe", FileType::Fifo, 0).unwrap();
    make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)).unwrap();
    make("disk", FileType::BlockDevice, rustix::fs::makedev(259, 300)).unwrap();
    make("plain", FileType::RegularFile, 0).unwrap();
    assert_eq!(make("whiteout", FileType::CharacterDevice, 0), Err(Errno::PERM));
    let rdev = fs::metadata(scene.path("disk")).unwrap().rdev();
    assert_eq!(rdev, rustix::fs::makedev(259, 300));
    fs::write(scene.path("null"), "gone").unwrap();
    std::os::unix::net::UnixListener::bind(scene.path("socket")).unwrap();
    assert_eq!(fs::symlink_metadata(scene.path("socket")).unwrap().mode() >> 12, 0o14);
}

#[test]
fn attributes_are_set_and_survive_the_copy_up() {
    let Some(scene) = Scene::new(|dir| {
        lower(dir);
        rustix::fs::setxattr(dir.join("file"), "user.old", b"1", XattrFlags::empty()).unwrap();
    }) else {
        return;
    };
    let path = scene.path("file");
    let get = |name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(&path, name, &mut value).map(|len| value[..len].to_vec())
    };
    rustix::fs::setxattr(&path, "user.new", b"2", XattrFlags::CREATE).unwrap();
    let again = rustix::fs::setxattr(&path, "user.new", b"3", XattrFlags::CREATE);
    assert_eq!(again, Err(Errno::EXIST));
    assert_eq!((get("user.old"), get("user.new")), (Ok(b"1".to_vec()), Ok(b"2".to_vec())));
    let mut names = vec![0; 1024];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    assert!(names.contains("user.old\0") && names.contains("user.new\0"));
    assert!(!names.contains("overlay"), "{names:?}");
    rustix::fs::removexattr(&path, "user.old").unwrap();
    assert_eq!(get("user.old"), Err(Errno::NODATA));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12, 34, 0o755));
    assert_eq!(get("user.new"), Ok(b"2".to_vec()));
}

/// ACLs in the kernel's form: version 2, entries of tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_are_kept_and_inherited() {
    const NONE: u32 = u32::MAX;
    let Some(scene) = Scene::new(lower) else { return };
    let default =
        acl(&[(1, 7, NONE), (2, 6, 1234), (4, 5, NONE), (0x10, 7, NONE), (0x20, 0, NONE)]);
    let name = "system.posix_acl_default";
    match rustix::fs::setxattr(scene.path("dir"), name, &default, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => {
            println!("SKIPPED: no ACLs on the backing file system");
            return;
        }
        other => other.unwrap(),
    }
    let made =
        OpenOptions::new().write(true).create_new(true).open(scene.path("dir/made")).unwrap();
    let mut value = [0; 256];
    let len = rustix::fs::fgetxattr(&made, "system.posix_acl_access", &mut value).unwrap();
    let inherited =
        acl(&[(1, 6, NONE), (2, 6, 1234), (4, 5, NONE), (0x10, 6, NONE), (0x20, 0, NONE)]);
    assert_eq!(&value[..len], inherited);
    assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o660);
}

#[test]
fn times_are_exact_and_birth_is_known() {
    let Some(scene) = Scene::new(lower) else { return };
    let path = scene.path("file");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 7 },
        last_modification: rustix::fs::Timespec { tv_sec: -1_000_000, tv_nsec: 123_456_789 },
    };
    rustix::fs::futimens(&file, &times).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-1_000_000, 123_456_789));
    assert_eq!((meta.atime(), meta.atime_nsec()), (5, 7));
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, &path, AtFlags::empty(), wanted).unwrap();
    let has = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    assert!(has && stat.stx_btime.tv_sec > 1_000_000_000, "{:?}", stat.stx_btime);
}

#[test]
fn holes_are_made_found_and_copied() {
    let Some(scene) = Scene::new(|dir| {
        let file = File::create(dir.join("sparse")).unwrap();
        file.write_at(b"end", 4 << 20).unwrap();
    }) else {
        return;
    };
    let file = OpenOptions::new().read(true).write(true).open(scene.path("sparse")).unwrap();
    assert!(file.metadata().unwrap().blocks() < 100, "the hole stays one");
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(4 << 20));
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 64 << 10).unwrap();
    file.write_at(&[1; 64 << 10], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 32 << 10).unwrap();
    let mut data = [9; 3];
    file.read_at(&mut data, 0).unwrap();
    assert_eq!(data, [0; 3]);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(32 << 10));
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 8 << 20, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (4 << 20) + 3);
    let copy = File::create(scene.path("copy")).unwrap();
    let (mut from, mut to) = (32 << 10, 10);
    let copied = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 1000);
    assert_eq!(copied, Ok(1000));
    assert_eq!(fs::read(scene.path("copy")).unwrap()[9..12], [0, 1, 1]);
}

#[test]
fn an_unlinked_file_is_still_a_file() {
    let Some(scene) = Scene::new(lower) else { return };
    for name in ["file", "other"] {
        let mut file = OpenOptions::new().read(true).write(true).open(scene.path(name)).unwrap();
        fs::remove_file(scene.path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
        file.set_len(2).unwrap();
        file.write_at(b"xyz", 1).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.len(), &text[1..]), (4, "xyz"));
        assert!(!scene.path(name).exists());
        fs::write(scene.path(name), "new").unwrap();
        assert_eq!(fs::read_to_string(scene.path(name)).unwrap(), "new");
    }
    // One that was only ever read.
    let mut inner = File::open(scene.path("dir/inner")).unwrap();
    fs::remove_file(scene.path("dir/inner")).unwrap();
    fs::remove_dir(scene.path("dir")).unwrap();
    let mut text = String::new();
    inner.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), inner.metadata().unwrap().len()), ("inner", 5));
}

#[test]
fn locks_hold_across_the_copy_up() {
    let Some(scene) = Scene::new(lower) else { return };
    let reader = File::open(scene.path("file")).unwrap();
    rustix::fs::flock(&reader, FlockOperation::LockExclusive).unwrap();
    let writer = OpenOptions::new().write(true).open(scene.path("file")).unwrap();
    let again = rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(again, Err(Errno::WOULDBLOCK));
    drop(reader);
    rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn names_are_bytes_and_long() {
    let Some(scene) = Scene::new(lower) else { return };
    let odd = CString::new(b"\xff\xfe name\n".to_vec()).unwrap();
    let dir = File::open(scene.path("")).unwrap();
    let flags = OFlags::CREATE | OFlags::WRONLY;
    drop(rustix::fs::openat(&dir, &odd, flags, Mode::RUSR).unwrap());
    assert!(rustix::fs::statat(&dir, &odd, AtFlags::empty()).is_ok());
    let long = "n".repeat(255);
    fs::write(scene.path(&long), "long").unwrap();
    symlink("t".repeat(4095), scene.path("symlink")).unwrap();
    assert_eq!(fs::read_link(scene.path("symlink")).unwrap().as_os_str().len(), 4095);
    assert_eq!(fs::read_dir(scene.path("")).unwrap().count(), 6);
    let longer = fs::write(scene.path(&"n".repeat(256)), "");
    assert_eq!(longer.unwrap_err().raw_os_error(), Some(36));
}

#[test]
fn ids_are_mapped_both_ways() {
    let Some(scene) =
        Scene::with("uidmapping=0:0:1:1000:1:100,gidmapping=0:0:1:2000:1:100", |dir| {
            lower(dir);
            std::os::unix::fs::chown(dir.join("file"), Some(1004), Some(2004)).unwrap();
            std::os::unix::fs::chown(dir.join("other"), Some(7), Some(7)).unwrap();
        })
    else {
        return;
    };
    let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!(owner(&scene.path("file")), (5, 5));
    assert_eq!(owner(&scene.path("other")), (65_534, 65_534));
    std::os::unix::fs::chown(scene.path("file"), Some(9), None).unwrap();
    assert_eq!(owner(&scene.path("file")), (9, 5));
    assert_eq!(owner(&scene.upper("file")), (1008, 2004));
    let unmapped = std::os::unix::fs::chown(scene.path("file"), Some(500), None);
    assert_eq!(unmapped.unwrap_err().raw_os_error(), Some(22));
    fs::write(scene.path("new"), "").unwrap();
    assert_eq!((owner(&scene.path("new")), owner(&scene.upper("new"))), ((0, 0), (0, 0)));
}

#[test]
fn squashed_owners_are_one() {
    let Some(scene) = Scene::with("squash_to_root", |dir| {
        lower(dir);
        std::os::unix::fs::chown(dir.join("file"), Some(1004), Some(2004)).unwrap();
    }) else {
        return;
    };
    let meta = fs::metadata(scene.path("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    std::os::unix::fs::chown(scene.path("file"), Some(12), Some(12)).unwrap();
    let meta = fs::metadata(scene.path("file")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
}

#[test]
fn owners_are_kept_in_an_attribute() {
    let Some(mut scene) = Scene::with("xattr_permissions=2", |dir| {
        lower(dir);
        std::os::unix::fs::chown(dir.join("file"), Some(5), Some(6)).unwrap();
    }) else {
        return;
    };
    std::os::unix::fs::chown(scene.path("file"), Some(1004), None).unwrap();
    fs::set_permissions(scene.path("file"), PermissionsExt::from_mode(0o4750)).unwrap();
    fs::create_dir(scene.path("made")).unwrap();
    std::os::unix::fs::chown(scene.path("made"), Some(7), Some(8)).unwrap();
    for _ in 0..2 {
        let shown = |name| fs::metadata(scene.path(name)).unwrap();
        let (file, made) = (shown("file"), shown("made"));
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1004, 6, 0o4750));
        assert_eq!((made.uid(), made.gid()), (7, 8));
        assert!(!fs::read(scene.path("file")).unwrap().is_empty());
        scene.remount();
    }
    let real = fs::metadata(scene.upper("file")).unwrap();
    assert_eq!((real.uid(), real.gid(), real.mode() & 0o7777), (0, 0, 0o750));
    let mut value = [0; 32];
    let len =
        rustix::fs::getxattr(scene.upper("file"), "user.containers.override_stat", &mut value)
            .unwrap();
    assert_eq!(&value[..len], b"1004:6:4750");
}

#[test]
fn without_acls_what_others_own_opens() {
    let Some(scene) = Scene::with("noacl", lower) else { return };
    std::os::unix::fs::chown(scene.path("file"), Some(5), Some(6)).unwrap();
    fs::set_permissions(scene.path("file"), PermissionsExt::from_mode(0o640)).unwrap();
    assert!(!fs::read(scene.path("file")).unwrap().is_empty());
}

#[test]
fn flags_of_files_are_those_of_the_upper() {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let Some(scene) = Scene::new(lower) else { return };
    let file = File::open(scene.path("file")).unwrap();
    let before = match ioctl_getflags(&file) {
        Ok(flags) => flags,
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => {
            println!("SKIPPED: no flags on the backing file system");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    ioctl_setflags(&file, before | IFlags::NODUMP).unwrap();
    assert!(ioctl_getflags(&file).unwrap().contains(IFlags::NODUMP));
    let upper = File::open(scene.upper("file")).unwrap();
    assert!(ioctl_getflags(&upper).unwrap().contains(IFlags::NODUMP));
    let dir = File::open(scene.path("dir")).unwrap();
    ioctl_setflags(&dir, ioctl_getflags(&dir).unwrap() | IFlags::NOATIME).unwrap();
    assert!(ioctl_getflags(&dir).unwrap().contains(IFlags::NOATIME));
}

/// As on any file system: who may not keep set-user-ID takes it away by writing, and root does not.
#[test]
fn who_writes_without_privileges_takes_set_user_id_away() {
    let made = |path: &Path| {
        fs::write(path, "x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o6777)).unwrap();
    };
    let fill = |lower: &Path| {
        // For others to walk through.
        let base = lower.parent().unwrap();
        fs::set_permissions(base, fs::Permissions::from_mode(0o755)).unwrap();
        ["low", "low2"].iter().for_each(|name| made(&lower.join(name)));
    };
    let Some(scene) = Scene::new(fill) else { return };
    // The mode alone, as stat(1) and execve(2) ask for it: the kernel may answer from what it knows.
    let mode = |path: &Path| {
        let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MODE).unwrap();
        u32::from(stat.stx_mode) & 0o7777
    };
    let run = |uid: u32, script: String| {
        let status = Command::new("sh").args(["-c", &script]).uid(uid).gid(uid).status();
        assert!(status.unwrap().success(), "{script}");
    };
    let append = |uid, path: &Path| run(uid, format!("echo y >>{}", path.display()));
    let upper = ["up", "up2", "up3", "up4", "up5"].map(|name| scene.path(name));
    upper.iter().for_each(|path| made(path));
    for path in [&scene.path("low"), &upper[0]] {
        append(0, path);
        assert_eq!(mode(path), 0o6777, "root wrote {path:?}");
        append(1234, path);
        assert_eq!(mode(path), 0o777, "{path:?}");
    }
    // It gets its bits while, and after, the kernel writes it itself.
    let (open, after) = (&upper[1], &upper[2]);
    for path in [open, after] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        append(0, path);
    }
    let path = open.display();
    let holder = fs::OpenOptions::new().append(true).open(open).unwrap();
    for path in [open, after] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o6777)).unwrap();
    }
    run(1234, format!("echo y >>{path}"));
    drop(holder);
    append(1234, after);
    assert_eq!((mode(open), mode(after)), (0o777, 0o777));
    // And by calls that are no writes.
    run(1234, format!("fallocate -l 1M {}", upper[3].display()));
    run(1234, format!("truncate -s 10 {}", upper[4].display()));
    run(1234, format!("truncate -s 10 {}", scene.path("low2").display()));
    let low = mode(&scene.path("low2"));
    assert_eq!((mode(&upper[3]), mode(&upper[4]), low), (0o777, 0o777, 0o777));
}
