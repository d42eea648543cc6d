//! The layers that everyone works on, on a tmpfs of their own: what is measured is the union, and not the disk.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::row::{Row, Scale, Work};
use crate::subject::Subject;

/// Three lower layers, and where upper layers are made.
#[derive(Debug)]
pub struct Scene {
    dir: tempfile::TempDir,
    mounted: bool,
    hash: u64,
}

const LAYERS: [&str; 3] = ["l1", "l2", "l3"];

impl Scene {
    /// Makes the layers. On a tmpfs, or below `at`.
    pub fn new(at: Option<&Path>, scale: &Scale) -> anyhow::Result<Self> {
        let dir = match at {
            Some(at) => tempfile::tempdir_in(at)?,
            None => tempfile::tempdir()?,
        };
        let mounted = at.is_none();
        if mounted {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=80%,mode=755", "tmpfs"])
                .arg(dir.path()))?;
        }
        let mut scene = Self { dir, mounted, hash: 0 };
        scene.fill(scale)?;
        scene.hash = scene.hash_layers()?;
        Ok(scene)
    }

    fn fill(&self, scale: &Scale) -> anyhow::Result<()> {
        for name in LAYERS.iter().chain(&["m", "plain"]) {
            fs::create_dir(self.at(name))?;
        }
        for (at, layer) in LAYERS.iter().enumerate() {
            for d in 0..scale.dirs {
                let dir = self.at(layer).join("tree").join(format!("d{d}"));
                fs::create_dir_all(&dir)?;
                // Each layer has a third of the files of each directory.
                for f in (at..scale.files).step_by(LAYERS.len()) {
                    fs::write(dir.join(format!("f{f}")), vec![b'x'; 4096])?;
                }
            }
        }
        let mut big = File::create(self.at("l3").join("big"))?;
        let block: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        for _ in 0..scale.big_mib {
            big.write_all(&block)?;
        }
        let tree = self.at("plain").join("src");
        for d in 0..scale.dirs.min(60) {
            let dir = tree.join(format!("pkg{}/mod{d}", d % 7));
            fs::create_dir_all(&dir)?;
            for f in 0..scale.files {
                fs::write(dir.join(format!("file{f}.rs")), vec![b'y'; 300 + 97 * (f % 60)])?;
            }
        }
        run(Command::new("tar")
            .arg("-cf")
            .arg(self.archive())
            .arg("-C")
            .arg(self.at("plain"))
            .arg("src"))?;
        fs::remove_dir_all(&tree)?;
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The archive that is unpacked.
    pub fn archive(&self) -> PathBuf {
        self.at("plain").join("src.tar")
    }

    /// One row on one subject, in a mount of its own over an empty upper layer.
    pub fn measure(&self, subject: &Subject, row: &Row, scale: &Scale) -> anyhow::Result<f64> {
        for name in ["u", "w"] {
            if self.at(name).exists() {
                fs::remove_dir_all(self.at(name))?;
            }
            fs::create_dir(self.at(name))?;
        }
        let layers: Vec<_> = LAYERS.iter().map(|l| self.at(l).display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers.join(":"),
            self.at("u").display(),
            self.at("w").display()
        );
        let merged = self.at("m");
        // What the last one left in the caches is nobody's advantage.
        fs::write("/proc/sys/vm/drop_caches", "2").context("dropping caches")?;
        let mounted = subject.mount(&options, &merged)?;
        let work = Work { merged: &merged, archive: &self.archive(), scale };
        let value = (row.run)(&work);
        drop(mounted);
        value
    }

    /// # Errors
    /// A lower layer is not as it was.
    pub fn check_layers(&self) -> anyhow::Result<()> {
        if self.hash_layers()? != self.hash {
            bail!("a lower layer changed");
        }
        Ok(())
    }

    fn hash_layers(&self) -> anyhow::Result<u64> {
        let mut hasher = DefaultHasher::new();
        for layer in LAYERS {
            hash(&self.at(layer), &mut hasher)?;
        }
        Ok(hasher.finish())
    }
}

fn hash(dir: &Path, hasher: &mut DefaultHasher) -> anyhow::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        entry.file_name().hash(hasher);
        if entry.file_type()?.is_dir() {
            hash(&entry.path(), hasher)?;
        } else {
            fs::read(entry.path())?.hash(hasher);
        }
    }
    Ok(())
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.mounted && Command::new("umount").arg("-l").arg(self.dir.path()).status().is_err() {
            eprintln!("strata-bench: {} stays mounted", self.dir.path().display());
        }
    }
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status =
        command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} failed: {status}", command.get_program());
    }
    Ok(())
}
