//! A thousand containers of one image: what each costs on disk, whatever the image and however many there are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use containers::Container;
use containers::container::Config;
use store::Store;

/// Inodes and bytes on disk of all that is at `path`.
fn cost(path: &Path) -> (u64, u64) {
    let meta = fs::symlink_metadata(path).expect("metadata");
    let mut sum = (1, meta.blocks() * 512);
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("a list") {
            let (inodes, bytes) = cost(&entry.expect("an entry").path());
            sum = (sum.0 + inodes, sum.1 + bytes);
        }
    }
    sum
}

fn create(store: &Store, image: &str, name: &str) -> Container {
    let image = store.image(image).expect("the image");
    let config = Config { args: vec!["true".to_owned()], ..Config::default() };
    Container::create(store, &image, Some(name), config).expect("a container")
}

#[test]
fn a_thousand_containers_cost_a_small_directory_each() {
    let temp = tempfile::tempdir().expect("a directory");
    let root = temp.path().join("store");
    let layers: Vec<PathBuf> = (0..121).map(|n| temp.path().join(format!("layer{n}"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir(layer).expect("a directory");
        fs::write(layer.join(format!("file{n}")), vec![b'x'; 4096]).expect("a file");
    }
    let store = Store::open(&root).expect("a store");
    containers::sample::add(&store, "one", &layers[..1], &["true"]).expect("an image");
    containers::sample::add(&store, "many", &layers, &["true"]).expect("an image");
    let before = cost(&root.join("layers"));

    let mut took = Vec::new();
    for n in 0..1000 {
        let begun = Instant::now();
        create(&store, "many", &format!("c{n}"));
        took.push(begun.elapsed());
    }
    let small = create(&store, "one", "small");
    let large = Container::find(&store, "c999").expect("the last one");
    // A directory of five, whatever the image: itself, upper, work, snaps and merged.
    let (inodes, bytes) = cost(&large.dir);
    assert_eq!((inodes, bytes), cost(&small.dir));
    assert_eq!(inodes, 5);
    assert!(bytes <= 5 * 4096, "{bytes} bytes");
    let all = cost(&root.join("rw"));
    assert_eq!(all.0, 1 + 1001 * 5);
    assert_eq!(cost(&root.join("layers")), before, "containers made the image larger");
    let database = fs::metadata(root.join("db.sqlite")).expect("metadata").len();
    let log = fs::metadata(root.join("db.sqlite-wal")).expect("metadata").len();
    assert!(database + log < 4 << 20, "the rows take {database} and {log} bytes");

    // Times depend on the machine: they are shown, not judged.
    took[..100].sort();
    took[900..].sort();
    let begun = Instant::now();
    let again = Store::open(&root).expect("the store");
    let opened = begun.elapsed();
    assert_eq!(Container::list(&again).expect("a list").len(), 1001);
    println!(
        "created in {:?} at first, in {:?} after 900 (medians); the store opens in {opened:?}; {} KiB in all",
        took[50],
        took[950],
        (all.1 + database + log) >> 10
    );
    Container::find(&again, "c5").expect("one").remove(&again, false).expect("removed");
    again.empty_trash().expect("emptied");
    assert_eq!(cost(&root.join("rw")).0, all.0 - 5, "a removal frees what it says");
}
