//! Owners and modes that are in an attribute, as fuse-overlayfs keeps them with `xattr_permissions`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use layer::{Namespace, Owners};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use union::{Attr, Caller, Config, Error, Limits, NodeId, SetAttr, Union};

const ATTRIBUTE: &str = "user.containers.override_stat";

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    /// A lower layer without owners in attributes, and one with, in either form.
    fn new() -> Option<Self> {
        let scene = Self { temp: tempfile::tempdir().unwrap() };
        for dir in ["old/dir", "new/dir/sub", "plain", "upper", "work"] {
            fs::create_dir_all(scene.at(dir)).unwrap();
        }
        if let Err(Errno::OPNOTSUPP) =
            setxattr(scene.at("new"), ATTRIBUTE, b"0:0:755", XattrFlags::empty())
        {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "no user attributes here");
            println!("SKIPPED: this file system has no user attributes");
            return None;
        }
        let old = "user.fuseoverlayfs.override_stat";
        scene.set("old", old, "0:0:0755:dir");
        for (path, attribute, value) in [
            ("old/dir/file", old, "8:9:0640:file"),
            ("new/dir/tool", ATTRIBUTE, "5:6:4711"),
            ("new/dir/bare", "user.other", "1"),
            ("new/dir/broken", ATTRIBUTE, "5:6"),
        ] {
            fs::write(scene.at(path), "data").unwrap();
            scene.set(path, attribute, value);
        }
        scene.set("new/dir/sub", ATTRIBUTE, "5:6:2775");
        fs::write(scene.at("plain/plain"), "plain").unwrap();
        fs::set_permissions(scene.at("plain/plain"), fs::Permissions::from_mode(0o4750)).unwrap();
        Some(scene)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn set(&self, path: &str, attribute: &str, value: &str) {
        setxattr(self.at(path), attribute, value.as_bytes(), XattrFlags::empty()).unwrap();
    }

    fn kept(&self, path: &str) -> String {
        let mut value = [0; 64];
        let len = getxattr(self.at("upper").join(path), ATTRIBUTE, &mut value).unwrap();
        String::from_utf8(value[..len].into()).unwrap()
    }

    fn union(&self, upper: bool) -> Union {
        Union::open(&Config {
            lowers: ["new", "old", "plain"].iter().map(|lower| self.at(lower)).collect(),
            upper: upper.then(|| (self.at("upper"), self.at("work"))),
            namespace: Namespace::User,
            volatile: true,
            limits: Limits::default(),
            index: true,
            partial: false,
        })
        .unwrap()
    }
}

fn node(union: &Union, path: &str) -> union::Result<NodeId> {
    let mut at = NodeId::ROOT;
    for name in Path::new(path) {
        at = union.lookup(at, OsStr::new(name))?.node;
    }
    Ok(at)
}

fn owner(attr: &Attr) -> (u32, u32, u32) {
    (attr.uid, attr.gid, attr.mode & 0o7777)
}

fn shown(union: &Union, path: &str) -> (u32, u32, u32) {
    owner(&union.getattr(node(union, path).unwrap()).unwrap())
}

#[test]
fn lower_layers_that_say_so_have_them_in_an_attribute() {
    let Some(scene) = Scene::new() else { return };
    let union = scene.union(false);
    assert_eq!(shown(&union, "dir/file"), (8, 9, 0o640));
    assert_eq!(shown(&union, "dir/tool"), (5, 6, 0o4711));
    assert_eq!(shown(&union, "dir/sub"), (5, 6, 0o2775));
    let bare = fs::metadata(scene.at("new/dir/bare")).unwrap();
    assert_eq!(shown(&union, "dir/bare"), (bare.uid(), bare.gid(), bare.mode() & 0o7777));
    assert_eq!(node(&union, "dir/broken").map_err(|e| e.errno()), Err(Errno::INVAL));
    let tool = node(&union, "dir/tool").unwrap();
    assert_eq!(union.listxattr(tool).unwrap(), b"");
    let hidden = union.getxattr(tool, ATTRIBUTE.as_ref()).map_err(|e| e.errno());
    assert_eq!(hidden, Err(Errno::NODATA));
}

#[test]
fn what_is_written_has_its_owner_in_the_attribute_and_is_ours() {
    let Some(scene) = Scene::new() else { return };
    let union = scene.union(true).keep_owners(Owners::Containers).unwrap();
    let me = fs::metadata(scene.at("new")).unwrap();
    let by = Caller { uid: 1234, gid: 77, umask: 0o022 };
    let root = NodeId::ROOT;
    // Made, and changed.
    let (entry, open) = union.create(by, root, "made".as_ref(), 0o4777).unwrap();
    assert_eq!(owner(&entry.attr), (1234, 77, 0o4755));
    assert_eq!(scene.kept("made"), "1234:77:4755");
    let real = fs::metadata(scene.at("upper/made")).unwrap();
    assert_eq!((real.uid(), real.mode() & 0o7777), (me.uid(), 0o755));
    union.write(&open, b"x", 0, false).unwrap();
    assert_eq!(shown(&union, "made").2, 0o4755);
    union.write(&open, b"x", 0, true).unwrap();
    assert_eq!(shown(&union, "made").2, 0o755);
    union.close(&open);
    let set = |path: &str, change: SetAttr| {
        owner(&union.setattr(node(&union, path).unwrap(), &change).unwrap())
    };
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let uid = |uid| SetAttr { uid: Some(uid), ..SetAttr::default() };
    assert_eq!(set("made", mode(0o6010)), (1234, 77, 0o6010));
    assert_eq!(set("made", uid(4_000_000)), (4_000_000, 77, 0o10), "chown drops set-user-ID");
    assert_eq!(fs::metadata(scene.at("upper/made")).unwrap().mode() & 0o7777, 0o610);
    // Copied up: from a layer with the attribute, one with the other, and one without.
    assert_eq!(set("dir/tool", mode(0o4700)), (5, 6, 0o4700));
    assert_eq!(scene.kept("dir/tool"), "5:6:4700");
    assert_eq!(set("dir/file", uid(3)), (3, 9, 0o640));
    assert_eq!(scene.kept("dir/file"), "3:9:640");
    assert_eq!(set("plain", SetAttr::default()), (me.uid(), me.gid(), 0o4750));
    assert_eq!(fs::metadata(scene.at("upper/plain")).unwrap().mode() & 0o7777, 0o750);
    // A directory gives its group on.
    let sub = node(&union, "dir/sub").unwrap();
    let made = union.mkdir(by, sub, "deeper".as_ref(), 0o700).unwrap();
    assert_eq!(owner(&made.attr), (1234, 6, 0o2700));
    let (made, open) = union.tmpfile(by, sub, 0o666).unwrap();
    assert_eq!(owner(&union.getattr_open(&open).unwrap()), (1234, 6, 0o644));
    union.link(made.node, root, "named".as_ref()).unwrap();
    union.close(&open);
    union.symlink(by, root, "link".as_ref(), "made".as_ref()).unwrap();
    let refused = union.setxattr(sub, ATTRIBUTE.as_ref(), b"0:0:777", XattrFlags::empty());
    assert_eq!(refused.map_err(|e| e.errno()), Err(Errno::PERM));
    drop(union);
    let again = scene.union(true).keep_owners(Owners::User).unwrap();
    let change = SetAttr { gid: Some(78), ..SetAttr::default() };
    again.setattr(node(&again, "made").unwrap(), &change).unwrap();
    assert_eq!(scene.kept("made"), "4000000:78:10", "the attribute that is there stays");
    drop(again);
    // The upper layer says it itself; it can't be had otherwise.
    let union = scene.union(true);
    assert!(union.keeps_owners());
    assert_eq!(shown(&union, "made"), (4_000_000, 78, 0o10));
    assert_eq!(shown(&union, "named"), (1234, 6, 0o644));
    assert_eq!(shown(&union, ""), (me.uid(), me.gid(), me.mode() & 0o7777));
    let other = union.keep_owners(Owners::Privileged);
    assert!(matches!(other, Err(Error::OtherOwners { .. })), "{other:?}");
}
