//! The layers that everyone works on. Most are on a tmpfs: what is measured is the union, and not the disk.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use store::Store;

use crate::containers::Disk;
use crate::row::{Ground, Row, Scale, Work};
use crate::subject::{Layers, Subject};

/// Lower layers of every kind that rows want, and where upper layers are made.
#[derive(Debug)]
pub struct Scene {
    dir: tempfile::TempDir,
    /// Whether the directory is a tmpfs of our own.
    mounted: bool,
    scale: Scale,
    /// What pulls images, and the OCI layouts that they are in.
    strata: PathBuf,
    roots: Option<PathBuf>,
    disk: Option<Disk>,
    /// By the names of their grounds.
    stacks: BTreeMap<&'static str, Stack>,
}

/// Layers that are mounted again and again, each time with an empty upper layer.
#[derive(Debug)]
struct Stack {
    layers: Layers,
    /// Files and directories that they show.
    entries: usize,
    /// Of the lower layers, as they were.
    hash: u64,
}

const LOWERS: [&str; 3] = ["l1", "l2", "l3"];

impl Scene {
    /// An empty one: on a tmpfs, or below `at`. Images are pulled by the program `strata` from the directory `roots`.
    pub fn new(
        at: Option<&Path>,
        scale: Scale,
        strata: &Path,
        roots: Option<&Path>,
    ) -> anyhow::Result<Self> {
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
        let (strata, roots) = (strata.to_owned(), roots.map(Path::to_owned));
        Ok(Self { dir, mounted, scale, strata, roots, disk: None, stacks: BTreeMap::new() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the layers that `row` wants, where they are not there yet. Says what is missing where the row can't be.
    pub fn prepare(&mut self, row: &Row) -> anyhow::Result<Option<String>> {
        for program in row.needs {
            if Command::new(program).arg("--version").output().is_err() {
                return Ok(Some(format!("{program} is not installed")));
            }
        }
        let key = row.ground.name();
        if self.stacks.contains_key(key) {
            return Ok(None);
        }
        let mut home = self.at(&key.replace(':', "-"));
        let lowers = match row.ground {
            Ground::Layers => {
                fs::create_dir_all(self.at("plain"))?;
                fill(&home, &self.scale)?;
                pack(&self.at("plain"), &self.archive(), &self.scale)?;
                LOWERS.map(|name| home.join(name)).to_vec()
            }
            Ground::Disk => {
                // Somebody else's disk where the caller gave one.
                if self.mounted {
                    let disk = Disk::of("ext4", 4 << 30).context("making a file system")?;
                    home = disk.at("layers");
                    self.disk = Some(disk);
                }
                fs::create_dir_all(home.join("l1"))?;
                big_file(&home.join("l1/big"), &self.scale)?;
                small_files(&home.join("l1"), &self.scale, 0, 1)?;
                vec![home.join("l1")]
            }
            Ground::Made(_, fill) => {
                fs::create_dir_all(home.join("l1"))?;
                fill(&home.join("l1"), &self.scale)?;
                vec![home.join("l1")]
            }
            Ground::Image(image) => {
                let Some(roots) = &self.roots else {
                    return Ok(Some(format!("{image} wants --roots")));
                };
                let (name, tag) = image.split_once(':').context("an image has a tag")?;
                if !roots.join(name).is_dir() {
                    return Ok(Some(format!("{} has no {name}", roots.display())));
                }
                let from = format!("oci:{}:{tag}", roots.join(name).display());
                self.pull(&from).with_context(|| format!("pulling {from}"))?
            }
        };
        for name in ["u", "w", "m"] {
            fs::create_dir_all(home.join(name))?;
        }
        let [upper, work, merged] = ["u", "w", "m"].map(|name| home.join(name));
        let layers = Layers { lowers, upper, work, merged };
        let mounted = Subject::kernel().mount(&layers)?;
        let entries = count(&layers.merged)?;
        drop(mounted);
        let hash = hash_of(&layers.lowers)?;
        self.stacks.insert(key, Stack { layers, entries, hash });
        Ok(None)
    }

    /// The trees of an image's layers, in a store of the scene's.
    fn pull(&self, from: &str) -> anyhow::Result<Vec<PathBuf>> {
        let root = self.at("store");
        let mut pull = Command::new(&self.strata);
        let output = pull.env("STRATA_ROOT", &root).args(["pull", "-q", from]).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let store = Store::open(&root)?;
        let image = store.image(String::from_utf8_lossy(&output.stdout).trim())?;
        Ok(store.lower_dirs(&image))
    }

    /// The archive that is unpacked.
    fn archive(&self) -> PathBuf {
        self.at("plain").join("src.tar")
    }

    /// One row on one subject, in a mount of its own over an empty upper layer; `None` where a peer can't do it.
    pub fn measure(&self, subject: &Subject, row: &Row) -> anyhow::Result<Option<f64>> {
        let stack = self.stacks.get(row.ground.name()).context("the row is not prepared")?;
        let layers = &stack.layers;
        for path in [&layers.upper, &layers.work] {
            fs::remove_dir_all(path).with_context(|| format!("emptying {}", path.display()))?;
            fs::create_dir(path)?;
        }
        // What the last one left in the caches is nobody's advantage.
        fs::write("/proc/sys/vm/drop_caches", "2").context("dropping caches")?;
        let mounted = subject.mount(layers)?;
        let work = Work {
            merged: &layers.merged,
            archive: &self.archive(),
            scale: &self.scale,
            entries: stack.entries,
        };
        let value = (row.run)(&work);
        drop(mounted);
        match value {
            Ok(value) => Ok(Some(value)),
            Err(error) if !subject.must() => {
                eprintln!("{} can't do {}: {error:#}", subject.name, row.name);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// A lower layer is not as it was.
    pub fn check_layers(&self) -> anyhow::Result<()> {
        for (name, stack) in &self.stacks {
            if hash_of(&stack.layers.lowers)? != stack.hash {
                bail!("a lower layer of {name} changed");
            }
        }
        Ok(())
    }
}

/// Three layers of small files, and a big one in the lowest.
fn fill(home: &Path, scale: &Scale) -> anyhow::Result<()> {
    for (at, layer) in LOWERS.iter().enumerate() {
        // Each layer has a third of the files of each directory.
        small_files(&home.join(layer), scale, at, LOWERS.len())?;
    }
    big_file(&home.join("l3/big"), scale)
}

/// Every directory of the tree, with each `step`th of its files, from the one at `at` on.
fn small_files(layer: &Path, scale: &Scale, at: usize, step: usize) -> anyhow::Result<()> {
    for d in 0..scale.dirs {
        let dir = layer.join("tree").join(format!("d{d}"));
        fs::create_dir_all(&dir)?;
        for f in (at..scale.files).step_by(step) {
            fs::write(dir.join(format!("f{f}")), vec![b'x'; 4096])?;
        }
    }
    Ok(())
}

fn big_file(path: &Path, scale: &Scale) -> anyhow::Result<()> {
    let mut big = File::create(path)?;
    let block: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..scale.big_mib {
        big.write_all(&block)?;
    }
    Ok(big.sync_all()?)
}

/// Makes the archive of a tree of small files, in `plain`.
fn pack(plain: &Path, archive: &Path, scale: &Scale) -> anyhow::Result<()> {
    let tree = plain.join("src");
    for d in 0..scale.dirs.min(60) {
        let dir = tree.join(format!("pkg{}/mod{d}", d % 7));
        fs::create_dir_all(&dir)?;
        for f in 0..scale.files {
            fs::write(dir.join(format!("file{f}.rs")), vec![b'y'; 300 + 97 * (f % 60)])?;
        }
    }
    run(Command::new("tar").arg("-cf").arg(archive).arg("-C").arg(plain).arg("src"))?;
    Ok(fs::remove_dir_all(&tree)?)
}

/// Files and directories below `dir`.
fn count(dir: &Path) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        found += 1;
        if entry.file_type()?.is_dir() {
            found += count(&entry.path())?;
        }
    }
    Ok(found)
}

fn hash_of(layers: &[PathBuf]) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    layers.iter().try_for_each(|layer| hash(layer, &mut hasher))?;
    Ok(hasher.finish())
}

/// Of names, and of what no change leaves as it is: the times of the last change.
fn hash(dir: &Path, hasher: &mut DefaultHasher) -> anyhow::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let data = entry.metadata()?;
        (entry.file_name(), data.mode(), data.size()).hash(hasher);
        (data.ctime(), data.ctime_nsec(), data.mtime(), data.mtime_nsec()).hash(hasher);
        if data.is_dir() {
            hash(&entry.path(), hasher)?;
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

/// Runs it, and the seconds that it took. Says what it said where it fails.
pub fn timed(command: &mut Command) -> anyhow::Result<(f64, Vec<u8>)> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {:?}", command.get_program()))?;
    let took = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().next_back().unwrap_or("");
        bail!("{:?} failed: {}: {last}", command.get_program(), output.status);
    }
    Ok((took, output.stdout))
}
