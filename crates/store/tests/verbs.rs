//! What people do with a store: add, name, save, load, commit, remove, collect, check.

mod layout;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use layout::{Layout, dir, file, gzip, hard_link, special, symlink, tar, tree};
use store::manifest::Descriptor;
use store::save::Format;
use store::source::{DockerArchive, OciLayout, Quiet, SourceError};
use store::{BlobSource, CommitOptions, Digest, Error, PullOptions, Store};

fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root");
    eprintln!("SKIPPED: owners, devices and trusted attributes need root");
    false
}

struct Scene {
    temp: tempfile::TempDir,
    store: Store,
    layout: Layout,
}

impl Scene {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let layout = Layout::new(&temp.path().join("oci"));
        Self { temp, store, layout }
    }

    fn pull(&self, tag: &str) -> store::Result<Digest> {
        let source = OciLayout::dir(&self.layout.dir, Some(tag));
        let name = format!("localhost/{tag}:1");
        self.store.pull(&source, Some(&name), &Quiet, &PullOptions::default())
    }
}

fn base() -> Vec<u8> {
    let mut capable = file("bin/capable", "x");
    capable.mode = 0o4755;
    capable.pax = vec![
        (b"mtime".to_vec(), b"-86400.5".to_vec()),
        (b"SCHILY.xattr.user.key".to_vec(), b"value".to_vec()),
        (b"SCHILY.xattr.trusted.overlay.opaque".to_vec(), b"y".to_vec()),
    ];
    tar(&[
        dir("etc/"),
        file("etc/hosts", "127.0.0.1"),
        file("etc/gone", "gone"),
        hard_link("etc/again", "etc/hosts"),
        symlink("etc/link", "/etc/hosts"),
        capable,
        special("dev/null", b'3', (1, 3)),
        special("fifo", b'6', (0, 0)),
        dir("var/"),
        dir("var/old/"),
    ])
}

fn top() -> Vec<u8> {
    tar(&[
        file("etc/.wh.gone", ""),
        dir("var/"),
        file("var/.wh..wh..opq", ""),
        file("var/new", "new"),
    ])
}

#[test]
fn a_layer_becomes_the_tree_and_the_tree_the_same_layer() {
    if !root() {
        return;
    }
    let mut scene = Scene::new();
    scene.layout.image("a", &[base(), top()]);
    let id = scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    assert_eq!(image.id, id);
    let lowers = scene.store.lower_dirs(&image);
    assert_eq!(lowers.len(), 2);
    let (top_tree, base_tree) = (&lowers[0], &lowers[1]);
    let meta = |path: &str| fs::symlink_metadata(base_tree.join(path)).unwrap();
    assert_eq!((meta("etc/hosts").ino(), meta("etc/hosts").nlink()), (meta("etc/again").ino(), 2));
    assert_eq!(meta("bin/capable").mode(), 0o104_755);
    assert_eq!(
        (meta("bin/capable").mtime(), meta("bin/capable").mtime_nsec()),
        (-86401, 500_000_000)
    );
    assert_eq!(meta("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta("etc/hosts").mtime(), 1_000_000_000);
    let attribute = |path: std::path::PathBuf, name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(path, name, &mut value).map(|len| value[..len].to_vec())
    };
    assert_eq!(attribute(base_tree.join("bin/capable"), "user.key").unwrap(), b"value");
    let smuggled = attribute(base_tree.join("bin/capable"), "trusted.overlay.opaque");
    assert_eq!(smuggled, Err(rustix::io::Errno::NODATA), "an image sets no marks");
    let gone = fs::symlink_metadata(top_tree.join("etc/gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    assert_eq!(attribute(top_tree.join("var"), "trusted.overlay.opaque").unwrap(), b"y");
    for (tar, layer) in [base(), top()].iter().zip(&image.layers) {
        let mut again = Vec::new();
        scene.store.write_tar(&layer.diff_id, &mut again).unwrap();
        assert!(*tar == again, "the tar comes out as it went in");
    }
    let report = scene.store.check(false).unwrap();
    assert!(report.layers == 2 && report.findings.is_empty(), "{report:?}");
}

#[test]
fn what_an_entry_replaces_of_its_own_layer_is_still_in_its_tar() {
    if !root() {
        return;
    }
    let mut scene = Scene::new();
    let odd = tar(&[
        file("a", "first"),
        hard_link("b", "a"),
        file("a", "second"),
        dir("d/"),
        file("d/x", "in a directory"),
        file("d", "no directory any more"),
        file("d", "and once more"),
        symlink("usr", "/up/../real"),
        dir("real/"),
        file("usr/through", "a symlink"),
        file("real/.wh.gone", "a whiteout with data"),
        file("gone/again", "below a whiteout"),
        dir("real/gone/"),
        file(".wh.new", ""),
        file("new/file", "in a directory that nothing tells of"),
    ]);
    scene.layout.image("a", std::slice::from_ref(&odd));
    scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    let tree = scene.store.layer_tree(&image.layers[0].diff_id);
    let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    assert_eq!((read("a"), read("b")), ("second".to_owned(), "first".to_owned()));
    assert_eq!(fs::metadata(tree.join("b")).unwrap().nlink(), 1);
    assert_eq!((read("d"), read("real/through")), ("and once more".into(), "a symlink".into()));
    for opaque in ["real/gone", "new"] {
        let dir = fs::File::open(tree.join(opaque)).unwrap();
        let mark = layer::mark::opaque(&dir, scene.store.namespace()).unwrap();
        assert_eq!(mark, layer::mark::Opaque::Yes, "{opaque}");
    }
    let mut again = Vec::new();
    scene.store.write_tar(&image.layers[0].diff_id, &mut again).unwrap();
    assert!(again == odd);
}

#[test]
fn what_a_directory_hands_down_is_not_handed_to_the_entries_of_its_layer() {
    if !root() {
        return;
    }
    // Version 2; user and group rwx, others nothing.
    let acl: Vec<u8> = [
        [2, 0, 0, 0].as_slice(),
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[4, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    let mut shared = dir("shared/");
    shared.mode = 0o2775;
    shared.pax = vec![(b"SCHILY.xattr.system.posix_acl_default".to_vec(), acl.clone())];
    let mut scene = Scene::new();
    let layer = tar(&[shared, file("shared/file", "f"), dir("shared/dir/")]);
    scene.layout.image("a", &[layer]);
    scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    let tree = scene.store.layer_tree(&image.layers[0].diff_id);
    let mode = |name: &str| fs::metadata(tree.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("shared"), mode("shared/file"), mode("shared/dir")), (0o2775, 0o644, 0o755));
    let mut value = [0; 128];
    let mut default = |name: &str| {
        let path = tree.join(name);
        let len = rustix::fs::getxattr(path, "system.posix_acl_default", &mut value);
        len.map(|len| value[..len].to_vec())
    };
    assert_eq!(default("shared").unwrap(), acl);
    assert_eq!(default("shared/dir"), Err(rustix::io::Errno::NODATA));
}

#[test]
fn layers_are_kept_once_and_go_with_the_last_image() {
    let mut scene = Scene::new();
    let shared = tar(&[file("shared", "shared")]);
    scene.layout.image("a", &[shared.clone(), tar(&[file("a", "a")])]);
    scene.layout.image("b", &[shared.clone(), tar(&[file("b", "b")])]);
    scene.pull("a").unwrap();
    // Not fetched again: its blob is not even there any more.
    fs::remove_file(scene.layout.path(&Digest::of(&gzip(&shared)))).unwrap();
    scene.pull("b").unwrap();
    let usage = scene.store.usage().unwrap();
    assert_eq!((usage.images, usage.layers, usage.bytes, usage.shared_layers), (2, 3, 8, 6));
    assert!(scene.store.remove("localhost/a:1").unwrap());
    assert_eq!(scene.store.usage().unwrap().layers, 2);
    scene.store.tag("localhost/b:1", "localhost/c:2").unwrap();
    assert!(!scene.store.remove("localhost/b:1").unwrap(), "it has another name");
    assert!(scene.store.remove("localhost/c:2").unwrap());
    assert_eq!(scene.store.usage().unwrap(), store::images::Usage::default());
    scene.store.collect().unwrap();
    for dir in ["layers", "staging", "partial", "trash", "locks"] {
        let left = fs::read_dir(scene.temp.path().join("store").join(dir)).unwrap().count();
        assert_eq!(left, 0, "left in {dir}");
    }
    let Err(Error::NoImage { near, .. }) = scene.store.image("localhost/a:1") else { panic!() };
    assert!(near.is_empty());
}

#[test]
fn what_is_not_what_it_says_is_refused_and_leaves_nothing() {
    let mut scene = Scene::new();
    let good = tar(&[file("a", "a")]);
    scene.layout.image_with("lies", std::slice::from_ref(&good), &[Digest::of(b"other")]);
    assert!(matches!(scene.pull("lies"), Err(Error::Mismatch { what: "layer", .. })));
    scene.layout.image("changed", std::slice::from_ref(&good));
    let blob = scene.layout.path(&Digest::of(&gzip(&good)));
    let mut bytes = fs::read(&blob).unwrap();
    let whole = bytes.clone();
    bytes[20] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    assert!(matches!(scene.pull("changed"), Err(Error::Mismatch { what: "blob", .. })));
    fs::write(&blob, &whole).unwrap();
    scene.pull("changed").unwrap();
    assert_eq!(scene.store.usage().unwrap().images, 1);
    for dir in ["staging", "partial", "locks"] {
        let left = fs::read_dir(scene.temp.path().join("store").join(dir)).unwrap().count();
        assert_eq!(left, 0, "left in {dir}");
    }
}

/// A layout as if it were far away.
struct Far(OciLayout);

impl BlobSource for Far {
    fn manifest(&self) -> Result<(Vec<u8>, String), SourceError> {
        self.0.manifest()
    }

    fn blob(&self, blob: &Descriptor, from: u64) -> Result<Box<dyn Read + Send>, SourceError> {
        self.0.blob(blob, from)
    }
}

#[test]
fn a_pull_that_was_cut_short_goes_on_where_it_ended() {
    let mut scene = Scene::new();
    let good = tar(&[file("a", "a")]);
    scene.layout.image("cut", std::slice::from_ref(&good));
    let blob = scene.layout.path(&Digest::of(&gzip(&good)));
    let whole = fs::read(&blob).unwrap();
    let source = Far(OciLayout::dir(&scene.layout.dir, Some("cut")));
    let pull =
        || scene.store.pull(&source, Some("localhost/cut:1"), &Quiet, &PullOptions::default());
    let partial = || fs::read_dir(scene.temp.path().join("store/partial")).unwrap().count();
    fs::write(&blob, &whole[..30]).unwrap();
    assert!(matches!(pull(), Err(Error::Source(_))));
    assert_eq!(partial(), 1);
    fs::write(&blob, [&[0; 30], &whole[30..]].concat()).unwrap();
    pull().unwrap();
    assert_eq!(partial(), 0);
    // Going on from something wrong is found out, and not tried again.
    scene.store.remove("localhost/cut:1").unwrap();
    fs::write(&blob, [&[7; 30], &whole[30..40]].concat()).unwrap();
    assert!(pull().is_err());
    fs::write(&blob, &whole).unwrap();
    assert!(matches!(pull(), Err(Error::Mismatch { what: "blob", .. })));
    assert_eq!(partial(), 0);
    pull().unwrap();
}

#[test]
fn archives_of_both_kinds_give_the_same_image() {
    let mut scene = Scene::new();
    scene.layout.image("a", &[tar(&[file("a", "a"), dir("d/")]), tar(&[file("d/b", "b")])]);
    let id = scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    let other = Store::open(&scene.temp.path().join("other")).unwrap();
    for format in [Format::DockerArchive, Format::OciArchive] {
        let path = scene.temp.path().join("archive.tar");
        let mut archive = fs::File::create(&path).unwrap();
        let named = [(image.clone(), Some("localhost/a:1".to_owned()))];
        scene.store.save(&named, format, &mut archive).unwrap();
        let loaded = match format {
            Format::DockerArchive => {
                let images = DockerArchive::open(&path).unwrap();
                assert_eq!(images[0].tags(), ["localhost/a:1"]);
                other.pull(
                    &images[0],
                    images[0].tags().first().map(String::as_str),
                    &Quiet,
                    &PullOptions::default(),
                )
            }
            Format::OciArchive => {
                let layout = OciLayout::archive(&path, Some("1")).unwrap();
                other.pull(&layout, Some("localhost/a:1"), &Quiet, &PullOptions::default())
            }
        };
        assert_eq!(loaded.unwrap(), id, "{format:?}");
        let there = other.image("localhost/a:1").unwrap();
        for (a, b) in scene.store.lower_dirs(&image).iter().zip(other.lower_dirs(&there)) {
            assert_eq!(tree(a), tree(&b));
        }
        other.remove("localhost/a:1").unwrap();
    }
}

#[test]
fn a_commit_is_an_image_with_one_layer_more() {
    if !root() {
        return;
    }
    let mut scene = Scene::new();
    scene.layout.image("a", &[base()]);
    scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    scene.store.add_container("c1", "one", &image.id, "{}", true).unwrap();
    let taken = scene.store.add_container("c2", "one", &image.id, "{}", true);
    assert!(matches!(taken, Err(Error::NameTaken { .. })));
    let upper = scene.store.writable_dir("c1").join("upper");
    fs::create_dir(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/hosts"), "changed").unwrap();
    let etc = fs::File::open(upper.join("etc")).unwrap();
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(&etc, "gone", whiteout, rustix::fs::Mode::empty(), 0).unwrap();
    let options = CommitOptions {
        name: Some("localhost/b:1".to_owned()),
        message: Some("why".to_owned()),
        config: Some(serde_json::json!({ "Cmd": ["/bin/false"] })),
        ..CommitOptions::default()
    };
    let id = scene.store.commit(&image, &upper, &options).unwrap();
    let made = scene.store.image("localhost/b:1").unwrap();
    assert_eq!((made.id, made.layers.len()), (id, 2));
    assert_eq!(made.parsed().unwrap().config.cmd, Some(vec!["/bin/false".to_owned()]));
    let top = &scene.store.lower_dirs(&made)[0];
    assert_eq!(fs::read_to_string(top.join("etc/hosts")).unwrap(), "changed");
    assert_eq!(fs::symlink_metadata(top.join("etc/gone")).unwrap().mode() & 0o170_000, 0o020_000);
    assert!(scene.store.check(false).unwrap().findings.is_empty());
    assert!(matches!(scene.store.remove("localhost/a:1"), Err(Error::InUse { .. })));
    scene.store.remove_container("c1").unwrap();
    scene.store.remove("localhost/a:1").unwrap();
    scene.store.remove("localhost/b:1").unwrap();
    assert_eq!(scene.store.usage().unwrap().layers, 0);
    assert_eq!(scene.store.tag_history("localhost/b:1").unwrap().len(), 1);
}

#[test]
fn a_name_goes_back_to_where_it_led_before() {
    let mut scene = Scene::new();
    scene.layout.image("a", &[tar(&[file("a", "a")])]);
    scene.layout.image("b", &[tar(&[file("b", "b")])]);
    let (a, b) = (scene.pull("a").unwrap(), scene.pull("b").unwrap());
    assert!(matches!(scene.store.roll_back_tag("localhost/a:1"), Err(Error::NoPast { .. })));
    scene.store.tag("localhost/b:1", "localhost/a:1").unwrap();
    assert_eq!(scene.store.image("localhost/a:1").unwrap().id, b);
    assert_eq!(scene.store.roll_back_tag("localhost/a:1").unwrap(), a);
    assert_eq!(scene.store.image("localhost/a:1").unwrap().id, a);
    assert_eq!(scene.store.tag_history("localhost/a:1").unwrap().len(), 3);
    scene.store.remove("localhost/b:1").unwrap();
    assert!(matches!(scene.store.roll_back_tag("localhost/a:1"), Err(Error::NoPast { .. })));
}

#[test]
fn a_damaged_layer_is_found_and_its_images_go() {
    let mut scene = Scene::new();
    scene.layout.image("a", &[tar(&[file("a", "a")])]);
    scene.layout.image("b", &[tar(&[file("b", "b")])]);
    scene.pull("a").unwrap();
    scene.pull("b").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    fs::write(scene.store.layer_tree(&image.layers[0].diff_id).join("a"), "x").unwrap();
    let report = scene.store.check(false).unwrap();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].images, ["localhost/a:1"]);
    assert_eq!(scene.store.check(true).unwrap().removed, ["localhost/a:1"]);
    assert!(scene.store.check(false).unwrap().findings.is_empty());
    scene.pull("a").unwrap();
    assert!(scene.store.check(false).unwrap().findings.is_empty());
}

type Harm = fn(&std::path::Path);

#[test]
fn what_is_not_as_the_tar_says_is_found_and_made_again_without_a_pull() {
    if !root() {
        return;
    }
    use std::os::unix::fs::{PermissionsExt, symlink};
    let harms: [(&str, &str, Harm); 12] = [
        ("a mode", "has mode 600, not 644", |tree| {
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(tree.join("etc/gone"), mode).unwrap();
        }),
        ("an owner", "is of 5:5, not 0:0", |tree| {
            std::os::unix::fs::lchown(tree.join("etc/link"), Some(5), Some(5)).unwrap();
        }),
        ("a time", "is of ", |tree| {
            let file = fs::File::open(tree.join("etc/gone")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("an attribute less", "has another user.key, or none", |tree| {
            rustix::fs::removexattr(tree.join("bin/capable"), "user.key").unwrap();
        }),
        ("an attribute more", "has user.more, which is not", |tree| {
            let none = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(tree.join("etc"), "user.more", b"m", none).unwrap();
        }),
        ("a name less", "is gone", |tree| fs::remove_file(tree.join("etc/link")).unwrap()),
        ("a name more", "is not of the layer", |tree| fs::write(tree.join("stray"), "").unwrap()),
        ("a directory less", "is gone", |tree| fs::remove_dir(tree.join("var/old")).unwrap()),
        ("a symlink elsewhere", "leads elsewhere", |tree| {
            fs::remove_file(tree.join("etc/link")).unwrap();
            symlink("/etc/shadow", tree.join("etc/link")).unwrap();
        }),
        ("a hard link less", "no longer the file", |tree| {
            let copy = tree.join("etc/copy");
            fs::copy(tree.join("etc/hosts"), &copy).unwrap();
            fs::rename(copy, tree.join("etc/again")).unwrap();
        }),
        ("a device", "not CharacterDevice", |tree| {
            fs::remove_file(tree.join("dev/null")).unwrap();
            fs::write(tree.join("dev/null"), "").unwrap();
        }),
        ("a mark", "hides what is below it", |tree| {
            let none = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(tree.join("var"), "trusted.overlay.opaque", b"y", none).unwrap();
        }),
    ];
    let mut scene = Scene::new();
    scene.layout.image("a", &[base(), top()]);
    scene.pull("a").unwrap();
    let image = scene.store.image("localhost/a:1").unwrap();
    let tree = scene.store.layer_tree(&image.layers[0].diff_id);
    for (harm, told, act) in harms {
        act(&tree);
        let report = scene.store.check(false).unwrap();
        assert_eq!(report.findings.len(), 1, "{harm}: {report:?}");
        assert!(report.findings[0].what.contains(told), "{harm}: {report:?}");
        assert!(report.findings[0].whole, "{harm}: {report:?}");
        let report = scene.store.check(true).unwrap();
        assert_eq!(report.rebuilt, [image.layers[0].diff_id], "{harm}");
        assert!(report.removed.is_empty(), "{harm}: {report:?}");
        let report = scene.store.check(false).unwrap();
        assert!(report.findings.is_empty(), "{harm}, repaired: {report:?}");
    }
    // What a container stands on is not taken from under it.
    fs::write(tree.join("stray"), "").unwrap();
    scene.store.add_container("c1", "one", &image.id, "{}", true).unwrap();
    assert!(matches!(scene.store.check(true), Err(Error::InUse { .. })));
    scene.store.remove_container("c1").unwrap();
    assert_eq!(scene.store.check(true).unwrap().rebuilt.len(), 1);
}

#[test]
fn what_a_dead_process_left_is_cleared_at_the_next_open() {
    let mut scene = Scene::new();
    scene.layout.image("a", &[tar(&[file("a", "a")])]);
    let image = scene.pull("a").unwrap();
    scene.store.add_container(&"a".repeat(64), "one", &image, "{}", true).unwrap();
    let root = scene.temp.path().join("store");
    let hex = Digest::of(b"x").hex();
    fs::create_dir_all(root.join(format!("staging/{hex}.1/fs/d"))).unwrap();
    fs::create_dir_all(root.join(format!("layers/{hex}/fs"))).unwrap();
    fs::create_dir_all(root.join("rw").join("b".repeat(64)).join("upper")).unwrap();
    fs::write(root.join("locks/lease-dead"), "").unwrap();
    let again = Store::open(&root).unwrap();
    for (dir, kept) in [("staging", 0), ("layers", 1), ("rw", 1), ("locks", 0)] {
        assert_eq!(fs::read_dir(root.join(dir)).unwrap().count(), kept, "left in {dir}");
    }
    // A loss of power took the directory, but not the row.
    fs::remove_dir_all(root.join("rw").join("a".repeat(64))).unwrap();
    drop(Store::open(&root).unwrap());
    for sub in ["upper", "work"] {
        assert!(root.join("rw").join("a".repeat(64)).join(sub).is_dir(), "no {sub}");
    }
    again.empty_trash().unwrap();
    assert_eq!(fs::read_dir(root.join("trash")).unwrap().count(), 0);
}

/// Who opens the database first reads its whole log, so that one which grew with every command made each slower than
/// the last.
#[test]
fn the_log_of_the_database_does_not_grow_with_the_commands() {
    let mut scene = Scene::new();
    scene.layout.image("a", &[tar(&[file("a", "a")])]);
    scene.pull("a").unwrap();
    let root = scene.temp.path().join("store");
    drop(scene.store);
    let mut longest = 0;
    for n in 0..150 {
        let store = Store::open(&root).unwrap();
        store.tag("localhost/a:1", &format!("localhost/a:{n}")).unwrap();
        drop(store);
        longest = longest.max(fs::metadata(root.join("db.sqlite-wal")).unwrap().len());
    }
    assert!(longest > 0, "another way of journalling");
    assert!(longest < 600_000, "a log of {longest} bytes");
    assert_eq!(Store::open(&root).unwrap().images().unwrap().len(), 1);
    assert_eq!(Store::open(&root).unwrap().tag_history("localhost/a:149").unwrap().len(), 1);
}

#[test]
fn many_at_once_do_the_work_once_and_lose_nothing() {
    let mut scene = Scene::new();
    let shared = tar(&[file("shared", "shared")]);
    for name in ["a", "b", "c"] {
        scene.layout.image(name, &[shared.clone(), tar(&[file(name, name)])]);
    }
    let root = scene.temp.path().join("store");
    std::thread::scope(|scope| {
        for worker in 0..6 {
            let (root, layout) = (&root, &scene.layout.dir);
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                for round in 0..8 {
                    let tag = ["a", "b", "c"][(worker + round) % 3];
                    let name = format!("localhost/{tag}:1");
                    let source = OciLayout::dir(layout, Some(tag));
                    store.pull(&source, Some(&name), &Quiet, &PullOptions::default()).unwrap();
                    match store.remove(&name) {
                        // Another worker was faster.
                        Ok(_) | Err(Error::NoImage { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                    store.collect().unwrap();
                }
            });
        }
    });
    for tag in ["a", "b", "c"] {
        scene.pull(tag).unwrap();
    }
    let report = scene.store.check(false).unwrap();
    assert!(report.layers == 4 && report.findings.is_empty(), "{report:?}");
}
