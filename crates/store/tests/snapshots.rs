//! The rules of snapshots, each with the fault that a breach of it has; and what a crash leaves.

mod layout;

use std::collections::BTreeMap;
use std::fs;

use layout::{Layout, dir, file, gzip, tar};
use store::manifest::Descriptor;
use store::snapshots::{Fault, Kind};
use store::source::{OciLayout, Quiet};
use store::{Digest, Error, PullOptions, Store, chain_id};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn fault<T: std::fmt::Debug>(result: store::Result<T>) -> Fault {
    match result {
        Err(Error::Snapshot { fault, .. }) => fault,
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn each_rule_has_its_fault() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    let none = labels(&[]);
    let make =
        |name: &str, parent: Option<&str>, kind| store.prepare_snapshot(name, parent, kind, &none);
    assert_eq!(fault(make("a", Some("absent"), Kind::Active)), Fault::Absent);
    make("a", None, Kind::Active).unwrap();
    assert_eq!(fault(make("a", None, Kind::View)), Fault::Exists);
    assert_eq!(fault(make("b", Some("a"), Kind::Active)), Fault::ParentNotCommitted);
    store.commit_snapshot("a", "base", None, &none).unwrap();
    assert_eq!(fault(store.snapshot("a")), Fault::Absent);
    assert_eq!(fault(store.snapshot_stack("base")), Fault::Committed);
    assert_eq!(fault(store.commit_snapshot("base", "again", None, &none)), Fault::NotActive);
    make("view", Some("base"), Kind::View).unwrap();
    assert_eq!(fault(store.commit_snapshot("view", "again", None, &none)), Fault::NotActive);
    let stack = make("b", Some("base"), Kind::Active).unwrap();
    assert_eq!(stack.lowers.len(), 1);
    assert_eq!(fault(store.commit_snapshot("b", "base", None, &none)), Fault::Exists);
    make("other", None, Kind::Active).unwrap();
    store.commit_snapshot("other", "other base", None, &none).unwrap();
    let rebased = store.commit_snapshot("b", "second", Some("other base"), &none);
    assert_eq!(fault(rebased), Fault::OtherParent);
    store.commit_snapshot("b", "second", Some("base"), &none).unwrap();
    assert_eq!(fault(store.remove_snapshot("base")), Fault::HasChildren);
    assert!(Fault::HasChildren.to_string().contains("remove"), "containerd's suite looks for it");
    for name in ["view", "second", "base", "other base"] {
        store.remove_snapshot(name).unwrap();
    }
    assert_eq!(fault(store.remove_snapshot("base")), Fault::Absent);
    assert_eq!(store.snapshots().unwrap(), []);
    assert_eq!(fs::read_dir(temp.path().join("snapshots")).unwrap().count(), 0);
    store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(temp.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn one_that_stands_on_nothing_gets_its_parent_at_the_commit() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    for name in ["lower", "upper"] {
        store.prepare_snapshot(name, None, Kind::Active, &labels(&[])).unwrap();
    }
    store.commit_snapshot("lower", "1", None, &labels(&[])).unwrap();
    store.commit_snapshot("upper", "2", Some("1"), &labels(&[("kept", "yes")])).unwrap();
    let found = store.snapshot("2").unwrap();
    assert_eq!((found.parent.as_deref(), found.kind), (Some("1"), Kind::Committed));
    assert_eq!(
        found.labels,
        labels(&[("kept", "yes")]),
        "the commit's labels replace those of before"
    );
    let changed = store.update_snapshot("2", |labels| labels.clear()).unwrap();
    assert!(changed.labels.is_empty() && changed.updated >= found.updated);
}

#[test]
fn what_is_used_is_measured_and_what_has_no_row_goes() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    let stack = store.prepare_snapshot("a", None, Kind::Active, &labels(&[])).unwrap();
    fs::write(stack.upper.join("file"), vec![1; 100_000]).unwrap();
    fs::hard_link(stack.upper.join("file"), stack.upper.join("link")).unwrap();
    let (bytes, inodes) = store.snapshot_usage("a").unwrap();
    assert!((100_000..200_000).contains(&bytes), "{bytes}");
    assert_eq!(inodes, 2, "a hard link is no inode more");
    store.commit_snapshot("a", "b", None, &labels(&[])).unwrap();
    assert_eq!(store.snapshot_usage("b").unwrap(), (bytes, inodes));
    drop(store);
    fs::create_dir_all(temp.path().join("snapshots/77/fs")).unwrap();
    let store = Store::open(temp.path()).unwrap();
    assert!(!temp.path().join("snapshots/77").exists(), "litter stays");
    assert_eq!(store.snapshots().unwrap().len(), 1);
    let again = store.prepare_snapshot("c", Some("b"), Kind::View, &labels(&[])).unwrap();
    assert!(again.lowers[0].join("file").exists());
}

/// A gzipped tar in `layout`, as a descriptor has it, and its diff ID.
fn blob(layout: &Layout, tar: &[u8]) -> (Descriptor, Digest) {
    let bytes = gzip(tar);
    let descriptor = Descriptor {
        media_type: store::manifest::media::OCI_LAYER_GZIP.to_owned(),
        digest: layout.blob(&bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    };
    (descriptor, Digest::of(tar))
}

#[test]
fn a_blob_that_is_applied_is_a_layer_of_the_store_as_long_as_a_snapshot_has_it() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let layout = Layout::new(&temp.path().join("oci"));
    let none = labels(&[]);
    let source = OciLayout::dir(&layout.dir, None);
    let tars =
        [tar(&[dir("etc/"), file("etc/a", "a")]), tar(&[file("etc/.wh.a", ""), file("b", "b")])];
    let mut parent: Option<String> = None;
    let mut chain = Vec::new();
    for (at, tar) in tars.iter().enumerate() {
        let (blob, diff_id) = blob(&layout, tar);
        let key = format!("extract {at}");
        let stack = store.prepare_snapshot(&key, parent.as_deref(), Kind::Active, &none).unwrap();
        let (id, _) = store.snapshot_of(&stack.upper).unwrap().unwrap();
        let applied = store.apply_to_snapshot(id, &source, &blob).unwrap().unwrap();
        assert_eq!((applied.diff_id, applied.size), (diff_id, Some(tar.len() as u64)));
        assert_eq!(store.apply_to_snapshot(id, &source, &blob).unwrap(), None, "it has a layer");
        chain.push(diff_id);
        let name = chain_id(&chain).unwrap().to_string();
        store.commit_snapshot(&key, &name, parent.as_deref(), &none).unwrap();
        parent = Some(name);
    }
    let view = store.prepare_snapshot("view", parent.as_deref(), Kind::View, &none).unwrap();
    assert_eq!(view.lowers.len(), 2, "{view:?}");
    assert!(view.lowers[0].join("b").is_file() && view.lowers[1].join("etc/a").is_file());
    assert!(view.lowers.iter().all(|lower| lower.ends_with("layer")), "names are short: {view:?}");
    let (bytes, inodes) = store.snapshot_usage(parent.as_deref().unwrap()).unwrap();
    assert_eq!((bytes, inodes), (1, 2), "the layer's data and names");
    assert_eq!(store.collect().unwrap().layers, 0, "snapshots have them");
    // The same chain for another: nothing is unpacked.
    let other = labels(&[("containerd.io/snapshot.ref", "x")]);
    let top = chain_id(&chain).unwrap();
    assert!(store.adopt_snapshot("known base", None, &chain[0], &other).unwrap());
    assert!(store.adopt_snapshot("known top", Some("known base"), &top, &other).unwrap());
    assert!(store.adopt_snapshot("once more", Some("known base"), &top, &other).unwrap());
    assert_eq!(fault(store.snapshot("once more")), Fault::Absent, "one is enough");
    assert!(!store.adopt_snapshot("no", None, &top, &other).unwrap(), "a chain is no base");
    assert!(!store.adopt_snapshot("no", Some("known base"), &chain[0], &other).unwrap());
    let info = store.snapshot("known top").unwrap();
    assert_eq!((info.kind, info.parent.as_deref()), (Kind::Committed, Some("known base")));
    // What changed beside a layer counts as well.
    let stack = store.prepare_snapshot("both", Some("known top"), Kind::Active, &none).unwrap();
    let (more, _) = blob(&layout, &tar(&[file("c", "c")]));
    let (id, _) = store.snapshot_of(&stack.upper).unwrap().unwrap();
    fs::write(stack.upper.join("own"), "o").unwrap();
    assert_eq!(store.apply_to_snapshot(id, &source, &more).unwrap(), None, "it is not empty");
    fs::remove_file(stack.upper.join("own")).unwrap();
    store.apply_to_snapshot(id, &source, &more).unwrap().unwrap();
    fs::write(stack.upper.join("own"), "o").unwrap();
    store.commit_snapshot("both", "both kept", None, &none).unwrap();
    let stack = store.prepare_snapshot("on both", Some("both kept"), Kind::View, &none).unwrap();
    assert_eq!(stack.lowers.len(), 4);
    assert!(stack.lowers[0].join("own").exists() && stack.lowers[1].join("c").exists());
    for name in
        ["on both", "both kept", "view", "known top", "known base", parent.as_deref().unwrap()]
    {
        store.remove_snapshot(name).unwrap();
    }
    store.remove_snapshot(&chain[0].to_string()).unwrap();
    assert_eq!(store.collect().unwrap().layers, 3, "nobody has them");
    for place in ["layers", "snapshots", "trash", "staging", "locks"] {
        assert_eq!(fs::read_dir(store.root().join(place)).unwrap().count(), 0, "{place}");
    }
}

#[test]
fn an_image_that_was_pulled_is_known_to_snapshots_and_the_reverse() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let mut layout = Layout::new(&temp.path().join("oci"));
    let tars = [tar(&[file("a", "a")]), tar(&[file("b", "b")])];
    layout.image("one", &tars);
    let source = OciLayout::dir(&layout.dir, Some("one"));
    store.pull(&source, Some("localhost/one:1"), &Quiet, &PullOptions::default()).unwrap();
    let ids = tars.each_ref().map(|tar| Digest::of(tar));
    let none = labels(&[]);
    assert!(store.adopt_snapshot("base", None, &ids[0], &none).unwrap());
    assert!(store.adopt_snapshot("top", Some("base"), &chain_id(&ids).unwrap(), &none).unwrap());
    // A blob that the image has is not unpacked again, also on another chain.
    let (blob, diff_id) = blob(&layout, &tars[1]);
    let stack = store.prepare_snapshot("alone", None, Kind::Active, &none).unwrap();
    let (id, _) = store.snapshot_of(&stack.upper).unwrap().unwrap();
    let applied = store.apply_to_snapshot(id, &source, &blob).unwrap().unwrap();
    assert_eq!((applied.diff_id, applied.size), (diff_id, None));
    // The image goes, the snapshots stay; then a pull has nothing to fetch.
    assert!(store.remove("localhost/one:1").unwrap());
    assert_eq!(store.layers().unwrap().len(), 2);
    fs::remove_file(layout.path(&blob.digest)).unwrap();
    store.pull(&source, Some("localhost/one:1"), &Quiet, &PullOptions::default()).unwrap();
    assert!(store.check(false).unwrap().findings.is_empty());
}

#[test]
fn a_layer_that_is_not_what_it_says_leaves_the_snapshot_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let layout = Layout::new(&temp.path().join("oci"));
    let source = OciLayout::dir(&layout.dir, None);
    let (mut blob, _) = blob(&layout, &tar(&[file("a", "a")]));
    fs::write(layout.path(&blob.digest), gzip(&tar(&[file("a", "other")]))).unwrap();
    blob.size = fs::metadata(layout.path(&blob.digest)).unwrap().len();
    let stack = store.prepare_snapshot("x", None, Kind::Active, &labels(&[])).unwrap();
    let (id, _) = store.snapshot_of(&stack.upper).unwrap().unwrap();
    let error = store.apply_to_snapshot(id, &source, &blob).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(store.snapshot_stack("x").unwrap().lowers.len(), 0);
    assert!(store.layers().unwrap().is_empty());
    for place in ["layers", "staging", "locks", "partial"] {
        assert_eq!(fs::read_dir(store.root().join(place)).unwrap().count(), 0, "{place}");
    }
    for foreign in ["/tmp", "/tmp/1/fs", "snapshots/1/fs"] {
        assert_eq!(store.snapshot_of(foreign.as_ref()).unwrap(), None, "{foreign}");
    }
}

#[test]
fn a_store_of_the_format_before_is_changed_to_this_one() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("store");
    drop(Store::open(&root).unwrap());
    let db = rusqlite::Connection::open(root.join("db.sqlite")).unwrap();
    db.execute_batch(
        "DROP INDEX snapshots_by_layer; DROP INDEX snapshots_by_chain; DROP TABLE blobs;
         ALTER TABLE snapshots DROP COLUMN diff_id; ALTER TABLE snapshots DROP COLUMN own;
         ALTER TABLE snapshots DROP COLUMN chain;
         INSERT INTO snapshots (name, kind, created, updated, labels) VALUES ('old', 3, 0, 0, '{}');
         PRAGMA user_version = 3",
    )
    .unwrap();
    drop(db);
    fs::create_dir_all(root.join("snapshots/1/fs")).unwrap();
    let store = Store::open(&root).unwrap();
    let stack = store.prepare_snapshot("new", Some("old"), Kind::Active, &labels(&[])).unwrap();
    assert!(stack.lowers[0].ends_with("snapshots/1/fs"));
    drop(store);
    Store::open(&root).unwrap();
}
