//! The rules of snapshots, each with the fault that a breach of it has; and what a crash leaves.

use std::collections::BTreeMap;
use std::fs;

use store::snapshots::{Fault, Kind};
use store::{Error, Store};

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
