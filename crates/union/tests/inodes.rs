//! What `stat` and a listing say of an inode does not change when it is copied up, nor with a remount; and the kernel says
//! the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use layer::Namespace;
use rustix::fs::RenameFlags;
use union::{Config, Limits, NodeId, SetAttr, Union};

const NAMES: [&str; 7] = ["dir", "dir/a", "dir/deep", "dir/deep/b", "link", "c", "fifo"];

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { temp: tempfile::tempdir().unwrap() };
        for dir in ["lower/dir/deep", "upper", "work", "merged"] {
            fs::create_dir_all(scene.at(dir)).unwrap();
        }
        for file in ["dir/a", "dir/deep/b", "c"] {
            fs::write(scene.at("lower").join(file), file).unwrap();
        }
        std::os::unix::fs::symlink("c", scene.at("lower/link")).unwrap();
        let lower = fs::File::open(scene.at("lower")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(&lower, "fifo", rustix::fs::FileType::Fifo, mode, 0).unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn union(&self) -> Union {
        Union::open(&Config {
            lowers: vec![self.at("lower")],
            upper: Some((self.at("upper"), self.at("work"))),
            namespace: Namespace::Trusted,
            volatile: false,
            limits: Limits::default(),
            index: true,
            partial: true,
        })
        .unwrap()
    }
}

fn node(union: &Union, path: &str) -> NodeId {
    let mut at = NodeId::ROOT;
    for name in Path::new(path) {
        at = union.lookup(at, OsStr::new(name)).unwrap().node;
    }
    at
}

fn numbers(union: &Union, names: &[&str]) -> BTreeMap<String, u64> {
    let ino = |name: &&str| (name.to_string(), union.getattr(node(union, name)).unwrap().ino);
    names.iter().map(ino).collect()
}

/// As listings have them, which nobody looked up before.
fn listed(union: &Union, dir: &str) -> BTreeMap<String, u64> {
    let dir = if dir.is_empty() { NodeId::ROOT } else { node(union, dir) };
    let names = union.read_dir(dir, true).unwrap();
    let name = |entry: &union::DirEntry| entry.name.to_str().unwrap().to_owned();
    names.entries().iter().map(|entry| (name(entry), entry.ino)).collect()
}

#[test]
fn numbers_stay_over_a_copy_up_and_a_remount() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "not root");
        println!("SKIPPED: needs root");
        return;
    }
    let scene = Scene::new();
    let union = scene.union();
    let before = numbers(&union, &NAMES);
    let in_lower = fs::metadata(scene.at("lower/c")).unwrap().ino();
    assert_eq!(before["c"], in_lower, "one file system: the numbers are its own");
    for name in NAMES {
        let owner = SetAttr { uid: Some(5), ..SetAttr::default() };
        union.setattr(node(&union, name), &owner).unwrap();
    }
    assert_eq!(numbers(&union, &NAMES), before, "after the copy-up");
    let (root, dir) = (NodeId::ROOT, node(&union, "dir"));
    union
        .rename((root, OsStr::new("c")), (dir, OsStr::new("moved")), RenameFlags::empty())
        .unwrap();
    drop(union);
    let union = scene.union();
    let shown = listed(&union, "");
    for name in ["dir", "link", "fifo"] {
        assert_eq!(shown[name], before[name], "listed: {name}");
    }
    let shown = listed(&union, "dir");
    assert_eq!((shown["a"], shown["deep"]), (before["dir/a"], before["dir/deep"]));
    assert_eq!(shown["moved"], before["c"]);
    drop(union);
    let union = scene.union();
    let names = ["dir", "dir/a", "dir/deep", "dir/deep/b", "link", "dir/moved", "fifo"];
    let mut after = numbers(&union, &names);
    let moved = after.remove("dir/moved").unwrap();
    after.insert("c".to_owned(), moved);
    assert_eq!(after, before, "after a remount");
    drop(union);
    let layers = ["lower", "upper", "work"].map(|name| scene.at(name).display().to_string());
    let options = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(scene.at("merged"));
    assert!(mount.status().unwrap().success(), "the kernel does not mount it");
    for name in names {
        let ino = fs::symlink_metadata(scene.at("merged").join(name)).unwrap().ino();
        let name = if name == "dir/moved" { "c" } else { name };
        assert_eq!(ino, before[name], "by the kernel: {name}");
    }
    assert!(Command::new("umount").arg(scene.at("merged")).status().unwrap().success());
}
