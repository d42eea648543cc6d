//! The limit of the writable layer, through a real mount.

mod scene;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use scene::Scene;

const MIB: u64 = 1 << 20;

fn refused(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

/// Writes until the file system says that it is full; the bytes that are in the file then.
fn fill(scene: &Scene, name: &str) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(scene.path(name)).unwrap();
    let chunk = vec![7; 100_000];
    loop {
        if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            assert!(refused(&error), "{error}");
            return file.metadata().unwrap().len();
        }
    }
}

#[test]
fn a_write_fails_at_the_limit_and_what_was_written_stays() {
    let Some(mut scene) = Scene::with("size=8m,nr_inodes=10", |lower| {
        fs::write(lower.join("lower"), vec![1; 2 << 20]).unwrap();
    }) else {
        return;
    };
    let stat = rustix::fs::statvfs(scene.path("")).unwrap();
    assert_eq!((stat.f_blocks * stat.f_frsize, stat.f_files), (8 * MIB, 10));
    assert_eq!(fill(&scene, "a"), 8 * MIB, "exactly at the limit");
    assert_eq!(rustix::fs::statvfs(scene.path("")).unwrap().f_bavail, 0);
    // What is there may be written over; the lower file can't be copied up.
    let a = OpenOptions::new().write(true).open(scene.path("a")).unwrap();
    a.write_all_at(&[9; 4096], 0).unwrap();
    drop(a);
    let lower = OpenOptions::new().write(true).open(scene.path("lower"));
    assert!(refused(&lower.unwrap_err()));
    assert_eq!(fs::read(scene.path("lower")).unwrap().len(), 2 << 20);
    scene.remount();
    assert_eq!(fs::metadata(scene.path("a")).unwrap().len(), 8 * MIB);
    assert_eq!(fs::read(scene.path("a")).unwrap()[0], 9);
    // A hole takes nothing, and a cut gives back.
    let a = OpenOptions::new().write(true).open(scene.path("a")).unwrap();
    a.set_len(3 * MIB).unwrap();
    a.set_len(100 * MIB).unwrap();
    assert_eq!(fill(&scene, "b"), 5 * MIB);
    fs::remove_file(scene.path("b")).unwrap();
    OpenOptions::new().write(true).open(scene.path("lower")).unwrap();
    assert_eq!(fill(&scene, "c"), 3 * MIB);
    fs::remove_file(scene.path("lower")).unwrap();
    assert_eq!(fill(&scene, "c"), 5 * MIB);
}

#[test]
fn an_open_file_keeps_its_room_until_it_is_closed() {
    let Some(scene) = Scene::with("size=4m", |_| {}) else { return };
    let mut open = File::create(scene.path("a")).unwrap();
    open.write_all(&vec![1; 3 << 20]).unwrap();
    open.sync_all().unwrap();
    fs::remove_file(scene.path("a")).unwrap();
    assert_eq!(fill(&scene, "b"), MIB);
    drop(open);
    // The kernel tells of the last close behind it.
    let begun = std::time::Instant::now();
    while rustix::fs::statvfs(scene.path("")).unwrap().f_bavail == 0 {
        assert!(begun.elapsed().as_secs() < 30, "nothing was given back");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(fill(&scene, "b"), 4 * MIB);
    fs::write(scene.path("c"), "").unwrap();
    fs::rename(scene.path("c"), scene.path("b")).unwrap();
    assert_eq!(fill(&scene, "d"), 4 * MIB);
}

#[test]
fn inodes_are_counted_too() {
    let Some(mut scene) = Scene::with("nr_inodes=4", |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("d/lower"), "x").unwrap();
    }) else {
        return;
    };
    fs::write(scene.path("a"), "a").unwrap();
    fs::hard_link(scene.path("a"), scene.path("b")).unwrap();
    std::os::unix::fs::symlink("a", scene.path("c")).unwrap();
    // The directory and the file: two more.
    fs::write(scene.path("d/lower"), "y").unwrap();
    for _ in 0..2 {
        assert!(refused(&File::create(scene.path("e")).unwrap_err()));
        assert!(refused(&fs::create_dir(scene.path("e")).unwrap_err()));
        scene.remount();
    }
    fs::remove_file(scene.path("a")).unwrap();
    assert!(refused(&File::create(scene.path("e")).unwrap_err()), "it has another name");
    fs::remove_file(scene.path("b")).unwrap();
    File::create(scene.path("e")).unwrap();
    fs::remove_file(scene.path("d/lower")).unwrap();
    File::create(scene.path("f")).unwrap();
    assert!(refused(&File::create(scene.path("g")).unwrap_err()));
}

#[test]
fn what_is_counted_is_read_while_it_serves_and_goes_on_at_the_next_mount() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("counters");
    let options = format!("size=8m,partial=off,counters={}", file.display());
    let Some(mut scene) = Scene::with(&options, |lower| {
        fs::write(lower.join("one"), vec![1; 1 << 20]).unwrap();
        fs::write(lower.join("two"), vec![1; 100]).unwrap();
    }) else {
        return;
    };
    let counted = || union::Counted::read(&file).unwrap().unwrap();
    let none = union::Counted { used: Some((0, 0)), ..Default::default() };
    assert_eq!(counted(), none);
    OpenOptions::new().append(true).open(scene.path("one")).unwrap().write_all(b"more").unwrap();
    let after = counted();
    assert_eq!((after.copy_ups, after.copied_bytes, after.refused), (1, 1 << 20, 0));
    assert_eq!(after.used, Some(((1 << 20) + 4096, 1)));
    assert_eq!(fill(&scene, "full"), 7 * MIB - 4096);
    assert!(counted().refused > 0);
    assert_eq!(counted().used, Some((8 * MIB, 2)));
    fs::remove_file(scene.path("full")).unwrap();
    let before = counted();
    scene.remount();
    // The copy-ups of before, and what is used as it is.
    assert_eq!(counted(), before);
    OpenOptions::new().append(true).open(scene.path("two")).unwrap().write_all(b"x").unwrap();
    assert_eq!((counted().copy_ups, counted().copied_bytes), (2, (1 << 20) + 4096));
}
