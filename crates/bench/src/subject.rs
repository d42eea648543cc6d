//! Who is measured: how each mounts a union of the same layers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// One implementation of a union.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As the report calls it.
    pub name: &'static str,
    /// What it says of its version.
    pub version: String,
    /// The program that mounts, and what stands before its options.
    program: PathBuf,
    before: &'static [&'static str],
}

impl Subject {
    /// Linux's overlayfs.
    pub fn kernel() -> Self {
        let version = rustix::system::uname().release().to_string_lossy().into_owned();
        let before = &["-t", "overlay", "overlay"];
        Self { name: "kernel", version, program: "mount".into(), before }
    }

    /// The peer that podman and buildah use without privileges; `None` where it is not installed.
    pub fn fuse_overlayfs(program: &Path) -> Option<Self> {
        let output = Command::new(program).arg("--version").output().ok()?;
        // Beside its own version it names those of fusermount3 and libfuse, in no fixed order.
        let said = String::from_utf8_lossy(&output.stdout);
        let own = said.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version "))?;
        let version = own.trim().to_owned();
        Some(Self { name: "fuse-overlayfs", version, program: program.to_owned(), before: &[] })
    }

    /// The union of this workspace.
    pub fn strata(program: PathBuf) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { name: "strata", version, program, before: &["mount"] }
    }

    /// Mounts the union that `options` describe, until the value is dropped.
    pub fn mount(&self, options: &str, at: &Path) -> anyhow::Result<Mounted> {
        let output = Command::new(&self.program)
            .args(self.before)
            .args(["-o", options])
            .arg(at)
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if !output.status.success() {
            bail!("{} cannot mount: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Mounted { at: at.to_owned() })
    }
}

/// A mount that ends with this value.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).status().is_ok_and(|s| s.success());
        if !unmounted && Command::new("umount").arg("-l").arg(&self.at).status().is_err() {
            eprintln!("strata-bench: {} stays mounted", self.at.display());
        }
    }
}
