//! Making the mount: by mount(2) where that is allowed, otherwise through `fusermount3`.

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::{CString, OsStr};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// What `df` and /proc/mounts show as the source.
    pub source: String,
    /// The type shown is `fuse.` and this.
    pub subtype: String,
    /// `MS_*` of mount(2).
    pub flags: u64,
    /// The kernel checks permissions.
    pub default_permissions: bool,
    /// Users other than the one who mounts may enter.
    pub allow_other: bool,
    /// `context=` and others of SELinux, passed on as they are.
    pub security: Vec<String>,
}

/// Opens the device and mounts it at `mountpoint`; the descriptor to serve.
///
/// # Errors
/// Each says what was tried and what to do about it.
pub fn mount(mountpoint: &Path, config: &MountConfig) -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let tried = match device {
        Ok(device) => match mount_device(&device, mountpoint, config) {
            Ok(()) => return Ok(device),
            Err(error) => error,
        },
        Err(error) => io::Error::new(
            io::Error::from(error).kind(),
            format!(
                "cannot open /dev/fuse: {}; load the module (modprobe fuse) or pass the device into the container",
                io::Error::from(error)
            ),
        ),
    };
    if tried.kind() != io::ErrorKind::PermissionDenied {
        return Err(tried);
    }
    fusermount(mountpoint, config).map_err(|error| {
        io::Error::new(error.kind(), format!("{tried}; nor by fusermount3: {error}"))
    })
}

fn mount_device(device: &OwnedFd, mountpoint: &Path, config: &MountConfig) -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    for option in options(config) {
        data.push(',');
        data.push_str(&option);
    }
    let nul = |_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a mount option or path");
    let source = CString::new(config.source.as_str()).map_err(nul)?;
    let target = CString::new(mountpoint.as_os_str().as_bytes()).map_err(nul)?;
    let kind = CString::new(format!("fuse.{}", config.subtype)).map_err(nul)?;
    let data = CString::new(data).map_err(nul)?;
    // SAFETY: five pointers to NUL-terminated strings that live through the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            config.flags,
            data.as_ptr().cast(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("cannot mount at {}: {error}", mountpoint.display())))
}

fn options(config: &MountConfig) -> Vec<String> {
    let mut options = Vec::new();
    if config.default_permissions {
        options.push("default_permissions".to_owned());
    }
    if config.allow_other {
        options.push("allow_other".to_owned());
    }
    options.extend(config.security.iter().cloned());
    options
}

/// fusermount3 is setuid root: it mounts for us and hands the device over a socket.
fn fusermount(mountpoint: &Path, config: &MountConfig) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut options = options(config);
    options.push(format!("fsname={},subtype={}", config.source, config.subtype));
    for (flag, name) in
        [(libc::MS_RDONLY, "ro"), (libc::MS_NOATIME, "noatime"), (libc::MS_NOEXEC, "noexec")]
    {
        if config.flags & flag != 0 {
            options.push(name.to_owned());
        }
    }
    let mut command = Command::new("fusermount3");
    command
        .arg("-o")
        .arg(options.join(","))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    let raw = theirs.as_raw_fd();
    // SAFETY: only fcntl is called between fork and exec, which is safe there.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(raw, libc::F_SETFD, 0) < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let output = command.output()?;
    drop(theirs);
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(
        &ours,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(device) = descriptors.next()
        {
            return Ok(device);
        }
    }
    Err(io::Error::other("fusermount3 ended without handing the device over"))
}

/// Unmounts; lazily when asked, which ends only once nothing uses it.
///
/// # Errors
/// Of umount2(2), or what `fusermount3 -u` said when that is not allowed.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy {
        rustix::mount::UnmountFlags::DETACH
    } else {
        rustix::mount::UnmountFlags::empty()
    };
    match rustix::mount::unmount(mountpoint, flags) {
        Err(rustix::io::Errno::PERM) => {}
        other => return other.map_err(io::Error::from),
    }
    let mut command = Command::new("fusermount3");
    command.arg(OsStr::new(if lazy { "-uz" } else { "-u" })).arg("--").arg(mountpoint);
    let output = command.output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
