//! The built program, mounted: what a user sees, and that no lower layer changes.

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Mounted {
    temp: tempfile::TempDir,
    child: Child,
}

impl Mounted {
    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.at("merged")).status();
        assert!(unmounted.is_ok_and(|s| s.success()) || std::thread::panicking(), "umount");
        if self.child.wait().is_err() {
            eprintln!("the daemon is gone");
        }
    }
}

/// Mounts the layers; none, with a word, where FUSE can't be mounted.
fn mounted() -> Option<Mounted> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root and /dev/fuse");
        eprintln!("SKIPPED: needs root and /dev/fuse");
        return None;
    }
    let temp = tempfile::tempdir().expect("a directory");
    let at = |name: &str| temp.path().join(name);
    for dir in ["top/etc", "base/etc", "base/usr", "upper", "work", "merged"] {
        fs::create_dir_all(at(dir)).expect("a directory");
    }
    for (path, text) in [
        ("base/etc/hosts", "base"),
        ("base/etc/motd", "base"),
        ("top/etc/motd", "top"),
        ("base/usr/big", &"x".repeat(3 << 20)),
    ] {
        fs::write(at(path), text).expect("a file");
    }
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        at("top").display(),
        at("base").display(),
        at("upper").display(),
        at("work").display()
    );
    let child = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["mount", "-f", "-o", &options])
        .arg(at("merged"))
        .stdin(Stdio::null())
        .spawn()
        .expect("strata");
    let mounted = Mounted { temp, child };
    let begun = Instant::now();
    while !mounted.at("merged/etc/hosts").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not mount");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(mounted)
}

#[test]
fn a_reader_sees_what_another_writes_and_the_lower_layer_does_not() {
    let Some(m) = mounted() else { return };
    let mut reader = fs::File::open(m.at("merged/etc/hosts")).expect("a file");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("its text");
    assert_eq!(text, "base");
    let mut writer = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at("merged/etc/hosts"))
        .expect("a file");
    writer.write_all(b"EDIT").expect("a write");
    writer.sync_all().expect("a sync");
    reader.rewind().expect("a seek");
    text.clear();
    reader.read_to_string(&mut text).expect("its text");
    assert_eq!(text, "EDIT");
    assert_eq!(fs::read_to_string(m.at("base/etc/hosts")).expect("the lower"), "base");
    assert_eq!(fs::read_to_string(m.at("upper/etc/hosts")).expect("the upper"), "EDIT");
}

#[test]
fn a_user_creates_renames_and_removes_and_the_lower_layers_stay() {
    let Some(m) = mounted() else { return };
    assert_eq!(fs::read_to_string(m.at("merged/etc/motd")).expect("a file"), "top");
    fs::remove_file(m.at("merged/etc/motd")).expect("a removal");
    assert!(!m.at("merged/etc/motd").exists());
    fs::rename(m.at("merged/etc/hosts"), m.at("merged/etc/motd")).expect("a rename");
    assert_eq!(fs::read_to_string(m.at("merged/etc/motd")).expect("a file"), "base");
    fs::create_dir(m.at("merged/new")).expect("a directory");
    fs::write(m.at("merged/new/file"), "new").expect("a file");
    std::os::unix::fs::symlink("file", m.at("merged/new/link")).expect("a symlink");
    assert_eq!(fs::read_to_string(m.at("merged/new/link")).expect("a file"), "new");
    let open = fs::File::open(m.at("merged/new/file")).expect("a file");
    fs::remove_file(m.at("merged/new/file")).expect("a removal");
    let mut text = String::new();
    (&open).read_to_string(&mut text).expect("what is open stays");
    assert_eq!(text, "new");
    assert_eq!(fs::read(m.at("merged/usr/big")).expect("a file").len(), 3 << 20);
    fs::remove_dir_all(m.at("merged/usr")).expect("a removal");
    let mut names: Vec<_> = fs::read_dir(m.at("merged"))
        .expect("a directory")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["etc", "new"]);
    assert_eq!(fs::read_to_string(m.at("top/etc/motd")).expect("the lower"), "top");
    assert_eq!(fs::read_to_string(m.at("base/etc/hosts")).expect("the lower"), "base");
    assert!(m.at("base/usr/big").exists());
}

#[test]
fn what_is_wrong_is_one_line() {
    let cases: [(&[&str], &str); 2] = [
        (
            &["mount", "-f", "-o", "rw", "/nowhere"],
            "strata: no lower layer: give at least one as -o lowerdir=DIRECTORY\n",
        ),
        (
            &["mount", "-f", "-o", "lowerdir=a,upperdir=u", "/nowhere"],
            "strata: upperdir needs workdir: an empty directory on the same file system as it\n",
        ),
    ];
    for (args, line) in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_strata")).args(args).output().expect("strata");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr), line, "{args:?}");
    }
}
