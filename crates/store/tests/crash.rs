//! Whatever dies or fails, at whichever step: what the store says is there is complete, and nothing
//! else is left.

mod layout;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use layout::{Layout, dir, file, tar};
use rustix::process::{Signal, getpid, kill_process};
use store::manifest::Descriptor;
use store::snapshots::Kind;
use store::source::{OciLayout, Quiet, SourceError};
use store::{BlobSource, CommitOptions, PullOptions, Seam, Store};

/// A layout as if it were far away, so that its blobs are kept while they come.
struct Far(OciLayout);

impl BlobSource for Far {
    fn manifest(&self) -> Result<(Vec<u8>, String), SourceError> {
        self.0.manifest()
    }

    fn blob(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send>, SourceError> {
        self.0.blob(blob, from)
    }
}

/// Two images that share a layer.
fn images(at: &Path) -> PathBuf {
    let mut layout = Layout::new(&at.join("oci"));
    let shared = tar(&[dir("etc/"), file("etc/shared", "shared"), file("etc/shared", "again")]);
    layout.image("a", &[shared.clone(), tar(&[file("a", "a")])]);
    layout.image("b", &[shared, tar(&[file("b", "b"), file("etc/.wh.shared", "")])]);
    layout.dir
}

fn pull(store: &Store, layout: &Path, tag: &str) -> store::Result<()> {
    let source = Far(OciLayout::dir(layout, Some(tag)));
    let name = format!("localhost/{tag}:1");
    store.pull(&source, Some(&name), &Quiet, &PullOptions::default()).map(drop)
}

/// What a life has come to: told before an image is taken away, and after it was said to be there.
type Told<'t> = &'t dyn Fn(&str);

/// What a store goes through: every verb that writes.
fn live(root: &Path, layout: &Path, seam: Seam, told: Told<'_>) -> store::Result<()> {
    let store = Store::open_with(root, seam)?;
    pull(&store, layout, "a")?;
    told("+localhost/a:1");
    pull(&store, layout, "b")?;
    told("+localhost/b:1");
    let image = store.image("localhost/b:1")?;
    store.add_container("c1", "one", &image.id, "{}", true)?;
    let upper = store.writable_dir("c1").join("upper");
    fs::write(upper.join("new"), "new").expect("a file");
    let name = Some("localhost/c:1".to_owned());
    store.commit(&image, &upper, &CommitOptions { name, ..CommitOptions::default() })?;
    told("+localhost/c:1");
    store.remove_container("c1")?;
    told("-localhost/a:1");
    store.remove("localhost/a:1")?;
    told("-localhost/c:1");
    store.remove("localhost/c:1")?;
    snapshots(&store, layout)?;
    store.collect().map(drop)
}

/// Snapshots of containerd's: one whose layer is unpacked for it, one on that whose layer is there.
fn snapshots(store: &Store, layout: &Path) -> store::Result<()> {
    let source = Far(OciLayout::dir(layout, Some("a")));
    let manifest = source.manifest()?.0;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest");
    let blob = |at: usize| -> Descriptor {
        serde_json::from_value(manifest["layers"][at].clone()).expect("a blob")
    };
    let none = BTreeMap::new();
    let stack = store.prepare_snapshot("x", None, Kind::Active, &none)?;
    let (id, _) = store.snapshot_of(&stack.upper)?.expect("a snapshot");
    let base = store.apply_to_snapshot(id, &source, &blob(0))?.expect("an empty snapshot");
    store.commit_snapshot("x", "base", None, &none)?;
    let stack = store.prepare_snapshot("y", Some("base"), Kind::Active, &none)?;
    let (id, _) = store.snapshot_of(&stack.upper)?.expect("a snapshot");
    let top = store.apply_to_snapshot(id, &source, &blob(1))?.expect("an empty snapshot");
    store.remove_snapshot("y")?;
    let chain = store::chain_id(&[base.diff_id, top.diff_id]).expect("a chain");
    if store.adopt_snapshot("z", Some("base"), &chain, &none)? {
        store.remove_snapshot("z")?;
    }
    store.prepare_snapshot("kept", Some("base"), Kind::Active, &none).map(drop)
}

/// What must hold after anything, as soon as the store is opened again; `told` is what the life before said.
fn sound(root: &Path, layout: &Path, told: &str, when: &str) {
    let store = Store::open(root).expect(when);
    // What was acknowledged is there; that all of it is whole is verified below.
    let lines: Vec<&str> = told.lines().collect();
    for name in lines.iter().filter_map(|line| line.strip_prefix('+')) {
        if !lines.contains(&format!("-{name}").as_str()) {
            store.image(name).unwrap_or_else(|e| panic!("{when}: {name} was acknowledged: {e}"));
        }
    }
    let names = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).expect(when);
        let names = entries.map(|entry| entry.expect(when).file_name().into_string().expect(when));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let report = store.check(false).expect(when);
    assert!(report.findings.is_empty(), "{when}: {report:?}");
    for image in store.images().expect(when) {
        for lower in store.lower_dirs(&image) {
            assert!(lower.is_dir(), "{when}: {:?} lacks {lower:?}", image.tags);
        }
    }
    let containers: Vec<String> =
        store.containers().expect(when).into_iter().map(|row| row.id).collect();
    assert_eq!(names("rw"), containers, "{when}");
    for id in &containers {
        store.remove_container(id).expect(when);
    }
    for snapshot in store.snapshots().expect(when).iter().rev() {
        if snapshot.kind != Kind::Committed {
            for lower in store.snapshot_stack(&snapshot.name).expect(when).lowers {
                assert!(lower.is_dir(), "{when}: {:?} lacks {lower:?}", snapshot.name);
            }
        }
        store.remove_snapshot(&snapshot.name).expect(when);
    }
    store.collect().expect(when);
    let mut layers: Vec<String> =
        store.layers().expect(when).iter().map(|used| used.layer.diff_id.hex()).collect();
    layers.sort();
    assert_eq!(names("layers"), layers, "{when}");
    for place in ["staging", "trash", "locks", "rw", "snapshots"] {
        assert_eq!(names(place), [""; 0], "{when}: left in {place}");
    }
    // It goes on, also from blobs that came in part.
    for tag in ["a", "b"] {
        pull(&store, layout, tag).expect(when);
    }
    assert_eq!(names("partial"), [""; 0], "{when}");
    assert!(store.check(false).expect(when).findings.is_empty(), "{when}");
}

/// A seam that does `act` at step `at`, counted from 0.
fn at(step: usize, act: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static) -> Seam {
    let count = AtomicUsize::new(0);
    Seam::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        now if now >= step => act(now - step),
        _ => Ok(()),
    })
}

fn refused() -> io::Error {
    io::Error::other("the test says no")
}

#[test]
fn a_step_that_fails_leaves_a_sound_store() {
    let temp = tempfile::tempdir().expect("a directory");
    let layout = images(temp.path());
    // One step fails; every step from there on fails, as with a disk that has gone.
    for forever in [false, true] {
        for step in 0.. {
            let root = temp.path().join(format!("store-{forever}-{step}"));
            let failed = Arc::new(AtomicUsize::new(0));
            let seen = Arc::clone(&failed);
            let seam = at(step, move |after| {
                seen.fetch_add(1, Ordering::SeqCst);
                if forever || after == 0 { Err(refused()) } else { Ok(()) }
            });
            let said = parking_lot::Mutex::new(String::new());
            let told = |line: &str| *said.lock() += &format!("{line}\n");
            let done = live(&root, &layout, seam, &told);
            if failed.load(Ordering::SeqCst) == 0 {
                done.expect("nothing failed");
                assert!(step > 30, "only {step} steps");
                break;
            }
            let when = format!("step {step} failed, forever: {forever}");
            sound(&root, &layout, &said.into_inner(), &when);
            fs::remove_dir_all(&root).expect("a removal");
        }
    }
}

/// What a life told; one that came to nothing told nothing.
fn said(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

const STEP: &str = "STRATA_TEST_STEP";
const PLACE: &str = "STRATA_TEST_PLACE";
const LAYOUT: &str = "STRATA_TEST_LAYOUT";
/// Where a life tells what it has come to: on a file system that stays.
const TOLD: &str = "STRATA_TEST_TOLD";
/// The file system that goes with the process.
const POWER: &str = "STRATA_TEST_POWER";

#[test]
fn a_process_that_is_killed_leaves_a_sound_store() {
    let temp = tempfile::tempdir().expect("a directory");
    let layout = images(temp.path());
    let own = std::env::current_exe().expect("this program");
    for step in 0.. {
        let place = temp.path().join(step.to_string());
        let told = temp.path().join(format!("told-{step}"));
        let killed = Command::new(&own)
            .args(["--exact", "one_life_that_ends_at_a_step", "--ignored"])
            .env(STEP, step.to_string())
            .env(PLACE, &place)
            .env(LAYOUT, &layout)
            .env(TOLD, &told)
            .output()
            .expect("a child");
        if killed.status.success() {
            assert!(step > 30, "only {step} steps");
            break;
        }
        assert_eq!(killed.status.code(), None, "{killed:?}");
        sound(&place, &layout, &said(&told), &format!("killed at step {step}"));
        fs::remove_dir_all(&place).expect("a removal");
    }
}

/// A file system in a file, mounted until this is dropped.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn new(temp: &Path, kind: &str) -> Self {
        let disk = Self { image: temp.join(format!("{kind}.img")), at: temp.join(kind) };
        let file = fs::File::create_new(&disk.image).expect("an image");
        file.set_len(512 << 20).expect("its length");
        fs::create_dir(&disk.at).expect("a directory");
        ran(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&disk.image));
        disk.mount();
        disk
    }

    fn mount(&self) {
        ran(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }

    /// Unmounts it, and waits until nobody has it: a mount namespace that a program made meanwhile has a copy.
    fn unmount(&self) {
        let begun = std::time::Instant::now();
        let wait = || {
            assert!(begun.elapsed().as_secs() < 60, "{:?} stays in use", self.image);
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        while !Command::new("umount").arg(&self.at).output().expect("umount").status.success() {
            wait();
        }
        let used = || Command::new("losetup").arg("-j").arg(&self.image).output().expect("losetup");
        while !used().stdout.is_empty() {
            wait();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails has processes here at times.
        drop(Command::new("umount").arg("-l").arg(&self.at).output());
    }
}

fn ran(command: &mut Command) {
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Cuts the power at every step.
fn power_fails(kind: &str) {
    let there = Command::new(format!("mkfs.{kind}")).arg("-V").output().is_ok();
    if !there || !sys::privilege::is_initial_root() {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root and mkfs.{kind}");
        println!("SKIPPED: needs root and mkfs.{kind}");
        return;
    }
    let temp = tempfile::tempdir().expect("a directory");
    let layout = images(temp.path());
    let own = std::env::current_exe().expect("this program");
    let disk = Disk::new(temp.path(), kind);
    let mut acknowledged = 0;
    for step in 0.. {
        let place = disk.at.join(step.to_string());
        let told = temp.path().join(format!("told-{step}"));
        let life = Command::new(&own)
            .args(["--exact", "one_life_that_ends_at_a_step", "--ignored"])
            .env(STEP, step.to_string())
            .env(PLACE, &place)
            .env(LAYOUT, &layout)
            .env(POWER, &disk.at)
            .env(TOLD, &told)
            .output()
            .expect("a child");
        if life.status.success() {
            assert!(step > 30, "only {step} steps");
            break;
        }
        assert_eq!(life.status.code(), None, "{life:?}");
        disk.unmount();
        disk.mount();
        let said = said(&told);
        acknowledged += said.lines().filter(|line| line.starts_with('+')).count();
        sound(&place, &layout, &said, &format!("{kind}: power lost at step {step}"));
        fs::remove_dir_all(&place).expect("a removal");
    }
    assert!(acknowledged > 20, "{acknowledged} times an image was acknowledged before the cut");
}

#[test]
fn a_loss_of_power_leaves_a_sound_store_on_ext4() {
    power_fails("ext4");
}

#[test]
fn a_loss_of_power_leaves_a_sound_store_on_xfs() {
    power_fails("xfs");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn one_life_that_ends_at_a_step() {
    let (Some(step), Some(place)) = (std::env::var_os(STEP), std::env::var_os(PLACE)) else {
        return;
    };
    let step = step.to_str().and_then(|step| step.parse().ok()).expect("a number");
    let place = PathBuf::from(place);
    let layout = PathBuf::from(std::env::var_os(LAYOUT).expect("a layout"));
    let power = std::env::var_os(POWER).map(|at| fs::File::open(at).expect("a file system"));
    let seam = at(step, move |_| {
        if let Some(power) = &power {
            sys::cut::power(power).expect("a loss of power");
        }
        Ok(kill_process(getpid(), Signal::KILL)?)
    });
    let told = std::env::var_os(TOLD).map(PathBuf::from).expect("a place to tell");
    let told = fs::File::options().append(true).create(true).open(told).expect("a file");
    let told = |line: &str| writeln!(&told, "{line}").expect("telling");
    live(&place, &layout, seam, &told).expect("a life");
}
