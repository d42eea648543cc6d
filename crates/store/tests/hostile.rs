//! Images that mean harm. Each is refused with a reason, leaves nothing, and touches nothing outside.
//!
//! Source: the security record in advisories of containerd, Docker, containers/storage, umoci and
//! the tar crates; each case names its kind.

mod layout;

use std::fs;
use std::path::Path;

use layout::{Entry, Layout, dir, file, hard_link, special, symlink, tar};
use store::source::{OciLayout, Quiet};
use store::{Digest, Error, PullOptions, Store};

/// What a hostile layer comes to.
enum End {
    /// Refused, with a word of the reason.
    Refused(&'static str),
    /// Unpacked, with this file inside the layer.
    Inside(&'static str),
}
use End::{Inside, Refused};

fn pull(dir: &Path, layers: &[Vec<u8>]) -> (Store, store::Result<Digest>) {
    let mut layout = Layout::new(&dir.join("oci"));
    layout.image("a", layers);
    let store = Store::open(&dir.join("store")).unwrap();
    let source = OciLayout::dir(&layout.dir, Some("a"));
    let done = store.pull(&source, Some("localhost/a:1"), &Quiet, &PullOptions::default());
    (store, done)
}

fn pax(entry: Entry, key: &str, value: &[u8]) -> Entry {
    let mut entry = entry;
    entry.pax.push((key.as_bytes().to_vec(), value.to_vec()));
    entry
}

#[test]
fn a_hostile_layer_stays_in_its_directory_or_is_refused() {
    let long = "x".repeat(300);
    let deep = "d/".repeat(3000);
    let mut lying = file("a", "data");
    lying.size = Some(1 << 30);
    let cases: Vec<(&str, Vec<Entry>, End)> = vec![
        ("an absolute path", vec![file("/etc/pwned", "x")], Inside("etc/pwned")),
        ("a path that goes up", vec![file("../pwned", "x")], Refused("goes up")),
        ("a path that goes up later", vec![file("a/../../pwned", "x")], Refused("goes up")),
        ("a directory that goes up", vec![dir("../../pwned/")], Refused("goes up")),
        (
            "a file through an absolute symlink",
            vec![symlink("out", "/etc"), file("out/pwned", "x")],
            Inside("etc/pwned"),
        ),
        (
            "a file through a symlink that goes up",
            vec![symlink("out", "../../../.."), file("out/pwned", "x")],
            Inside("pwned"),
        ),
        (
            "a symlink is replaced, not followed",
            vec![symlink("a", "/etc/passwd"), file("a", "x")],
            Inside("a"),
        ),
        (
            "a hard link to a file outside",
            vec![hard_link("a", "/etc/passwd")],
            Refused("not in its layer"),
        ),
        ("a hard link that goes up", vec![hard_link("a", "../../etc/passwd")], Refused("goes up")),
        (
            "a hard link through a symlink",
            vec![symlink("out", "/etc"), hard_link("a", "out/passwd")],
            Refused("not in its layer"),
        ),
        ("a hard link to the root", vec![hard_link("a", "/")], Refused("root")),
        ("the root as a symlink", vec![symlink("./", "/etc")], Refused("root")),
        ("the root as a file", vec![file(".", "x")], Refused("root")),
        ("a whiteout of nothing", vec![file(".wh.", "")], Refused("no name")),
        ("a whiteout of the directory", vec![file("a/.wh..", "")], Refused("no name")),
        ("a whiteout of the one above", vec![file("a/.wh...", "")], Refused("no name")),
        (
            "a whiteout through a symlink",
            vec![symlink("out", "/"), file("out/.wh.etc", "")],
            Inside("etc"),
        ),
        ("the whiteout device itself", vec![special("a", b'3', (0, 0))], Refused("whiteout")),
        (
            "a name that no file can have",
            vec![file(&long[..200], "x"), pax(file("b", "x"), "path", long.as_bytes())],
            Refused(""),
        ),
        (
            "a path that is longer than any",
            vec![pax(file("b", "x"), "path", deep.as_bytes())],
            Refused("name"),
        ),
        ("a NUL in a path", vec![pax(file("b", "x"), "path", b"a\0b")], Refused("name")),
        ("a length that lies", vec![lying], Refused("")),
        ("a PAX length that is negative", vec![pax(file("b", "x"), "size", b"-1")], Refused("PAX")),
        (
            "a PAX length that is larger than any file",
            vec![pax(file("b", "x"), "size", b"18446744073709551615")],
            Refused("larger"),
        ),
        (
            "a sparse file whose parts overlap",
            vec![pax(pax(file("b", "xx"), "GNU.sparse.map", b"0,1,0,1"), "GNU.sparse.size", b"9")],
            Refused("overlap"),
        ),
        (
            "a sparse file with a part behind its end",
            vec![pax(pax(file("b", "xx"), "GNU.sparse.map", b"8,2"), "GNU.sparse.size", b"9")],
            Refused("behind"),
        ),
        (
            "a sparse file that holds more than its parts",
            vec![pax(pax(file("b", "xx"), "GNU.sparse.map", b"0,1"), "GNU.sparse.size", b"9")],
            Refused("length"),
        ),
        (
            "a directory with a sparse map",
            vec![pax(pax(dir("b/"), "GNU.sparse.map", b""), "GNU.sparse.size", b"9")],
            Refused("no file"),
        ),
        (
            "an entry of an unknown type",
            vec![Entry { kind: b'Z', ..file("a", "") }],
            Refused("unknown"),
        ),
        (
            "a directory becomes a file",
            vec![dir("a/"), file("a/b", "x"), file("a", "x")],
            Inside("a"),
        ),
        (
            "a file becomes a directory",
            vec![file("a", "x"), dir("a/"), file("a/b", "x")],
            Inside("a/b"),
        ),
        (
            "a mark of the union as an attribute",
            vec![pax(dir("a/"), "SCHILY.xattr.trusted.overlay.redirect", b"/etc")],
            Inside("a"),
        ),
    ];
    for (what, entries, end) in cases {
        let temp = tempfile::tempdir().unwrap();
        let outside = fs::read("/etc/passwd").unwrap();
        let (store, done) = pull(temp.path(), &[tar(&entries)]);
        match (end, done) {
            (Refused(word), Err(e)) => {
                assert!(e.to_string().contains(word), "{what}: {e}");
                assert_eq!(store.usage().unwrap().layers, 0, "{what}");
                for dir in ["staging", "layers", "partial", "locks"] {
                    let left = fs::read_dir(temp.path().join("store").join(dir)).unwrap().count();
                    assert_eq!(left, 0, "{what}: left in {dir}");
                }
            }
            (Inside(path), Ok(_)) => {
                let image = store.image("localhost/a:1").unwrap();
                let tree = store.layer_tree(&image.layers[0].diff_id);
                assert!(fs::symlink_metadata(tree.join(path)).is_ok(), "{what}");
                assert!(store.check(false).unwrap().findings.is_empty(), "{what}");
            }
            (Refused(_), Ok(_)) => panic!("{what} was not refused"),
            (Inside(_), Err(e)) => panic!("{what}: {e}"),
        }
        assert_eq!(fs::read("/etc/passwd").unwrap(), outside, "{what}");
        for name in ["pwned", "store/pwned", "store/layers/pwned"] {
            assert!(!temp.path().join(name).exists(), "{what}");
        }
        assert!(!Path::new("/etc/pwned").exists() && !Path::new("/pwned").exists(), "{what}");
    }
}

#[test]
fn garbage_and_cuts_end_with_an_error() {
    let good = tar(&[file("a", "data"), dir("d/")]);
    for cut in [1, 100, 511, 513, 515, 1025] {
        let temp = tempfile::tempdir().unwrap();
        let (store, done) = pull(temp.path(), &[good[..cut].to_vec()]);
        assert!(matches!(done, Err(Error::BadLayer { .. })), "cut at {cut}: {done:?}");
        assert_eq!(store.usage().unwrap().layers, 0);
    }
    let temp = tempfile::tempdir().unwrap();
    let (_, done) = pull(temp.path(), &[vec![0xa5; 10_000]]);
    assert!(matches!(done, Err(Error::BadLayer { .. })), "{done:?}");
    // The end of an archive may be left out, and an image may have no layer or an empty one.
    let temp = tempfile::tempdir().unwrap();
    pull(temp.path(), &[good[..good.len() - 1024].to_vec(), tar(&[])]).1.unwrap();
    // So may be what fills up the last block.
    let last = tar(&[dir("d/"), file("a", "data")]);
    let temp = tempfile::tempdir().unwrap();
    let (store, done) = pull(temp.path(), &[last[..last.len() - 1024 - 508].to_vec()]);
    done.unwrap();
    assert!(store.check(false).unwrap().findings.is_empty());
    let temp = tempfile::tempdir().unwrap();
    pull(temp.path(), &[]).1.unwrap();
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    // 64 MiB of zeros are 64 KiB of gzip; the limit is what counts, so it is set low.
    let temp = tempfile::tempdir().unwrap();
    let mut bomb = file("zeros", "");
    bomb.data = vec![0; 64 << 20];
    let mut layout = Layout::new(&temp.path().join("oci"));
    layout.image("a", &[tar(&[bomb])]);
    let mut store = Store::open(&temp.path().join("store")).unwrap();
    store.limit(1000, 1 << 20);
    let source = OciLayout::dir(&layout.dir, Some("a"));
    let done = store.pull(&source, None, &Quiet, &PullOptions::default());
    let Err(Error::BadLayer { why, .. }) = done else { panic!("{done:?}") };
    assert!(why.contains("more than 1048576 bytes"), "{why}");
    let many: Vec<Entry> = (0..1001).map(|i| file(&i.to_string(), "")).collect();
    layout.image("b", &[tar(&many)]);
    let source = OciLayout::dir(&layout.dir, Some("b"));
    let done = store.pull(&source, None, &Quiet, &PullOptions::default());
    let Err(Error::BadLayer { why, .. }) = done else { panic!("{done:?}") };
    assert!(why.contains("more than 1000 entries"), "{why}");
}

#[test]
fn nobody_else_reaches_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("store");
    let _store = Store::open(&root).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    for name in ["layers", "rw", "staging"] {
        assert_eq!(mode(&root.join(name)), 0o700, "{name}");
    }
}
