//! A layer is unpacked: whatever it holds, nothing outside its directory changes, and what was taken
//! comes out again bit by bit.
#![no_main]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use store::Content;
use store::tar::apply::{Objects, Options, apply};
use store::tar::recipe;

struct Nothing;

impl Objects for Nothing {
    fn find(&self, _content: &Content, _size: u64) -> Option<OwnedFd> {
        None
    }
}

/// A tree beside the layer, at a path that seeds name too: what must not change.
const OUTSIDE: &str = "/dev/shm/strata-fuzz-outside";

fn outside() -> &'static [String] {
    static BEFORE: OnceLock<Vec<String>> = OnceLock::new();
    BEFORE.get_or_init(|| {
        fs::create_dir_all(format!("{OUTSIDE}/d/e")).expect("a directory");
        for name in ["f", "d/f", "d/e/f"] {
            fs::write(format!("{OUTSIDE}/{name}"), name).expect("a file");
        }
        strata_fuzz::seen(OUTSIDE.as_ref())
    })
}

fuzz_target!(|input: &[u8]| {
    let before = outside();
    let place = strata_fuzz::place();
    let layer = place.join("layer");
    // Every name beside the layer that a path might go up to.
    let beside = place.join("beside");
    if !beside.exists() {
        fs::write(&beside, "beside").expect("a file");
        symlink(OUTSIDE, place.join("link")).expect("a symlink");
    }
    fs::create_dir_all(layer.join("fs")).expect("a directory");
    let tar = strata_fuzz::with_checksums(input);
    let options = Options {
        namespace: layer::Namespace::User,
        owners: true,
        max_entries: 1000,
        max_bytes: 4 << 20,
        share: input.len() % 2 == 0,
    };
    let recipe_path = layer.join("recipe");
    let file = File::create_new(&recipe_path).expect("a recipe");
    let recipe = recipe::Writer::new(file).expect("a recipe");
    let open = || -> OwnedFd { File::open(&layer).expect("the layer").into() };
    let done = apply(tar.as_slice(), open(), &options, &Nothing, recipe);
    if done.is_ok() {
        let mut again = Vec::new();
        recipe::replay(&recipe_path, open(), &mut again).expect("the tar again");
        assert!(again == tar, "another tar came out");
    }
    let mut names: Vec<_> = fs::read_dir(place)
        .expect("a list")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["beside", "layer", "link"], "names beside the layer");
    assert_eq!(fs::read(&beside).expect("a file"), b"beside");
    let mut inside: Vec<_> = fs::read_dir(&layer)
        .expect("a list")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    inside.retain(|name| !["fs", "recipe", "replaced"].iter().any(|known| name == known));
    assert!(inside.is_empty(), "{inside:?} in the layer's directory");
    assert_eq!(strata_fuzz::seen(OUTSIDE.as_ref()), before, "something outside changed");
    fs::remove_dir_all(&layer).expect("a removal");
});
