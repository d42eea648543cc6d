//! What is measured: each row does its work in a fresh mount and says how much of it went through in a second.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::scene::{run, timed};

/// How much work a row is.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Directories of the lower layers.
    pub dirs: usize,
    /// Files in each of them.
    pub files: usize,
    /// MiB of the big file.
    pub big_mib: usize,
    /// Operations of the rows that have no tree to walk.
    pub ops: usize,
}

impl Scale {
    /// For figures.
    pub const FULL: Self = Self { dirs: 200, files: 60, big_mib: 256, ops: 3000 };
    /// To see that everything works.
    pub const QUICK: Self = Self { dirs: 10, files: 12, big_mib: 8, ops: 100 };
}

/// Which layers a row works on.
#[derive(Debug, Clone, Copy)]
pub enum Ground {
    /// Three of small files, and a big one.
    Layers,
    /// A layer of small files and a big one, on a disk.
    Disk,
    /// One layer, which the function makes in a directory; and its name.
    Made(&'static str, fn(&Path, &Scale) -> anyhow::Result<()>),
    /// Those of an image, `NAME:TAG`.
    Image(&'static str),
}

impl Ground {
    /// Each is made once for all rows.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Disk => "disk",
            Self::Made(name, _) | Self::Image(name) => name,
        }
    }
}

/// What a row is handed.
#[derive(Debug)]
pub struct Work<'a> {
    /// The mounted union.
    pub merged: &'a Path,
    /// An archive to unpack, outside the union.
    pub archive: &'a Path,
    /// How much.
    pub scale: &'a Scale,
    /// Files and directories of the lower layers, as they are shown.
    pub entries: usize,
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As the report calls it.
    pub name: &'static str,
    /// What its value counts, a second: more is better. Or `s`: the seconds of a whole job.
    pub unit: &'static str,
    /// Does the work; the value.
    pub run: fn(&Work) -> anyhow::Result<f64>,
    /// What it works on.
    pub ground: Ground,
    /// Programs of the machine that it runs.
    pub needs: &'static [&'static str],
}

/// One on [`Ground::Layers`].
const fn row(name: &'static str, unit: &'static str, run: fn(&Work) -> anyhow::Result<f64>) -> Row {
    Row { name, unit, run, ground: Ground::Layers, needs: &[] }
}

/// All rows, in the order of the report.
pub fn all() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(crate::job::ROWS).chain(crate::sync::ROWS)
}

const ROWS: &[Row] = &[
    row("stat, cold", "files/s", stat_cold),
    row("stat, cold, 4 threads", "files/s", stat_threads),
    row("stat, warm", "files/s", stat_warm),
    row("names that are absent", "lookups/s", absent),
    row("list directories", "entries/s", list),
    row("list directories, warm", "entries/s", |work| third(work, list)),
    row("find", "entries/s", find),
    row("tar c", "files/s", pack),
    row("open, read, close: lower", "files/s", read_small),
    row("open, read, close: upper", "files/s", read_small_upper),
    row("create", "files/s", create),
    row("rename", "files/s", rename),
    row("unlink", "files/s", unlink),
    row("unlink: lower", "files/s", unlink_lower),
    row("copy-up, 4 KiB", "files/s", copy_up),
    row("chmod -R", "files/s", chmod),
    row("copy-up, big file", "MiB/s", copy_up_big),
    row("read: lower", "MiB/s", read_big),
    row("read: upper", "MiB/s", read_big_upper),
    row("read 4 KiB at random: upper", "reads/s", read_random),
    row("write", "MiB/s", write_big),
    row("write 4 KiB at random: upper", "writes/s", write_random_upper),
    row("write 4 KiB at random: was lower", "writes/s", write_random),
    row("untar", "files/s", untar),
    row("rm -r", "files/s", remove_tree),
];

/// How many a second, of those done since `begun`.
pub fn per_second(count: usize, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

impl Work<'_> {
    fn lower_files(&self) -> Vec<PathBuf> {
        let tree = self.merged.join("tree");
        let files = self.scale.files;
        (0..self.scale.dirs)
            .flat_map(|d| (0..files).map(move |f| (d, f)))
            .map(|(d, f)| tree.join(format!("d{d}/f{f}")))
            .collect()
    }

    /// As many as `ops`, spread over all directories.
    fn some_lower_files(&self) -> Vec<PathBuf> {
        let all = self.lower_files();
        let step = (all.len() / self.scale.ops).max(1);
        all.into_iter().step_by(step).take(self.scale.ops).collect()
    }

    /// Files of the upper layer, a hundred a directory.
    fn made(&self) -> anyhow::Result<Vec<PathBuf>> {
        let paths = self.to_make()?;
        for path in &paths {
            fs::write(path, [b'z'; 1024])?;
        }
        Ok(paths)
    }

    fn to_make(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths = Vec::with_capacity(self.scale.ops);
        for n in 0..self.scale.ops {
            let dir = self.merged.join(format!("new{}", n / 100));
            if n % 100 == 0 {
                fs::create_dir(&dir)?;
            }
            paths.push(dir.join(format!("n{n}")));
        }
        Ok(paths)
    }

    /// A copy of the big file.
    pub fn big_upper(&self) -> anyhow::Result<PathBuf> {
        let path = self.merged.join("big-upper");
        fs::copy(self.merged.join("big"), &path)?;
        Ok(path)
    }
}

fn stat_all(paths: &[PathBuf]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for path in paths {
        fs::symlink_metadata(path)?;
    }
    Ok(per_second(paths.len(), begun))
}

fn stat_cold(work: &Work) -> anyhow::Result<f64> {
    stat_all(&work.lower_files())
}

/// Each thread has directories of its own.
fn stat_threads(work: &Work) -> anyhow::Result<f64> {
    let paths = work.lower_files();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let part = paths.len().div_ceil(4);
        let threads: Vec<_> =
            paths.chunks(part).map(|part| scope.spawn(move || stat_all(part))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?.map(drop)
        })
    })?;
    Ok(per_second(paths.len(), begun))
}

fn stat_warm(work: &Work) -> anyhow::Result<f64> {
    let paths = work.lower_files();
    stat_all(&paths)?;
    stat_all(&paths)
}

fn absent(work: &Work) -> anyhow::Result<f64> {
    let paths: Vec<_> =
        work.lower_files().iter().map(|path| path.with_extension("absent")).collect();
    let begun = Instant::now();
    for path in &paths {
        anyhow::ensure!(!path.exists(), "{} is there", path.display());
    }
    Ok(per_second(paths.len(), begun))
}

fn list(work: &Work) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut count = 0;
    for dir in fs::read_dir(work.merged.join("tree"))? {
        for entry in fs::read_dir(dir?.path())? {
            entry?;
            count += 1;
        }
    }
    anyhow::ensure!(count == work.scale.dirs * work.scale.files, "{count} entries are listed");
    Ok(per_second(count, begun))
}

/// For the third time. (With the second, FUSE asks anew when each directory was read: the first listing has changed that.)
pub fn third(work: &Work, run: fn(&Work) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    run(work)?;
    run(work)?;
    run(work)
}

fn find(work: &Work) -> anyhow::Result<f64> {
    found_below(&work.merged.join("tree"))
}

/// What find(1) finds below a directory and looks at, a second.
pub fn found_below(tree: &Path) -> anyhow::Result<f64> {
    let (took, sizes) = timed(Command::new("find").arg(tree).args(["-printf", "%s\n"]))?;
    Ok(sizes.iter().filter(|byte| **byte == b'\n').count() as f64 / took)
}

fn pack(work: &Work) -> anyhow::Result<f64> {
    let begun = Instant::now();
    // Into a pipe: tar reads nothing where it writes to /dev/null.
    let mut tar = Command::new("sh");
    tar.args(["-c", "tar -C \"$0\" -c tree | cat >/dev/null"]).arg(work.merged);
    run(&mut tar)?;
    Ok(per_second(work.scale.dirs * work.scale.files, begun))
}

fn read_all(paths: &[PathBuf]) -> anyhow::Result<f64> {
    let mut buffer = [0; 8192];
    let begun = Instant::now();
    for path in paths {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(per_second(paths.len(), begun))
}

fn read_small(work: &Work) -> anyhow::Result<f64> {
    read_all(&work.some_lower_files())
}

fn read_small_upper(work: &Work) -> anyhow::Result<f64> {
    read_all(&work.made()?)
}

fn create(work: &Work) -> anyhow::Result<f64> {
    let paths = work.to_make()?;
    let begun = Instant::now();
    for path in &paths {
        fs::write(path, [b'z'; 1024])?;
    }
    Ok(per_second(paths.len(), begun))
}

fn rename(work: &Work) -> anyhow::Result<f64> {
    let paths = work.made()?;
    let begun = Instant::now();
    for path in &paths {
        fs::rename(path, path.with_extension("renamed"))?;
    }
    Ok(per_second(paths.len(), begun))
}

fn remove_all(paths: &[PathBuf]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for path in paths {
        fs::remove_file(path)?;
    }
    Ok(per_second(paths.len(), begun))
}

fn unlink(work: &Work) -> anyhow::Result<f64> {
    remove_all(&work.made()?)
}

fn unlink_lower(work: &Work) -> anyhow::Result<f64> {
    remove_all(&work.some_lower_files())
}

pub fn copy_up(work: &Work) -> anyhow::Result<f64> {
    let paths = work.some_lower_files();
    let begun = Instant::now();
    for path in &paths {
        OpenOptions::new().append(true).open(path)?.write_all(b"more")?;
    }
    Ok(per_second(paths.len(), begun))
}

pub fn chmod(work: &Work) -> anyhow::Result<f64> {
    let count = work.scale.dirs * (work.scale.files + 1);
    Ok(count as f64 / shared_below(&work.merged.join("tree"))?)
}

/// Lets the group write to all that is below a directory; the seconds that it took.
pub fn shared_below(tree: &Path) -> anyhow::Result<f64> {
    Ok(timed(Command::new("chmod").args(["-R", "g+w"]).arg(tree))?.0)
}

fn copy_up_big(work: &Work) -> anyhow::Result<f64> {
    let begun = Instant::now();
    OpenOptions::new().append(true).open(work.merged.join("big"))?.write_all(b"more")?;
    Ok(per_second(work.scale.big_mib, begun))
}

fn read_to_end(path: &Path, mib: usize) -> anyhow::Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let begun = Instant::now();
    let mut file = File::open(path)?;
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => total += n,
        }
    }
    anyhow::ensure!(total == mib << 20, "{total} bytes were read");
    Ok(per_second(mib, begun))
}

fn read_big(work: &Work) -> anyhow::Result<f64> {
    read_to_end(&work.merged.join("big"), work.scale.big_mib)
}

fn read_big_upper(work: &Work) -> anyhow::Result<f64> {
    read_to_end(&work.big_upper()?, work.scale.big_mib)
}

fn read_random(work: &Work) -> anyhow::Result<f64> {
    let mut file = File::open(work.big_upper()?)?;
    let mut buffer = [0; 4096];
    let places = places(work);
    let begun = Instant::now();
    for place in &places {
        file.seek(SeekFrom::Start(*place))?;
        file.read_exact(&mut buffer)?;
    }
    Ok(per_second(places.len(), begun))
}

/// Of blocks of the big file, in any order that is always the same.
pub fn places(work: &Work) -> Vec<u64> {
    let blocks = (work.scale.big_mib as u64) << 20 >> 12;
    let next = |at: &u64| Some((at * 48_271) % 2_147_483_647);
    let order = std::iter::successors(Some(1), next).skip(1);
    order.map(|at| (at % blocks) << 12).take(work.scale.ops * 4).collect()
}

fn write_at_random(path: &Path, work: &Work) -> anyhow::Result<f64> {
    let file = OpenOptions::new().write(true).open(path)?;
    // The first byte is a row of its own.
    file.write_all_at(b"y", 0)?;
    let places = places(work);
    let begun = Instant::now();
    for place in &places {
        file.write_all_at(&[b'y'; 4096], *place)?;
    }
    Ok(per_second(places.len(), begun))
}

fn write_random_upper(work: &Work) -> anyhow::Result<f64> {
    write_at_random(&work.big_upper()?, work)
}

fn write_random(work: &Work) -> anyhow::Result<f64> {
    write_at_random(&work.merged.join("big"), work)
}

fn write_big(work: &Work) -> anyhow::Result<f64> {
    let block = vec![7; 1 << 20];
    let begun = Instant::now();
    let mut file = File::create(work.merged.join("written"))?;
    for _ in 0..work.scale.big_mib {
        file.write_all(&block)?;
    }
    drop(file);
    Ok(per_second(work.scale.big_mib, begun))
}

fn unpack(work: &Work) -> anyhow::Result<usize> {
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(work.archive).arg("-C").arg(work.merged).stdin(Stdio::null());
    run(&mut tar)?;
    Ok(work.scale.dirs.min(60) * work.scale.files)
}

fn untar(work: &Work) -> anyhow::Result<f64> {
    let begun = Instant::now();
    Ok(per_second(unpack(work)?, begun))
}

fn remove_tree(work: &Work) -> anyhow::Result<f64> {
    let count = unpack(work)?;
    let begun = Instant::now();
    fs::remove_dir_all(work.merged.join("src"))?;
    Ok(per_second(count, begun))
}
