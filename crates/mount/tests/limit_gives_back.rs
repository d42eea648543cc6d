//! A limited upper layer: full at the limit and not before, and empty again when it was emptied.

mod scene;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;

use scene::Scene;

const MIB: u64 = 1 << 20;

/// Writes until it is refused; how much it took.
fn fill(file: &mut File) -> u64 {
    let chunk = vec![7; 100_000];
    let mut total = 0;
    loop {
        match file.write(&chunk) {
            Ok(count) => total += count as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                return total;
            }
        }
    }
}

fn free(scene: &Scene) -> u64 {
    let stat = rustix::fs::statvfs(scene.path("")).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn bytes_end_at_the_limit_and_come_back() {
    let Some(mut scene) = Scene::with("size=4m", |lower| {
        fs::write(lower.join("big"), vec![1; 3 * MIB as usize]).unwrap();
        fs::write(lower.join("small"), "small").unwrap();
    }) else {
        return;
    };
    let stat = rustix::fs::statvfs(scene.path("")).unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, 4 * MIB);
    let mut file = File::create(scene.path("file")).unwrap();
    let total = fill(&mut file);
    // What the file system itself needs for the file is not the user's.
    assert!((4 * MIB - 100_000..=4 * MIB).contains(&total), "{total}");
    assert_eq!((file.metadata().unwrap().len(), free(&scene)), (total, 0));
    // What is there can be written again, and a small thing can't be copied up.
    file.write_all_at(&[8; 1000], 0).unwrap();
    let refused = OpenOptions::new().append(true).open(scene.path("small"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(fs::read_to_string(scene.path("small")).unwrap(), "small");
    scene.remount_with(|| drop(file));
    assert_eq!(free(&scene), 0);
    // A lower file can go though nothing fits any more.
    fs::remove_file(scene.path("big")).unwrap();
    let open = File::open(scene.path("file")).unwrap();
    fs::remove_file(scene.path("file")).unwrap();
    assert_eq!(free(&scene), 0, "it is open");
    drop(open);
    let begun = std::time::Instant::now();
    while free(&scene) < 4 * MIB - 100_000 {
        // The kernel tells of the last close in its own time.
        assert!(begun.elapsed().as_secs() < 20, "{}", free(&scene));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for _ in 0..10 {
        fs::write(scene.path("again"), vec![3; 3 * MIB as usize]).unwrap();
        fs::remove_file(scene.path("again")).unwrap();
        fs::write(scene.path("other"), vec![3; 3 * MIB as usize]).unwrap();
        fs::write(scene.path("other"), vec![4; 3 * MIB as usize]).unwrap();
        fs::write(scene.path("small2"), vec![4; 3000]).unwrap();
        fs::rename(scene.path("small2"), scene.path("other")).unwrap();
    }
    File::options().write(true).open(scene.path("other")).unwrap().set_len(0).unwrap();
    let sparse = File::create(scene.path("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"end", 1 << 39).unwrap();
    assert!(free(&scene) > 3 * MIB);
}

#[test]
fn a_copy_up_that_does_not_fit_leaves_the_lower_file() {
    let Some(scene) = Scene::with("size=1m", |lower| {
        fs::write(lower.join("big"), vec![1; 3 * MIB as usize]).unwrap();
    }) else {
        return;
    };
    let refused = OpenOptions::new().append(true).open(scene.path("big"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(fs::read(scene.path("big")).unwrap().len(), 3 * MIB as usize);
    assert!(free(&scene) > MIB - 100_000);
    // A cut to nothing needs no room.
    fs::write(scene.path("big"), "little").unwrap();
    assert_eq!(fs::read_to_string(scene.path("big")).unwrap(), "little");
}

#[test]
fn inodes_end_at_the_limit_and_come_back() {
    let Some(mut scene) = Scene::with("nr_inodes=10", |lower| {
        for number in 0..20 {
            fs::write(lower.join(format!("lower-{number}")), "").unwrap();
        }
    }) else {
        return;
    };
    for number in 0..10 {
        fs::write(scene.path(&format!("file-{number}")), "").unwrap();
    }
    let refused = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::StorageFull);
    refused(fs::write(scene.path("more"), "").unwrap_err());
    refused(fs::create_dir(scene.path("more")).unwrap_err());
    scene.remount();
    refused(fs::write(scene.path("more"), "").unwrap_err());
    fs::hard_link(scene.path("file-1"), scene.path("link")).unwrap();
    fs::remove_file(scene.path("file-1")).unwrap();
    refused(fs::write(scene.path("more"), "").unwrap_err());
    fs::remove_file(scene.path("link")).unwrap();
    fs::create_dir(scene.path("more")).unwrap();
    // Whiteouts are free.
    for number in 0..20 {
        fs::remove_file(scene.path(&format!("lower-{number}"))).unwrap();
    }
    fs::remove_dir(scene.path("more")).unwrap();
    fs::rename(scene.path("file-2"), scene.path("file-3")).unwrap();
    for number in 0..2 {
        fs::write(scene.path(&format!("new-{number}")), "").unwrap();
    }
    refused(fs::write(scene.path("more"), "").unwrap_err());
    let stat = rustix::fs::statvfs(scene.path("")).unwrap();
    assert_eq!((stat.f_files, stat.f_ffree), (10, 0));
}
