//! Who is measured: how each mounts a union of the same layers.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// What a union is made of, and where it is shown.
#[derive(Debug)]
pub struct Layers {
    /// The topmost first.
    pub lowers: Vec<PathBuf>,
    /// Empty directories, of one file system: the upper layer, its work directory, the mount point.
    pub upper: PathBuf,
    /// See `upper`.
    pub work: PathBuf,
    /// See `upper`.
    pub merged: PathBuf,
}

/// How a program is told of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `lowerdir=…,upperdir=…,workdir=…`, as overlayfs is.
    Overlay,
    /// `UPPER=RW:LOWER=RO…`, with these options. Lower branches are mounted read-only beside: mergerfs writes to files of a
    /// branch that it calls read-only.
    Branches(&'static str),
}

/// One implementation of a union.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As the report calls it.
    pub name: String,
    /// What it says of its version.
    pub version: String,
    /// The program that mounts, and what stands before its options.
    command: Vec<OsString>,
    form: Form,
    /// What the kernel's parameter for FUSE over io_uring is while it is mounted; `None` where it does not matter.
    uring: Option<bool>,
    /// Whether a row that it can't do fails the run.
    must: bool,
}

impl Subject {
    /// Linux's overlayfs.
    pub fn kernel() -> Self {
        let version = rustix::system::uname().release().to_string_lossy().into_owned();
        let command = ["mount", "-t", "overlay", "overlay"].map(OsString::from).to_vec();
        Self {
            name: "kernel".to_owned(),
            version,
            command,
            form: Form::Overlay,
            uring: None,
            must: true,
        }
    }

    /// The peer that podman and buildah use without privileges; `None` where it is not installed. One of another
    /// system's tree, which does not start with this machine's libraries, is started by the loader of that tree.
    pub fn fuse_overlayfs(program: &Path) -> Option<Self> {
        let plain = vec![OsString::from(program)];
        let (command, said) = said(plain, "--version")
            .or_else(|| said(by_loader(&fs::canonicalize(program).ok()?)?, "--version"))?;
        // Beside its own version it names those of fusermount3 and libfuse, in no fixed order.
        let own = said.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version "))?;
        let version = own.trim().to_owned();
        Some(Self::peer(format!("fuse-overlayfs {version}"), version, command, Form::Overlay))
    }

    /// The union by branches that copies up; `None` where it is not installed.
    pub fn unionfs_fuse() -> Option<Self> {
        let options = "cow,hide_meta_files,use_ino,dev,suid,allow_other";
        Self::by_branches("unionfs", "unionfs-fuse", options)
    }

    /// The union by branches that neither copies up nor hides: rows that need that are none of its. `None` where it is
    /// not installed.
    pub fn mergerfs() -> Option<Self> {
        let options =
            "use_ino,category.create=ff,minfreespace=0,cache.files=auto-full,dev,suid,allow_other";
        Self::by_branches("mergerfs", "mergerfs", options)
    }

    fn by_branches(program: &str, name: &str, options: &'static str) -> Option<Self> {
        let (command, said) = said(vec![program.into()], "--version")?;
        let start = format!("{name} version: ");
        let version = said.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("?");
        let (name, version) = (name.to_owned(), version.trim().to_owned());
        Some(Self::peer(name, version, command, Form::Branches(options)))
    }

    fn peer(name: String, version: String, command: Vec<OsString>, form: Form) -> Self {
        Self { name, version, command, form, uring: None, must: false }
    }

    /// The union of this workspace: over the classic device, where `switch` says that the kernel's parameter can be set.
    pub fn strata(program: &Path, switch: bool) -> Self {
        let command = vec![OsString::from(program), "mount".into()];
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let uring = switch.then_some(false);
        let name = "strata".to_owned();
        Self { name, version, command, form: Form::Overlay, uring, must: true }
    }

    /// The same over io_uring.
    ///
    /// # Errors
    /// Why it can't be on this machine.
    pub fn strata_uring(program: &Path) -> anyhow::Result<Self> {
        drop(Parameter::set(true)?);
        Ok(Self {
            name: "strata, io_uring".to_owned(),
            uring: Some(true),
            ..Self::strata(program, true)
        })
    }

    /// Whether it is one that the run is about, and which can do every row.
    pub fn must(&self) -> bool {
        self.must
    }

    /// Mounts the union of `layers`, until the value is dropped.
    pub fn mount(&self, layers: &Layers) -> anyhow::Result<Mounted> {
        let mut mounted = Mounted { at: Vec::new() };
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        match self.form {
            Form::Overlay => {
                let lowers: Vec<_> =
                    layers.lowers.iter().map(|l| l.display().to_string()).collect();
                command.arg("-o").arg(format!(
                    "lowerdir={},upperdir={},workdir={}",
                    lowers.join(":"),
                    layers.upper.display(),
                    layers.work.display()
                ));
            }
            Form::Branches(options) => {
                let mut branches = format!("{}=RW", layers.upper.display());
                for (number, lower) in layers.lowers.iter().enumerate() {
                    let at = layers.work.join(number.to_string());
                    mounted.bind(lower, &at, true)?;
                    branches += &format!(":{}=RO", at.display());
                }
                command.arg("-o").arg(options).arg(branches);
            }
        }
        let switched = self.uring.map(Parameter::set).transpose()?;
        let output = command
            .arg(&layers.merged)
            .output()
            .with_context(|| format!("starting {}", self.command[0].display()))?;
        drop(switched);
        if !output.status.success() {
            bail!("{} cannot mount: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        mounted.at.push(layers.merged.clone());
        Ok(mounted)
    }
}

/// The command, and what it says when it is asked with `flag`; `None` where it does not start or fails.
fn said(command: Vec<OsString>, flag: &str) -> Option<(Vec<OsString>, String)> {
    let output = Command::new(&command[0]).args(&command[1..]).arg(flag).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    output.status.success().then_some((command, said))
}

/// `ROOT/usr/bin/PROGRAM` by the loader of the same root, and with its libraries.
fn by_loader(program: &Path) -> Option<Vec<OsString>> {
    let libraries = program.parent()?.parent()?.join("lib");
    let triplets = fs::read_dir(libraries).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let mut triplets = triplets.filter(|path| path.is_dir());
    triplets.find_map(|dir| {
        let mut entries = fs::read_dir(&dir).ok()?.filter_map(Result::ok).map(|e| e.path());
        let loader = entries.find(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-linux"))
        })?;
        Some(vec![loader.into(), "--library-path".into(), dir.into(), program.into()])
    })
}

/// The kernel's parameter for FUSE over io_uring, as it is set until the value is dropped.
#[derive(Debug)]
struct Parameter {
    before: String,
}

/// The administrator's choice (Linux 6.14): what is mounted while it is `Y` may use io_uring, to its end.
pub const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

impl Parameter {
    fn set(on: bool) -> anyhow::Result<Self> {
        let before =
            fs::read_to_string(PARAMETER).with_context(|| format!("reading {PARAMETER}"))?;
        let set = Self { before: before.trim().to_owned() };
        let wanted = if on { "Y" } else { "N" };
        if set.before != wanted {
            fs::write(PARAMETER, wanted).with_context(|| format!("writing {PARAMETER}"))?;
        }
        Ok(set)
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        let now = fs::read_to_string(PARAMETER);
        if now.is_ok_and(|now| now.trim() == self.before) {
            return;
        }
        if let Err(error) = fs::write(PARAMETER, &self.before) {
            eprintln!(
                "strata-bench: {PARAMETER} was {}, and is not any more: {error}",
                self.before
            );
        }
    }
}

/// Mounts that end with this value, the last first.
#[derive(Debug)]
pub struct Mounted {
    at: Vec<PathBuf>,
}

impl Mounted {
    /// Shows `from` at the new directory `at` too.
    fn bind(&mut self, from: &Path, at: &Path, read_only: bool) -> anyhow::Result<()> {
        fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
        crate::scene::run(Command::new("mount").arg("--bind").args([from, at]))?;
        self.at.push(at.to_owned());
        if read_only {
            let mut again = Command::new("mount");
            crate::scene::run(again.args(["-o", "remount,bind,ro"]).arg(at))?;
        }
        Ok(())
    }

    /// Shows this machine's directories in the tree `root`, as programs in it need them.
    pub fn machine(root: &Path, names: &[&str]) -> anyhow::Result<Self> {
        let mut mounted = Self { at: Vec::new() };
        for name in names {
            mounted.bind(&Path::new("/").join(name), &root.join(name), false)?;
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for at in self.at.iter().rev() {
            // A file system's process may have it open still.
            let umount = |flags: &[&str]| {
                let mut umount = Command::new("umount");
                umount.args(flags).arg(at).stderr(Stdio::null());
                umount.status().is_ok_and(|status| status.success())
            };
            if !umount(&[]) && !umount(&["-l"]) {
                eprintln!("strata-bench: {} stays mounted", at.display());
            }
        }
    }
}
