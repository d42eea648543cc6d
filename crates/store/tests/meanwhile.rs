//! What one process reads while another removes it.

mod layout;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use layout::{Layout, file, tar};
use store::save::Format;
use store::source::{DockerArchive, OciLayout, Quiet};
use store::{Digest, Error, PullOptions, Seam, Store};

const NAME: &str = "localhost/a:1";

fn pull(store: &Store, layout: &Layout) -> Digest {
    let source = OciLayout::dir(&layout.dir, Some("a"));
    store.pull(&source, Some(NAME), &Quiet, &PullOptions::default()).expect("a pull")
}

fn layout(at: &Path) -> Layout {
    let mut layout = Layout::new(&at.join("oci"));
    layout.image("a", &[tar(&[file("one", "1")]), tar(&[file("two", "2")])]);
    layout
}

fn remove(root: &Path) {
    let other = Store::open(root).expect("the store once more");
    other.remove(NAME).expect("a removal");
    other.tidy().expect("a collection");
}

/// Removes the image when the first byte comes.
struct Removes<'t> {
    root: &'t Path,
    to: &'t mut Vec<u8>,
}

impl Write for Removes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.to.is_empty() {
            remove(self.root);
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_image_that_is_removed_while_it_is_saved_is_saved_whole() {
    let temp = tempfile::tempdir().expect("a directory");
    let (root, layout) = (temp.path().join("store"), layout(temp.path()));
    let store = Store::open(&root).expect("a store");
    let id = pull(&store, &layout);
    let images = [(store.image(NAME).expect("the image"), Some(NAME.to_owned()))];
    let mut archive = Vec::new();
    let mut to = Removes { root: &root, to: &mut archive };
    store.save(&images, Format::DockerArchive, &mut to).expect("an archive");

    assert!(store.images().expect("images").is_empty(), "the removal did not wait");
    assert!(store.is_untidy().expect("a look"), "what was kept for the archive has still to go");
    store.tidy().expect("a collection");
    assert!(!store.is_untidy().expect("a look"));
    assert_eq!(fs::read_dir(root.join("layers")).expect("layers").count(), 0);

    let path = temp.path().join("archive.tar");
    fs::write(&path, archive).expect("the archive");
    let archive = DockerArchive::open(&path).expect("an archive").remove(0);
    let again = store.pull(&archive, Some(NAME), &Quiet, &PullOptions::default());
    assert_eq!(again.expect("an image"), id);
    assert!(store.check(false).expect("a check").findings.is_empty());

    remove(&root);
    let late = store.save(&images, Format::OciArchive, &mut Vec::new());
    assert!(matches!(late, Err(Error::NoImage { .. })), "{late:?}");
}

#[test]
fn a_layer_that_goes_while_it_is_verified_is_not_damaged() {
    let temp = tempfile::tempdir().expect("a directory");
    let (root, layout) = (temp.path().join("store"), layout(temp.path()));
    let armed = Arc::new(AtomicBool::new(false));
    let (asked, place) = (Arc::clone(&armed), root.clone());
    let seam = Seam::new(move |step| {
        // What the check waits for when it has found something.
        if step == "locking" && asked.swap(false, Ordering::SeqCst) {
            remove(&place);
        }
        Ok(())
    });
    let store = Store::open_with(&root, seam).expect("a store");
    pull(&store, &layout);
    let image = store.image(NAME).expect("the image");
    let one = store.layer_tree(&image.layers[0].diff_id).join("one");
    fs::remove_file(&one).expect("the file");
    let report = store.check(false).expect("a check");
    assert_eq!((report.layers, report.findings.len()), (2, 1), "damage is found");

    armed.store(true, Ordering::SeqCst);
    let report = store.check(false).expect("a check");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(!armed.load(Ordering::SeqCst), "nothing was removed meanwhile");
}

#[test]
fn what_a_killed_process_has_left_is_in_nobodys_way() {
    let temp = tempfile::tempdir().expect("a directory");
    let (root, layout) = (temp.path().join("store"), layout(temp.path()));
    let store = Store::open(&root).expect("a store");
    pull(&store, &layout);
    let layer = store.image(NAME).expect("the image").layers[0].diff_id;
    remove(&root);
    // Published, without a row: as if the process had been killed since the store was opened here.
    let place = store.layer_tree(&layer);
    fs::create_dir_all(&place).expect("a directory");
    fs::write(place.join("half"), "of another").expect("a file");

    pull(&store, &layout);
    assert!(!place.join("half").exists());
    assert_eq!(fs::read(place.join("one")).expect("the layer's file"), b"1");
    assert!(store.check(false).expect("a check").findings.is_empty());
    remove(&root);
    for dir in ["layers", "trash", "staging"] {
        assert_eq!(fs::read_dir(root.join(dir)).expect("a directory").count(), 0, "{dir}");
    }
}
