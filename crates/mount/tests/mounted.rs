//! A real mount, asked through the kernel.

mod scene;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use scene::Scene;

#[test]
fn what_is_changed_is_shown_and_stays() {
    let Some(mut scene) = Scene::new(|lower| {
        fs::create_dir(lower.join("etc")).unwrap();
        fs::write(lower.join("etc/hosts"), "old\n").unwrap();
        fs::write(lower.join("etc/gone"), "x").unwrap();
    }) else {
        return;
    };
    assert_eq!(fs::read_to_string(scene.path("etc/hosts")).unwrap(), "old\n");
    let ino = fs::metadata(scene.path("etc/hosts")).unwrap().ino();
    let mut file = OpenOptions::new().append(true).open(scene.path("etc/hosts")).unwrap();
    file.write_all(b"new\n").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(scene.path("etc/hosts")).unwrap().ino(), ino);
    fs::remove_file(scene.path("etc/gone")).unwrap();
    fs::create_dir(scene.path("etc/dir")).unwrap();
    fs::write(scene.path("etc/dir/file"), vec![7; 3 << 20]).unwrap();
    symlink("dir/file", scene.path("etc/link")).unwrap();
    fs::rename(scene.path("etc/dir/file"), scene.path("etc/dir/renamed")).unwrap();
    fs::set_permissions(scene.path("etc/dir/renamed"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(fs::read(scene.path("etc/link")).is_err());
    drop(file);
    for remounted in [false, true] {
        if remounted {
            scene.remount();
        }
        assert_eq!(fs::read_to_string(scene.path("etc/hosts")).unwrap(), "old\nnew\n");
        let names = fs::read_dir(scene.path("etc")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["dir", "hosts", "link"]);
        let renamed = scene.path("etc/dir/renamed");
        assert_eq!(fs::read(&renamed).unwrap(), vec![7; 3 << 20]);
        assert_eq!(fs::metadata(&renamed).unwrap().mode() & 0o7777, 0o600);
    }
}

/// The corruption of fuse-overlayfs 2.0.0, and of 1.16 on recent kernels.
#[test]
fn a_reader_sees_the_writer_and_the_lower_layer_does_not() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("file"), "aaaa").unwrap()) else {
        return;
    };
    let mut reader = fs::File::open(scene.path("file")).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "aaaa");
    let writer = OpenOptions::new().read(true).write(true).open(scene.path("file")).unwrap();
    writer.write_at(b"BB", 1).unwrap();
    for dropped in [false, true] {
        if dropped {
            rustix::fs::fadvise(&reader, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        reader.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "aBBa");
    }
    drop(writer);
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("file"), "lower").unwrap()) else {
        return;
    };
    let mut reader = fs::File::open(scene.path("file")).unwrap();
    let mut made = fs::File::create(scene.path("made")).unwrap();
    fs::remove_file(scene.path("file")).unwrap();
    fs::remove_file(scene.path("made")).unwrap();
    made.write_all(b"still").unwrap();
    made.set_len(3).unwrap();
    assert_eq!((made.metadata().unwrap().len(), reader.metadata().unwrap().len()), (3, 5));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower");
    assert_eq!(fs::read_dir(scene.path("")).unwrap().count(), 0);
}

#[test]
fn a_lower_directory_is_renamed_and_keeps_what_is_in_it() {
    let Some(mut scene) = Scene::new(|lower| {
        fs::create_dir_all(lower.join("dir/sub")).unwrap();
        fs::write(lower.join("dir/sub/file"), "lower").unwrap();
    }) else {
        return;
    };
    fs::rename(scene.path("dir"), scene.path("moved")).unwrap();
    fs::write(scene.path("moved/sub/file"), "changed").unwrap();
    fs::rename(scene.path("moved/sub"), scene.path("out")).unwrap();
    fs::create_dir(scene.path("dir")).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_to_string(scene.path("out/file")).unwrap(), "changed");
        assert_eq!(fs::read_dir(scene.path("dir")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(scene.path("moved")).unwrap().count(), 0);
        scene.remount();
    }
}

#[test]
fn the_kernel_reads_ahead_by_more_than_its_own_measure() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("big"), vec![7; 3 << 20]).unwrap())
    else {
        return;
    };
    let dev = fs::metadata(scene.path("")).unwrap().dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let ahead = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    assert_eq!(ahead.unwrap().trim(), "512");
    assert_eq!(fs::read(scene.path("big")).unwrap(), vec![7; 3 << 20]);
}
