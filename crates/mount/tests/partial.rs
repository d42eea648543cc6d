//! A write to a big file of a lower layer, through the mount: nothing is copied, everything is seen.

mod scene;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use scene::Scene;

const SIZE: usize = 16 << 20;

fn big(lower: &Path) {
    let bytes: Vec<u8> = (0..SIZE / 512).flat_map(|sector| [(sector * 7) as u8 | 1; 512]).collect();
    fs::write(lower.join("big"), bytes).unwrap();
}

fn writer(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn used(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// A mount whose files stay partial when it ends, and one by the kernel of the same layers.
fn kernel_mounts(scene: &Scene) -> bool {
    let root = scene.path("").parent().unwrap().to_owned();
    let at = |name: &str| root.join(name).display().to_string();
    let there = tempfile::tempdir().unwrap();
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &layers])
        .arg(there.path())
        .status()
        .unwrap();
    if mounted.success() {
        assert!(Command::new("umount").arg(there.path()).status().unwrap().success());
    }
    mounted.success()
}

#[test]
fn every_descriptor_sees_what_was_written_and_what_was_not() {
    let Some(mut scene) = Scene::new(big) else { return };
    let path = scene.path("big");
    let expected = fs::read(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let file = writer(&path);
    file.write_all_at(b"written", 1_000_000).unwrap();
    assert!(used(&scene.upper("big")) < 256 << 10, "it was copied");
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
    let mut model = expected.clone();
    model[1_000_000..1_000_007].copy_from_slice(b"written");
    for _ in 0..2 {
        for descriptor in [&reader, &file] {
            let mut bytes = vec![0; SIZE];
            descriptor.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == model, "other bytes");
            rustix::fs::fadvise(descriptor, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
    file.sync_all().unwrap();
    drop((reader, file));
    scene.remount();
    assert!(fs::read(scene.path("big")).unwrap() == model);
    assert!(used(&scene.upper("big")) >= SIZE as u64, "an unmount completes it");
    assert!(fs::read(scene.upper("big")).unwrap() == model);
}

#[test]
fn the_kernel_refuses_what_it_would_misread() {
    let Some(mut scene) = Scene::with("partial=keep", big) else { return };
    writer(&scene.path("big")).write_all_at(b"x", 5).unwrap();
    scene.remount_with(|| {});
    let times = fs::metadata(scene.path("big")).unwrap().modified().unwrap();
    scene.unmounted(|scene| assert!(!kernel_mounts(scene), "it would show zeros"));
    assert_eq!(fs::read(scene.path("big")).unwrap()[5], b'x');
    let root = File::open(scene.path("")).unwrap();
    sys::control::ask(&root, mount::MATERIALIZE).unwrap();
    drop(root);
    assert_eq!(fs::metadata(scene.path("big")).unwrap().modified().unwrap(), times);
    scene.unmounted(|scene| assert!(kernel_mounts(scene)));
}

#[test]
fn mapped_memory_is_written_and_read() {
    let Some(scene) = Scene::new(big) else { return };
    let path = scene.path("big");
    let before = fs::read(&path).unwrap();
    let file = writer(&path);
    // There is no safe way to map a file in Rust.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[8192:8200]=b'by a map'\nassert m[8200:8204]==m[8204:8208]\nm.flush()\n";
    let done = Command::new("python3").args(["-c", script]).arg(&path).status().unwrap();
    assert!(done.success());
    let mut model = before;
    model[8192..8200].copy_from_slice(b"by a map");
    let mut bytes = vec![0; SIZE];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == model);
    assert!(used(&scene.upper("big")) < 256 << 10);
}

#[test]
fn attributes_change_without_the_data() {
    let Some(scene) = Scene::new(big) else { return };
    let path = scene.path("big");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    fs::hard_link(&path, scene.path("again")).unwrap();
    assert!(used(&scene.upper("big")) < 64 << 10);
    writer(&scene.path("again")).write_all_at(b"one file", 0).unwrap();
    assert_eq!(&fs::read(&path).unwrap()[..8], b"one file");
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::read(scene.path("again")).unwrap().len(), SIZE);
    // A block may hold attributes.
    let shown = fs::metadata(scene.path("again")).unwrap().blocks() * 512;
    assert!((SIZE..SIZE + 8192).contains(&(shown as usize)), "{shown}");
}
