//! Random operations on a union and on a plain directory, with the union opened anew between
//! them: both show the same tree, and no lower layer changes. As root, Linux's own overlayfs then
//! mounts the upper that came out, and shows the same too.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use layer::Namespace;
use proptest::prelude::*;
use rustix::fs::{FileType, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use union::{Caller, Config, Limits, NodeId, SetAttr, Union};

/// Tests run as one user, whose the files are.
fn me() -> Caller {
    Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        umask: 0,
    }
}

type Done<T> = Result<T, union::Error>;

/// Walks to a path, a lookup a name, and gives its node, looked up once.
fn walk(union: &Union, path: &Path) -> Done<NodeId> {
    let mut at = NodeId::ROOT;
    for name in path.iter() {
        let found = union.lookup(at, name);
        if at != NodeId::ROOT {
            union.forget(at, 1);
        }
        at = found?.node;
    }
    Ok(at)
}

/// Runs `act` on the node of a path.
fn on<T>(union: &Union, path: &Path, act: impl FnOnce(NodeId) -> Done<T>) -> Done<T> {
    let node = walk(union, path)?;
    let done = act(node);
    if node != NodeId::ROOT {
        union.forget(node, 1);
    }
    done
}

/// Runs `act` on the directory of a path and the name in it.
fn within<T>(
    union: &Union,
    path: &Path,
    act: impl FnOnce(NodeId, &std::ffi::OsStr) -> Done<T>,
) -> Done<T> {
    let (parent, name) = (path.parent().expect("a parent"), path.file_name().expect("a name"));
    on(union, parent, |node| act(node, name))
}

fn open(union: &Union, path: &Path, flags: OFlags, act: impl FnOnce(&union::OpenFile)) -> Done<()> {
    on(union, path, |node| {
        let open = union.open_file(node, flags)?;
        act(&open);
        union.close(&open);
        Ok(())
    })
}

/// A tree as text: a line a path with kind, mode and content.
type Tree = BTreeMap<PathBuf, String>;

#[derive(Debug, Clone)]
enum Op {
    Create(PathBuf, u16),
    Write(PathBuf, u8),
    Truncate(PathBuf),
    Mkdir(PathBuf),
    Symlink(PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Xattr(PathBuf, u8),
    Chmod(PathBuf, u16),
    Reopen,
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    prop::collection::vec(name, 1..=3).prop_map(|names| names.iter().collect())
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![Just(0o644_u16), Just(0o600), Just(0o755)];
    prop_oneof![
        (path(), mode.clone()).prop_map(|(p, m)| Op::Create(p, m)),
        (path(), any::<u8>()).prop_map(|(p, b)| Op::Write(p, b)),
        path().prop_map(Op::Truncate),
        path().prop_map(Op::Mkdir),
        path().prop_map(Op::Symlink),
        path().prop_map(Op::Unlink),
        path().prop_map(Op::Rmdir),
        (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
        (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        (path(), any::<u8>()).prop_map(|(p, b)| Op::Xattr(p, b)),
        (path(), mode).prop_map(|(p, m)| Op::Chmod(p, m)),
        Just(Op::Reopen),
    ]
}

/// The lower layers, uppermost first, as lists of paths: those that end in `/` are directories; `a=b` is another name of b.
const LOWERS: [&[&str]; 2] = [
    &["a/", "a/b/", "a/b/c", "b"],
    &["a/", "a/a", "a/b/", "a/b/a", "c/", "c/a/", "c/a/b", "c/b=a/a", "c/c=a/a"],
];

fn make_lower(root: &Path, paths: &[&str]) {
    fs::create_dir(root).expect("a layer");
    for path in paths {
        let at = root.join(path);
        if let Some((name, other)) = path.split_once('=') {
            fs::hard_link(root.join(other), root.join(name)).expect("a link");
        } else if path.ends_with('/') {
            fs::create_dir(&at).expect("a directory");
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).expect("a mode");
        } else {
            fs::write(&at, format!("{path} of {root:?}")).expect("a file");
            fs::set_permissions(&at, fs::Permissions::from_mode(0o644)).expect("a mode");
        }
    }
}

fn line(mode: u32, links: u64, content: &[u8], xattr: &[u8]) -> String {
    // Nobody counts the subdirectories of a merged directory.
    let links = if FileType::from_raw_mode(mode) == FileType::Directory { 0 } else { links };
    format!("{mode:o} x{links} {} {xattr:?}", String::from_utf8_lossy(content))
}

fn tree_of_directory(root: &Path, at: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(root.join(at)).expect("a directory") {
        let path = at.join(entry.expect("an entry").file_name());
        let meta = fs::symlink_metadata(root.join(&path)).expect("metadata");
        let content = if meta.is_dir() {
            tree_of_directory(root, &path, tree);
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(root.join(&path)).expect("a target").as_os_str().as_bytes().to_vec()
        } else {
            fs::read(root.join(&path)).expect("a file")
        };
        let mut xattr = vec![0; 16];
        let xattr = match rustix::fs::lgetxattr(root.join(&path), "user.test", &mut xattr) {
            Ok(len) => xattr[..len].to_vec(),
            Err(Errno::NODATA | Errno::PERM) => Vec::new(),
            Err(e) => panic!("{path:?}: {e}"),
        };
        tree.insert(path, line(meta.mode(), meta.nlink(), &content, &xattr));
    }
}

fn tree_of_union(union: &Union, at: &Path, tree: &mut Tree) {
    let listing = on(union, at, |node| union.read_dir(node, true)).expect("a directory");
    for entry in listing.entries() {
        let path = at.join(&entry.name);
        let attr = on(union, &path, |node| union.getattr(node));
        let attr = attr.unwrap_or_else(|e| panic!("readdir shows {path:?}, stat does not: {e}"));
        assert_eq!(entry.kind, FileType::from_raw_mode(attr.mode), "{path:?}");
        assert_eq!(entry.ino, attr.ino, "{path:?}");
        let content = match entry.kind {
            FileType::Directory => {
                tree_of_union(union, &path, tree);
                Vec::new()
            }
            FileType::Symlink => on(union, &path, |node| union.readlink(node)).expect("a target"),
            _ => {
                let mut content = vec![0; 4096];
                open(union, &path, OFlags::RDONLY, |open| {
                    let len = union.read(open, &mut content, 0).expect("a read");
                    content.truncate(len);
                })
                .expect("a file");
                assert_eq!(attr.size, content.len() as u64, "{path:?}");
                content
            }
        };
        let xattr = match on(union, &path, |node| union.getxattr(node, "user.test".as_ref())) {
            Ok(value) => value,
            Err(e) if [Errno::NODATA, Errno::PERM].contains(&e.errno()) => Vec::new(),
            Err(e) => panic!("{path:?}: {e}"),
        };
        tree.insert(path, line(attr.mode, attr.nlink.into(), &content, &xattr));
    }
}

fn on_union(union: &Union, op: &Op) -> Result<(), Errno> {
    let rename = |a: &Path, b: &Path, flags| {
        within(union, a, |from, old| {
            within(union, b, |to, new| union.rename((from, old), (to, new), flags))
        })
    };
    let forget = |entry: union::Entry| union.forget(entry.node, 1);
    let done = match op {
        Op::Create(p, mode) => within(union, p, |dir, name| {
            let (entry, open) = union.create(me(), dir, name, u32::from(*mode))?;
            union.close(&open);
            forget(entry);
            Ok(())
        }),
        Op::Write(p, byte) => open(union, p, OFlags::RDWR, |open| {
            union.write(open, &[*byte; 3], 2, false).expect("a write");
        }),
        Op::Truncate(p) => open(union, p, OFlags::WRONLY | OFlags::TRUNC, |_| {}),
        Op::Mkdir(p) => {
            within(union, p, |dir, name| union.mkdir(me(), dir, name, 0o755).map(forget))
        }
        Op::Symlink(p) => within(union, p, |dir, name| {
            union.symlink(me(), dir, name, "target".as_ref()).map(forget)
        }),
        Op::Unlink(p) => within(union, p, |dir, name| union.unlink(dir, name)),
        Op::Rmdir(p) => within(union, p, |dir, name| union.rmdir(dir, name)),
        Op::Rename(a, b) => rename(a, b, RenameFlags::empty()),
        Op::Exchange(a, b) => rename(a, b, RenameFlags::EXCHANGE),
        Op::Link(a, b) => on(union, a, |node| {
            within(union, b, |dir, name| union.link(node, dir, name).map(forget))
        }),
        Op::Xattr(p, byte) => on(union, p, |node| {
            union.setxattr(node, "user.test".as_ref(), &[*byte], XattrFlags::empty())
        }),
        Op::Chmod(p, mode) => on(union, p, |node| {
            let change = SetAttr { mode: Some(u32::from(*mode)), ..SetAttr::default() };
            union.setattr(node, &change).map(drop)
        }),
        Op::Reopen => Ok(()),
    };
    done.map_err(|e| e.errno())
}

/// The same on a plain directory.
fn on_directory(root: &Path, op: &Op) -> std::io::Result<()> {
    let at = |p: &PathBuf| root.join(p);
    let mode = |p: &PathBuf, mode: u16| {
        fs::set_permissions(at(p), fs::Permissions::from_mode(u32::from(mode)))
    };
    match op {
        Op::Create(p, m) => fs::File::create_new(at(p)).and_then(|_| mode(p, *m)),
        Op::Write(p, byte) => fs::OpenOptions::new()
            .write(true)
            .open(at(p))
            .and_then(|f| std::os::unix::fs::FileExt::write_all_at(&f, &[*byte; 3], 2)),
        Op::Truncate(p) => fs::OpenOptions::new().write(true).truncate(true).open(at(p)).map(drop),
        Op::Mkdir(p) => fs::create_dir(at(p)).and_then(|()| mode(p, 0o755)),
        Op::Symlink(p) => symlink("target", at(p)),
        Op::Unlink(p) => fs::remove_file(at(p)),
        Op::Rmdir(p) => fs::remove_dir(at(p)),
        Op::Rename(a, b) => fs::rename(at(a), at(b)),
        Op::Exchange(a, b) => rustix::fs::renameat_with(
            rustix::fs::CWD,
            at(a),
            rustix::fs::CWD,
            at(b),
            RenameFlags::EXCHANGE,
        )
        .map_err(Into::into),
        Op::Link(a, b) => fs::hard_link(at(a), at(b)),
        Op::Xattr(p, byte) => {
            rustix::fs::setxattr(at(p), "user.test", &[*byte], XattrFlags::empty())
                .map_err(Into::into)
        }
        Op::Chmod(p, m) => mode(p, *m),
        Op::Reopen => Ok(()),
    }
}

/// The upper as the kernel's overlayfs shows it; none where that can't be mounted here.
fn tree_of_kernel(temp: &Path, lowers: &[PathBuf]) -> Option<Tree> {
    let merged = temp.join("kernel");
    fs::create_dir(&merged).expect("a directory");
    let stack: Vec<_> = lowers.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let options = format!(
        "redirect_dir=on,index=on,lowerdir={},upperdir={},workdir={}",
        stack.join(":"),
        temp.join("upper").display(),
        temp.join("work").display()
    );
    let options = std::ffi::CString::new(options).expect("no NUL in a path");
    let mounted = rustix::mount::mount(
        "overlay",
        &merged,
        "overlay",
        rustix::mount::MountFlags::empty(),
        options.as_c_str(),
    );
    if let Err(e) = mounted {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "mount overlay: {e}");
        eprintln!("SKIPPED: the kernel's overlayfs can't be mounted here: {e}");
        return None;
    }
    let mut tree = Tree::new();
    tree_of_directory(&merged, Path::new(""), &mut tree);
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).expect("umount");
    Some(tree)
}

fn can_make_whiteouts() -> bool {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = fs::File::open(temp.path()).expect("the directory");
    let set = rustix::fs::fsetxattr(
        &dir,
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    );
    if let Err(e) = set {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "trusted attributes: {e}");
        eprintln!("SKIPPED: no trusted attributes here (not root?): {e}");
        return false;
    }
    true
}

fn play(ops: &[Op]) {
    let temp = tempfile::tempdir().expect("a directory");
    let at = |name: &str| temp.path().join(name);
    let lowers: Vec<PathBuf> = (0..LOWERS.len()).map(|i| at(&format!("lower{i}"))).collect();
    for (root, paths) in lowers.iter().zip(LOWERS) {
        make_lower(root, paths);
    }
    for dir in ["upper", "work", "model"] {
        fs::create_dir(at(dir)).expect("a directory");
    }
    let config = Config {
        lowers: lowers.clone(),
        upper: Some((at("upper"), at("work"))),
        namespace: Namespace::Trusted,
        volatile: true,
        limits: Limits::default(),
        index: true,
        partial: true,
    };
    let before: Vec<Tree> = lowers.iter().map(|l| directory(l)).collect();
    let mut union = Union::open(&config).expect("the union");
    for (path, _) in shown(&union) {
        let from = lowers.iter().map(|l| l.join(&path)).find(|p| p.exists()).expect("its layer");
        let to = at("model").join(&path);
        let other = LOWERS.iter().flat_map(|paths| *paths).find_map(|entry| {
            let (name, other) = entry.split_once('=')?;
            (Path::new(name) == path).then_some(other)
        });
        if let Some(other) = other {
            fs::hard_link(at("model").join(other), &to).expect("a link");
        } else if from.is_dir() {
            fs::create_dir(&to).expect("a directory");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("a mode");
        } else {
            fs::copy(&from, &to).expect("a copy");
        }
    }
    for op in ops {
        if matches!(op, Op::Reopen) {
            drop(union);
            union = Union::open(&config).expect("the union again");
        }
        let (here, there) = (on_union(&union, op), on_directory(&at("model"), op));
        assert_eq!(
            here.is_ok(),
            there.is_ok(),
            "{op:?}: the union {here:?}, a plain directory {there:?}"
        );
        assert_eq!(shown(&union), directory(&at("model")), "after {op:?}");
    }
    drop(union);
    let staged = fs::read_dir(at("work/work")).expect("the work directory").count();
    assert_eq!(staged, 0, "left in the work directory");
    let after: Vec<Tree> = lowers.iter().map(|l| directory(l)).collect();
    assert_eq!(before, after, "a lower layer changed");
    if let Some(kernel) = tree_of_kernel(temp.path(), &lowers) {
        assert_eq!(kernel, directory(&at("model")), "the kernel's overlayfs shows another tree");
    }
}

fn directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    tree_of_directory(root, Path::new(""), &mut tree);
    tree
}

fn shown(union: &Union) -> Tree {
    let mut tree = Tree::new();
    tree_of_union(union, Path::new(""), &mut tree);
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_union_shows_what_a_plain_directory_would_and_so_does_the_kernel(
        ops in prop::collection::vec(op(), 1..40)
    ) {
        if can_make_whiteouts() {
            play(&ops);
        }
    }
}

#[test]
fn a_second_union_on_one_upper_is_refused() {
    let temp = tempfile::tempdir().expect("a directory");
    let at = |name: &str| temp.path().join(name);
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(at(dir)).expect("a directory");
    }
    let config = Config {
        lowers: vec![at("lower")],
        upper: Some((at("upper"), at("work"))),
        namespace: Namespace::User,
        volatile: false,
        limits: Limits::default(),
        index: true,
        partial: true,
    };
    let first = Union::open(&config).expect("the union");
    assert_eq!(Union::open(&config).err().map(|e| e.errno()), Some(Errno::BUSY));
    drop(first);
    Union::open(&config).expect("free again");
}

#[test]
fn without_an_upper_nothing_changes() {
    let temp = tempfile::tempdir().expect("a directory");
    fs::write(temp.path().join("a"), "a").expect("a file");
    let lowers = vec![temp.path().to_owned()];
    let config = Config {
        lowers,
        upper: None,
        namespace: Namespace::User,
        volatile: false,
        limits: Limits::default(),
        index: true,
        partial: true,
    };
    let union = Union::open(&config).expect("the union");
    let a = Path::new("a");
    let ops = [
        Op::Write(a.into(), 1),
        Op::Truncate(a.into()),
        Op::Create("b".into(), 0o644),
        Op::Mkdir("b".into()),
        Op::Unlink(a.into()),
        Op::Rename(a.into(), "b".into()),
        Op::Link(a.into(), "b".into()),
        Op::Xattr(a.into(), 1),
        Op::Chmod(a.into(), 0o644),
    ];
    for op in ops {
        assert_eq!(on_union(&union, &op), Err(Errno::ROFS), "{op:?}");
    }
    assert_eq!(shown(&union).len(), 1);
}
