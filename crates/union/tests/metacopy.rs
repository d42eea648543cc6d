//! Files of which Linux's overlayfs copied up the attributes alone: never zeros, and whole after a change.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use layer::Namespace;
use rustix::fs::OFlags;
use rustix::io::Errno;
use union::{Config, Limits, NodeId, SetAttr, Union};

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    /// Two lower layers and an upper one that the kernel has changed attributes and names in.
    fn new() -> Option<Self> {
        let scene = Self { temp: tempfile::tempdir().unwrap() };
        for dir in ["below/dir", "above", "upper", "work", "top", "top-work", "merged"] {
            fs::create_dir_all(scene.at(dir)).unwrap();
        }
        for name in ["plain", "moved", "dir/inside", "linked", "dir/cut", "gone"] {
            fs::write(scene.at("below").join(name), name.repeat(3000)).unwrap();
        }
        fs::write(scene.at("below/small"), "small").unwrap();
        fs::hard_link(scene.at("below/linked"), scene.at("below/second")).unwrap();
        if let Err(why) = scene.mount("upper", "work", &["above", "below"]) {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "{why}");
            println!("SKIPPED: overlayfs with metacopy can't be mounted: {why}");
            return None;
        }
        let merged = |name: &str| scene.at("merged").join(name);
        for name in ["plain", "moved", "dir/inside", "linked", "dir/cut", "gone", "small"] {
            fs::set_permissions(merged(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
        fs::rename(merged("moved"), merged("dir/new")).unwrap();
        fs::rename(merged("dir"), merged("directory")).unwrap();
        fs::remove_file(merged("gone")).unwrap();
        scene.unmount();
        let blocks = fs::metadata(scene.at("upper/plain")).unwrap().blocks();
        assert!(blocks <= 8, "no metacopy: {blocks}");
        Some(scene)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn mount(&self, upper: &str, work: &str, lowers: &[&str]) -> Result<(), String> {
        let lowers: Vec<_> = lowers.iter().map(|l| self.at(l).display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},metacopy=on,redirect_dir=on",
            lowers.join(":"),
            self.at(upper).display(),
            self.at(work).display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(self.at("merged"));
        let out = mount.output().map_err(|e| e.to_string())?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
    }

    fn unmount(&self) {
        assert!(Command::new("umount").arg(self.at("merged")).status().unwrap().success());
    }

    fn union(&self, upper: &str, work: &str, lowers: &[&str]) -> Union {
        Union::open(&Config {
            lowers: lowers.iter().map(|lower| self.at(lower)).collect(),
            upper: Some((self.at(upper), self.at(work))),
            namespace: Namespace::Trusted,
            volatile: false,
            limits: Limits::default(),
            index: true,
            partial: true,
        })
        .unwrap()
    }
}

const FILES: [(&str, &str); 6] = [
    ("plain", "plain"),
    ("linked", "linked"),
    ("second", "linked"),
    ("directory/new", "moved"),
    ("directory/inside", "dir/inside"),
    ("directory/cut", "dir/cut"),
];

fn node(union: &Union, path: &str) -> union::Result<NodeId> {
    let mut at = NodeId::ROOT;
    for name in Path::new(path) {
        at = union.lookup(at, OsStr::new(name))?.node;
    }
    Ok(at)
}

fn read(union: &Union, path: &str) -> Vec<u8> {
    let node = node(union, path).unwrap();
    let file = union.open_file(node, OFlags::RDONLY).unwrap();
    let mut data = vec![0; 1 << 20];
    let len = union.read(&file, &mut data, 0).unwrap();
    data.truncate(len);
    assert_eq!(union.getattr_open(&file).unwrap().size, len as u64);
    union.close(&file);
    data
}

#[test]
fn what_the_kernel_left_below_is_read_and_comes_up_with_a_change() {
    let Some(scene) = Scene::new() else { return };
    let below = |name: &str| fs::read(scene.at("below").join(name)).unwrap();
    let union = scene.union("upper", "work", &["above", "below"]);
    for (path, data) in FILES {
        assert!(read(&union, path) == data.repeat(3000).as_bytes(), "{path}");
        if path != "second" {
            let mode = union.getattr(node(&union, path).unwrap()).unwrap().mode;
            assert_eq!(mode & 0o777, 0o640, "{path}");
        }
    }
    assert_eq!(read(&union, "small"), b"small");
    // A reader from before the change follows it.
    let plain = node(&union, "plain").unwrap();
    let reader = union.open_file(plain, OFlags::RDONLY).unwrap();
    let writer = union.open_file(plain, OFlags::RDWR).unwrap();
    union.write(&writer, b"NEW", 2, false).unwrap();
    let mut data = [0; 6];
    union.read(&reader, &mut data, 0).unwrap();
    assert_eq!(&data, b"plNEWp");
    union.close(&reader);
    union.close(&writer);
    let (from, to) = (node(&union, "directory").unwrap(), NodeId::ROOT);
    let names = (OsStr::new("inside"), OsStr::new("outside"));
    union.rename((from, names.0), (to, names.1), rustix::fs::RenameFlags::empty()).unwrap();
    union.link(node(&union, "directory/new").unwrap(), to, OsStr::new("again")).unwrap();
    let cut = SetAttr { size: Some(5), ..SetAttr::default() };
    union.setattr(node(&union, "directory/cut").unwrap(), &cut).unwrap();
    let shown: Vec<_> = ["plain", "outside", "again", "directory/cut", "linked"]
        .map(|path| read(&union, path))
        .into();
    assert_eq!(shown[1], "dir/inside".repeat(3000).as_bytes());
    assert_eq!(shown[3], b"dir/c");
    drop(union);
    // And the kernel sees what Strata left.
    scene.mount("upper", "work", &["above", "below"]).unwrap();
    for (path, data) in ["plain", "outside", "again", "directory/cut", "linked"].iter().zip(&shown)
    {
        assert!(fs::read(scene.at("merged").join(path)).unwrap() == *data, "{path}");
    }
    scene.unmount();
    assert_eq!(below("plain"), "plain".repeat(3000).as_bytes(), "the lower layer changed");
}

#[test]
fn below_other_layers_they_are_read_and_copied_up_too() {
    let Some(scene) = Scene::new() else { return };
    let union = scene.union("top", "top-work", &["upper", "above", "below"]);
    for (path, data) in FILES {
        assert!(read(&union, path) == data.repeat(3000).as_bytes(), "{path}");
    }
    for path in ["plain", "directory/new"] {
        let node = node(&union, path).unwrap();
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        assert_eq!(union.setattr(node, &mode).unwrap().mode & 0o777, 0o600);
    }
    drop(union);
    let copied = fs::File::open(scene.at("top/directory/new")).unwrap();
    let mut data = [0; 5];
    copied.read_exact_at(&mut data, 0).unwrap();
    assert_eq!(&data, b"moved");
}

#[test]
fn without_its_data_it_is_an_error_and_not_zeros() {
    let Some(scene) = Scene::new() else { return };
    let union = scene.union("upper", "work", &["above"]);
    let refused = node(&union, "plain").map_err(|e| e.errno());
    assert_eq!(refused.err(), Some(Errno::IO));
}
