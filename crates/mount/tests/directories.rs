//! Listings that stay in order while the directory changes, and many layers.

mod scene;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Dir, SeekFrom};
use scene::Scene;

fn many(dir: &Path) {
    for number in 0..3000 {
        fs::write(dir.join(format!("lower-{number:04}")), "").unwrap();
    }
}

fn names(path: &Path) -> BTreeSet<OsString> {
    let names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    let set: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "a name is listed twice");
    set
}

#[test]
fn every_name_once_and_its_true_number() {
    let Some(scene) = Scene::new(many) else { return };
    fs::write(scene.path("lower-0007"), "up").unwrap();
    fs::remove_file(scene.path("lower-0008")).unwrap();
    fs::write(scene.path("upper"), "").unwrap();
    assert_eq!(names(&scene.path("")).len(), 3000);
    for entry in fs::read_dir(scene.path("")).unwrap().step_by(97) {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), fs::metadata(entry.path()).unwrap().ino(), "{entry:?}");
    }
}

#[test]
fn removing_while_listing_removes_all() {
    let Some(scene) = Scene::new(many) else { return };
    for entry in fs::read_dir(scene.path("")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(names(&scene.path("")).len(), 0);
}

#[test]
fn a_place_in_a_listing_stays() {
    let Some(scene) = Scene::new(many) else { return };
    let mut dir = rustix::fs::openat(
        rustix::fs::CWD,
        scene.path(""),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let entries: Vec<_> = Dir::read_from(&dir).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len(), 3002);
    let place = entries[1000].offset();
    let expected = entries[1001].file_name().to_owned();
    let old = entries[1001..].iter().map(|entry| entry.file_name().to_owned());
    let old: Vec<_> = old.collect();
    drop(entries);
    fs::write(scene.path("aaa"), "").unwrap();
    fs::remove_file(scene.path("lower-0000")).unwrap();
    rustix::fs::seek(&mut dir, SeekFrom::Start(place as u64)).unwrap();
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut raw = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        found.push(entry.unwrap().file_name().to_owned());
    }
    // What was not changed keeps its order behind the place.
    assert!(found.contains(&expected) || expected.as_bytes() == b"lower-0000");
    let kept = old.iter().filter(|name| found.contains(name)).count();
    assert!(kept + 1 >= old.len(), "{kept} of {}", old.len());
}

/// The next batch of names, of 4 KiB at most; empty at the end.
fn batch(dir: &std::os::fd::OwnedFd) -> Vec<OsString> {
    let mut buffer = Vec::with_capacity(4 << 10);
    let mut names = Vec::new();
    let mut raw = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        names.push(OsString::from_vec(entry.unwrap().file_name().to_bytes().to_vec()));
        if raw.is_buffer_empty() {
            break;
        }
    }
    names
}

/// Nobody says when a directory is opened and closed, so that all who read it share what is remembered of it.
#[test]
fn many_readers_of_a_changing_directory_get_each_name_that_stays_once() {
    let Some(scene) = Scene::new(many) else { return };
    let open = || {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let mode = rustix::fs::Mode::empty();
        rustix::fs::openat(rustix::fs::CWD, scene.path(""), flags, mode).unwrap()
    };
    let mut readers: Vec<_> = (0..4).map(|_| (open(), Vec::new(), false)).collect();
    let (mut round, mut left) = (0, readers.len());
    while left > 0 {
        for (number, (dir, seen, ended)) in readers.iter_mut().enumerate() {
            // Each at another speed, and one anew in the middle of the others.
            for _ in 0..=number {
                let names = if *ended { Vec::new() } else { batch(dir) };
                if names.is_empty() && !*ended {
                    (*ended, left) = (true, left - 1);
                }
                seen.extend(names);
            }
        }
        // One of three goes; another comes, and goes at once or stays.
        if round < 900 {
            fs::remove_file(scene.path(&format!("lower-{:04}", 3 * round))).unwrap();
            fs::write(scene.path(&format!("new-{round}")), "").unwrap();
            if round % 2 == 0 {
                fs::remove_file(scene.path(&format!("new-{round}"))).unwrap();
            }
        }
        if round % 50 == 0 {
            names(&scene.path(""));
        }
        round += 1;
    }
    for (number, (_, seen, _)) in readers.iter().enumerate() {
        let set: BTreeSet<_> = seen.iter().collect();
        assert_eq!(set.len(), seen.len(), "reader {number} got a name twice");
        for kept in (0..3000).filter(|kept| kept % 3 != 0 || *kept >= 3 * round) {
            let name = OsString::from(format!("lower-{kept:04}"));
            assert!(set.contains(&name), "reader {number} did not get {name:?}");
        }
    }
}

#[test]
fn a_cached_listing_sees_every_change() {
    let Some(scene) = Scene::new(many) else { return };
    fs::create_dir(scene.path("dir")).unwrap();
    let dir = scene.path("dir");
    for round in 0..30 {
        fs::write(dir.join(format!("f{round}")), "").unwrap();
        assert_eq!(names(&dir).len(), round + 1);
        assert_eq!(names(&dir).len(), round + 1);
    }
    fs::rename(dir.join("f0"), scene.path("out")).unwrap();
    assert_eq!(names(&dir).len(), 29);
    fs::rename(scene.path("lower-0001"), dir.join("in")).unwrap();
    assert!(names(&dir).contains(&OsString::from("in")));
    assert_eq!(names(&scene.path("")).len(), 3001);
}

#[test]
fn set_group_id_is_inherited_and_the_mask_applies() {
    let Some(scene) = Scene::new(|dir| {
        fs::create_dir(dir.join("shared")).unwrap();
        std::os::unix::fs::chown(dir.join("shared"), None, Some(77)).unwrap();
        fs::set_permissions(dir.join("shared"), PermissionsExt::from_mode(0o2777)).unwrap();
    }) else {
        return;
    };
    // The mask of this process is not ours to change while other tests run: what it is applies.
    fs::create_dir(scene.path("shared/dir")).unwrap();
    fs::write(scene.path("shared/file"), "").unwrap();
    let dir = fs::metadata(scene.path("shared/dir")).unwrap();
    let file = fs::metadata(scene.path("shared/file")).unwrap();
    assert_eq!((dir.gid(), file.gid()), (77, 77));
    assert_eq!((dir.mode() & 0o2000, file.mode() & 0o2000), (0o2000, 0));
    let plain = tempfile::tempdir().unwrap();
    fs::write(plain.path().join("file"), "").unwrap();
    let masked = fs::metadata(plain.path().join("file")).unwrap();
    assert_eq!(file.mode() & 0o777, masked.mode() & 0o777);
}

#[test]
fn five_hundred_layers_are_one_tree() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "no FUSE");
        println!("SKIPPED: needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut lowers = Vec::new();
    for layer in 0..500 {
        let path = at(&format!("l{layer}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join(format!("own-{layer}")), "").unwrap();
        fs::write(path.join("all"), layer.to_string()).unwrap();
        lowers.push(path.display().to_string());
    }
    fs::create_dir(at("merged")).unwrap();
    let options = mount::Options::parse(&[format!("lowerdir={}", lowers.join(":"))]).unwrap();
    let mounted = mount::mount(&options.options, &at("merged")).unwrap();
    let server = std::thread::spawn(move || mounted.serve().unwrap());
    let seen = std::panic::catch_unwind(|| {
        assert_eq!(names(&at("merged")).len(), 501);
        assert_eq!(fs::read_to_string(at("merged/all")).unwrap(), "0");
        assert!(at("merged/own-499").exists());
    });
    fuse::mount::unmount(&at("merged"), true).unwrap();
    server.join().unwrap();
    assert!(seen.is_ok());
}

/// The form of marks in layers that containers/storage unpacks for a mount program.
#[test]
fn aufs_marks_hide_in_lower_layers_and_are_never_made() {
    let Some(mut scene) = Scene::new(|dir| {
        fs::write(dir.join(".wh.gone"), "").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        fs::write(dir.join("dir/.wh..wh..opq"), "").unwrap();
        fs::write(dir.join("dir/file"), "").unwrap();
    }) else {
        return;
    };
    for _ in 0..2 {
        assert_eq!(names(&scene.path("")), BTreeSet::from([OsString::from("dir")]));
        assert_eq!(names(&scene.path("dir")), BTreeSet::from([OsString::from("file")]));
        assert!(!scene.path(".wh.gone").exists() && !scene.path("gone").exists());
        let made = fs::write(scene.path("dir/.wh.file"), "").unwrap_err();
        assert_eq!(made.raw_os_error(), Some(22));
        scene.remount();
    }
}

/// Directories of lower layers that were asked in vain often answer from memory: it must not forget whiteouts.
#[test]
fn many_misses_change_no_answer() {
    let Some(scene) = Scene::new(many) else { return };
    for number in 0..100 {
        assert!(!scene.path(&format!("none-{number}")).exists());
    }
    fs::write(scene.path("none-5"), "made").unwrap();
    assert_eq!(fs::read_to_string(scene.path("none-5")).unwrap(), "made");
    fs::remove_file(scene.path("none-5")).unwrap();
    assert!(!scene.path("none-5").exists());
    fs::remove_file(scene.path("lower-0500")).unwrap();
    fs::remove_file(scene.path("lower-2999")).unwrap();
    assert!(!scene.path("lower-0500").exists() && !scene.path("lower-2999").exists());
    assert!(scene.path("lower-0501").exists());
    fs::rename(scene.path("lower-0501"), scene.path("none-6")).unwrap();
    assert!(!scene.path("lower-0501").exists() && scene.path("none-6").exists());
    assert_eq!(names(&scene.path("")).len(), 2998);
}
