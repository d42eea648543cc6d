//! The power fails while a partial file is written to: each chunk is afterwards as it was at the last fsync, or as a write
//! after that left it; never zeros that nobody wrote, never a mix.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use layer::Namespace;
use rustix::fs::{FallocateFlags, OFlags};
use union::{Config, Limits, NodeId, OpenFile, Union};

const CHUNK: usize = 4096;
const CHUNKS: usize = 1200;
const SIZE: usize = CHUNK * CHUNKS;

/// A file system in a file, which can be cut off as by a power failure.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// None, having said why, where the machine can't.
    fn new(kind: &str, options: &[&str]) -> Option<Self> {
        let missing = !rustix::process::geteuid().is_root()
            || Command::new("xfs_io").arg("-V").output().is_err()
            || Command::new(format!("mkfs.{kind}")).arg("-V").output().is_err();
        if missing {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "no {kind}");
            println!("SKIPPED: needs root, xfs_io and mkfs.{kind}");
            return None;
        }
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        let image = disk.dir.path().join("image");
        File::create_new(&image).unwrap().set_len(400 << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").args(options).arg(&image));
        fs::create_dir(disk.at("")).unwrap();
        disk.mount();
        Some(disk)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("disk").join(name)
    }

    fn mount(&self) {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(self.dir.path().join("image"))
            .arg(self.at("")));
    }

    fn cut(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.at("")));
    }

    /// Unmounts it, and waits until nobody has it: a mount namespace that a program made meanwhile has a copy.
    fn unmount(&self) {
        let image = self.dir.path().join("image");
        let begun = std::time::Instant::now();
        // A child of another test has our descriptors until its exec.
        while !Command::new("umount").arg(self.at("")).status().unwrap().success() {
            assert!(begun.elapsed().as_secs() < 60, "{image:?} stays in use");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        while !Command::new("losetup").arg("-j").arg(&image).output().unwrap().stdout.is_empty() {
            assert!(begun.elapsed().as_secs() < 60, "another mount namespace keeps {image:?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let left = Command::new("umount").arg("-l").arg(self.at("")).status();
            println!("unmounted: {left:?}");
        }
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn open(disk: &Disk) -> Union {
    Union::open(&Config {
        lowers: vec![disk.at("lower")],
        upper: Some((disk.at("upper"), disk.at("work"))),
        namespace: Namespace::Trusted,
        volatile: false,
        limits: Limits::default(),
        index: true,
        partial: true,
    })
    .unwrap()
}

fn file(union: &Union) -> std::sync::Arc<OpenFile> {
    let node = union.lookup(NodeId::ROOT, OsStr::new("big")).unwrap().node;
    union.open_file(node, OFlags::RDWR).unwrap()
}

/// Random numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// What a chunk may be after a crash; the last is what it is now.
type Versions = Vec<Vec<Vec<u8>>>;

fn change(now: &mut [u8], versions: &mut Versions, at: usize, data: &[u8]) {
    now[at..at + data.len()].copy_from_slice(data);
    for chunk in at / CHUNK..(at + data.len()).div_ceil(CHUNK) {
        versions[chunk].push(now[chunk * CHUNK..(chunk + 1) * CHUNK].to_vec());
    }
}

fn sync_alone(path: &Path) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            File::open(entry.unwrap().path()).unwrap().sync_data().unwrap();
        }
    } else if let Ok(file) = File::open(path) {
        file.sync_data().unwrap();
    }
}

fn rounds(kind: &str, options: &[&str], seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let Some(disk) = Disk::new(kind, options) else { return };
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(disk.at(dir)).unwrap();
        }
        let mut now: Vec<u8> =
            (0..SIZE / 512).flat_map(|sector| [(sector * 7) as u8 | 1; 512]).collect();
        fs::write(disk.at("lower/big"), &now).unwrap();
        rustix::fs::syncfs(File::open(disk.at("")).unwrap()).unwrap();
        let original = now.clone();
        let mut versions: Versions = now.chunks(CHUNK).map(|chunk| vec![chunk.to_vec()]).collect();
        let mut dice = Dice(seed);
        for cut in 0..4 {
            let union = open(&disk);
            let big = file(&union);
            let mut seen = Vec::new();
            for _ in 0..40 + dice.roll(80) {
                let at =
                    if dice.roll(2) == 0 { dice.roll(CHUNKS) * CHUNK } else { dice.roll(SIZE) };
                // Few places, so that what was written before is written again.
                let at = if dice.roll(3) == 0 { at % (40 * CHUNK) } else { at };
                let len = (1 + dice.roll(3 * CHUNK)).min(SIZE - at);
                match dice.roll(12) {
                    0..=6 => {
                        let data = vec![dice.roll(255) as u8 + 1; len];
                        assert_eq!(union.write(&big, &data, at as u64, false).unwrap(), len);
                        change(&mut now, &mut versions, at, &data);
                    }
                    7 => {
                        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        union.fallocate(&big, hole, (at as u64, len as u64), false).unwrap();
                        change(&mut now, &mut versions, at, &vec![0; len]);
                    }
                    8 => {
                        union.fsync(&big, dice.roll(2) == 0).unwrap();
                        for versions in &mut versions {
                            versions.drain(..versions.len() - 1);
                        }
                    }
                    // What reaches the disk by itself, in either order.
                    9 => sync_alone(&disk.at("upper/big")),
                    10 => sync_alone(&disk.at("work/work/incompat/partial")),
                    _ => drop(union.complete_idle(&mut seen).unwrap()),
                }
            }
            if cut == 3 && dice.roll(2) == 0 {
                union.complete().unwrap();
                for versions in &mut versions {
                    versions.drain(..versions.len() - 1);
                }
            }
            disk.cut();
            union.close(&big);
            drop((big, union));
            disk.unmount();
            disk.mount();
            let union = open(&disk);
            let big = file(&union);
            let mut shown = vec![0; SIZE];
            assert_eq!(union.read(&big, &mut shown, 0).unwrap(), SIZE);
            for (chunk, data) in shown.chunks(CHUNK).enumerate() {
                let place = format!("{kind} seed {seed} cut {cut} chunk {chunk}");
                let known = versions[chunk].iter().any(|version| version == data);
                assert!(known, "{place}: {:?}… of {} versions", &data[..8], versions[chunk].len());
                versions[chunk] = vec![data.to_vec()];
            }
            now = shown;
            union.fsync(&big, true).unwrap();
            union.close(&big);
        }
        let union = open(&disk);
        union.complete().unwrap();
        drop(union);
        if disk.at("upper/big").exists() {
            assert!(
                fs::read(disk.at("upper/big")).unwrap() == now,
                "{kind} seed {seed}: completed"
            );
        }
        assert!(fs::read(disk.at("lower/big")).unwrap() == original, "the lower layer changed");
        assert!(!disk.at("work/work/incompat").exists());
        let mut byte = [0];
        File::open(disk.at("lower/big")).unwrap().read_exact_at(&mut byte, 0).unwrap();
        disk.unmount();
    }
}

/// One at a time: they wait for each other's descriptors otherwise.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> impl Drop {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn on_ext4() {
    let _turn = turn();
    rounds("ext4", &[], 1..9);
}

#[test]
fn on_ext4_with_small_blocks() {
    let _turn = turn();
    rounds("ext4", &["-b", "1024"], 20..24);
}

#[test]
fn on_xfs() {
    let _turn = turn();
    rounds("xfs", &["-m", "reflink=0"], 40..48);
}
