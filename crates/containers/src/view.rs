//! Layers shown as one directory: by the kernel's overlayfs, or by our union through FUSE.
//!
//! Source: kernel `Documentation/filesystems/overlayfs.rst`, "Mount options"; fsopen(2), fsconfig(2). A string of
//! fsconfig holds 255 bytes, so that a layer with a longer path goes by its descriptor's.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::{Error, Result, tree};

/// By which means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's overlayfs.
    Kernel,
    /// Our union.
    Fuse,
}

/// What the caller wants of the means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The kernel where it can do the job.
    #[default]
    Auto,
    /// The kernel or nothing.
    Kernel,
    /// Our union.
    Fuse,
}

/// The layers and how they are shown.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Uppermost first.
    pub lowers: Vec<PathBuf>,
    /// The upper layer and its work directory; without them nothing can be changed.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// We are not the machine's root: marks in `user.overlay.*`.
    pub rootless: bool,
    /// All files are shown as root's; by our union alone.
    pub squash: bool,
    /// Nothing written needs to survive a power cut: an end does not wait for the disk, which the kernel's overlayfs
    /// otherwise does for all of the upper layer's file system.
    pub volatile: bool,
    /// What the upper layer may hold, in bytes and in inodes.
    pub limit: Limit,
    /// Who keeps that.
    pub keeper: Keeper,
    /// Whether a write to a big file of a lower layer may leave the rest of its data there: for our union alone.
    pub partial: Partial,
}

/// What becomes of big files that were written to in part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Partial {
    /// They have all their data from the first write on.
    #[default]
    Off,
    /// They need not have it: whoever reads the upper layer otherwise makes them whole first.
    Keep,
}

/// A limit of an upper layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    /// Bytes.
    pub size: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
}

/// Who keeps the limit of an upper layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// Our union; why not the file system.
    Union(String),
    /// The file system, which has a limit for this project.
    Project(u32),
}

impl Default for Keeper {
    fn default() -> Self {
        Self::Union("the upper layer has no project".to_owned())
    }
}

/// Layers that are shown.
#[derive(Debug)]
pub struct Shown {
    /// By which means.
    pub backend: Backend,
    /// Why by these, in a sentence.
    pub why: String,
    /// Who keeps the limit of the upper layer, where it has one.
    pub limited_by: Option<&'static str>,
    /// The process that serves them, which ends with the one that asked for it.
    pub daemon: Option<Child>,
}

/// Shows `layers` at `at`; `exe` is this program, whose `mount` serves FUSE.
///
/// # Errors
/// [`Error::View`] with what each means said.
pub fn show(layers: &Layers, at: &Path, choice: Choice, exe: &Path) -> Result<Shown> {
    let limited = layers.limit != Limit::default();
    let fuse = |why: String| {
        let daemon = serve(layers, at, exe, true)?;
        let limited_by = limited.then_some("union");
        Ok(Shown { backend: Backend::Fuse, why, limited_by, daemon: Some(daemon) })
    };
    if choice == Choice::Fuse {
        return fuse("asked for".to_owned());
    }
    if let Keeper::Union(why) = &layers.keeper
        && limited
    {
        let why = format!("a limit of size, which the kernel's overlayfs has not, and {why}");
        if choice == Choice::Kernel {
            let why = format!("{why}; try --backend fuse");
            return Err(Error::View { at: at.to_owned(), why });
        }
        return fuse(why);
    }
    match kernel(layers, at) {
        Ok(()) => {
            let why = if choice == Choice::Kernel { "asked for" } else { "the kernel can do it" };
            let mut why = why.to_owned();
            if let Keeper::Project(project) = &layers.keeper {
                why += &format!(", and the file system keeps the limit of the project {project}");
            }
            let limited_by = limited.then_some("project quota");
            Ok(Shown { backend: Backend::Kernel, why, limited_by, daemon: None })
        }
        Err(e) if choice == Choice::Kernel => {
            let why = format!("the kernel's overlayfs said: {e}; try --backend fuse");
            Err(Error::View { at: at.to_owned(), why })
        }
        Err(kernel) => {
            let why = format!("the kernel's overlayfs said: {kernel}");
            fuse(why.clone()).map_err(|e| match e {
                Error::View { at, why: own } => Error::View { at, why: format!("{why}; {own}") },
                other => other,
            })
        }
    }
}

fn kernel(layers: &Layers, at: &Path) -> std::result::Result<(), Errno> {
    match by_new_calls(layers, at) {
        Err(Errno::NOSYS | Errno::INVAL) => by_mount(layers, at),
        other => other,
    }
}

/// What keeps an upper layer a plain difference: no redirects, no files without data.
///
/// With marks in `user.*` there are neither, and the options for them are refused.
fn plain(layers: &Layers) -> &'static [(&'static str, &'static str)] {
    let all = &[("index", "off"), ("redirect_dir", "off"), ("metacopy", "off")];
    if layers.rootless { &all[..1] } else { all }
}

fn by_new_calls(layers: &Layers, at: &Path) -> std::result::Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut held = Vec::new();
    let mut add = |key: &str, path: &Path| {
        if path.as_os_str().len() < 255 {
            return fsconfig_set_string(&context, key, path);
        }
        let dir = rustix::fs::open(
            path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let set = fsconfig_set_string(&context, key, tree::by_descriptor(&dir));
        held.push(dir);
        set
    };
    for lower in &layers.lowers {
        add("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = &layers.upper {
        add("upperdir", upper)?;
        add("workdir", work)?;
    }
    for (key, value) in plain(layers) {
        fsconfig_set_string(&context, *key, *value)?;
    }
    if layers.rootless {
        fsconfig_set_flag(&context, "userxattr")?;
    }
    if layers.volatile {
        fsconfig_set_flag(&context, "volatile")?;
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", rustix::fs::CWD, at, flags)
}

/// For kernels before 6.7, whose layers go in one string of a page.
fn by_mount(layers: &Layers, at: &Path) -> std::result::Result<(), Errno> {
    let mut data = options(layers);
    for (key, value) in plain(layers) {
        data.push(format!(",{key}={value}"));
    }
    let data = CString::new(data.into_vec()).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), data.as_c_str())
}

/// The options that overlayfs and our `mount` have in common.
fn options(layers: &Layers) -> OsString {
    let mut data = OsString::from("lowerdir=");
    for (index, lower) in layers.lowers.iter().enumerate() {
        if index > 0 {
            data.push(":");
        }
        data.push(escaped(lower));
    }
    if let Some((upper, work)) = &layers.upper {
        data.push(",upperdir=");
        data.push(escaped(upper));
        data.push(",workdir=");
        data.push(escaped(work));
    }
    if layers.rootless {
        data.push(",userxattr");
    }
    if layers.volatile {
        data.push(",volatile");
    }
    data
}

fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',' | b'"') {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

/// Shows `layers` at `at` by our union; the daemon, which ends with this process where it is to be `ours`.
pub(crate) fn serve(layers: &Layers, at: &Path, exe: &Path, ours: bool) -> Result<Child> {
    let fail = |why: String| Error::View { at: at.to_owned(), why };
    let mut options = options(layers);
    // `commit`, `diff` and `snapshot` read the upper layer as it is.
    options.push(",redirect_dir=off,index=off");
    options.push(match layers.partial {
        Partial::Off => ",partial=off",
        Partial::Keep => ",partial=keep",
    });
    for (name, limit) in [("size", layers.limit.size), ("nr_inodes", layers.limit.inodes)] {
        if let Some(limit) = limit {
            options.push(format!(",{name}={limit}"));
        }
    }
    if layers.squash {
        options.push(",squash_to_root");
    }
    let mut command = Command::new(exe);
    command.arg0("strata").args(["mount", "--serving"]);
    if ours {
        command.arg("--with-parent");
    }
    command.arg("-o").arg(options);
    command.arg("--").arg(at).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().map_err(|e| fail(format!("the FUSE daemon can't be started: {e}")))?;
    let mut said = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut said).map_err(|e| fail(format!("the FUSE daemon is lost: {e}")))?;
    }
    let mut complaint = String::new();
    if said.is_empty() {
        if let Some(mut err) = child.stderr.take() {
            err.read_to_string(&mut complaint).map_err(|e| fail(e.to_string()))?;
        }
        let status = child.wait().map_err(|e| fail(e.to_string()))?;
        let complaint = complaint.trim().trim_start_matches("strata: ");
        return Err(fail(format!("FUSE said: {complaint} ({status})")));
    }
    Ok(child)
}

/// Takes away what [`show`] has shown; its daemon ends when the last user does.
///
/// # Errors
/// [`Error::Io`].
pub fn hide(at: &Path) -> Result<()> {
    match rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io("unmount", at, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_survive_as_options() {
        let layers = Layers {
            lowers: vec!["/a:b".into(), "/c,d\\\"e".into()],
            upper: Some(("/u".into(), "/w".into())),
            rootless: true,
            squash: false,
            volatile: true,
            limit: Limit::default(),
            keeper: Keeper::default(),
            partial: Partial::Off,
        };
        let parsed = mount::Options::parse(&[options(&layers)]).expect("parses").options;
        assert_eq!(parsed.lowers, layers.lowers);
        assert_eq!(parsed.upper.zip(parsed.work), layers.upper);
        assert!(parsed.userxattr && parsed.volatile);
    }
}
