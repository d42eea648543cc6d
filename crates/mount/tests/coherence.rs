//! What one descriptor writes, every other one sees: across copy-up, caches, maps and passthrough.

mod scene;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Advice;
use scene::Scene;

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn drop_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

fn writer(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_reader_from_before_the_copy_up_follows() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("file"), "aaaa").unwrap()) else {
        return;
    };
    let path = scene.path("file");
    let mut first = File::open(&path).unwrap();
    assert_eq!(text(&mut first), "aaaa");
    let writer = writer(&path);
    let mut second = File::open(&path).unwrap();
    for (offset, expected) in [(0, "Baaa"), (1, "BBaa"), (2, "BBBa")] {
        writer.write_at(b"B", offset).unwrap();
        assert_eq!((text(&mut first), text(&mut second)), (expected.into(), expected.into()));
        drop_pages(&first);
        assert_eq!((text(&mut first), text(&mut second)), (expected.into(), expected.into()));
    }
    writer.set_len(2).unwrap();
    assert_eq!((text(&mut first), text(&mut second)), ("BB".into(), "BB".into()));
}

#[test]
fn a_truncation_is_seen_by_who_reads_the_lower() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("file"), "aaaa").unwrap()) else {
        return;
    };
    let mut reader = File::open(scene.path("file")).unwrap();
    fs::write(scene.path("file"), "b").unwrap();
    assert_eq!(text(&mut reader), "b");
    drop_pages(&reader);
    assert_eq!(text(&mut reader), "b");
}

/// Written through passthrough, then read through the cache, and the reverse: each from its first open to its last close.
#[test]
fn files_of_the_upper_keep_no_stale_pages() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("file"), "lower").unwrap()) else {
        return;
    };
    let path = scene.path("file");
    assert_eq!(fs::read(&path).unwrap(), b"lower");
    let mut reader = File::open(&path).unwrap();
    writer(&path).write_at(b"UPPER", 0).unwrap();
    assert_eq!(text(&mut reader), "UPPER");
    drop(reader);
    for round in 0..20 {
        let line = format!("{round:05}");
        writer(&path).write_at(line.as_bytes(), 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line);
        assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    }
    let mut appender = OpenOptions::new().append(true).open(&path).unwrap();
    appender.write_all(b"+").unwrap();
    appender.write_all(b"+").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "00019++");
}

/// What stress without order finds: many threads, each on its own part of one file that starts in the lower layer.
#[test]
fn parallel_writers_lose_nothing() {
    const PART: u64 = 64 << 10;
    let Some(scene) = Scene::new(|lower| {
        fs::write(lower.join("file"), vec![0; 8 * PART as usize]).unwrap();
    }) else {
        return;
    };
    let path = scene.path("file");
    std::thread::scope(|scope| {
        for part in 0..8_u64 {
            let path = &path;
            scope.spawn(move || {
                for round in 0..20_u8 {
                    let file = writer(path);
                    let data = vec![round ^ part as u8; PART as usize];
                    file.write_all_at(&data, part * PART).unwrap();
                    let mut read = vec![0; PART as usize];
                    File::open(path).unwrap().read_exact_at(&mut read, part * PART).unwrap();
                    assert!(read == data, "part {part}, round {round}");
                }
            });
        }
    });
    let data = fs::read(&path).unwrap();
    assert!((0..8).all(|part| data[part * PART as usize] == 19 ^ part as u8));
}

#[test]
fn a_read_only_mount_reads() {
    let Some(scene) = Scene::with("ro", |lower| {
        fs::write(lower.join("file"), vec![5; 300_000]).unwrap();
    }) else {
        return;
    };
    for _ in 0..3 {
        assert_eq!(fs::read(scene.path("file")).unwrap(), vec![5; 300_000]);
    }
    let error = fs::write(scene.path("file"), "no").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// The kernel keeps a file of the upper layer for its next open: it must be that file, and go with its last name.
#[test]
fn a_file_that_is_opened_again_is_what_it_has_become() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("low"), "aaaa").unwrap()) else {
        return;
    };
    let path = scene.path("file");
    for round in 0..20 {
        let data = format!("round {round}");
        if round % 3 == 0 {
            fs::write(&path, &data).unwrap();
        } else {
            // Another file takes the name.
            fs::write(scene.path("other"), &data).unwrap();
            fs::rename(scene.path("other"), &path).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(text(&mut File::open(&path).unwrap()), data);
        }
        let (mut reader, mut writer) = (File::open(&path).unwrap(), writer(&path));
        writer.seek(SeekFrom::End(0)).unwrap();
        writer.write_all(b"!").unwrap();
        // What only an open descriptor of the daemon can do.
        rustix::fs::fallocate(&writer, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 1 << 16).unwrap();
        writer.sync_all().unwrap();
        assert_eq!(text(&mut reader), format!("{data}!"));
        if round % 5 == 4 {
            fs::remove_file(&path).unwrap();
            writer.write_all(b"?").unwrap();
            writer.sync_all().unwrap();
            assert_eq!(text(&mut reader), format!("{data}!?"));
            assert_eq!(rustix::fs::seek(&writer, rustix::fs::SeekFrom::Data(0)).unwrap(), 0);
            fs::write(&path, "").unwrap();
        }
    }
    fs::write(scene.path("low"), "b").unwrap();
    for _ in 0..3 {
        assert_eq!(text(&mut File::open(scene.path("low")).unwrap()), "b");
    }
}

#[test]
fn what_was_open_once_gives_its_room_back_with_its_name() {
    let Some(scene) = Scene::new(|lower| fs::write(lower.join("low"), "aaaa").unwrap()) else {
        return;
    };
    let path = scene.path("big");
    let free = || rustix::fs::statvfs(scene.path("")).unwrap().f_bfree * 4096;
    fs::write(&path, vec![7; 64 << 20]).unwrap();
    drop(File::open(&path).unwrap().sync_all());
    text_len(&path);
    let before = free();
    fs::remove_file(&path).unwrap();
    // The kernel says that it has forgotten the file, and does not wait for anybody to hear it.
    let freed = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(25));
        free() > before + (48 << 20)
    });
    assert!(freed, "{} bytes are free after the removal, {before} before", free());
}

fn text_len(path: &Path) {
    for _ in 0..3 {
        assert_eq!(fs::read(path).unwrap().len(), 64 << 20);
    }
}

/// Around the size up to which a file goes into the page cache with its open.
#[test]
fn small_files_read_as_they_are() {
    const SIZES: [usize; 9] = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_000];
    let content = |size: usize| (0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>();
    let Some(scene) = Scene::new(|lower| {
        for size in SIZES {
            fs::write(lower.join(size.to_string()), content(size)).unwrap();
        }
    }) else {
        return;
    };
    for size in SIZES {
        let path = scene.path(&size.to_string());
        for _ in 0..2 {
            assert!(fs::read(&path).unwrap() == content(size), "of {size} bytes");
            assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        }
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"more").unwrap();
        assert!(fs::read(&path).unwrap() == [content(size), b"more".into()].concat(), "{size}");
    }
}

/// A file is opened for the first time while others write and cut it: what they did is what is read afterwards.
#[test]
fn first_opens_bring_nothing_older_than_what_is_written() {
    const FILES: usize = 400;
    const SIZE: usize = 20_000;
    let Some(scene) = Scene::new(|lower| {
        for n in 0..FILES {
            fs::write(lower.join(n.to_string()), vec![b'a'; SIZE]).unwrap();
        }
    }) else {
        return;
    };
    for n in 0..FILES {
        let path = &scene.path(&n.to_string());
        let start = &std::sync::Barrier::new(3);
        // Kept open, so that what is read afterwards is what is in the page cache.
        let (expected, mut reader) = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                start.wait();
                File::open(path).unwrap()
            });
            scope.spawn(move || {
                start.wait();
                fs::read(path).unwrap();
            });
            start.wait();
            let expected = match n % 3 {
                0 => {
                    writer(path).write_all_at(&[b'b'; SIZE], 0).unwrap();
                    vec![b'b'; SIZE]
                }
                1 => {
                    fs::write(path, "short").unwrap();
                    b"short".to_vec()
                }
                _ => {
                    let file = writer(path);
                    file.set_len(10).unwrap();
                    file.set_len(30).unwrap();
                    [[b'a'; 10].as_slice(), &[0; 20]].concat()
                }
            };
            (expected, reader.join().unwrap())
        });
        for _ in 0..2 {
            reader.seek(SeekFrom::Start(0)).unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == expected, "file {n} has what it had before");
            drop_pages(&reader);
        }
        assert!(fs::read(path).unwrap() == expected, "file {n}, opened again");
    }
}
