//! Files of a lower layer with several names: one file for all of them, as Linux's overlayfs with `index=on` keeps them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use layer::Namespace;
use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;
use union::{Config, Error, Limits, NodeId, Union};

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { temp: tempfile::tempdir().unwrap() };
        for dir in ["lower", "upper", "work", "merged"] {
            fs::create_dir(scene.at(dir)).unwrap();
        }
        for name in ["one", "single"] {
            fs::write(scene.at("lower").join(name), "old").unwrap();
        }
        fs::hard_link(scene.at("lower/one"), scene.at("lower/two")).unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Whether the kernel let `change` change it.
    fn by_kernel(&self, change: impl FnOnce()) -> bool {
        let at = |name: &str| self.at(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on",
            at("lower"),
            at("upper"),
            at("work")
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(self.at("merged"));
        // A mount namespace that another test has made meanwhile keeps its copy of the last mount busy until it ends.
        let mut tries = 0;
        let why = loop {
            let out = mount.output().unwrap();
            let why = String::from_utf8_lossy(&out.stderr).into_owned();
            if out.status.success() || !why.contains("busy") || tries == 400 {
                break (!out.status.success()).then_some(why);
            }
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        if let Some(why) = why {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "{why}");
            println!("SKIPPED: overlayfs with index=on can't be mounted: {why}");
            return false;
        }
        change();
        assert!(Command::new("umount").arg(self.at("merged")).status().unwrap().success());
        true
    }

    fn open(&self, index: bool, limits: Limits) -> union::Result<Union> {
        Union::open(&Config {
            lowers: vec![self.at("lower")],
            upper: Some((self.at("upper"), self.at("work"))),
            namespace: Namespace::Trusted,
            volatile: false,
            limits,
            index,
            partial: false,
        })
    }

    fn union(&self) -> union::Result<Union> {
        self.open(true, Limits::default())
    }

    /// Files in the index.
    fn indexed(&self) -> usize {
        fs::read_dir(self.at("work/index")).unwrap().count()
    }
}

fn append(union: &Union, name: &str, data: &str) -> union::Result<()> {
    let entry = union.lookup(NodeId::ROOT, name.as_ref())?;
    let open = union.open_file(entry.node, OFlags::WRONLY);
    let done = open.and_then(|open| {
        let done = union.write(&open, data.as_bytes(), entry.attr.size, false).map(drop);
        union.close(&open);
        done
    });
    union.forget(entry.node, 1);
    done
}

/// Content, links and inode number of a name.
fn shown(union: &Union, name: &str) -> (String, u32, u64) {
    let entry = union.lookup(NodeId::ROOT, name.as_ref()).unwrap();
    let open = union.open_file(entry.node, OFlags::RDONLY).unwrap();
    let mut data = [0; 64];
    let len = union.read(&open, &mut data, 0).unwrap();
    union.close(&open);
    union.forget(entry.node, 1);
    (String::from_utf8_lossy(&data[..len]).into_owned(), entry.attr.nlink, entry.attr.ino)
}

#[test]
fn names_that_nobody_looked_up_follow_a_change() {
    let scene = Scene::new();
    let inode = fs::metadata(scene.at("lower/one")).unwrap().ino();
    let union = scene.union().unwrap();
    append(&union, "one", "new").unwrap();
    assert!(!scene.at("upper/two").exists());
    assert_eq!(shown(&union, "two"), ("oldnew".to_owned(), 2, inode));
    append(&union, "two", "er").unwrap();
    assert_eq!(shown(&union, "one"), ("oldnewer".to_owned(), 2, inode));
    drop(union);
    let union = scene.union().unwrap();
    assert_eq!(shown(&union, "two"), ("oldnewer".to_owned(), 2, inode));
    union.unlink(NodeId::ROOT, "one".as_ref()).unwrap();
    assert_eq!(shown(&union, "two"), ("oldnewer".to_owned(), 1, inode));
    drop(union);
    let union = scene.union().unwrap();
    assert_eq!(shown(&union, "two"), ("oldnewer".to_owned(), 1, inode));
    union
        .rename(
            (NodeId::ROOT, "single".as_ref()),
            (NodeId::ROOT, "two".as_ref()),
            RenameFlags::empty(),
        )
        .unwrap();
    assert_eq!(scene.indexed(), 0, "nothing shows what was in the index");
    assert_eq!(shown(&union, "two").0, "old");
}

#[test]
fn the_kernel_shows_every_name_as_we_left_it() {
    let scene = Scene::new();
    let union = scene.union().unwrap();
    append(&union, "one", "new").unwrap();
    let one = union.lookup(NodeId::ROOT, "one".as_ref()).unwrap();
    union.link(one.node, NodeId::ROOT, "three".as_ref()).unwrap();
    drop(union);
    let look = |name: &str| {
        let file = scene.at("merged").join(name);
        let links = fs::metadata(&file).unwrap().nlink();
        (fs::read_to_string(file).unwrap(), links)
    };
    let after = scene.by_kernel(|| {
        for name in ["two", "three", "one"] {
            assert_eq!(look(name), ("oldnew".to_owned(), 3), "{name}");
        }
        fs::remove_file(scene.at("merged/one")).unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(scene.at("merged/two"))
            .unwrap()
            .write_all(b"er")
            .unwrap();
    });
    if !after {
        return;
    }
    let union = scene.union().unwrap();
    for name in ["two", "three"] {
        let (data, links, _) = shown(&union, name);
        assert_eq!((data.as_str(), links), ("oldnewer", 2), "{name}");
    }
}

#[test]
fn a_name_that_is_looked_up_during_the_copy_up_of_another_is_the_same_file() {
    for _ in 0..200 {
        let scene = Scene::new();
        let union = scene.union().unwrap();
        let (a, b) = std::thread::scope(|threads| {
            let write = threads.spawn(|| append(&union, "one", "new").unwrap());
            let look = threads.spawn(|| union.lookup(NodeId::ROOT, "two".as_ref()).unwrap().node);
            write.join().unwrap();
            (look.join().unwrap(), union.lookup(NodeId::ROOT, "one".as_ref()).unwrap().node)
        });
        assert_eq!(union.getattr(b).unwrap().size, 6);
        assert_eq!(union.getattr(a).unwrap().size, 6);
        // Whoever met the name first may have had no other name to know the node by.
        assert_eq!(shown(&union, "two").0, "oldnew");
    }
}

#[test]
fn what_is_removed_needs_no_room() {
    let scene = Scene::new();
    let full = Limits { bytes: Some(1 << 20), inodes: Some(0) };
    let union = scene.open(true, full).unwrap();
    assert!(append(&union, "one", "new").is_err());
    union.unlink(NodeId::ROOT, "one".as_ref()).unwrap();
    assert_eq!(shown(&union, "two").0, "old");
}

#[test]
fn a_file_that_only_the_index_has_counts() {
    let scene = Scene::new();
    let union = scene.union().unwrap();
    append(&union, "one", "new").unwrap();
    drop(union);
    // As the kernel may leave it: no name of the upper layer.
    fs::remove_file(scene.at("upper/one")).unwrap();
    let limits = Limits { bytes: None, inodes: Some(1) };
    let union = scene.open(true, limits).unwrap();
    let refused = append(&union, "single", "new");
    assert_eq!(refused.map_err(|e| e.errno()), Err(Errno::NOSPC));
}

#[test]
fn without_the_index_hidden_names_refuse_the_mount() {
    let scene = Scene::new();
    let kernel = |name: &str| {
        let file = fs::OpenOptions::new().append(true).open(scene.at("merged").join(name));
        file.unwrap().write_all(b"new").unwrap();
    };
    if !scene.by_kernel(|| kernel("single")) {
        return;
    }
    let without = || scene.open(false, Limits::default());
    drop(without().expect("nothing is in the index"));
    assert!(scene.by_kernel(|| kernel("one")));
    let refused = without();
    assert!(matches!(refused, Err(Error::KernelIndex { .. })), "{refused:?}");
    assert_eq!(shown(&scene.union().unwrap(), "two").0, "oldnew", "what the refusal is about");
    assert!(scene.by_kernel(|| fs::remove_file(scene.at("merged/two")).unwrap()));
    drop(without().expect("every name that is left is in the upper layer"));
}
