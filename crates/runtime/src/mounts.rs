//! What is mounted in a container's root, before it becomes the root.
//!
//! The image is somebody else's: no name in it may lead a mount out. Each place is opened beneath the root and mounted
//! on by its descriptor (CVE-2026-41579 was a link at an image's `/dev`).
//!
//! Source: runtime specification, "Mounts" and "Default Devices"; mount(8) for the options.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags as Propagation};

use crate::cgroup::{Machine, Version};
use crate::spec::{Mount, Spec};
use crate::{Error, Result};

/// Devices that every container has: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that programs expect in /dev.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts all of `spec` in the root at `path`, which becomes a mount itself; the root, opened. `groups` are the
/// directories of its control group.
pub(crate) fn all(spec: &Spec, path: &Path, groups: &[PathBuf]) -> Result<OwnedFd> {
    let fail = |step, source| Error::step(step, path, source);
    // Nothing that we mount may show to whoever serves the root, nor the reverse.
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC)
        .map_err(|e| Error::step("make the mounts private below", "/", e))?;
    rustix::mount::mount_bind_recursive(path, path)
        .map_err(|e| fail("make a mount of the root", e))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail("open", e))?;
    for mount in &spec.mounts {
        match mount.kind.as_str() {
            "cgroup" => control_groups(&root, mount, groups)?,
            _ => one(&root, mount)?,
        }
    }
    let owns_dev = spec.mounts.iter().any(|m| m.destination == Path::new("/dev") && !is_bind(m));
    if owns_dev {
        devices(&root)?;
        if spec.process.terminal {
            let console = place(&root, Path::new("/dev/console"), false)?;
            // By its name: the descriptor is of another mount namespace, from which nothing is bound.
            rustix::fs::readlink("/proc/self/fd/0", Vec::new())
                .and_then(|name| rustix::mount::mount_bind(name, by_descriptor(&console)))
                .map_err(|e| Error::step("bind the terminal at", "/dev/console", e))?;
        }
    }
    for path in &spec.linux.readonly_paths {
        if let Some(at) = existing(&root, path)? {
            rustix::mount::mount_bind_recursive(by_descriptor(&at), by_descriptor(&at))
                .map_err(|e| Error::step("make a mount of", path, e))?;
            remount(&root, path, MountFlags::RDONLY)?;
        }
    }
    for path in &spec.linux.masked_paths {
        mask(&root, path)?;
    }
    Ok(root)
}

/// Makes the root of this process read-only: the mount, not what is in it.
pub(crate) fn seal() -> Result<()> {
    let kept = kept_flags(Path::new("/"))?;
    rustix::mount::mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | kept, "")
        .map_err(|e| Error::step("make read-only", "/", e))
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

fn one(root: &OwnedFd, mount: &Mount) -> Result<()> {
    let at = &mount.destination;
    let options = Options::parse(&mount.options);
    if is_bind(mount) {
        let recursive = mount.options.iter().any(|option| option == "rbind");
        let stat = rustix::fs::stat(&mount.source)
            .map_err(|e| Error::step("find what is to be mounted,", &mount.source, e))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let target = place(root, at, directory)?;
        let bind = if recursive {
            rustix::mount::mount_bind_recursive(&mount.source, by_descriptor(&target))
        } else {
            rustix::mount::mount_bind(&mount.source, by_descriptor(&target))
        };
        bind.map_err(|e| Error::step("bind at", at, e))?;
        if !options.flags.is_empty() {
            remount(root, at, options.flags)?;
        }
    } else {
        let target = place(root, at, true)?;
        let data = CString::new(options.data.join(","))
            .map_err(|_| Error::step("mount at", at, Errno::INVAL))?;
        let flags = options.flags;
        rustix::mount::mount(
            &mount.source,
            by_descriptor(&target),
            mount.kind.as_str(),
            flags,
            data.as_c_str(),
        )
        .map_err(|e| Error::step("mount at", at, e))?;
    }
    if let Some(propagation) = options.propagation {
        let target = place(root, at, true)?;
        rustix::mount::mount_change(by_descriptor(&target), propagation)
            .map_err(|e| Error::step("set the propagation of", at, e))?;
    }
    Ok(())
}

/// The hierarchies that the container has a group in, as its control group namespace shows them: by version 2 alone one
/// mount, otherwise one each below a directory in memory.
fn control_groups(root: &OwnedFd, mount: &Mount, groups: &[PathBuf]) -> Result<()> {
    let at = &mount.destination;
    let show = |at: &Path, kind: &str, options: Vec<String>| {
        let options = mount.options.iter().cloned().chain(options).collect();
        let (destination, kind) = (at.to_owned(), kind.to_owned());
        one(root, &Mount { destination, source: kind.clone().into(), kind, options })
    };
    let machine = Machine::look();
    if machine.version() == Version::V2 {
        return show(at, "cgroup2", Vec::new());
    }
    let memory = Mount {
        destination: at.clone(),
        kind: "tmpfs".to_owned(),
        source: "cgroup".into(),
        options: vec!["mode=755".to_owned(), "size=64k".to_owned()],
    };
    one(root, &memory)?;
    for (here, controllers) in machine.v1() {
        let ours = groups.iter().any(|group| group.starts_with(here));
        if let Some(name) = here.file_name().filter(|_| ours) {
            show(&at.join(name), "cgroup", controllers.to_vec())?;
        }
    }
    remount(root, at, Options::parse(&mount.options).flags)
}

#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    propagation: Option<Propagation>,
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Self { flags: MountFlags::empty(), propagation: None, data: Vec::new() };
        for option in options {
            let (flag, on) = match option.as_str() {
                "ro" => (MountFlags::RDONLY, true),
                "rw" => (MountFlags::RDONLY, false),
                "nosuid" => (MountFlags::NOSUID, true),
                "suid" => (MountFlags::NOSUID, false),
                "nodev" => (MountFlags::NODEV, true),
                "dev" => (MountFlags::NODEV, false),
                "noexec" => (MountFlags::NOEXEC, true),
                "exec" => (MountFlags::NOEXEC, false),
                "noatime" => (MountFlags::NOATIME, true),
                "nodiratime" => (MountFlags::NODIRATIME, true),
                "relatime" => (MountFlags::RELATIME, true),
                "strictatime" => (MountFlags::STRICTATIME, true),
                "sync" => (MountFlags::SYNCHRONOUS, true),
                "dirsync" => (MountFlags::DIRSYNC, true),
                "bind" | "rbind" | "defaults" | "async" | "atime" | "diratime" => continue,
                name => {
                    match propagation(name) {
                        Some(propagation) => parsed.propagation = Some(propagation),
                        None => parsed.data.push(option.clone()),
                    }
                    continue;
                }
            };
            parsed.flags.set(flag, on);
        }
        parsed
    }
}

fn propagation(name: &str) -> Option<Propagation> {
    let kind = match name.strip_prefix('r').unwrap_or(name) {
        "private" => Propagation::PRIVATE,
        "slave" => Propagation::DOWNSTREAM,
        "shared" => Propagation::SHARED,
        "unbindable" => Propagation::UNBINDABLE,
        _ => return None,
    };
    Some(if name.starts_with('r') { kind | Propagation::REC } else { kind })
}

/// Gives the mount that is now at `at` further flags; those that it has are kept, as a user namespace demands.
fn remount(root: &OwnedFd, at: &Path, flags: MountFlags) -> Result<()> {
    let fd = open(root, at)?.ok_or_else(|| Error::step("find again", at, Errno::NOENT))?;
    let path = by_descriptor(&fd);
    let kept = kept_flags(&path)?;
    rustix::mount::mount_remount(&path, MountFlags::BIND | flags | kept, "")
        .map_err(|e| Error::step("set the flags of the mount at", at, e))
}

fn kept_flags(path: &Path) -> Result<MountFlags> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| Error::step("read the flags of the mount at", path, e))?;
    let mut kept = MountFlags::empty();
    for (held, flag) in [
        (rustix::fs::StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        kept.set(flag, stat.f_flag.contains(held));
    }
    Ok(kept)
}

fn devices(root: &OwnedFd) -> Result<()> {
    let dev = place(root, Path::new("/dev"), true)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, device) {
            // The caller's umask has had its say.
            Ok(()) => rustix::fs::chmodat(&dev, name, mode, rustix::fs::AtFlags::empty())
                .map_err(|e| Error::step("set the mode of the device", name, e))?,
            Err(Errno::EXIST) => {}
            // A user namespace makes no devices: the machine's own serve.
            Err(Errno::PERM) => {
                let at = place(root, &Path::new("/dev").join(name), false)?;
                rustix::mount::mount_bind(Path::new("/dev").join(name), by_descriptor(&at))
                    .map_err(|e| Error::step("bind the device", name, e))?;
            }
            Err(e) => return Err(Error::step("make the device", name, e)),
        }
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::step("make the link", Path::new("/dev").join(name), e)),
        }
    }
    Ok(())
}

fn mask(root: &OwnedFd, path: &Path) -> Result<()> {
    let Some(at) = existing(root, path)? else { return Ok(()) };
    let fail = |e| Error::step("mask", path, e);
    let directory =
        FileType::from_raw_mode(fstat(&at).map_err(fail)?.st_mode) == FileType::Directory;
    if directory {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", by_descriptor(&at), "tmpfs", flags, c"size=0k").map_err(fail)
    } else {
        rustix::mount::mount_bind("/dev/null", by_descriptor(&at)).map_err(fail)
    }
}

/// The path that stands for a descriptor.
fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// What stands at `path` in the root, links followed but never out of it.
fn open(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative =
        if relative.as_os_str().is_empty() { OsStr::new(".") } else { relative.as_os_str() };
    let mut tries = 0;
    loop {
        match openat2(&root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            Err(e) => return Err(Error::step("find in the container", path, e)),
        }
    }
}

/// As [`open`], where it is no fault that the path is not there.
fn existing(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match open(root, path) {
        Err(Error::Step { source: Errno::NOTDIR | Errno::ACCESS, .. }) => Ok(None),
        other => other,
    }
}

/// The place of a mount in the root; made where it is missing, with the directories on the way.
fn place(root: &OwnedFd, path: &Path, directory: bool) -> Result<OwnedFd> {
    if let Some(found) = open(root, path)? {
        return Ok(found);
    }
    let mut at = PathBuf::from("/");
    let mut parent = open(root, &at)?.ok_or_else(|| Error::step("open", "/", Errno::NOENT))?;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { continue };
        at.push(name);
        if let Some(found) = open(root, &at)? {
            parent = found;
            continue;
        }
        let fail = |e| Error::step("make the place of a mount,", &at, e);
        if names.peek().is_some() || directory {
            mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(fail)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map_err(fail)?;
        }
        parent = open(root, &at)?.ok_or_else(|| fail(Errno::NOENT))?;
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_propagation_or_data() {
        let strings = ["rbind", "ro", "nosuid", "mode=755", "rslave", "size=64m", "rw"];
        let parsed = Options::parse(&strings.map(str::to_owned));
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.propagation, Some(Propagation::DOWNSTREAM | Propagation::REC));
        assert_eq!(parsed.data, ["mode=755", "size=64m"]);
    }

    #[test]
    fn a_place_is_made_in_the_root_whatever_links_say() {
        let temp = tempfile::tempdir().expect("a directory");
        let outside = temp.path().join("outside");
        let inside = temp.path().join("inside");
        std::fs::create_dir_all(&outside).expect("a directory");
        std::fs::create_dir_all(inside.join("real")).expect("a directory");
        std::os::unix::fs::symlink(&outside, inside.join("dev")).expect("a link");
        std::os::unix::fs::symlink("/real", inside.join("link")).expect("a link");
        let root = OwnedFd::from(std::fs::File::open(&inside).expect("the root"));
        place(&root, Path::new("/link/a/b"), true).expect("a place");
        assert!(inside.join("real/a/b").is_dir());
        place(&root, Path::new("/link/a/file"), false).expect("a place");
        assert!(inside.join("real/a/file").is_file());
        // The link's target is taken below the root, where it is missing: refused, and nothing made outside.
        assert!(place(&root, Path::new("/dev/pts"), true).is_err());
        assert_eq!(std::fs::read_dir(&outside).expect("a list").count(), 0);
    }
}
